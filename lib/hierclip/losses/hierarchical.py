"""The hierarchical objective: HITA over a forest, with negatives and depth penalties.

Source: Hierarchically Robust Zero-shot Vision-language Models (CVPR 2026).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hierclip import hyperbolic
from hierclip.config import HierParams
from hierclip.losses.levels import (
    Context,
    Nodes,
    Perturbation,
    RolledUp,
    level_weights,
    roll_up,
)
from hierclip.models import PoincareHead


class Placed(NamedTuple):
    """A tree's texts and a batch's points in the ball, those of all levels in one row each."""

    nodes: Nodes
    rolled: RolledUp
    tau: float
    distances: Tensor  # (M, K), or (2B, K) where all levels above the leaves share their points
    text_norms: Tensor  # (K,)
    point_norms: Tensor  # (M,)

    def true_distances(self) -> Tensor:
        """Return the distance of every point from its node, (M,)."""
        parts = []
        for block in self.rolled.blocks:
            nodes = self.rolled.nodes[block.points]
            parts.append(self.distances[block.rows].gather(1, nodes[:, None])[:, 0])
        return torch.cat(parts)


def alignment(placed: Placed, params: HierParams, attacked: Sequence[int] | None = None) -> Tensor:
    """Return HITA on one tree: the sum over l of w_l CE(softmax(-tau d(phi^l, texts))).

    Each cross-entropy is the mean over points, over a softmax of the point's node and its negatives
    (`rolled_up`). attacked: the levels that count; None: all.
    """
    weights = level_weights(placed.nodes.max_level, params.superclass_weight)
    if attacked is not None:
        weights = [weight if l in attacked else 0.0 for l, weight in enumerate(weights)]
    rolled = placed.rolled
    logits = -placed.tau * placed.distances
    losses = []
    for points, columns, rows in rolled.blocks:
        target = rolled.nodes[points] - columns.start
        block = logits[rows, columns] + rolled.barred[points, columns]
        losses.append(F.cross_entropy(block, target, reduction="none"))
    weight = logits.new_tensor(weights)[rolled.levels] * rolled.shares
    return weight @ torch.cat(losses)


def vicinity(placed: Placed, zeta: float) -> Tensor:
    """Return relu(d(image, text) - zeta) of every point and its node, (M,): near, not on top."""
    return F.relu(placed.true_distances() - zeta)


def depth_gap(norms: Tensor, parents: Tensor, zeta: float) -> Tensor:
    """Return relu(|parent| - |child| + zeta): a parent must be nearer to the centre than a child.

    parents: the row of the parent of each of the first nodes or points.
    """
    return F.relu(norms[parents] - norms[: len(parents)] + zeta)


def hita(context: Context, perturbation: Perturbation, params: HierParams) -> Tensor:
    """Return the sum of `alignment` over the trees, at the levels of `perturbation`."""
    embeddings, texts = _encode(context, perturbation)
    trees = _place(context, embeddings, texts, params)
    return torch.stack([alignment(each, params, perturbation.levels) for each in trees]).sum()


def hierarchical(context: Context, perturbation: Perturbation, params: HierParams) -> Tensor:
    """Return HITA + lambda_1 L_vic + lambda_2 (gap_text + gap_image), summed over the trees.

    Each penalty is the mean over levels of its mean. Where `perturbation` is for some levels only,
    penalties count in proportion. Logs the share of points that are clipped at the rim and of pairs
    on which each penalty acts.
    """
    embeddings, texts = _encode(context, perturbation)
    losses = []
    active = {"vic_active": [], "gap_text_active": [], "gap_image_active": []}
    for placed in _place(context, embeddings, texts, params, train=True):
        nodes = placed.nodes
        shares = placed.rolled.shares
        vic = vicinity(placed, params.zeta_vic)
        below_top = nodes.parents[: -nodes.sizes[-1]]
        of_texts = depth_gap(placed.text_norms, below_top, params.zeta_gap)
        of_images = depth_gap(placed.point_norms, placed.rolled.parents, params.zeta_gap)
        for parts, penalties in zip(active.values(), (vic, of_texts, of_images), strict=True):
            parts.append((penalties > 0).float())
        text_shares = 1 / nodes.levels.bincount()[nodes.levels]
        depth = of_texts @ text_shares[: len(of_texts)] + of_images @ shares[: len(of_images)]
        penalty = params.vic * (vic @ shares) / (nodes.max_level + 1)
        penalty = penalty + params.gap * depth / max(1, nodes.max_level)
        attacked = perturbation.levels or range(nodes.max_level + 1)
        share = sum(level <= nodes.max_level for level in attacked) / (nodes.max_level + 1)
        losses.append(alignment(placed, params, perturbation.levels) + share * penalty)
    for name, parts in active.items():
        acts = torch.cat(parts)
        if len(acts):  # a tree of leaves alone has no edges
            context.counts[name] = float(acts.mean())
    return torch.stack(losses).sum()


def _encode(context: Context, perturbation: Perturbation) -> tuple[Tensor, Tensor]:
    """Return the embeddings of perturbed images (B, D) and of perturbed texts (K, D)."""
    embeddings, _, texts = context.towers(perturbation.images)
    if perturbation.text_delta is not None:
        texts = texts + texts.norm(dim=-1, keepdim=True) * perturbation.text_delta
    return embeddings, texts


def _ball(context: Context) -> PoincareHead:
    assert isinstance(context.head, PoincareHead)  # `make_head` made it
    return context.head


def _level_shares(context: Context) -> Tensor:
    """Return each node's share of the way from the leaves to its tree's coarsest level, (K, 1)."""
    shares = [nodes.levels / max(1, nodes.max_level) for nodes in context.nodes]
    return torch.cat(shares)[:, None]


def _lift(tangents: Tensor, r: float) -> Tensor:
    """Return tangent vectors (N, D) as `to_klein_sum` has their points, (N, D + 1) in float64."""
    points, height = hyperbolic.lift_tangents(tangents.double(), r)
    return torch.cat([points, 1 + height], dim=1)


def _to_float(lifted: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return x (N, D) and the height x0 - 1 (N, 1) of lifted points in another precision."""
    return lifted[:, :-1].to(dtype), (lifted[:, -1:] - 1).to(dtype)


