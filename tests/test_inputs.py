import csv
import json

import networkx as nx
import pytest

from hierclip.data.sources import imagenet_names
from hierclip.trees import Tree, TreeError, graph_tree, load_tree, read_tree, save_tree

LEAVES = {"n1": "apple", "n2": "lemon", "n3": "lime", "n4": "carrot", "n5": "dog"}
OUTLINE = """
thing to eat:
  fruit:
    - apple
    - citrus fruit: [lemon, n3]
  root: carrot
animal: [dog]
"""
JSON = {
    "thing to eat": {"fruit": ["apple", {"citrus fruit": ["lemon", "n3"]}], "root": "carrot"},
    "animal": ["dog"],
}
TABLE = """leaf,parent,grandparent
apple,fruit,thing to eat
n2, citrus fruit ,fruit,thing to eat
lime,citrus fruit,fruit,thing to eat

carrot,root,thing to eat,,
dog,animal
"""
COMMITTED = {  # by data set and outline in data/source/trees, the nodes of each level
    "emoji": {
        "emoji": (200, 34, 5),
        "look": (200, 30, 8),
        "place": (200, 28, 8),
        "use": (200, 33, 8),
    },
    "tiny-imagenet": {"look": (200, 45, 8), "place": (200, 40, 8), "use": (200, 42, 9)},
    "imagenet": {
        "look": (1000, 167, 39, 12),
        "origin": (1000, 178, 39, 11),
        "place": (1000, 147, 34, 10),
        "use": (1000, 161, 37, 11),
    },
}
TABLES = {  # of the classes' names; ImageNet's are open_clip's
    "emoji": ("emoji/classes.csv", "synset"),
    "tiny-imagenet": ("tiny-imagenet.csv", "wnid"),
}


@pytest.fixture
def read(tmp_path):
    """Writes a text to a file of a name and reads it as a tree over LEAVES."""

    def write_and_read(name: str, text: str, leaves=LEAVES, **options) -> Tree:
        (tmp_path / name).write_text(text, encoding="utf8")
        return read_tree(tmp_path / name, leaves, **options)

    return write_and_read


