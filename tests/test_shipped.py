"""The trees that come with the package."""

import csv
from runpy import run_path

import pytest

from hierclip.trees import (
    TreeError,
    load,
    read_tree,
    save_csv,
    save_tree,
    shipped_trees,
    tree_from_graph,
)
from hierclip.trees.chosen import audit_trees, class_trees
from hierclip.trees.shipped import SHIPPED, class_synsets
from tests.conftest import LEAVES, ROOT, tiny_graph

WRITER = run_path(str(ROOT / "data/source/trees.py"))
BUILT = WRITER["build_trees"](ROOT)
EVERY = [(name, tree) for name, trees in shipped_trees().items() for tree in trees]


def test_every_set_has_a_tree():
    assert set(shipped_trees()) == set(BUILT)
    assert shipped_trees()["imagenet"] == ["wordnet", "look", "origin", "place", "use"]


@pytest.mark.parametrize("name", BUILT)
def test_a_committed_tree_is_the_one_that_notebook_20_builds(name, tmp_path):
    save_tree(BUILT[name], tmp_path / "tree.json")
    committed = SHIPPED / name / f"{BUILT[name].name}.json"
    message = "write them anew: python -m data.source.trees"
    assert committed.read_bytes() == (tmp_path / "tree.json").read_bytes(), message


@pytest.mark.parametrize(("name", "tree"), EVERY)
def test_a_committed_map_is_that_of_its_tree(name, tree, tmp_path):
    save_csv(load(name, tree), tmp_path / "map.csv")
    committed = ROOT / f"data/source/maps/{name}-{tree}.csv"
    assert committed.read_bytes() == (tmp_path / "map.csv").read_bytes()
    assert f"`{name}-{tree}.csv`" in (ROOT / "data/source/maps/README.md").read_text("utf8")


def test_classes_are_found_by_the_names_of_published_sets():
    synsets = class_synsets()
    for leaf in load("emoji").leaves:  # identified by synset
        assert synsets.get(leaf.name.lower(), leaf.id) == leaf.id
    assert synsets["tennis ball"] == "tennis_ball.n.01" and synsets["german shepherd"]
    assert "bus" not in synsets  # ImageNet's and the default's are two


def test_a_folder_of_common_names_has_a_tree_without_a_full_wordnet_and_it_is_said():
    leaves = {name: name for name in ("African elephant", "lion", "tabby", "pizza", "teapot")}
    (tree,), about = audit_trees(leaves, [], None, None)
    assert tree.name == "wordnet" and tree.max_level >= 1 and set(tree.ids) == set(leaves)
    meant = (
        "names mean what they do in ImageNet and the like: African elephant african_elephant.n.01,"
    )
    assert meant in about
    (tree,), about = audit_trees(
        {"n02129165": "lion", "n07873807": "pizza", "n02123045": "tabby"}, [], None, None
    )
    assert tree.name == "wordnet" and "names mean" not in about
    (tree,), about = audit_trees({name: name for name in ("lion", "zebu", "pizza")}, [], None, None)
    assert tree.name == "leaves" and "no synset chosen for zebu" in about


def test_trees_of_a_set_have_one_order_of_leaves():
    own = load("imagenet")
    assert load("imagenet", "wordnet") == own
    assert load("imagenet", "use").ids == own.ids and load("imagenet", "use").name == "use"


def test_a_map_has_a_row_a_leaf_and_a_column_a_level(tmp_path):
    save_csv(tree_from_graph(tiny_graph(), "tiny", LEAVES), tmp_path / "new/map.csv")
    with (tmp_path / "new/map.csv").open(encoding="utf8") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert rows["dog"] == {"class": "dog", "name": "dog", "level 1": "mammal", "level 2": "animal"}
    assert rows["eagle"]["level 1"] == "eagle" and len(rows) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cifar-100"], r"^no set of trees 'cifar-100'; did you mean cifar100"),
        (["cifar10", "uses"], r"^no tree of cifar10 'uses'; known are wordnet$"),
        (["../wordnet"], r"^no set of trees '../wordnet'"),
    ],
)
def test_unknown_trees_are_refused(arguments, message):
    with pytest.raises(TreeError, match=message):
        load(*arguments)


def test_classes_are_found_by_identifier_or_by_name_and_keep_their_order():
    (tree,) = class_trees({"ship": "ship", "a": "dog", "b": "cat"}, ["cifar10"])
    above = dict(zip(tree.ids, tree.paths[:, 1], strict=True))
    assert set(tree.ids) == {"ship", "a", "b"} and above["a"] == above["b"] != above["ship"]
    assert {leaf.id: leaf.name for leaf in tree.leaves} == {"ship": "ship", "a": "dog", "b": "cat"}
    wnids = {"n02085620": "my own word", "n02123045": "tabby", "n03344393": "fire boat"}
    trees = class_trees(wnids, ["imagenet", "imagenet/use"])
    assert trees[0].ids == trees[1].ids and [tree.name for tree in trees] == ["wordnet", "use"]
    assert {leaf.id: leaf.name for leaf in trees[1].leaves} == wnids


def test_classes_that_the_tree_lacks_are_named():
    with pytest.raises(TreeError, match=r"^tree cifar10: it has no class zebra, x$"):
        class_trees({"cat": "cat", "zebra": "zebra", "x": "whale"}, ["cifar10"])


def test_two_classes_that_are_one_of_the_trees_are_refused():
    with pytest.raises(TreeError, match="^tree wordnet: leaf dog is missing from the tree"):
        class_trees({"dog": "dog", "hound": "dog", "cat": "cat"}, ["cifar10"])


@pytest.mark.parametrize(("name", "tree"), [("cifar10", "wordnet"), ("emoji", "use")])
def test_a_map_is_read_back_as_the_classes_and_superclasses_that_it_shows(name, tree):
    whole = load(name, tree)
    again = read_tree(ROOT / f"data/source/maps/{name}-{tree}.csv")
    assert again.ids == whole.ids and again.sizes[0] == whole.sizes[0]
    coarsest = [whole.levels[-1][k].name for k in whole.paths[:, -1]]
    assert [again.levels[-1][k].name for k in again.paths[:, -1]] == coarsest


def test_widths_cut_a_tree_that_comes_with_the_package():
    classes = {name: name for name in ("cat", "dog", "ship", "truck", "airplane")}
    (tree,) = class_trees(classes, ["cifar10"], None, [2])
    assert tree.sizes == (5, 2)


def test_a_folder_of_images_named_like_a_set_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10").mkdir()
    (tree,) = class_trees({"cat": "cat", "dog": "dog", "ship": "ship"}, ["cifar10"])
    assert tree.sizes[0] == 3


def test_a_file_goes_before_a_set_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10").write_text("", encoding="utf8")
    with pytest.raises(TreeError, match="^cifar10: no reader for ''"):
        class_trees({"cat": "cat", "dog": "dog"}, ["cifar10"])
