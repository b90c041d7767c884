"""What comes of attacking every level: outcomes image by image, and the matrix that makes
them.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from hierclip.attacks import GOALS, Budget, frozen, level_goals
from hierclip.data import ImageSet
from hierclip.evaluation import LevelMatrix, Outcomes, matrix
from hierclip.models import READINGS, Classifier, CosineHead
from tests.test_evaluate import BUDGET, PATHS, classifier, outcomes, random_images

EVERY = [GOALS["within_superclass"](PATHS, 1), GOALS["all_levels"](PATHS, 1)]


def right(out: Outcomes, condition: str, reading: str, n: int, level: int) -> bool:
    nodes = out.nodes[out.conditions.tolist().index(condition), n]
    found = nodes[level] if reading == "direct" else out.paths[nodes[0], level]
    return bool(found == out.paths[out.labels[n], level])


def test_right_clean_and_robust_are_what_loops_over_pictures_and_levels_find():
    out = outcomes(share=0.8)
    for reading in READINGS:
        for n in range(len(out.labels)):
            for e in range(3):
                for a, condition in enumerate(out.conditions.tolist()):
                    assert out.right[reading][a, n, e] == right(out, condition, reading, n, e)
                assert out.clean[reading][n, e] == right(out, "clean", reading, n, e)
                for a in range(3):
                    kinds = (
                        ["direct", "roll_up"] if a else ["direct"]
                    )  # right under the attack on either reading
                    expected = all(right(out, f"{kind}-{a}", reading, n, e) for kind in kinds)
                    assert out.robust[reading][a, n, e] == expected


def test_robust_leaves_are_right_under_the_direct_attack_alone():
    out = outcomes(share=0.8)
    for reading in READINGS:
        assert np.array_equal(out.robust[reading][0], out.right[reading][out.under("direct-0")])


def test_robust_to_one_reading_is_right_under_the_attack_on_it_alone():
    out = outcomes(share=0.8)
    for reading in READINGS:
        for level in (1, 2):
            alone = out.right["direct"][out.under(f"{reading}-{level}")]
            assert np.array_equal(out.robust_to([reading])["direct"][level], alone)


def test_outcomes_come_back_from_their_file(tmp_path):
    out = outcomes()
    out.save(tmp_path / "new" / "o.npz")
    assert same(Outcomes.load(tmp_path / "new" / "o.npz"), out)


def same(one: Outcomes, other: Outcomes) -> bool:
    return all(
        np.array_equal(values, getattr(other, name))
        for name, values in vars(one).items()
        if name in FIELDS
    )


FIELDS = ("conditions", "paths", "labels", "nodes", "confidence", "ranked", "top_down")


def judge(strength=0.15, **choices) -> Outcomes:
    settings = {"seed": 0, "batch": 4, "more": EVERY} | choices
    return LevelMatrix(classifier(), random_images(strength), PATHS, BUDGET, **settings).outcomes()


def test_matrix_of_a_model_that_cannot_be_broken_is_all_right():
    out = judge(0.8)
    assert all(values.all() for values in (*out.clean.values(), *out.robust.values()))
    assert out.robust["direct"].shape == (2, 6, 2)


def test_matrix_of_a_model_at_the_brink_is_broken_at_the_attacked_level():
    out = judge(0.1)
    assert out.clean["direct"][:, 0].all()
    assert not out.robust["direct"][0, :, 0].any()


def greedy_leaves(logits) -> list[int]:
    """Walk PATHS by hand: superclass 0 holds leaves 0 and 1, superclass 1 holds leaf 2."""
    return [
        2 if upper[1] > upper[0] else int(leaf[1] > leaf[0])
        for leaf, upper in zip(*(level.tolist() for level in logits), strict=True)
    ]


def test_top_down_is_read_of_the_clean_and_of_the_attacked_image():
    """At the brink the superclass of dim blue images is read wrongly, their leaf is not."""
    out, model, images = judge(0.1), classifier(), random_images(0.1)
    goal = level_goals(PATHS, 0)[0]
    with frozen(model), torch.no_grad():
        floats = images.floats()
        moved = matrix.attacked(model, floats, images.labels, goal, BUDGET, (0, 0), 4)[0]
        clean, attacked = greedy_leaves(model(floats)), greedy_leaves(model(moved))
    assert out.top_down[out.under("clean")].tolist() == clean != out.labels.tolist()
    assert out.top_down[out.under("direct-0")].tolist() == attacked != clean


def test_readings_agree_at_the_leaves():
    out = judge()
    assert (out.clean["direct"][:, 0] == out.clean["roll_up"][:, 0]).all()
    assert (out.robust["direct"][:, :, 0] == out.robust["roll_up"][:, :, 0]).all()


def flipped(data: bytes) -> bytes:
    """A byte in the middle is another."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


