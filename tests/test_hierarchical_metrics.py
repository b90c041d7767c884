"""The hierarchical metrics of the field: by hand, against networkx, and against hiclass."""

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from hierclip.evaluation import Outcomes, mistakes
from hierclip.evaluation.matrix import top_down
from hierclip.trees import shared_nodes
from tests.test_trees import trees

DOG, CAT, EAGLE, CAR, BUS = range(5)
PERFECT = ("h_precision", "h_recall", "h_f1", "jaccard", "top_down")


def zeros(scores):
    """Return true leaves, which matter for equal logits alone."""
    return torch.zeros(len(scores), dtype=torch.int64)


def predict(paths, labels, leaves, greedy=None) -> Outcomes:
    """Outcomes of one condition in which `leaves` are predicted, and `greedy` from the root."""
    labels, leaves = np.array(labels), np.array(leaves)
    confidence = np.ones((1, len(labels), paths.shape[1]), np.float32)
    greedy = leaves if greedy is None else np.array(greedy)
    ranked, nodes = leaves[None, :, None], paths[leaves][None]
    return Outcomes(np.array(["clean"]), paths, labels, nodes, confidence, ranked, greedy[None])


def values(outcomes, resamples=20) -> dict[str, float]:
    found = mistakes(outcomes, "clean", resamples, 0)
    return {name: triple[0] for name, triple in found.items() if triple}


def test_every_metric_of_four_images_by_hand(tree):
    """The tree: thing > (animal > (mammal > (dog, cat), eagle), vehicle > (car, bus)).

    Eagle is on levels 0 and 1, vehicle on levels 1 and 2; each is one node.

    | true  | predicted | nodes of the true leaf | of the predicted one | shared | edges | height |
    |-------|-----------|------------------------|----------------------|--------|-------|--------|
    | dog   | dog       | dog, mammal, animal    | dog, mammal, animal  | 3      | 0     | 0      |
    | dog   | cat       | dog, mammal, animal    | cat, mammal, animal  | 2      | 2     | 1      |
    | eagle | dog       | eagle, animal          | dog, mammal, animal  | 1      | 3     | 2      |
    | car   | eagle     | car, vehicle           | eagle, animal        | 0      | 4     | 3      |
    """
    labels, leaves = [DOG, DOG, EAGLE, CAR], [DOG, CAT, DOG, EAGLE]
    found = values(predict(tree.paths, labels, leaves, greedy=[DOG, DOG, EAGLE, BUS]))
    assert found["h_precision"] == pytest.approx(6 / 11)
    assert found["h_recall"] == pytest.approx(6 / 10)
    assert found["h_f1"] == pytest.approx(12 / 21)
    assert found["jaccard"] == pytest.approx((1 + 2 / 4 + 1 / 4 + 0) / 4)
    assert found["tree_induced_error"] == pytest.approx((0 + 2 + 3 + 4) / 4)
    assert found["lca_height"] == pytest.approx((0 + 1 + 2 + 3) / 3 / 4)
    assert found["top_down"] == 3 / 4


def test_shared_nodes_of_the_tiny_tree_by_hand(tree):
    assert shared_nodes(tree.paths).tolist() == [
        [3, 2, 1, 0, 0],
        [2, 3, 1, 0, 0],
        [1, 1, 2, 0, 0],
        [0, 0, 0, 2, 1],
        [0, 0, 0, 1, 2],
    ]


def test_a_node_above_all_leaves_and_a_node_of_one_child_add_nothing():
    """Over (dog, cat, car): mammal is the only child of animal, all are things."""
    plain = np.array([[0, 0], [1, 0], [2, 1]])
    longer = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [2, 1, 1, 0]])
    assert shared_nodes(plain).tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 1]]
    assert np.array_equal(shared_nodes(longer), shared_nodes(plain))


@given(trees(), st.integers(0, 2**32 - 1))
def test_metrics_are_those_of_networkxs_ancestors_and_shortest_paths(tree, seed):
    rng, count = np.random.default_rng(seed), len(tree.leaves)
    labels, leaves = rng.integers(count, size=(2, 30))
    graph = tree.graph()
    edges = dict(nx.all_pairs_shortest_path_length(graph.to_undirected()))
    sets = [(nx.ancestors(graph, leaf) | {leaf}) - {tree.root.id} for leaf in tree.ids]
    pairs = [(sets[leaf], sets[label]) for leaf, label in zip(leaves, labels, strict=True)]
    common = sum(len(predicted & true) for predicted, true in pairs)
    precision = common / sum(len(predicted) for predicted, _ in pairs)
    recall = common / sum(len(true) for _, true in pairs)
    lengths = [edges[tree.ids[a]][tree.ids[b]] for a, b in zip(leaves, labels, strict=True)]
    heights = [
        graph.nodes[nx.lowest_common_ancestor(graph, tree.ids[a], tree.ids[b])]["level"]
        for a, b in zip(leaves, labels, strict=True)
    ]
    found = values(predict(tree.paths, labels, leaves))
    assert found["h_precision"] == pytest.approx(precision)
    assert found["h_recall"] == pytest.approx(recall)
    f1 = 2 * precision * recall / (precision + recall) if common else 0
    assert found["h_f1"] == pytest.approx(f1)
    assert found["jaccard"] == pytest.approx(np.mean([len(a & b) / len(a | b) for a, b in pairs]))
    assert found["tree_induced_error"] == pytest.approx(np.mean(lengths))
    assert found["lca_height"] == pytest.approx(np.mean(heights) / (tree.max_level + 1))


