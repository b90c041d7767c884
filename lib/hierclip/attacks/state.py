"""What the attacks of a suite share: norms, budgets, random numbers and each image's best point."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from hierclip.attacks.goals import cross_entropy, margin, targets

EPS = 1e-12
TARGETS = 9  # of a targeted attack, at most


@dataclass(frozen=True)
class Norm:
    """A norm of perturbations (N, 3, H, W).

    size: of each perturbation, (N,). inside: the perturbation clipped or scaled to a size of at
    most eps. steepest: a gradient's direction, of size 1. noise: a perturbation of size at most 1
    from uniform numbers in [-1, 1]. rate: how fast pixels move on the shortest way to a
    hyperplane, up to a factor, from its absolute slopes.
    """

    size: Callable[[Tensor], Tensor]
    inside: Callable[[Tensor, float], Tensor]
    steepest: Callable[[Tensor], Tensor]
    noise: Callable[[Tensor], Tensor]
    rate: Callable[[Tensor], Tensor]

    def project(self, x: Tensor, images: Tensor, eps: float) -> Tensor:
        """Move x into the budget around `images`, then into [0, 1], which stays in the budget."""
        return (images + self.inside(x - images, eps)).clamp(0, 1)

    def start(self, images: Tensor, eps: float, uniform: Tensor) -> Tensor:
        """Return random points in the budget and [0, 1], from uniform numbers in [0, 1]."""
        return (images + eps * self.noise(2 * uniform - 1)).clamp(0, 1)


def per_image(values: Tensor) -> Tensor:
    """Reshape (N,) so that it broadcasts over images: (N, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


def l2_size(delta: Tensor) -> Tensor:
    """Return the L2 norm (N,) of perturbations (N, 3, H, W)."""
    return delta.flatten(1).norm(dim=1)


def _l2_unit(delta: Tensor) -> Tensor:
    # Scaled by the largest entry first: a confident model's gradients have squares below float32.
    largest = delta.flatten(1).abs().amax(1).clamp(min=torch.finfo(delta.dtype).tiny)
    delta = delta / per_image(largest)
    return delta / per_image(l2_size(delta).clamp(min=EPS))


NORMS: dict[str, Norm] = {
    "Linf": Norm(
        size=lambda delta: delta.flatten(1).abs().amax(1),
        inside=lambda delta, eps: delta.clamp(-eps, eps),
        steepest=torch.sign,
        noise=lambda uniform: uniform,
        rate=torch.ones_like,
    ),
    "L2": Norm(
        size=l2_size,
        inside=lambda delta, eps: (
            delta * per_image((eps / l2_size(delta).clamp(min=EPS)).clamp(max=1))
        ),
        steepest=_l2_unit,
        noise=lambda uniform: _l2_unit(uniform.clamp(-1 + 1e-6, 1 - 1e-6).erfinv()),  # Gaussian
        rate=lambda slope: slope,
    ),
}


Score = Callable[[Tensor], Sequence[Tensor]]  # images to the logits (N, K) of some levels
Loss = Callable[[Sequence[Tensor], Tensor], Tensor]  # of those logits for n rows of images, (n,)
Seed = int | Sequence[int]


@dataclass(frozen=True)
class Budget:
    """How far and how hard an attack may go."""

    eps: float
    step: float  # of PGD and CW
    steps: int  # gradients that a run of a gradient attack takes
    restarts: int
    suite: tuple[str, ...]  # names of ATTACKS, in turn, each on the images not yet misclassified
    queries: int  # of each image, by Square
    norm: str = "Linf"
    stop_margin: float = 0.0  # stop on an image whose margin is at most minus this; inf: never
    prune: float = 0.0  # no second gradient attack below this fraction of the way to the boundary
    eot: int = 1  # calls of a randomised model that logits, losses and gradients are averaged over


class PerSampleRNG:
    """Hold a stream of random numbers for each image, and one that all images share.

    What an image draws depends neither on its batch nor on which other images are attacked.
    """

    def __init__(self, seed: Seed, sample_ids: Iterable[int]):
        """Open the streams.

        seed: an integer or several. sample_ids: an integer from 0 for each image, such as its row
        in the whole set.
        """
        seed = [seed] if isinstance(seed, int) else [*seed]
        self.shared = np.random.default_rng([*seed, 0])
        self._streams = [
            np.random.default_rng([*seed, 1 + int(sample_id)]) for sample_id in sample_ids
        ]

    def uniform(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """Draw (n, *shape) float32 in [0, 1) for the images `rows`, on their device."""
        out = np.empty((len(rows), *shape), dtype=np.float32)
        for values, row in zip(out, rows.tolist(), strict=True):
            self._streams[row].random(dtype=np.float32, out=values)
        return torch.from_numpy(out).to(rows.device)

    def signs(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """Draw (n, *shape) float32, -1 or 1."""
        return 2 * (self.uniform(rows, shape) < 0.5).float() - 1


class AttackState:
    """Hold each image's most adversarial point so far, `x_adv`, and its margin, `best_margin`.

    Where several levels are attacked at once, the margin is the largest of theirs. An image is
    misclassified when it is 0 or negative; NaN counts as infinite. With `budget.eot` above 1 it is
    the margin of the mean logits over that many calls.
    """

    def __init__(
        self,
        score: Score,
        images: Tensor,
        true_class_masks: Sequence[Tensor],
        budget: Budget,
        clean_margin: Tensor | None = None,
        grad_score: Score | None = None,
    ):
        """Start at the clean images.

        true_class_masks: for each level that `score` returns, (N, K) bool, the true class's logits.
        clean_margin: (N,), the margins of the clean images; computed where it is None. grad_score:
        a differentiable surrogate of `score` (BPDA); None: `score` itself.
        """
        self.score = score
        self.grad_score = score if grad_score is None else grad_score
        self.images = images
        self.true_class_masks = true_class_masks
        self.budget = budget
        self.norm = NORMS[budget.norm]
        self.x_adv = images.clone()
        self.last_batch_size = 0
        # Where every level has another class that can win.
        self.attackable = ~torch.stack([mask.all(1) for mask in true_class_masks]).any(0)
        self.skipped = torch.zeros_like(self.attackable)  # by the next attack
        self.zero_gradient = torch.zeros_like(self.attackable)  # at some point of the image
        self.met_nan = torch.zeros_like(self.attackable)  # for a margin
        if clean_margin is None:
            clean_margin = largest_margin(self.clean_logits, true_class_masks)
        self.clean_margin = clean_margin.to(images)
        self.best_margin = self.clean_margin.nan_to_num(torch.inf, torch.inf, -torch.inf)

    @cached_property
    @torch.no_grad()
    def clean_logits(self) -> Sequence[Tensor]:
        """Compute the logits of the clean images, by level."""
        return mean_of_calls(lambda: self.score(self.images), self.budget.eot)

    def fraction_to_boundary(self) -> Tensor:
        """Return (N,): the lost fraction of each image's clean margin; from 1 on, misclassified."""
        lost = 1 - self.best_margin / self.clean_margin.clamp(min=EPS)
        return lost.nan_to_num(0.0, torch.inf, 0.0)

    def robust_rows(self) -> Tensor:
        """Return the rows that the next attack works on: not yet misclassified, and not skipped."""
        robust = self.best_margin > -self.budget.stop_margin
        return torch.nonzero(robust & self.attackable & ~self.skipped)[:, 0]

    def skip_distant(self) -> None:
        """Skip images that covered less than `budget.prune` of the way to the boundary.

        Images with a zero gradient or without a finite clean margin are kept: their progress tells
        nothing.
        """
        distant = self.fraction_to_boundary() < self.budget.prune
        self.skipped = distant & ~self.zero_gradient & self.clean_margin.isfinite()

    @torch.no_grad()
    def query(self, rows: Tensor, x: Tensor, within: Tensor | bool = True) -> Tensor:
        """Return the margins (n,) of the images `rows` at x; keep the more adversarial points.

        within: whether x lies in the budget, for all or each (n,); a point outside is never kept.
        """
        logits = mean_of_calls(partial(self._padded_logits, self.score, x), self.budget.eot)
        return self._keep_best(rows, x, logits, within)

    def loss_and_grad(
        self, rows: Tensor, x: Tensor, loss: Loss, within: Tensor | bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Do as `query`; return margins (n,), the loss (n,) and its gradient at x.

        Loss and gradient are means over `budget.eot` calls, of the surrogate where there is one.
        Source: EOT and BPDA, Athalye et al., ICML 2018.
        """
        differentiate = partial(self._differentiate, rows, x, loss)
        *scores, values, gradient = mean_of_calls(differentiate, self.budget.eot)
        if self.grad_score is self.score:
            margins = self._keep_best(rows, x.detach(), scores, within)
        else:
            margins = self.query(rows, x.detach(), within)
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)  # a NaN gradient moves nothing
        if self.budget.prune:
            self.zero_gradient[rows] |= ~gradient.flatten(1).any(1)
        return margins, values, gradient

    def _differentiate(self, rows: Tensor, x: Tensor, loss: Loss) -> list[Tensor]:
        """Return the logits by level, the loss (n,) and its gradient at x, all of one call.

        The gradient is 0 where the model gives none: a search still works there.
        """
        gradient = torch.zeros_like(x)
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            scores = self._padded_logits(self.grad_score, x)
            values = loss(scores, rows)
            if values.requires_grad:
                (gradient,) = torch.autograd.grad(values.sum(), x, materialize_grads=True)
        return [*(logits.detach() for logits in scores), values.detach(), gradient]

    def _padded_logits(self, score: Score, x: Tensor) -> list[Tensor]:
        """Return the logits at x, padded to one of a few sizes: new shapes are slow on the CPU."""
        n = len(x)
        size = n if n == self.last_batch_size else min(common_size(n), len(self.images))
        self.last_batch_size = n
        if size > n:
            x = torch.cat([x, x[:1].expand(size - n, *x.shape[1:])])
        return [scores[:n] for scores in score(x)]

    def _keep_best(
        self, rows: Tensor, x: Tensor, scores: Sequence[Tensor], within: Tensor | bool
    ) -> Tensor:
        masks = [select_rows(mask, rows) for mask in self.true_class_masks]
        margins = largest_margin(scores, masks).to(self.best_margin)
        self.met_nan[rows] |= margins.isnan()
        better = (margins < self.best_margin[rows]) & within
        self.x_adv[rows[better]] = x[better]
        self.best_margin[rows[better]] = margins[better]
        return margins


def select_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Return sorted rows of values (N, ...), without a copy where they are all."""
    return values if len(rows) == len(values) else values[rows]


def largest_margin(scores: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """Return (N,): the largest margin over levels, of logits and true class masks (N, K)."""
    pairs = zip(scores, masks, strict=True)
    return torch.stack([margin(logits, mask) for logits, mask in pairs]).amax(0)


def mean_of_calls(call: Callable[[], Sequence[Tensor]], count: int) -> list[Tensor]:
    """Return the mean of each tensor that `call` returns, over `count` calls."""
    totals = list(call())
    for _ in range(count - 1):
        totals = [total + part for total, part in zip(totals, call(), strict=True)]
    return [total / count for total in totals]


def common_size(count: int) -> int:
    """Return the least of 1, 2, ..., 8, 10, 12, 14, 16, 20, 24, ... (four per octave) >= count."""
    step = 2 ** max(0, (count - 1).bit_length() - 3)
    return -(-count // step) * step


def over_levels(
    state: AttackState, loss: Callable[..., Tensor], target: Sequence[Tensor] | None = None
) -> Loss:
    """Return a loss summed over levels.

    A level that is misclassified contributes a constant and no gradient, so that the attack works
    on the others: the largest loss of a true class that wins, log K for the cross-entropy and 0 for
    margins. target: for each level one more argument of the loss, (N,).
    """

    def total(scores: Sequence[Tensor], rows: Tensor) -> Tensor:
        values = []
        for level, (logits, mask) in enumerate(zip(scores, state.true_class_masks, strict=True)):
            mask = select_rows(mask, rows)
            towards = [] if target is None else [target[level][rows]]
            value = loss(logits, mask, *towards)
            if len(scores) > 1:
                at_boundary = math.log(logits.shape[1]) if loss is cross_entropy else 0.0
                value = value.masked_fill(margin(logits.detach(), mask) <= 0, at_boundary)
            values.append(value)
        return torch.stack(values).sum(0)

    return total


def targeted_losses(state: AttackState, loss: Callable[..., Tensor]) -> Iterator[Loss]:
    """Yield a targeted loss over levels for each of at most nine best other classes in turn.

    The classes are ranked by the clean logits, at each level.
    """
    pairs = list(zip(state.clean_logits, state.true_class_masks, strict=True))
    others = max((int((~mask).sum(1).max()) for _, mask in pairs if len(mask)), default=0)
    for rank in range(1, min(TARGETS, others) + 1):
        ranked = [targets(logits, mask, rank) for logits, mask in pairs]
        yield over_levels(state, loss, ranked)
