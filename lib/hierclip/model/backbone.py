"""open_clip models: made, loaded, saved in open_clip's own layout, and their two towers."""

import copy
import itertools
import json
import logging
import math
from collections.abc import Callable, Sequence
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

from hierclip.errors import HierclipError
from hierclip.params import ModelParams

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
TEXT_BATCH = 256  # prompts in the text tower at a time: 600 in one batch of ViT-B/32 take 1.1 GB

for own in ("hierclip-tiny", "hierclip-tiny-64"):
    open_clip.add_model_config(Path(__file__).parent / f"{own}.json")


class ModelError(HierclipError):
    """A model that cannot be had, and what would be right."""


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
        """The text tower's last, linear map: (width, D)."""
        projection = text_tower(self.clip).text_projection
        assert isinstance(projection, nn.Parameter)  # `open_backbone` let no other in
        return projection


def text_tower(clip: nn.Module) -> Any:
    """What holds the text projection: a CLIP itself, or the text tower of one that has it apart."""
    return clip.text if isinstance(clip, CustomTextCLIP) else clip


def create(params: ModelParams, seed: int, size: int) -> Backbone:
    """The model that `params` names, with published or local weights, or new ones drawn from `seed`.

    Beside open_clip's architectures there are its `hf-hub:NAME` and `local-dir:FOLDER`, which bring their weights.

    Raises ModelError where open_clip has no such architecture or weights, and where the model takes no pictures of
    `size` pixels a side.
    """
    if ":" not in params.architecture and params.architecture not in open_clip.list_models():
        raise ModelError(f"open_clip has no model {params.architecture!r}; `open_clip.list_models()` lists them")
    torch.manual_seed(seed)
    backbone = open_backbone(params.architecture, params.pretrained)
    wanted = backbone.config["vision_cfg"]["image_size"]
    if wanted != size:
        raise ModelError(f"{params.architecture} takes pictures of {wanted} pixels; data.size is {size}")
    return backbone


def with_its_gelu(architecture: str, tag: str | None) -> str:
    """The architecture with the activation that published weights were trained with, which is QuickGELU for OpenAI's:
    open_clip would load them into the other one, and warn."""
    published = open_clip.get_pretrained_cfg(architecture, tag) if tag else {}
    quick = f"{architecture}-quickgelu"
    return quick if published.get("quick_gelu") and quick in open_clip.list_models() else architecture


def load(folder: Path) -> Backbone:
    """The model that `save` wrote to `folder`. Raises ModelError where there is none."""
    if not (folder / CONFIG).exists():
        raise ModelError(f"no model in {folder}; run the stage that writes it (`dvc repro`)")
    return open_backbone(f"local-dir:{folder}", None)


def open_backbone(name: str, pretrained: str | None) -> Backbone:
    """What open_clip has under a name; one with a colon, hf-hub:NAME or local-dir:FOLDER, brings its weights.

    Raises ModelError for what open_clip cannot load, and for a model with another text tower than its own.
    """
    root, name = logging.getLogger(), with_its_gelu(name, pretrained)
    level = root.level
    root.setLevel(logging.ERROR)  # open_clip warns where no weights are asked for
    try:
        clip, _, _ = open_clip.create_model_and_transforms(name, pretrained=pretrained, weights_only=True)
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # torch, safetensors and open_clip each raise their own for a bad file
        said = shorten(str(error), 200, placeholder=" ...")
        hint = "; a checkpoint file needs no network" if open_clip.is_pretrained_cfg(name, pretrained or "") else ""
        raise ModelError(f"cannot load {name} with weights {pretrained!r}: {said}{hint}") from error
    finally:
        root.setLevel(level)
    own = getattr(text_tower(clip), "text_projection", None)
    if not isinstance(clip, CLIP | CustomTextCLIP) or not isinstance(own, nn.Parameter):
        raise ModelError(f"{name} is a {type(clip).__name__}; a CLIP with open_clip's own text tower is needed")
    config = open_clip.get_model_config(name)
    assert config is not None  # it was just made from it
    preprocess = open_clip.get_model_preprocess_cfg(clip)
    clip.visual.to(memory_format=torch.channels_last)
    return Backbone(clip.eval(), tokenizer, config, tuple(preprocess["mean"]), tuple(preprocess["std"]))


def save(backbone: Backbone, folder: Path) -> None:
    """Writes the layout that `open_clip.create_model_and_transforms("local-dir:FOLDER")` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = open_clip.get_model_preprocess_cfg(backbone.clip)
    text = json.dumps({"model_cfg": backbone.config, "preprocess_cfg": preprocess}, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf8")
    save_file({key: value.contiguous() for key, value in backbone.clip.state_dict().items()}, folder / WEIGHTS)


class ImageEncoder(nn.Module):
    """Images (N, 3, H, W) in [0, 1] to embeddings (N, D) float32, of whatever length they come out."""

    def __init__(self, backbone: Backbone, fold: bool = False):
        """fold: each BatchNorm of a ResNet becomes part of the convolution before it, in a copy; a third faster."""
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
        """Embeddings, and features in their space for every place: (N, D), (N, D, h, w).

        A place of a ResNet goes through the values and the output map of the attention that pools; where the last
        stage leaves a single place, it is run once more on its input drawn twice as large.
        Raises ModelError for an image tower that is neither open_clip's ResNet nor its ViT.
        """
        x, visual = (images - self.mean) / self.std, self.visual
        if isinstance(visual, ModifiedResNet):
            x = visual.layer3(visual.layer2(visual.layer1(visual.stem(x))))
            last, pool = visual.layer4(x), visual.attnpool
            fine = last if min(last.shape[-2:]) > 1 else visual.layer4(F.interpolate(x, scale_factor=2))
            return pool(last), pool.c_proj(pool.v_proj(fine.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        if not isinstance(visual, VisionTransformer) or visual.proj is None:
            raise ModelError(
                f"no local features are known for a {type(visual).__name__}; open_clip's ResNet or ViT is needed"
            )
        visual.output_tokens = True
        try:
            pooled, tokens = visual(x)
        finally:
            visual.output_tokens = False
        side = math.isqrt(tokens.shape[1])
        if side**2 != tokens.shape[1] or tokens.shape[2] != len(visual.proj):
            raise ModelError(f"a ViT that pools by {visual.pool_type!r} keeps no square of places for local features")
        return pooled, (tokens @ visual.proj).unflatten(1, (side, side)).permute(0, 3, 1, 2)


def _folded(visual: ModifiedResNet) -> ModifiedResNet:
    visual = copy.deepcopy(visual).eval()
    for module in visual.modules():
        for (conv, before), (norm, after) in itertools.pairwise(list(module.named_children())):
            if isinstance(before, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
                setattr(module, conv, fuse_conv_bn_eval(before, after))
                setattr(module, norm, nn.Identity())
    return visual


def text_features(backbone: Backbone, prompts: Sequence[str]) -> Tensor:
    """What the text tower gives below its final projection, TEXT_BATCH prompts at a time: (len(prompts), width)."""
    clip, tower = backbone.clip, text_tower(backbone.clip)
    projection, tower.text_projection = tower.text_projection, None
    try:
        tokens = backbone.tokenizer(list(prompts)).to(clip.logit_scale.device)
        return torch.cat([clip.encode_text(part) for part in tokens.split(TEXT_BATCH)])
    finally:
        tower.text_projection = projection


def encode_texts(backbone: Backbone, prompts: Sequence[str]) -> Tensor:
    """Text embeddings (len(prompts), D), of whatever length they come out."""
    return text_features(backbone, prompts) @ backbone.text_projection
