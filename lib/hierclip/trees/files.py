"""Tree files: JSON with a version and a content hash, read with suspicion."""

import json
from collections.abc import Sequence
from pathlib import Path

import networkx as nx

from hierclip.trees.tree import Tree, TreeError, tree_from_graph

VERSION = 1


def save_tree(tree: Tree, path: Path) -> None:
    """Writes every node once, coarsest first: its identifier, name, parent and finest level."""
    graph = tree.graph()
    nodes = [
        {"id": node, "name": entries["name"], "level": entries["level"], "parent": next(graph.predecessors(node), None)}
        for node, entries in graph.nodes(data=True)
    ]
    rows = ",\n".join("  " + json.dumps(node, ensure_ascii=False) for node in nodes)
    head = json.dumps({"version": VERSION, "name": tree.name, "hash": tree.hash}, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{head[:-1]}, "nodes": [\n{rows}\n]}}\n', encoding="utf8")


def load_tree(path: Path, leaves: Sequence[str] | None = None) -> Tree:
    """The tree of a file, its leaves in the file's order.

    leaves: the identifiers it must have, no more and no fewer; None: whatever it has.
    Raises TreeError, naming file and node, for anything that is not such a tree, and for a file that was
    changed after its hash was taken.
    """
    try:
        content = json.loads(path.read_text(encoding="utf8"))
        version, name, nodes = content["version"], content["name"], content["nodes"]
    except (OSError, ValueError) as error:  # no file, not UTF-8, not JSON
        raise TreeError(f"{path}: cannot be read ({error})") from error
    except (KeyError, TypeError) as error:
        raise TreeError(f"{path}: no tree file; it needs version, name, hash and nodes") from error
    if version != VERSION:
        raise TreeError(f"{path}: version {version!r}; this program reads version {VERSION}")
    graph = _graph(nodes, path)
    ends = [node for node, children in graph.out_degree() if children == 0]
    if leaves is not None and set(ends) == set(leaves):
        leaves = ends
    tree = tree_from_graph(graph, name, ends if leaves is None else leaves, str(path))
    if content.get("hash") != tree.hash:
        raise TreeError(f"{path}: its hash is not that of its content; save it with `save_tree` after a change")
    return tree


def _graph(nodes: Sequence[dict], path: Path) -> nx.DiGraph:
    graph, parent_of = nx.DiGraph(), {}
    if not isinstance(nodes, list):
        raise TreeError(f"{path}: nodes is {nodes!r}; it must be a list")
    for entry in nodes:
        try:
            node, name, parent, level = entry["id"], entry["name"], entry["parent"], entry["level"]
        except (KeyError, TypeError) as error:
            raise TreeError(f"{path}: node {entry!r} lacks {error}; it needs id, name, parent, level") from error
        if not isinstance(node, str):
            raise TreeError(f"{path}: identifier {node!r}; it must be text")
        if isinstance(parent, list):
            raise TreeError(f"{path}: node {node} has {len(parent)} parents ({', '.join(map(str, parent))})")
        if not isinstance(level, int) or level < 0:
            raise TreeError(f"{path}: node {node} has level {level!r}; levels are 0, 1, 2 ...")
        if node in parent_of:
            if parent_of[node] != parent:
                raise TreeError(f"{path}: node {node} has two parents ({parent_of[node]}, {parent})")
            raise TreeError(f"{path}: identifier {node} stands twice")
        parent_of[node] = parent
        graph.add_node(node, name=name, level=level)
    for node, parent in parent_of.items():
        if parent is not None and parent not in parent_of:
            raise TreeError(f"{path}: node {node} has a parent {parent!r} that is no node")
        if parent is not None:
            graph.add_edge(parent, node)
    return graph
