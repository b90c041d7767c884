"""The attacks of evaluation: each of them, suites of them, and what they may want wrong."""

from dataclasses import replace
from itertools import cycle
from math import inf

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from hierclip.attacks import (
    ATTACKS,
    GRADIENT,
    NORMS,
    STANDARD,
    AttackState,
    Budget,
    PerSampleRNG,
    attack,
    budget_of,
    cross_entropy,
    frozen,
    margin,
    margin_loss,
    run_attacks,
)
from hierclip.attacks.gradient import pgd_by_image
from hierclip.attacks.state import common_size, mean_of_calls, over_levels

close = torch.testing.assert_close
SHAPE = (3, 4, 4)
BY_GRADIENT = tuple(name for name in ATTACKS if name != "square")
EPS = {"Linf": 8 / 255, "L2": 0.5}
each_norm = pytest.mark.parametrize("norm", NORMS)
each_attack = pytest.mark.parametrize("name", ATTACKS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(bias=0.0, classes=2, seed=0, shape=SHAPE):
    """Return a linear score of images and its weight (classes, 3, H, W).

    The score of a grey image is `bias` for class 0 and 0 for the others.
    """
    weight = torch.randn(classes, *shape, generator=generator(seed))
    offset = torch.zeros(classes)
    offset[0] = bias
    return lambda images: [
        (images - 0.5).flatten(1) @ weight.flatten(1).T.to(images) + offset.to(images)
    ], weight


def reach(slope, norm):
    """Return the most that a linear margin can fall."""
    return EPS[norm] * (slope.abs().sum() if norm == "Linf" else slope.norm())


def needing(shares, slope, norm):
    """Return grey images at these shares of what the budget reaches from a linear boundary."""
    return torch.stack(
        [0.5 - share * reach(slope, norm) * slope / slope.square().sum() for share in shares]
    )


def random_images(count, low=0.0, high=1.0, seed=1):
    return low + (high - low) * torch.rand(count, *SHAPE, generator=generator(seed))


def own(count, classes=2):
    """Class 0 is right for every image."""
    return [(torch.arange(classes) == 0).expand(count, classes)]


def budget(
    suite=("pgd_margin",), norm="Linf", eps=None, step=None, steps=20, restarts=1, queries=100
) -> Budget:
    eps = EPS[norm] if eps is None else eps
    return Budget(eps, eps / 4 if step is None else step, steps, restarts, suite, queries, norm)


# One attack


@each_norm
@pytest.mark.parametrize("name", BY_GRADIENT)
def test_a_gradient_attack_reaches_the_optimum_of_a_linear_model(name, norm):
    score, weight = linear(bias=10.0)
    images, slope = random_images(5, 0.3, 0.7), weight[1] - weight[0]
    moved, _ = attack(score, images, own(5), budget((name,), norm, steps=60), 0)
    fall = margin(*score(images), *own(5)) - margin(*score(moved), *own(5))
    close(fall, reach(slope, norm).expand(5), rtol=2e-2, atol=0.0)


@each_norm
@each_attack
def test_what_is_within_reach_falls_and_what_is_not_stands(name, norm):
    score, weight = linear()
    images = needing((-0.5, 0.3, 0.6, 1.01, 2.0), weight[1] - weight[0], norm)
    moved, worst = attack(score, images, own(5), budget((name,), norm, queries=400), 0)
    assert (worst < 0).tolist() == [True, True, True, False, False]
    close(margin(*score(moved), *own(5)), worst)
    assert torch.equal(moved[0], images[0])  # wrong already


@given(
    names=st.lists(st.sampled_from(tuple(ATTACKS)), min_size=1, max_size=2),
    norm=st.sampled_from(tuple(NORMS)),
    eps=st.floats(0, 2),
    step=st.floats(0, 2),
    steps=st.integers(1, 4),
    restarts=st.integers(1, 2),
    queries=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_an_attack_never_leaves_its_budget_nor_makes_an_image_easier(
    names, norm, eps, seed, **limits
):
    score, _ = linear(bias=1.0, classes=5, seed=seed)
    images = random_images(6, seed=seed)
    before = images.clone()
    moved, worst = attack(score, images, own(6, 5), budget(tuple(names), norm, eps, **limits), seed)
    assert (
        (NORMS[norm].size(moved - images) <= eps + 1e-5).all()
        and moved.min() >= 0
        and moved.max() <= 1
    )
    start = margin(*score(images), *own(6, 5))
    assert (worst <= start).all() and torch.equal(moved[start < 0], images[start < 0])
    close(margin(*score(moved), *own(6, 5)), worst, rtol=1e-4, atol=1e-5)
    assert torch.equal(images, before) and not moved.requires_grad and not worst.requires_grad


def test_each_image_and_each_seed_has_random_numbers_of_its_own():
    draws = [
        PerSampleRNG(seed, [0, 0, 5]).uniform(torch.arange(3), (4,)) for seed in (3, (3, 1), 4)
    ]
    assert torch.equal(draws[0][0], draws[0][1]) and len(torch.cat(draws).unique(dim=0)) == 6
    first = [
        PerSampleRNG(3, [0]).shared.random(),
        float(PerSampleRNG(3, [0]).uniform(torch.arange(1), (1,))),
    ]
    assert abs(first[0] - first[1]) > 1e-3


@each_norm
@each_attack
def test_what_an_image_draws_does_not_depend_on_the_others(name, norm):
    score, weight = linear()
    slope, few = (
        (weight[1] - weight[0]).double(),
        budget((name,), norm, steps=3, restarts=2, queries=50),
    )
    needs = (
        -1.0,
        0.5,
        2.0,
        2.0,
    )  # the first has fallen from the start, the second falls on the way
    images = needing(needs, slope, norm) + 0.01 * random_images(4).double()
    together, _ = attack(score, images, own(4), few, 7)
    for row in range(4):
        alone, _ = attack(score, images[[row]], own(1), few, 7, [row])
        close(alone[0], together[row])


@each_norm
def test_a_seed_alike_gives_the_attack_alike(norm):
    score, _ = linear(bias=100.0)
    for name in ATTACKS:
        few = budget((name,), norm, step=0.001, steps=1, restarts=2, queries=10)
        one, same, other = (
            attack(score, random_images(3), own(3), few, seed)[0] for seed in (0, 0, 1)
        )
        assert torch.equal(one, same)
        # APGD's first step reaches the same corner from anywhere; FAB-T starts at the image.
        if not name.startswith(("apgd", "fab")):
            assert not torch.equal(one, other)


@each_norm
def test_the_weights_get_no_gradient_and_may_be_frozen(norm):
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    whole = budget(tuple(ATTACKS), norm, eps=0.01, steps=3)
    attack(lambda x: [module(x)], random_images(4), own(4, 5), whole, 0)
    assert all(weight.grad is None and weight.requires_grad for weight in module.parameters())
    with frozen(module):
        moved, _ = attack(lambda x: [module(x)], random_images(4), own(4, 5), whole, 0)
    assert not moved.requires_grad


@each_norm
@each_attack
def test_an_attack_works_in_float64(name, norm):
    score, weight = linear()
    images = needing((0.4, 2.0), weight[1] - weight[0], norm).double()
    moved, worst = attack(score, images, own(2), budget((name,), norm, queries=300), 0)
    assert moved.dtype == torch.float64 and (worst < 0).tolist() == [True, False]


@each_attack
def test_an_attack_on_no_images_is_none(name):
    score, _ = linear(classes=5)
    moved, worst = attack(score, random_images(0), own(0, 5), budget((name,)), 0)
    assert moved.shape == (0, *SHAPE) and worst.shape == (0,)


# Suites


def test_the_standard_suites_are_of_known_attacks(params):
    assert set(GRADIENT) < set(STANDARD) < set(ATTACKS)
    assert (
        set(params.attack.suite) <= set(ATTACKS)
        and budget_of(params.attack).eps == params.attack.eps
    )


@each_norm
def test_a_later_attack_sees_only_what_still_stands(norm, monkeypatch):
    score, weight = linear()
    images, seen = needing((-0.5, 0.5, 0.5, 2.0), weight[1] - weight[0], norm), []
    monkeypatch.setitem(ATTACKS, "spy", lambda state, _: seen.append(state.robust_rows().tolist()))
    score, rows = (lambda x, of=score: rows.append(len(x)) or of(x)), []
    suite = ("spy", "pgd_margin", "spy", "apgd_ce", "pgd_ce", "square")
    _, worst = attack(score, images, own(4), budget(suite, norm, restarts=2, queries=10), 0)
    assert seen == [[1, 2, 3], [3]] and (worst < 0).tolist() == [True, True, True, False]
    assert rows[:2] == [4, 3] and rows == sorted(
        rows, reverse=True
    )  # every image once, then those that stand
    assert rows.count(1) >= 21 + 2 * 20 + 2 * 21 + 10


@each_norm
def test_how_far_an_image_was_brought_is_its_share_of_the_way_to_the_boundary(norm):
    score, weight = linear()
    images = needing((-0.5, 0.5, 1.25, 2.0, 5.0), weight[1] - weight[0], norm)
    state = AttackState(score, images, own(5), budget(norm=norm))
    assert (state.fraction_to_boundary()[1:] == 0).all()
    pgd_by_image(state, PerSampleRNG(0, range(5)), loss="margin")
    assert (state.fraction_to_boundary()[:2] > 1).all()  # fell, one of them before it was touched
    close(
        state.fraction_to_boundary()[2:],
        torch.tensor([1 / 1.25, 1 / 2, 1 / 5]),
        rtol=0.0,
        atol=0.02,
    )


def test_an_image_whose_margin_was_no_number_went_no_way():
    state = AttackState(
        lambda x: [torch.full((2, 2), torch.nan)], random_images(2), own(2), budget()
    )
    assert state.fraction_to_boundary().tolist() == [0.0, 0.0]


def test_common_sizes_are_few_and_less_than_a_quarter_too_large():
    sizes = {count: common_size(count) for count in range(1, 513)}
    assert all(
        count <= size < 1.25 * count and common_size(size) == size for count, size in sizes.items()
    )
    assert len(set(sizes.values())) == 8 + 4 * 6


def test_a_batch_filled_to_a_common_size_gives_what_each_image_has_alone():
    score, _ = linear(classes=5)
    images, seen = random_images(20), []
    state = AttackState(lambda x: seen.append(len(x)) or score(x), images, own(20, 5), budget())
    rows = torch.arange(5, 14)  # nine
    margins, values, gradient = state.loss_and_grad(
        rows, images[rows], over_levels(state, margin_loss)
    )
    assert seen == [20, 10] and len(margins) == len(values) == len(gradient) == 9
    for k, row in enumerate(rows.tolist()):
        x = images[row : row + 1].requires_grad_(True)
        alone = margin(*score(x), *own(1, 5))
        close(torch.stack([margins[k], -values[k]]), alone.detach().expand(2))
        close(gradient[k : k + 1], *torch.autograd.grad(-alone.sum(), x))


@each_norm
@pytest.mark.parametrize("first", ATTACKS)
def test_a_suite_is_at_least_as_strong_as_its_first_attack_image_by_image(first, norm):
    score, _ = linear(bias=3.0, classes=5)
    images, settings = random_images(8), {"norm": norm, "steps": 4, "queries": 15}
    _, alone = attack(score, images, own(8, 5), budget((first,), **settings), 0)
    for later in ATTACKS:
        _, both = attack(score, images, own(8, 5), budget((first, later), **settings), 0)
        assert (both <= alone).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"suite": ("apgd_ce", "fab")}, "no attack 'fab'; did you mean fab_t"),
        ({"norm": "L1", "eps": 0.1}, f"no norm 'L1'; known are {', '.join(NORMS)}"),
    ],
)
def test_an_unknown_attack_or_norm_is_named_beside_the_known(settings, message):
    with pytest.raises(ValueError, match=message):
        attack(linear()[0], random_images(1), own(1), budget(**settings), 0)


