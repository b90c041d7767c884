import json

import numpy as np
import pytest
import torch
from torch import nn

from hierclip.attacks import Budget
from hierclip.data import Pictures
from hierclip.evaluate import Outcomes, audit, figures, intervals, level_matrix, paired_difference, path_robust
from hierclip.evaluate.records import Record, RecordError, load_records, parse_record, save_record
from hierclip.evaluate.verify import compare
from hierclip.model import Classifier, CosineHead

PATHS = torch.tensor([[0, 0], [1, 0], [2, 1]])
BUDGET = Budget(eps=0.1, step=0.05, steps=4, restarts=1, losses=("margin",))


def outcomes(seed=0, n=40, levels=3) -> Outcomes:
    rng = np.random.default_rng(seed)
    clean = {reading: rng.random((n, levels)) < 0.9 for reading in ("direct", "roll_up")}
    robust = {reading: (rng.random((levels, n, levels)) < 0.7) & clean[reading] for reading in clean}
    return Outcomes(clean, robust)


def classifier() -> Classifier:
    """Reads the mean of each colour as the embedding; leaves are red, green and blue."""
    encoder = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    texts = [torch.eye(3), torch.tensor([[1.0, 1, 0], [0, 0, 1]])]
    return Classifier(encoder, CosineHead(10.0), texts)


def pictures(strength=0.8, n=6) -> Pictures:
    labels = torch.arange(n) % 3
    images = torch.full((n, 3, 4, 4), 40, dtype=torch.uint8)
    images[torch.arange(n), labels] = int(40 + 200 * strength)
    return Pictures(images, labels)


def test_figures_are_means_of_outcomes():
    out = outcomes()
    found = figures(out, "direct")
    assert np.allclose(found["robust"], out.robust["direct"].mean(1))
    assert found["worst_level"] == pytest.approx(min(np.diag(out.robust["direct"].mean(1))))
    assert found["path_robust"] == pytest.approx(path_robust(out, "direct").mean())


def test_path_robust_asks_for_every_level_under_every_attack():
    clean = {"direct": np.ones((2, 2), bool)}
    robust = {"direct": np.ones((2, 2, 2), bool)}
    robust["direct"][1, 0, 0] = False  # a superclass attack breaks the leaf of picture 0
    assert path_robust(Outcomes(clean, robust), "direct").tolist() == [False, True]


def test_intervals_hold_the_figures_and_shrink_with_more_images():
    def width(n):
        out = outcomes(n=n)
        low, high = intervals(out, "direct", 500, 0)["path_robust"]
        assert low <= figures(out, "direct")["path_robust"] <= high
        return high - low

    assert width(1600) < width(100) / 2


def test_bootstrap_interval_of_a_share_is_the_normal_one():
    out = outcomes(n=2000)
    p = out.clean["direct"][:, 0].mean()
    low, high = intervals(out, "direct", 4000, 0)["clean"][0]
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(p * (1 - p) / 2000), rel=0.1)


def test_interval_of_nothing_follows_the_rule_of_three():
    clean = {"direct": np.zeros((60, 2), bool)}
    bounds = intervals(Outcomes(clean, {"direct": np.zeros((2, 60, 2), bool)}), "direct", 100, 0)["clean"]
    assert np.allclose(bounds, [[0, 3 / 60]] * 2)


@pytest.mark.parametrize("n", [6, 49, 60, 1000])
def test_interval_of_everything_follows_the_rule_of_three_and_is_not_stuck_at_one(n):
    sure = Outcomes({"direct": np.ones((n, 2), bool)}, {"direct": np.ones((2, n, 2), bool)})
    assert figures(sure, "direct")["path_robust"] == 1
    bounds = intervals(sure, "direct", 100, 0)
    assert bounds["path_robust"] == bounds["worst_level"] == [1 - 3 / n, 1]
    assert np.array_equal(bounds["clean"], [[1 - 3 / n, 1]] * 2)
    assert np.array_equal(bounds["robust"], [[[1 - 3 / n, 1]] * 2] * 2)


@pytest.mark.parametrize("n", [1, 2])
def test_intervals_of_very_few_pictures_stay_between_nothing_and_everything(n):
    for sure in (np.ones, np.zeros):
        out = Outcomes({"direct": sure((n, 1), bool)}, {"direct": sure((1, n, 1), bool)})
        low, high = intervals(out, "direct", 10, 0)["path_robust"]
        assert 0 <= low <= high <= 1


