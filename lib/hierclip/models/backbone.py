"""A model of open_clip: its two towers, what its input needs, and how it is saved."""

import copy
import itertools
import json
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.coca_model import CoCa
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import VisionTransformer
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hierclip.distributed import all_gather
from hierclip.models.checkpoint import ModelError
from hierclip.models.heads import at_least_float32
from hierclip.trees import Tree, level_prompts

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
TEXT_BATCH = 256  # prompts in the text tower at a time: 600 in one batch of ViT-B/32 take 1.1 GB


@dataclass(frozen=True)
class Backbone:
    """A CLIP with what its input needs."""

    clip: Any  # a model of open_clip with two towers
    tokenizer: Callable[[list[str]], Tensor]
    config: dict  # open_clip's model configuration
    preprocess: dict[str, Any]  # open_clip's: mean, std, size, resize_mode, interpolation ...
    origin: dict[str, str] = field(default_factory=dict)  # what was loaded, and from where
    notes: Sequence[str] = ()  # what had to be assumed

    @property
    def mean(self) -> tuple[float, ...]:
        return tuple(self.preprocess["mean"])

    @property
    def std(self) -> tuple[float, ...]:
        return tuple(self.preprocess["std"])

    def cut(self, image: Image.Image) -> Tensor:
        """Resize and cut an image as the model wants it: (3, H, W) uint8."""
        transform: Any = image_transform_v2(PreprocessCfg(**self.preprocess), is_train=False)
        transform.transforms.pop()  # it normalises, which is the encoder's part
        return (255 * transform(image)).round().to(torch.uint8)

    @property
    def logit_scale(self) -> float:
        """The factor on cosines, as it is now."""
        return float(self.clip.logit_scale.detach().exp())

    @property
    def text_projection(self) -> nn.Parameter:
        """Return the text tower's last, linear map: (width, D). Raises ModelError for another."""
        projection = getattr(text_tower(self.clip), "text_projection", None)
        if isinstance(self.clip, CoCa) or not isinstance(projection, nn.Parameter):
            raise ModelError(
                f"a {type(self.clip).__name__} whose text tower does not end as open_clip's CLIP "
                "does can be audited, and not trained"
            )
        return projection


def text_tower(clip: nn.Module) -> Any:
    """Return the module that holds the text projection: a CLIP itself, or its own text tower."""
    return getattr(clip, "text", clip)


def save(backbone: Backbone, folder: Path) -> None:
    """Write the layout that `open_clip.create_model_and_transforms("local-dir:FOLDER")` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = open_clip.get_model_preprocess_cfg(backbone.clip)
    entries = {"model_cfg": backbone.config, "preprocess_cfg": preprocess}
    (folder / CONFIG).write_text(
        json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf8"
    )
    weights = {key: value.contiguous() for key, value in backbone.clip.state_dict().items()}
    save_file(weights, folder / WEIGHTS)


class ImageEncoder(nn.Module):
    """Encode images (N, 3, H, W) in [0, 1] as embeddings (N, D) float32, not normalised."""

    def __init__(self, backbone: Backbone, fold: bool = False):
        """fold: merge each BatchNorm of a ResNet into the convolution before it, in a copy.

        That is a third faster.
        """
        super().__init__()
        clip = backbone.clip
        visual = _ImageTower(clip) if isinstance(clip, CoCa) else clip.visual
        self.visual = _folded(visual) if fold and isinstance(visual, ModifiedResNet) else visual
        self.mean = nn.Buffer(torch.tensor(backbone.mean).view(3, 1, 1), persistent=False)
        self.std = nn.Buffer(torch.tensor(backbone.std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.visual((images - self.mean) / self.std)

    def with_local(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings (N, D), and features in their space for every position (N, D, h, w).

        A position of a ResNet goes through the values and the output map of the attention that
        pools; where the last stage leaves a single position, the stage is run once more on its
        input at twice the size. Raises ModelError for an image tower that is neither open_clip's
        ResNet nor its ViT.
        """
        visual = self.visual
        x = (images - self.mean) / self.std
        if isinstance(visual, ModifiedResNet):
            x = visual.layer3(visual.layer2(visual.layer1(visual.stem(x))))
            fine = last = visual.layer4(x)
            if min(last.shape[-2:]) == 1:
                fine = visual.layer4(F.interpolate(x, scale_factor=2))
            pool = visual.attnpool
            embeddings = pool(last)
            local = pool.c_proj(pool.v_proj(fine.permute(0, 2, 3, 1)))
            return embeddings, local.permute(0, 3, 1, 2)
        if not isinstance(visual, VisionTransformer) or visual.proj is None:
            raise ModelError(
                f"no local features are known for a {type(visual).__name__}; "
                "open_clip's ResNet or ViT is needed"
            )
        visual.output_tokens = True
        try:
            pooled, tokens = visual(x)
        finally:
            visual.output_tokens = False
        side = math.isqrt(tokens.shape[1])
        if side**2 != tokens.shape[1] or tokens.shape[2] != len(visual.proj):
            raise ModelError(
                f"a ViT that pools by {visual.pool_type!r} has no square of positions, "
                "which local features need"
            )
        local = (tokens @ visual.proj).unflatten(1, (side, side))
        return pooled, local.permute(0, 3, 1, 2)


