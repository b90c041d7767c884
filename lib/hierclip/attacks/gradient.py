"""Attacks that follow a gradient: PGD on a batch for training; PGD, CW and Auto-PGD by image."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from hierclip.attacks.fab import fab_t
from hierclip.attacks.goals import LOSSES, margin_loss, targeted_dlr
from hierclip.attacks.state import (
    NORMS,
    AttackState,
    Loss,
    PerSampleRNG,
    over_levels,
    per_image,
    select_rows,
    targeted_losses,
)
from hierclip.distributed import mean

# From a step's number, 1 first, and rows, points, losses and gradients of n images: the next x.
Step = Callable[[int, Tensor, Tensor, Tensor, Tensor], Tensor]
MOMENTUM = 0.75  # alpha of Auto-PGD
RHO = 0.75  # the share of steps that must raise the loss, or Auto-PGD halves its step size


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode, without gradients of its weights; restore it afterwards."""
    modes = {part: part.training for part in module.modules()}
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    try:
        module.eval().requires_grad_(False)
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
        for weight in trained:
            weight.requires_grad_(True)


def pgd(
    objective: Callable[[Tensor, Tensor | None], Tensor],
    images: Tensor,
    *,
    eps: float,
    step: float,
    steps: int,
    generator: torch.Generator,
    momentum: float = 0.0,
    texts: Tensor | None = None,
    text_eps: float = 0.0,
    whole: int | None = None,
    rows: slice = slice(None),
) -> tuple[Tensor, Tensor | None]:
    """Move images (N, 3, H, W) in [0, 1] by at most eps a pixel to raise `objective`, for training.

    objective: a scalar function of the batch and of the perturbation of the texts, or None. With
    `momentum` a step follows the sign of the decaying sum of the gradients' signs. Where `text_eps`
    is above 0, a perturbation of the text embeddings `texts` (K, D) is found along with the
    images', from 0 and by at most text_eps an entry; it is returned too, else None. The images may
    be `rows` of a batch of `whole` images, for all of which the generator draws.
    Source: Madry et al., ICLR 2018.
    """
    norm = NORMS["Linf"]
    shape = (whole or len(images), *images.shape[1:])
    uniform = torch.rand(shape, generator=generator, device=generator.device)[rows]
    x = norm.start(images, eps, uniform.to(images.device))
    velocity = torch.zeros_like(images)
    text_delta = torch.zeros_like(texts) if texts is not None and text_eps else None
    for _ in range(steps):
        inputs = [v.requires_grad_(True) for v in (x, text_delta) if v is not None]
        gradients = torch.autograd.grad(objective(x, text_delta), inputs)
        velocity = momentum * velocity + gradients[0].sign()
        x = norm.project(x.detach() + step * velocity.sign(), images, eps)
        if text_delta is not None:
            ascended = text_delta.detach() + text_eps * mean(gradients[1]).sign()
            text_delta = ascended.clamp(-text_eps, text_eps)
    return x, text_delta


def _ascend(
    state: AttackState, rng: PerSampleRNG, loss: Loss, step: Step, at_random: bool = True
) -> None:
    """Run the steps on images not yet misclassified, from random points in the budget around them.

    at_random: False starts at the images themselves. The last point is queried without a gradient.
    """
    rows = state.robust_rows()
    images = select_rows(state.images, rows)
    uniform = rng.uniform(rows, images.shape[1:])
    # In the images' memory format: mixing two formats in one operation is slow.
    uniform = torch.empty_like(images, dtype=uniform.dtype).copy_(uniform)
    x = state.norm.start(images, state.budget.eps if at_random else 0.0, uniform)
    for number in range(1, state.budget.steps + 1):
        if not len(rows):
            return
        margins, values, gradient = state.loss_and_grad(rows, x, loss)
        keep = ~(margins <= -state.budget.stop_margin)
        if not keep.all():
            rows, x, values, gradient = (part[keep] for part in (rows, x, values, gradient))
        x = step(number, rows, x, values, gradient)
        x = state.norm.project(x, select_rows(state.images, rows), state.budget.eps)
    if len(rows):
        state.query(rows, x)


def pgd_by_image(state: AttackState, rng: PerSampleRNG, loss: str) -> None:
    """Run steepest ascent of a loss from random starts (Madry et al., ICLR 2018)."""

    def step(number: int, rows: Tensor, x: Tensor, values: Tensor, gradient: Tensor) -> Tensor:
        return x + state.budget.step * state.norm.steepest(gradient)

    for _ in range(state.budget.restarts):
        _ascend(state, rng, over_levels(state, LOSSES[loss]), step)


