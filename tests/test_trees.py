import json

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, strategies as st

from hierclip.trees import TreeError, graph_tree, lca_heights, load_tree, save_tree, tree_from_graph
from hierclip.trees.graphs import assign_levels, keep_one_parent
from tests.conftest import LEAVES, tiny_graph


@st.composite
def ragged_trees(draw) -> nx.DiGraph:
    """A tree of leaves n0, n1 ... in which every other node has two children or more."""
    graph = nx.DiGraph()
    front = [f"n{k}" for k in range(draw(st.integers(2, 14)))]
    fresh = len(front)
    while len(front) > 1:
        children = [
            front.pop(draw(st.integers(0, len(front) - 1)))
            for _ in range(min(len(front), draw(st.integers(2, 4))))
        ]
        graph.add_edges_from((f"n{fresh}", child) for child in children)
        front.append(f"n{fresh}")
        fresh += 1
    return graph


@st.composite
def trees(draw):
    """A tree of levels cut from a ragged one, its leaves in any order."""
    ragged = draw(ragged_trees())
    leaves = [node for node, children in ragged.out_degree() if children == 0]
    graph, widths = assign_levels(ragged, []), []
    for width in sorted(draw(st.sets(st.integers(1, 13))), reverse=True):
        try:
            graph = assign_levels(ragged, [*widths, width])
            widths.append(width)
        except TreeError:  # not every width can be reached
            continue
    nx.set_node_attributes(graph, {node: f"name of {node}" for node in graph}, "name")
    return tree_from_graph(graph, "drawn", draw(st.permutations(leaves)))


def leaves_below(tree, level):
    return [frozenset(np.flatnonzero(tree.paths[:, level] == k)) for k in range(tree.sizes[level])]


@given(trees())
def test_every_level_is_a_partition_that_the_next_one_coarsens(tree):
    for l in range(tree.max_level + 1):
        groups = leaves_below(tree, l)
        assert all(groups) and sum(map(len, groups)) == len(tree.leaves)
        if l:
            assert all(
                any(fine <= coarse for coarse in groups) for fine in leaves_below(tree, l - 1)
            )


@given(trees())
def test_levels_are_strictly_narrower_as_they_rise(tree):
    assert list(tree.sizes) == sorted(set(tree.sizes), reverse=True)


@given(trees())
def test_a_path_climbs_from_the_leaf_by_parents(tree):
    assert tree.paths[:, 0].tolist() == list(range(len(tree.leaves)))
    for path in tree.paths:
        assert [tree.parents[l][k] for l, k in enumerate(path[:-1])] == path[1:].tolist()


@given(trees())
def test_lca_height_is_the_finest_level_at_which_two_leaves_meet(tree):
    for i, one in enumerate(tree.paths):
        for j, other in enumerate(tree.paths):
            meet = [l for l in range(tree.max_level + 1) if one[l] == other[l]]
            assert lca_heights(tree.paths)[i, j] == min(meet, default=tree.max_level + 1)


@given(trees(), st.data())
def test_a_restricted_tree_keeps_who_stands_above_whom(tree, data):
    kept = data.draw(st.sets(st.sampled_from([leaf.id for leaf in tree.leaves]), min_size=1))
    restricted = tree.restrict(kept)
    assert [leaf.id for leaf in restricted.leaves] == [
        leaf.id for leaf in tree.leaves if leaf.id in kept
    ]
    for l in range(tree.max_level + 1):
        before = {
            leaf.id: tree.levels[l][k].id
            for leaf, k in zip(tree.leaves, tree.paths[:, l], strict=True)
        }
        after = restricted.paths[:, l]
        assert set(after) == set(range(restricted.sizes[l]))
        assert [restricted.levels[l][k].id for k in after] == [
            before[leaf.id] for leaf in restricted.leaves
        ]


