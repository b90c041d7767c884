"""A class tree and its JSON file.

Level 0 holds the leaves, level L the coarsest superclasses. The root above them is no level.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path

import networkx as nx
import numpy as np

from hierclip.errors import HierclipError

LEVEL = "level"  # node attribute: the finest level that the node is on
NAME = "name"  # node attribute: the words that a prompt uses for the node
VERSION = 1  # of the file format


class TreeError(HierclipError):
    """Say what is wrong with a tree, naming the node and, where there is one, the file."""


@dataclass(frozen=True)
class Node:
    id: str
    name: str


@dataclass(frozen=True)
class Tree:
    """Hold levels of nodes, each a partition of the leaves that the next one coarsens.

    levels[l] holds the nodes of level l; parents[l][k] is the index, in level l + 1, of the node
    above node k of level l. A node that the next level does not
    merge with others is on several consecutive levels.
    """

    name: str
    root: Node
    levels: tuple[tuple[Node, ...], ...]
    parents: tuple[tuple[int, ...], ...]

    @property
    def leaves(self) -> tuple[Node, ...]:
        return self.levels[0]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(leaf.id for leaf in self.leaves)

    @property
    def max_level(self) -> int:
        """Return L, the number of the coarsest level."""
        return len(self.levels) - 1

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(level) for level in self.levels)

    @cached_property
    def paths(self) -> np.ndarray:
        """Return (leaves, L + 1) int64: column l is each leaf's ancestor at level l."""
        columns = [np.arange(len(self.leaves))]
        for parents in self.parents:
            columns.append(np.asarray(parents)[columns[-1]])
        return np.stack(columns, axis=1)

    def restrict(self, leaves: Collection[str]) -> "Tree":
        """Return the tree over some of its leaves, in its order, without the nodes above no leaf.

        Raises TreeError for a leaf that the tree does not have.
        """
        unknown = sorted(set(leaves) - set(self.ids))
        if unknown:
            raise TreeError(f"tree {self.name}: no leaf {', '.join(unknown)}")
        remaining = [leaf for leaf in self.ids if leaf in set(leaves)]
        graph = self.graph()
        nodes = set(remaining).union(*(nx.ancestors(graph, leaf) for leaf in remaining))
        return tree_from_graph(graph.subgraph(nodes), self.name, remaining)

    def graph(self) -> nx.DiGraph:
        """Return edges from parent to child, and nodes with `name` and finest `level`."""
        graph = nx.DiGraph()
        graph.add_node(self.root.id, **{NAME: self.root.name, LEVEL: self.max_level + 1})
        for path in self.paths:
            nodes = [self.levels[l][k].id for l, k in enumerate(path)]
            nx.add_path(graph, [self.root.id, *dict.fromkeys(reversed(nodes))])
        for l in reversed(range(self.max_level + 1)):
            for node in self.levels[l]:
                graph.nodes[node.id].update({NAME: node.name, LEVEL: l})
        return graph

    @cached_property
    def hash(self) -> str:
        """Return the SHA-256 of nodes and edges, which no file layout changes."""
        levels = [
            [[node.id, node.name] for node in level] for level in (*self.levels, (self.root,))
        ]
        return hashlib.sha256(json.dumps([levels, self.parents]).encode()).hexdigest()


def lca_heights(paths: np.ndarray) -> np.ndarray:
    """Return (leaves, leaves) int64: the finest level at which two leaves have one ancestor.

    It is L + 1 where only the root joins them. paths: (leaves, L + 1), a tree's.
    """
    same = paths[:, None, :] == paths[None, :, :]
    return np.where(same.any(-1), same.argmax(-1), paths.shape[1])


def shared_nodes(paths: np.ndarray) -> np.ndarray:
    """Return (leaves, leaves) int64: on how many nodes both leaves lie, the root not counted.

    A leaf lies on itself and its ancestors, so the diagonal counts these. Nodes are told apart by
    the leaves below them: a node on several consecutive levels counts once, a node of one child is
    that child, and one above all leaves is the root. paths: (leaves, L + 1), a tree's.
    """
    leaves_below = np.stack([np.bincount(column)[column] for column in paths.T], axis=1)
    is_new = np.diff(leaves_below, axis=1, prepend=0) > 0  # not the node of the level below
    counts = is_new & (leaves_below < len(paths))
    return ((paths[:, None, :] == paths[None, :, :]) & counts).sum(-1)


