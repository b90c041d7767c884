"""Square and Auto-PGD, each against its paper, and what each attack takes."""

from functools import partial

import pytest
import torch
from hypothesis import given, strategies as st

from hierclip.attacks import (
    ATTACKS,
    LOSSES,
    PerSampleRNG,
    attack,
    cross_entropy,
    margin,
    run_attacks,
)
from hierclip.attacks.goals import targeted_dlr, targets
from hierclip.attacks.gradient import checkpoints
from hierclip.attacks.square import _gather, bump, window
from hierclip.attacks.state import l2_size
from tests.test_attacks import (
    BY_GRADIENT,
    EPS,
    budget,
    each_attack,
    each_norm,
    generator,
    linear,
    needing,
    own,
    random_images,
    reach,
)

close = torch.testing.assert_close
HALVINGS = {
    0: 0,
    10: 0,
    11: 1,
    50: 1,
    51: 2,
    200: 2,
    201: 3,
    500: 3,
    501: 4,
    1000: 4,
    1001: 5,
    2000: 5,
    2001: 6,
}
HALVINGS |= {4000: 6, 4001: 7, 6000: 7, 6001: 8, 8000: 8, 8001: 9, 9999: 9}  # of 10,000 queries


# Square


@each_norm
def test_square_gets_a_fair_share_of_a_linear_model(norm):
    score, weight = linear(bias=10.0)
    images, slope = random_images(5, 0.3, 0.7), weight[1] - weight[0]
    _, worst = attack(score, images, own(5), budget(("square",), norm, queries=400), 0)
    fall = margin(*score(images), *own(5)) - worst
    assert (fall > 0.5 * reach(slope, norm)).all() and (fall < 1.0001 * reach(slope, norm)).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_a_model_is_never_asked_about_no_images(name):
    """A ViT of open_clip cannot be; every image has fallen before the attack begins."""
    score, _ = linear(bias=-10.0)

    def wants_images(x):
        assert len(x)
        return score(x)

    _, worst = attack(wants_images, random_images(3, 0.3, 0.7), own(3), budget((name,), "Linf"), 0)
    assert (worst < 0).all()


@each_norm
def test_square_needs_no_gradient(norm):
    score, weight = linear()

    @torch.no_grad()
    def shut(x):
        assert not torch.is_grad_enabled() and not x.requires_grad
        return [s.detach() for s in score(x)]

    images = needing((0.4, 2.0), weight[1] - weight[0], norm)
    _, worst = attack(shut, images, own(2), budget(("square",), norm, queries=300), 0)
    assert (worst < 0).tolist() == [True, False]


@each_norm
def test_square_finds_what_no_gradient_leads_to(norm):
    score, weight = linear()
    images = needing((0.45, 0.45, 0.5, 2.0), weight[1] - weight[0], norm)

    def rounded(x):  # has no slope anywhere, and no two logits are equal
        return [(64 * s).floor() / 64 + torch.tensor([1 / 128, 0]) for s in score(x)]

    blind = {
        name: attack(rounded, images, own(4), budget((name,), norm), 0)[1] < 0
        for name in BY_GRADIENT
    }
    assert not any(broken.any() for broken in blind.values())
    _, worst = attack(rounded, images, own(4), budget(("square",), norm, queries=600), 0)
    assert (worst < 0).tolist() == [True, True, True, False]


@given(size=st.integers(2, 224))
def test_windows_shrink_as_the_paper_says(size):
    sides = [window(size, query, 10_000) for query in HALVINGS]
    shares = [0.8 / 2**halvings for halvings in HALVINGS.values()]
    assert sides == [min(size - 1, max(1, round(size * share**0.5))) for share in shares]
    assert sides == sorted(sides, reverse=True)


@given(queries=st.integers(1, 5000), share=st.integers(0, 99))
def test_a_windows_side_goes_by_the_share_of_the_queries(queries, share):
    assert window(224, share * queries, 100 * queries) == window(224, 100 * share, 10_000)


