"""Both towers of a model in fine-tuning: images and the prompts of a forest to embeddings."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from hierclip.distributed import gathered
from hierclip.model.backbone import Backbone, ImageEncoder, text_features
from hierclip.model.heads import full
from hierclip.trees import Tree, level_prompts


class Towers(nn.Module):
    """The image encoder, and the text projection over frozen text features, computed once.

    forward: images (B, 3, H, W) in [0, 1] to their embeddings (B, D), local features (B, D, h, w) if asked for (else
    none), and the text embeddings of all prompts (K, D), which `by_tree` sorts. Of several processes each sees its
    share of the images and gets the embeddings of all: losses are over the global batch.
    """

    def __init__(
        self,
        backbone: Backbone,
        trees: Sequence[Tree],
        template: str,
        precision: Callable[[], AbstractContextManager] = nullcontext,
        fold: bool = False,
    ):
        """precision: the context to compute in, such as `fabric.autocast`, for towers that Fabric does not wrap.
        fold: as `ImageEncoder` has it, for towers that are not trained.
        """
        super().__init__()
        self.precision = precision
        self.encoder = ImageEncoder(backbone, fold)
        self.projection = backbone.text_projection
        self.sizes = [[len(level) for level in tree.levels] for tree in trees]
        prompts = [prompt for tree in trees for level in level_prompts(tree, template) for prompt in level]
        unique = list(dict.fromkeys(prompts))
        rows = {prompt: row for row, prompt in enumerate(unique)}
        with torch.no_grad():
            features = text_features(backbone, unique)
        self.features: Tensor
        self.register_buffer("features", features[[rows[prompt] for prompt in prompts]], persistent=False)

    def forward(self, images: Tensor, local: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        with self.precision():
            texts = self.features @ self.projection
            found = self.encoder.with_local(images) if local else (self.encoder(images), images.new_zeros(0))
        embeddings, places = (full(part) for part in found)
        return gathered(embeddings), gathered(places) if local else places, full(texts)

    def by_tree(self, texts: Tensor) -> list[list[Tensor]]:
        """The rows (K_l, D) of every tree and level, leaves first."""
        parts = iter(texts.split([size for tree in self.sizes for size in tree]))
        return [[next(parts) for _ in tree] for tree in self.sizes]
