import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hierclip.attacks import LOSSES, Budget, aims, attack, climb, cross_entropy, frozen, margin, pgd, random_start

close = torch.testing.assert_close
SHAPE = (3, 4, 4)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(bias=0.0, classes=2, seed=0):
    """A linear score of images, and its weight (classes, 3, 4, 4)."""
    weight = torch.randn(classes, *SHAPE, generator=generator(seed))
    offset = torch.zeros(classes)
    offset[0] = bias
    return lambda images: images.flatten(1) @ weight.flatten(1).T + offset, weight


def pictures(count, low=0.0, high=1.0, seed=1):
    return low + (high - low) * torch.rand(count, *SHAPE, generator=generator(seed))


def own(count, classes=2):
    """Class 0 is right for every image."""
    return (torch.arange(classes) == 0).expand(count, classes)


def budget(eps=8 / 255, step=2 / 255, steps=10, restarts=1, losses=("margin",)) -> Budget:
    return Budget(eps, step, steps, restarts, losses)


def test_pgd_reaches_the_optimum_of_a_linear_function():
    score, weight = linear()
    images, slope = pictures(5, 0.2, 0.8), weight[1] - weight[0]
    moved, shift = pgd(
        lambda x, _: (x * slope).sum(), images, eps=8 / 255, step=2 / 255, steps=10, generator=generator()
    )
    assert shift is None
    close(moved, images + 8 / 255 * slope.sign())


@pytest.mark.parametrize("losses", [("margin",), ("ce",), ("margin", "ce")])
def test_the_attack_reaches_the_optimum_of_a_linear_model(losses):
    score, weight = linear(bias=10.0)
    images, slope = pictures(5, 0.2, 0.8), weight[1] - weight[0]
    moved = attack(score, images, own(5), budget(losses=losses), generator())
    before, after = margin(score(images), own(5)), margin(score(moved), own(5))
    close(after - before, (8 / 255 * slope.abs().sum()).expand(5), rtol=1e-3, atol=1e-4)


BUDGETS = {"eps": st.floats(0, 1), "step": st.floats(0, 1), "steps": st.integers(0, 4), "seed": st.integers(0, 99)}


@given(**BUDGETS, momentum=st.floats(0, 0.99))
def test_pgd_never_leaves_the_budget_nor_the_unit_range(eps, step, steps, seed, momentum):
    _, weight = linear(seed=seed)
    images = pictures(3, seed=seed)
    moved, _ = pgd(
        lambda x, _: (x * weight[0]).sin().sum(),
        images,
        eps=eps,
        step=step,
        steps=steps,
        momentum=momentum,
        generator=generator(seed),
    )
    assert (moved - images).abs().max() <= eps + 1e-6 and moved.min() >= 0 and moved.max() <= 1


@given(eps=BUDGETS["eps"], seed=BUDGETS["seed"])
def test_pgd_of_no_steps_is_its_random_start(eps, seed):
    images = pictures(3)
    moved, _ = pgd(lambda x, _: x.sum(), images, eps=eps, step=1.0, steps=0, generator=generator(seed))
    assert torch.equal(moved, random_start(images, eps, generator(seed)))


@pytest.mark.parametrize(("momentum", "moves"), [(0.0, [1, 1, -1, -1]), (0.9, [1, 1, 1, -1]), (0.4, [1, 1, -1, -1])])
def test_a_step_follows_the_sign_of_the_decaying_sum_of_the_gradients_signs(momentum, moves):
    # With momentum 0.9 the sum is 1, 1.9, 0.71, -0.361; with 0.4 it is 1, 1.4, -0.44, -1.176.
    slopes, seen = iter([7.0, 0.1, -3.0, -0.2]), []

    def objective(x, _):
        seen.append(x.detach())
        return (next(slopes) * x).sum()

    images = pictures(2, 0.4, 0.6)
    moved, _ = pgd(objective, images, eps=0.3, step=0.01, steps=4, momentum=momentum, generator=generator())
    for before, after, move in zip(seen, [*seen[1:], moved], moves, strict=True):
        inside = (before - images).abs() < 0.29  # a step from there does not meet the budget's edge
        close((after - before)[inside], torch.full_like(images, 0.01 * move)[inside])


