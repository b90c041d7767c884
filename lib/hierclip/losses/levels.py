"""What a loss sees of a training step: the batch at every level of each tree, and the model.

The nodes of all levels are in one row, and so are a batch's points, so that one operation serves
all levels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from hierclip.config import TrainedParams
from hierclip.hyperbolic import einstein_midpoints
from hierclip.models import Head, Towers


class Nodes(NamedTuple):
    """A tree's nodes in one row of K, leaves first.

    sizes: by level. parents: (K,), the place in the row of each node's parent, -1 for the coarsest
    level. levels: (K,) int64. starts: (L + 1,) int64, where each level begins.
    """

    sizes: tuple[int, ...]
    parents: Tensor
    levels: Tensor
    starts: Tensor

    @property
    def max_level(self) -> int:
        return len(self.sizes) - 1


def make_nodes(
    parents: Sequence[Sequence[int]], size: int, device: torch.device | str = "cpu"
) -> Nodes:
    """Put a tree's nodes in one row.

    parents: by level below the coarsest, each node's place at the level above. size: of the
    coarsest level.
    """
    sizes = torch.tensor([*(len(level) for level in parents), size], device=device)
    starts = sizes.cumsum(0) - sizes
    indices = [torch.as_tensor(level, device=device) for level in parents]
    row = [start + place for start, place in zip(starts[1:], indices, strict=True)]
    row.append(torch.full((size,), -1, device=device))
    levels = torch.arange(len(sizes), device=device).repeat_interleave(sizes)
    return Nodes(tuple(sizes.tolist()), torch.cat(row), levels, starts)


class Group(NamedTuple):
    """A level of a batch that is rolled up: its nodes (N,), and the group of each finer point."""

    nodes: Tensor
    members: Tensor


def group_levels(paths: Tensor) -> list[Group]:
    """Return the groups of every level above the leaves, of images with these paths (B, L + 1)."""
    groups = []
    for level in range(1, paths.shape[1]):
        nodes, members = paths[:, level].unique(return_inverse=True)
        groups.append(Group(nodes, members))
        order = torch.arange(len(members), device=members.device)
        # Any member of a group will do: they share all coarser levels.
        paths = paths[members.new_zeros(len(nodes)).scatter_(0, members, order)]
    return groups


def roll_up(lifted: Tensor, groups: Sequence[Group]) -> list[Tensor]:
    """Return the points of every level, (N_l, D + 1): HypAvg of the finer points of each group.

    lifted: (B, D + 1), the images' points as `to_klein_sum` has them; the first level.
    """
    levels = [lifted]
    for nodes, members in groups:
        levels.append(einstein_midpoints(levels[-1], members, len(nodes)))
    return levels


class RolledUp(NamedTuple):
    """The points of a batch at all levels of a tree, M in one row, and their targets.

    groups: from `group_levels`. levels: (M,). nodes: (M,), their nodes' indices in the row of
    `Nodes`. barred: (M, K) float32, -inf for the nodes that are no negatives of a point, else 0.
    parents: (M - N_L,), the row of the point that each one is rolled up into. shares: (M,), one
    over the number of points at each one's level, so that a weighted sum adds means over levels.
    """

    groups: Sequence[Group]
    levels: Tensor
    nodes: Tensor
    barred: Tensor
    parents: Tensor
    shares: Tensor


def rolled_up(nodes: Nodes, paths: Tensor, sides: Sequence[str]) -> RolledUp:
    """Return the points that images with these paths (B, L + 1) have at every level.

    The negatives of a point are the other nodes of its own level and, as HNSA has it, those of
    levels l - 1 ("finer") and l + 1 ("coarser") that share no edge with its node; a node on both
    levels shares one with itself.
    """
    groups = group_levels(paths)
    indices = [paths[:, 0], *(group.nodes for group in groups)]
    counts = torch.tensor([len(level) for level in indices], device=paths.device)
    levels = torch.arange(len(indices), device=paths.device).repeat_interleave(counts)
    true_nodes = torch.cat(indices) + nodes.starts[levels]
    step = nodes.levels - levels[:, None]  # (M, K): how far above a point's level each node is
    rivals = step == 0
    if "finer" in sides:
        rivals = rivals | ((step == -1) & (nodes.parents != true_nodes[:, None]))
    if "coarser" in sides:
        order = torch.arange(len(nodes.parents), device=paths.device)
        rivals = rivals | ((step == 1) & (order != nodes.parents[true_nodes][:, None]))
    starts = counts.cumsum(0)
    parents = [group.members + start for group, start in zip(groups, starts, strict=False)]
    return RolledUp(
        groups=groups,
        levels=levels,
        nodes=true_nodes,
        barred=torch.where(rivals, 0.0, -torch.inf),
        parents=torch.cat([true_nodes[:0], *parents]),
        shares=1 / levels.bincount()[levels],
    )


@dataclass(frozen=True)
class Perturbation:
    """Adversarial images (B, 3, H, W), the texts' perturbation (K, D), and the attacked levels."""

    images: Tensor
    text_delta: Tensor | None = None  # in units of each text embedding's own norm
    levels: tuple[int, ...] | None = None  # None: all


@dataclass(frozen=True)
class Context:
    """A step's clean images, their nodes in each tree, and the trained and the original model."""

    images: Tensor  # (B, 3, H, W) in [0, 1]
    paths: Sequence[Tensor]  # by tree: (B, L + 1), the node of each image at every level
    nodes: Sequence[Nodes]  # by tree
    towers: Callable[..., tuple[Tensor, Tensor, Tensor]]
    original: Towers
    head: Callable[[], Head]  # with its learned numbers as they are now
    counts: dict[str, float] = field(default_factory=dict)  # what the last loss logged
    _rolled: dict[tuple[str, ...], list[RolledUp]] = field(default_factory=dict)

    @property
    def labels(self) -> Tensor:
        """Return the leaf of each image, (B,)."""
        return self.paths[0][:, 0]

    def rolled_up(self, sides: tuple[str, ...]) -> list[RolledUp]:
        """Return `rolled_up` of the batch by tree, computed once for all passes of a step."""
        if sides not in self._rolled:
            pairs = zip(self.nodes, self.paths, strict=True)
            self._rolled[sides] = [rolled_up(nodes, paths, sides) for nodes, paths in pairs]
        return self._rolled[sides]

    def leaf_logits(self, embeddings: Tensor, texts: Tensor) -> Tensor:
        """Return (B, leaves), from image embeddings and the text embeddings of all prompts."""
        head = self.head()
        leaves = self.original.by_tree(texts)[0]
        points = head.text_points(leaves[0], 0, len(leaves) - 1)
        return head.logits(head.image_points(embeddings), points)

    @cached_property
    def original_clean(self) -> tuple[Tensor, Tensor]:
        """Compute the original model's embeddings of clean images (B, D) and of prompts (K, D)."""
        with torch.no_grad():
            return self.original(self.images)[::2]


Loss = Callable[[Context, Perturbation, TrainedParams], Tensor]


@dataclass(frozen=True)
class Objective:
    """What training minimises, and what the attack that it learns from maximises."""

    loss: Loss
    attack: Loss
