"""The trees of a set of images: its own and others over the same leaves, as one list of levels.

The list holds the leaves, then each tree's levels above them.
"""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from hierclip.trees.tables import read_columns
from hierclip.trees.tree import Tree, TreeError, load_tree


def load_forest(folder: Path, names: Sequence[str]) -> list[Tree]:
    """Read NAME.json in `folder` for every name. Raises TreeError if they are no forest."""
    trees = [load_tree(folder / f"{name}.json") for name in names]
    check_forest(trees)
    return trees


def check_forest(trees: Sequence[Tree]) -> None:
    """Raise TreeError unless the trees have the same leaves in the same order."""
    if not trees or any(tree.ids != trees[0].ids for tree in trees):
        names = ", ".join(tree.name for tree in trees) or "none"
        raise TreeError(
            f"a forest needs trees over the same leaves in the same order; given {names}"
        )


def forest_levels(trees: Sequence[Tree]) -> list[tuple[int, int]]:
    """Return for every level of the list its tree and its level there."""
    check_forest(trees)
    above = [(k, l) for k, tree in enumerate(trees) for l in range(1, tree.max_level + 1)]
    return [(0, 0), *above]


def forest_paths(trees: Sequence[Tree]) -> np.ndarray:
    """Return (leaves, levels of the list) int64: each leaf's node at every level."""
    return np.stack([trees[k].paths[:, level] for k, level in forest_levels(trees)], axis=1)


def forest_columns(trees: Sequence[Tree]) -> dict[str, list[int]]:
    """Return by tree name the places of its levels 0..L in the list."""
    check_forest(trees)
    starts = accumulate((tree.max_level for tree in trees), initial=1)
    return {
        tree.name: [0, *range(start, start + tree.max_level)]
        for tree, start in zip(trees, starts, strict=False)
    }


def set_synsets(table: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return by class its synset; and, for a class that WordNet lacks, one to be placed under.

    table: columns class, synset, under (if no synset). Raises HierclipError for what `read_columns`
    refuses.
    """
    rows = read_columns(table, "class", "synset")
    synsets = {row["class"]: row["synset"] for row in rows if row["synset"]}
    return synsets, {row["class"]: row.get("under", "") for row in rows if not row["synset"]}
