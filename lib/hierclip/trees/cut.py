"""From a ragged hierarchy to a tree of L + 1 levels."""

from collections.abc import Iterable, Sequence

import networkx as nx

from hierclip.trees.tree import LEVEL, TreeError


def end_at_leaves(graph: nx.DiGraph, leaves: Iterable[str]) -> nx.DiGraph:
    """The same graph with every leaf at the end of its paths: what stands below a leaf goes to the leaf's parents.

    So a class that is the hypernym of another (dog, poodle) stays a leaf and stands beside it; what it says as
    a superclass is lost. Raises TreeError for such a leaf without a parent.
    """
    graph = graph.copy()
    for leaf in leaves:
        children, parents = list(graph.successors(leaf)), list(graph.predecessors(leaf))
        if children and not parents:
            raise TreeError(f"leaf {leaf} stands above {', '.join(children)} and below nothing; it needs a parent")
        graph.add_edges_from((parent, child) for parent in parents for child in children)
        graph.remove_edges_from((leaf, child) for child in children)
    return graph


def keep_one_parent(graph: nx.DiGraph, leaves: Sequence[str]) -> nx.DiGraph:
    """A tree over `leaves` out of a graph whose nodes may have several parents.

    The rule: a parent that stands above another parent of the same node goes first (that edge says nothing
    new); of the others the one above the most leaves stays, the first by name where they tie. What then
    leads to no leaf goes too.
    """
    graph = nx.transitive_reduction(graph)
    wanted = set(leaves)
    below = {node: len(wanted & (nx.descendants(graph, node) | {node})) for node in graph}
    tree = nx.DiGraph()
    tree.add_nodes_from(graph)
    for node in graph:
        parents = sorted(graph.predecessors(node), key=lambda parent: (-below[parent], parent))
        tree.add_edges_from((parent, node) for parent in parents[:1])
    useful = wanted.union(*(nx.ancestors(tree, leaf) for leaf in leaves))
    return tree.subgraph(useful).copy()


def remove_unary_chains(tree: nx.DiGraph) -> nx.DiGraph:
    """The same tree without its only children: a node with one child gives its place to the child."""
    tree = tree.copy()
    for node in [node for node, children in tree.out_degree() if children == 1]:
        (child,) = tree.successors(node)
        for parent in list(tree.predecessors(node)):
            tree.add_edge(parent, child)
        tree.remove_node(node)
    return tree


def assign_levels(tree: nx.DiGraph, widths: Sequence[int]) -> nx.DiGraph:
    """Only the nodes that stand on one of the levels 0..L and the root, with that `level` as attribute.

    widths: the most nodes that levels 1..L may have, falling. From the leaves up, families whose members all
    stand on the level are joined under their parent until it is narrow enough: first the family with the
    fewest leaves for each place that joining it saves (by name where they tie). So each level is a
    partition that the next one coarsens, and a flat family (fruit) joins as early as a deep one (big cats).
    Raises TreeError where a width cannot be reached.
    """
    (root,) = (node for node, parents in tree.in_degree() if parents == 0)
    leaves = {node for node, children in tree.out_degree() if children == 0}
    size = {node: len(leaves & (nx.descendants(tree, node) | {node})) for node in tree}
    children = {node: set(tree.successors(node)) for node in set(tree) - leaves - {root}}
    level = dict.fromkeys(leaves, 0)
    front = set(leaves)
    for l, width in enumerate(widths, start=1):
        before = len(front)
        while len(front) > width and (ready := [node for node in children if children[node] <= front]):
            node = min(ready, key=lambda n: (size[n] / (len(children[n]) - 1), n))
            front = (front - children.pop(node)) | {node}
        if len(front) > width or len(front) == before:
            raise TreeError(f"level {l} keeps {len(front)} nodes; its width {width} must be reachable and falling")
        level |= {node: l for node in front if node not in level}
    return _contract(tree, level | {root: len(widths) + 1})


def halving_widths(tree: nx.DiGraph) -> list[int]:
    """Widths for `assign_levels`: half of the nodes that the level before has, and as many as stand under the root at
    least; none where that leaves more than three quarters.

    tree: as `remove_unary_chains` leaves it.
    """
    (root,) = (node for node, parents in tree.in_degree() if parents == 0)
    widths, least = [], tree.out_degree(root)
    nodes = sum(children == 0 for _, children in tree.out_degree())
    while (width := max(nodes // 2, least)) <= 0.75 * nodes:
        widths.append(width)
        nodes = assign_levels(tree, widths).out_degree(root)
    return widths


def _contract(tree: nx.DiGraph, level: dict[str, int]) -> nx.DiGraph:
    """The nodes of `level`, each under its nearest ancestor among them."""
    out = nx.DiGraph()
    for node, l in level.items():
        out.add_node(node, **{LEVEL: l})
        above = next(tree.predecessors(node), None)
        while above is not None and above not in level:
            above = next(tree.predecessors(above), None)
        if above is not None:
            out.add_edge(above, node)
    return out
