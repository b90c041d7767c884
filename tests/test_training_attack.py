"""The attack of training, the norms that all attacks share, and `frozen`."""

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from hierclip.attacks import NORMS, frozen, pgd
from tests.test_attacks import SHAPE, each_norm, generator, linear, random_images

close = torch.testing.assert_close
BUDGETS = {
    "eps": st.floats(0, 1),
    "step": st.floats(0, 1),
    "steps": st.integers(0, 4),
    "seed": st.integers(0, 99),
}


def test_pgd_reaches_the_optimum_of_a_linear_function():
    _, weight = linear()
    images, slope = random_images(5, 0.2, 0.8), weight[1] - weight[0]
    moved, shift = pgd(
        lambda x, _: (x * slope).sum(),
        images,
        eps=8 / 255,
        step=2 / 255,
        steps=10,
        generator=generator(),
    )
    assert shift is None
    close(moved, images + 8 / 255 * slope.sign())


@given(**BUDGETS, momentum=st.floats(0, 0.99))
def test_pgd_never_leaves_the_budget_nor_the_unit_range(eps, step, steps, seed, momentum):
    _, weight = linear(seed=seed)
    images = random_images(3, seed=seed)
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
    images = random_images(3)
    moved, _ = pgd(
        lambda x, _: x.sum(), images, eps=eps, step=1.0, steps=0, generator=generator(seed)
    )
    assert torch.equal(
        moved, NORMS["Linf"].start(images, eps, torch.rand(images.shape, generator=generator(seed)))
    )


@pytest.mark.parametrize(
    ("momentum", "moves"), [(0.0, [1, 1, -1, -1]), (0.9, [1, 1, 1, -1]), (0.4, [1, 1, -1, -1])]
)
def test_a_step_follows_the_sign_of_the_decaying_sum_of_the_gradients_signs(momentum, moves):
    # With momentum 0.9 the sum is 1, 1.9, 0.71, -0.361; with 0.4 it is 1, 1.4, -0.44, -1.176.
    slopes, seen = iter([7.0, 0.1, -3.0, -0.2]), []

    def objective(x, _):
        seen.append(x.detach())
        return (next(slopes) * x).sum()

    images = random_images(2, 0.4, 0.6)
    moved, _ = pgd(
        objective, images, eps=0.3, step=0.01, steps=4, momentum=momentum, generator=generator()
    )
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
    _, shift = pgd(objective, random_images(2), texts=texts, text_eps=0.02, **settings)
    assert not seen[0].any() and max(s.abs().max() for s in seen) <= 0.02  # it starts from nothing
    close(shift, 0.02 * slope.sign())
    assert not shift.requires_grad


def test_the_texts_shift_turns_back_where_the_gradient_does():
    slopes = iter([1.0, -1.0, -1.0])
    settings = {"eps": 0.0, "step": 0.1, "steps": 3, "generator": generator()}
    _, shift = pgd(
        lambda x, s: next(slopes) * s.sum() + x.sum(),
        random_images(1),
        texts=torch.ones(2, 2),
        text_eps=1.0,
        **settings,
    )
    assert shift.tolist() == [[-1.0, -1.0]] * 2


@pytest.mark.parametrize("texts", [{}, {"texts": torch.ones(2, 2)}, {"text_eps": 0.1}])
def test_there_is_no_shift_without_texts_and_a_budget_for_them(texts):
    given = []

    def objective(x, shift):
        given.append(shift)
        return x.sum()

    assert (
        pgd(
            objective, random_images(1), eps=0.1, step=0.1, steps=2, generator=generator(), **texts
        )[1]
        is None
    )
    assert given == [None, None]


def test_training_gives_the_weights_no_gradient_and_leaves_the_images_alone():
    module, images = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), random_images(4)
    before = images.clone()
    moved, _ = pgd(
        lambda x, _: module(x).sum(), images, eps=0.1, step=0.1, steps=2, generator=generator()
    )
    assert all(weight.grad is None and weight.requires_grad for weight in module.parameters())
    assert torch.equal(images, before) and not images.requires_grad and not moved.requires_grad


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


@each_norm
def test_the_steepest_step_is_of_size_1_however_small_the_gradient(norm):
    gradient = torch.randn(2, *SHAPE, generator=generator())
    for scale in (1e-18, 1.0, 1e6):
        close(NORMS[norm].size(NORMS[norm].steepest(scale * gradient)), torch.ones(2))


@each_norm
@given(eps=st.floats(0, 2), seed=st.integers(0, 99))
def test_a_random_start_is_inside_the_budget_and_the_unit_range(norm, eps, seed):
    images = random_images(3)
    start = NORMS[norm].start(images, eps, torch.rand(images.shape, generator=generator(seed)))
    assert (
        (NORMS[norm].size(start - images) <= eps + 1e-5).all()
        and start.min() >= 0
        and start.max() <= 1
    )


def test_a_projection_stops_at_both_bounds():
    images = torch.tensor([0.5, 0.5, 0.95, 0.5]).view(1, 1, 2, 2)
    moved = torch.tensor([0.56, 0.38, 1.02, 0.9]).view(1, 1, 2, 2)
    close(NORMS["Linf"].project(moved, images, 0.1).flatten(), torch.tensor([0.56, 0.4, 1.0, 0.6]))
    close(
        NORMS["L2"].project(images + 0.3, images, 0.2).flatten(), torch.tensor([0.6, 0.6, 1.0, 0.6])
    )