@pytest.mark.parametrize("side", [1, 2, 3, 8, 201])
def test_a_bump_is_of_size_1_and_highest_in_the_middle(side):
    pattern = bump(side)
    close(pattern.norm(), torch.tensor(1.0))
    assert pattern.shape == (side, side) and pattern.abs().argmax() in torch.nonzero(
        pattern.flatten().abs() == pattern[side // 2, side // 2].abs()
    )


def drawn(count, seed=0):
    """The signs and the places of a move."""
    draws = PerSampleRNG(seed, range(count))
    return partial(draws.signs, torch.arange(count)), draws.shared


@given(side=st.integers(1, 15), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_a_move_of_squares_l2_spends_the_whole_budget(side, share, seed):
    delta = torch.randn(4, 3, 16, 16, generator=generator(seed))
    delta *= (share * 0.5 / l2_size(delta)).view(-1, 1, 1, 1)
    for step in range(4):
        before = delta.clone()
        moved = _gather(delta, side, 0.5, *drawn(4, seed + step))
        close(l2_size(moved), torch.full((4,), 0.5), rtol=1e-4, atol=0.0)
        assert torch.equal(delta, before)
        delta = moved


def test_a_move_of_squares_l2_touches_two_windows_at_most_and_empties_one():
    delta = torch.full((2, 3, 16, 16), 0.01)
    moved = _gather(delta, 3, float(l2_size(delta)[0]), *drawn(2))
    assert 9 <= int((moved != delta).any(1)[0].sum()) <= 18
    assert int((moved == 0).all(1)[0].sum()) > 0


@each_norm
def test_square_asks_for_as_many_images_as_it_may(norm):
    score, weight = linear()
    score, counts = counted(score)
    images = needing((2.0,) * 3, weight[1] - weight[0], norm)
    run_attacks(score, images, own(3), budget(("square",), norm, queries=37), 0)
    assert counts == {True: 0, False: 3 + 3 * 37}  # the clean images, and its own


# Auto-PGD


def test_margin_and_cross_entropy_by_hand():
    scores = torch.tensor([[1.0, 2.0, 4.0, 0.0]])
    single = torch.tensor([[False, True, False, False]])
    group = torch.tensor([[True, False, True, False]])
    mass = scores.exp() / scores.exp().sum()
    close(margin(scores, single), torch.tensor([-2.0]))
    close(margin(scores, group), torch.tensor([2.0]))
    close(cross_entropy(scores, single), -mass[:, 1].log())
    close(cross_entropy(scores, group), -(mass[:, 0] + mass[:, 2]).log())
    assert torch.equal(LOSSES["margin"](scores, group), -margin(scores, group))
    assert LOSSES["ce"] is cross_entropy


def test_targets_are_the_others_by_rank_and_the_last_where_there_are_not_so_many():
    scores = torch.tensor([[5.0, 1.0, 3.0, 2.0], [5.0, 1.0, 3.0, 2.0]])
    own = torch.tensor([[True, False, False, False], [True, False, False, True]])
    assert [targets(scores, own, rank).tolist() for rank in (1, 2, 3, 4)] == [
        [2, 2],
        [3, 1],
        [1, 1],
        [1, 1],
    ]


def test_targeted_dlr_by_hand():
    scores = torch.tensor([[5.0, 1.0, 3.0, 2.0, -1.0]])
    single, group = torch.tensor([[1, 0, 0, 0, 0]]).bool(), torch.tensor([[0, 1, 1, 0, 0]]).bool()
    close(
        targeted_dlr(scores, single, torch.tensor([3])), torch.tensor([(2 - 5) / (5 - (2 + 1) / 2)])
    )
    close(
        targeted_dlr(scores, group, torch.tensor([0])), torch.tensor([(5 - 3) / (5 - (2 + 1) / 2)])
    )
    close(
        targeted_dlr(scores[:, :3], single[:, :3], torch.tensor([2])), torch.tensor([-2.0])
    )  # fewer than four


@given(seed=st.integers(0, 99), scale=st.floats(0.1, 100), shift=st.floats(-50, 50))
def test_targeted_dlr_does_not_know_a_scale_nor_a_shift_of_the_scores(seed, scale, shift):
    scores = torch.randn(4, 6, generator=generator(seed), dtype=torch.float64)
    (mine,), target = own(4, 6), torch.tensor([1, 2, 3, 4])
    close(targeted_dlr(scale * scores + shift, mine, target), targeted_dlr(scores, mine, target))


@pytest.mark.parametrize("steps", [10, 50, 100, 1000])
def test_apgd_thinks_over_its_step_where_croce_and_hein_say(steps):
    per_cent = [0, 22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(steps) == [-(-p * steps // 100) for p in per_cent]  # ceil, in whole numbers


def wavy(x):
    """Many small hills on larger ones: two scores of images."""
    slope = torch.randn(48, 6, generator=generator(5))
    z = (x - 0.5).flatten(1) @ slope
    return [
        torch.stack(
            [torch.full((len(x),), 9.0), (6 * z).sin().sum(1) + (z.sin() * 3).sum(1) / 2], dim=1
        )
    ]


@each_norm
@pytest.mark.parametrize("share", [0.01, 0.1, 2.0])
def test_apgd_does_at_least_as_well_as_pgd_of_any_step_with_as_many_gradients(share, norm):
    images, step = random_images(40, 0.2, 0.8), share * EPS[norm]
    start = margin(*wavy(images), *own(40))
    results = {}
    for name in ("apgd_margin", "pgd_margin"):
        score, counts = counted(wavy)
        few = budget((name,), norm, step=step, steps=40)
        _, best = attack(score, images, own(40), few, 0)
        results[name] = (start - best).mean()
        assert counts[True] <= 40 * 40
    assert results["apgd_margin"] >= results["pgd_margin"] > 0


@pytest.mark.parametrize("rises", [False, True])
def test_apgd_halves_its_step_where_nothing_improves_and_only_there(rises):
    points = []

    def score(x):  # its value depends on how often it was asked; its gradient turns round each time
        points.append(x.detach().clone())
        value = (
            (1 if rises else -1) * len(points)
            - 500
            + (-1) ** len(points) * (x - x.detach()).flatten(1).sum(1)
        )
        return [torch.stack([torch.zeros(len(x)), value], dim=1)]

    attack(score, random_images(1, 0.4, 0.6), own(1), budget(("apgd_margin",), steps=100), 0)
    moves = [float((b - a).abs().max()) for a, b in zip(points[1:], points[2:], strict=False)]
    assert moves[1] > EPS["Linf"]
    assert (moves[-1] > EPS["Linf"] / 2) if rises else (moves[-1] < EPS["Linf"] / 50)


# What an attack takes


def counted(score):
    """A score that counts the images it was given, with a gradient (True) and without (False)."""
    counts = {True: 0, False: 0}

    def seen(x):
        counts[x.requires_grad] += len(x)
        return score(x)

    return seen, counts


@each_norm
@each_attack
def test_an_attack_takes_no_more_gradients_than_its_budget(name, norm):
    score, weight = linear(classes=5)
    score, counts = counted(score)
    few = budget((name,), norm, steps=4, restarts=2, queries=7)
    images = needing((-0.5, 0.2, 0.5, 3.0), weight[1] - weight[0], norm).clamp(0, 1)
    attack(score, images, own(4, 5), few, 0)
    runs = 4 if name in ("apgd_t", "fab_t") else 2  # one for each target
    assert counts[True] <= 4 * few.steps * runs and (name != "square" or counts[True] == 0)


@each_norm
@pytest.mark.parametrize("name", BY_GRADIENT)
def test_one_gradient_that_is_no_number_does_not_end_a_run(name, norm):
    (score, weight), calls = linear(), []

    def torn(x):  # on the second gradient its value is right, and its slope nan
        calls.append(x.requires_grad)
        edge = (
            (x - x.detach()).flatten(1).abs().sum(1, keepdim=True).sqrt() if sum(calls) == 2 else 0
        )
        return [s * (1 + edge) for s in score(x)]

    images = needing((0.6,), weight[1] - weight[0], norm)
    _, worst = attack(torn, images, own(1), budget((name,), norm, step=0.1 * EPS[norm]), 0)
    assert (worst < 0).all()
