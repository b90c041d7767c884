"""Images under attack: what every attack of the suite is given, and what it leaves behind."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hierclip.attacks.aims import cross_entropy, margin
from hierclip.attacks.draws import Draws
from hierclip.attacks.norms import NORMS, TINY, Norm

Score = Callable[[Tensor], Sequence[Tensor]]  # images to the logits (N, K) of some levels
Loss = Callable[[Sequence[Tensor], Tensor], Tensor]  # of those logits for some rows of the images, (n,)


@dataclass(frozen=True)
class Budget:
    """How far and how hard an attack may go."""

    eps: float
    step: float  # of PGD and CW
    steps: int  # gradients that a run of a gradient attack takes
    restarts: int
    suite: tuple[str, ...]  # names of ATTACKS, in turn, each on what still stands
    queries: int  # images that Square may ask for
    norm: str = "Linf"
    enough: float = 0.0  # margin beyond which an image is left alone; inf: never, and the worst point is looked for
    prune: float = 0.0  # share of its way to the boundary short of which an image gets no second gradient attack


class Siege:
    """Each image's worst point so far, and its margin there.

    Where several groups of scores are to be wrong at once, the margin is the least of theirs. An image has fallen
    when it is positive; a margin that is no number is none.
    """

    def __init__(
        self, score: Score, images: Tensor, own: Sequence[Tensor], budget: Budget, first: Tensor | None = None
    ):
        """own: for each level that `score` gives, (N, K) bool, the scores that must not win. first: (N,), the margins
        of the images as they are, where they are known: they are then not asked for."""
        self.score, self.images, self.own, self.budget = score, images, own, budget
        self.best, self.worst = images.clone(), images.new_full((len(images),), -torch.inf)
        self.gradients = self.queries = 0  # of single images
        self.asked = 0  # images that the scores were last asked for
        self.open = torch.stack([~mask.all(1) for mask in own]).all(0)  # where something can win
        self.far = torch.zeros_like(self.worst, dtype=torch.bool)  # images that the next attack is not given
        self.flat = torch.zeros_like(self.far)  # images of which some gradient was zero everywhere
        if first is None:
            self.first = self._keep(torch.arange(len(images), device=images.device), images, self.clean)
        else:
            self.first = first.to(self.worst)
            self.worst = self.first.nan_to_num(-torch.inf, torch.inf, -torch.inf)

    @cached_property
    @torch.no_grad()
    def clean(self) -> Sequence[Tensor]:
        """The scores of the images as they are."""
        self.queries += len(self.images)
        return self.score(self.images)

    @property
    def norm(self) -> Norm:
        return NORMS[self.budget.norm]

    def way(self) -> Tensor:
        """(N,): the share of its way to the boundary that each image's margin has gone; above 1 where it fell."""
        return (1 - self.worst / self.first.clamp(max=-TINY)).nan_to_num(0.0, torch.inf, 0.0)

    def standing(self) -> Tensor:
        """The rows of the images that have not fallen, and can: something of theirs must be able to win."""
        return torch.nonzero(~(self.worst > self.budget.enough) & self.open & ~self.far)[:, 0]

    def prune(self) -> None:
        """Leave the images that came less than `budget.prune` of their way out of what follows, but for those whose
        gradient vanished or whose clean margin is no number: of them it says nothing how far they came."""
        self.far = (self.way() < self.budget.prune) & ~self.flat & self.first.isfinite()

    def start(self, draws: Draws, eps: float) -> tuple[Tensor, Tensor]:
        """The rows of the images that stand, and a random point for each of them."""
        rows = self.standing()
        images = self.at(rows)
        uniform = draws.uniform(rows, images.shape[1:]).contiguous(memory_format=memory_format(images))
        return rows, self.norm.start(images, eps, uniform)

    def at(self, rows: Tensor) -> Tensor:
        """The images `rows`, which are in order; no copy where they are all."""
        return self.images if len(rows) == len(self.images) else self.images[rows]

    def of(self, rows: Tensor) -> Sequence[Tensor]:
        """`own` for some of the images."""
        return self.own if len(rows) == len(self.images) else [own[rows] for own in self.own]

    @torch.no_grad()
    def look(self, rows: Tensor, x: Tensor) -> Tensor:
        """The margins (n,) of the images `rows` at points x; what is worse is kept."""
        self.queries += len(rows)
        return self._keep(rows, x, self._ask(x))

    def climb(self, rows: Tensor, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """As `look`; gives margins (n,), the loss's values (n,) and its gradient at x."""
        self.gradients += len(rows)
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            scores = self._ask(x)
            values = loss(scores, rows)
            (gradient,) = torch.autograd.grad(values.sum(), x)
        margins = self._keep(rows, x.detach(), [s.detach() for s in scores])
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)  # one that is no number moves nothing
        if self.budget.prune:
            self.flat[rows] |= ~gradient.flatten(1).any(1)
        return margins, values.detach(), gradient

    def _ask(self, x: Tensor) -> list[Tensor]:
        """The scores at x, with images beside them that fill a batch of a common size where it is smaller than the
        last one: a new size is dear, but once."""
        n = len(x)
        size = n if n == self.asked else min(common_size(n), len(self.images))
        self.asked = n
        if size == n:
            return list(self.score(x))
        filling = x[:1].expand(size - n, *x.shape[1:])
        return [scores[:n] for scores in self.score(torch.cat([x, filling]))]

    def _keep(self, rows: Tensor, x: Tensor, scores: Sequence[Tensor]) -> Tensor:
        margins = torch.stack([margin(s, own) for s, own in zip(scores, self.of(rows), strict=True)]).amin(0)
        margins = margins.to(self.worst.dtype)
        if len(rows) == len(self.images):
            better = margins > self.worst
            self.best = torch.where(better.view(-1, 1, 1, 1), x, self.best)
            self.worst = torch.where(better, margins, self.worst)
            return margins
        better = margins > self.worst[rows]
        worse = rows[better]
        if len(worse):
            self.best[worse], self.worst[worse] = x[better], margins[better]
        return margins


def memory_format(images: Tensor) -> torch.memory_format:
    """The order in which images (N, 3, H, W) lie in memory: operations on two orders at once are slow."""
    last = images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def common_size(count: int) -> int:
    """The least of 1, 2, ..., 8, 10, 12, 14, 16, 20, 24, ... not below a count: four sizes to each power of two."""
    step = 2 ** max(0, (count - 1).bit_length() - 3)
    return -(-count // step) * step


def over_parts(siege: Siege, loss: Callable[..., Tensor], extra: Sequence[Tensor] | None = None) -> Loss:
    """A loss of scores and one's own, summed over the groups of scores; one that is wrong already counts no more than
    it did where it became so, so that no step is undone for having succeeded.

    extra: for each group something more that the loss is given, a row for an image.
    """

    def total(scores: Sequence[Tensor], rows: Tensor) -> Tensor:
        more = [() for _ in scores] if extra is None else [(values[rows],) for values in extra]
        parts = zip(scores, siege.of(rows), more, strict=True)
        values = [(loss(s, own, *added), _won(loss, s), margin(s.detach(), own) > 0) for s, own, added in parts]
        return torch.stack([v if len(scores) == 1 else v.masked_fill(wrong, won) for v, won, wrong in values]).sum(0)

    return total


def _won(loss: Callable[..., Tensor], scores: Tensor) -> float:
    """The most that a loss can be where one's own score is the best: log K for the cross-entropy, 0 for margins."""
    return math.log(scores.shape[1]) if loss is cross_entropy else 0.0
