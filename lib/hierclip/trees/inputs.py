"""Trees from files that users write: an outline, a table of paths, or a saved tree."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from textwrap import shorten

import networkx as nx
import yaml

from hierclip.trees.cut import graph_tree, unused
from hierclip.trees.tree import NAME, Tree, TreeError, load_tree, tree_from_graph


def read_tree(
    path: Path, leaves: Mapping[str, str] | None = None, *, widths: Sequence[int] | None = None
) -> Tree:
    """Return the tree of a file over `leaves` (identifier to name), in their order.

    leaves: by default those of the file. .yaml, .yml, .json: an outline, nodes in nodes with leaves
    at the bottom (`fruit: [apple, banana]`), or what `save_tree` wrote, which without widths keeps
    its levels; .csv: rows of `leaf,parent,grandparent,...`, the first of them a header if it starts
    with `leaf`. Levels are those of `graph_tree`. A leaf is written by its identifier, or by its
    name where no other has it; an inner node's identifier is its path from the top ("food/fruit").
    Raises TreeError, naming file and node, for anything else, and for leaves that are unknown,
    missing or there twice.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    try:
        if suffix not in READERS:
            raise TreeError(
                f"no reader for {path.suffix!r}; a tree's file ends in {', '.join(READERS)}"
            )
        outline = READERS[suffix](path.read_text(encoding="utf-8-sig"))
        if not (suffix == ".json" and isinstance(outline, dict) and "version" in outline):
            paths = list(_paths(outline))
            leaves = leaves or {leaf: leaf for *_, leaf in paths}
            return graph_tree(_outline_graph(paths, leaves), path.stem, leaves, widths=widths)
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError, csv.Error) as error:
        raise TreeError(f"{path}: {' '.join(str(error).split())}") from error
    saved = load_tree(path)
    leaves = leaves or {leaf.id: leaf.name for leaf in saved.leaves}
    tree = tree_from_graph(saved.graph(), saved.name, list(leaves), str(path))
    return tree if widths is None else graph_tree(tree.graph(), tree.name, leaves, widths=widths)


def _outline_graph(paths: Sequence[Sequence[str]], leaves: Mapping[str, str]) -> nx.DiGraph:
    """Draw the paths from the top to each leaf, and find each leaf among `leaves`."""
    graph = nx.DiGraph()
    ids = {}  # of inner nodes, by their path from the top
    for *above, written in paths:
        where = f"{written!r} under {'/'.join(above) or 'no node'}"
        if not all(part.strip() for part in (*above, written)):
            raise TreeError(f"empty name: {where}; every node and leaf needs one")
        inner = [tuple(above[: depth + 1]) for depth in range(len(above))]
        for path in inner:
            if path not in ids:
                ids[path] = unused("/".join(path), {*graph, *leaves})
                graph.add_node(ids[path], **{NAME: path[-1]})
        same = [leaf for leaf, name in leaves.items() if name == written]
        same = [written] if written in leaves else same
        if len(same) > 1:
            raise TreeError(f"leaf {where} is the name of {', '.join(same)}; write the identifier")
        if not same:
            raise TreeError(
                f"unknown leaf {where}; a leaf is the identifier or the name of a class"
            )
        if same[0] in graph:
            others = " and ".join(graph.predecessors(same[0])) or "no node"
            raise TreeError(f"leaf {where} stands under {others} already; it has one place")
        nx.add_path(graph, [*(ids[path] for path in inner), same[0]])
    return graph


def _paths(branch: object, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path from the top to each leaf of an outline, the leaf last."""
    if isinstance(branch, str):
        yield (*above, branch)
    elif isinstance(branch, dict) and branch:
        for node, below in branch.items():
            yield from _paths(below, (*above, node))
    elif isinstance(branch, list) and branch and not any(isinstance(part, list) for part in branch):
        for part in branch:
            yield from _paths(part, above)
    else:
        raise TreeError(
            f"node {'/'.join(above) or 'at the top'} holds {shorten(repr(branch), 60)}; "
            "it needs leaves or a mapping of nodes"
        )


class _Outline(yaml.BaseLoader):
    """Read YAML in which every scalar is text (`no`, `7`), and a node is in a mapping once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        build = self.construct_object
        return _once([(build(key), build(below, deep=True)) for key, below in node.value])


def _once(pairs: Sequence[tuple[str, object]]) -> dict:
    # JSON and YAML keep the last of several entries of one name; here it would lose leaves.
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [node for node, _ in pairs]
        twice = max(names, key=names.count)
        raise TreeError(f"node {twice} stands twice in one mapping; join the two")
    return mapping


def _read_yaml(text: str) -> object:
    return yaml.load(text, Loader=_Outline)


def _read_json(text: str) -> object:
    return json.loads(text, object_pairs_hook=_once, parse_int=str, parse_float=str)


def _read_csv(text: str) -> object:
    """Read rows of `leaf,parent,...` as a list of outlines of one leaf."""
    lines = (line.rstrip(", \t") for line in text.split("\n"))  # spreadsheets pad short rows
    rows = [
        [cell.strip() for cell in row]
        for row in csv.reader(lines, skipinitialspace=True, strict=True)
        if row
    ]
    paths = rows[1:] if rows and rows[0][0].lower() == "leaf" else rows
    return [reduce(lambda below, node: {node: below}, path) for path in paths]


READERS = {".yaml": _read_yaml, ".yml": _read_yaml, ".json": _read_json, ".csv": _read_csv}
