"""The trees that an audit is about: of a file, of WordNet, or of nothing but the classes."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import networkx as nx
import yaml

from hierclip.params import ParamsError, find_root
from hierclip.trees import (
    WNID,
    Tree,
    TreeError,
    open_wordnet,
    read_tree,
    set_synsets,
    synsets_by_name,
    tree_from_graph,
    wordnet_tree,
)
from hierclip.trees.tree import LEVEL, NAME
from hierclip.trees.wordnet import WordNet

Wanted = Sequence[str | Path | Tree]
WORDNET = "wordnet"  # in place of a tree's file
SYNSET = re.compile(r".+\.n\.\d\d")
HOW = "give one with --tree FILE, or --tree wordnet and --synsets FILE"


def audit_trees(
    leaves: Mapping[str, str], wanted: Wanted, synsets: Path | None = None, widths: Sequence[int] | None = None
) -> tuple[list[Tree], str]:
    """The trees wanted over `leaves` (identifier to name), all in the order of the first, and a line that says what is
    there.

    Where none is wanted, WordNet's if every class is a synset, a WordNet id, or of one sense there; else no levels but
    the leaves. Raises TreeError as `class_trees` does.
    """
    if wanted:
        trees = class_trees(leaves, wanted, synsets, widths)
        return trees, "; ".join(
            f"tree {tree.name}, levels of {', '.join(map(str, tree.sizes))} nodes" for tree in trees
        )
    try:
        trees = class_trees(leaves, [WORDNET], synsets, widths)
        return trees, f"tree wordnet (none was asked for), levels of {', '.join(map(str, trees[0].sizes))} nodes"
    except TreeError as error:
        if synsets is not None or widths is not None:
            raise
        why = str(error).splitlines()[0].partition(";")[0]
        return [flat_tree(leaves)], f"no tree, so the {len(leaves)} leaves are all there is ({why}); {HOW}"


def class_trees(
    leaves: Mapping[str, str], wanted: Wanted, synsets: Path | None = None, widths: Sequence[int] | None = None
) -> list[Tree]:
    """wanted: "wordnet", files that `read_tree` knows, or trees. synsets: a file of `read_synsets`. widths: the most
    nodes at levels 1..L; by default a file's own levels, and WordNet's by `assign_levels`.

    Leaves stand in the order of the first tree. Raises TreeError for a tree over other leaves, a class for which
    WordNet has no synset or several, widths that cannot be reached, and two trees of one name.
    """
    trees = [_tree(leaves, entry, synsets, widths) for entry in wanted]
    if len({tree.name for tree in trees}) < len(trees):
        raise TreeError(f"two trees of one name: {', '.join(tree.name for tree in trees)}; call each by its own")
    first = trees[0].graph()
    order = [node for node in nx.dfs_preorder_nodes(first, trees[0].root.id) if node in leaves]
    return [tree_from_graph(tree.graph(), tree.name, order) for tree in trees]


def _tree(leaves: Mapping[str, str], wanted, synsets: Path | None, widths: Sequence[int] | None) -> Tree:
    if isinstance(wanted, Tree):
        missing, unknown = sorted(set(leaves) - set(wanted.ids)), sorted(set(wanted.ids) - set(leaves))
        odd = {"is over no class": missing, "has leaves that are no class here:": unknown}
        if said := "; ".join(f"{what} {', '.join(some)}" for what, some in odd.items() if some):
            raise TreeError(f"tree {wanted.name} {said}")
        return wanted
    if str(wanted) != WORDNET:
        return read_tree(Path(wanted), leaves, widths=widths)
    if synsets is None and (all(map(WNID.fullmatch, leaves)) or all(map(SYNSET.fullmatch, leaves))):
        return wordnet_tree(WORDNET, leaves, widths, _wordnet())
    own, under = read_synsets(synsets, leaves) if synsets else ({}, {})
    names = [name for leaf, name in leaves.items() if leaf not in under]
    try:
        found = synsets_by_name(names, {leaves[leaf]: synset for leaf, synset in own.items()}, _wordnet())
    except TreeError as error:
        head, *senses = str(error).splitlines()
        raise TreeError(
            "\n".join([f"{head}; say which by --synsets FILE, of lines `dog: dog.n.01`", *senses])
        ) from None
    known = {leaf: found[name] for leaf, name in leaves.items() if leaf not in under}
    return wordnet_tree(WORDNET, leaves, widths, _wordnet(), synsets=known, under=under)


def _wordnet() -> WordNet:
    """WordNet, its excerpt of the project that we are in, if any: classes are given without one."""
    root = None
    with suppress(ParamsError):
        root = find_root()
    return open_wordnet(root)


def read_synsets(path: Path, leaves: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """By class of `leaves` (identifier to name): its synset; and for one that WordNet lacks, a synset to stand under.

    path: YAML, `class: synset`; or CSV, columns class, synset, and under for classes that have no synset. A class is
    written by its identifier or its name; others in the file are passed over. Raises TreeError for what is neither.
    """
    try:
        if path.suffix.lower() == ".csv":
            own, under = set_synsets(path)
        else:
            own, under = dict(yaml.safe_load(path.read_text(encoding="utf8"))), {}
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise TreeError(f"{path}: no lines `class: synset`, nor a CSV of class, synset, under ({said})") from None
    both = [{leaf: str(s) for leaf, name in leaves.items() if (s := d.get(leaf) or d.get(name))} for d in (own, under)]
    return both[0], both[1]


def flat_tree(leaves: Mapping[str, str]) -> Tree:
    """No level but the leaves."""
    graph = nx.DiGraph()
    graph.add_node("", **{NAME: "all", LEVEL: 1})
    graph.add_nodes_from((leaf, {NAME: name, LEVEL: 0}) for leaf, name in leaves.items())
    graph.add_edges_from(("", leaf) for leaf in leaves)
    return tree_from_graph(graph, "leaves", list(leaves))


def same_words(tree: Tree) -> list[str]:
    """Nodes of a level that are called alike: no prompt tells them apart."""
    names = [(l, [node.name for node in level]) for l, level in enumerate(tree.levels)]
    return [f"{name} (level {l})" for l, level in names for name in dict.fromkeys(level) if level.count(name) > 1]
