import json

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.stats import norm
from torch import nn

from hierclip.attacks import Budget
from hierclip.data import ImageSet
from hierclip.evaluation import (
    Outcomes,
    intervals,
    level_metrics,
    mistakes,
    path_robust,
    records,
)
from hierclip.evaluation.records import (
    Record,
    RecordError,
    compare,
    load_records,
    parse_record,
    save_record,
)
from hierclip.models import Classifier, CosineHead
from tests.conftest import notebook_functions

report = notebook_functions("70_report")
holm, mcnemar = report["holm"], report["mcnemar"]
PATHS = torch.tensor([[0, 0], [1, 0], [2, 1]])
BUDGET = Budget(eps=0.1, step=0.05, steps=4, restarts=1, suite=("pgd_margin",), queries=20)


def outcomes(seed=0, n=40, share=0.9) -> Outcomes:
    """Of eight leaves in pairs and fours; nodes are right, clean and under each attack, with that
    probability.
    """
    rng = np.random.default_rng(seed)
    conditions = np.array(["clean", "direct-0", "direct-1", "roll_up-1", "direct-2", "roll_up-2"])
    paths, labels = np.arange(8)[:, None] // [1, 2, 4], rng.integers(8, size=n)
    missed = rng.random((6, n, 3)) >= share
    nodes = (paths[labels] + missed * rng.integers(1, [8, 4, 2], size=(6, n, 3))) % [8, 4, 2]
    ranked = np.argsort(rng.random((6, n, 8)), axis=2)
    ranked = np.stack([[[lead, *(k for k in rest if k != lead)] for lead, rest in zip(a, b, strict=True)]
                       for a, b in zip(nodes[..., 0], ranked, strict=True)])  # fmt: skip
    return Outcomes(
        conditions,
        paths,
        labels,
        nodes,
        rng.random((6, n, 3), dtype=np.float32),
        ranked,
        nodes[..., 0],
    )


def judged(clean: np.ndarray, robust: np.ndarray) -> Outcomes:
    """Outcomes that are right, read directly, where clean (N, L + 1) and robust (L + 1, N, L + 1)
    say.
    """
    top, n = clean.shape[1] - 1, len(clean)
    attacks = [
        (f"{kind}-{level}", robust[level])
        for level in range(top + 1)
        for kind in ("direct", "roll_up")[: level + 1]
    ]
    nodes = np.stack([clean, *(right for _, right in attacks)]).astype(int)
    paths = np.arange(2)[:, None].repeat(top + 1, 1)
    conditions = np.array(["clean", *(name for name, _ in attacks)])
    ranked = np.stack([nodes[..., 0], 1 - nodes[..., 0]], axis=-1)
    return Outcomes(
        conditions,
        paths,
        np.ones(n, int),
        nodes,
        np.ones(nodes.shape, np.float32),
        ranked,
        nodes[..., 0],
    )


def classifier() -> Classifier:
    """Reads the mean of each colour as the embedding; leaves are red, green and blue."""
    encoder = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    texts = [torch.eye(3), torch.tensor([[1.0, 1, 0], [0, 0, 1]])]
    return Classifier(encoder, CosineHead(10.0), texts)


def random_images(strength=0.8, n=6) -> ImageSet:
    labels = torch.arange(n) % 3
    images = torch.full((n, 3, 4, 4), 40, dtype=torch.uint8)
    images[torch.arange(n), labels] = int(40 + 200 * strength)
    return ImageSet(images, labels)


def test_figures_are_means_of_outcomes():
    out = outcomes()
    found = level_metrics(out, "direct")
    assert np.allclose(found["robust"], out.robust["direct"].mean(1))
    assert found["worst_level"] == pytest.approx(min(np.diag(out.robust["direct"].mean(1))))
    assert found["path_robust"] == pytest.approx(path_robust(out, "direct").mean())


def test_path_robust_asks_for_every_level_under_every_attack():
    robust = np.ones((2, 2, 2), bool)
    robust[1, 0, 0] = False  # a superclass attack breaks the leaf of image 0
    assert path_robust(judged(np.ones((2, 2), bool), robust), "direct").tolist() == [False, True]


def test_intervals_hold_the_figures_and_shrink_with_more_images():
    def width(n):
        out = outcomes(n=n)
        low, high = intervals(out, "direct", 500, 0)["path_robust"]
        assert low <= level_metrics(out, "direct")["path_robust"] <= high
        return high - low

    assert width(1600) < width(100) / 2