def test_outcomes_of_some_images_and_levels_are_those_attacked_and_read():
    out, rows, levels = outcomes(), np.array([3, 0, 7]), [0, 2]
    some = out.take(rows, levels)
    for reading in out.clean:
        for i, row in enumerate(rows):
            for e, level in enumerate(levels):
                assert some.clean[reading][i, e] == out.clean[reading][row, level]
                for a, attacked in enumerate(levels):
                    assert some.robust[reading][a, i, e] == out.robust[reading][attacked, row, level]
        assert some.clean[reading].shape == (3, 2) and some.robust[reading].shape == (2, 3, 2)


def test_paired_difference_is_that_of_the_means_and_knows_its_pairs():
    rng = np.random.default_rng(0)
    theirs = rng.random(1000) < 0.5
    ours = theirs | (rng.random(1000) < 0.04)  # better on a few pictures, worse on none
    mean, low, high = paired_difference(ours, theirs, 500, 0)
    assert mean == pytest.approx(ours.mean() - theirs.mean())
    assert 0 < low < mean < high < 0.04
    with pytest.raises(ValueError, match="1000 and 999 pictures are no pairs"):
        paired_difference(ours, theirs[1:], 500, 0)


def test_intervals_are_shaped_like_their_figures():
    out = outcomes()
    found, bounds = figures(out, "roll_up"), intervals(out, "roll_up", 50, 0)
    for name, value in found.items():
        assert np.shape(bounds[name]) == (*np.shape(value), 2)


def test_matrix_of_a_model_that_cannot_be_broken_is_all_right(tmp_path):
    out = level_matrix(classifier(), pictures(), PATHS, BUDGET, seed=0, batch=4, kept=tmp_path / "p.npz")
    assert all(values.all() for values in (*out.clean.values(), *out.robust.values()))
    assert out.robust["direct"].shape == (2, 6, 2)


def test_matrix_of_a_model_at_the_brink_is_broken_at_the_attacked_level(tmp_path):
    out = level_matrix(classifier(), pictures(0.1), PATHS, BUDGET, seed=0, batch=4, kept=tmp_path / "p.npz")
    assert out.clean["direct"][:, 0].all()
    assert not out.robust["direct"][0, :, 0].any()


def test_readings_agree_at_the_leaves(tmp_path):
    out = level_matrix(classifier(), pictures(0.15), PATHS, BUDGET, seed=0, batch=4, kept=tmp_path / "p.npz")
    assert (out.clean["direct"][:, 0] == out.clean["roll_up"][:, 0]).all()
    assert (out.robust["direct"][:, :, 0] == out.robust["roll_up"][:, :, 0]).all()


