"""FAB-T: the move to a hyperplane within the box, the least distortion, and what it may not do."""

from dataclasses import replace
from functools import partial
from math import inf

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.optimize import brentq, linprog
from torch import nn

from hierclip.attacks import ATTACKS, NORMS, STANDARD, AttackState, PerSampleRNG, attack, margin
from hierclip.attacks.fab import move_to_plane
from tests.test_attacks import (
    SHAPE,
    budget,
    close,
    generator,
    linear,
    needing,
    own,
    random_images,
)

each_norm = pytest.mark.parametrize("norm", NORMS)


# The move to a hyperplane


def oracle_linf(x, slope, rise):
    """The least t with |d| <= t: a linear program over (d, t)."""
    n = len(x)
    both = np.vstack([np.eye(n), -np.eye(n)])
    found = linprog(
        [*np.zeros(n), 1],
        A_ub=np.hstack([both, -np.ones((2 * n, 1))]),
        b_ub=np.zeros(2 * n),
        A_eq=[[*slope, 0]],
        b_eq=[rise],
        bounds=[*zip(-x, 1 - x, strict=True), (0, None)],
    )
    return found.fun if found.status == 0 else None


def oracle_l2(x, slope, rise):
    """d is the multiple of the slope, cut off at the box, that rises as much (its KKT point)."""

    def move(multiplier):
        return np.clip(multiplier * slope, -x, 1 - x)

    low, high = -1e4, 1e4
    if not slope @ move(low) < rise < slope @ move(high):
        return None
    return np.linalg.norm(move(brentq(lambda m: slope @ move(m) - rise, low, high, xtol=1e-14)))


ORACLES = {"Linf": oracle_linf, "L2": oracle_l2}


@each_norm
@given(seed=st.integers(0, 10**6), share=st.floats(-1.4, 1.4), scale=st.sampled_from([0.1, 1, 3]))
def test_a_move_to_a_hyperplane_is_the_smallest_in_the_box(norm, seed, share, scale):
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=12).round(rng.integers(1, 3))  # some of the pixels at 0 or 1
    slope = rng.normal(size=12) * np.exp(scale * rng.normal(size=12))
    slope[rng.uniform(size=12) < 0.2] = 0
    most = np.where((slope > 0) == (share > 0), 1 - x, x) @ np.abs(slope)  # the box lets it rise
    rise = share * most
    d = move_to_plane(
        torch.from_numpy(x).view(1, 3, 2, 2),
        torch.from_numpy(slope).view(1, 3, 2, 2),
        torch.tensor(rise).view(1, 1, 1, 1),
        NORMS[norm],
    )
    moved = d.flatten().numpy()
    assert (x + moved >= -1e-12).all() and (x + moved <= 1 + 1e-12).all()
    assert moved @ slope == pytest.approx(np.clip(rise, -most, most), abs=1e-9)
    assert (moved[slope == 0] == 0).all()
    least = ORACLES[norm](x, slope, rise)
    if least is not None:
        assert float(NORMS[norm].size(d)) == pytest.approx(least, rel=1e-6, abs=1e-8)
    else:
        assert abs(share) > 1 - 1e-6 or most == 0


@each_norm
def test_a_hyperplane_out_of_reach_moves_every_pixel_to_the_end_of_the_box(norm):
    x, slope = random_images(1), torch.randn(1, *SHAPE, generator=generator())
    for sign in (1, -1):
        d = move_to_plane(x, slope, torch.full((1, 1, 1, 1), sign * 1e4), NORMS[norm])
        close(x + d, (sign * slope > 0).float())


@each_norm
def test_a_slope_of_zero_moves_nothing(norm):
    x = random_images(2)
    rise = torch.tensor([1.0, torch.inf]).view(2, 1, 1, 1)
    assert not move_to_plane(x, torch.zeros_like(x), rise, NORMS[norm]).any()


# The attack


