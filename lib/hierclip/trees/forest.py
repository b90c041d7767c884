"""Several trees over the same leaves, seen as one list of levels: the leaves, then each tree's levels above them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hierclip.trees.files import load_tree
from hierclip.trees.inputs import READERS, read_tree
from hierclip.trees.tree import Tree, TreeError


def load_forest(folder: Path, names: Sequence[str]) -> list[Tree]:
    """The trees of the files NAME.json in `folder`. Raises TreeError as `load_tree` and `check_forest` do."""
    trees = [load_tree(folder / f"{name}.json") for name in names]
    check_forest(trees)
    return trees


def find_tree(folder: Path, name: str, leaves: Mapping[str, str]) -> Tree:
    """The tree of the file NAME.yaml (or another ending that `read_tree` knows) in `folder`.

    Raises TreeError where there is none, and as `read_tree` does.
    """
    paths = [path for ending in READERS if (path := folder / f"{name}{ending}").exists()]
    if len(paths) != 1:
        raise TreeError(f"{folder}: {len(paths)} files for tree {name}; one is needed, ending in {', '.join(READERS)}")
    return read_tree(paths[0], leaves)


def check_forest(trees: Sequence[Tree]) -> None:
    """Raises TreeError where the trees have not the same leaves in the same order."""
    if not trees or any(tree.ids != trees[0].ids for tree in trees):
        names = ", ".join(tree.name for tree in trees) or "none"
        raise TreeError(f"a forest needs trees over the same leaves in the same order; given {names}")


def forest_levels(trees: Sequence[Tree]) -> list[tuple[int, int]]:
    """For every level of the list its tree and its level there. Raises TreeError as `check_forest` does."""
    check_forest(trees)
    return [(0, 0)] + [(k, level) for k, tree in enumerate(trees) for level in range(1, tree.top + 1)]


def forest_paths(trees: Sequence[Tree]) -> np.ndarray:
    """(leaves, levels of the list) int64: each leaf's node at every one of them."""
    return np.stack([trees[k].paths[:, level] for k, level in forest_levels(trees)], axis=1)


def forest_columns(trees: Sequence[Tree]) -> dict[str, list[int]]:
    """By tree name, where its levels 0..L stand in the list."""
    levels = forest_levels(trees)
    return {tree.name: [0] + [i for i, (j, l) in enumerate(levels) if j == k and l] for k, tree in enumerate(trees)}
