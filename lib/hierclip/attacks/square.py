"""Square: random search that needs no gradient (Andriushchenko et al., ECCV 2020)."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hierclip.attacks.norms import EPS, l2_size
from hierclip.attacks.rng import PerSampleRNG
from hierclip.attacks.state import AttackState
from hierclip.errors import HierclipError

SHARE = 0.8  # of the pixels that the first squares cover
HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries (section 4)
Signs = Callable[[Sequence[int]], Tensor]  # of a shape, for each image that is attacked


def square(state: AttackState, rng: PerSampleRNG) -> None:
    """Change one square window of an image at a time, and keep what raises its margin; one run of `queries` queries.

    It goes on from the most adversarial point so far. All images have the same windows, each its own signs.
    In L2 a window gets a bump of one sign (the paper: two halves of opposite sign).
    Raises HierclipError for pictures that are not square, or of a single pixel.
    """
    height, width = state.images.shape[-2:]
    if height != width or height < 2:
        raise HierclipError(
            f"pictures of {height} by {width} pixels; square takes square ones of two pixels a side or more"
        )
    first, propose = {"Linf": (_stripes, _repaint), "L2": (_tiles, _gather)}[state.budget.norm]
    rows, eps = state.robust_rows(), state.budget.eps
    images = state.images_at(rows)
    for query in range(state.budget.queries if len(rows) else 0):  # there are models that take no empty batch
        if query:
            side = window(width, query, state.budget.queries)
            delta = propose(state.x_adv[rows] - images, side, eps, partial(rng.signs, rows), rng.shared)
        else:
            delta = first(images, eps, partial(rng.signs, rows))
        margins = state.query(rows, state.norm.project(images + delta, images, eps))
        if (margins > state.budget.stop_margin).any():
            rows = state.robust_rows()
            images = state.images_at(rows)
            if not len(rows):
                return


def window(size: int, query: int, queries: int) -> int:
    """The side of the squares at a query, for images of `size` pixels a side."""
    halvings = sum(query * 10_000 / queries > mark for mark in HALVED_AT)
    return min(size - 1, max(1, round(size * (SHARE / 2**halvings) ** 0.5)))


def _corner(size: int, side: int, places: np.random.Generator) -> tuple[slice, slice]:
    top, left = places.integers(0, size - side + 1, 2).tolist()
    return slice(top, top + side), slice(left, left + side)


def _stripes(images: Tensor, eps: float, signs: Signs) -> Tensor:
    channels, height, width = images.shape[1:]
    return eps * signs((channels, 1, width)).expand(-1, -1, height, -1)


def _repaint(delta: Tensor, side: int, eps: float, signs: Signs, places: np.random.Generator) -> Tensor:
    """A window of one colour at the budget's edge."""
    place, out = _corner(delta.shape[-1], side, places), delta.clone()
    out[:, :, place[0], place[1]] = eps * signs((delta.shape[1], 1, 1)).expand(-1, -1, side, side)
    return out


def bump(side: int) -> Tensor:
    """A window's pattern of size 1: highest in the middle, falling off in squares (as half of eta in section 3.4)."""
    half, grid = side // 2, torch.zeros(side, side)
    for k in range(half + 1):
        grid[k : side - k, k : side - k] += 1 / (half + 1 - k) ** 2
    return grid / grid.norm()


def _tiles(images: Tensor, eps: float, signs: Signs) -> Tensor:
    """A grid of bumps of either sign, five or more a side, of size eps together."""
    channels, height, width = images.shape[1:]
    delta, side = torch.zeros_like(images), max(1, height // 5)
    for top in range(0, height - side + 1, side):
        for left in range(0, width - side + 1, side):
            delta[:, :, top : top + side, left : left + side] = signs((channels, 1, 1)) * bump(side).to(delta)
    return delta * (eps / l2_size(delta).clamp(min=EPS)).view(-1, 1, 1, 1)


def _channel_size(delta: Tensor) -> Tensor:
    """(N, channels, 1, 1)."""
    return delta.square().sum((2, 3), keepdim=True).sqrt()


def _gather(delta: Tensor, side: int, eps: float, signs: Signs, places: np.random.Generator) -> Tensor:
    """What one window holds of the budget, and what is unused, goes as a bump into another, on top of what it has."""
    size, out = delta.shape[-1], delta.clone()
    to, source = (_corner(size, side, places) for _ in range(2))
    mask = torch.zeros(size, size, dtype=torch.bool, device=delta.device)
    mask[to], mask[source] = True, True
    held = (delta * mask).square().sum((2, 3), keepdim=True)  # (n, channels, 1, 1)
    unused = (eps**2 - l2_size(delta).square()).clamp(min=0).view(-1, 1, 1, 1) / delta.shape[1]
    there = delta[:, :, to[0], to[1]]
    fresh = signs((delta.shape[1], 1, 1)) * bump(side).to(delta)
    mixed = fresh + there / _channel_size(there).clamp(min=EPS)
    mixed = torch.where(_channel_size(mixed) > 1e-3, mixed, fresh)  # what cancels out would lose what it held
    out[:, :, source[0], source[1]] = 0
    out[:, :, to[0], to[1]] = mixed / _channel_size(mixed) * (held + unused).sqrt()
    return out
