"""What to see in each figure of the report, with the numbers that are in it. rows: the records that a figure shows."""

from collections.abc import Mapping, Sequence

import pandas as pd

from hierclip.evaluate import Record
from hierclip.model import READINGS

Labels = Mapping[str, str]  # of the methods


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def levels(rows: Sequence[Record], labels: Labels) -> str:
    """Of `plots.results.level_bars`."""
    least = {k: _best(rows, labels, [r.worst_level[k] for r in rows]) for k in READINGS}
    return (
        f"Accuracy at each level of the tree {next(iter(rows[0].trees))}: clean (pale), and under the attacks on that "
        f"very level (full), with 95 % intervals over {rows[0].images} pictures. **See** which method holds at every "
        f"level: read from the level's own prompts (left) it is {least['direct']}; read from the predicted leaf "
        f"(right) {least['roll_up']}."
    )


def _best(rows: Sequence[Record], labels: Labels, values: Sequence[float]) -> str:
    """Who has the highest of the values at the worst level, all of them where several do; nobody where it is 0."""
    if not (best := max(values)):
        return "none"
    names = [labels[r.method] for r, value in zip(rows, values, strict=True) if value == best]
    return f"{' and '.join(names)}, {percent(best)} at the worst level"


def matrix(rows: Sequence[Record], labels: Labels) -> str:
    """Of `plots.results.matrices`, by roll-up."""
    first, best = rows[0], max(rows, key=lambda r: r.path_robust["roll_up"])
    kept = [
        f"{labels[r.method]} keeps {percent(r.robust['roll_up'][0][0])} of the leaves and "
        f"{percent(r.robust['roll_up'][0][-1])} of the coarsest level"
        for r in {r.method: r for r in (first, best)}.values()
    ]
    return (
        "Accuracy at one level (column) under an attack on another (row), read from the predicted leaf; framed is a "
        "level under its own attack, the rest is what that attack does in passing. **See** how far up the tree an "
        f"attack on the leaves reaches (row 0): {'; '.join(kept)}."
    )


def trees(rows: Sequence[Record], labels: Labels) -> str:
    """Of `plots.results.tree_bars`."""
    seen = {reading: max(rows, key=lambda r: _apart(r, reading)) for reading in READINGS}
    ends = _values(seen["direct"], "direct")
    low, high = min(ends, key=ends.get), max(ends, key=ends.get)  # pyright: ignore
    return (
        f"The share of {next(iter(rows[0].forest.values())).images} pictures whose whole path stays right under every "
        "attack, in each tree over the same leaves, with 95 % intervals. **See** how much one's verdict depends on the "
        f"tree: read directly most for {labels[seen['direct'].method]}, {percent(ends[low])} in {low} and "
        f"{percent(ends[high])} in {high}; read from the leaf trees differ by "
        f"{100 * _apart(seen['roll_up'], 'roll_up'):.1f} points at most."
    )


def _values(r: Record, reading: str) -> dict[str, float]:
    return {name: tree.path_robust[reading] for name, tree in r.forest.items()}


def _apart(r: Record, reading: str) -> float:
    values = _values(r, reading).values()
    return max(values) - min(values)


def strip(record: Record, labels: Labels) -> str:
    """Of `plots.pictures.attack_strip`, as notebook 50 draws it."""
    middle, threat = (len(record.levels) - 1) // 2, record.threat_model
    return (
        f"{labels[record.method]}: pictures of which the attack on level {middle} (direct reading, {threat.norm} "
        f"{threat.eps}) made that level wrong. Above, as they are; below, attacked; between, the change, magnified. "
        "Over each its true leaf. **See** how little the eye finds between above and below, and in bold what the model "
        "reads wrong, leaf first: an attack on a superclass need not touch the leaf."
    )


def margin(summary: pd.DataFrame, label: str) -> str:
    """Of `plots.margins.margin_depth`; summary: what `margins.summary` gives."""
    top, leaves = summary.loc[summary["share"].idxmax()], summary[summary["level"] == 0].iloc[0]
    return (
        f"Margins of {label} on clean pictures at the depth of each level (boxes: the middle half; whiskers: 5 % to "
        "95 %; crosses: the largest), and the largest that the geometry allows. **See** that no cross is above the "
        f"line, as no margin can be: the most that is used of it is {percent(top['share'])}, in the tree {top['tree']} "
        f"at level {top['level']}. Leaves, the deepest, have a median margin of {leaves['q50']:.1f} logits; where a "
        "box reaches below 0, more than a quarter of the pictures are wrong without any attack."
    )


def audit(rows: Sequence[Record], labels: Labels) -> str:
    """Of `plots.audit.audit_figure`."""
    checks = [(labels[r.method], name, check) for r in rows for name, check in r.audit.checks.items()]
    failed = [f"{label}, {name}" for label, name, check in checks if not check.passed]
    left = [list(r.audit.budgets.values())[-1] for r in rows]
    return (
        f"Left: leaf accuracy of {rows[0].audit.images} pictures, with exact 95 % intervals. It has to fall to about "
        f"nothing as the budget grows (here to {percent(max(left))} or less) and should not move with more steps or "
        "starts. Right: for each check the share that it counts, the bar its limit, the line up to the exact upper end "
        f"of 95 %. **See** what is filled, which failed: {'; '.join(failed) or 'nothing'}. Lines that pass the bar say "
        "how little so few pictures prove."
    )
