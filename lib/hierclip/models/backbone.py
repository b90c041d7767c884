"""open_clip models: made, loaded, saved in open_clip's own layout, and their two towers."""

import copy
import itertools
import json
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hierclip.config import ModelParams
from hierclip.distributed import all_gather
from hierclip.errors import HierclipError
from hierclip.models.heads import at_least_float32
from hierclip.trees import Tree, level_prompts

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
TEXT_BATCH = 256  # prompts in the text tower at a time: 600 in one batch of ViT-B/32 take 1.1 GB

open_clip.add_model_config(Path(__file__).parent)  # hierclip-tiny and hierclip-tiny-64


class ModelError(HierclipError):
    """Say which model cannot be loaded, and what would be right."""


@dataclass(frozen=True)
class Backbone:
    """A CLIP with what its input needs."""

    clip: CLIP | CustomTextCLIP
    tokenizer: Callable[[list[str]], Tensor]
    config: dict  # open_clip's model configuration
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def logit_scale(self) -> float:
        """The factor on cosines, as it is now."""
        return float(self.clip.logit_scale.detach().exp())

    @property
    def text_projection(self) -> nn.Parameter:
        """Return the text tower's last, linear map: (width, D)."""
        return text_tower(self.clip).text_projection


def text_tower(clip: nn.Module) -> Any:
    """Return the module that holds the text projection: a CLIP itself, or its own text tower."""
    return clip.text if isinstance(clip, CustomTextCLIP) else clip


def create(params: ModelParams, seed: int, size: int) -> Backbone:
    """Make the model that `params` names, with published, local or new weights drawn from `seed`.

    Beside open_clip's architectures there are its `hf-hub:NAME` and `local-dir:FOLDER`, which bring
    their weights. Raises ModelError where open_clip has no such architecture or weights, and where
    the model does not take images of `size` pixels a side.
    """
    if ":" not in params.architecture and params.architecture not in open_clip.list_models():
        raise ModelError(
            f"open_clip has no model {params.architecture!r}; `open_clip.list_models()` lists them"
        )
    torch.manual_seed(seed)
    backbone = open_backbone(params.architecture, params.pretrained)
    side = backbone.config["vision_cfg"]["image_size"]
    if side != size:
        raise ModelError(
            f"{params.architecture} takes images of {side} pixels; data.size is {size}"
        )
    return backbone


def with_its_gelu(architecture: str, tag: str | None) -> str:
    """Return the architecture with the activation that published weights were trained with.

    That is QuickGELU for OpenAI's: open_clip would load them into the plain one, and warn.
    """
    published = open_clip.get_pretrained_cfg(architecture, tag) if tag else {}
    quick = f"{architecture}-quickgelu"
    known = quick in open_clip.list_models()
    return quick if known and published.get("quick_gelu") else architecture


def load(folder: Path) -> Backbone:
    """Load the model that `save` wrote to `folder`. Raises ModelError where there is none."""
    if not (folder / CONFIG).exists():
        raise ModelError(f"no model in {folder}; run the stage that writes it (`dvc repro`)")
    return open_backbone(f"local-dir:{folder}", None)


def open_backbone(name: str, pretrained: str | None) -> Backbone:
    """Open what open_clip has under a name; hf-hub:NAME and local-dir:FOLDER bring their weights.

    Raises ModelError for what open_clip cannot load, and for a model with another text tower than
    its own.
    """
    name = with_its_gelu(name, pretrained)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # open_clip warns where no weights are asked for
    try:
        clip, _, _ = open_clip.create_model_and_transforms(
            name, pretrained=pretrained, weights_only=True
        )
        tokenizer = open_clip.get_tokenizer(name)
    except (
        Exception
    ) as error:  # torch, safetensors and open_clip each raise their own for a bad file
        reason = shorten(str(error), 200, placeholder=" ...")
        if open_clip.is_pretrained_cfg(name, pretrained or ""):
            reason += "; a checkpoint file needs no network"
        raise ModelError(f"cannot load {name} with weights {pretrained!r}: {reason}") from error
    finally:
        root.setLevel(level)
    projection = getattr(text_tower(clip), "text_projection", None)
    if not isinstance(clip, CLIP | CustomTextCLIP) or not isinstance(projection, nn.Parameter):
        raise ModelError(
            f"{name} is a {type(clip).__name__}; a CLIP with open_clip's own text tower is needed"
        )
    config = open_clip.get_model_config(name)
    assert config is not None  # it was just made from it
    preprocess = open_clip.get_model_preprocess_cfg(clip)
    clip.visual.to(memory_format=torch.channels_last)
    return Backbone(
        clip=clip.eval(),
        tokenizer=tokenizer,
        config=config,
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
    )


def save(backbone: Backbone, folder: Path) -> None:
    """Write the layout that `open_clip.create_model_and_transforms("local-dir:FOLDER")` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = open_clip.get_model_preprocess_cfg(backbone.clip)
    entries = {"model_cfg": backbone.config, "preprocess_cfg": preprocess}
    text = json.dumps(entries, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf8")
    weights = {key: value.contiguous() for key, value in backbone.clip.state_dict().items()}
    save_file(weights, folder / WEIGHTS)


class ImageEncoder(nn.Module):
    """Encode images (N, 3, H, W) in [0, 1] as embeddings (N, D) float32, not normalised."""

    def __init__(self, backbone: Backbone, fold: bool = False):
        """fold: merge each BatchNorm of a ResNet into the convolution before it, in a copy.

        That is a third faster.
        """
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        visual = backbone.clip.visual
        self.visual = _folded(visual) if fold and isinstance(visual, ModifiedResNet) else visual
        self.register_buffer("mean", torch.tensor(backbone.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(3, 1, 1), persistent=False)

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
    clip = backbone.clip
    tower = text_tower(clip)
    projection = tower.text_projection
    tower.text_projection = None
    try:
        tokens = backbone.tokenizer(list(prompts)).to(clip.logit_scale.device)
        return torch.cat([clip.encode_text(part) for part in tokens.split(TEXT_BATCH)])
    finally:
        tower.text_projection = projection


def encode_texts(backbone: Backbone, prompts: Sequence[str]) -> Tensor:
    """Compute text embeddings (len(prompts), D), not normalised."""
    return text_features(backbone, prompts) @ backbone.text_projection


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
        levels = [level for tree in trees for level in level_prompts(tree, template)]
        prompts = list(itertools.chain.from_iterable(levels))
        unique = list(dict.fromkeys(prompts))
        rows = {prompt: row for row, prompt in enumerate(unique)}
        with torch.no_grad():
            features = text_features(backbone, unique)[[rows[prompt] for prompt in prompts]]
        self.features: Tensor
        self.register_buffer("features", features, persistent=False)

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
