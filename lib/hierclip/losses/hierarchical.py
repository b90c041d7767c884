"""The hierarchical objective: HITA over a forest, negatives from neighbouring levels, and the depth penalties.

Source: Hierarchically Robust Zero-shot Vision-language Models (CVPR 2026).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hierclip.losses.context import Context, Perturbation
from hierclip.losses.levels import Nodes, RolledUp, roll_up
from hierclip.model import PoincareHead
from hierclip.params import HierParams


class Placed(NamedTuple):
    """A tree's texts and a batch's roll-ups in the ball, of all levels in one row each."""

    nodes: Nodes
    rolled: RolledUp
    distances: Tensor  # (M, K)
    text_norms: Tensor  # (K,)
    point_norms: Tensor  # (M,)


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


def text_gap(nodes: Nodes, norms: Tensor, zeta: float) -> Tensor:
    """Give relu(|parent| - |child| + zeta) of every text below the coarsest level: a parent is nearer to the centre."""
    return _gap(norms, nodes.parents[: -nodes.sizes[-1]], zeta)


def image_gap(rolled: RolledUp, norms: Tensor, zeta: float) -> Tensor:
    """Give the same for image roll-ups: each point below the coarsest level and the one that it went into."""
    return _gap(norms, rolled.parents, zeta)


def _gap(norms: Tensor, parents: Tensor, zeta: float) -> Tensor:
    return F.relu(norms[parents] - norms[: len(parents)] + zeta)


def hita(context: Context, perturbation: Perturbation, params: HierParams) -> Tensor:
    """Give the sum of `alignment` over the trees, at the levels of `perturbation`."""
    tau, trees = _head(context).tau, _place(context, perturbation, params)
    return torch.stack([alignment(placed, params, tau, perturbation.levels) for placed in trees]).sum()


def hierarchical(context: Context, perturbation: Perturbation, params: HierParams) -> Tensor:
    """Give HITA + lambda_1 L_vic + lambda_2 (gap_text + gap_image), summed over the trees.

    Each penalty is the mean over levels of its mean. Where `perturbation` is for some levels only, penalties count
    in proportion.

    Logs the share of points that are projected from the rim and of pairs that each penalty acts on.
    """
    tau = _head(context).tau
    losses, active = [], {"vic": [], "gap_text": [], "gap_image": []}
    for placed in _place(context, perturbation, params, train=True):
        nodes, rolled = placed.nodes, placed.rolled
        vic = vicinity(placed, params.zeta_vic)
        of_texts = text_gap(nodes, placed.text_norms, params.zeta_gap)
        of_images = image_gap(rolled, placed.point_norms, params.zeta_gap)
        for name, part in zip(active, (vic, of_texts, of_images), strict=True):
            active[name].append((part > 0).float())
        text_shares = 1 / torch.tensor(nodes.sizes, device=nodes.levels.device)[nodes.levels]
        depth = of_texts @ text_shares[: len(of_texts)] + of_images @ rolled.shares[: len(of_images)]
        penalty = params.vic * (vic @ rolled.shares) / (nodes.top + 1) + params.gap * depth / max(1, nodes.top)
        share = (
            sum(level <= nodes.top for level in perturbation.levels) / (nodes.top + 1) if perturbation.levels else 1.0
        )
        losses.append(alignment(placed, params, tau, perturbation.levels) + share * penalty)
    for name, parts in active.items():
        shares = torch.cat(parts)
        if len(shares):  # a tree of leaves alone has no edges
            context.counts[f"{name}_active"] = float(shares.mean())
    return torch.stack(losses).sum()


def _head(context: Context) -> PoincareHead:
    head = context.head()
    assert isinstance(head, PoincareHead)  # `make_head` gives it one
    return head


def _place(context: Context, perturbation: Perturbation, params: HierParams, train: bool = False) -> list[Placed]:
    """Place texts and roll-ups of every tree. train: give norms too, and count the points projected from the rim."""
    head, none = _head(context), torch.zeros(0)
    embeddings, texts = context.see(perturbation)
    images = head.image_tangents(embeddings)
    shares = torch.cat([nodes.levels / max(1, nodes.top) for nodes in context.nodes])
    texts = head.text_tangents_at(texts, shares[:, None])
    if train:
        context.counts["rim_images"] = float(head.is_clipped(images).float().mean())
        context.counts["rim_texts"] = float(head.is_clipped(texts).float().mean())
    points, height = head.lift_tangents(images.double())
    lifted = torch.cat([points, 1 + height], dim=1)
    text_pair, placed, start = head.lift_tangents(texts), [], 0
    right = head.factors(*text_pair)[1]
    for nodes, rolled in zip(context.nodes, context.rolled_up(params.negatives), strict=True):
        rows = slice(start, start + len(nodes.parents))
        levels = torch.cat(roll_up(head, lifted, rolled.groups))
        points, height = levels[:, :-1].to(texts.dtype), (levels[:, -1:] - 1).to(texts.dtype)
        distances = head.distance_of_factors(head.factors(points, height)[0], right[rows])
        text_norms = head.norms_of(*(part[rows] for part in text_pair)) if train else none
        point_norms = head.norms_of(points, height) if train else none
        placed.append(Placed(nodes, rolled, distances, text_norms, point_norms))
        start = rows.stop
    return placed
