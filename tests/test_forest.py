"""Several trees over the same leaves, seen as one list of levels."""

import pytest
import torch

from hierclip import models
from hierclip.data import load_dataset
from hierclip.models import CosineHead, EuclideanHead, PoincareHead, Towers
from hierclip.trees import (
    TreeError,
    check_forest,
    forest_columns,
    forest_levels,
    forest_paths,
    load_forest,
    load_tree,
    read_tree,
    save_tree,
    tree_from_graph,
    wordnet_tree,
)
from tests.conftest import LEAVES, sizes_graph

TEMPLATE = "a picture of a {}"


@pytest.fixture
def turned(forest):
    """The forest with its second tree's leaves in another order."""
    return [forest[0], tree_from_graph(sizes_graph(), "sizes", LEAVES[::-1])]


def test_levels_are_the_leaves_and_then_each_trees_own_above_them(forest):
    assert forest_levels(forest) == [(0, 0), (0, 1), (0, 2), (1, 1)]
    assert forest_levels(forest[::-1]) == [(0, 0), (0, 1), (1, 1), (1, 2)]


def test_paths_are_each_leafs_nodes_at_every_level_of_the_list(forest):
    # dog, cat, eagle, car, bus; mammal, eagle, vehicle; animal, vehicle; small, big
    assert forest_paths(forest).tolist() == [
        [0, 0, 0, 0],
        [1, 0, 0, 0],
        [2, 1, 0, 0],
        [3, 2, 1, 1],
        [4, 2, 1, 1],
    ]


def test_columns_say_where_the_levels_of_a_tree_stand(forest):
    columns = forest_columns(forest)
    assert columns == {"tiny": [0, 1, 2], "sizes": [0, 3]}
    for tree in forest:
        assert (forest_paths(forest)[:, columns[tree.name]] == tree.paths).all()


def test_a_forest_of_one_tree_is_that_tree(tree):
    assert forest_levels([tree]) == [(0, 0), (0, 1), (0, 2)]
    assert (forest_paths([tree]) == tree.paths).all()
    assert forest_columns([tree]) == {"tiny": [0, 1, 2]}


@pytest.mark.parametrize("function", [check_forest, forest_levels, forest_paths, forest_columns])
def test_trees_with_their_leaves_in_another_order_are_no_forest(turned, function):
    with pytest.raises(
        TreeError, match="needs trees over the same leaves in the same order; given tiny, sizes$"
    ):
        function(turned)


def test_no_tree_is_no_forest():
    with pytest.raises(TreeError, match="given none$"):
        check_forest([])


def test_trees_over_fewer_leaves_are_no_forest(forest):
    with pytest.raises(TreeError, match="given tiny, sizes"):
        check_forest([forest[0], forest[1].restrict(LEAVES[:3])])


def test_a_forest_is_read_back_from_its_files(forest, tmp_path):
    for tree in forest:
        save_tree(tree, tmp_path / f"{tree.name}.json")
    loaded = load_forest(tmp_path, ["tiny", "sizes"])
    assert loaded == forest and [tree.name for tree in load_forest(tmp_path, ["sizes"])] == [
        "sizes"
    ]


def test_files_that_are_no_forest_are_refused(turned, tmp_path):
    for tree in turned:
        save_tree(tree, tmp_path / f"{tree.name}.json")
    with pytest.raises(TreeError, match="given tiny, sizes"):
        load_forest(tmp_path, ["tiny", "sizes"])


@pytest.mark.parametrize(
    "head",
    [
        CosineHead(20.0),
        PoincareHead(1.0, 1.5, 2.0, 1.0, 7.0),
        EuclideanHead(1.0, 1.5, 2.0, 1.0, 7.0, "free", 3.0, 4.0),
    ],
    ids=["cosine", "poincare", "euclidean"],
)
def test_the_classifier_of_a_forest_gives_the_logits_of_each_trees_own(backbone, forest, head):
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = models.Model(backbone, head, "").classifier(forest, TEMPLATE)(images)
    assert [level.shape[1] for level in logits] == [5, 3, 2, 2]
    for tree in forest:
        own = models.Model(backbone, head, "").classifier(tree, TEMPLATE)(images)
        for mine, column in zip(own, forest_columns(forest)[tree.name], strict=True):
            torch.testing.assert_close(logits[column], mine)


def test_towers_sort_the_texts_of_every_tree_and_level(backbone, forest):
    towers = Towers(backbone, forest, TEMPLATE)
    with torch.no_grad():
        embeddings, local, texts = towers(torch.rand(2, 3, 32, 32))
        sorted_ = towers.by_tree(texts)
        assert (tuple(embeddings.shape), local.numel(), tuple(texts.shape)) == (
            (2, 64),
            0,
            (17, 64),
        )
        for tree, levels in zip(forest, sorted_, strict=True):
            for nodes, rows in zip(tree.levels, levels, strict=True):
                expected = models.encode_texts(
                    backbone, [TEMPLATE.format(node.name) for node in nodes]
                )
                torch.testing.assert_close(rows, expected)


def test_the_committed_wordnet_tree_is_the_one_that_wordnet_gives(params, root):
    rows = load_dataset(params.data.pretraining, root).leaves
    made = wordnet_tree("wordnet", {leaf.id: leaf.name for leaf in rows}, params.trees.widths)
    assert load_tree(root / "data/source/trees/emoji/wordnet.json") == made


def test_the_committed_outlines_are_trees_over_all_leaves_with_names_of_their_own(params, root):
    leaves = {leaf.id: leaf.name for leaf in load_dataset(params.data.pretraining, root).leaves}
    for name in params.trees.names[1:]:
        tree = read_tree(root / f"data/source/trees/emoji/{name}.yaml", leaves)
        assert tree.ids == tuple(leaves) and tree.max_level == 2
        assert list(tree.sizes) == sorted(tree.sizes, reverse=True)
        words = [node.name for level in tree.levels for node in level]
        assert len(set(words)) == len(words)