def test_partial_outcomes_of_another_model_are_not_used(tmp_path):
    assert not judge(0.1, kept=tmp_path / "p").robust["direct"][0, :, 0].any()
    assert judge(0.8, kept=tmp_path / "p").robust["direct"].all()


def test_partial_outcomes_of_another_scaling_of_the_input_are_not_used(tmp_path):
    made = classifier()
    made.register_buffer("mean", torch.zeros(3), persistent=False)
    arguments = made, random_images(0.15), PATHS, BUDGET
    LevelMatrix(*arguments, seed=0, batch=4, kept=tmp_path / "p").outcomes()
    before = str(np.load(tmp_path / "p/direct-0.npz")["key"])
    made.mean += 1
    LevelMatrix(*arguments, seed=0, batch=4, kept=tmp_path / "p").outcomes()
    assert str(np.load(tmp_path / "p/direct-0.npz")["key"]) != before


def test_partial_outcomes_of_which_less_was_read_are_not_used(tmp_path, monkeypatch):
    """As an earlier version left them: without `top_down`, under the key of what it read."""
    whole = judge(kept=tmp_path)
    arguments = classifier(), random_images(0.15), PATHS, BUDGET, 0, 4, EVERY
    with monkeypatch.context() as patched:
        patched.setattr(matrix, "READ", ("nodes", "confidence", "ranked"))
        key = LevelMatrix(*arguments).key
    for file in tmp_path.glob("*.npz"):
        arrays = {name: v for name, v in np.load(file).items() if name != "top_down"}
        np.savez(file, **arrays | {"key": np.array(key)})
    assert same(judge(kept=tmp_path), whole)


def test_outcomes_without_an_array_are_refused_by_its_name(tmp_path):
    arrays = {name: values for name, values in vars(outcomes()).items() if name in FIELDS}
    np.savez(tmp_path / "old.npz", **{k: v for k, v in arrays.items() if k != "top_down"})
    with pytest.raises(TypeError, match="top_down"):
        Outcomes.load(tmp_path / "old.npz")


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no archive", flipped]
)
def test_damaged_partial_outcomes_are_named_and_made_again(tmp_path, damage):
    whole = judge(kept=tmp_path)
    file = tmp_path / "direct-1.npz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(
        UserWarning, match=f"^{file} cannot be read .*; the attack starts from the beginning$"
    ):
        assert same(judge(kept=tmp_path), whole)
    assert same(judge(kept=tmp_path), whole)


@pytest.fixture
def attacks(monkeypatch):
    """How many images were attacked for each goal, in order; the attack that "stop" names is
    interrupted.
    """
    found, real = {"counts": {}, "stop": None}, matrix.attack_part

    def counting(classifier, images, labels, goal, *rest):
        if goal.name == found["stop"]:
            raise KeyboardInterrupt
        found["counts"][goal.name] = found["counts"].get(goal.name, 0) + len(images)
        return real(classifier, images, labels, goal, *rest)

    monkeypatch.setattr(matrix, "attack_part", counting)
    return found


def test_matrix_interrupted_at_any_aim_goes_on_and_gives_the_same_outcomes(tmp_path, attacks):
    whole = judge()
    names = [*attacks["counts"]]
    assert names == ["direct-0", "direct-1", "roll_up-1", "within_superclass-1", "all_levels-1"]
    for done, stop in enumerate(names):
        attacks.update(stop=stop)
        with pytest.raises(KeyboardInterrupt):
            judge(kept=tmp_path / stop)
        attacks.update(counts={}, stop=None)
        assert same(judge(kept=tmp_path / stop), whole)
        assert [*attacks["counts"]] == names[done:]  # nothing that is done is done again