def test_bootstrap_interval_of_a_share_is_the_normal_one():
    out = outcomes(n=2000)
    p = out.clean["direct"][:, 0].mean()
    low, high = intervals(out, "direct", 4000, 0)["clean"][0]
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(p * (1 - p) / 2000), rel=0.1)


def test_interval_of_nothing_follows_the_rule_of_three():
    bounds = intervals(
        judged(np.zeros((60, 2), bool), np.zeros((2, 60, 2), bool)), "direct", 100, 0
    )["clean"]
    assert np.allclose(bounds, [[0, 3 / 60]] * 2)


@pytest.mark.parametrize("n", [6, 49, 60, 1000])
def test_interval_of_everything_follows_the_rule_of_three_and_is_not_stuck_at_one(n):
    sure = judged(np.ones((n, 2), bool), np.ones((2, n, 2), bool))
    assert level_metrics(sure, "direct")["path_robust"] == 1
    bounds = intervals(sure, "direct", 100, 0)
    assert bounds["path_robust"] == bounds["worst_level"] == [1 - 3 / n, 1]
    assert np.array_equal(bounds["clean"], [[1 - 3 / n, 1]] * 2)
    assert np.array_equal(bounds["robust"], [[[1 - 3 / n, 1]] * 2] * 2)


@pytest.mark.parametrize("n", [1, 2])
def test_intervals_of_very_few_pictures_stay_between_nothing_and_everything(n):
    for sure in (np.ones, np.zeros):
        low, high = intervals(judged(sure((n, 1), bool), sure((1, n, 1), bool)), "direct", 10, 0)[
            "path_robust"
        ]
        assert 0 <= low <= high <= 1


def test_paired_difference_is_that_of_the_means_and_knows_its_pairs():
    rng = np.random.default_rng(0)
    theirs = rng.random(1000) < 0.5
    ours = theirs | (rng.random(1000) < 0.04)  # better on a few images, worse on none
    paired_difference = report["paired_difference"]
    mean, low, high = paired_difference(ours, theirs, 500, 0)
    assert mean == pytest.approx(ours.mean() - theirs.mean())
    assert 0 < low < mean < high < 0.04
    with pytest.raises(ValueError, match="could not be broadcast"):
        paired_difference(ours, theirs[1:], 500, 0)


def test_intervals_are_shaped_like_their_figures():
    out = outcomes()
    found, bounds = level_metrics(out, "roll_up"), intervals(out, "roll_up", 50, 0)
    for name, value in found.items():
        assert np.shape(bounds[name]) == (*np.shape(value), 2)


def test_mcnemar_is_the_binomial_of_the_pairs_that_differ():
    ours = np.array([True] * 8 + [False] * 2 + [True] * 30 + [False] * 9)
    theirs = np.array([False] * 8 + [True] * 2 + [True] * 30 + [False] * 9)
    assert (
        mcnemar(ours, theirs) == mcnemar(theirs, ours) == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    )
    assert mcnemar(ours[:3], theirs[:3]) == pytest.approx(2 / 2**3)


def test_mcnemar_of_pairs_that_never_differ_is_one():
    assert mcnemar(np.array([True, False]), np.array([True, False])) == 1.0
    assert (
        mcnemar(np.array([True, False]), np.array([False, True])) == 1.0
    )  # and of as many of either kind


@pytest.mark.parametrize(
    ("raw", "adjusted"),
    [
        (
            {"a": 0.01, "b": 0.02, "c": 0.03, "d": 0.04},
            {"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.06},
        ),
        ({"a": 0.04, "b": 0.01}, {"a": 0.04, "b": 0.02}),
        ({"a": 0.5, "b": 0.6, "c": 0.001}, {"a": 1.0, "b": 1.0, "c": 0.003}),
        ({"a": 0.02, "b": 0.02}, {"a": 0.04, "b": 0.04}),
        ({"a": 0.3}, {"a": 0.3}),
        ({}, {}),
    ],
)
def test_holm_on_known_examples(raw, adjusted):
    assert holm(raw) == pytest.approx(adjusted)
    assert list(holm(raw)) == list(raw)


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=9))
def test_holm_is_the_running_maximum_of_what_is_left_times_p(raw):
    found, p = holm(raw), np.sort(list(raw.values()))
    by_hand = np.minimum(1, np.maximum.accumulate(p * np.arange(len(p), 0, -1))) if len(p) else p
    assert list(found) == list(raw)
    assert np.sort(list(found.values())) == pytest.approx(by_hand)
    for one in raw:
        assert raw[one] <= found[one] <= 1
        assert all(found[one] <= found[other] for other in raw if raw[one] <= raw[other])