def _place(
    context: Context, embeddings: Tensor, texts: Tensor, params: HierParams, train: bool = False
) -> list[Placed]:
    """Place texts (K, D) and the points of images (B, D) at all levels of every tree.

    train: compute norms too, and log the share of points that are clipped at the rim.
    """
    head = _ball(context)
    r = head.curvature
    images = head.image_tangents(embeddings)
    texts = head.text_tangents(texts, _level_shares(context))
    lifted = _lift(images, r)
    if train:
        context.counts["rim_images"] = float(hyperbolic.is_clipped(images, r).float().mean())
        context.counts["rim_texts"] = float(hyperbolic.is_clipped(texts, r).float().mean())
    text_points, text_height = hyperbolic.lift_tangents(texts, r)
    right = hyperbolic.right_factor(text_points, text_height)
    text_norms = point_norms = torch.zeros(0)
    placed = []
    start = 0
    batch = context.rolled_up(params.negatives, params.roll_up)
    for nodes, rolled in zip(context.nodes, batch, strict=True):
        rows = slice(start, start + len(nodes.parents))
        start = rows.stop
        levels = torch.cat(roll_up(lifted, rolled.groups, params.roll_up))
        points, height = _to_float(levels, texts.dtype)
        left = hyperbolic.left_factor(points, height)
        distances = hyperbolic.distance_of_factors(left, right[rows], r)
        if train:
            text_norms = hyperbolic.lifted_norms(text_points[rows], text_height[rows], r)
            point_norms = hyperbolic.lifted_norms(points, height, r)
        placed.append(Placed(nodes, rolled, head.tau, distances, text_norms, point_norms))
    return placed