@given(trees(), st.integers(0, 2**32 - 1))
def test_top_down_walks_networkxs_tree_from_the_root_by_the_best_child(tree, seed):
    """Also where a child is on the next level, the one after, or is a leaf already."""
    rng = np.random.default_rng(seed)
    logits = [torch.from_numpy(rng.normal(size=(7, size))) for size in tree.sizes]
    graph, expected = tree.graph(), []
    index = [{node.id: k for k, node in enumerate(level)} for level in tree.levels]
    for n in range(7):
        node = tree.root.id
        for level in reversed(range(tree.max_level + 1)):
            here = [child for child in (node, *graph.successors(node)) if child in index[level]]
            node = max(here, key=lambda child: logits[level][n, index[level][child]])
        expected.append(tree.ids.index(node))
    assert top_down(logits, torch.from_numpy(tree.paths), zeros(logits[0])).tolist() == expected


def test_top_down_keeps_to_the_superclass_that_it_chose_first():
    """The leaf 2 scores best of all, but the superclass of leaves 0 and 1 beats its own."""
    paths = torch.tensor([[0, 0], [1, 0], [2, 1]])
    leaves = torch.tensor([[-5.0, -4.0, 9.0], [-5.0, -4.0, 9.0]])
    superclasses = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert top_down([leaves, superclasses], paths, zeros(leaves)).tolist() == [1, 2]


def test_in_a_flat_tree_all_are_accuracy_or_its_complement():
    labels, leaves = [0, 1, 2, 3, 3], [0, 1, 0, 1, 3]  # three of five are right
    scores = torch.eye(4)[leaves]
    paths = np.arange(4)[:, None]
    greedy = top_down([scores], torch.from_numpy(paths), zeros(scores)).numpy()
    found = values(predict(paths, labels, leaves, greedy))
    assert [found[name] for name in PERFECT] == pytest.approx([3 / 5] * 5)
    assert found["lca_height"] == pytest.approx(2 / 5)
    assert found["tree_induced_error"] == pytest.approx(2 * 2 / 5)


# What hiclass 5.0.8 gave for these paths, by `hiclass.metrics.precision(true, predicted)`, recall
# and f1 (average "micro"); a missing level is "". It needs scikit-learn, so it is no dependency.
HICLASS = {
    "h_precision": 0.6021505376344086,
    "h_recall": 0.5894736842105263,
    "h_f1": 0.5957446808510638,
}


def hiclass_case() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels, leaves = rng.integers(5, size=(2, 40))
    return labels, np.where(rng.random(40) < 0.4, labels, leaves)


def test_precision_recall_and_f1_are_those_of_hiclass(tree):
    found = values(predict(tree.paths, *hiclass_case()))
    assert {name: found[name] for name in HICLASS} == pytest.approx(HICLASS, abs=1e-12)


def test_intervals_of_perfect_predictions_keep_to_the_rule_of_three(tree):
    labels = [DOG, CAT, EAGLE, CAR, BUS] * 20
    found = mistakes(predict(tree.paths, labels, labels), "clean", 50, 0)
    for name in PERFECT:
        assert found[name] == pytest.approx([1, 0.97, 1]), name
    assert found["lca_height"] == pytest.approx([0, 0, 0.03])
    assert found["tree_induced_error"] == [0, 0, 0]


@pytest.mark.parametrize("name", ["h_precision", "h_recall", "h_f1", "jaccard", "top_down"])
def test_intervals_are_quantiles_over_images_drawn_again(tree, name):
    """Each resample is a set of images of its own, whose value `mistakes` gives."""
    rng, n = np.random.default_rng(3), 50
    labels, leaves, greedy = rng.integers(5, size=(3, n))
    _, low, high = mistakes(predict(tree.paths, labels, leaves, greedy), "clean", 300, 1)[name]
    drawn = np.random.default_rng(1).multinomial(n, np.full(n, 1 / n), size=300)
    again = [np.repeat(np.arange(n), row) for row in drawn]
    each = [
        values(predict(tree.paths, labels[k], leaves[k], greedy[k]), resamples=1)[name]
        for k in again
    ]
    assert [low, high] == pytest.approx(np.quantile(each, [0.025, 0.975]).tolist())


def test_of_equal_children_the_wrong_one_is_taken_from_the_root_down():
    paths = torch.tensor([[0, 0], [1, 0], [2, 1], [3, 1]])
    same = [torch.zeros(4, 4), torch.zeros(4, 2)]
    found = top_down(same, paths, torch.arange(4))
    assert not (found == torch.arange(4)).any() and (paths[found, 1] != paths[:, 1]).all()
