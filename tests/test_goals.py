"""What an attack may want wrong."""

from itertools import product

import pytest
import torch
from hypothesis import given, strategies as st

from hierclip.attacks import ATTACKS, GOALS, NORMS, attack, level_goals, margin
from tests.test_attacks import budget, generator, linear, random_images


@pytest.fixture
def paths(tree):
    return torch.from_numpy(tree.paths)


def every_goal(paths):
    return [of(paths, level) for of in GOALS.values() for level in range(paths.shape[1])]


def all_predictions(paths):
    """(N, L + 1) nodes and (N,) leaves: each prediction of every level, of each leaf."""
    sizes = [int(level.max()) + 1 for level in paths.T]
    cases = torch.tensor(list(product(range(len(paths)), *map(range, sizes))))
    return cases[:, 1:], cases[:, 0]


def test_an_aim_is_broken_where_its_words_say_so(paths):
    nodes, labels = all_predictions(paths)
    right, led = paths[labels], paths[nodes[:, 0]]
    for l in range(paths.shape[1]):
        outside = led[:, l] != right[:, l]
        words = {
            "direct": nodes[:, l] != right[:, l],
            "roll_up": outside,
            "within_superclass": (nodes[:, 0] != labels) & ~outside,
            "all_levels": (nodes != right)[:, : l + 1].all(1),
        }
        for kind, broken in words.items():
            goal = GOALS[kind](paths, l)
            assert (goal.kind, goal.level, goal.name) == (kind, l, f"{kind}-{l}")
            assert torch.equal(goal.is_reached(nodes, labels), broken)


def test_what_an_aim_needs_is_broken_wherever_it_is(paths):
    nodes, labels = all_predictions(paths)
    for goal in every_goal(paths):
        assert goal.prerequisites or goal.name == "direct-0" or goal.kind == "direct"
        for need in goal.prerequisites:
            assert need.is_reached(nodes, labels)[goal.is_reached(nodes, labels)].all()


@given(seed=st.integers(0, 1000))
def test_the_margin_is_negative_exactly_where_an_aim_is_reached(seed):
    paths = torch.tensor([[0, 0, 0], [1, 0, 0], [2, 1, 0], [3, 2, 1], [4, 2, 1]])  # the fixture's
    logits = [torch.randn(20, k, generator=generator(seed + k)) for k in (5, 3, 2)]
    nodes, labels = torch.stack([l.argmax(1) for l in logits], dim=1), torch.arange(20) % 5
    for goal in every_goal(paths):
        margins = [
            margin(logits[l], own) for l, own in zip(goal.levels, goal.masks(labels), strict=True)
        ]
        assert torch.equal(torch.stack(margins).amax(0) < 0, goal.is_reached(nodes, labels))


def test_nothing_can_go_wrong_inside_a_superclass_of_one_leaf(paths):
    goal, (score, _) = GOALS["within_superclass"](paths, 1), linear(classes=5)
    labels = torch.tensor([2, 0, 2, 3])  # the eagle is alone
    for norm in NORMS:
        whole = budget(tuple(ATTACKS), norm, eps=1.0, steps=5)
        moved, worst = attack(score, random_images(4), goal.masks(labels), whole, 0)
        assert (
            (worst[[0, 2]] == torch.inf).all()
            and (worst[[1, 3]] < 0).all()
            and moved.isfinite().all()
        )
        assert not goal.is_reached(score(moved)[0].argmax(1, keepdim=True), labels)[[0, 2]].any()


def test_a_level_has_both_readings_and_the_leaves_have_one(paths):
    assert [goal.name for goal in level_goals(paths, 1)] == ["direct-1", "roll_up-1"]
    assert [goal.name for goal in level_goals(paths, 0)] == ["direct-0"]
