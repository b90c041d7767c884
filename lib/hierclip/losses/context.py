"""What a loss sees of a training step, and the step's perturbations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from hierclip.losses.levels import Nodes, RolledUp, rolled_up
from hierclip.model import Head, Towers


@dataclass(frozen=True)
class Perturbation:
    """Adversarial images (B, 3, H, W), the perturbation of the texts (K, D), and the levels that they were made for."""

    images: Tensor
    text_delta: Tensor | None = None  # in units of each text embedding's own norm
    levels: tuple[int, ...] | None = None  # None: all


@dataclass(frozen=True)
class Context:
    """A step's clean images, where they belong in each tree, and the model in training beside the original one."""

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
        """(B,): each image's leaf."""
        return self.paths[0][:, 0]

    def see(self, perturbation: Perturbation) -> tuple[Tensor, Tensor]:
        """Image embeddings (B, D), and text embeddings of all prompts (K, D)."""
        embeddings, _, texts = self.towers(perturbation.images)
        return embeddings, add_text_delta(texts, perturbation.text_delta)

    def rolled_up(self, sides: tuple[str, ...]) -> list[RolledUp]:
        """Give the batch's points at every level, by tree: the same in every pass of a step.

        sides: as `rolled_up` takes them.
        """
        if sides not in self._rolled:
            pairs = zip(self.nodes, self.paths, strict=True)
            self._rolled[sides] = [rolled_up(nodes, paths, sides) for nodes, paths in pairs]
        return self._rolled[sides]

    def leaf_logits(self, embeddings: Tensor, texts: Tensor) -> Tensor:
        """(B, leaves), from image embeddings and the text embeddings of all prompts."""
        head, leaves = self.head(), self.original.by_tree(texts)[0]
        return head.logits(head.image_points(embeddings), head.text_points(leaves[0], 0, len(leaves) - 1))

    @cached_property
    def original_clean(self) -> tuple[Tensor, Tensor]:
        """What the original model makes of the clean images and of all prompts: embeddings (B, D) and (K, D)."""
        with torch.no_grad():
            return self.original(self.images)[::2]


def add_text_delta(texts: Tensor, text_delta: Tensor | None) -> Tensor:
    """Text embeddings (K, D), each moved by `text_delta` (K, D) times its own norm."""
    return texts if text_delta is None else texts + texts.norm(dim=-1, keepdim=True) * text_delta
