"""FAB-T: look for the nearest point of another class (Croce and Hein, ICML 2020, FAB)."""

import torch
from torch import Tensor

from hierclip.attacks.goals import target_gap
from hierclip.attacks.state import (
    EPS,
    AttackState,
    Loss,
    Norm,
    PerSampleRNG,
    per_image,
    select_rows,
    targeted_losses,
)

ALPHA_MAX = 0.1  # most that the step from the image weighs
ETA = 1.05  # how far a step goes, 1 at the linearised boundary
BETA = 0.9  # where the search goes on, of the way from the image to a misclassified point


def fab_t(state: AttackState, rng: PerSampleRNG) -> None:
    """Run targeted FAB once for each of at most nine best other classes, from the images.

    Nothing is random. Targets take the place of restarts, as in AutoAttack.
    """
    for loss in targeted_losses(state, target_gap):
        _seek_boundary(state, loss)


def _seek_boundary(state: AttackState, loss: Loss) -> None:
    """Seek the nearest point where the loss is 0, the boundary; keep what the budget holds.

    The search itself may leave the budget. At its end it queries the budget's edge on the way to
    the last point, which shows how far the margin falls where the boundary is out of reach.
    """
    norm, eps = state.norm, state.budget.eps
    rows = state.robust_rows()
    images = select_rows(state.images, rows)
    x = images
    for _ in range(state.budget.steps):
        if not len(rows):
            return
        within = norm.size(x - images) <= eps
        _, value, gradient = state.loss_and_grad(rows, x, loss, within)
        x = _step(x, images, -value, gradient, norm)
        within = norm.size(x - images) <= eps
        margins = state.query(rows, x, within)
        # From the boundary itself, margin 0, no step would lead away.
        x = torch.where(per_image(margins <= 0), images + BETA * (x - images), x)
        keep = state.best_margin[rows] > -state.budget.stop_margin
        if not keep.all():
            rows, images, x = (part[keep] for part in (rows, images, x))
    if len(rows):
        stretch = (eps / norm.size(x - images).clamp(min=EPS)).clamp(min=1)
        state.query(rows, norm.project(images + per_image(stretch) * (x - images), images, eps))


def _step(x: Tensor, images: Tensor, rise: Tensor, gradient: Tensor, norm: Norm) -> Tensor:
    """Step beyond the hyperplane where the linearised loss at x has risen by `rise` (n,).

    It is a mean of the steps from x and from the images, and the latter weighs the more the farther
    x is from the hyperplane, to stay near the images. Source: algorithm 1.
    """
    # Scaled as in `_l2_unit`: squares must not underflow.
    scale = per_image(gradient.abs().amax((1, 2, 3)).clamp(min=torch.finfo(x.dtype).tiny))
    slope = gradient / scale
    rise = per_image(rise.nan_to_num(0.0)) / scale
    from_x = move_to_plane(x, slope, rise, norm)
    risen = _total(slope * (images - x))
    from_image = move_to_plane(images, slope, rise - risen, norm)
    distance = norm.size(from_x)
    alpha = distance / (distance + norm.size(from_image)).clamp(min=EPS)
    alpha = per_image(alpha.clamp(max=ALPHA_MAX))
    step = (1 - alpha) * (x + ETA * from_x) + alpha * (images + ETA * from_image)
    return step.clamp(0, 1)


def move_to_plane(x: Tensor, slope: Tensor, rise: Tensor, norm: Norm) -> Tensor:
    """Return the smallest move d with <slope, d> = rise (n, 1, 1, 1) and x + d in [0, 1].

    Where [0, 1] holds no such d, the rise is as large as it can be. A pixel moves by min(t rate,
    room) for one t an image, the root of an increasing concave function made of linear pieces.
    Newton's method from the left finds it exactly: pixels only ever reach the end of their room.
    """
    direction = slope.sign() * rise.sign()
    slope, rise = slope.abs(), rise.abs()
    room = torch.where(direction > 0, 1 - x, x)
    capacity = slope * room
    rate = norm.rate(slope)
    t = torch.zeros_like(rise)
    at_end = (rise >= _total(capacity)).expand_as(slope)
    while True:
        missing = rise - _total(capacity.masked_fill(~at_end, 0))
        speed = _total((slope * rate).masked_fill(at_end, 0))
        t = torch.maximum(t, missing / speed.clamp(min=EPS))
        now_at_end = at_end | (t * rate >= room)
        if torch.equal(now_at_end, at_end):
            return direction * torch.where(at_end, room, t * rate)
        at_end = now_at_end


def _total(values: Tensor) -> Tensor:
    return values.sum((1, 2, 3), keepdim=True)