def tree(direct: float, roll_up: float) -> dict:
    """What a record says of a tree with this path-robust accuracy."""
    both = {"direct": direct, "roll_up": roll_up}
    bounds = {reading: (value - 0.125, value + 0.125) for reading, value in both.items()}
    clean, robust = (
        dict.fromkeys(both, [0.75, 0.875]),
        {k: [[v, 0.75], [0.75, v]] for k, v in both.items()},
    )
    shares = {"clean": clean, "robust": robust, "worst_level": both, "path_robust": both}
    return {"images": 8, "levels": [4, 2], **shares, "intervals": bounds}


def record(**changes) -> Record:
    out = outcomes()
    both = {reading: level_metrics(out, reading) for reading in out.clean}
    entries = {
        "dataset": "emoji",
        "subset": "seen",
        "method": "tecoa",
        "seed": 0,
        "images": 40,
        "threat_model": {
            "norm": "Linf", "eps": "4/255", "step": "1/255", "steps": 10, "restarts": 1, "suite": ["apgd_ce"],
            "queries": 9, "resolution": 32, "prompt": "a {}", "precision": "32-true", "seed": 0,
        },
        "trees": {"wordnet": "0", "emoji": "1"},
        "levels": [8, 4, 2],
        **{key: {reading: values[key] for reading, values in both.items()} for key in both["direct"]},
        "intervals": {reading: intervals(out, reading, 200, 0) for reading in out.clean},
        "forest": {
            "wordnet": tree(0.5, 0.3),
            "emoji": tree(0.4, 0.6),
        },
        "superclass": {"within_superclass-1": (0.8, 0.7, 0.9), "within_superclass-2": (0.7, 0.6, 0.8), "all_levels-2": (0.5, 0.4, 0.6)},
        "levels_transfer": {reading: out.robust_to([reading])[reading].mean(1).tolist() for reading in out.clean},
        "mistakes": {key: mistakes(out, c, 200, 0) for key, c in (("clean", "clean"), ("attacked", "direct-0"))},
        "audit": {
            "images": 4, "budgets": {"0/255": 1, "64/255": 0}, "steps": {"10": 0.5, "40": 0.5},
            "restarts": {"1": 0.5, "5": 0.5},
            "checks": {"clamps": {"value": 0, "high": 0.6, "limit": 0.02, "passed": True}},
        },
        "settings": {},
        "hashes": {},
        "versions": {},
        "git": "",
    }  # fmt: skip
    return Record.model_validate(entries | changes)


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(records, "PACKAGES", ("torch", "no-such-package"))
    assert list(records.versions()) == ["python", "torch"]


def test_record_comes_back_from_its_file(tmp_path):
    made = record()
    path = save_record(made, tmp_path)
    assert path == tmp_path / "tecoa-0/seen.json"
    back = load_records(tmp_path)[0]
    assert back.path_robust["direct"] == pytest.approx(made.path_robust["direct"], abs=1e-6)


def test_worst_tree_is_that_of_the_least_path_robust_accuracy_in_a_reading():
    assert record().worst_tree("direct") == "emoji"
    assert record().worst_tree("roll_up") == "wordnet"


def test_an_audit_names_the_checks_that_failed():
    made = record().audit
    assert made.failed == []
    bad = {"steps": {"value": 0.5, "high": 0.9, "limit": 0.05, "passed": False}}
    changed = made.model_dump() | {"checks": made.model_dump()["checks"] | bad}
    assert type(made).model_validate(changed).failed == ["steps"]


def test_bad_record_is_refused_by_file_and_key():
    entries = json.loads(record().model_dump_json()) | {"images": "many"}
    with pytest.raises(RecordError, match=r"x\.json: images: "):
        parse_record(json.dumps(entries), "x.json")


def test_folder_without_records_says_what_makes_them(tmp_path):
    with pytest.raises(RecordError, match="make repro"):
        load_records(tmp_path)


def test_record_agrees_with_itself():
    table = compare(record(), record())
    # By reading: clean, robust, the two headlines, two trees; the mistakes, superclasses.
    assert len(table) == 2 * (3 + 9 + 2 + 2) + 2 * 13 + 3 and table["agrees"].all()


def differing(new: Record, old: Record) -> list[str]:
    table = compare(new, old)
    assert set(table["model"]) == {"tecoa-0"} and set(table["set"]) == {"seen"}
    return table["metric"][~table["agrees"]].tolist()