def least_distortion(images, slope, gap, norm):
    """How far each image is from where a linear margin falls by its gap, by the oracle."""
    pairs = zip(images.double().flatten(1).numpy(), gap.double().tolist(), strict=True)
    direction = -slope.double().flatten().numpy()
    return torch.tensor([ORACLES[norm](x, direction, fall) for x, fall in pairs])


@each_norm
def test_a_linear_model_of_two_classes_is_misled_just_beyond_its_least_distortion(norm):
    """Also where the box cuts the way short: some pixels are at 0 or 1."""
    score, weight = linear(bias=8.0)
    images = random_images(6, -0.5, 1.5).clamp(0, 1)
    gap = margin(*score(images), *own(6))
    images, gap = images[gap > 0], gap[gap > 0]
    least = least_distortion(images, weight[0] - weight[1], gap, norm)
    assert len(images) > 3
    for k in range(len(images)):
        few = budget(("fab_t",), norm, steps=30)
        inside, outside = (
            attack(score, images[[k]], own(1), replace(few, eps=share * float(least[k])), 0)[1]
            for share in (0.99, 1.01)
        )
        assert inside > 0 > outside


@each_norm
def test_of_several_linear_classes_the_nearest_counts(norm):
    """Of twelve classes the nearest is among the nine best, though seldom the best."""
    score, weight = linear(bias=9.0, classes=12)
    images = random_images(8, 0.3, 0.7)
    scores = score(images)[0]
    dual = (weight[:1] - weight[1:]).flatten(1)
    sizes = dual.abs().sum(1) if norm == "Linf" else dual.norm(dim=1)
    distances = (scores[:, :1] - scores[:, 1:]) / sizes  # the box is far
    best = scores[:, 1:].argsort(1, descending=True)
    nearest, _ = distances.gather(1, best[:, :9]).min(1)
    assert (distances.argmin(1) != best[:, 0]).any()
    for k in range(len(images)):
        few = budget(("fab_t",), norm, steps=10)
        inside, outside = (
            attack(score, images[[k]], own(1, 12), replace(few, eps=share * float(nearest[k])), 0)[
                1
            ]
            for share in (0.99, 1.01)
        )
        assert inside > 0 > outside


