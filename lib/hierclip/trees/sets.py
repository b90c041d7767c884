"""A tree for every known set of pictures: WordNet's where its classes have synsets, an outline elsewhere."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from hierclip.trees.forest import find_tree
from hierclip.trees.inputs import read_tree
from hierclip.trees.tree import Tree, TreeError
from hierclip.trees.wordnet import WordNet, open_wordnet, wordnet_tree

SETS = "data/source/sets"  # NAME.yaml, an outline, or NAME.csv: class, synset, under (where there is no synset)
WIDTHS = "widths.yaml"


def set_tree(
    root: Path,
    name: str,
    leaves: Mapping[str, str],
    widths: Sequence[int] | None = None,
    wordnet: WordNet | None = None,
) -> Tree:
    """The tree over a set's classes (identifier to name), in the order of the tree.

    root: the project, whose files are read. name: the set's, such as "cifar100". Its outline if there is one; else
    WordNet's tree, over the synsets of its table, or of the classes themselves where they go by synsets or WordNet ids.
    widths: most nodes at levels 1..L, by default those of `WIDTHS`; an outline has its own levels.
    Raises TreeError where the classes are not those of the outline or table, and where there are no widths.
    """
    folder = root / SETS
    if (outline := folder / f"{name}.yaml").exists() and outline.name != WIDTHS:
        return read_tree(outline, leaves)
    known = yaml.safe_load((folder / WIDTHS).read_text(encoding="utf8"))
    if (chosen := widths or known.get(name)) is None:
        raise TreeError(f"set {name}: no widths of levels; known are {', '.join(known)}")
    wordnet = wordnet or open_wordnet(root)
    if not (table := folder / f"{name}.csv").exists():
        return wordnet_tree("wordnet", leaves, chosen, wordnet)
    synsets, under = set_synsets(table)
    if odd := sorted(set(leaves) - set(synsets) - set(under)):
        raise TreeError(f"{table}: no line for class {', '.join(odd[:5])}")
    return wordnet_tree("wordnet", leaves, chosen, wordnet, synsets=synsets, under=under)


def set_forest(
    root: Path, name: str, leaves: Mapping[str, str], names: Sequence[str], widths: Sequence[int]
) -> list[Tree]:
    """The trees called `names` over a set's leaves (identifier to name), in the order of the set's own tree.

    Its own is `set_tree`'s, of these widths; others are files in the project's data/source/trees/NAME, name being
    the set's.
    Raises TreeError as `set_tree` and `find_tree` do.
    """
    own = set_tree(root, name, leaves, widths)
    in_order, source = {leaf.id: leaf.name for leaf in own.leaves}, root / "data/source/trees" / name
    return [own if tree == own.name else find_tree(source, tree, in_order) for tree in names]


def set_synsets(table: Path) -> tuple[dict[str, str], dict[str, str]]:
    """By class: its synset; and for a class that WordNet lacks, one to stand under."""
    with table.open(encoding="utf8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    own = {row["class"]: row["synset"] for row in rows if row["synset"]}
    return own, {row["class"]: row["under"] for row in rows if not row["synset"]}
