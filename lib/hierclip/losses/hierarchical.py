"""The hierarchical objective: HITA over a forest, negatives from neighbouring levels, and the depth penalties.

Source: Hierarchically Robust Zero-shot Vision-language Models (CVPR 2026).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hierclip.losses.context import Context, Moved
from hierclip.model import PoincareHead
from hierclip.params import HierParams


class Level(NamedTuple):
    """A batch rolled up to a level: a point for each node that the batch has there."""

    points: Tensor  # (N, D) in the ball
    own: Tensor  # (N,), the points' nodes
    groups: Tensor  # which of them each point of the level below went into


def roll_up(head: PoincareHead, points: Tensor, paths: Tensor, top: int) -> list[Level]:
    """Levels 0..top: a class's point is the HypAvg of the points one level below that share that ancestor.

    points: (B, D), the images'; paths: (B, L + 1).
    """
    levels = [Level(points, paths[:, 0], torch.arange(len(points), device=points.device))]
    for _ in range(top):  # rows of `paths` that share an ancestor are equal from there on
        paths, groups = torch.unique(paths[:, 1:], dim=0, return_inverse=True)
        levels.append(Level(head.midpoints(levels[-1].points, groups, len(paths)), paths[:, 0], groups))
    return levels


def level_weight(level: int, top: int, upper: float) -> float:
    """w_l = 1 - l / (L + 1), times `upper` above the leaves."""
    return (1 - level / (top + 1)) * (upper if level else 1.0)


def alignment(
    head: PoincareHead,
    levels: Sequence[Level],
    nodes: Sequence[Tensor],
    parents: Sequence[Tensor],
    params: HierParams,
    wanted: tuple[int, ...] | None = None,
) -> Tensor:
    """HITA on one tree: the sum over l of w_l CE(softmax(-tau d(phi^l, texts of level l))), each the mean over points.

    levels: from `roll_up`, as many as `wanted` needs; nodes: by level, text points (K_l, D); wanted: which levels.
    """
    top, total = len(nodes) - 1, levels[0].points.new_zeros(())
    for l in range(top + 1) if wanted is None else [level for level in wanted if level <= top]:
        scores = [head.logits(levels[l].points, nodes[l])]
        scores += negatives(head, levels[l], nodes, parents, l, params.negatives)
        term = F.cross_entropy(torch.cat(scores, dim=1), levels[l].own)
        total = total + level_weight(l, top, params.upper_weight) * term
    return total


def negatives(
    head: PoincareHead, level: Level, nodes: Sequence[Tensor], parents: Sequence[Tensor], l: int, sides: Sequence[str]
) -> list[Tensor]:
    """HNSA: logits (N, K) against the nodes of level l - 1 ("finer") and l + 1 ("coarser"), those that share an edge
    with the true node left out. A node that stands on both levels shares one with itself.
    """
    out = []
    if "finer" in sides and l:
        shares = parents[l - 1] == level.own[:, None]
        out.append(head.logits(level.points, nodes[l - 1]).masked_fill(shares, -torch.inf))
    if "coarser" in sides and l < len(nodes) - 1:
        shares = parents[l][level.own][:, None] == torch.arange(len(nodes[l + 1]), device=level.own.device)
        out.append(head.logits(level.points, nodes[l + 1]).masked_fill(shares, -torch.inf))
    return out


def vicinity(head: PoincareHead, levels: Sequence[Level], nodes: Sequence[Tensor], zeta: float) -> list[Tensor]:
    """relu(d(image, text) - zeta) of every level's points: near their texts, not on top of them."""
    pairs = zip(levels, nodes, strict=True)
    return [F.relu(head.distance(level.points, texts[level.own]) - zeta) for level, texts in pairs]


def text_gap(nodes: Sequence[Tensor], parents: Sequence[Tensor], zeta: float) -> list[Tensor]:
    """relu(|parent| - |child| + zeta) of every edge between text nodes: a parent is nearer to the centre."""
    return [_gap(nodes[l + 1][above], nodes[l], zeta) for l, above in enumerate(parents)]


def image_gap(levels: Sequence[Level], zeta: float) -> list[Tensor]:
    """The same for image roll-ups: each point and the one that it went into."""
    return [_gap(b.points[b.groups], a.points, zeta) for a, b in zip(levels, levels[1:], strict=False)]


def _gap(parents: Tensor, children: Tensor, zeta: float) -> Tensor:
    return F.relu(parents.norm(dim=-1) - children.norm(dim=-1) + zeta)


def hita(context: Context, moved: Moved, params: HierParams) -> Tensor:
    """The sum of `alignment` over the trees, at the levels of `moved`."""
    head, trees = _trees(context, moved)
    terms = [alignment(head, levels, nodes, parents, params, moved.levels) for levels, nodes, parents in trees]
    return torch.stack(terms).sum()


def hierarchical(context: Context, moved: Moved, params: HierParams) -> Tensor:
    """HITA + lambda_1 L_vic + lambda_2 (gap_text + gap_image), summed over the trees; each penalty is the mean over
    levels of its mean. Where `moved` is for some levels only, each of several in a step, penalties count in proportion.

    Logs the share of points that are projected from the rim and of pairs that each penalty acts on.
    """
    head, trees = _trees(context, moved, whole=True)
    losses, active = [], {"vic": [], "gap_text": [], "gap_image": []}
    for levels, nodes, parents in trees:
        penalties = {
            "vic": vicinity(head, levels, nodes, params.zeta_vic),
            "gap_text": text_gap(nodes, parents, params.zeta_gap),
            "gap_image": image_gap(levels, params.zeta_gap),
        }
        share = sum(l < len(nodes) for l in moved.levels) / len(nodes) if moved.levels else 1.0
        depth = _mean(penalties["gap_text"]) + _mean(penalties["gap_image"])
        loss = alignment(head, levels, nodes, parents, params, moved.levels)
        losses.append(loss + share * (params.vic * _mean(penalties["vic"]) + params.gap * depth))
        active = {name: active[name] + [(part > 0).float() for part in parts] for name, parts in penalties.items()}
    context.counts.update({f"{name}_active": float(torch.cat(parts).mean()) for name, parts in active.items() if parts})
    return torch.stack(losses).sum()


def _trees(context: Context, moved: Moved, whole: bool = False):
    """The head, and for each tree its levels, text points and parents. whole: every level, and projections counted."""
    head = context.head()
    assert isinstance(head, PoincareHead)  # `make_head` gives it one
    embeddings, forest = context.see(moved)
    images, texts = head.image_tangents(embeddings), [_text_tangents(head, levels) for levels in forest]
    if whole:
        context.counts["rim_images"] = float(head.clamped(images).float().mean())
        context.counts["rim_texts"] = float(torch.cat([head.clamped(v) for tree in texts for v in tree]).float().mean())
    points, out = head.place(images), []
    for tangents, paths, parents in zip(texts, context.paths, context.parents, strict=True):
        top = len(tangents) - 1
        highest = top if whole or not moved.levels else min(top, max(moved.levels))
        out.append((roll_up(head, points, paths, highest), [head.place(vectors) for vectors in tangents], parents))
    return head, out


def _text_tangents(head: PoincareHead, texts: Sequence[Tensor]) -> list[Tensor]:
    return [head.text_tangents(text, l, len(texts) - 1) for l, text in enumerate(texts)]


def _mean(parts: Sequence[Tensor]) -> Tensor:
    """The mean over levels of each level's mean; nothing where there is one level only."""
    return torch.stack([part.mean() for part in parts]).mean() if parts else torch.zeros(())