@pytest.mark.parametrize("steps", [1, 5])
def test_the_texts_shift_goes_to_the_corner_of_its_budget_and_no_farther(steps):
    texts = torch.randn(3, 4, generator=generator())
    slope, seen = torch.randn(3, 4, generator=generator(1)), []

    def objective(x, shift):
        seen.append(shift.detach())
        return x.sum() + (slope * shift).sum()

    settings = {"eps": 0.1, "step": 0.1, "steps": steps, "generator": generator()}
    _, shift = pgd(objective, pictures(2), texts=texts, text_eps=0.02, **settings)
    assert not seen[0].any() and max(s.abs().max() for s in seen) <= 0.02  # it starts from nothing
    close(shift, 0.02 * slope.sign())
    assert not shift.requires_grad


def test_the_texts_shift_turns_back_where_the_gradient_does():
    slopes = iter([1.0, -1.0, -1.0])
    settings = {"eps": 0.0, "step": 0.1, "steps": 3, "generator": generator()}
    _, shift = pgd(
        lambda x, s: next(slopes) * s.sum() + x.sum(), pictures(1), texts=torch.ones(2, 2), text_eps=1.0, **settings
    )
    assert shift.tolist() == [[-1.0, -1.0]] * 2


@pytest.mark.parametrize("texts", [{}, {"texts": torch.ones(2, 2)}, {"text_eps": 0.1}])
def test_there_is_no_shift_without_texts_and_a_budget_for_them(texts):
    given = []

    def objective(x, shift):
        given.append(shift)
        return x.sum()

    assert pgd(objective, pictures(1), eps=0.1, step=0.1, steps=2, generator=generator(), **texts)[1] is None
    assert given == [None, None]


@given(**BUDGETS, losses=st.sampled_from([("margin",), ("ce",), ("ce", "margin")]), restarts=st.integers(1, 2))
def test_the_attack_never_leaves_the_budget_nor_the_unit_range_nor_makes_an_image_easier(seed, **limits):
    score, _ = linear(classes=4, bias=1.0, seed=seed)
    images = pictures(6, seed=seed)
    moved = attack(score, images, own(6, 4), Budget(**limits), generator(seed))
    assert (moved - images).abs().max() <= limits["eps"] + 1e-6 and moved.min() >= 0 and moved.max() <= 1
    assert (margin(score(moved), own(6, 4)) >= margin(score(images), own(6, 4)) - 1e-5).all()


@given(eps=BUDGETS["eps"], seed=BUDGETS["seed"])
def test_a_random_start_is_inside_the_budget_and_the_unit_range(eps, seed):
    images = pictures(3)
    start = random_start(images, eps, generator(seed))
    assert (start - images).abs().max() <= eps + 1e-6 and start.min() >= 0 and start.max() <= 1


def test_a_step_follows_the_gradients_sign_and_stops_at_both_bounds():
    images = torch.tensor([0.5, 0.5, 0.5, 0.95, 0.5])
    gradient = torch.tensor([1e-9, -7.0, 0.0, 1.0, 1.0])
    moved = climb(torch.tensor([0.5, 0.5, 0.5, 0.95, 0.58]), gradient, images, eps=0.1, step=0.06)
    close(moved, torch.tensor([0.56, 0.44, 0.5, 1.0, 0.6]))


def test_images_that_are_wrong_already_come_back_untouched():
    score, _ = linear()
    images = pictures(20)
    moved = attack(score, images, own(20), budget(), generator())
    wrong = margin(score(images), own(20)) > 0
    assert 0 < wrong.sum() < 20
    assert torch.equal(moved[wrong], images[wrong])


def test_the_attack_leaves_the_images_it_was_given_alone():
    score, _ = linear(bias=1.0)
    images = pictures(4)
    before = images.clone()
    attack(score, images, own(4), budget(), generator())
    assert torch.equal(images, before) and not images.requires_grad


