"""Attacks that follow a gradient at a given step: PGD, and Carlini and Wagner's with Adam."""

from collections.abc import Callable

import torch
from torch import Tensor

from hierclip.attacks.goals import LOSSES, margin
from hierclip.attacks.rng import PerSampleRNG
from hierclip.attacks.state import AttackState, over_levels


def pgd(state: AttackState, rng: PerSampleRNG, loss: str) -> None:
    """Run steepest ascent of a loss from random starts (Madry et al., ICLR 2018)."""
    budget, norm, objective = state.budget, state.norm, over_levels(state, LOSSES[loss])
    for _ in range(budget.restarts):
        _ascend(
            state, *state.random_start(rng, budget.eps), objective, lambda x, g, _: x + budget.step * norm.steepest(g)
        )


def cw(state: AttackState, rng: PerSampleRNG) -> None:
    """Run Adam on the margin, Carlini and Wagner's f6 (S&P 2017, section IV), projected into the budget.

    The first run starts at the image itself, the others at random.
    """
    budget, norm, objective = state.budget, state.norm, over_levels(state, margin)
    for run in range(budget.restarts):
        rows, start = state.random_start(rng, budget.eps if run else 0.0)
        moments = [torch.zeros_like(state.images), torch.zeros_like(state.images)]

        def step(x: Tensor, gradient: Tensor, at: tuple[int, Tensor], moments=moments) -> Tensor:
            k, rows = at
            first, second = (m[rows] for m in moments)
            square = gradient.square()
            if budget.norm == "L2":  # one scale for all pixels of an image, so that no pixel's direction is lost
                square = square.mean((1, 2, 3), keepdim=True).expand_as(square)
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * square
            moments[0][rows], moments[1][rows] = first, second
            move = first / (1 - 0.9**k) / ((second / (1 - 0.999**k)).sqrt() + 1e-12)  # about 1 in every pixel
            return x + budget.step * move / norm.size(torch.ones_like(x)).view(-1, 1, 1, 1)

        _ascend(state, rows, start, objective, step)


def _ascend(state: AttackState, rows: Tensor, x: Tensor, objective, step: Callable[..., Tensor]) -> None:
    """Take the steps of one run on images not yet misclassified; query the last point without a gradient."""
    for k in range(1, state.budget.steps + 1):
        if not len(rows):
            return
        margins, _, gradient = state.loss_and_grad(rows, x, objective)
        keep = ~(margins > state.budget.stop_margin)
        if not keep.all():
            rows, x, gradient = rows[keep], x[keep], gradient[keep]
        x = state.norm.project(step(x, gradient, (k, rows)), state.images_at(rows), state.budget.eps)
    if len(rows):
        state.query(rows, x)
