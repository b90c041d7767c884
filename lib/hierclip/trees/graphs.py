"""Trees from graphs, and from files that users write: outlines, tables of paths, saved trees."""

import json
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from textwrap import shorten
from typing import Any

import networkx as nx
import yaml

from hierclip.errors import refuse
from hierclip.trees.tables import read_rows, read_text
from hierclip.trees.tree import LEVEL, NAME, Tree, TreeError, load_tree, tree_from_graph

MAP = ["class", "name"]  # the first columns of a map; its others are levels


def keep_one_parent(graph: nx.DiGraph, leaves: Collection[str]) -> nx.DiGraph:
    """Reduce an acyclic graph to a tree that ends at `leaves`.

    A leaf above others (dog, above poodle) gives its children to its parents: it stays a leaf
    beside them. Then each node keeps one parent. A parent above another parent of the node goes
    first, as that edge says nothing new; of the others the one above the most leaves is kept, the
    first by name where they tie. Nodes above no leaf are removed.
    Raises TreeError for a leaf that is above others and has no parent.
    """
    graph = graph.copy()
    for leaf in leaves:
        parents = list(graph.predecessors(leaf))
        children = list(graph.successors(leaf))
        if children and not parents:
            raise TreeError(
                f"leaf {leaf} stands above {', '.join(children)} and below nothing; "
                "it needs a parent"
            )
        graph.add_edges_from(product(parents, children))
        graph.remove_edges_from(product([leaf], children))
    graph = nx.transitive_reduction(graph)
    size = _leaves_below(graph, leaves)
    for node in graph:
        parents = sorted(graph.predecessors(node), key=lambda parent: (-size[parent], parent))
        graph.remove_edges_from(product(parents[1:], [node]))
    useful = set(leaves).union(*(nx.ancestors(graph, leaf) for leaf in leaves))
    return graph.subgraph(useful).copy()