def test_broken_images_are_dropped_and_standing_ones_attacked_on():
    score, weight = linear()
    images, rows = pictures(4, 0.3, 0.7), []
    lead = margin(score(images), own(4))
    reach = 8 / 255 * (weight[1] - weight[0]).abs().sum()  # the most that a margin can rise
    wanted = torch.tensor(
        [0.1, -0.5 * reach, -0.5 * reach, -2 * reach]
    )  # wrong, broken within, broken within, out of reach

    def shifted(x):  # an image's score depends on which one it is: its mean colour is nearly its own
        rows.append(len(x))
        nearest = (x.flatten(1)[:, None] - images.flatten(1)[None]).abs().sum(-1).argmin(1)
        return score(x) + torch.stack([torch.zeros(len(x)), (wanted - lead)[nearest]], dim=1)

    moved = attack(shifted, images, own(4), budget(restarts=2), generator())
    broken = margin(shifted(moved), own(4)) > 0
    assert broken.tolist() == [True, True, True, False]
    rows.pop()
    assert rows[0] == 4 and rows[1] == 3  # every image once, then those that stand
    assert rows == sorted(rows, reverse=True)
    assert rows[-11:] == [1] * 11  # the last restart has only the one out of reach: ten steps and a last look


def test_the_weights_get_no_gradient():
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    images = pictures(4)
    attack(module, images, own(4, 3), budget(), generator())
    pgd(lambda x, _: module(x).sum(), images, eps=0.1, step=0.1, steps=2, generator=generator())
    assert all(weight.grad is None and weight.requires_grad for weight in module.parameters())


def test_the_attack_works_on_a_frozen_module():
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with frozen(module):
        moved = attack(module, pictures(4), own(4), budget(), generator())
    assert not moved.requires_grad


@pytest.mark.parametrize("fails", [False, True])
def test_frozen_gives_back_modes_and_wants_of_gradient(fails):
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval(), nn.Linear(2, 2))
    module[2].requires_grad_(False)
    modes = [part.training for part in module.modules()]
    wants = [weight.requires_grad for weight in module.parameters()]
    try:
        with frozen(module):
            assert not any(part.training for part in module.modules())
            assert not any(weight.requires_grad for weight in module.parameters())
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert [part.training for part in module.modules()] == modes
    assert [weight.requires_grad for weight in module.parameters()] == wants


def test_margin_and_cross_entropy_by_hand():
    scores = torch.tensor([[1.0, 2.0, 4.0, 0.0]])
    single = torch.tensor([[False, True, False, False]])
    group = torch.tensor([[True, False, True, False]])
    mass = scores.exp() / scores.exp().sum()
    close(margin(scores, single), torch.tensor([2.0]))
    close(margin(scores, group), torch.tensor([-2.0]))
    close(cross_entropy(scores, single), -mass[:, 1].log())
    close(cross_entropy(scores, group), -(mass[:, 0] + mass[:, 2]).log())


@given(seed=st.integers(0, 1000))
def test_margin_is_positive_where_the_prediction_is_outside_the_group(seed):
    scores = torch.randn(20, 6, generator=generator(seed))
    group = torch.tensor([True, False, True, True, False, False]).expand(20, 6)
    wrong = ~group.gather(1, scores.argmax(1, keepdim=True))[:, 0]
    assert torch.equal(margin(scores, group) > 0, wrong)


def test_aims_are_both_readings_of_a_level(tree):
    paths = torch.from_numpy(tree.paths)
    direct, roll_up = aims(paths, 1)
    assert (direct.level, direct.reading, direct.source) == (1, "direct", 1)
    assert torch.equal(direct.own, torch.eye(3, dtype=torch.bool))
    assert (roll_up.level, roll_up.reading, roll_up.source) == (1, "roll_up", 0)
    assert roll_up.own.int().tolist() == [[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 1]]


def test_at_the_leaves_the_readings_are_one(tree):
    (only,) = aims(torch.from_numpy(tree.paths), 0)
    assert (only.reading, only.source) == ("direct", 0) and torch.equal(only.own, torch.eye(5, dtype=torch.bool))


def test_an_unknown_loss_is_named_beside_the_known():
    score, _ = linear()
    with pytest.raises(ValueError, match=f"no attack loss hinge; known are {', '.join(LOSSES)}"):
        attack(score, pictures(1), own(1), budget(losses=("margin", "hinge")), generator())


def test_a_generator_alike_gives_the_attack_alike():
    score, _ = linear(bias=100.0)
    few = budget(steps=1)
    one, same, other = (attack(score, pictures(3), own(3), few, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
