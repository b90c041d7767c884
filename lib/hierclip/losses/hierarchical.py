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
from hierclip.hyperbolic import Scalar
from hierclip.losses.levels import Context, Nodes, Perturbation, RolledUp, roll_up
from hierclip.models import PoincareHead


class Placed(NamedTuple):
    """A tree's texts and a batch's roll-ups in the ball, those of all levels in one row each."""

    nodes: Nodes
    rolled: RolledUp
    tau: Scalar
    distances: Tensor  # (M, K)
    text_norms: Tensor  # (K,)
    point_norms: Tensor  # (M,)


def level_weights(max_level: int, superclass_weight: float) -> list[float]:
    """Return w_l = 1 - l / (L + 1), times `superclass_weight` above the leaves, by level."""
    return [
        1.0,
        *(superclass_weight * (1 - level / (max_level + 1)) for level in range(1, max_level + 1)),
    ]


def alignment(placed: Placed, params: HierParams, attacked: Sequence[int] | None = None) -> Tensor:
    """Return HITA on one tree: the sum over l of w_l CE(softmax(-tau d(phi^l, texts))).

    Each cross-entropy is the mean over points, over a softmax of the point's node and its negatives
    (`rolled_up`). attacked: the levels that count; None: all.
    """
    weights = level_weights(placed.nodes.max_level, params.superclass_weight)
    if attacked is not None:
        weights = [weight if l in attacked else 0.0 for l, weight in enumerate(weights)]
    rolled = placed.rolled
    logits = rolled.barred - placed.tau * placed.distances
    losses = F.cross_entropy(logits, rolled.nodes, reduction="none")
    return (losses.new_tensor(weights)[rolled.levels] * rolled.shares) @ losses


def vicinity(placed: Placed, zeta: float) -> Tensor:
    """Return relu(d(image, text) - zeta) of every point and its node, (M,): near, not on top."""
    return F.relu(placed.distances.gather(1, placed.rolled.nodes[:, None])[:, 0] - zeta)


def depth_gap(norms: Tensor, parents: Tensor, zeta: float) -> Tensor:
    """Return relu(|parent| - |child| + zeta): a parent must be nearer to the centre than a child.

    parents: the row of the parent of each of the first nodes or points.
    """
    return F.relu(norms[parents] - norms[: len(parents)] + zeta)


def hita(context: Context, perturbation: Perturbation, params: HierParams) -> Tensor:
    """Return the sum of `alignment` over the trees, at the levels of `perturbation`."""
    trees = _place(context, perturbation, params)
    return torch.stack([alignment(tree, params, perturbation.levels) for tree in trees]).sum()


def hierarchical(context: Context, perturbation: Perturbation, params: HierParams) -> Tensor:
    """Return HITA + lambda_1 L_vic + lambda_2 (gap_text + gap_image), summed over the trees.

    Each penalty is the mean over levels of its mean. Where `perturbation` is for some levels only,
    penalties count in proportion. Logs the share of points that are clipped at the rim and of pairs
    on which each penalty acts.
    """
    losses = []
    active = {"vic_active": [], "gap_text_active": [], "gap_image_active": []}
    for placed in _place(context, perturbation, params, train=True):
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


def _place(
    context: Context, perturbation: Perturbation, params: HierParams, train: bool = False
) -> list[Placed]:
    """Place texts and roll-ups of every tree.

    train: compute norms too, and log the share of points that are clipped at the rim.
    """
    head = context.head()
    assert isinstance(head, PoincareHead)  # `make_head` made it
    r = head.curvature
    embeddings, _, texts = context.towers(perturbation.images)
    if perturbation.text_delta is not None:
        texts = texts + texts.norm(dim=-1, keepdim=True) * perturbation.text_delta
    images = head.image_tangents(embeddings)
    shares = torch.cat([nodes.levels / max(1, nodes.max_level) for nodes in context.nodes])
    texts = head.text_tangents(texts, shares[:, None])
    if train:
        context.counts["rim_images"] = float(hyperbolic.is_clipped(images, r).float().mean())
        context.counts["rim_texts"] = float(hyperbolic.is_clipped(texts, r).float().mean())
    points, height = hyperbolic.lift_tangents(images.double(), r)
    lifted = torch.cat([points, 1 + height], dim=1)
    text_points, text_height = hyperbolic.lift_tangents(texts, r)
    right = hyperbolic.right_factor(text_points, text_height)
    text_norms = point_norms = torch.zeros(0)
    placed = []
    start = 0
    for nodes, rolled in zip(context.nodes, context.rolled_up(params.negatives), strict=True):
        rows = slice(start, start + len(nodes.parents))
        start = rows.stop
        levels = torch.cat(roll_up(lifted, rolled.groups))
        points = levels[:, :-1].to(texts.dtype)
        height = (levels[:, -1:] - 1).to(texts.dtype)
        left = hyperbolic.left_factor(points, height)
        distances = hyperbolic.distance_of_factors(left, right[rows], r)
        if train:
            text_norms = hyperbolic.lifted_norms(text_points[rows], text_height[rows], r)
            point_norms = hyperbolic.lifted_norms(points, height, r)
        placed.append(Placed(nodes, rolled, head.tau, distances, text_norms, point_norms))
    return placed
