"""The hierarchical objective: HITA over a forest, negatives from neighbouring levels, and the depth penalties.

Source: Hierarchically Robust Zero-shot Vision-language Models (CVPR 2026).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hierclip.losses.context import Context, Moved
from hierclip.losses.levels import Nodes, RolledUp, roll_up
from hierclip.model import PoincareHead
from hierclip.params import HierParams


class Placed(NamedTuple):
    """A tree's texts and a batch's roll-ups in the ball, of all levels in one row each."""

    nodes: Nodes
    rolled: RolledUp
    texts: Tensor  # (K, D)
    points: Tensor  # (M, D)
    distances: Tensor  # (M, K)


def level_weights(top: int, upper: float) -> list[float]:
    """Give w_l = 1 - l / (L + 1), times `upper` above the leaves, by level."""
    return [1.0, *(upper * (1 - level / (top + 1)) for level in range(1, top + 1))]


def alignment(placed: Placed, params: HierParams, tau: Tensor | float, wanted: Sequence[int] | None = None) -> Tensor:
    """Give HITA on one tree: the sum over l of w_l CE(softmax(-tau d(phi^l, texts))), each the mean over points.

    The softmax holds what a point is told apart from (`RolledUp`). wanted: the levels that count; None: all.
    """
    nodes, rolled = placed.nodes, placed.rolled
    weights = level_weights(nodes.top, params.upper_weight)
    kept = [weight if wanted is None or level in wanted else 0.0 for level, weight in enumerate(weights)]
    losses = F.cross_entropy(rolled.barred - tau * placed.distances, rolled.nodes, reduction="none")
    return (losses.new_tensor(kept)[rolled.levels] * rolled.shares) @ losses


def vicinity(placed: Placed, zeta: float) -> Tensor:
    """Give relu(d(image, text) - zeta) of every point and its node: (M,). Near their texts, not on top of them."""
    return F.relu(placed.distances.gather(1, placed.rolled.nodes[:, None])[:, 0] - zeta)


def text_gap(nodes: Nodes, texts: Tensor, zeta: float) -> Tensor:
    """Give relu(|parent| - |child| + zeta) of every text below the coarsest level: a parent is nearer to the centre."""
    return _gap(texts.norm(dim=-1), nodes.parents[: -nodes.sizes[-1]], zeta)


def image_gap(rolled: RolledUp, points: Tensor, zeta: float) -> Tensor:
    """Give the same for image roll-ups: each point below the coarsest level and the one that it went into."""
    return _gap(points.norm(dim=-1), rolled.parents, zeta)


def _gap(norms: Tensor, parents: Tensor, zeta: float) -> Tensor:
    return F.relu(norms[parents] - norms[: len(parents)] + zeta)


def hita(context: Context, moved: Moved, params: HierParams) -> Tensor:
    """Give the sum of `alignment` over the trees, at the levels of `moved`."""
    tau, trees = _head(context).tau, _place(context, moved, params)
    return torch.stack([alignment(placed, params, tau, moved.levels) for placed in trees]).sum()


def hierarchical(context: Context, moved: Moved, params: HierParams) -> Tensor:
    """Give HITA + lambda_1 L_vic + lambda_2 (gap_text + gap_image), summed over the trees.

    Each penalty is the mean over levels of its mean. Where `moved` is for some levels only, each of several in a step,
    penalties count in proportion.

    Logs the share of points that are projected from the rim and of pairs that each penalty acts on.
    """
    tau = _head(context).tau
    losses, active = [], {"vic": [], "gap_text": [], "gap_image": []}
    for placed in _place(context, moved, params, log=True):
        nodes, rolled = placed.nodes, placed.rolled
        vic = vicinity(placed, params.zeta_vic)
        of_texts = text_gap(nodes, placed.texts, params.zeta_gap)
        of_images = image_gap(rolled, placed.points, params.zeta_gap)
        for name, part in zip(active, (vic, of_texts, of_images), strict=True):
            active[name].append((part > 0).float())
        text_shares = 1 / torch.tensor(nodes.sizes, device=nodes.levels.device)[nodes.levels]
        depth = of_texts @ text_shares[: len(of_texts)] + of_images @ rolled.shares[: len(of_images)]
        penalty = params.vic * (vic @ rolled.shares) / (nodes.top + 1) + params.gap * depth / max(1, nodes.top)
        share = sum(level <= nodes.top for level in moved.levels) / (nodes.top + 1) if moved.levels else 1.0
        losses.append(alignment(placed, params, tau, moved.levels) + share * penalty)
    context.counts.update({f"{name}_active": float(torch.cat(parts).mean()) for name, parts in active.items()})
    return torch.stack(losses).sum()


def _head(context: Context) -> PoincareHead:
    head = context.head()
    assert isinstance(head, PoincareHead)  # `make_head` gives it one
    return head


def _place(context: Context, moved: Moved, params: HierParams, log: bool = False) -> list[Placed]:
    """Place texts and roll-ups of every tree. log: count how many points are projected from the rim."""
    head = _head(context)
    embeddings, texts = context.see(moved)
    images = head.image_tangents(embeddings)
    shares = torch.cat([nodes.levels / max(1, nodes.top) for nodes in context.nodes])
    texts = head.text_tangents_at(texts, shares[:, None])
    if log:
        context.counts["rim_images"] = float(head.clamped(images).float().mean())
        context.counts["rim_texts"] = float(head.clamped(texts).float().mean())
    images, placed = head.place(images), []
    by_tree = head.place(texts).split([len(nodes.parents) for nodes in context.nodes])
    for nodes, rolled, tree in zip(context.nodes, context.rolled_up(params.negatives), by_tree, strict=True):
        points = torch.cat(roll_up(head, images, rolled.groups))
        placed.append(Placed(nodes, rolled, tree, points, head.pairwise_distance(points, tree)))
    return placed
