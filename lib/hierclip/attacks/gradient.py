"""Attacks that follow a gradient at a given step: PGD, and Carlini and Wagner's with Adam."""

from collections.abc import Callable

import torch
from torch import Tensor

from hierclip.attacks.aims import LOSSES, margin
from hierclip.attacks.draws import Draws
from hierclip.attacks.siege import Siege, over_parts


def pgd(siege: Siege, draws: Draws, loss: str) -> None:
    """Steepest ascent of a loss from random starts (Madry et al., ICLR 2018)."""
    budget, norm, objective = siege.budget, siege.norm, over_parts(siege, LOSSES[loss])
    for _ in range(budget.restarts):
        _ascend(siege, *siege.start(draws, budget.eps), objective, lambda x, g, _: x + budget.step * norm.steepest(g))


def cw(siege: Siege, draws: Draws) -> None:
    """Adam on the margin, Carlini and Wagner's f6 (S&P 2017, section IV), held to the budget by projection.

    The first run starts at the image itself, the others at random.
    """
    budget, norm, objective = siege.budget, siege.norm, over_parts(siege, margin)
    for run in range(budget.restarts):
        rows, start = siege.start(draws, budget.eps if run else 0.0)
        moments = [torch.zeros_like(siege.images), torch.zeros_like(siege.images)]

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

        _ascend(siege, rows, start, objective, step)


def _ascend(siege: Siege, rows: Tensor, x: Tensor, objective, step: Callable[..., Tensor]) -> None:
    """The steps of one run, on what still stands; the last point is looked at without a gradient."""
    for k in range(1, siege.budget.steps + 1):
        if not len(rows):
            return
        margins, _, gradient = siege.climb(rows, x, objective)
        keep = ~(margins > siege.budget.enough)
        if not keep.all():
            rows, x, gradient = rows[keep], x[keep], gradient[keep]
        x = siege.norm.project(step(x, gradient, (k, rows)), siege.at(rows), siege.budget.eps)
    if len(rows):
        siege.look(rows, x)
