"""The results table, out of the records."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from hierclip.evaluate import Outcomes, Record, outcomes_path, paired_difference, path_robust
from hierclip.studies import StudyRecord

SPLITS = {
    "tuned": "Classes seen in fine-tuning",
    "held_out": "Classes held out of fine-tuning: known from pre-training, never seen under attack",
}


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """A row for each record, reading and level: accuracy clean and under the attack at that level, as fractions."""
    rows = [
        {
            "method": r.method,
            "seed": r.seed,
            "split": r.split,
            "reading": reading,
            "level": level,
            "clean": r.clean[reading][level],
            "robust": r.robust[reading][level][level],
        }
        for r in records
        for reading in r.clean
        for level in range(len(r.levels))
    ]
    return pd.DataFrame(rows)


def markdown(records: Sequence[Record], labels: Mapping[str, str]) -> str:
    """The table that the README shows: a part for each split, a row for each method and seed.

    labels: what each method is called, in the order of the rows.
    """
    lines = []
    for split, words in SPLITS.items():
        rows = [r for r in in_order(records, labels) if r.split == split]
        if not rows:
            continue
        any_of, threat = rows[0], rows[0].threat_model
        lines += [
            f"**{words}** ({rows[0].images} pictures, {rows[0].levels[0]} leaves; levels of "
            f"{', '.join(map(str, rows[0].levels))} nodes)",
            "",
            "| method | seed | clean leaf | robust leaf | worst level | path-robust, direct "
            f"| path-robust, roll-up | worst of {len(rows[0].forest)} trees | reading |",
            "|---|---|---|---|---|---|---|---|---|",
            *(_row(r, labels) for r in rows),
            "",
        ]
    lines.append(
        "Percent, with 95 % bootstrap intervals over pictures. Path-robust: the whole path stays right under every "
        "attack; every level is attacked, in both readings. All but the last figure are for the first tree, "
        f"{next(iter(any_of.trees))}; the last is the path-robust accuracy in the tree where it is least, on "
        f"{next(iter(any_of.forest.values())).images} of the pictures, and its interval does not count "
        "the choosing. Worst level and worst tree are in the reading "
        "that serves the method better on validation pictures, the last column. "
        f"Threat model: {threat.norm} {threat.eps}, PGD of "
        f"{threat.steps} steps of {threat.step}, random starts: {threat.restarts}, loss: {', '.join(threat.losses)}; "
        f'{threat.resolution} px, {threat.precision}, prompt "{threat.prompt}".'
    )
    return "\n".join(lines) + "\n"


def in_order(records: Sequence[Record], labels: Mapping[str, str]) -> list[Record]:
    """By method, as `labels` lists them, and then by seed."""
    return sorted(records, key=lambda r: (list(labels).index(r.method), r.seed))


def _row(r: Record, labels: Mapping[str, str]) -> str:
    b, worst = r.intervals, r.forest[r.worst_tree]
    cells = [
        labels[r.method],
        str(r.seed),
        _cell(r.clean["direct"][0], b["direct"].clean[0]),
        _cell(r.robust["direct"][0][0], b["direct"].robust[0][0]),
        _cell(r.worst_level[r.reading], b[r.reading].worst_level),
        _cell(r.path_robust["direct"], b["direct"].path_robust),
        _cell(r.path_robust["roll_up"], b["roll_up"].path_robust),
        f"{_cell(worst.path_robust[r.reading], worst.intervals[r.reading])} ({r.worst_tree})",
        r.reading.replace("_", "-"),
    ]
    return f"| {' | '.join(cells)} |"


def _cell(value: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def ablation_markdown(tables: Mapping[str, pd.DataFrame], study: StudyRecord) -> str:
    """The ablation's tables as `ablation_table` gives them, with the threat model they share."""
    columns = {"clean": "clean leaf", "robust": "robust leaf", "path_direct": "path-robust, direct"}
    columns |= {"path_roll_up": "path-robust, roll-up"}
    lines = []
    for name, table in tables.items():
        lines += [f"| {name} | {' | '.join(columns.values())} | seconds a step |", "|---|---|---|---|---|---|"]
        for row, r in table.iterrows():
            if not r["seeds"]:
                lines.append(f"| {row} | not run with these settings: `make ablate` | | | | |")
                continue
            cells = [f"{100 * r[c]:.1f} ± {100 * r[f'{c}_half']:.1f}" for c in columns]
            lines.append(f"| {row} | {' | '.join(cells)} | {r['seconds']:.2f} ± {r['seconds_half']:.2f} |")
        lines.append("")
    threat, seeds = study.threat_model, int(max(table["seeds"].to_numpy().max() for table in tables.values()))
    lines.append(
        f"Percent; mean over {seeds} fine-tunings with their 95 % interval (Student's t), each on {study.images} "
        f"pictures at most, {study.gradients} gradient evaluations unless the row says otherwise. "
        "Seconds are taken with another run beside. "
        f"{threat.norm} {threat.eps}, PGD of {threat.steps} steps of {threat.step}, loss: {', '.join(threat.losses)}."
    )
    return "\n".join(lines) + "\n"


def paired(records: Sequence[Record], labels: Mapping[str, str], root: Path, resamples: int) -> pd.DataFrame:
    """How much one method's path-robust accuracy exceeds another's, on the same pictures, in points; every pair.

    Each method takes its own reading, chosen on validation pictures. Columns: the difference and its 95 % interval.
    Reads the outcomes that the attack stage kept. Raises FileNotFoundError where they are missing.
    """
    rows = []
    for split, seed in itertools.product(SPLITS, sorted({r.seed for r in records})):
        group = [r for r in in_order(records, labels) if (r.split, r.seed) == (split, seed)]
        right = {
            r.method: path_robust(Outcomes.load(outcomes_path(root, r.method, seed, split)), r.reading) for r in group
        }
        for first, second in itertools.combinations(right, 2):
            points = [100 * v for v in paired_difference(right[second], right[first], resamples, seed)]
            rows.append((split, seed, f"{labels[second]} - {labels[first]}", *points))
    return pd.DataFrame(rows, columns=["split", "seed", "pair", "points", "low", "high"])