# Several levels at once


def test_an_image_falls_only_when_all_levels_are_wrong():
    first, second = linear(bias=1.0, seed=1)[0], linear(bias=1.0, seed=2)[0]
    images = random_images(30, 0.3, 0.7)
    for name in ATTACKS:
        moved, worst = attack(
            lambda x: [*first(x), *second(x)], images, 2 * own(30), budget((name,)), 0
        )
        each = torch.stack([margin(*score(moved), *own(30)) for score in (first, second)])
        assert torch.equal(worst < 0, (each < 0).all(0)) and 0 < (worst < 0).sum() < 30
        close(each.amax(0), worst)


def test_a_level_that_is_wrong_already_pulls_no_more():
    images, wrong = (
        random_images(2),
        torch.tensor([[1.0, -1.0], [-2.0, -3.0]]),
    )  # minus the margins of two levels for two images

    def score(x):
        rise = [x[:, 0].sum((1, 2)), x[:, 1].sum((1, 2))]
        return [
            torch.stack([torch.zeros(2), m + r - r.detach()], dim=1)
            for m, r in zip(wrong.T, rise, strict=True)
        ]

    state = AttackState(score, images, 2 * own(2), budget())
    margins, values, gradient = state.loss_and_grad(
        torch.arange(2), images, over_levels(state, margin_loss)
    )
    assert (margins.tolist(), values.tolist()) == ([1.0, 3.0], [-1.0, -5.0])
    assert gradient.mean((2, 3)).tolist() == [[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]


@pytest.mark.parametrize("name", BY_GRADIENT)
def test_an_attack_that_never_has_enough_goes_on_to_the_worst_point(name):
    score, weight = linear(bias=0.1)
    slope = weight[1] - weight[0]
    images = torch.full((2, *SHAPE), 0.5)
    stopped, unstopped = (
        budget((name,), steps=20),
        replace(budget((name,), steps=20), stop_margin=inf),
    )
    first, most = (attack(score, images, own(2), b, 0)[1] for b in (stopped, unstopped))
    assert (first < 0).all() and (most <= first).all()
    close(-most, (reach(slope, "Linf") - 0.1).expand(2), rtol=1e-3, atol=1e-3)


def test_winning_a_level_costs_the_cross_entropy_of_several_nothing():
    scores = [
        torch.tensor([[0.1, 0.0, 0.0]]),
        torch.tensor([[0.5, 0.0]]),
    ]  # both levels right, by little
    won = [torch.tensor([[0.0, 0.1, 0.0]]), torch.tensor([[0.5, 0.0]])]
    rights = [*own(1, 3), *own(1, 2)]
    state = AttackState(lambda _: scores, random_images(1), rights, budget(("apgd_ce",)))
    total = over_levels(state, cross_entropy)
    assert total(won, torch.tensor([0])) >= total(scores, torch.tensor([0]))


# Pruning between the attacks of a suite


def two_attacks(suite, images, weight, first=None):
    """Return the images of a linear model that a suite with prune = 0.5 gives its last attack."""
    given, last = [], suite[-1]
    real = ATTACKS[last]

    def spy(state, draws):
        given.append(state.robust_rows().tolist())
        real(state, draws)

    score = linear()[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ATTACKS, last, spy)
        run_attacks(
            score,
            images,
            own(len(images)),
            replace(budget(suite), prune=0.5),
            0,
            clean_margin=first,
        )
    return given[0]


def far_and_near():
    """An image that an attack moves a third of its way, and one that it moves two thirds of it."""
    _, weight = linear()
    return needing((3.0, 1.5), weight[1] - weight[0], "Linf"), weight


def test_a_second_gradient_attack_is_given_only_what_the_first_brought_near():
    images, weight = far_and_near()
    assert two_attacks(("pgd_margin", "apgd_ce"), images, weight) == [1]


@pytest.mark.parametrize(
    "suite",
    [("pgd_margin", "square"), ("square", "pgd_margin"), ("pgd_margin", "apgd_ce", "square")],
)
def test_square_is_given_all_and_prunes_nothing(suite):
    images, weight = far_and_near()
    assert two_attacks(suite, images, weight) == [0, 1]


def test_an_image_without_a_gradient_or_a_clean_margin_is_given_to_the_second_attack():
    images, weight = far_and_near()
    unknown = torch.tensor([torch.nan, 1.0])
    assert two_attacks(("pgd_margin", "apgd_ce"), images, weight, first=unknown)[0] == 0
    flat = AttackState(
        lambda x: [0 * x.flatten(1)[:, :2] + torch.tensor([1.0, 0.0])],
        random_images(2),
        own(2),
        replace(budget(), prune=0.5),
    )
    ATTACKS["pgd_margin"](flat, PerSampleRNG(0, range(2)))
    flat.skip_distant()
    assert flat.robust_rows().tolist() == [0, 1]


def test_known_clean_margins_are_kept_as_the_images_are_and_not_asked_for():
    images, asked = random_images(3).double(), []
    score, _ = linear()
    first = margin(*score(images), *own(3)).float()
    state = AttackState(lambda x: asked.append(len(x)) or score(x), images, own(3), budget(), first)
    assert not asked and state.clean_margin.dtype == state.best_margin.dtype == torch.float64
    assert state.fraction_to_boundary().isfinite().all()


# Randomised models, surrogates, and models without a gradient


def in_turn(*scores):
    """Return a score that answers each call as the next of `scores` does."""
    calls = cycle(scores)
    return lambda images: next(calls)(images)


def test_expectation_over_transformation_is_the_mean_over_calls():
    """Loss and gradient are means over calls; the margin is that of the mean logits."""
    scores, images = [linear(classes=3, seed=seed)[0] for seed in (1, 2)], random_images(4)
    twice = replace(budget(), eot=2)
    state = AttackState(in_turn(*scores), images, own(4, 3), twice)
    mean_logits = torch.stack([score(images)[0] for score in scores]).mean(0)
    close(state.clean_margin, margin(mean_logits, *own(4, 3)))
    rows, loss = torch.arange(4), over_levels(state, cross_entropy)
    margins, values, gradient = state.loss_and_grad(rows, images, loss)
    close(margins, margin(mean_logits, *own(4, 3)))
    close(state.query(rows, images), margins)
    x = images.clone().requires_grad_(True)
    losses = torch.stack([cross_entropy(score(x)[0], *own(4, 3)) for score in scores]).mean(0)
    close(values, losses.detach())
    close(gradient, *torch.autograd.grad(losses.sum(), x))
    assert not torch.allclose(values, cross_entropy(mean_logits, *own(4, 3)))  # of another mean


def test_one_call_is_not_rounded():
    logits = torch.tensor([[1 / 3, -0.0, torch.nan]])
    (same,) = mean_of_calls(lambda: [logits], 1)
    assert torch.equal(same.view(torch.int32), logits.view(torch.int32))


def test_expectation_over_transformation_finds_the_gradient_under_noise():
    """Each call adds noise of ten times the gradient's size to it."""
    score, weight = linear()
    noise, images = generator(), random_images(8, 0.3, 0.7)

    def noisy(x):
        draw = 10 * torch.randn(2, x[0].numel(), generator=noise)
        return [score(x)[0] + (x - x.detach()).flatten(1) @ draw.T]

    falls = {}
    for calls in (1, 100):
        settings = replace(budget(eps=0.1, step=0.1, steps=2), eot=calls)
        moved, _ = attack(noisy, images, own(8), settings, 0)
        fall = margin(*score(images), *own(8)) - margin(*score(moved), *own(8))
        falls[calls] = float(fall.mean())
    most = float(0.1 * (weight[1] - weight[0]).abs().sum())
    assert falls[1] < 0.35 * most and 0.6 * most < falls[100] <= most


def test_an_attack_on_a_randomised_model_does_not_stop_at_the_boundary():
    score, weight = linear(bias=0.1)
    images, slope = torch.full((2, *SHAPE), 0.5), weight[1] - weight[0]
    _, worst = attack(score, images, own(2), replace(budget(), eot=2), 0)
    close(-worst, (reach(slope, "Linf") - 0.1).expand(2), rtol=1e-3, atol=1e-3)


def quantised(score):
    return lambda images: score((4 * images).round() / 4)


@pytest.mark.parametrize("name", sorted({*BY_GRADIENT} - {"fab_t"}))  # which stops at a boundary
def test_a_surrogate_gives_the_gradient_and_the_model_itself_decides(name):
    """Each pixel is 0.01 from 0.625, where rounding to quarters turns it to its worse value."""
    score, weight = linear()
    slope = weight[1] - weight[0]
    images = 0.625 - 0.01 * slope.sign().expand(2, *SHAPE)
    hidden = quantised(score)
    settings = replace(budget((name,), eps=0.02, steps=10), stop_margin=inf)
    state = run_attacks(hidden, images, own(2), settings, 0, grad_score=score)
    close(state.clean_margin, -0.25 * slope.clamp(max=0).sum().expand(2))
    close(state.best_margin, -0.25 * slope.clamp(min=0).sum().expand(2))
    close(state.best_margin, margin(*hidden(state.x_adv), *own(2)))
    _, without = attack(hidden, images, own(2), settings, 0)
    assert (without > state.best_margin + 1).all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, None])
def test_a_model_that_gives_no_gradient_is_still_searched(mode):
    score, weight = linear()

    def hidden(x):
        if mode is None:  # the logits have a gradient, but not to the image
            return [score(x.detach())[0] + torch.zeros(1, requires_grad=True)]
        with mode():
            return score(x)

    images = needing((0.3,), weight[1] - weight[0], "Linf")
    state = AttackState(hidden, images, own(1), budget())
    loss = over_levels(state, margin_loss)
    margins, _, gradient = state.loss_and_grad(torch.arange(1), images, loss)
    assert not gradient.any() and gradient.shape == images.shape
    close(margins, margin(*score(images), *own(1)))
    _, worst = attack(hidden, images, own(1), budget(("pgd_margin", "square"), queries=400), 0)
    assert (worst < 0).all()
