"""Auto-PGD: no step size to choose (Croce and Hein, ICML 2020, algorithm 1)."""

import torch
from torch import Tensor

from hierclip.attacks.goals import LOSSES, targeted_dlr, targets
from hierclip.attacks.rng import PerSampleRNG
from hierclip.attacks.state import AttackState, Loss, over_levels

MOMENTUM, RHO = 0.75, 0.75  # alpha; and the share of steps that must raise the loss
TARGETS = 9


def apgd(state: AttackState, rng: PerSampleRNG, loss: str) -> None:
    """Run Auto-PGD on a loss that needs no target."""
    for _ in range(state.budget.restarts):
        _run(state, over_levels(state, LOSSES[loss]), rng)


def apgd_dlr(state: AttackState, rng: PerSampleRNG) -> None:
    """Run Auto-PGD on the targeted DLR loss, once for each of the nine best other classes, or as many as there are.

    Targets take the place of restarts.
    """
    most = max((int((~own).sum(1).max()) for own in state.true_class_masks if len(own)), default=0)
    for rank in range(1, min(TARGETS, most) + 1):
        chosen = [targets(s, own, rank) for s, own in zip(state.clean_logits, state.true_class_masks, strict=True)]
        _run(state, over_levels(state, targeted_dlr, chosen), rng)


def checkpoints(steps: int) -> list[int]:
    """Return the steps after which the step size is reconsidered: ceil(p_j steps), p_0 = 0, p_1 = 0.22, and gaps
    that shrink by 0.03 down to 0.06 (section 3)."""
    shares = [0, 22]  # in percent: whole numbers avoid rounding errors
    while shares[-1] < 100:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 3, 6))
    return [-(-share * steps // 100) for share in shares[:-1]]


def _run(state: AttackState, loss: Loss, rng: PerSampleRNG) -> None:
    budget, norm = state.budget, state.norm
    rows, x = state.random_start(rng, budget.eps)
    if not len(rows):
        return
    margins, values, gradient = state.loss_and_grad(rows, x, loss)
    run = _Run(rows, x, x, x, values, values, gradient, gradient, 2 * budget.eps)
    update_steps = checkpoints(budget.steps)
    for k in range(1, budget.steps + 1):
        run = run.select(~(margins > budget.stop_margin))
        if not len(run.rows):
            return
        images = state.images_at(run.rows)
        z = norm.project(run.x + run.size * norm.steepest(run.gradient), images, budget.eps)
        moved = z if k == 1 else run.x + MOMENTUM * (z - run.x) + (1 - MOMENTUM) * (run.x - run.before)
        x = norm.project(moved, images, budget.eps)
        if k == budget.steps:
            state.query(run.rows, x)
            return
        margins, values, gradient = state.loss_and_grad(run.rows, x, loss)
        run.advance(x, values, gradient)
        if k in update_steps:
            run.update_step_size(k - update_steps[update_steps.index(k) - 1])


class _Run:
    """Hold what a run remembers of each image that is not misclassified yet."""

    def __init__(self, rows, x, before, x_best, value, best, gradient, grad_best, size):
        self.rows, self.x, self.before, self.x_best = rows, x, before, x_best
        self.value, self.best, self.gradient, self.grad_best = value, best, gradient, grad_best
        self.size = torch.full((len(rows), 1, 1, 1), size, device=x.device, dtype=x.dtype)
        self.loss_increases = torch.zeros_like(value)
        self.reduced, self.best_at_checkpoint = torch.ones_like(value).bool(), best.clone()

    def select(self, keep: Tensor) -> "_Run":
        if not keep.all():
            for name, values in vars(self).items():
                setattr(self, name, values[keep])
        return self

    def advance(self, x: Tensor, values: Tensor, gradient: Tensor) -> None:
        self.loss_increases += values > self.value
        self.before, self.x, self.value, self.gradient = self.x, x, values, gradient
        better = values > self.best
        pick = better.view(-1, 1, 1, 1)
        self.best = torch.where(better, values, self.best)
        self.x_best, self.grad_best = torch.where(pick, x, self.x_best), torch.where(pick, gradient, self.grad_best)

    def update_step_size(self, steps: int) -> None:
        """Halve the step and restart from the best point where too few of the last `steps` raised the loss, or where
        neither the step size nor the best loss changed since the last checkpoint."""
        halve = (self.loss_increases < RHO * steps) | (~self.reduced & (self.best == self.best_at_checkpoint))
        pick = halve.view(-1, 1, 1, 1)
        self.size = torch.where(pick, self.size / 2, self.size)
        self.x, self.gradient = torch.where(pick, self.x_best, self.x), torch.where(pick, self.grad_best, self.gradient)
        self.value = torch.where(halve, self.best, self.value)
        self.loss_increases = torch.zeros_like(self.loss_increases)
        self.reduced, self.best_at_checkpoint = halve, self.best.clone()
