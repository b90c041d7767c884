"""Trees that users bring: an outline, a table of paths, a saved tree, or any directed graph."""

import csv
import json
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from textwrap import shorten

import networkx as nx
import yaml

from hierclip.trees.cut import assign_levels, end_at_leaves, keep_one_parent, remove_unary_chains
from hierclip.trees.files import load_tree
from hierclip.trees.tree import LEVEL, NAME, Tree, TreeError, tree_from_graph

SAVED = object()


def graph_tree(graph: nx.DiGraph, name: str, leaves: Mapping[str, str], *, widths: Sequence[int] | None = None) -> Tree:
    """The tree over `leaves` (identifier to name), in their order, of a graph with edges from parent to child.

    A node is identified by its text; it is called its attribute `name`, else the leaf's name, else its text.
    A leaf above another is put beside it (`end_at_leaves`), one parent of several stays (`keep_one_parent`),
    what leads to no leaf goes, several roots get one above them. Levels fall by one from parent to child, from
    L, the most inner nodes between the root and a leaf; with widths, `remove_unary_chains` and `assign_levels`
    cut them. Raises TreeError for missing leaves, a cycle, and a tree without superclasses.
    """
    drawn = _with_text(graph)
    if missing := [f"{leaf} ({leaves[leaf]})" for leaf in leaves if leaf not in drawn]:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise TreeError(f"leaf {', '.join(missing[:10])}{more} is missing; tree {name} needs all {len(leaves)}")
    if not nx.is_directed_acyclic_graph(drawn):
        raise TreeError(f"cycle {' > '.join(edge[0] for edge in nx.find_cycle(drawn))}; no node may stand above itself")
    tree = _join_roots(keep_one_parent(end_at_leaves(drawn, leaves), list(leaves)), name)
    if nx.dag_longest_path_length(tree) < 2:
        raise TreeError(f"tree {name} has no superclasses; group its leaves under two nodes or more")
    tree = _count_levels(tree, leaves) if widths is None else assign_levels(remove_unary_chains(tree), widths)
    called = {node: str(drawn.nodes[node].get(NAME, leaves.get(node, node))) for node in tree if node in drawn}
    nx.set_node_attributes(tree, dict.fromkeys(tree, name) | called, NAME)
    return tree_from_graph(tree, name, list(leaves))


def _with_text(graph: nx.DiGraph) -> nx.DiGraph:
    if not graph.is_directed():
        raise TreeError("a graph without directions; a tree needs a networkx.DiGraph, its edges from parent to child")
    if len({str(node) for node in graph}) < len(graph):
        raise TreeError("two nodes of the graph have one text; it identifies a node")
    return nx.relabel_nodes(nx.DiGraph(graph), {node: str(node) for node in graph})


def _join_roots(tree: nx.DiGraph, name: str) -> nx.DiGraph:
    roots = [node for node, parents in tree.in_degree() if parents == 0]
    if len(roots) > 1:
        top = _unused(name, tree)
        tree.add_edges_from((top, root) for root in roots)
    return tree


def _count_levels(tree: nx.DiGraph, leaves: Container[str]) -> nx.DiGraph:
    for height, layer in enumerate(reversed(list(nx.topological_generations(tree)))):
        nx.set_node_attributes(tree, {node: 0 if node in leaves else height for node in layer}, LEVEL)
    return tree


def _unused(text: str, *taken: Container[str]) -> str:
    while any(text in names for names in taken):
        text += "/"
    return text


def read_tree(path: Path, leaves: Mapping[str, str], *, widths: Sequence[int] | None = None) -> Tree:
    """The tree of a file over `leaves` (identifier to name), in their order, with the levels of `graph_tree`.

    .yaml, .yml, .json: an outline, nodes in nodes with leaves at the bottom (`fruit: [apple, banana]`), or what
    `save_tree` wrote, which without widths keeps its levels; .csv: rows of `leaf,parent,grandparent,...`, the
    first of them a header if it starts with `leaf`. A leaf is written by its identifier, or by its name where no
    other has it; an inner node's identifier is its path from the top ("thing to eat/fruit").
    Raises TreeError, naming file and node, for what is neither, and for leaves unknown, missing or there twice.
    """
    path = Path(path)
    with _naming(path):
        if (outline := _read_outline(path)) is not SAVED:
            return graph_tree(_outline_graph(outline, leaves), path.stem, leaves, widths=widths)
    saved = load_tree(path, list(leaves))
    if widths is None:
        return tree_from_graph(saved.graph(), saved.name, list(leaves), str(path))
    return graph_tree(saved.graph(), saved.name, leaves, widths=widths)


