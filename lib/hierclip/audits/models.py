"""The model that an audit is of."""

import re
from dataclasses import replace
from pathlib import Path

import open_clip

from hierclip.model import HEAD, Backbone, CosineHead, Model, ModelError, create, load, load_model
from hierclip.params import ModelParams


def known_as(model: str, pretrained: str | None) -> str:
    """What the model's files and figures are called: its folder, or its architecture and weights."""
    parts = [Path(model).resolve().name] if pretrained is None else [model, Path(pretrained).stem]
    return re.sub(r"[^\w.-]+", "-", "-".join(parts))


def model_size(architecture: str) -> int:
    """Pixels a side that an architecture of open_clip takes; 0 where there is none of that name."""
    config = open_clip.get_model_config(architecture) or {}
    return config.get("vision_cfg", {}).get("image_size", 224 if config else 0)


def open_model(model: str, pretrained: str | None) -> tuple[Model, int]:
    """A model and the pixels a side that it takes.

    model: an architecture of open_clip with, as `pretrained`, a published tag or a checkpoint file; or a folder in
    open_clip's layout, such as `hierclip finetune` and `hierclip export` write, which has weights of its own.
    Raises ModelError, listing the known tags, for what is none of this.
    """
    name = known_as(model, pretrained)
    if Path(model).is_dir():
        if pretrained is not None:
            raise ModelError(f"{model} is a folder with weights of its own; leave out {pretrained!r}")
        folder = Path(model)
        found = replace(load_model(folder), method=name) if (folder / HEAD).exists() else _plain(load(folder), name)
    else:
        found = _plain(_published(model, pretrained), name)
    return found, found.backbone.config["vision_cfg"]["image_size"]


def _published(model: str, pretrained: str | None) -> Backbone:
    if model not in open_clip.list_models():
        raise ModelError(f"no model {model!r}: neither a folder nor one of open_clip, `open_clip.list_models()`")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained is None or not (open_clip.is_pretrained_cfg(model, pretrained) or Path(pretrained).is_file()):
        known = f"published are {', '.join(tags)}" if tags else "none are published for it"
        wrong = "which weights?" if pretrained is None else f"no weights {pretrained!r}, and no such file;"
        raise ModelError(f"{model}: {wrong} {known}; a checkpoint file will do")
    params = ModelParams(
        architecture=model, pretrained=pretrained, template="{}", precision="32-true", accelerator="cpu"
    )
    return create(params, seed=0, size=model_size(model))


def _plain(backbone: Backbone, name: str) -> Model:
    return Model(backbone, CosineHead(float(backbone.clip.logit_scale.detach().exp())), name)