def cw(state: AttackState, rng: PerSampleRNG) -> None:
    """Run Adam on the margin, Carlini and Wagner's f6 (S&P 2017, section IV), within the budget.

    The first run starts at the image itself, the others at random.
    """
    first = torch.zeros_like(state.images)  # Adam's moments
    second = torch.zeros_like(state.images)

    def step(number: int, rows: Tensor, x: Tensor, values: Tensor, gradient: Tensor) -> Tensor:
        square = gradient.square()
        if state.budget.norm == "L2":  # one scale for all pixels of an image keeps the direction
            square = square.mean((1, 2, 3), keepdim=True).expand_as(square)
        m = 0.9 * first[rows] + 0.1 * gradient
        v = 0.999 * second[rows] + 0.001 * square
        first[rows] = m
        second[rows] = v
        move = m / (1 - 0.9**number) / ((v / (1 - 0.999**number)).sqrt() + 1e-12)  # about 1 a pixel
        return x + state.budget.step * move / per_image(state.norm.size(torch.ones_like(x)))

    for restart in range(state.budget.restarts):
        first.zero_()
        second.zero_()
        _ascend(state, rng, over_levels(state, margin_loss), step, at_random=restart > 0)


def apgd(state: AttackState, rng: PerSampleRNG, loss: str) -> None:
    """Run Auto-PGD on a loss that needs no target (Croce and Hein, ICML 2020, algorithm 1)."""
    for _ in range(state.budget.restarts):
        _ascend(state, rng, over_levels(state, LOSSES[loss]), _AutoStep(state))


def apgd_t(state: AttackState, rng: PerSampleRNG) -> None:
    """Run Auto-PGD on the targeted DLR loss, once for each of at most nine best other classes.

    Targets take the place of restarts.
    """
    for loss in targeted_losses(state, targeted_dlr):
        _ascend(state, rng, loss, _AutoStep(state))


def checkpoints(steps: int) -> list[int]:
    """Return the steps after which Auto-PGD reconsiders its step size: ceil(p_j steps).

    p_0 = 0, p_1 = 0.22, and gaps that shrink by 0.03 down to 0.06 (section 3).
    """
    shares = [0, 22]  # in percent: integers avoid rounding errors
    while shares[-1] < 100:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 3, 6))
    return [-(-share * steps // 100) for share in shares[:-1]]


class _AutoStep:
    """Auto-PGD's step: momentum, and for each image a step size and the best point of the run."""

    def __init__(self, state: AttackState):
        self.state = state
        self.last_checkpoint, *self.checkpoints = checkpoints(state.budget.steps)

    def __call__(
        self, number: int, rows: Tensor, x: Tensor, loss: Tensor, gradient: Tensor
    ) -> Tensor:
        if number == 1:
            self._start(rows, x, loss, gradient)
        else:
            self._remember(rows, x, loss, gradient)
        if number - 1 in self.checkpoints:
            x, gradient = self._restart(number - 1, x, gradient)
        ascended = x + self.step_size * self.state.norm.steepest(gradient)
        images = select_rows(self.state.images, rows)
        ascended = self.state.norm.project(ascended, images, self.state.budget.eps)
        last_move = x - self.previous_x
        self.previous_x = x
        if number == 1:
            return ascended
        return x + MOMENTUM * (ascended - x) + (1 - MOMENTUM) * last_move

    def _start(self, rows: Tensor, x: Tensor, loss: Tensor, gradient: Tensor) -> None:
        self.rows = rows
        self.x_best = self.previous_x = x
        self.loss = self.best_loss = self.checkpoint_loss = loss
        self.best_gradient = gradient
        self.step_size = x.new_full((len(x), 1, 1, 1), 2 * self.state.budget.eps)
        self.loss_increases = torch.zeros_like(loss)  # since the last checkpoint
        self.halved = torch.ones_like(loss, dtype=torch.bool)  # at the last checkpoint

    def _remember(self, rows: Tensor, x: Tensor, loss: Tensor, gradient: Tensor) -> None:
        """Forget the images that are misclassified by now; keep the best points of the others."""
        if len(rows) < len(self.rows):
            keep = torch.isin(self.rows, rows)
            for name, values in vars(self).items():
                if isinstance(values, Tensor):
                    setattr(self, name, values[keep])
        self.loss_increases += loss > self.loss
        self.loss = loss
        better = loss > self.best_loss
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.x_best = torch.where(per_image(better), x, self.x_best)
        self.best_gradient = torch.where(per_image(better), gradient, self.best_gradient)

    def _restart(self, number: int, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Halve the step size and go back to the best point where progress is too slow.

        That is where too few steps since the last checkpoint raised the loss, or where neither the
        step size nor the best loss changed since then.
        """
        unchanged = ~self.halved & (self.best_loss == self.checkpoint_loss)
        self.halved = (self.loss_increases < RHO * (number - self.last_checkpoint)) | unchanged
        self.loss = torch.where(self.halved, self.best_loss, self.loss)
        self.loss_increases = torch.zeros_like(self.loss_increases)
        self.checkpoint_loss = self.best_loss
        self.last_checkpoint = number
        halved = per_image(self.halved)
        self.step_size = torch.where(halved, self.step_size / 2, self.step_size)
        x = torch.where(halved, self.x_best, x)
        return x, torch.where(halved, self.best_gradient, gradient)


BY_GRADIENT: dict[str, Callable[[AttackState, PerSampleRNG], None]] = {
    "pgd_ce": partial(pgd_by_image, loss="ce"),
    "pgd_margin": partial(pgd_by_image, loss="margin"),
    "apgd_ce": partial(apgd, loss="ce"),
    "apgd_margin": partial(apgd, loss="margin"),
    "apgd_t": apgd_t,
    "fab_t": fab_t,
    "cw": cw,
}
