"""The model that an audit is of."""

import re
from dataclasses import replace
from pathlib import Path

import open_clip

from hierclip.model import CosineHead, Model, ModelError, load, load_model
from hierclip.model.backbone import open_backbone
from hierclip.model.classifier import HEAD


def known_as(model: str, pretrained: str | None) -> str:
    """What the model's files and figures are called: its folder, or its architecture and weights."""
    parts = [Path(model).resolve().name] if pretrained is None else [model, Path(pretrained).stem]
    return re.sub(r"[^\w.-]+", "-", "-".join(parts))


def open_model(model: str, pretrained: str | None) -> tuple[Model, int]:
    """A model and the pixels a side that it takes.

    model: an architecture of open_clip with, as `pretrained`, a published tag or a checkpoint file; or what has weights
    of its own: open_clip's hf-hub:NAME, or a folder in its layout, such as `hierclip finetune` and `hierclip export`
    write. Raises ModelError, listing the known tags, for what is none of this.
    """
    folder, name = Path(model), known_as(model, pretrained)
    if not (folder.is_dir() or ":" in model):
        _check(model, pretrained)
    elif pretrained is not None:
        raise ModelError(f"{model} has weights of its own; leave out {pretrained!r}")
    if (folder / HEAD).exists():
        found = replace(load_model(folder), method=name)
    else:
        backbone = load(folder) if folder.is_dir() else open_backbone(model, pretrained)
        found = Model(backbone, CosineHead(backbone.logit_scale), name)
    return found, found.backbone.config["vision_cfg"]["image_size"]


def _check(model: str, pretrained: str | None) -> None:
    """Raises ModelError for an architecture, or weights of one, that there is not."""
    if any(mark in model for mark in "/\\") or model.startswith("."):
        raise ModelError(f"no folder {model!r} with a model in it; one of the hub is hf-hub:NAME")
    if model not in open_clip.list_models():
        raise ModelError(
            f"no model {model!r}: neither a folder, nor hf-hub:NAME, nor one of open_clip, `open_clip.list_models()`"
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained is None or not (open_clip.is_pretrained_cfg(model, pretrained) or Path(pretrained).is_file()):
        known = f"published are {', '.join(tags)}" if tags else "none are published for it"
        wrong = "which weights?" if pretrained is None else f"no weights {pretrained!r}, and no such file;"
        raise ModelError(f"{model}: {wrong} {known}; a checkpoint file will do")