def tree_from_graph(graph: nx.DiGraph, name: str, leaves: Sequence[str], where: str = "") -> Tree:
    """Return the tree that `graph` draws, its leaves in the order given.

    graph: edges from parent to child, node attributes `name` and `level`; a node is on every level
    from its own up to the one below its parent's, the root above them all.
    Raises TreeError, opened by `where` (a file, say), for cycles, two roots, two parents, empty
    names, levels that are no numbers or do not fall, and leaves that are missing or unknown.
    """
    for problem in _problems(graph, leaves):
        raise TreeError(f"{where or 'tree ' + name}: {problem}")
    root = next(nx.topological_sort(graph))
    level = nx.get_node_attributes(graph, LEVEL)
    above = {child: parent for parent, child in graph.edges}
    columns = [list(leaves)]  # by level: each leaf's ancestor
    for l in range(1, level[root]):
        columns.append([above[n] if level[above[n]] == l else n for n in columns[-1]])
    levels = [list(dict.fromkeys(column)) for column in columns]
    parents = []
    for l in range(len(levels) - 1):
        upward = dict(zip(columns[l], columns[l + 1], strict=True))
        parents.append(tuple(levels[l + 1].index(upward[node]) for node in levels[l]))
    node = {identifier: Node(identifier, graph.nodes[identifier][NAME]) for identifier in graph}
    named = tuple(tuple(node[identifier] for identifier in ids) for ids in levels)
    return Tree(name, node[root], named, tuple(parents))


def _problems(graph: nx.DiGraph, leaves: Sequence[str]) -> Iterator[str]:
    """Yield what keeps `graph` from being a tree over `leaves`; a check relies on those before."""
    roots = [node for node, parents in graph.in_degree() if parents == 0]
    shared = [node for node, parents in graph.in_degree() if parents > 1]
    if len(roots) != 1 or shared:
        yield (
            f"{len(roots)} roots ({', '.join(roots) or 'none'}), nodes with several parents: "
            f"{', '.join(shared) or 'none'}; a tree has one root and a parent for each other node"
        )
    if not nx.is_directed_acyclic_graph(graph):
        cycle = " > ".join(parent for parent, _ in nx.find_cycle(graph))
        yield f"cycle {cycle}; no node may stand above itself"
    level = dict(graph.nodes(data=LEVEL, default=0))
    for node, name in graph.nodes(data=NAME):
        if not str(name or "").strip():
            yield f"node {node} has an empty name; a prompt needs words"
        if not isinstance(level[node], Integral):
            yield f"node {node} has level {level[node]!r}; a level is a whole number"
    for parent, node in graph.edges:
        if level[node] >= level[parent]:
            yield (
                f"node {node} has level {level[node]}, its parent {parent} level {level[parent]}; "
                "levels fall from parent to child"
            )
    ends = {node for node, children in graph.out_degree() if children == 0}
    missing = sorted(set(leaves) - ends)
    if missing:
        yield f"leaf {', '.join(missing)} is missing from the tree, or above other nodes"
    unknown = sorted(ends - set(leaves))
    if unknown:
        yield f"leaf {', '.join(unknown)} is unknown to the dataset"


def save_tree(tree: Tree, path: Path) -> None:
    """Write every node once, coarsest first: its identifier, name, finest level and parent."""
    graph = tree.graph()
    rows = []
    for node, level in sorted(graph.nodes(data=LEVEL), key=lambda entry: -entry[1]):
        row = {
            "id": node,
            NAME: graph.nodes[node][NAME],
            LEVEL: level,
            "parent": next(graph.predecessors(node), None),
        }
        rows.append("  " + json.dumps(row, ensure_ascii=False))
    head = {"version": VERSION, "name": tree.name, "hash": tree.hash}
    opening = json.dumps(head, ensure_ascii=False).removesuffix("}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{opening}, "nodes": [\n' + ",\n".join(rows) + "\n]}\n", encoding="utf8")


def load_tree(path: Path) -> Tree:
    """Return the tree of a file that `save_tree` wrote, its leaves in the file's order.

    Raises TreeError, naming file and node, for anything else, and for a file that was changed
    after its hash was taken.
    """
    graph = nx.DiGraph()
    try:
        content = json.loads(path.read_text(encoding="utf8"))
        if content["version"] != VERSION:
            raise TreeError(f"version {content['version']!r}; this program reads version {VERSION}")
        for node in content["nodes"]:
            graph.add_node(node["id"], **{NAME: node["name"], LEVEL: node["level"]})
            if node["parent"] is not None:
                graph.add_edge(node["parent"], node["id"])
        ends = [node for node, children in graph.out_degree() if children == 0]
        tree = tree_from_graph(graph, content["name"], ends)
        ids = [node["id"] for node in content["nodes"]]
        if len(ids) > len(graph):
            raise TreeError(f"node {max(ids, key=ids.count)} stands there twice; each stands once")
        if content["hash"] != tree.hash:
            raise TreeError(
                "a node was added, removed, renamed or moved after the tree was saved: its hash is "
                "not that of its content; write a changed tree as an outline or by `save_tree`"
            )
    except OSError as error:
        raise TreeError(f"{path}: cannot be read ({error})") from error
    except ValueError as error:
        raise TreeError(f"{path}: {error}") from error
    except (KeyError, TypeError) as error:
        raise TreeError(
            f"{path}: no tree file ({error}); it needs version, name, hash and nodes, "
            "a node id, name, level and parent"
        ) from error
    return tree
