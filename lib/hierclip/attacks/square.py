"""Square: random search that needs no gradient (Andriushchenko et al., ECCV 2020)."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hierclip.attacks.state import EPS, AttackState, PerSampleRNG, l2_size, per_image, select_rows
from hierclip.errors import HierclipError

SHARE = 0.8  # of the pixels, covered by the first squares
HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries (section 4)
Signs = Callable[[Sequence[int]], Tensor]  # draws random signs of a shape for each attacked image


def square(state: AttackState, rng: PerSampleRNG) -> None:
    """Change one square window of an image at a time, and keep what makes it more adversarial.

    One run of `queries` queries goes on from the most adversarial point so far. All images have the
    same windows, each its own signs. In L2 a window gets a bump of one sign (the paper: two halves
    of opposite sign). Raises HierclipError for images that are not square, or of a single pixel.
    """
    height, width = state.images.shape[-2:]
    if height != width or height < 2:
        raise HierclipError(
            f"images of {height} by {width} pixels; "
            "square takes square ones of two pixels a side or more"
        )
    start, propose = {"Linf": (_stripes, _repaint), "L2": (_tiles, _gather)}[state.budget.norm]
    eps = state.budget.eps
    rows = state.robust_rows()
    images = select_rows(state.images, rows)
    for query in range(state.budget.queries):
        if not len(rows):  # there are models that take no empty batch
            return
        signs = partial(rng.signs, rows)
        if query:
            side = window(width, query, state.budget.queries)
            delta = propose(state.x_adv[rows] - images, side, eps, signs, rng.shared)
        else:
            delta = start(images, eps, signs)
        margins = state.query(rows, state.norm.project(images + delta, images, eps))
        if (margins <= -state.budget.stop_margin).any():
            rows = state.robust_rows()
            images = select_rows(state.images, rows)


def window(size: int, query: int, queries: int) -> int:
    """Return the side of the squares at a query, for images of `size` pixels a side."""
    halvings = sum(query * 10_000 / queries > mark for mark in HALVED_AT)
    return min(size - 1, max(1, round(size * (SHARE / 2**halvings) ** 0.5)))


def _random_window(size: int, side: int, rng: np.random.Generator) -> tuple[slice, ...]:
    """Draw a window for `side` by `side` pixels, as an index into (N, 3, H, W)."""
    top, left = rng.integers(0, size - side + 1, 2).tolist()
    return slice(None), slice(None), slice(top, top + side), slice(left, left + side)


def _stripes(images: Tensor, eps: float, signs: Signs) -> Tensor:
    channels, height, width = images.shape[1:]
    return eps * signs((channels, 1, width)).expand(-1, -1, height, -1)


def _repaint(
    delta: Tensor, side: int, eps: float, signs: Signs, rng: np.random.Generator
) -> Tensor:
    """Repaint a window in one colour at the budget's edge."""
    out = delta.clone()
    place = _random_window(delta.shape[-1], side, rng)
    out[place] = eps * signs((delta.shape[1], 1, 1)).expand(-1, -1, side, side)
    return out


def bump(side: int) -> Tensor:
    """Return a window's pattern of size 1: highest in the middle, falling off in squares.

    It is half of eta in section 3.4.
    """
    half = side // 2
    grid = torch.zeros(side, side)
    for k in range(half + 1):
        grid[k : side - k, k : side - k] += 1 / (half + 1 - k) ** 2
    return grid / grid.norm()


def _tiles(images: Tensor, eps: float, signs: Signs) -> Tensor:
    """Return a grid of bumps of either sign, five or more a side, of size eps together."""
    channels, height, width = images.shape[1:]
    delta = torch.zeros_like(images)
    side = max(1, height // 5)
    for top in range(0, height - side + 1, side):
        for left in range(0, width - side + 1, side):
            tile = signs((channels, 1, 1)) * bump(side).to(delta)
            delta[:, :, top : top + side, left : left + side] = tile
    return delta * per_image(eps / l2_size(delta).clamp(min=EPS))


def _channel_size(delta: Tensor) -> Tensor:
    """Return the L2 norm of each channel, (N, channels, 1, 1)."""
    return delta.square().sum((2, 3), keepdim=True).sqrt()


def _gather(delta: Tensor, side: int, eps: float, signs: Signs, rng: np.random.Generator) -> Tensor:
    """Move what one window holds of the budget, and what is unused, into a bump in another."""
    size = delta.shape[-1]
    to = _random_window(size, side, rng)
    source = _random_window(size, side, rng)
    mask = torch.zeros(1, 1, size, size, dtype=torch.bool, device=delta.device)
    mask[to] = True
    mask[source] = True
    held = (delta * mask).square().sum((2, 3), keepdim=True)  # (n, channels, 1, 1)
    unused = per_image((eps**2 - l2_size(delta).square()).clamp(min=0)) / delta.shape[1]
    there = delta[to]
    fresh = signs((delta.shape[1], 1, 1)) * bump(side).to(delta)
    mixed = fresh + there / _channel_size(there).clamp(min=EPS)
    # Bumps that cancel out would lose what the window holds.
    mixed = torch.where(_channel_size(mixed) > 1e-3, mixed, fresh)
    out = delta.clone()
    out[source] = 0
    out[to] = mixed / _channel_size(mixed) * (held + unused).sqrt()
    return out
