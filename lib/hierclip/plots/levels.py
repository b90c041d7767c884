"""One record, level by level."""

from collections.abc import Sequence

import pandas as pd

from hierclip.evaluate import Record
from hierclip.model import READINGS
from hierclip.plots.words import READING, attack_words, audit_words, pipes, share
from hierclip.trees import Tree


def level_frame(record: Record, tree: Tree) -> pd.DataFrame:
    """A row for each level: its nodes, the largest of them, and by reading the accuracy, clean and under the level's
    own attack, in percent with 95 % intervals. tree: the record's first.
    """
    rows = []
    for level, nodes in enumerate(record.levels):
        row: dict[str, object] = {"level": level, "nodes": nodes, "such as": _such_as(tree, level)}
        for reading in READINGS if level else READINGS[:1]:
            b, words = record.intervals[reading], f", {READING[reading]}"
            row[f"clean{words}"] = share(record.clean[reading][level], b.clean[level])
            row[f"robust{words}"] = share(record.robust[reading][level][level], b.robust[level][level])
        rows.append(row)
    return pd.DataFrame(rows).astype(object).fillna("as direct")


def tree_frame(record: Record) -> pd.DataFrame:
    """A row for each tree: path-robust accuracy by reading, on some of the pictures."""
    return pd.DataFrame(
        {
            "tree": name,
            "levels": ", ".join(map(str, tree.levels)),
            **{f"path-robust, {READING[r]}": share(tree.path_robust[r], tree.intervals[r]) for r in READINGS},
        }
        for name, tree in record.forest.items()
    )


def headline(record: Record) -> str:
    """The worst level and the path-robust accuracy, in both readings, in Markdown."""
    worst, paths = (
        ", ".join(f"{share(values[r], getattr(record.intervals[r], name))} ({READING[r]})" for r in READINGS)
        for name, values in (("worst_level", record.worst_level), ("path_robust", record.path_robust))
    )
    return f"**Path-robust accuracy** {paths}; **worst level** {worst}."


def level_table(record: Record, tree: Tree) -> str:
    """What an audit found, in Markdown: every level, the headline, other trees, the attack, and what its checks say."""
    parts = [pipes(level_frame(record, tree), even=True), headline(record)]
    few = next(iter(record.forest.values())).images
    others = [f"Every tree, on {few} of the pictures:", pipes(tree_frame(record), even=True)]
    parts += others if len(record.forest) > 1 else []
    return "\n\n".join([*parts, measured(record), checked(record)]) + "\n"


def measured(record: Record) -> str:
    """What the figures are, and the attack."""
    threat = record.threat_model
    return (
        f"Percent of {record.images} pictures, with 95 % bootstrap intervals. Robust: under the attack at that level. "
        "Path-robust: the whole path stays right, clean and under every attack. Direct: the nearest text of the level; "
        "roll-up: the superclass of the predicted leaf. "
        f'{attack_words(threat)}; {threat.resolution} px, {threat.precision}, prompt "{threat.prompt}".'
    )


def checked(record: Record) -> str:
    """What the checks of the attack say."""
    weak = " The model is weaker than the table says, or the attack is blind." if record.audit.failed else ""
    weak += (
        "" if record.robust["direct"][0][0] else " No leaf stood under the attack: a stronger one had none to break."
    )
    return audit_words([record], {record.method: record.method}) + weak


def _such_as(tree: Tree, level: int, count: int = 3) -> str:
    paths = tree.paths[:, level].tolist()
    largest: Sequence[int] = sorted(range(tree.sizes[level]), key=lambda k: -paths.count(k))[:count]
    return ", ".join(tree.levels[level][k].name for k in largest)
