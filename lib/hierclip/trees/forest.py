"""The trees of a set of images: its own and others over the same leaves, as one list of levels.

The list holds the leaves, then each tree's levels above them.
"""

import csv
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import yaml

from hierclip.trees.graphs import read_tree
from hierclip.trees.tree import Tree, TreeError, load_tree
from hierclip.trees.wordnet import WordNet, open_wordnet, wordnet_tree

SETS = "data/source/sets"  # NAME.yaml: an outline; or NAME.csv: class, synset, under (if no synset)
WIDTHS = "widths.yaml"  # in SETS: the widths of WordNet's trees


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
    levels = [(0, 0)]
    for k, tree in enumerate(trees):
        levels += [(k, level) for level in range(1, tree.max_level + 1)]
    return levels


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


def set_tree(
    root: Path,
    name: str,
    leaves: Mapping[str, str],
    widths: Sequence[int] | None = None,
    wordnet: WordNet | None = None,
) -> Tree:
    """Return the tree over a set's classes (identifier to name), in the order of the tree.

    root: the project, whose files are read. name: the set's, such as "cifar100". The tree is its
    outline if there is one; else WordNet's, over the synsets of its table, or over the classes
    themselves where they are synsets or WordNet ids. widths: most nodes at levels 1..L of
    WordNet's, by default those of WIDTHS.
    Raises TreeError for classes that are not in the outline or table, and without widths.
    """
    outline = root / SETS / f"{name}.yaml"
    if outline.exists():
        return read_tree(outline, leaves)
    known = yaml.safe_load((root / SETS / WIDTHS).read_text(encoding="utf8"))
    widths = widths or known.get(name)
    if widths is None:
        raise TreeError(f"set {name}: no widths of levels; known are {', '.join(known)}")
    wordnet = wordnet or open_wordnet(root)
    table = root / SETS / f"{name}.csv"
    if not table.exists():
        return wordnet_tree("wordnet", leaves, widths, wordnet)
    synsets, under = set_synsets(table)
    odd = sorted(set(leaves) - set(synsets) - set(under))
    if odd:
        raise TreeError(f"{table}: no line for class {', '.join(odd[:5])}")
    return wordnet_tree("wordnet", leaves, widths, wordnet, synsets=synsets, under=under)


def set_forest(
    root: Path, name: str, leaves: Mapping[str, str], names: Sequence[str], widths: Sequence[int]
) -> list[Tree]:
    """Return the trees called `names` over a set's leaves, in the order of the set's own tree.

    Its own is `set_tree`'s, of these widths; the others are outlines of the project `root`,
    data/source/trees/SET/NAME.yaml. leaves: identifier to name.
    Raises TreeError as `set_tree` and `read_tree` do.
    """
    shipped = set_tree(root, name, leaves, widths)
    in_order = {leaf.id: leaf.name for leaf in shipped.leaves}
    folder = root / "data/source/trees" / name
    return [
        shipped if tree == shipped.name else read_tree(folder / f"{tree}.yaml", in_order)
        for tree in names
    ]


def set_synsets(table: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return by class its synset; and, for a class that WordNet lacks, one to be placed under."""
    with table.open(encoding="utf8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    synsets = {row["class"]: row["synset"] for row in rows if row["synset"]}
    return synsets, {row["class"]: row["under"] for row in rows if not row["synset"]}