def test_only_pictures_for_which_an_aim_is_open_are_attacked(attacks):
    """The first three fall, the others do not."""
    weak, strong = random_images(0.1, n=3), random_images(0.8, n=3)
    both = ImageSet(
        torch.cat([weak.pixels, strong.pixels]), torch.cat([weak.labels, strong.labels])
    )
    out = LevelMatrix(classifier(), both, PATHS, BUDGET, seed=0, batch=4, more=EVERY).outcomes()
    assert out.right["direct"][out.under("direct-0")][:, 0].tolist() == [False] * 3 + [True] * 3
    counts = attacks["counts"]
    assert counts["direct-0"] == counts["direct-1"] == 6
    assert (
        counts["roll_up-1"] == counts["within_superclass-1"] == 3
    )  # a leaf that stands leaves no superclass
    fallen = (
        ~out.right["direct"][out.under("direct-0")][:, 0]
        & ~out.right["direct"][out.under("direct-1")][:, 1]
    )
    assert counts["all_levels-1"] == fallen.sum() <= 3


def test_a_model_that_stands_is_not_attacked_beyond_the_direct_aims(attacks):
    judge(0.8)
    assert attacks["counts"] == {"direct-0": 6, "direct-1": 6}


def test_an_image_is_attacked_by_itself_however_the_others_are_parted():
    one, other = judge(batch=1), judge(batch=6)
    assert np.array_equal(one.nodes, other.nodes) and np.array_equal(one.ranked, other.ranked)


@dataclass(frozen=True)
class Linear:
    """A head whose logits are linear in the embedding."""

    def image_points(self, embeddings):
        return embeddings

    def logits(self, images, texts):
        return images @ texts.T


def linear_world(count=60) -> tuple[Classifier, ImageSet, torch.Tensor]:
    """Six leaves, a pixel's colour each; superclasses, of two and of four leaves, are the sums of
    theirs.

    A image has its own leaf's pixel, one rival near it, and nothing else, so that no attack can
    go astray.
    """
    paths = torch.arange(6)[:, None] // torch.tensor([1, 2, 4])
    texts = [torch.eye(int(paths[:, l].max()) + 1)[paths[:, l]].T for l in range(3)]
    generator, rows = torch.Generator().manual_seed(0), torch.arange(count)
    labels, steps = (torch.randint(low, 6, (count,), generator=generator) for low in (0, 1))
    images = torch.zeros(count, 6, dtype=torch.uint8)
    images[rows, labels] = 120
    images[rows, (labels + steps) % 6] = 120 - torch.randint(
        2, 60, (count,), generator=generator
    ).to(torch.uint8)
    return (
        Classifier(nn.Flatten(), Linear(), texts),
        ImageSet(images.view(count, 3, 1, 2), labels),
        paths,
    )


@torch.no_grad()
def fallen(classifier, images, labels, goal) -> torch.Tensor:
    return goal.is_reached(
        torch.stack([level.argmax(1) for level in classifier(images)], dim=1), labels
    )


def test_pruning_changes_nothing_but_which_pictures_are_attacked(attacks):
    """Where every attack finds the optimum, the same images fall to every goal as when all are
    attacked.
    """
    classifier, shown, paths = linear_world()
    budget = Budget(eps=0.04, step=0.02, steps=20, restarts=1, suite=("pgd_margin",), queries=20)
    more = [
        *(GOALS["within_superclass"](paths, level) for level in (1, 2)),
        GOALS["all_levels"](paths, 2),
    ]
    pruned = LevelMatrix(classifier, shown, paths, budget, seed=0, batch=60, more=more).outcomes()
    asked, images, labels = dict(attacks["counts"]), shown.floats(), shown.labels
    for k, goal in enumerate(
        [*(goal for level in range(3) for goal in level_goals(paths, level)), *more]
    ):
        with frozen(classifier):
            moved = matrix.attacked(classifier, images, labels, goal, budget, (0, k), 60)[0]
        nodes = torch.from_numpy(pruned.nodes[pruned.under(goal.name)]).long()
        assert torch.equal(
            goal.is_reached(nodes, labels), fallen(classifier, moved, labels, goal)
        ), goal.name
        assert goal.kind == "direct" or asked[goal.name] < len(labels)
    assert 0 < np.mean(pruned.robust["roll_up"][2, :, 2]) < 1