def leaves_of(path: Path) -> dict[str, str]:
    """The leaves of a tree's file, identifier to name. Raises TreeError as `read_tree` does."""
    with _naming(path):
        if (outline := _read_outline(path)) is not SAVED:
            return {written: written for *_, written in _paths(outline)}
    return {leaf.id: leaf.name for leaf in load_tree(path).leaves}


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise TreeError(f"{path}: no such file") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise TreeError(f"{path}: {line}{error.problem}, which is no YAML") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError, csv.Error) as error:
        raise TreeError(f"{path}: {' '.join(str(error).split())}") from error


def _read_outline(path: Path) -> object:
    """The outline of a file, or SAVED for what `save_tree` wrote."""
    if path.suffix.lower() not in READERS:
        raise TreeError(f"no reader for {path.suffix!r}; a tree's file ends in {', '.join(READERS)}")
    content = READERS[path.suffix.lower()](path.read_text(encoding="utf-8-sig"))
    return SAVED if path.suffix.lower() == ".json" and isinstance(content, dict) and "version" in content else content


def _outline_graph(outline: object, leaves: Mapping[str, str]) -> nx.DiGraph:
    graph, ids = nx.DiGraph(), {}
    by_name = defaultdict(list)
    for leaf, name in leaves.items():
        by_name[name].append(leaf)
    for *above, written in _paths(outline):
        where = f"{written!r} under {'/'.join(above) or 'no node'}"
        if not all(part.strip() for part in (*above, written)):
            raise TreeError(f"empty name: {where}; every node and leaf needs one")
        inner = [tuple(above[:end]) for end in range(1, len(above) + 1)]
        for path in inner:
            if path not in ids:
                ids[path] = _unused("/".join(path), graph, leaves)
                graph.add_node(ids[path], **{NAME: path[-1]})
        leaf = written if written in leaves else _only(by_name[written], where)
        if leaf in graph:
            others = " and ".join(graph.predecessors(leaf)) or "no node"
            raise TreeError(f"leaf {where} stands under {others} already; it has one place")
        nx.add_path(graph, [*(ids[path] for path in inner), leaf])
    return graph


def _only(same: Sequence[str], where: str) -> str:
    if len(same) > 1:
        raise TreeError(f"leaf {where} is the name of {', '.join(same)}; write the identifier")
    if not same:
        raise TreeError(f"unknown leaf {where}; a leaf is the identifier or the name of a class")
    return same[0]


def _paths(branch: object, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path from the top to each leaf of an outline, the leaf last."""
    if isinstance(branch, str):
        yield (*above, branch)
    elif isinstance(branch, dict) and branch:
        for node, below in branch.items():
            yield from _paths(below, (*above, node))
    elif isinstance(branch, list) and branch and not any(isinstance(part, list) for part in branch):
        for part in branch:
            yield from _paths(part, above)
    else:
        node = "/".join(above) or "at the top"
        raise TreeError(f"node {node} holds {shorten(repr(branch), 60)}; it needs leaves or a mapping of nodes")


class _Outline(yaml.BaseLoader):
    """YAML in which every scalar is text (`no`, `7`), and a node stands once in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        build = self.construct_object
        return _once((build(key, deep=True), build(value, deep=True)) for key, value in node.value)


def _once(pairs: Iterable[tuple[object, object]]) -> dict:
    mapping = {}
    for node, below in pairs:
        if not isinstance(node, str):
            raise TreeError(f"node {node!r} is no text; a node is called by its name")
        if node in mapping:
            raise TreeError(f"node {node} stands twice in one mapping; join the two")
        mapping[node] = below
    return mapping


def _read_yaml(text: str) -> object:
    return yaml.load(text, Loader=_Outline)


def _read_json(text: str) -> object:
    return json.loads(text, object_pairs_hook=_once, parse_int=str, parse_float=str)


def _read_csv(text: str) -> list[object]:
    """Rows of paths as a list of outlines of one leaf."""
    lines = (line.rstrip(", \t") for line in text.split("\n"))  # spreadsheets fill short rows up with commas
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, skipinitialspace=True, strict=True) if row]
    paths = rows[1:] if rows and rows[0][0].lower() == "leaf" else rows
    return [reduce(_put_under, parents, leaf) for leaf, *parents in paths]


def _put_under(branch: object, node: str) -> object:
    return {node: branch}


READERS = {".yaml": _read_yaml, ".yml": _read_yaml, ".json": _read_json, ".csv": _read_csv}
