"""The goals of attacks over the levels of a tree, and the losses that measure how near a goal is.

scores: (N, K), the logits of a level. true_class_mask: (N, K) bool, the logits that must not win.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

Mask = Callable[[Tensor], Tensor]  # from leaves (N,) to a true class mask (N, K) on their device


@dataclass(frozen=True)
class AttackGoal:
    """State what an attack wants misclassified, at all of `levels` at once.

    levels: those whose logits the attack sees. mask_functions: for each of them, the logits that
    must not win. prerequisites: goals that an image must reach before it can reach this one.
    """

    kind: str
    level: int
    levels: tuple[int, ...]
    mask_functions: tuple[Mask, ...]
    prerequisites: tuple["AttackGoal", ...] = ()

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.level}"

    def is_reached(self, nodes: Tensor, labels: Tensor) -> Tensor:
        """Return (N,) bool: whether predictions (N, L + 1), nodes by level, reach the goal."""
        right = [
            mask.gather(1, nodes[:, [level]])[:, 0]
            for level, mask in zip(self.levels, self.masks(labels), strict=True)
        ]
        return ~torch.stack(right).any(0)

    def masks(self, labels: Tensor) -> list[Tensor]:
        """Return for leaves (N,) the true class masks (N, K) bool of each of `levels`."""
        return [mask(labels) for mask in self.mask_functions]


def _alike(columns: Tensor, leaves: Tensor, labels: Tensor) -> Tensor:
    """Mask the logits (K,) whose value in `columns` equals the true leaf's in `leaves`: (N, K)."""
    return columns.to(labels.device) == leaves.to(labels.device)[labels][:, None]


def direct(paths: Tensor, level: int) -> AttackGoal:
    """Misclassify the level's own prediction."""
    nodes = torch.arange(int(paths[:, level].max()) + 1, device=paths.device)
    return AttackGoal("direct", level, (level,), (partial(_alike, nodes, paths[:, level]),))


def roll_up(paths: Tensor, level: int) -> AttackGoal:
    """Move the predicted leaf out of the true leaf's superclass at `level`."""
    nested = (  # finer levels nested in this one, so of the same tree; the coarsest first
        finer
        for finer in range(level - 1, 0, -1)
        if len(paths[:, [finer, level]].unique(dim=0)) == len(paths[:, finer].unique())
    )
    finer = next(nested, 0)
    below = roll_up(paths, finer) if finer else direct(paths, 0)
    superclass = partial(_alike, paths[:, level], paths[:, level])
    return AttackGoal("roll_up", level, (0,), (superclass,), (below,))


def within_superclass(paths: Tensor, level: int) -> AttackGoal:
    """Misclassify the leaf inside the true leaf's superclass at `level`."""
    leaf = direct(paths, 0)
    superclass = partial(_alike, paths[:, level], paths[:, level])

    def mask(labels: Tensor) -> Tensor:
        return leaf.mask_functions[0](labels) | ~superclass(labels)

    return AttackGoal("within_superclass", level, (0,), (mask,), (leaf,))


def all_levels(paths: Tensor, level: int) -> AttackGoal:
    """Misclassify all levels up to `level` at once."""
    parts = tuple(direct(paths, l) for l in range(level + 1))
    masks = tuple(part.mask_functions[0] for part in parts)
    return AttackGoal("all_levels", level, tuple(range(level + 1)), masks, parts)


GOALS: dict[str, Callable[[Tensor, int], AttackGoal]] = {
    "direct": direct,
    "roll_up": roll_up,
    "within_superclass": within_superclass,
    "all_levels": all_levels,
}


def level_goals(paths: Tensor, level: int) -> list[AttackGoal]:
    """Return the goals of both readings of a level; one at level 0, where they agree.

    paths: (leaves, L + 1).
    """
    return [direct(paths, level), roll_up(paths, level)] if level else [direct(paths, level)]


def margin(scores: Tensor, true_class_mask: Tensor) -> Tensor:
    """Return (N,): the best true logit minus the best other one; misclassified unless above 0."""
    best_true = scores.masked_fill(~true_class_mask, -torch.inf).amax(1)
    return best_true - scores.masked_fill(true_class_mask, -torch.inf).amax(1)


def margin_loss(scores: Tensor, true_class_mask: Tensor) -> Tensor:
    """Return (N,): minus the margin."""
    return -margin(scores, true_class_mask)


def cross_entropy(scores: Tensor, true_class_mask: Tensor) -> Tensor:
    """Return (N,): -log of the softmax's mass on the true classes."""
    return -F.log_softmax(scores, dim=1).masked_fill(~true_class_mask, -torch.inf).logsumexp(1)


def targets(scores: Tensor, true_class_mask: Tensor, rank: int) -> Tensor:
    """Return (N,) int64: the other class of a rank, 1 the best; the last where there are fewer."""
    others = (~true_class_mask).sum(1).clamp(min=1)
    order = scores.masked_fill(true_class_mask, -torch.inf).argsort(1, descending=True)
    return order.gather(1, (others.clamp(max=rank) - 1)[:, None])[:, 0]


def target_gap(scores: Tensor, true_class_mask: Tensor, target: Tensor) -> Tensor:
    """Return (N,): the target's logit minus the best true one."""
    best_true = scores.masked_fill(~true_class_mask, -torch.inf).amax(1)
    return scores.gather(1, target[:, None])[:, 0] - best_true


def targeted_dlr(scores: Tensor, true_class_mask: Tensor, target: Tensor) -> Tensor:
    """Return (N,): (z_t - best true logit) / (z_1 - (z_3 + z_4) / 2), z_k the k-th largest logit.

    With fewer than four classes the quotient is left out. Source: Croce and Hein, ICML 2020,
    equation 7.
    """
    gap = target_gap(scores, true_class_mask, target)
    if scores.shape[1] < 4:
        return gap
    z = scores.topk(4, dim=1).values
    return gap / (z[:, 0] - (z[:, 2] + z[:, 3]) / 2 + 1e-12)


# What attacks maximise.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "margin": margin_loss,
    "ce": cross_entropy,
}
