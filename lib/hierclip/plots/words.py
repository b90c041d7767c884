"""Words and tables of records that two notebooks, or a notebook and the README, share."""

from collections.abc import Mapping, Sequence

import pandas as pd

from hierclip.evaluation import Record
from hierclip.evaluation.masking import CHECKS
from hierclip.evaluation.records import ThreatModel

READING = {"direct": "direct", "roll_up": "roll-up"}
HIERARCHICAL = {  # metrics of `mistakes` that papers on class trees report, and their names there
    "h_precision": "hP",
    "h_recall": "hR",
    "h_f1": "hF1",
    "jaccard": "Jaccard",
    "tree_induced_error": "TIE",
    "lca_height": "LCA height / tree height",
    "top_down": "top-down accuracy",
}


def share(value: float, interval: tuple[float, float]) -> str:
    """Write a fraction and its interval in percent."""
    low, high = interval
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def pipes(frame: pd.DataFrame, even: bool = False) -> str:
    """Write a frame of text as a Markdown table, without its index, each row on one line.

    even: pad cells to the width of their column, so that the table reads well as plain text.
    """
    rows = [
        [" ".join(cell.splitlines()).replace("|", r"\|") for cell in row]
        for row in (frame.columns, *frame.astype(str).to_numpy())
    ]
    widths = [max(map(len, column)) if even else 1 for column in zip(*rows, strict=True)]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], rule, *lines[1:]])


def attack_words(threat: ThreatModel) -> str:
    """Describe the attack of a threat model in a few words."""
    words = f"{threat.norm} {threat.eps}, {' then '.join(threat.suite)}, {threat.steps} steps each"
    words += f", random starts: {threat.restarts}"
    if {"pgd_ce", "pgd_margin", "cw"} & set(threat.suite):
        words += f", PGD's steps {threat.step}"
    if "square" in threat.suite:
        words += f", {threat.queries} queries"
    if threat.prune:
        words += (
            ", the next on images that the one before moved "
            f"{100 * threat.prune:.0f} % of the way at least"
        )
    if threat.eot > 1:
        words += f", means over {threat.eot} calls of the model (EOT)"
    return words


def audit_words(records: Sequence[Record], labels: Mapping[str, str]) -> str:
    """Say which checks of the audit failed in which record, with the value and its limit."""
    failed = [
        f"{labels[record.method]}, seed {record.seed}, {record.subset.replace('_', ' ')}: "
        f"{name.replace('above: ', 'above the leaves, ')} "
        f"({check.value:.2f}, limit {check.limit:.2f})"
        for record in records
        for name, check in record.audit.checks.items()
        if not check.passed
    ]
    count, images = sum(len(r.audit.checks) for r in records), max(r.audit.images for r in records)
    words = (
        f"Gradient-masking checks on {images} image{'s' * (images != 1)} a record: "
        f"{count - len(failed)} of {count} passed"
    )
    vague = sum(len(undecided(record)) for record in records)
    words += f", {vague} of them on too few images to tell." if vague else "."
    return words + (f" Failed: {'; '.join(failed)}." if failed else "")


def undecided(record: Record) -> list[str]:
    """List the checks of the attack that passed, and whose interval reaches beyond the limit."""
    return [
        name
        for name, check in record.audit.checks.items()
        if check.passed and check.high > check.limit
    ]


def check_frame(records: Sequence[Record], labels: Mapping[str, str]) -> pd.DataFrame:
    """Tabulate the checks of the audit and their upper bounds, a column a record, in percent."""
    names = [name for name in CHECKS if any(name in r.audit.checks for r in records)]
    limits = [f"{100 * CHECKS[name][0]:.0f} %" for name in names]
    table = pd.DataFrame({"check": names, "limit": limits})
    for record in records:
        cells = {
            name: f"{100 * check.value:.1f} % (to {100 * check.high:.1f} %)"
            f"{'' if check.passed else ', failed'}"
            for name, check in record.audit.checks.items()
        }
        table[f"{labels[record.method]}, seed {record.seed}"] = [cells.get(name) for name in names]
    return table.assign(number=[CHECKS[name][1] for name in names])