def refused(call, *words: str) -> str:
    """The message of the TreeError that a call raises: one line that has all these words."""
    with pytest.raises(TreeError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    return message


def ids(tree: Tree) -> list[list[str]]:
    return [[node.id for node in level] for level in tree.levels]


def test_an_outline_gives_a_level_to_each_step_from_the_top(read):
    tree = read("food.yaml", OUTLINE)
    assert ids(tree) == [
        list(LEAVES),
        ["n1", "thing to eat/fruit/citrus fruit", "n4", "n5"],
        ["thing to eat/fruit", "thing to eat/root", "n5"],
        ["thing to eat", "animal"],
    ]
    assert [node.name for node in tree.levels[1]] == ["apple", "citrus fruit", "carrot", "dog"]
    assert (tree.name, tree.root.id, tree.root.name) == ("food", "food", "food")


def test_json_and_csv_give_the_outlines_tree(read):
    tree = read("food.yaml", OUTLINE)
    assert (
        tree
        == read("food.yml", OUTLINE)
        == read("food.json", json.dumps(JSON))
        == read("food.csv", TABLE)
    )


def test_a_csv_needs_no_header(read):
    assert read("food.csv", TABLE.partition("\n")[2]) == read("food.csv", TABLE)


def test_an_excel_csv_is_read(read):
    assert read("food.csv", "\ufeff" + TABLE) == read("food.csv", TABLE)


@pytest.mark.parametrize("order", [sorted(LEAVES), sorted(LEAVES, reverse=True)])
def test_leaves_come_in_the_order_given(read, order):
    assert list(read("food.yaml", OUTLINE, {leaf: LEAVES[leaf] for leaf in order}).ids) == order


def test_widths_cut_instead_of_counting_levels(read):
    tree = read("food.yaml", OUTLINE, widths=[4, 2])
    assert tree.sizes == (5, 4, 2)
    assert ids(tree)[1:] == [
        ["n1", "thing to eat/fruit/citrus fruit", "n4", "n5"],
        ["thing to eat", "n5"],
    ]


def test_widths_that_cannot_be_reached_are_refused(read):
    refused(lambda: read("food.yaml", OUTLINE, widths=[1]), "food.yaml: ", "level 1", "width 1")


@pytest.mark.parametrize(
    "text", ["no: [apple, 7]\nyes: [lemon]", "true: [apple, 7]\nnull: [lemon]"]
)
def test_yaml_words_stay_words(read, text):
    assert read("t.yaml", text, {"n1": "apple", "7": "seven", "n2": "lemon"}).sizes == (3, 2)


def test_one_name_in_two_branches_is_two_nodes(read):
    tree = read("t.yaml", "a: {other: [apple], more: [lemon]}\nb: {other: [lime, carrot, dog]}")
    assert ids(tree)[1] == ["a/other", "a/more", "b/other"]


def test_a_node_of_an_outline_may_be_called_version(read):
    assert ids(read("t.yaml", "version: [apple, lemon]\nb: [lime, carrot, dog]"))[1] == [
        "version",
        "b",
    ]


def test_a_node_may_have_a_leafs_identifier_or_a_slash(read):
    tree = read("t.yaml", "n1: [apple]\na/b: [lemon]\na: {b: [lime, carrot, dog]}")
    assert ids(tree)[1] == ["n1", "n2", "a/b/"] and ids(tree)[2] == ["n1/", "a/b", "a"]


def test_a_single_top_node_is_the_root_and_no_level(read):
    tree = read("t.yaml", "all: {a: [apple, lemon], b: [lime, carrot, dog]}")
    assert (tree.root.id, tree.sizes) == ("all", (5, 2))


def test_an_identifier_goes_before_a_name(read):
    tree = read("t.yaml", "a: [x, y]\nb: [z]", {"x": "y", "y": "x", "z": "z"})
    assert ids(tree)[0] == ["x", "y", "z"]


REFUSED = {
    "unknown leaf": ("t.yaml", "fruit: [aple]", ["unknown", "'aple'", "fruit", "name of a class"]),
    "leaf twice": (
        "t.yaml",
        "a: [apple]\nb: {c: [n1]}",
        ["n1", "stands under a already", "b/c", "one place"],
    ),
    "leaf twice in a csv": (
        "t.csv",
        "apple,a\napple,b",
        ["apple", "under b", "stands under a already"],
    ),
    "missing leaf": (
        "t.yaml",
        "a: [apple]\nb: [dog]",
        ["missing", "n2 (lemon), n3 (lime), n4 (carrot)", "all 5"],
    ),
    "empty file": ("t.yaml", "", ["top", "None", "needs leaves"]),
    "empty mapping": ("t.json", "{}", ["top", "{}", "needs leaves"]),
    "empty table": ("t.csv", "leaf,parent\n", ["top", "[]", "needs leaves"]),
    "empty node": ("t.yaml", "a: {b: {}}", ["a/b", "{}", "needs leaves"]),
    "empty list": ("t.json", '{"a": []}', ["node a", "[]", "needs leaves"]),
    "list in a list": ("t.yaml", "a: [[apple]]", ["node a", "[['apple']]", "needs leaves"]),
    "no text": ("t.json", '{"a": [null]}', ["node a", "None", "needs leaves"]),
    "no leaves": ("t.yaml", "a: {b: }", ["empty name", "a/b"]),
    "empty name": ("t.yaml", '" ": [apple]', ["empty name", "'apple'"]),
    "empty cell": ("t.csv", "apple,,food", ["empty name", "'apple' under food/"]),
    "list and mapping": ("t.yaml", "a: [apple]\na: {b: [dog]}", ["node a stands twice"]),
    "list and mapping in JSON": (
        "t.json",
        '{"a": ["apple"], "a": {"b": "dog"}}',
        ["node a stands twice"],
    ),
    "node that is a list": (
        "t.yaml",
        "? [a, b]\n: [apple]",
        ["is no text; a node is called by its name"],
    ),
    "no superclasses": (
        "t.yaml",
        "all: [apple, lemon, lime, carrot, dog]",
        ["no superclasses", "two nodes"],
    ),
    "no YAML": ("t.yaml", "a: [apple", ["line 1: ", "no YAML"]),
    "no JSON": ("t.json", "{", ["line 1"]),
    "no CSV": ("t.csv", '"apple,a', ["unexpected end"]),
    "nested too deep": ("t.json", "[" * 100_000, ["recursion"]),
    "another ending": ("t.txt", "apple", ["'.txt'", ".yaml, .yml, .json, .csv"]),
}


@pytest.mark.parametrize(("name", "text", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_the_reader_refuses_naming_file_and_node(read, tmp_path, name, text, words):
    assert refused(lambda: read(name, text), *words).startswith(f"{tmp_path / name}: ")


def test_a_name_of_two_leaves_is_refused_for_their_identifiers(read):
    leaves = {"crane.n.04": "crane", "crane.n.05": "crane", "dog.n.01": "dog"}
    refused(
        lambda: read("t.yaml", "a: [crane]\nb: [dog]", leaves),
        "crane.n.04, crane.n.05",
        "write the identifier",
    )
    assert read("t.yaml", "a: [crane.n.05]\nb: [dog, crane.n.04]", leaves).sizes == (3, 2)


def test_of_many_missing_leaves_some_are_listed(read):
    leaves = LEAVES | {f"x{k}": f"leaf {k}" for k in range(300)}
    message = refused(
        lambda: read("t.yaml", OUTLINE, leaves), "x9 (leaf 9), ", " ... is missing", "all 305"
    )
    assert "x100" not in message


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    refused(lambda: read_tree(tmp_path / "nowhere.yaml", LEAVES), "nowhere.yaml: ")
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\xff")
    refused(lambda: read_tree(tmp_path / "t.csv", LEAVES), "t.csv: not in UTF-8; save it so")


def test_a_saved_tree_keeps_its_levels_and_takes_the_order_given(read, tmp_path):
    tree = read("food.yaml", OUTLINE, widths=[4, 2])
    save_tree(tree, tmp_path / "saved.json")
    assert read_tree(tmp_path / "saved.json", LEAVES) == tree
    backwards = dict(reversed(LEAVES.items()))
    assert read_tree(tmp_path / "saved.json", backwards) == read(
        "food.yaml", OUTLINE, backwards, widths=[4, 2]
    )


def test_a_saved_tree_is_cut_anew_by_widths(read, tmp_path):
    save_tree(read("food.yaml", OUTLINE), tmp_path / "saved.json")
    assert read_tree(tmp_path / "saved.json", LEAVES, widths=[3]).sizes == (5, 3)


def test_a_saved_tree_over_other_leaves_is_refused(read, tmp_path):
    save_tree(read("food.yaml", OUTLINE), tmp_path / "saved.json")
    refused(
        lambda: read_tree(tmp_path / "saved.json", LEAVES | {"n6": "cat"}),
        "saved.json: ",
        "n6",
        "missing",
    )
    refused(lambda: read("bad.json", '{"version": 2}'), "bad.json: ", "reads version 1")


@pytest.mark.parametrize("data", COMMITTED)
def test_every_committed_outline_is_a_tree_over_its_classes(request, data):
    source = request.config.rootpath / "data/source"
    if data in TABLES:
        table, column = TABLES[data]
        with (source / table).open(encoding="utf8", newline="") as lines:
            leaves = {row[column]: row["name"] for row in csv.DictReader(lines)}
    else:
        leaves = imagenet_names()
    trees = [read_tree(path, leaves) for path in (source / "trees" / data).glob("*.yaml")]
    assert {tree.name: tree.sizes for tree in trees} == COMMITTED[data]
    for tree in trees:
        assert tree.ids == tuple(leaves)
        words = [name for _, name in tree.graph().nodes(data="name")]
        assert len(set(words)) == len(words)


def test_a_graph_without_attributes_is_a_tree():
    graph = nx.DiGraph(
        [("food", "fruit"), ("food", 7), ("fruit", "n1"), ("fruit", "n2"), (7, "n3")]
    )
    tree = graph_tree(graph, "t", {"n3": "lime", "n1": "apple", "n2": "lemon"})
    assert ids(tree) == [["n3", "n1", "n2"], ["7", "fruit"]] and tree.root.id == "food"
    assert [node.name for level in tree.levels for node in level] == [
        "lime",
        "apple",
        "lemon",
        "7",
        "fruit",
    ]


def test_a_graphs_names_go_before_the_leaves_and_the_text():
    graph = nx.DiGraph([("r", "a"), ("r", "b"), ("a", "n1"), ("b", "n2")])
    graph.nodes["a"]["name"], graph.nodes["n1"]["name"] = "superclass", "own name"
    tree = graph_tree(graph, "t", {"n1": "apple", "n2": "lemon"})
    assert [[node.name for node in level] for level in tree.levels] == [
        ["own name", "lemon"],
        ["superclass", "b"],
    ]


def test_a_node_with_several_parents_keeps_the_one_above_the_most_leaves():
    graph = nx.DiGraph(
        [("few", "n1"), ("many", "n1"), ("many", "n2"), ("many", "n3"), ("few", "n4")]
    )
    tree = graph_tree(graph, "t", dict.fromkeys(["n1", "n2", "n3", "n4"], "leaf"))
    assert ids(tree)[1] == ["many", "few"] and tree.parents == ((0, 0, 0, 1),)


def test_what_leads_to_no_leaf_is_dropped_and_roots_are_joined():
    graph = nx.DiGraph(
        [("a", "n1"), ("b", "n2"), ("b", "nothing"), ("nowhere", "nothing"), ("n2", "part")]
    )
    tree = graph_tree(graph, "b", {"n1": "apple", "n2": "lemon"})
    assert tree.root.id == "b/" and tree.root.name == "b"
    assert ids(tree) == [["n1", "n2"], ["a", "b"]]


def test_a_leaf_above_another_is_put_beside_it():
    graph = nx.DiGraph(
        [("r", "animal"), ("r", "plant"), ("animal", "dog"), ("dog", "poodle"), ("plant", "rose")]
    )
    tree = graph_tree(graph, "t", {leaf: leaf for leaf in ("dog", "poodle", "rose")})
    assert ids(tree) == [["dog", "poodle", "rose"], ["animal", "plant"]] and tree.parents == (
        (0, 0, 1),
    )


def test_a_leaf_at_the_top_stands_on_every_level():
    graph = nx.DiGraph([("a", "b"), ("b", "n1"), ("b", "n2")])
    graph.add_node("n3")
    assert ids(graph_tree(graph, "t", dict.fromkeys(["n1", "n2", "n3"], "leaf")))[1:] == [
        ["b", "n3"],
        ["a", "n3"],
    ]


def test_what_is_no_hierarchy_is_refused():
    leaves = {"n1": "apple", "n2": "lemon"}
    refused(
        lambda: graph_tree(
            nx.DiGraph([("a", "b"), ("b", "a"), ("a", "n1"), ("b", "n2")]), "t", leaves
        ),
        "cycle",
    )
    refused(lambda: graph_tree(nx.Graph([("a", "n1"), ("a", "n2")]), "t", leaves), "undirected")  # pyright: ignore
    refused(lambda: graph_tree(nx.DiGraph([("n1", "n2")]), "t", leaves), "n1", "needs a parent")
    refused(lambda: graph_tree(nx.DiGraph(), "t", {}), "no superclasses")


def test_a_saved_file_of_a_graphs_tree_is_read_back(tmp_path):
    graph = nx.DiGraph([("r", "a"), ("r", "b"), ("a", "n1"), ("b", "n2")])
    tree = graph_tree(graph, "t", {"n1": "apple", "n2": "lemon"})
    save_tree(tree, tmp_path / "t.json")
    assert load_tree(tmp_path / "t.json") == tree


def test_a_file_names_its_leaves_as_they_are_written(tmp_path, read):
    (tmp_path / "food.yaml").write_text(OUTLINE, encoding="utf8")
    assert set(read_tree(tmp_path / "food.yaml").ids) == {"apple", "lemon", "n3", "carrot", "dog"}
    saved = read("food.yaml", OUTLINE)
    save_tree(saved, tmp_path / "food.json")
    assert read_tree(tmp_path / "food.json") == saved
    refused(lambda: read_tree(tmp_path / "none.yaml"), "none.yaml: no such file")