def test_a_picture_that_came_near_leaving_its_leaf_is_attacked_for_the_superclass(attacks):
    """One attack is no proof that a leaf stands: what it brought near the boundary, the next may
    break.
    """
    paths = torch.tensor([[0, 0], [1, 1], [2, 1]])
    model = Classifier(
        nn.Flatten(), Linear(), [torch.eye(3), torch.tensor([[1.0, 0, 0], [0, 1, 1]])]
    )
    distances = torch.tensor(
        [4, 24, 50, 120]
    )  # to the rival's colour, in 255ths; the budget moves the two 20 apart
    colours = torch.stack(
        [torch.full((4,), 150), 150 - distances, torch.zeros(4, dtype=torch.long)], dim=1
    )
    shown = ImageSet(colours.to(torch.uint8).view(4, 3, 1, 1), torch.zeros(4, dtype=torch.long))
    budget = Budget(
        eps=10 / 255, step=4 / 255, steps=10, restarts=1, suite=("pgd_margin",), queries=20
    )
    out = LevelMatrix(model, shown, paths, budget, seed=0, batch=4).outcomes()
    assert out.right["direct"][out.under("direct-0")][:, 0].tolist() == [False, True, True, True]
    ways = [20 / 4, 20 / 24, 20 / 50, 20 / 120]
    assert attacks["counts"]["roll_up-1"] == sum(way >= matrix.PRUNE_THRESHOLD for way in ways) == 2


def test_a_superclass_of_one_tree_can_be_left_while_that_of_another_is_kept():
    """A forest's levels are listed tree by tree, and those of two trees are not nested."""
    paths = torch.tensor(
        [[0, 0, 0], [1, 0, 1], [2, 1, 1]]
    )  # 0 and 1 are of a kind in the first tree only
    colours = torch.tensor(
        [[120, 110, 10], [125, 108, 0], [130, 112, 30], [110, 100, 5]], dtype=torch.uint8
    )
    shown = ImageSet(colours.view(4, 3, 1, 1), torch.zeros(4, dtype=torch.long))
    texts = [
        torch.eye(3),
        torch.tensor([[1.0, 1, 0], [0, 0, 1]]),
        torch.tensor([[1.0, 0, 0], [0, 1, 1]]),
    ]
    goal = GOALS["roll_up"](paths, 2)
    model = Classifier(nn.Flatten(), Linear(), texts)
    budget = Budget(eps=0.1, step=0.04, steps=10, restarts=1, suite=("pgd_margin",), queries=20)
    with frozen(model):
        moved = matrix.attacked(model, shown.floats(), shown.labels, goal, budget, 0, 4)[0]
    assert fallen(model, moved, shown.labels, goal).all()
    out = LevelMatrix(model, shown, paths, budget, seed=0, batch=4).outcomes()
    assert out.right["roll_up"][out.under("roll_up-1")][:, 1].all()
    assert not out.right["roll_up"][out.under("roll_up-2")][:, 2].any()


def test_leaves_are_ranked_by_their_logits_even_where_their_shares_vanish():
    texts = [torch.eye(3), torch.tensor([[1.0, 1, 0], [0, 0, 1]])]
    model = Classifier(
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), CosineHead(1000.0), texts
    )
    images = torch.tensor([[250, 10, 100], [10, 250, 100], [10, 100, 250]], dtype=torch.uint8)
    out = LevelMatrix(
        model, ImageSet(images.view(3, 3, 1, 1), torch.arange(3)), PATHS, BUDGET, seed=0, batch=4
    ).outcomes()
    assert out.ranked[0].tolist() == [[0, 2, 1], [1, 2, 0], [2, 1, 0]]
