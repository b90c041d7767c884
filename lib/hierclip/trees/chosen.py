"""The trees that somebody chose for their classes: files, WordNet's, or none."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import networkx as nx
import yaml

from hierclip.trees.forest import set_synsets
from hierclip.trees.graphs import graph_tree, read_tree, read_yaml
from hierclip.trees.shipped import class_synsets, is_set_name, shipped_tree
from hierclip.trees.tables import visible
from hierclip.trees.tree import Node, Tree, TreeError, tree_from_graph
from hierclip.trees.wordnet import WNID, open_wordnet, synsets_by_name, wordnet_tree

WORDNET = "wordnet"  # in place of the file of a tree
SYNSET = re.compile(r".+\.n\.\d\d")
Chosen = Sequence[str | Path | Tree]


def audit_trees(
    leaves: Mapping[str, str], chosen: Chosen, synsets: Path | None, widths: Sequence[int] | None
) -> tuple[list[Tree], str]:
    """Return the chosen trees as `class_trees` does, and a line that describes them.

    Where none is chosen: the tree of WordNet if every class is a synset, a WordNet id, or a word of
    one sense there or in `class_synsets`; else a tree without a level above the leaves.
    """
    try:
        trees = class_trees(leaves, chosen or [WORDNET], synsets, widths)
    except TreeError as error:
        if chosen or synsets is not None or widths is not None:
            raise
        why = str(error).splitlines()[0].partition(";")[0]
        nodes = tuple(Node(leaf, name) for leaf, name in leaves.items())
        return [Tree("leaves", Node("", "all"), (nodes,), ())], (
            f"no tree, so the {len(leaves)} leaves are all there is ({why}); "
            "give one with --tree FILE, or --tree wordnet and --synsets FILE"
        )
    asked = "" if chosen else " (none was asked for)"
    about = [
        f"tree {tree.name}{asked}, levels of {', '.join(map(str, tree.sizes))} nodes"
        for tree in trees
    ]
    listed = {} if synsets or WORDNET not in (chosen or [WORDNET]) else listed_synsets(leaves)
    meant = ", ".join(f"{leaves[leaf]} {synset}" for leaf, synset in listed.items())
    note = f"names mean what they do in ImageNet and the like: {meant}"
    return trees, "; ".join([*about, note] if listed else about)


def class_trees(
    leaves: Mapping[str, str],
    chosen: Chosen,
    synsets: Path | None = None,
    widths: Sequence[int] | None = None,
) -> list[Tree]:
    """Build trees over `leaves` (identifier to name), all with the order of leaves of the first.

    chosen: "wordnet", files that `read_tree` knows, names that `shipped_tree` knows, or trees.
    synsets: a file of `read_synsets`. widths: the most nodes at levels 1..L; None: a file's own
    levels, and about half of the level before for WordNet. Raises TreeError for a tree over other
    leaves, a class for which WordNet has no synset or several, widths that cannot be reached, and
    two trees of one name.
    """
    trees = [_class_tree(leaves, each, synsets, widths) for each in chosen]
    names = [tree.name for tree in trees]
    if len(set(names)) < len(names):
        raise TreeError(f"two trees of one name: {', '.join(names)}; call each by its own")
    in_order = nx.dfs_preorder_nodes(trees[0].graph(), trees[0].root.id)
    order = [node for node in in_order if node in leaves]
    return [tree_from_graph(tree.graph(), tree.name, order) for tree in trees]


def _class_tree(
    leaves: Mapping[str, str], chosen: str | Path | Tree, synsets: Path | None, widths
) -> Tree:
    if isinstance(chosen, Tree):
        return tree_from_graph(chosen.graph(), chosen.name, list(leaves))
    if str(chosen) != WORDNET:
        if not is_set_name(str(chosen)):
            return read_tree(Path(chosen), leaves, widths=widths)
        tree = shipped_tree(str(chosen), leaves)
        return graph_tree(tree.graph(), tree.name, leaves, widths=widths) if widths else tree
    if has_ids(leaves) and synsets is None:
        return wordnet_tree(WORDNET, leaves, widths)
    synset_of, under = read_synsets(synsets, leaves) if synsets else ({}, {})
    synset_of = listed_synsets(leaves) | synset_of
    looked_up = {leaf: name for leaf, name in leaves.items() if leaf not in under}
    try:
        synsets_of = synsets_by_name(
            looked_up.values(), {leaves[leaf]: synset for leaf, synset in synset_of.items()}
        )
    except TreeError as error:
        head, newline, senses = str(error).partition("\n")
        right = "say which by --synsets FILE, of lines `dog: dog.n.01`"
        raise TreeError(f"{head}; {right}{newline}{senses}") from None
    by_leaf = {leaf: synsets_of[name] for leaf, name in looked_up.items()}
    return wordnet_tree(WORDNET, leaves, widths, synsets=by_leaf, under=under)


def has_ids(leaves: Mapping[str, str]) -> bool:
    """Tell whether the identifiers of all classes are WordNet's."""
    return all(map(WNID.fullmatch, leaves)) or all(map(SYNSET.fullmatch, leaves))


def listed_synsets(leaves: Mapping[str, str]) -> dict[str, str]:
    """Map classes, where WordNet is an excerpt that lacks senses, to what `class_synsets` has."""
    known = class_synsets() if open_wordnet().is_excerpt and not has_ids(leaves) else {}
    return {leaf: known[name.lower()] for leaf, name in leaves.items() if name.lower() in known}


def read_synsets(path: Path, leaves: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Read, by class of `leaves` (identifier to name), its synset or the synset of its parent.

    path: YAML, `class: synset`; or CSV, columns class, synset, and under: the parent of a class
    that has no synset. A class is written by its identifier or its name; other classes in the file
    are ignored. Raises TreeError for other content.
    """
    under = {}
    try:
        if path.suffix.lower() == ".csv":
            synset_of, under = set_synsets(path)
        else:
            synset_of = dict(read_yaml(path))
        odd = [visible(each) for each, synset in synset_of.items() if not isinstance(synset, str)]
        if odd:
            raise ValueError(f"the synset of {', '.join(odd[:5])} is no text")
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        problem = " ".join(str(error).removeprefix(f"{path}: ").split())
        raise TreeError(
            f"{path}: no lines `class: synset`, nor a CSV of class, synset, under ({problem})"
        ) from None
    return _by_leaf(synset_of, leaves), _by_leaf(under, leaves)


def _by_leaf(written: Mapping[str, str], leaves: Mapping[str, str]) -> dict[str, str]:
    chosen = {leaf: written.get(leaf) or written.get(name) for leaf, name in leaves.items()}
    return {leaf: synset for leaf, synset in chosen.items() if synset}


def same_words(tree: Tree) -> list[str]:
    """List nodes of a level that have one name: no prompt tells them apart."""
    counts = Counter(
        (node.name, level) for level, nodes in enumerate(tree.levels) for node in nodes
    )
    return [f"{name} (level {level})" for (name, level), count in counts.items() if count > 1]
