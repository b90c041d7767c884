"""What a loss sees of a training step: the batch at every level of each tree, and the model.

The nodes of all levels are in one row, and so are a batch's points, so that one operation serves
all levels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
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


def level_weights(max_level: int, superclass_weight: float) -> list[float]:
    """Return w_l = 1 - l / (L + 1), times `superclass_weight` above the leaves, by level."""
    return [
        1.0,
        *(superclass_weight * (1 - level / (max_level + 1)) for level in range(1, max_level + 1)),
    ]


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


def group_images(paths: Tensor) -> list[Group]:
    """Return the groups of every level above the leaves where each image is a group by itself."""
    images = torch.arange(len(paths), device=paths.device)
    return [Group(nodes, images) for nodes in paths.T[1:]]


def roll_up(lifted: Tensor, groups: Sequence[Group], mode: str = "midpoint") -> list[Tensor]:
    """Return the points of every level, (N_l, D + 1).

    lifted: (B, D + 1), the images' points as `to_klein_sum` has them; the first level.
    mode: "midpoint": HypAvg of the finer points of each group. "single": images as they are, once
    for all levels above.
    """
    if mode == "single":
        return [lifted, lifted]
    levels = [lifted]
    for nodes, members in groups:
        levels.append(einstein_midpoints(levels[-1], members, len(nodes)))
    return levels


BARRED = -1e30  # a logit of no weight, finite so that a target of 0 there costs 0


class Block(NamedTuple):
    """A level's part of the (M, K) points and nodes of all levels.

    points: its points' rows. columns: the nodes of its softmax. rows: where `roll_up` has the
    points, one after the other by level; with "single", all levels above the leaves share them.
    """

    points: slice
    columns: slice
    rows: slice


class RolledUp(NamedTuple):
    """The points of a batch at all levels of a tree, M in one row, and their targets.

    groups: from `group_levels` or `group_images`. levels: (M,). nodes: (M,), their nodes' indices
    in the row of `Nodes`. barred: (M, K) float32, BARRED for the nodes that are no negatives of a
    point, else 0. parents: (M - N_L,), the row of the point that each one is rolled up into, if any
    is. shares: (M,), one over the number of points at each one's level, so that a weighted sum adds
    means over levels. blocks: by level.
    """

    groups: Sequence[Group]
    levels: Tensor
    nodes: Tensor
    barred: Tensor
    parents: Tensor
    shares: Tensor
    blocks: Sequence[Block]


def rolled_up(
    nodes: Nodes, paths: Tensor, sides: Sequence[str], mode: str = "midpoint"
) -> RolledUp:
    """Return the points that images with these paths (B, L + 1) have at every level, by `roll_up`.

    The negatives of a point are the other nodes of its own level and, as HNSA has it, those of
    levels l - 1 ("finer") and l + 1 ("coarser") that share no edge with its node; a node on both
    levels shares one with itself.
    """
    groups = group_images(paths) if mode == "single" else group_levels(paths)
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
    parents = [true_nodes[:0]]
    for group, row in zip(groups, counts.cumsum(0), strict=False):
        parents.append(group.members + row)
    if mode == "single":  # an image is no deeper than itself
        parents = parents[:1]
    return RolledUp(
        groups=groups,
        levels=levels,
        nodes=true_nodes,
        barred=torch.where(rivals, 0.0, BARRED),
        parents=torch.cat(parents),
        shares=1 / levels.bincount()[levels],
        blocks=_blocks(nodes.sizes, [len(level) for level in indices], sides, mode),
    )


def _blocks(
    sizes: Sequence[int], counts: Sequence[int], sides: Sequence[str], mode: str
) -> list[Block]:
    """Return the blocks of levels with so many nodes and points."""
    ends = list(accumulate(sizes, initial=0))
    rows = list(accumulate(counts, initial=0))
    blocks = []
    for level in range(len(sizes)):
        finest = level - ("finer" in sides and level > 0)
        coarsest = level + ("coarser" in sides and level + 1 < len(sizes))
        points = slice(rows[level], rows[level + 1])
        images = slice(counts[0], 2 * counts[0])
        shared = mode == "single" and level > 0
        columns = slice(ends[finest], ends[coarsest + 1])
        blocks.append(Block(points, columns, images if shared else points))
    return blocks


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
    head: Head
    counts: dict[str, float] = field(default_factory=dict)  # what the last loss logged
    _rolled: dict[tuple, list[RolledUp]] = field(default_factory=dict)

    @property
    def labels(self) -> Tensor:
        """Return the leaf of each image, (B,)."""
        return self.paths[0][:, 0]

    def rolled_up(self, sides: tuple[str, ...], mode: str) -> list[RolledUp]:
        """Return `rolled_up` of the batch by tree, computed once for all passes of a step."""
        if (sides, mode) not in self._rolled:
            pairs = zip(self.nodes, self.paths, strict=True)
            rolled = [rolled_up(nodes, paths, sides, mode) for nodes, paths in pairs]
            self._rolled[sides, mode] = rolled
        return self._rolled[sides, mode]

    def leaf_logits(self, embeddings: Tensor, texts: Tensor) -> Tensor:
        """Return (B, leaves), from image embeddings and the text embeddings of all prompts."""
        leaves = self.original.by_tree(texts)[0]
        points = self.head.text_points(leaves[0], 0, len(leaves) - 1)
        return self.head.logits(self.head.image_points(embeddings), points)

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