def worse(made: Record, images: float) -> Record:
    """The same, path-robust accuracy read directly being so many images less."""
    changed = made.path_robust | {"direct": made.path_robust["direct"] - images / made.images}
    return made.model_copy(update={"path_robust": changed})


@pytest.mark.parametrize(("images", "few"), [(40, 2), (1000, 5)])
def test_metrics_of_the_same_images_may_be_two_of_them_or_half_a_percent_apart(images, few):
    made = record(images=images)
    assert differing(worse(made, few), made) == []
    assert differing(worse(made, few + 1), made) == ["path_robust direct"]


@pytest.mark.parametrize("part", ["images", "weights"])
def test_metrics_of_other_images_or_weights_may_differ_by_the_interval_of_a_difference_of_shares(
    part,
):
    made, other = record(hashes={part: "a"}), record(hashes={part: "b"})
    assert compare(made, other)["anew"].all() and not compare(made, made)["anew"].any()

    def furthest(old):
        """Find the highest share of 40 in the 99.9 % interval of a difference from another."""
        new = np.linspace(old, 1, 4001)
        mean = (old + new) / 2
        return new[new - old <= norm.ppf(0.9995) * np.sqrt(2 * mean * (1 - mean) / 40)].max()

    old = other.path_robust["direct"]
    assert old + 2 / 40 < furthest(old) < 0.99
    for further, names in ((-0.005, []), (0.005, ["path_robust direct"])):
        assert differing(worse(made, 40 * (old - furthest(old) - further)), other) == names
    clean = made.mistakes["clean"]
    for name in ("h_f1", "ece"):  # shares too, whatever one image can do to them
        value, *bounds = clean[name]
        for further, names in ((-0.005, []), (0.005, [f"mistakes clean {name}"])):
            low = 1 - furthest(1 - value) - further  # from 1 downwards it is the same
            moved = clean | {name: (furthest(value) + further if value < 0.5 else low, *bounds)}
            changed = made.model_copy(update={"mistakes": made.mistakes | {"clean": moved}})
            assert differing(changed, other) == names


def test_a_mistaken_leaf_moves_a_mean_height_by_the_height_of_the_tree_at_most():
    made = record()
    for off, names in ((2 * 3 / 40, []), (2.1 * 3 / 40, ["mistakes clean hd_5"])):
        value, *bounds = made.mistakes["clean"]["hd_5"]
        moved = made.mistakes["clean"] | {"hd_5": (value + off, *bounds)}
        changed = made.model_copy(update={"mistakes": made.mistakes | {"clean": moved}})
        assert differing(changed, made) == names


@pytest.mark.parametrize(
    ("name", "most"), [("tree_induced_error", 6), ("h_f1", 3), ("jaccard", 1), ("top_down", 1)]
)
def test_one_image_moves_a_hierarchical_metric_by_what_one_path_can(name, most):
    made = record()
    value, *bounds = made.mistakes["clean"][name]
    for images, names in ((1.99, []), (2.01, [f"mistakes clean {name}"])):
        moved = made.mistakes["clean"] | {name: (value + images * most / 40, *bounds)}
        changed = made.model_copy(update={"mistakes": made.mistakes | {"clean": moved}})
        assert differing(changed, made) == names


def test_a_metric_that_an_older_record_lacks_is_not_compared():
    made = record()
    fewer = {name: v for name, v in made.mistakes["clean"].items() if name != "h_f1"}
    older = made.model_copy(update={"mistakes": made.mistakes | {"clean": fewer}})
    assert len(compare(made, older)) == len(compare(made, made)) - 1


def test_metrics_by_level_are_compared_one_by_one():
    made = record()
    rows = [list(row) for row in made.robust["direct"]]
    rows[1][2] -= 3 / 40
    assert differing(made.model_copy(update={"robust": made.robust | {"direct": rows}}), made) == [
        "robust direct 1 2"
    ]


def test_records_of_other_conditions_are_not_compared():
    with pytest.raises(RecordError, match="images is 41, committed 40"):
        compare(record(images=41), record())
    with pytest.raises(RecordError, match="seed is 4, committed"):
        compare(record(seed=4), record())


def test_a_tree_is_compared_on_the_images_that_it_was_attacked_on():
    for value, names in ((0.4 + 2 / 8, []), (0.4 + 2.1 / 8, ["forest emoji direct"])):
        other = {"wordnet": tree(0.5, 0.3), "emoji": tree(value, 0.6)}
        assert differing(record(forest=other), record()) == names