def assign_levels(tree: nx.DiGraph, widths: Sequence[int] | None = None) -> nx.DiGraph:
    """Keep the root and the nodes of levels 0..L, with that `level` as attribute.

    widths: the most nodes that levels 1..L may have, falling. By default half of the nodes of the
    level before, but no fewer than are under the root, as long as a quarter of the nodes goes.
    A node of one child is replaced by that child. Then, from the leaves up, families whose members
    are all on the level are joined under their parent until it is narrow enough: first the family
    with the fewest leaves for each node saved, by name where they tie. So each level is a partition
    that the next one coarsens, and a flat family (fruit) joins as early as a deep one (big cats).
    Raises TreeError where a width cannot be reached.
    """
    tree = _without(tree, [node for node, children in tree.out_degree() if children == 1])
    root = next(nx.topological_sort(tree))
    front = {node for node, children in tree.out_degree() if children == 0}
    size = _leaves_below(tree, front)
    families = {node: set(tree.successors(node)) for node in set(tree) - front - {root}}
    level = dict.fromkeys(front, 0)
    l = 0
    while widths is None or l < len(widths):
        before = len(front)
        width = max(before // 2, tree.out_degree(root)) if widths is None else widths[l]
        if widths is None and width > 0.75 * before:
            break
        l += 1
        while len(front) > width and any(family <= front for family in families.values()):
            ready = [node for node, family in families.items() if family <= front]
            node = min(ready, key=lambda n: (size[n] / (len(families[n]) - 1), n))
            front = (front - families.pop(node)) | {node}
        if len(front) > width or len(front) == before:
            raise TreeError(
                f"level {l} keeps {len(front)} nodes; "
                f"its width {width} must be reachable and falling"
            )
        level = dict.fromkeys(front, l) | level
    level[root] = l + 1
    tree = _without(tree, [node for node in tree if node not in level])
    nx.set_node_attributes(tree, level, LEVEL)
    return tree


def graph_tree(
    graph: nx.DiGraph,
    name: str,
    leaves: Mapping[str, str],
    *,
    widths: Sequence[int] | None = None,
) -> Tree:
    """Return the tree over `leaves` (identifier to name), in their order, of a graph.

    graph: edges from parent to child. A node is identified by its text; its name is its attribute
    `name`, else the leaf's name, else its text. `keep_one_parent` makes a tree of it; several roots
    get one above them. Levels fall by one from parent to child, from L, the most inner nodes
    between the root and a leaf; with widths, `assign_levels` cuts them.
    Raises TreeError for an undirected graph, two nodes of one text, missing leaves, a cycle, and a
    tree without superclasses.
    """
    if not graph.is_directed():
        raise TreeError(f"tree {name}: an undirected graph; edges must go from parent to child")
    texts = Counter(str(node) for node in graph)
    doubled = [text for text, count in texts.items() if count > 1]
    if doubled:
        raise TreeError(f"tree {name}: several nodes have the text {', '.join(doubled)}")
    graph = nx.relabel_nodes(nx.DiGraph(graph), {node: str(node) for node in graph})
    missing = [f"{leaf} ({words})" for leaf, words in leaves.items() if leaf not in graph]
    if missing:
        raise TreeError(
            f"leaf {shorten(', '.join(missing), 300, placeholder=' ...')} is missing; "
            f"tree {name} needs all {len(leaves)}"
        )
    if not nx.is_directed_acyclic_graph(graph):
        cycle = " > ".join(parent for parent, _ in nx.find_cycle(graph))
        raise TreeError(f"cycle {cycle}; no node may stand above itself")
    tree = keep_one_parent(graph, leaves)
    roots = [node for node, parents in tree.in_degree() if parents == 0]
    if len(roots) > 1:
        tree.add_edges_from(product([unused(name, tree)], roots))
    if nx.dag_longest_path_length(tree) < 2:
        raise TreeError(
            f"tree {name} has no superclasses; group its leaves under two nodes or more"
        )
    if widths is None:
        for height, nodes in enumerate(reversed(list(nx.topological_generations(tree)))):
            nx.set_node_attributes(tree, dict.fromkeys(nodes, height), LEVEL)
        nx.set_node_attributes(tree, dict.fromkeys(leaves, 0), LEVEL)
    else:
        tree = assign_levels(tree, widths)
    for node in tree:
        known = graph.nodes[node] if node in graph else {NAME: name}
        tree.nodes[node][NAME] = str(known.get(NAME, leaves.get(node, node)))
    return tree_from_graph(tree, name, list(leaves))


def unused(text: str, taken: Container[str]) -> str:
    """Return `text`, with slashes added until it is not among those taken."""
    while text in taken:
        text += "/"
    return text


def _leaves_below(graph: nx.DiGraph, leaves: Collection[str]) -> dict[str, int]:
    """Count the leaves below each node, itself included."""
    return {node: len({node, *nx.descendants(graph, node)}.intersection(leaves)) for node in graph}


def _without(tree: nx.DiGraph, nodes: Collection[str]) -> nx.DiGraph:
    """Remove nodes of a tree; the children of each go to its parent."""
    tree = tree.copy()
    for node in nodes:
        tree.add_edges_from(product(tree.predecessors(node), tree.successors(node)))
        tree.remove_node(node)
    return tree


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
        outline = READERS[suffix](path)
        if not (suffix == ".json" and isinstance(outline, dict) and "version" in outline):
            paths = list(_paths(outline))
            leaves = leaves or {leaf: leaf for *_, leaf in paths}
            return graph_tree(_outline_graph(paths, leaves), path.stem, leaves, widths=widths)
    except FileNotFoundError as error:
        raise TreeError(f"{path}: no such file") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise TreeError(f"{path}: {line}{error.problem}, which is no YAML") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        problem = " ".join(str(error).removeprefix(f"{path}: ").split())
        raise TreeError(f"{path}: {problem}") from error
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
        named = [leaf for leaf, name in leaves.items() if name == written]
        same = [written] if written in leaves else named
        refuse(
            {
                f"leaf {where} is the name of {', '.join(same)}; write the identifier": same[1:],
                f"unknown leaf {where}; a leaf is the identifier or the name of a class": not same,
            },
            TreeError,
        )
        if same[0] in graph:
            others = " and ".join(graph.predecessors(same[0])) or "no node"
            raise TreeError(f"leaf {where} stands under {others} already; it has one place")
        nx.add_path(graph, [*(ids[path] for path in inner), same[0]])
    return graph


def _paths(branch: object, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path from the top to each leaf of an outline, the leaf last."""
    if isinstance(branch, str | tuple):  # a leaf, or the path of a table's row
        yield branch if isinstance(branch, tuple) else (*above, branch)
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
    for node, _ in pairs:
        if not isinstance(node, str):
            raise TreeError(f"node {node!r} is no text; a node is called by its name")
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        twice = Counter(node for node, _ in pairs).most_common(1)[0][0]
        raise TreeError(f"node {twice} stands twice in one mapping; join the two")
    return mapping


def read_yaml(path: Path) -> Any:
    """Read YAML in which every scalar is text. Raises TreeError for a node twice in a mapping."""
    return yaml.load(read_text(path), _Outline)


def _read_json(path: Path) -> Any:
    return json.loads(read_text(path), object_pairs_hook=_once, parse_int=str, parse_float=str)


def _read_csv(path: Path) -> list[tuple[str, ...]]:
    """Read rows of `leaf,parent,...` as paths from the top to a leaf; or what `save_csv` wrote."""
    rows = read_rows(path)
    if rows and rows[0][:2] == MAP:
        rows = [[leaf, *above] for leaf, _, *above in rows[1:]]
    paths = [tuple(reversed(row)) for row in rows]
    return paths[1:] if paths and paths[0][-1].lower() == "leaf" else paths


READERS: dict[str, Callable[[Path], object]] = {
    ".yaml": read_yaml,
    ".yml": read_yaml,
    ".json": _read_json,
    ".csv": _read_csv,
}
