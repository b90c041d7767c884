"""Projected gradient descent under an Linf budget: one for training, one that knows when it has won.

Images are (N, 3, H, W) in [0, 1], budgets in the same units. An attack sees a function of images and takes
gradients of the perturbation alone (Madry et al., ICLR 2018).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INF = float("inf")


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Weights need no gradient and layers are in evaluation mode inside; after it all is as it was."""
    modes = {part: part.training for part in module.modules()}
    wanted = [weight for weight in module.parameters() if weight.requires_grad]
    try:
        module.eval()
        for weight in wanted:
            weight.requires_grad_(False)
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
        for weight in wanted:
            weight.requires_grad_(True)


def random_start(images: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """Images with uniform noise inside the budget and [0, 1]."""
    noise = torch.rand(images.shape, generator=generator, device=generator.device).to(images.device)
    return (images + eps * (2 * noise - 1)).clamp(0, 1)


def climb(adversarial: Tensor, gradient: Tensor, images: Tensor, eps: float, step: float) -> Tensor:
    """One step along the gradient's sign, back into the budget around `images` and into [0, 1]."""
    moved = adversarial + step * gradient.sign()
    return torch.minimum(torch.maximum(moved, images - eps), images + eps).clamp(0, 1)


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
) -> tuple[Tensor, Tensor | None]:
    """Images moved to raise `objective`, a scalar function of the whole batch: for training.

    With `momentum` a step follows the sign of the decaying sum of the gradients' signs. Where `text_eps` is above 0 the
    objective's second argument is a shift of the text embeddings `texts` (K, D), moved along with the images, from 0
    and by up to text_eps an entry; it is given back too, else None.
    """
    x, velocity = random_start(images, eps, generator), torch.zeros_like(images)
    shift = torch.zeros_like(texts) if texts is not None and text_eps else None
    for _ in range(steps):
        moving = [v.requires_grad_(True) for v in (x, shift) if v is not None]
        gradients = torch.autograd.grad(objective(x, shift), moving)
        velocity = momentum * velocity + gradients[0].sign()
        x = climb(x.detach(), velocity, images, eps, step)
        if shift is not None:
            shift = (shift.detach() + text_eps * gradients[1].sign()).clamp(-text_eps, text_eps)
    return x, shift


@dataclass(frozen=True)
class Aim:
    """What an attack wants wrong: a level's prediction in one reading.

    Seen as a choice among groups of scores: the logits of level `source`, which is the level itself for the
    direct reading and the leaves for the roll-up. own: (K_l, K_source) bool, which scores speak for a node.
    """

    level: int
    reading: str
    source: int
    own: Tensor


def aims(paths: Tensor, level: int) -> list[Aim]:
    """Both readings of a level of the tree with these paths (leaves, L + 1); one at level 0, where they agree."""
    nodes = torch.arange(int(paths[:, level].max()) + 1, device=paths.device)
    direct = Aim(level, "direct", level, nodes[:, None] == nodes)
    return [direct, Aim(level, "roll_up", 0, nodes[:, None] == paths[:, level])] if level else [direct]


def margin(scores: Tensor, own: Tensor) -> Tensor:
    """Best score of the others minus best of one's own: (N,), positive where the prediction is wrong.

    scores: (N, K); own: (N, K) bool.
    """
    return scores.masked_fill(own, -INF).amax(1) - scores.masked_fill(~own, -INF).amax(1)


def cross_entropy(scores: Tensor, own: Tensor) -> Tensor:
    """-log of the softmax's mass on one's own scores: (N,). Arguments as in `margin`."""
    return -F.log_softmax(scores, dim=1).masked_fill(~own, -INF).logsumexp(1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"margin": margin, "ce": cross_entropy}


@dataclass(frozen=True)
class Budget:
    """How far and how hard an attack may go."""

    eps: float
    step: float
    steps: int
    restarts: int
    losses: tuple[str, ...]


def attack(
    score: Callable[[Tensor], Tensor], images: Tensor, own: Tensor, budget: Budget, generator: torch.Generator
) -> Tensor:
    """Images moved until the best score is not their own, or else as near to that as they came.

    score: images to (N, K), each image for itself; own: (N, K) bool, the scores that are right. Every loss of
    the budget has its restarts in turn; each step works on the images that still stand.
    Raises ValueError for a loss that is not in LOSSES.
    """
    if unknown := [loss for loss in budget.losses if loss not in LOSSES]:
        raise ValueError(f"no attack loss {', '.join(unknown)}; known are {', '.join(LOSSES)}")
    best = images.clone()
    with torch.no_grad():
        worst = margin(score(images), own)
    for loss in budget.losses:
        for _ in range(budget.restarts):
            start = random_start(images, budget.eps, generator)
            _ascend(score, LOSSES[loss], images, own, budget, start, best, worst)
    return best


def _ascend(score, loss, images, own, budget: Budget, start: Tensor, best: Tensor, worst: Tensor) -> None:
    """One run of PGD from `start`; `best` and `worst` keep each image's worst point and its margin."""
    standing = torch.nonzero(worst <= 0)[:, 0]
    current = start[standing]
    for left in range(budget.steps, -1, -1):
        if not len(standing):
            return
        with torch.set_grad_enabled(left > 0):
            scores = score(current.requires_grad_(left > 0))
            gradient = torch.autograd.grad(loss(scores, own[standing]).sum(), current)[0] if left else current
        current, now = current.detach(), margin(scores.detach(), own[standing])
        better = now > worst[standing]
        best[standing[better]], worst[standing[better]] = current[better], now[better]
        keep = ~(now > 0)  # a margin that is no number is no success
        standing = standing[keep]
        current = climb(current[keep], gradient[keep], images[standing], budget.eps, budget.step)