def network(seed=0, classes=5):
    """Return the score of a small network with kinks."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, classes))
    with torch.no_grad():
        layers[-1].weight *= 8
    return lambda x: [layers.to(x.dtype)(x)]


def predicted(score, images, classes=5):
    return [score(images)[0].argmax(1)[:, None] == torch.arange(classes)]


@each_norm
def test_what_is_kept_lies_in_the_budget_and_the_box_though_the_search_does_not(norm):
    score, eps, furthest = network(), {"Linf": 0.02, "L2": 0.1}[norm], []
    images = random_images(20)

    def watched(x):
        furthest.append(float(NORMS[norm].size(x.detach() - images[: len(x)]).max()))
        return score(x)

    rights = predicted(score, images)
    few = budget(("fab_t",), norm, eps=eps, steps=15)
    moved, worst = attack(watched, images, rights, few, 0)
    assert (NORMS[norm].size(moved - images) <= eps + 1e-6).all()
    assert moved.min() >= 0 and moved.max() <= 1
    close(margin(*score(moved), *rights), worst)
    assert max(furthest) > 2 * eps and 0 < (worst < 0).sum() < 20


@each_norm
def test_an_image_has_the_same_result_alone_as_among_others(norm):
    score, images = network(), random_images(8).double()
    rights = predicted(score, images)
    eps = {"Linf": 0.02, "L2": 0.1}[norm]
    run = partial(attack, budget=budget(("fab_t",), norm, eps=eps, steps=10), seed=3)
    together = run(score, images, rights)
    assert 0 < (together[1] < 0).sum() < 8
    for k in range(8):
        alone = run(score, images[[k]], [rights[0][[k]]], sample_ids=[k])
        close(alone[0][0], together[0][k])
        close(alone[1][0], together[1][k])


@each_norm
@pytest.mark.parametrize("classes", [(2,), (2, 3), (1, 3)])
def test_levels_with_fewer_classes_than_targets_are_attacked_at_once(norm, classes):
    """A level with one class has no other that can win, so nothing is attacked."""
    scores = [linear(bias=0.5, classes=k, seed=k)[0] for k in classes]
    images = random_images(20, 0.3, 0.7)
    rights = [own(20, k)[0] for k in classes]
    few = budget(("fab_t",), norm, steps=15)
    moved, worst = attack(lambda x: [s(x)[0] for s in scores], images, rights, few, 0)
    if 1 in classes:
        assert torch.equal(moved, images) and (worst == torch.inf).all()
        return
    each = torch.stack([margin(*s(moved), m) for s, m in zip(scores, rights, strict=True)])
    close(each.amax(0), worst)
    assert (worst < 0).sum() > 0


def test_saturated_scores_stall_the_cross_entropy_and_not_fab():
    """In float32 the cross-entropy of a gap of thousands is 0 and so is its gradient."""
    score, weight = linear()
    images, rights = needing((0.5, 0.7, 0.9), weight[1] - weight[0], "Linf"), own(3)
    results = {
        name: attack(lambda x: [1e5 * score(x)[0]], images, rights, budget((name,), steps=20), 0)[1]
        for name in ("apgd_ce", "fab_t")
    }
    assert (results["apgd_ce"] > 0).all() and (results["fab_t"] < 0).all()


@each_norm
def test_where_the_boundary_is_out_of_reach_the_budget_s_edge_is_asked_for(norm):
    """A linear margin then falls by what the budget allows, so pruning knows how far it fell."""
    score, weight = linear(bias=7.0)
    images, slope = random_images(3, 0.4, 0.6), weight[1] - weight[0]
    few = budget(("fab_t",), norm, steps=3)
    state = AttackState(score, images, own(3), few)
    ATTACKS["fab_t"](state, PerSampleRNG(0, range(3)))
    dual = slope.abs().sum() if norm == "Linf" else slope.norm()
    close(state.clean_margin - state.best_margin, (few.eps * dual).expand(3), rtol=1e-3, atol=0.0)


def test_a_search_goes_back_from_the_boundary_itself():
    """The margin is 0 from a mean of 0.52 on, and no step leads away from there."""
    points = []

    def score(x):
        if x.requires_grad:
            points.append(float(x.detach().mean()) - 0.5)
        margin = 100 * (0.02 - (x - 0.5).mean((1, 2, 3))).relu()
        return [torch.stack([margin, 0 * margin], dim=1)]

    few = replace(budget(("fab_t",), eps=0.1, steps=2), stop_margin=inf)
    _, worst = attack(score, torch.full((1, *SHAPE), 0.5), own(1), few, 0)
    assert points == pytest.approx([0, 0.9 * 1.05 * 0.02], abs=1e-6) and worst.item() == 0


def test_the_standard_suite_is_autoattack_s():
    assert STANDARD == ("apgd_ce", "apgd_t", "fab_t", "square")


# Beside a peer


@each_norm
def test_as_many_images_are_misled_as_by_pyautoattack_s_fab(norm):
    peer = pytest.importorskip("pyautoattack.fab_pt", reason='needs pip install -e ".[peers]"')
    score, images = network(classes=11), random_images(60)
    rights = predicted(score, images, classes=11)
    labels = rights[0].float().argmax(1)
    shares = []
    for eps in {"Linf": (0.01, 0.02, 0.04), "L2": (0.05, 0.1, 0.2)}[norm]:
        _, worst = attack(score, images, rights, budget(("fab_t",), norm, eps=eps, steps=20), 0)
        judge = peer.FABAttack_PT(
            lambda x: score(x)[0], norm, n_iter=20, eps=eps, targeted=True, device="cpu"
        )
        theirs = judge.perturb(images.clone(), labels)
        within = NORMS[norm].size(theirs - images) <= eps
        misled = within & (margin(*score(theirs), *rights) < 0)
        shares.append(float((worst < 0).float().mean()))
        assert abs(shares[-1] - float(misled.float().mean())) <= 0.02, shares
    assert shares[0] < 0.4 and shares[-1] > 0.6