@given(tree=trees())
def test_a_saved_tree_is_read_back_as_it_was(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("trees") / "tree.json"
    save_tree(tree, path)
    assert load_tree(path) == tree


@given(tree=trees(), data=st.data())
def test_a_restricted_tree_is_read_back_as_it_was(tmp_path_factory, tree, data):
    path = tmp_path_factory.mktemp("trees") / "tree.json"
    restricted = tree.restrict(
        data.draw(st.sets(st.sampled_from([leaf.id for leaf in tree.leaves]), min_size=2))
    )
    save_tree(restricted, path)
    assert load_tree(path) == restricted


def test_restrict_refuses_a_leaf_that_the_tree_does_not_have(tree):
    with pytest.raises(TreeError, match="tiny: no leaf cow"):
        tree.restrict(["dog", "cow"])


def test_the_tiny_tree_is_what_it_looks_like(tree):
    assert tree.sizes == (5, 3, 2) and tree.max_level == 2 and tree.root.id == "thing"
    assert [[node.id for node in level] for level in tree.levels[1:]] == [
        ["mammal", "eagle", "vehicle"],
        ["animal", "vehicle"],
    ]
    assert tree.parents == ((0, 0, 1, 2, 2), (0, 0, 1))
    assert lca_heights(tree.paths)[0].tolist() == [0, 1, 2, 3, 3]


def entries() -> list[dict]:
    """The nodes of the tiny tree as a file has them, a fresh copy."""
    graph = tiny_graph()
    rows = [{"id": n, **graph.nodes[n], "parent": next(graph.predecessors(n), None)} for n in graph]
    return rows


def write(path, nodes, **head):
    said = {
        "version": 1,
        "name": "tiny",
        "hash": tree_from_graph(tiny_graph(), "tiny", LEAVES).hash,
        "nodes": nodes,
    }
    path.write_text(json.dumps(said | head), encoding="utf8")
    return path


def changed(**changes: dict) -> list[dict]:
    """The tiny tree's nodes with changes for some, by identifier."""
    return [entry | changes.get(entry["id"], {}) for entry in entries()]


def test_the_hash_ignores_how_a_file_is_laid_out(tmp_path, tree):
    assert load_tree(write(tmp_path / "compact.json", entries())).hash == tree.hash
    shuffled = [dict(reversed(entry.items())) for entry in entries()]
    spread = tmp_path / "spread.json"
    spread.write_text(
        json.dumps(json.loads(write(spread, shuffled).read_text(encoding="utf8")), indent=4),
        encoding="utf8",
    )
    assert load_tree(spread) == tree


def test_the_hash_hears_names_order_and_parents(tree):
    other_name, other_parent = tiny_graph(), tiny_graph()
    other_name.nodes["dog"]["name"] = "hound"
    other_parent.remove_edge("mammal", "cat")
    other_parent.add_edge("animal", "cat")
    others = [(other_name, LEAVES), (other_parent, LEAVES), (tiny_graph(), LEAVES[::-1])]
    hashes = {tree_from_graph(graph, "tiny", leaves).hash for graph, leaves in others}
    assert len(hashes | {tree.hash}) == 4


NEW = {"id": "cow", "name": "cow", "parent": "mammal", "level": 0}
REFUSED = {
    "cycle": (changed(animal={"parent": "mammal"}), ["cycle", "animal", "mammal"]),
    "own parent": (changed(animal={"parent": "animal"}), ["cycle", "animal"]),
    "two roots": (changed(animal={"parent": None}), ["2 roots", "thing", "animal"]),
    "missing leaf": ([entry for entry in entries() if entry["id"] != "dog"], ["hash"]),
    "unknown leaf": ([*entries(), NEW], ["hash"]),
    "leaf above another": ([*entries(), NEW | {"parent": "dog"}], ["node cow has level 0", "dog"]),
    "two parents": ([*entries(), entries()[-1] | {"parent": "animal"}], ["several parents: bus"]),
    "identifier twice": ([*entries(), entries()[-1] | {"name": "coach"}], ["node bus", "twice"]),
    "empty name": (changed(mammal={"name": " "}), ["mammal", "empty name"]),
    "no name": (changed(mammal={"name": None}), ["mammal", "empty name"]),
    "level that does not rise": (changed(mammal={"level": 2}), ["mammal has level 2, its parent"]),
    "level that is no number": (changed(mammal={"level": "one"}), ["node mammal has level 'one'"]),
    "unknown parent": (changed(dog={"parent": "wolf"}), ["2 roots", "wolf"]),
    "key that lacks": ([*entries(), {"id": "cow"}], ["no tree file ('name')"]),
    "no nodes": ([], ["none"]),
}


@pytest.mark.parametrize(("nodes", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_the_reader_refuses_naming_file_and_node(tmp_path, nodes, words):
    path = write(tmp_path / "bad.json", nodes)
    with pytest.raises(TreeError) as caught:
        load_tree(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert all(word in message for word in words), message


def test_the_reader_refuses_a_file_changed_after_its_hash_was_taken(tmp_path):
    with pytest.raises(TreeError, match="tree.json: a node was added, .* renamed .* hash is not"):
        load_tree(write(tmp_path / "tree.json", changed(dog={"name": "cat"})))


def test_the_reader_refuses_another_version(tmp_path):
    with pytest.raises(TreeError, match="version 2.*reads version 1"):
        load_tree(write(tmp_path / "tree.json", entries(), version=2))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"{", id="not JSON"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"{}", id="empty"),
        pytest.param(b"\xff\xfe", id="not UTF-8"),
        pytest.param(b'{"version": 1, "name": "t", "nodes": 7}', id="nodes a number"),
        pytest.param(
            b'{"version": 1, "name": "t", "hash": "", '
            b'"nodes": [{"id": [], "name": "x", "parent": null, "level": 0}]}',
            id="identifier a list",
        ),
    ],
)
def test_the_reader_refuses_what_is_no_tree_file(tmp_path, content):
    path = tmp_path / "tree.json"
    path.write_bytes(content)
    with pytest.raises(TreeError, match="tree.json: "):
        load_tree(path)


def test_the_reader_refuses_a_file_that_is_not_there(tmp_path):
    with pytest.raises(TreeError, match="nowhere.json"):
        load_tree(tmp_path / "nowhere.json")


def test_of_several_parents_the_one_above_the_most_leaves_stays():
    graph = nx.DiGraph(
        [("r", "few"), ("r", "many"), ("few", "x"), ("many", "x"), ("many", "y"), ("many", "z")]
    )
    assert set(keep_one_parent(graph, ["x", "y", "z"]).edges) == {
        ("r", "many"),
        ("many", "x"),
        ("many", "y"),
        ("many", "z"),
    }


def test_of_equal_parents_the_first_by_name_stays():
    graph = nx.DiGraph([("r", "b"), ("r", "a"), ("b", "x"), ("a", "x"), ("a", "y"), ("b", "z")])
    assert ("a", "x") in keep_one_parent(graph, ["x", "y", "z"]).edges


def test_a_parent_above_another_parent_goes_first():
    graph = nx.DiGraph([("r", "a"), ("a", "b"), ("a", "x"), ("b", "x"), ("a", "y"), ("r", "z")])
    assert ("b", "x") in keep_one_parent(graph, ["x", "y", "z"]).edges


def test_an_only_child_takes_its_parents_place():
    chain = nx.DiGraph(
        [("top", "r"), ("r", "a"), ("a", "b"), ("b", "c"), ("c", "x"), ("c", "y"), ("r", "z")]
    )
    assert set(assign_levels(chain, [2]).edges) == {("r", "c"), ("c", "x"), ("c", "y"), ("r", "z")}


def test_families_join_smallest_for_what_they_save_first():
    graph = nx.DiGraph([("r", "pair"), ("r", "trio"), ("r", "w")])
    graph.add_edges_from(
        [("pair", "a"), ("pair", "b"), ("trio", "x"), ("trio", "y"), ("trio", "z")]
    )
    levels = dict(
        assign_levels(graph, [4, 3]).nodes(data="level")
    )  # trio: 3 leaves for 2 places, pair: 2 for 1
    assert levels == {**dict.fromkeys("abxyzw", 0), "trio": 1, "pair": 2, "r": 3}


@pytest.mark.parametrize("widths", [[1], [4, 4], [2, 2]])
def test_widths_that_cannot_be_reached_are_refused(widths):
    graph = nx.DiGraph([("r", "a"), ("r", "b"), ("a", "x"), ("a", "y"), ("b", "u"), ("b", "v")])
    with pytest.raises(TreeError, match="level [12] keeps .* must be reachable and falling"):
        assign_levels(graph, widths)


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (nx.Graph([("pet", "cat"), ("pet", "dog")]), "tree t: an undirected graph; edges must go"),
        (nx.DiGraph([("pet", 1), ("pet", "1")]), "tree t: several nodes have the text 1"),
    ],
)
def test_a_graph_that_is_no_tree_of_texts_is_one_line(graph, said):
    with pytest.raises(TreeError, match=said):
        graph_tree(graph, "t", {"cat": "cat", "dog": "dog"})
