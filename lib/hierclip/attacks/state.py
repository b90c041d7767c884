"""The state of an attack: each image's best adversarial point so far, shared by the attacks of a suite."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hierclip.attacks.goals import cross_entropy, margin
from hierclip.attacks.norms import EPS, NORMS, Norm
from hierclip.attacks.rng import PerSampleRNG

Score = Callable[[Tensor], Sequence[Tensor]]  # images to the logits (N, K) of some levels
Loss = Callable[[Sequence[Tensor], Tensor], Tensor]  # of those logits for some rows of the images, (n,)


@dataclass(frozen=True)
class Budget:
    """How far and how hard an attack may go."""

    eps: float
    step: float  # of PGD and CW
    steps: int  # gradients that a run of a gradient attack takes
    restarts: int
    suite: tuple[str, ...]  # names of ATTACKS, in turn, each on the images not yet misclassified
    queries: int  # images that Square may ask for
    norm: str = "Linf"
    stop_margin: float = 0.0  # an image is left alone beyond this margin; inf: never, and the worst point is sought
    prune: float = 0.0  # fraction of the way to the boundary below which an image gets no second gradient attack


class AttackState:
    """Hold each image's most adversarial point so far, `x_adv`, and its margin there, `best_margin`.

    Where several levels are attacked at once, the margin is the least of theirs. An image is misclassified when it is
    positive; a margin that is not a number counts as none.
    """

    def __init__(
        self, score: Score, images: Tensor, own: Sequence[Tensor], budget: Budget, clean_margin: Tensor | None = None
    ):
        """Start at the clean images.

        own: for each level that `score` returns, (N, K) bool, the true class's logits. clean_margin: (N,), the margins
        of the clean images where they are known; they are then not computed.
        """
        self.score, self.images, self.true_class_masks, self.budget = score, images, own, budget
        self.x_adv, self.best_margin = images.clone(), images.new_full((len(images),), -torch.inf)
        self.gradients = self.queries = 0  # of single images
        self.last_batch_size = 0
        self.attackable = torch.stack([~mask.all(1) for mask in own]).all(0)  # some class can win
        self.skipped = torch.zeros_like(self.best_margin, dtype=torch.bool)  # by the next attack
        self.zero_gradient = torch.zeros_like(self.skipped)  # at some point of the image
        if clean_margin is None:
            self.clean_margin = self._keep_best(
                torch.arange(len(images), device=images.device), images, self.clean_logits
            )
        else:
            self.clean_margin = clean_margin.to(self.best_margin)
            self.best_margin = self.clean_margin.nan_to_num(-torch.inf, torch.inf, -torch.inf)

    @cached_property
    @torch.no_grad()
    def clean_logits(self) -> Sequence[Tensor]:
        """The logits of the clean images, by level."""
        self.queries += len(self.images)
        return self.score(self.images)

    @property
    def norm(self) -> Norm:
        return NORMS[self.budget.norm]

    def fraction_to_boundary(self) -> Tensor:
        """Return (N,): the fraction of its clean margin that each image has lost; above 1 where it is misclassified."""
        return (1 - self.best_margin / self.clean_margin.clamp(max=-EPS)).nan_to_num(0.0, torch.inf, 0.0)

    def robust_rows(self) -> Tensor:
        """Return the rows of the images that the next attack works on: not misclassified yet, and not skipped."""
        return torch.nonzero(~(self.best_margin > self.budget.stop_margin) & self.attackable & ~self.skipped)[:, 0]

    def skip_distant(self) -> None:
        """Skip images that came less than `budget.prune` of the way to the boundary.

        Images with a zero gradient or without a finite clean margin are kept: their progress says nothing.
        """
        self.skipped = (
            (self.fraction_to_boundary() < self.budget.prune) & ~self.zero_gradient & self.clean_margin.isfinite()
        )

    def random_start(self, draws: PerSampleRNG, eps: float) -> tuple[Tensor, Tensor]:
        """Return `robust_rows`, and a random point in the budget for each of them."""
        rows = self.robust_rows()
        images = self.images_at(rows)
        uniform = draws.uniform(rows, images.shape[1:]).contiguous(memory_format=memory_format(images))
        return rows, self.norm.start(images, eps, uniform)

    def images_at(self, rows: Tensor) -> Tensor:
        """Return the images of sorted rows, without a copy where they are all."""
        return self.images if len(rows) == len(self.images) else self.images[rows]

    def masks_at(self, rows: Tensor) -> Sequence[Tensor]:
        """Return the true class masks of some images, by level."""
        return self.true_class_masks if len(rows) == len(self.images) else [own[rows] for own in self.true_class_masks]

    @torch.no_grad()
    def query(self, rows: Tensor, x: Tensor) -> Tensor:
        """Return the margins (n,) of the images `rows` at points x; keep the points that are more adversarial."""
        self.queries += len(rows)
        return self._keep_best(rows, x, self._padded_logits(x))

    def loss_and_grad(self, rows: Tensor, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """As `query`; return margins (n,), the loss (n,) and its gradient at x."""
        self.gradients += len(rows)
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            scores = self._padded_logits(x)
            values = loss(scores, rows)
            (gradient,) = torch.autograd.grad(values.sum(), x)
        margins = self._keep_best(rows, x.detach(), [s.detach() for s in scores])
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)  # a NaN gradient moves nothing
        if self.budget.prune:
            self.zero_gradient[rows] |= ~gradient.flatten(1).any(1)
        return margins, values.detach(), gradient

    def _padded_logits(self, x: Tensor) -> list[Tensor]:
        """Return the logits at x. The batch is padded to a few fixed sizes, because new shapes are slow on the CPU."""
        n = len(x)
        size = n if n == self.last_batch_size else min(common_size(n), len(self.images))
        self.last_batch_size = n
        if size == n:
            return list(self.score(x))
        padding = x[:1].expand(size - n, *x.shape[1:])
        return [scores[:n] for scores in self.score(torch.cat([x, padding]))]

    def _keep_best(self, rows: Tensor, x: Tensor, scores: Sequence[Tensor]) -> Tensor:
        margins = torch.stack([margin(s, own) for s, own in zip(scores, self.masks_at(rows), strict=True)]).amin(0)
        margins = margins.to(self.best_margin.dtype)
        if len(rows) == len(self.images):
            better = margins > self.best_margin
            self.x_adv = torch.where(better.view(-1, 1, 1, 1), x, self.x_adv)
            self.best_margin = torch.where(better, margins, self.best_margin)
            return margins
        better = margins > self.best_margin[rows]
        worse = rows[better]
        if len(worse):
            self.x_adv[worse], self.best_margin[worse] = x[better], margins[better]
        return margins


def memory_format(images: Tensor) -> torch.memory_format:
    """Return the memory format of images (N, 3, H, W): mixing two formats in one operation is slow."""
    last = images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def common_size(count: int) -> int:
    """Return the smallest of 1, 2, ..., 8, 10, 12, 14, 16, 20, 24, ... that holds `count`: four sizes per octave."""
    step = 2 ** max(0, (count - 1).bit_length() - 3)
    return -(-count // step) * step


def over_levels(state: AttackState, loss: Callable[..., Tensor], extra: Sequence[Tensor] | None = None) -> Loss:
    """Return a loss summed over levels. A level that is misclassified contributes a constant and no gradient, so the
    attack works on the others.

    extra: for each level one more argument of the loss, a row for each image.
    """

    def total(scores: Sequence[Tensor], rows: Tensor) -> Tensor:
        more = [() for _ in scores] if extra is None else [(values[rows],) for values in extra]
        parts = zip(scores, state.masks_at(rows), more, strict=True)
        values = [
            (loss(s, own, *added), _value_at_boundary(loss, s), margin(s.detach(), own) > 0) for s, own, added in parts
        ]
        return torch.stack([v if len(scores) == 1 else v.masked_fill(wrong, won) for v, won, wrong in values]).sum(0)

    return total


def _value_at_boundary(loss: Callable[..., Tensor], scores: Tensor) -> float:
    """Return the largest value of a loss while the true class wins: log K for the cross-entropy, 0 for margins."""
    return math.log(scores.shape[1]) if loss is cross_entropy else 0.0