class _ImageTower(nn.Module):
    """The image tower of a model whose `visual` returns more than embeddings, such as CoCa's."""

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.clip: Any = clip

    def forward(self, images: Tensor) -> Tensor:
        return self.clip.encode_image(images)


def _folded(visual: ModifiedResNet) -> ModifiedResNet:
    visual = copy.deepcopy(visual).eval()
    for module in visual.modules():
        for (conv, before), (norm, after) in itertools.pairwise(list(module.named_children())):
            if isinstance(before, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
                setattr(module, conv, fuse_conv_bn_eval(before, after))
                setattr(module, norm, nn.Identity())
    return visual


def text_features(backbone: Backbone, prompts: Sequence[str]) -> Tensor:
    """Compute the text tower's output below its final projection: (len(prompts), width)."""
    tower, projection = text_tower(backbone.clip), backbone.text_projection
    tower.text_projection = None
    try:
        return _encoded(backbone, prompts)
    finally:
        tower.text_projection = projection


def _encoded(backbone: Backbone, prompts: Sequence[str]) -> Tensor:
    tokens = backbone.tokenizer(list(prompts)).to(backbone.clip.logit_scale.device)
    return torch.cat([backbone.clip.encode_text(part) for part in tokens.split(TEXT_BATCH)])


def encode_texts(backbone: Backbone, prompts: Sequence[str]) -> Tensor:
    """Compute text embeddings (len(prompts), D)."""
    try:
        projection = backbone.text_projection
    except ModelError:
        return _encoded(backbone, prompts)
    return text_features(backbone, prompts) @ projection


def tree_prompts(
    tree: Tree, template: str, tokenize: Callable[[list[str]], Tensor]
) -> list[list[str]]:
    """Return the prompts of a tree by level.

    tokenize: from n prompts to (n, ...). Raises ModelError for two prompts of a level that it
    cannot tell apart, for one of the two would never be predicted.
    """
    levels = level_prompts(tree, template)
    for level, prompts in enumerate(levels):
        first: dict[tuple, str] = {}
        for prompt, row in zip(prompts, tokenize(prompts).flatten(1).tolist(), strict=True):
            other = first.setdefault(tuple(row), prompt)
            if other is not prompt:
                raise ModelError(
                    f"tree {tree.name}, level {level}: {other!r} and {prompt!r} are the same to "
                    "the model's tokenizer; give one of the two another name"
                )
    return levels


class Towers(nn.Module):
    """The image encoder, and the text projection over frozen text features, computed once.

    forward: images (B, 3, H, W) in [0, 1] to their embeddings (B, D), local features (B, D, h, w)
    if asked for (else none), and the text embeddings of all prompts (K, D), which `by_tree` sorts.
    Each of several processes encodes its share of the images and gets the embeddings of all: losses
    are over the global batch.
    """

    def __init__(
        self,
        backbone: Backbone,
        trees: Sequence[Tree],
        template: str,
        precision: Callable[[], AbstractContextManager] = nullcontext,
        fold: bool = False,
    ):
        """precision: the context to compute in, for towers that Fabric does not wrap.

        fold: of `ImageEncoder`, for towers that are not trained.
        """
        super().__init__()
        self.precision = precision
        self.encoder = ImageEncoder(backbone, fold)
        self.projection = backbone.text_projection
        self.sizes = [[len(level) for level in tree.levels] for tree in trees]
        levels = [
            level for tree in trees for level in tree_prompts(tree, template, backbone.tokenizer)
        ]
        prompts = list(itertools.chain.from_iterable(levels))
        unique = list(dict.fromkeys(prompts))
        rows = {prompt: row for row, prompt in enumerate(unique)}
        with torch.no_grad():
            features = text_features(backbone, unique)[[rows[prompt] for prompt in prompts]]
        self.features = nn.Buffer(features, persistent=False)

    def forward(self, images: Tensor, local: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        with self.precision():
            texts = self.features @ self.projection
            embeddings, features = (
                self.encoder.with_local(images) if local else (self.encoder(images), None)
            )
        embeddings = all_gather(at_least_float32(embeddings))
        features = (
            images.new_zeros(0) if features is None else all_gather(at_least_float32(features))
        )
        return embeddings, features, at_least_float32(texts)

    def by_tree(self, texts: Tensor) -> list[list[Tensor]]:
        """Split the rows by tree and level, (K_l, D) each, leaves first."""
        trees = texts.split([sum(sizes) for sizes in self.sizes])
        return [list(rows.split(sizes)) for rows, sizes in zip(trees, self.sizes, strict=True)]
