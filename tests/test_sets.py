"""A tree for every set of images: over all published classes, from the committed files alone."""

import csv
import shutil
from collections import Counter

import pytest
import yaml
from torchvision.datasets import Flowers102

from hierclip.data.sources import PUBLISHED, imagenet_names, published_names
from hierclip.trees import TreeError, set_synsets
from hierclip.trees.wordnet import EXCERPT, WordNet
from tests.conftest import ROOT, notebook_functions

SETS = "data/source/sets"
WIDTHS = "widths.yaml"
notebook = notebook_functions("20_trees")
set_tree = notebook["set_tree"]
set_forest = notebook["set_forest"]

LISTED = {
    "cifar10": 10,
    "cifar100": 100,
    "stl10": 10,
    "caltech101": 101,
    "caltech256": 256,
    "pets": 37,
}
OUTLINED = {
    "food101": 101,
    "flowers102": 102,
    "aircraft": 100,
    "cars": 196,
    "sun397": 397,
    "eurosat": 10,
    "dtd": 47,
}
OUTLINED |= {"pcam": 2, "country211": 211}


@pytest.fixture(scope="module")
def excerpt():
    return WordNet(EXCERPT)


def classes_of(name: str) -> dict[str, str]:
    """The published classes, with the names that prompts use; torchvision's others have none."""
    return {key: value for key, value in published_names(ROOT, name).items() if value}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_set_has_a_tree_over_all_of_its_classes(name, excerpt):
    classes = classes_of(name)
    tree = set_tree(ROOT, name, classes, wordnet=excerpt)
    assert len(classes) == (LISTED | OUTLINED)[name] and set(tree.ids) == set(classes)
    assert {leaf.id: leaf.name for leaf in tree.leaves} == classes
    assert not named_twice(tree)
    assert tree.max_level >= 1 and (
        name == "pcam" or all(a > b for a, b in zip(tree.sizes, tree.sizes[1:], strict=False))
    )
    singles = sum(
        1
        for l in range(1, tree.max_level + 1)
        for k in range(tree.sizes[l])
        if (tree.paths[:, l] == k).sum() == 1
    )
    assert name in LISTED or name == "pcam" or not singles


def named_twice(tree) -> list[str]:
    """The names that two nodes of a level share, as a tokenizer sees them."""
    return [
        name
        for level in tree.levels
        for name, count in Counter(" ".join(node.name.lower().split()) for node in level).items()
        if count > 1
    ]


def test_flowers_are_torchvisions():
    assert list(classes_of("flowers102")) == Flowers102.classes


@pytest.mark.parametrize("name", LISTED)
def test_no_two_classes_of_a_set_share_a_synset(name):
    own, under = set_synsets(ROOT / SETS / f"{name}.csv")
    assert set(own) | set(under) == set(classes_of(name))
    assert len(set(own.values())) == len(own) and not set(own) & set(under) and all(under.values())


def test_a_class_that_wordnet_lacks_stands_under_what_the_table_says(excerpt):
    tree = set_tree(ROOT, "pets", classes_of("pets"), wordnet=excerpt)
    cats = ["Bengal", "Siamese", "Sphynx"]
    top = {
        leaf.id: tree.levels[-1][tree.paths[row, -1]].name for row, leaf in enumerate(tree.leaves)
    }
    assert {top[cat] for cat in cats} == {"domestic cat"} and top["Havanese"] == top[
        "Beagle"
    ] == "dog"


@pytest.mark.parametrize(("name", "count"), [("imagenet", 1000), ("tiny-imagenet", 200)])
def test_imagenets_get_wordnets(name, count, excerpt):
    names = imagenet_names()
    if name == "tiny-imagenet":
        with (ROOT / "data/source/tiny-imagenet.csv").open(encoding="utf8") as lines:
            names = {row["wnid"]: row["name"] for row in csv.DictReader(lines)}
    tree = set_tree(ROOT, name, names, wordnet=excerpt)
    widths = yaml.safe_load((ROOT / SETS / WIDTHS).read_text(encoding="utf8"))[name]
    assert not named_twice(tree)
    assert len(tree.ids) == count and all(
        size <= most for size, most in zip(tree.sizes[1:], widths, strict=True)
    )


def test_part_of_a_set_gets_a_tree_too(excerpt):
    classes = {name: name for name in ("cat", "dog", "truck", "ship")}
    assert set(set_tree(ROOT, "cifar10", classes, [2], wordnet=excerpt).ids) == set(classes)


def test_an_unknown_class_and_missing_widths_are_refused(excerpt):
    with pytest.raises(TreeError, match=r"cifar10\.csv: no line for class zebra$"):
        set_tree(ROOT, "cifar10", {"cat": "cat", "zebra": "zebra"}, wordnet=excerpt)
    with pytest.raises(TreeError, match="^set mine: no widths of levels; known are cifar10, "):
        set_tree(ROOT, "mine", {"dog.n.01": "dog", "cat.n.01": "cat"}, wordnet=excerpt)


def test_a_tree_without_an_outline_is_said_so(excerpt):
    leaves = {"cat.n.01": "cat", "dog.n.01": "dog", "car.n.01": "car"}
    with pytest.raises(TreeError, match=r"trees/emoji/oak\.yaml: no such file$"):
        set_forest(ROOT, "emoji", leaves, ["wordnet", "oak"], [2])


def test_a_project_is_read_whole_whichever_one_we_are_in(tmp_path, monkeypatch):
    """It has an outline, table and widths of its own; we are in another project."""
    shutil.copytree(ROOT / SETS, tmp_path / SETS)
    monkeypatch.setattr("hierclip.trees.wordnet.full_folder", lambda: None)
    monkeypatch.chdir(ROOT)
    (tmp_path / SETS / "mine.yaml").write_text("big: [bus, car]\nsmall: [ant]\n", encoding="utf8")
    assert set_tree(tmp_path, "mine", {name: name for name in ("bus", "car", "ant")}).sizes == (
        3,
        2,
    )
    leaves = {"cat.n.01": "cat", "lion.n.01": "lion", "dog.n.01": "dog", "truck.n.01": "truck"}
    (tmp_path / SETS / WIDTHS).write_text("kinds: [3, 2]\n", encoding="utf8")
    assert set_tree(tmp_path, "kinds", leaves).sizes == (4, 3, 2)


def test_trees_know_nothing_of_parameters():
    for file in (ROOT / "lib/hierclip/trees").glob("*.py"):
        assert "hierclip.config" not in file.read_text(encoding="utf8"), file
