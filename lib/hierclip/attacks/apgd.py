"""Auto-PGD: no step size to choose (Croce and Hein, ICML 2020, algorithm 1)."""

import torch
from torch import Tensor

from hierclip.attacks.aims import LOSSES, targeted_dlr, targets
from hierclip.attacks.draws import Draws
from hierclip.attacks.siege import Loss, Siege, over_parts

MOMENTUM, RISES = 0.75, 0.75  # alpha, and rho: the share of steps that must raise the loss
TARGETS = 9


def apgd(siege: Siege, draws: Draws, loss: str) -> None:
    """Auto-PGD on a loss that needs no target."""
    for _ in range(siege.budget.restarts):
        _run(siege, over_parts(siege, LOSSES[loss]), draws)


def apgd_dlr(siege: Siege, draws: Draws) -> None:
    """Auto-PGD on the targeted DLR loss: one run for each of the nine best of the other scores, or as many as are.

    The targets stand in for restarts, of which it takes none.
    """
    most = max((int((~own).sum(1).max()) for own in siege.own if len(own)), default=0)
    for rank in range(1, min(TARGETS, most) + 1):
        chosen = [targets(s, own, rank) for s, own in zip(siege.clean, siege.own, strict=True)]
        _run(siege, over_parts(siege, targeted_dlr, chosen), draws)


def checkpoints(steps: int) -> list[int]:
    """After which steps the step size is thought over: ceil(p_j steps), p_0 = 0, p_1 = 0.22, and each stretch 0.03
    shorter than the one before it, down to 0.06 (section 3)."""
    shares = [0, 22]  # per cent: as whole numbers nothing is rounded up that should not be
    while shares[-1] < 100:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 3, 6))
    return [-(-share * steps // 100) for share in shares[:-1]]


def _run(siege: Siege, loss: Loss, draws: Draws) -> None:
    budget, norm = siege.budget, siege.norm
    rows, x = siege.start(draws, budget.eps)
    if not len(rows):
        return
    margins, values, gradient = siege.climb(rows, x, loss)
    state = _State(rows, x, x, x, values, values, gradient, gradient, 2 * budget.eps)
    marks = checkpoints(budget.steps)
    for k in range(1, budget.steps + 1):
        state = state.take(~(margins > budget.enough))
        if not len(state.rows):
            return
        images = siege.at(state.rows)
        z = norm.project(state.x + state.size * norm.steepest(state.gradient), images, budget.eps)
        moved = z if k == 1 else state.x + MOMENTUM * (z - state.x) + (1 - MOMENTUM) * (state.x - state.before)
        x = norm.project(moved, images, budget.eps)
        if k == budget.steps:
            siege.look(state.rows, x)
            return
        margins, values, gradient = siege.climb(state.rows, x, loss)
        state.advance(x, values, gradient)
        if k in marks:
            state.think(k - marks[marks.index(k) - 1])


class _State:
    """What a run remembers of each image that still stands."""

    def __init__(self, rows, x, before, top, value, best, gradient, top_gradient, size):
        self.rows, self.x, self.before, self.top = rows, x, before, top
        self.value, self.best, self.gradient, self.top_gradient = value, best, gradient, top_gradient
        self.size = torch.full((len(rows), 1, 1, 1), size, device=x.device, dtype=x.dtype)
        self.rises, self.reduced, self.marked = torch.zeros_like(value), torch.ones_like(value).bool(), best.clone()

    def take(self, keep: Tensor) -> "_State":
        if not keep.all():
            for name, values in vars(self).items():
                setattr(self, name, values[keep])
        return self

    def advance(self, x: Tensor, values: Tensor, gradient: Tensor) -> None:
        self.rises += values > self.value
        self.before, self.x, self.value, self.gradient = self.x, x, values, gradient
        better = values > self.best
        pick = better.view(-1, 1, 1, 1)
        self.best = torch.where(better, values, self.best)
        self.top, self.top_gradient = torch.where(pick, x, self.top), torch.where(pick, gradient, self.top_gradient)

    def think(self, steps: int) -> None:
        """Halves the step where too few of the last `steps` raised the loss, or where the best has not moved since a
        stretch that did not halve it; the run goes on from the best point there."""
        halve = (self.rises < RISES * steps) | (~self.reduced & (self.best == self.marked))
        pick = halve.view(-1, 1, 1, 1)
        self.size = torch.where(pick, self.size / 2, self.size)
        self.x, self.gradient = torch.where(pick, self.top, self.x), torch.where(pick, self.top_gradient, self.gradient)
        self.value = torch.where(halve, self.best, self.value)
        self.rises, self.reduced, self.marked = torch.zeros_like(self.rises), halve, self.best.clone()
