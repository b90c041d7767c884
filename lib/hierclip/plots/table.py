"""The results table, out of the records."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from hierclip.evaluate import Outcomes, Record, outcomes_path, paired_difference, path_robust
from hierclip.losses import METHODS

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


def markdown(records: Sequence[Record]) -> str:
    """The table that the README shows: a part for each split, a row for each method and seed."""
    lines = []
    for split, words in SPLITS.items():
        rows = [r for r in in_order(records) if r.split == split]
        if not rows:
            continue
        threat = rows[0].threat_model
        lines += [
            f"**{words}** ({rows[0].images} pictures, {rows[0].levels[0]} leaves; levels of "
            f"{', '.join(map(str, rows[0].levels))} nodes)",
            "",
            "| method | seed | clean leaf | robust leaf | worst level | path-robust, direct "
            "| path-robust, roll-up | reading |",
            "|---|---|---|---|---|---|---|---|",
            *map(_row, rows),
            "",
        ]
    lines.append(
        "Percent, with 95 % bootstrap intervals over pictures. Path-robust: the whole path stays right under every "
        "attack; every level is attacked, in both readings. Worst level is in the reading that serves the method "
        f"better on validation pictures, the last column. Threat model: {threat.norm} {threat.eps}, PGD of "
        f"{threat.steps} steps of {threat.step}, random starts: {threat.restarts}, loss: {', '.join(threat.losses)}; "
        f'{threat.resolution} px, {threat.precision}, prompt "{threat.prompt}".'
    )
    return "\n".join(lines) + "\n"


def in_order(records: Sequence[Record]) -> list[Record]:
    """By method, as `METHODS` lists them, and then by seed."""
    return sorted(records, key=lambda r: (list(METHODS).index(r.method), r.seed))


def _row(r: Record) -> str:
    b = r.intervals
    cells = [
        METHODS[r.method].label,
        str(r.seed),
        _cell(r.clean["direct"][0], b["direct"].clean[0]),
        _cell(r.robust["direct"][0][0], b["direct"].robust[0][0]),
        _cell(r.worst_level[r.reading], b[r.reading].worst_level),
        _cell(r.path_robust["direct"], b["direct"].path_robust),
        _cell(r.path_robust["roll_up"], b["roll_up"].path_robust),
        r.reading.replace("_", "-"),
    ]
    return f"| {' | '.join(cells)} |"


def _cell(value: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def paired(records: Sequence[Record], root: Path, resamples: int) -> pd.DataFrame:
    """How much each method's path-robust accuracy exceeds the first one's, on the same pictures, in points.

    Each method takes its own reading, chosen on validation pictures. Columns: the difference and its 95 % interval.
    Reads the outcomes that the attack stage kept. Raises FileNotFoundError where they are missing.
    """
    rows = []
    for (split, seed), group in itertools.groupby(
        sorted(in_order(records), key=lambda r: (list(SPLITS).index(r.split), r.seed)), key=lambda r: (r.split, r.seed)
    ):
        right = {
            r.method: path_robust(Outcomes.load(outcomes_path(root, r.method, seed, split)), r.reading) for r in group
        }
        first, *others = right
        for method in others:
            points = [100 * v for v in paired_difference(right[method], right[first], resamples, seed)]
            name = f"{METHODS[method].label} - {METHODS[first].label}"
            rows.append((split, seed, name, *points))
    return pd.DataFrame(rows, columns=["split", "seed", "pair", "points", "low", "high"])
