"""A tree's nodes and a batch's points, those of all levels in one row, so that one operation serves all levels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from hierclip.model import PoincareHead


@dataclass(frozen=True)
class Nodes:
    """A tree's nodes in one row of K, leaves first.

    sizes: by level. parents: (K,), each node's parent's place in the row, -1 for those of the coarsest level.
    """

    sizes: tuple[int, ...]
    parents: Tensor

    @property
    def top(self) -> int:
        return len(self.sizes) - 1

    @cached_property
    def levels(self) -> Tensor:
        """(K,) int64: each node's level."""
        levels = torch.arange(len(self.sizes), device=self.parents.device)
        return levels.repeat_interleave(torch.tensor(self.sizes, device=levels.device))

    @cached_property
    def starts(self) -> Tensor:
        """(L + 1,) int64: where each level begins."""
        sizes = torch.tensor(self.sizes, device=self.parents.device)
        return sizes.cumsum(0) - sizes


def make_nodes(parents: Sequence[Sequence[int]], size: int, device: torch.device | str = "cpu") -> Nodes:
    """Make the row of a tree's nodes. parents: by level below the coarsest, each node's place at the level above; size:
    of the coarsest level."""
    sizes = [*(len(level) for level in parents), size]
    places = [sum(sizes[: l + 1]) + parent for l, level in enumerate(parents) for parent in level]
    return Nodes(tuple(sizes), torch.tensor([*places, *[-1] * size], device=device))


class Group(NamedTuple):
    """A level of a batch that is rolled up: its nodes (N,), and which of them each point of the level below is in."""

    nodes: Tensor
    members: Tensor


def group_levels(paths: Tensor) -> list[Group]:
    """Give the groups of every level above the leaves, of images with these paths (B, L + 1)."""
    groups = []
    for level in range(1, paths.shape[1]):
        nodes, members = paths[:, level].unique(return_inverse=True)
        groups.append(Group(nodes, members))
        first = members.new_zeros(len(nodes)).scatter_(0, members, torch.arange(len(members), device=members.device))
        paths = paths[first]  # any member will do: they share all that is above
    return groups


def roll_up(head: PoincareHead, lifted: Tensor, groups: Sequence[Group]) -> list[Tensor]:
    """Give the points of every level: a class's is the HypAvg of those one level below that share that ancestor.

    lifted: (B, D + 1), the images' points as `head.lift` has them. Gives (N_l, D + 1) each, the first of them `lifted`.
    """
    levels = [lifted]
    for nodes, members in groups:
        levels.append(head.midpoints(levels[-1], members, len(nodes)))
    return levels


@dataclass(frozen=True)
class RolledUp:
    """The points that a batch has at all levels of a tree, M in one row, and what the losses ask of each.

    groups: from `group_levels`. levels: (M,). nodes: (M,), their nodes' places in the row of `Nodes`. barred: (M, K)
    float32, -inf for the nodes that a point is not told apart from, else 0. parents: (M - N_L,), the row of the point
    that each one goes into.
    """

    groups: Sequence[Group]
    levels: Tensor
    nodes: Tensor
    barred: Tensor
    parents: Tensor

    @cached_property
    def shares(self) -> Tensor:
        """(M,): one over the number of points at each one's level, so that a sum is a sum of means over levels."""
        return 1 / self.levels.bincount()[self.levels]


def rolled_up(nodes: Nodes, paths: Tensor, sides: Sequence[str]) -> RolledUp:
    """Say which points images with these paths (B, L + 1) have at every level.

    A point is told apart from the nodes of its own level and, as HNSA has it, from those of level l - 1 ("finer") and
    l + 1 ("coarser") that share no edge with its own: one that stands on both levels shares one with itself.
    """
    groups = group_levels(paths)
    places = [paths[:, 0], *(group.nodes for group in groups)]
    counts = torch.tensor([len(level) for level in places], device=paths.device)
    levels = torch.arange(len(places), device=paths.device).repeat_interleave(counts)
    own = torch.cat(places) + nodes.starts[levels]
    step = nodes.levels - levels[:, None]  # (M, K): how far above a point's level each node is
    rivals = step == 0
    if "finer" in sides:
        rivals = rivals | ((step == -1) & (nodes.parents != own[:, None]))
    if "coarser" in sides:
        order = torch.arange(len(nodes.parents), device=paths.device)
        rivals = rivals | ((step == 1) & (order != nodes.parents[own][:, None]))
    starts = counts.cumsum(0)
    parents = [group.members + start for group, start in zip(groups, starts, strict=False)]
    barred = torch.where(rivals, 0.0, -torch.inf)
    return RolledUp(groups, levels, own, barred, torch.cat(parents) if parents else own[:0])
