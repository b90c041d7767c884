"""A class tree: leaves, nested levels of superclasses above them, a root.

Level 0 holds the leaves, level L the coarsest superclasses; the root says nothing and is no level.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import networkx as nx
import numpy as np

from hierclip.errors import HierclipError

LEVEL = "level"  # node attribute: the finest level at which the node stands
NAME = "name"  # node attribute: the words a prompt uses for it


class TreeError(HierclipError):
    """What is wrong with a tree, naming the node and, where there is one, the file."""


@dataclass(frozen=True)
class Node:
    id: str
    name: str


@dataclass(frozen=True)
class Tree:
    """Levels of nodes, each a partition of the leaves that the next one coarsens.

    levels[l] holds the nodes of level l; parents[l][k] is the index, in level l + 1, of the node above
    node k of level l. A node that nothing joins stands on several levels in a row, as itself.
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
        """The leaves' identifiers, in order."""
        return tuple(leaf.id for leaf in self.leaves)

    @property
    def top(self) -> int:
        """L, the number of the coarsest level."""
        return len(self.levels) - 1

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(level) for level in self.levels)

    @cached_property
    def paths(self) -> np.ndarray:
        """(leaves, L + 1) int64: column l is each leaf's ancestor at level l, column 0 the leaf itself."""
        columns = [np.arange(len(self.leaves))]
        for parents in self.parents:
            columns.append(np.asarray(parents)[columns[-1]])
        return np.stack(columns, axis=1)

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """Every node once, by identifier, finest level first."""
        return {node.id: node for level in self.levels for node in level}

    def singletons(self, level: int) -> tuple[Node, ...]:
        """The nodes of a level that hold one leaf only."""
        counts = np.bincount(self.paths[:, level], minlength=len(self.levels[level]))
        return tuple(node for node, count in zip(self.levels[level], counts, strict=True) if count == 1)

    def restrict(self, leaves: Collection[str]) -> Tree:
        """The same tree over some of its leaves, in the tree's order; nodes left without a leaf go.

        Raises TreeError for a leaf the tree does not have.
        """
        unknown = sorted(set(leaves) - {leaf.id for leaf in self.leaves})
        if unknown:
            raise TreeError(f"tree {self.name}: no leaf {', '.join(unknown)}")
        graph, kept = self.graph(), [leaf.id for leaf in self.leaves if leaf.id in set(leaves)]
        above = set(kept).union(*(nx.ancestors(graph, leaf) for leaf in kept))
        return tree_from_graph(graph.subgraph(above), self.name, kept)

    def graph(self) -> nx.DiGraph:
        """Edges from parent to child, the root on top; a node's `level` is the finest one at which it stands."""
        graph = nx.DiGraph()
        graph.add_node(self.root.id, **{NAME: self.root.name, LEVEL: self.top + 1})
        finest = {node.id: l for l in reversed(range(self.top + 1)) for node in self.levels[l]}
        for l in reversed(range(self.top + 1)):
            fresh = [node for node in self.levels[l] if finest[node.id] == l]
            graph.add_nodes_from((node.id, {NAME: node.name, LEVEL: l}) for node in fresh)
        above = (*self.levels[1:], (self.root,))
        for level, upper, parents in zip(self.levels, above, (*self.parents, (0,) * self.sizes[-1]), strict=True):
            pairs = ((upper[k].id, node.id) for node, k in zip(level, parents, strict=True))
            graph.add_edges_from((parent, child) for parent, child in pairs if parent != child)
        return graph

    @cached_property
    def hash(self) -> str:
        """SHA-256 of what the tree says, whatever its file looks like."""
        said = [[[node.id, node.name] for node in level] for level in (*self.levels, (self.root,))]
        return hashlib.sha256(json.dumps([said, self.parents]).encode()).hexdigest()


def lca_heights(paths: np.ndarray) -> np.ndarray:
    """(leaves, leaves) int64: the finest level at which two leaves meet, L + 1 where only the root joins them.

    paths: (leaves, L + 1), a tree's.
    """
    same = paths[:, None, :] == paths[None, :, :]
    return np.where(same.any(-1), same.argmax(-1), paths.shape[1])


def tree_from_graph(graph: nx.DiGraph, name: str, leaves: Sequence[str], where: str = "") -> Tree:
    """The tree that `graph` draws, its leaves in the order given.

    graph: edges from parent to child, node attributes `name` and `level`; a node stands from its own level
    up to the one below its parent's, the root above them all.
    Raises TreeError for cycles, two roots, two parents, leaves that are missing or unknown, empty names,
    levels that do not rise; `where` (a file, say) opens the message.
    """
    root = _check(graph, leaves, f"{where or 'tree ' + name}: ")
    top = graph.nodes[root][LEVEL] - 1
    above = {child: parent for parent, child in graph.edges}
    chains = [_chain(graph, leaf, above, top) for leaf in leaves]
    levels = tuple(tuple(dict.fromkeys(chain[l] for chain in chains)) for l in range(top + 1))
    index = [{node: k for k, node in enumerate(level)} for level in levels]
    upward = [{chain[l]: index[l + 1][chain[l + 1]] for chain in chains} for l in range(top)]
    node = {n: Node(n, graph.nodes[n][NAME]) for n in graph}
    return Tree(
        name=name,
        root=node[root],
        levels=tuple(tuple(node[n] for n in level) for level in levels),
        parents=tuple(tuple(upward[l][n] for n in levels[l]) for l in range(top)),
    )


def _chain(graph: nx.DiGraph, leaf: str, above: dict[str, str], top: int) -> list[str]:
    """The node over `leaf` at every level 0..top."""
    chain, node = [], leaf
    for level in range(top + 1):
        while graph.nodes[above[node]][LEVEL] <= level:
            node = above[node]
        chain.append(node)
    return chain


def _check(graph: nx.DiGraph, leaves: Sequence[str], say: str) -> str:
    """Refuses what is no tree over `leaves`; gives the root."""
    for node, parents in graph.in_degree():
        if parents > 1:
            names = ", ".join(sorted(graph.predecessors(node)))
            raise TreeError(f"{say}node {node} has {parents} parents ({names}); a tree gives it one")
    if not nx.is_directed_acyclic_graph(graph):
        cycle = " > ".join(parent for parent, _ in nx.find_cycle(graph))
        raise TreeError(f"{say}cycle {cycle}; no node may stand above itself")
    roots = [node for node, parents in graph.in_degree() if parents == 0]
    if len(roots) != 1:
        raise TreeError(f"{say}{len(roots)} roots ({', '.join(roots) or 'none'}); a tree has one")
    for node, attributes in graph.nodes(data=True):
        if not str(attributes.get(NAME) or "").strip():
            raise TreeError(f"{say}node {node} has an empty name; a prompt needs words")
    for parent, child in graph.edges:
        low, high = graph.nodes[child][LEVEL], graph.nodes[parent][LEVEL]
        if high <= low:
            raise TreeError(f"{say}node {child} (level {low}) is not below its parent {parent} (level {high})")
    ends = {node for node, children in graph.out_degree() if children == 0}
    for problem, names in (
        ("missing from the tree", set(leaves) - set(graph)),
        ("unknown to the dataset", ends - set(leaves)),
        ("above other nodes, and a leaf is the end of its path", (set(leaves) & set(graph)) - ends),
        ("not at level 0", {leaf for leaf in ends if graph.nodes[leaf][LEVEL]}),
    ):
        if names:
            raise TreeError(f"{say}leaf {', '.join(sorted(names))} is {problem}")
    return roots[0]
