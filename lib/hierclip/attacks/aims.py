"""What an attack wants wrong, and the losses that say how near it is.

A target is a choice among groups of scores: the logits of one level of a tree, some of which are right for an image.
scores: (N, K); own: (N, K) bool, the scores that must not win.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

INF = float("inf")
Mask = Callable[[Tensor], Tensor]  # from leaves (N,): which scores (N, K) must not win, bool on the leaves' device


@dataclass(frozen=True)
class Aim:
    """What an attack wants wrong; where it names several levels, in all of them at once.

    own: for each of `sources`, the levels whose logits it sees, what must not win there. needs: aims that an image must
    have fallen to before this one can succeed.
    """

    kind: str
    level: int
    sources: tuple[int, ...]
    own: tuple[Mask, ...]
    needs: tuple["Aim", ...] = ()

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.level}"

    def broken(self, nodes: Tensor, labels: Tensor) -> Tensor:
        """Whether predictions (N, L + 1), the winning node of every level, are what it wants of leaves (N,)."""
        own = zip(self.sources, self.masks(labels), strict=True)
        return ~torch.stack([mask.gather(1, nodes[:, [l]])[:, 0] for l, mask in own]).any(0)

    def masks(self, labels: Tensor) -> list[Tensor]:
        """For leaves (N,): for each of `sources` (N, K_source) bool, the scores that must not win."""
        return [mask(labels) for mask in self.own]


def _alike(columns: Tensor, leaves: Tensor) -> Mask:
    """The scores (K,) of the same value in `columns` as the image's leaf has in `leaves`: no table of leaves by K."""

    def mask(labels: Tensor) -> Tensor:
        return columns.to(labels.device) == leaves.to(labels.device)[labels][:, None]

    return mask


def direct(paths: Tensor, level: int) -> Aim:
    """The level's nearest node is wrong."""
    nodes = torch.arange(int(paths[:, level].max()) + 1, device=paths.device)
    return Aim("direct", level, (level,), (_alike(nodes, paths[:, level]),))


def roll_up(paths: Tensor, level: int) -> Aim:
    """The predicted leaf is outside the right leaf's superclass at `level`: it has left it."""
    below = _finer(paths, level)
    below = roll_up(paths, below) if below else direct(paths, 0)
    return Aim("roll_up", level, (0,), (_alike(paths[:, level], paths[:, level]),), (below,))


def _finer(paths: Tensor, level: int) -> int:
    """The coarsest level before this one each of whose nodes lies in one of its own: in a forest, of its tree."""
    inside = (
        k for k in range(level - 1, 0, -1) if len(paths[:, [k, level]].unique(dim=0)) == len(paths[:, k].unique())
    )
    return next(inside, 0)


def stay(paths: Tensor, level: int) -> Aim:
    """The predicted leaf is wrong, but inside the right leaf's superclass at `level`."""
    leaf, inside = direct(paths, 0), _alike(paths[:, level], paths[:, level])

    def mask(labels: Tensor) -> Tensor:
        return leaf.own[0](labels) | ~inside(labels)

    return Aim("stay", level, (0,), (mask,), (leaf,))


def every(paths: Tensor, level: int) -> Aim:
    """The nearest nodes of all levels up to `level` are wrong at once."""
    parts = tuple(direct(paths, l) for l in range(level + 1))
    return Aim("every", level, tuple(range(level + 1)), tuple(part.own[0] for part in parts), parts)


AIMS: dict[str, Callable[[Tensor, int], Aim]] = {"direct": direct, "roll_up": roll_up, "stay": stay, "every": every}


def aims(paths: Tensor, level: int) -> list[Aim]:
    """Both readings of a level of the tree with these paths (leaves, L + 1); one at level 0, where they agree."""
    return [direct(paths, level), roll_up(paths, level)] if level else [direct(paths, level)]


def margin(scores: Tensor, own: Tensor) -> Tensor:
    """Best score of the others minus best of one's own: (N,), positive where the prediction is wrong."""
    return scores.masked_fill(own, -INF).amax(1) - scores.masked_fill(~own, -INF).amax(1)


def cross_entropy(scores: Tensor, own: Tensor) -> Tensor:
    """-log of the softmax's mass on one's own scores: (N,)."""
    return -F.log_softmax(scores, dim=1).masked_fill(~own, -INF).logsumexp(1)


def targets(scores: Tensor, own: Tensor, rank: int) -> Tensor:
    """(N,) int64: the others' score of a rank, 1 the best; the last of them where there are not so many."""
    others = (~own).sum(1).clamp(min=1)
    order = scores.masked_fill(own, -INF).argsort(1, descending=True)
    return order.gather(1, (others.clamp(max=rank) - 1)[:, None])[:, 0]


def targeted_dlr(scores: Tensor, own: Tensor, target: Tensor) -> Tensor:
    """(z_t - best of one's own) / (z_1 - (z_3 + z_4) / 2), z_k the k-th largest score; without the quotient where
    there are fewer than four scores, where it has no meaning: (N,). Croce and Hein, ICML 2020, equation 7.
    """
    gap = scores.gather(1, target[:, None])[:, 0] - scores.masked_fill(~own, -INF).amax(1)
    if scores.shape[1] < 4:
        return gap
    z = scores.topk(4, dim=1).values
    return gap / (z[:, 0] - (z[:, 2] + z[:, 3]) / 2 + 1e-12)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"margin": margin, "ce": cross_entropy}