def test_interrupted_matrix_goes_on_and_gives_the_same_outcomes(tmp_path, monkeypatch):
    from hierclip.evaluate import matrix

    def run(partial):
        return level_matrix(classifier(), pictures(0.15), PATHS, BUDGET, seed=0, batch=4, kept=partial)

    whole, calls, real = run(tmp_path / "whole.npz"), [], matrix.attacked

    def stopping(*arguments):
        calls.append(arguments[3])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(matrix, "attacked", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part.npz")
    again = run(tmp_path / "part.npz")
    assert len(calls) == 2 + 2  # the first aim of three is not attacked again
    for reading in whole.robust:
        assert (whole.robust[reading] == again.robust[reading]).all()


def test_partial_outcomes_of_another_model_are_not_used(tmp_path):
    def run(strength):
        return level_matrix(classifier(), pictures(strength), PATHS, BUDGET, seed=0, batch=4, kept=tmp_path / "p.npz")

    assert not run(0.1).robust["direct"][0, :, 0].any()
    assert run(0.8).robust["direct"].all()


def test_outcomes_come_back_from_their_file(tmp_path):
    out = outcomes()
    out.save(tmp_path / "o.npz")
    back = Outcomes.load(tmp_path / "o.npz")
    assert all((back.robust[k] == v).all() for k, v in out.robust.items())
    assert all((back.clean[k] == v).all() for k, v in out.clean.items())


def test_audit_finds_nothing_wrong_with_an_honest_model():
    found = audit(classifier(), pictures(0.3), PATHS, BUDGET, count=6, seed=0)
    assert found.images == 6
    assert found.large_budget == 0
    assert found.stronger <= found.same_attack
    assert found.zero_gradients == 0


def test_audit_sees_gradients_that_are_masked():
    class Quantised(nn.Module):
        def forward(self, images):
            return (images.mean((2, 3)) * 8).round() + 0 * images.mean((2, 3))

    masked = classifier()
    masked.encoder = Quantised()
    assert audit(masked, pictures(0.3), PATHS, BUDGET, count=6, seed=0).zero_gradients == 1


def tree(direct: float, roll_up: float) -> dict:
    """What a record says of a tree with this path-robust accuracy."""
    both = {"direct": direct, "roll_up": roll_up}
    bounds = {reading: (value - 0.125, value + 0.125) for reading, value in both.items()}
    return {"images": 8, "levels": [4, 2], "worst_level": both, "path_robust": both, "intervals": bounds}


def record(**changes) -> Record:
    out = outcomes()
    both = {reading: figures(out, reading) for reading in out.clean}
    entries = {
        "dataset": "openmoji",
        "split": "tuned",
        "method": "tecoa",
        "seed": 0,
        "images": 40,
        "reading": "roll_up",
        "threat_model": {
            "norm": "Linf", "eps": "4/255", "step": "1/255", "steps": 10, "restarts": 1, "losses": ["margin"],
            "resolution": 32, "prompt": "a {}", "precision": "32-true", "seed": 0,
        },
        "trees": {"wordnet": "0", "emoji": "1"},
        "levels": [4, 2, 1],
        **{key: {reading: values[key] for reading, values in both.items()} for key in both["direct"]},
        "intervals": {reading: intervals(out, reading, 200, 0) for reading in out.clean},
        "forest": {
            "wordnet": tree(0.5, 0.3),
            "emoji": tree(0.4, 0.6),
        },
        "audit": {
            "images": 4, "same_attack": 1, "stronger": 1, "large_budget": 0, "zero_gradients": 0, "at_rim": 0,
        },
        "versions": {},
        "git": "",
    }  # fmt: skip
    return Record.model_validate(entries | changes)


def test_record_comes_back_from_its_file(tmp_path):
    made = record()
    path = save_record(made, tmp_path)
    assert path.name == "tecoa-0-tuned.json"
    back = load_records(tmp_path)[0]
    assert back.path_robust["direct"] == pytest.approx(made.path_robust["direct"], abs=1e-6)


def test_worst_tree_is_that_of_the_least_path_robust_accuracy_in_the_records_reading():
    assert record(reading="direct").worst_tree == "emoji"
    assert record(reading="roll_up").worst_tree == "wordnet"


def test_bad_record_is_refused_by_file_and_key():
    entries = json.loads(record().model_dump_json()) | {"images": "many"}
    with pytest.raises(RecordError, match=r"x\.json: images: "):
        parse_record(json.dumps(entries), "x.json")


def test_folder_without_records_says_what_makes_them(tmp_path):
    with pytest.raises(RecordError, match="make repro"):
        load_records(tmp_path)


def test_record_agrees_with_itself():
    agreements = list(compare(record(), record()))
    assert len(agreements) == 2 * (3 + 9 + 2 + 2)  # by reading: clean, robust, the two headlines, two trees
    assert all(agreement.agrees for agreement in agreements)


def test_figure_outside_the_committed_interval_differs():
    made = record()
    off = {
        reading: bounds.model_copy(update={"path_robust": (0.98, 0.99)}) for reading, bounds in made.intervals.items()
    }
    differing = [a for a in compare(made.model_copy(update={"intervals": off}), made) if not a.agrees]
    assert [a.figure.split()[-1] for a in differing] == ["path_robust", "path_robust"]
    assert "DIFFERS" in str(differing[0])


def test_records_of_other_conditions_are_not_compared():
    with pytest.raises(RecordError, match="images is 41, committed 40"):
        list(compare(record(images=41), record()))
    with pytest.raises(RecordError, match="reading is direct, committed roll_up"):
        list(compare(record(reading="direct"), record()))


def test_a_tree_outside_its_committed_interval_differs():
    other = {"wordnet": tree(0.5, 0.3), "emoji": tree(0.8, 0.6)}
    differing = [a.figure for a in compare(record(forest=other), record()) if not a.agrees]
    assert differing == ["tecoa-0-tuned direct tree emoji"]
