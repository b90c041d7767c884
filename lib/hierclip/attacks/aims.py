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


@dataclass(frozen=True)
class Aim:
    """What an attack wants wrong; where it names several levels, in all of them at once.

    own: for each of `sources`, the levels whose logits it sees, (leaves, K_source) bool: by the image's leaf, the
    scores that must not win. needs: aims that an image must have fallen to before this one can succeed.
    """

    kind: str
    level: int
    sources: tuple[int, ...]
    own: tuple[Tensor, ...]
    needs: tuple["Aim", ...] = ()

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.level}"

    def broken(self, nodes: Tensor, labels: Tensor) -> Tensor:
        """Whether predictions (N, L + 1), the winning node of every level, are what it wants of leaves (N,)."""
        won = [table[labels].gather(1, nodes[:, [l]])[:, 0] for l, table in zip(self.sources, self.own, strict=True)]
        return ~torch.stack(won).any(0)


def _nodes(paths: Tensor, level: int) -> Tensor:
    """(leaves, K_level) bool: the node over each leaf."""
    return paths[:, level, None] == torch.arange(int(paths[:, level].max()) + 1, device=paths.device)


def direct(paths: Tensor, level: int) -> Aim:
    """The level's nearest node is wrong."""
    return Aim("direct", level, (level,), (_nodes(paths, level),))


def roll_up(paths: Tensor, level: int) -> Aim:
    """The predicted leaf is outside the right leaf's superclass at `level`: it has left it."""
    below = _finer(paths, level)
    below = roll_up(paths, below) if below else direct(paths, 0)
    return Aim("roll_up", level, (0,), (paths[:, level, None] == paths[:, level],), (below,))


def _finer(paths: Tensor, level: int) -> int:
    """The coarsest level before this one each of whose nodes lies in one of its own: in a forest, of its tree."""
    inside = (
        k for k in range(level - 1, 0, -1) if len(paths[:, [k, level]].unique(dim=0)) == len(paths[:, k].unique())
    )
    return next(inside, 0)


def stay(paths: Tensor, level: int) -> Aim:
    """The predicted leaf is wrong, but inside the right leaf's superclass at `level`."""
    siblings = (paths[:, level, None] == paths[:, level]) & ~torch.eye(
        len(paths), dtype=torch.bool, device=paths.device
    )
    return Aim("stay", level, (0,), (~siblings,), (direct(paths, 0),))


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
