"""How bad mistakes are: by hand on four images, and against plain loops."""

import networkx as nx
import numpy as np
import pytest

from hierclip.evaluation import Outcomes, mistakes

KEYS = ["severity", "hd_1", "hd_5", "hd_20", "consistent", "path_inconsistency", "ece"]
HIERARCHICAL = [
    "tree_induced_error",
    "h_precision",
    "h_recall",
    "h_f1",
    "jaccard",
    "lca_height",
    "top_down",
]  # tests/test_hierarchical_metrics.py


def one(tree, labels, nodes, confidence, ranked) -> Outcomes:
    """Outcomes of a single condition."""
    spread = np.asarray(confidence, np.float32)[None, :, None].repeat(tree.max_level + 1, 2)
    return Outcomes(
        np.array(["clean"]),
        tree.paths,
        np.array(labels),
        np.array(nodes)[None],
        spread,
        np.array(ranked)[None],
        np.array(ranked)[None, :, 0],
    )


def some(tree, seed, n=60, calibrated=False) -> Outcomes:
    rng, count = np.random.default_rng(seed), len(tree.leaves)
    labels, ranked = (
        rng.integers(count, size=n),
        rng.permuted(np.arange(count)[None].repeat(n, 0), axis=1),
    )
    upper = np.stack([rng.integers(size, size=n) for size in tree.sizes[1:]], axis=1)
    paths = tree.paths[ranked[:, 0]]
    nodes = np.where(rng.random((n, 1)) < 0.5, paths, np.concatenate([paths[:, :1], upper], axis=1))
    return one(tree, labels, nodes, rng.random(n), ranked)


def test_figures_of_four_pictures_by_hand(tree):
    """Leaves dog, cat, eagle, car, bus; the dog meets them at 0, 1, 2, 3, 3."""
    dog, cat, eagle, car, bus = range(5)
    ranked = [[dog, cat, eagle, car, bus], [car, dog, cat, eagle, bus], [bus, car, dog, cat, eagle]]
    ranked += [[eagle, dog, cat, car, bus]]
    nodes = [
        [dog, 0, 0],
        [car, 2, 1],
        [bus, 2, 0],
        [eagle, 1, 0],
    ]  # the bus is a vehicle, and then an animal
    found = mistakes(
        one(tree, [dog, dog, car, eagle], nodes, [0.95, 0.5, 0.5, 0.9], ranked), "clean", 50, 0
    )
    assert set(found) == {*KEYS, *HIERARCHICAL}
    values = {key: found[key][0] for key in KEYS}
    assert values == pytest.approx(
        {
            "severity": (3 + 1) / 2,  # the car for a dog, the bus for a car
            "hd_1": (0 + 3 + 1 + 0) / 4,
            "hd_5": (9 + 9 + 10 + 10) / 5 / 4,
            "hd_20": (9 + 9 + 10 + 10) / 5 / 4,  # of five, that is all
            "consistent": 2 / 4,
            "path_inconsistency": 1 / 4,
            "ece": (abs(0.95 - 1) + abs(0.5 + 0.5 - 0) + abs(0.9 - 1)) / 4,
        }
    )


@pytest.mark.parametrize("seed", range(5))
def test_severity_and_distances_are_the_heights_of_networkxs_lowest_common_ancestors(tree, seed):
    out, graph = some(tree, seed), tree.graph()
    ids = [leaf.id for leaf in tree.leaves]

    def height(a, b):
        return graph.nodes[nx.lowest_common_ancestor(graph, ids[a], ids[b])]["level"]

    heights = [
        [height(label, k) for k in row]
        for label, row in zip(out.labels, out.ranked[0], strict=True)
    ]
    found = mistakes(out, "clean", 20, 0)
    assert found["severity"][0] == pytest.approx(np.mean([row[0] for row in heights if row[0]]))
    for k in (1, 5, 20):
        assert found[f"hd_{k}"][0] == pytest.approx(np.mean([np.mean(row[:k]) for row in heights]))


@pytest.mark.parametrize("seed", range(5))
def test_consistency_and_contradictions_are_what_a_loop_over_paths_finds(tree, seed):
    out, found = some(tree, seed), mistakes(some(tree, seed), "clean", 20, 0)
    paths = out.paths.tolist()
    parts = {tuple(path[l : l + 2]) + (l,) for path in paths for l in range(tree.max_level)}
    rows = [
        (row, paths[label]) for row, label in zip(out.nodes[0].tolist(), out.labels, strict=True)
    ]
    broken = [
        any((row[l], row[l + 1], l) not in parts for l in range(tree.max_level)) for row, _ in rows
    ]
    assert found["consistent"][0] == np.mean([row == path for row, path in rows])
    assert found["path_inconsistency"][0] == np.mean(broken)
    assert 0 < np.mean(broken) < 1


@pytest.mark.parametrize("seed", range(5))
def test_calibration_error_is_that_of_a_loop_over_fifteen_bins(tree, seed):
    out, total = some(tree, seed), 0.0
    confidence, right = out.confidence[0, :, 0], out.ranked[0, :, 0] == out.labels
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert mistakes(out, "clean", 20, 0)["ece"][0] == pytest.approx(total)


def test_full_confidence_is_in_the_last_bin(tree):
    out = one(tree, [0, 0], [[0, 0, 0]] * 2, [1.0, 1.0], [[0, 1, 2, 3, 4]] * 2)
    assert mistakes(out, "clean", 20, 0)["ece"][0] == 0


def test_there_is_no_severity_where_there_is_no_mistake(tree):
    out = one(tree, [0, 2], [[0, 0, 0], [2, 1, 0]], [0.5, 0.7], [[0, 1, 2, 3, 4], [2, 0, 1, 3, 4]])
    found = mistakes(out, "clean", 20, 0)
    assert found["severity"] is None and found["hd_1"][0] == 0 and found["consistent"][0] == 1


def test_resamples_without_a_mistake_do_not_spoil_the_interval_of_the_severity(tree):
    nodes, ranked = [[0, 0, 0]] * 4 + [[1, 0, 0]], [[0, 1, 2, 3, 4]] * 4 + [[1, 0, 2, 3, 4]]
    assert mistakes(one(tree, [0] * 5, nodes, [0.5] * 5, ranked), "clean", 99, 0)["severity"] == [
        1,
        1,
        1,
    ]


@pytest.mark.parametrize("seed", range(8))
def test_intervals_hold_the_values_and_repeat(tree, seed):
    out = some(tree, seed, n=300)
    found = mistakes(out, "clean", 400, 1)
    assert found == mistakes(out, "clean", 400, 1)
    for key in (*KEYS, *HIERARCHICAL):
        value, low, high = found[key]
        assert low <= value <= high, key


@pytest.mark.parametrize("seed", range(4))
def test_the_interval_of_a_calibrated_models_error_holds_it(tree, seed):
    """Its error is all noise, of which a resample has more."""
    rng, n = np.random.default_rng(seed), 300
    confidence = rng.uniform(0.2, 1, n)
    lead = np.where(rng.random(n) < confidence, 0, 1)  # the label is 0
    ranked = [[k, 1 - k, 2, 3, 4] for k in lead]
    value, low, high = mistakes(
        one(tree, [0] * n, tree.paths[lead], confidence, ranked), "clean", 400, 0
    )["ece"]
    assert low <= value <= high
