"""One record, level by level."""

from collections.abc import Sequence

import pandas as pd

from hierclip.evaluate import Record
from hierclip.evaluate.audit import CHECKS
from hierclip.model import READINGS
from hierclip.plots.table import attack_words
from hierclip.trees import Tree

WORDS = {"direct": "direct", "roll_up": "roll-up"}  # of the readings


def level_frame(record: Record, tree: Tree) -> pd.DataFrame:
    """A row for each level: its nodes, the largest of them, and by reading the accuracy, clean and under the level's
    own attack, in percent with 95 % intervals. tree: the record's first.
    """
    rows = []
    for level, nodes in enumerate(record.levels):
        row: dict[str, object] = {"level": level, "nodes": nodes, "such as": _such_as(tree, level)}
        for reading in READINGS if level else READINGS[:1]:
            b, words = record.intervals[reading], f", {WORDS[reading]}"
            row[f"clean{words}"] = _cell(record.clean[reading][level], b.clean[level])
            row[f"robust{words}"] = _cell(record.robust[reading][level][level], b.robust[level][level])
        rows.append(row)
    return pd.DataFrame(rows).astype(object).fillna("as direct")


def tree_frame(record: Record) -> pd.DataFrame:
    """A row for each tree: path-robust accuracy by reading, on some of the pictures."""
    return pd.DataFrame(
        {
            "tree": name,
            "levels": ", ".join(map(str, tree.levels)),
            **{f"path-robust, {WORDS[r]}": _cell(tree.path_robust[r], tree.intervals[r]) for r in READINGS},
        }
        for name, tree in record.forest.items()
    )


def check_frame(record: Record) -> pd.DataFrame:
    """A row for each check of the audit."""
    return pd.DataFrame(
        {
            "check": name,
            "what": CHECKS[name][1],
            "value": f"{check.value:.2f}",
            "limit": f"{check.limit:.2f}",
            "verdict": "passed" if check.passed else "FAILED",
        }
        for name, check in record.audit.checks.items()
    )


def headline(record: Record) -> str:
    """The worst level and the path-robust accuracy, in both readings, in Markdown."""
    worst, paths = (
        ", ".join(f"{_cell(values[r], getattr(record.intervals[r], name))} ({WORDS[r]})" for r in READINGS)
        for name, values in (("worst_level", record.worst_level), ("path_robust", record.path_robust))
    )
    return f"**Path-robust accuracy** {paths}; **worst level** {worst}."


def level_table(record: Record, tree: Tree) -> str:
    """What an audit found, in Markdown: every level, the headline, other trees, the attack, and what its checks say."""
    frame, threat, failed = level_frame(record, tree), record.threat_model, record.audit.failed
    parts = [pipes(frame), headline(record)]
    few = next(iter(record.forest.values())).images
    parts += [f"Every tree, on {few} of the pictures:", pipes(tree_frame(record))] if len(record.forest) > 1 else []
    parts.append(
        f"Percent of {record.images} pictures, with 95 % bootstrap intervals. Robust: under the attack at that level. "
        "Path-robust: the whole path stays right, clean and under every attack. Direct: the nearest text of the level; "
        "roll-up: the superclass of the predicted leaf. "
        f'{attack_words(threat)}; {threat.resolution} px, {threat.precision}, prompt "{threat.prompt}".'
    )
    passed = len(record.audit.checks) - len(failed)
    said = (
        f" Failed: {', '.join(failed)}: the model is weaker than the table says, or the attack is blind."
        if failed
        else ""
    )
    parts.append(
        f"Checks of the attack, on {record.audit.images} pictures: {passed} of {len(record.audit.checks)} passed.{said}"
    )
    return "\n\n".join(parts) + "\n"


def pipes(frame: pd.DataFrame) -> str:
    """A frame as a table in Markdown, columns as wide as their cells, so that it reads well as plain text too."""
    rows = [list(frame.columns), *(list(map(str, row)) for row in frame.itertuples(index=False, name=None))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def _such_as(tree: Tree, level: int, count: int = 3) -> str:
    paths = tree.paths[:, level].tolist()
    largest: Sequence[int] = sorted(range(tree.sizes[level]), key=lambda k: -paths.count(k))[:count]
    return ", ".join(tree.levels[level][k].name for k in largest)


def _cell(value: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
