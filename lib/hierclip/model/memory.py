"""What an image recalls: the leaves of fine-tuning, by name, through which levels above the leaves are read."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hierclip.model.heads import RecallHead
from hierclip.trees import Tree, forest_levels


class Memory(nn.Module):
    """Where an image stands at a level above the leaves: a soft roll-up, with no other image and nothing trained.

    An image at the unit vector u recalls a leaf of fine-tuning with text t as much as softmax(s cos(u, t)) says, over
    all of them and a place for itself, which counts as a leaf of cosine `head.own` does; s is the leaf logits' scale
    times `head.sharpness`. With these weights it stands at the Einstein midpoint of the ancestors that the leaves have
    at the level and of its own point there, whose direction is u. An image that is torn between superclasses comes to
    stand nearer to the centre than one that recalls a single one.
    """

    def __init__(self, head: RecallHead, leaves: Tensor, ancestors: Sequence[Tensor], tops: Sequence[tuple[int, int]]):
        """leaves: (M, D) text embeddings; ancestors: theirs at every level but the first, (M, D) points; tops: of each
        level its place in its tree, and that tree's top.
        """
        super().__init__()
        self.leaves: Tensor
        self.head, self.tops = head, tops
        self.register_buffer("leaves", head.image_points(leaves))
        for k, points in enumerate(ancestors, 1):
            self.register_buffer(f"ancestors_{k}", head.space.lift(points))

    def forward(self, points: Tensor, k: int) -> Tensor:
        """Image points (N, D) at the leaves to those at the k-th level, k > 0: (N, D)."""
        head, ancestors = self.head, getattr(self, f"ancestors_{k}")
        alike = torch.cat([points @ self.leaves.T, torch.full_like(points[:, :1], head.own)], dim=1)
        weights = (head.leaf.scale * head.sharpness * alike).softmax(1).to(ancestors.dtype)
        own = head.space.lift(head.space.text_points(points, *self.tops[k]))
        return head.space.lower(weights[:, :-1] @ ancestors + weights[:, -1:] * own).to(points.dtype)


def make_memory(
    head: RecallHead, remembered: Sequence[Tree], trees: Sequence[Tree], encode: Callable[[Tree], list[Tensor]]
) -> Memory:
    """A memory of the leaves of `remembered`, or else of those of `trees`, for the levels of `trees` as `forest_levels`
    lists them.

    A level finds its ancestors in the remembered tree of the same name, or else in the first one, at the same share of
    the way up. encode: a tree to its text embeddings by level.
    """
    known = {tree.name: (tree, encode(tree)) for tree in remembered or trees}
    first = next(iter(known))
    tops, ancestors = [(level, trees[k].top) for k, level in forest_levels(trees)], []
    for (k, _), (level, top) in zip(forest_levels(trees)[1:], tops[1:], strict=True):
        tree, texts = known.get(trees[k].name, known[first])
        there = round(level / top * tree.top)
        rows = torch.from_numpy(tree.paths[:, there]).to(texts[there].device)
        ancestors.append(head.space.text_points(texts[there][rows], level, top))
    return Memory(head, known[first][1][0], ancestors, tops)
