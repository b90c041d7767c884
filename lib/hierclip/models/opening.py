"""Opening a model of open_clip: the weights that are meant, its preprocessing, its activation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg

from hierclip.config import ModelParams
from hierclip.errors import no_such, refuse
from hierclip.models.backbone import CONFIG, Backbone
from hierclip.models.checkpoint import (
    Loaded,
    ModelError,
    check_finite,
    is_torchscript,
    load_weights,
    weights_in,
)
from hierclip.progress import sha256

PREPROCESS = ("mean", "std", "resize_mode", "interpolation")
SCHEMAS = ("hf-hub:", "local-dir:")  # of names that bring their weights
OPENAI = "openai"  # the tag whose text tower most robust image towers were trained beside
OF_TRANSFORMERS = {  # OpenAI's models there: open_clip's name
    "openai/clip-vit-base-patch32": "ViT-B-32",
    "openai/clip-vit-base-patch16": "ViT-B-16",
    "openai/clip-vit-large-patch14": "ViT-L-14",
    "openai/clip-vit-large-patch14-336": "ViT-L-14-336",
}

open_clip.add_model_config(Path(__file__).parent)  # hierclip-tiny and hierclip-tiny-64


@dataclass(frozen=True)
class Overrides:
    """What a user says of a model beside its name; None: as published, or open_clip's default."""

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    resize_mode: str | None = None  # shortest, longest or squash
    interpolation: str | None = None  # bicubic or bilinear
    quick_gelu: bool | None = None
    text_weights: str | None = None  # a tag or a file, where a file holds the image tower alone


AS_PUBLISHED = Overrides()


def load(folder: Path, overrides: Overrides = AS_PUBLISHED) -> Backbone:
    """Load the model that `save` wrote to `folder`. Raises ModelError where there is none."""
    if not (folder / CONFIG).exists():
        raise ModelError(
            f"no model in {folder}: it has no {CONFIG}, which `hierclip export` writes; a file of "
            "weights is given by --pretrained, a folder of transformers in Python, by "
            "audit(CLIPModel.from_pretrained(FOLDER), images)"
        )
    return open_backbone(f"local-dir:{folder}", None, overrides)


def open_backbone(
    name: str, pretrained: str | None, overrides: Overrides = AS_PUBLISHED
) -> Backbone:
    """Open a model of open_clip with the weights that are meant; where none are, with new ones.

    name: an architecture with, as `pretrained`, a published tag or a checkpoint file; or what has
    weights of its own: hf-hub:NAME, local-dir:FOLDER. Where a file holds the image tower alone, the
    text tower is that of `overrides.text_weights`, or OpenAI's. Raises ModelError for what
    open_clip cannot make, and for weights that are not there or are another model's.
    """
    check_name(name, pretrained)
    schema, _, place = name.partition(":") if name.startswith(SCHEMAS) else ("", "", name)
    tag = open_clip.get_pretrained_cfg(name, str(pretrained or ""))
    path = Path(pretrained) if pretrained and not tag else None
    path = weights_in(Path(place)) if schema == "local-dir" else path
    preprocess, quick = preprocess_of(vars(overrides)), overrides.quick_gelu
    if quick is None:  # open_clip would run OpenAI's weights with GELU, and warn
        quick = tag.get("quick_gelu")
    if path and not schema:
        preprocess = published_preprocess(name) | preprocess
        variant = f"{name}-quickgelu" in open_clip.list_models()
        archive = variant and is_torchscript(path)  # as OpenAI publishes its models
        quick = True if quick is None and archive else quick
    settings: dict[str, Any] = {} if quick is None else {"quick_gelu": quick}
    try:
        tokenizer = open_clip.get_tokenizer(name)  # first, for it may lack a package
        clip: Any = open_clip.create_model(
            name,
            pretrained if tag else None,
            load_weights=bool(tag),
            require_pretrained=bool(tag),
            pretrained_text=False,
            force_preprocess_cfg=preprocess,
            **settings,
        )
        config = open_clip.get_model_config(name) or {}
        if tag:  # the file that it was loaded from, which is cached by now
            path = Path(open_clip.download_pretrained(tag))
        if schema == "hf-hub":
            path = Path(open_clip.factory.download_pretrained_from_hf(place))
    except Exception as error:  # torch, safetensors and open_clip each raise their own
        reason = shorten(str(error), 200, placeholder=" ...")
        if isinstance(error, ImportError):
            reason += "; install that package (transformers is hierclip's extra `transformers`)"
        elif tag:
            reason += "; a checkpoint file needs no network"
        weights = f" with weights {pretrained!r}" if pretrained else ""
        raise ModelError(f"cannot load {name}{weights}: {reason}") from error
    loaded = Loaded(False, ())
    if path and not tag:
        loaded = load_weights(clip, path)
        if loaded.image_only and not schema:
            return with_text_tower(name, path, overrides)
    check_finite(clip, path)
    clip.visual.to(memory_format=torch.channels_last)
    preprocess = dict(open_clip.get_model_preprocess_cfg(clip))
    notes = left_over(path, loaded) if path else []
    if path and not schema and not tag:
        notes += assumptions(name, path, overrides, preprocess, quick)
    origin = origin_of(path) if path else {}
    origin |= {key: numbers(preprocess[key]) for key in PREPROCESS}
    origin["activation"] = "QuickGELU" if (config | settings).get("quick_gelu") else "GELU"
    return Backbone(clip.eval(), tokenizer, config | settings, preprocess, origin, notes)


def check_name(name: str, pretrained: str | None, needed: bool = False) -> None:
    """Raise ModelError for a name, or weights for it, that cannot be opened.

    needed: where there are no weights, too.
    """
    weights, models = str(pretrained or ""), open_clip.list_models()
    folder, meant = Path(name.removeprefix("local-dir:")), OF_TRANSFORMERS.get(name)
    complete = name.startswith(SCHEMAS) or (needed and folder.is_dir())
    tags = open_clip.list_pretrained_tags_by_model(name)
    published = open_clip.is_pretrained_cfg(name, weights)
    mistakes = {
        f"{name} has weights of its own; leave out {weights!r}": complete and weights,
        f"no folder {str(folder)!r}": name.startswith("local-dir:") and not folder.is_dir(),
        f"{name} is a file; give it as weights of an architecture, such as ViT-B-32": (
            folder.is_file() and name not in models
        ),
        f"{name} is so called in transformers; open_clip has {meant}, weights openai": meant,
        f"no folder {name!r} with a model in it, and "
        f"{no_such('model of open_clip', name, models)}; one of the hub is hf-hub:NAME": (
            not complete and name not in models
        ),
        f"{name}: which weights? published are {', '.join(tags) or 'none'}; a checkpoint file "
        "will do": needed and not complete and not weights,
        f"{weights} is a folder; give the file in it as weights, or the folder as the model": (
            weights and not published and Path(weights).is_dir()
        ),
        f"{name}: no file {weights!r}, and {no_such('published weights', weights, tags)}": (
            weights and not published and not Path(weights).is_file()
        ),
    }
    refuse(mistakes, ModelError)


def create(params: ModelParams, seed: int, size: int) -> Backbone:
    """Make the model that `params` names, with published, local or new weights drawn from `seed`.

    Beside open_clip's architectures there are its `hf-hub:NAME` and `local-dir:FOLDER`, which bring
    their weights. Raises ModelError where open_clip has no such architecture or weights, and where
    the model does not take images of `size` pixels a side.
    """
    torch.manual_seed(seed)
    backbone = open_backbone(params.architecture, params.pretrained)
    side = backbone.config["vision_cfg"]["image_size"]
    if side != size:
        raise ModelError(
            f"{params.architecture} takes images of {side} pixels; data.size is {size}"
        )
    resize_mode = backbone.preprocess["resize_mode"]
    if resize_mode != "shortest":
        raise ModelError(
            f"{params.architecture} was trained on images resized by {resize_mode!r}; this "
            "project's are cut to squares. `hierclip audit` resizes as the model wants it"
        )
    _ = backbone.text_projection  # refused where it has none to train
    return backbone


def with_text_tower(name: str, path: Path, overrides: Overrides) -> Backbone:
    """Open a whole CLIP, and put the image tower of a file in the place of its own.

    The text tower, the preprocessing and the activation are the whole one's.
    """
    base = overrides.text_weights or (OPENAI if open_clip.is_pretrained_cfg(name, OPENAI) else None)
    if base is None:
        raise ModelError(
            f"{path} holds an image tower alone, and OpenAI published no {name}; "
            "which text tower is meant? --text-weights TAG or FILE"
        )
    backbone = open_backbone(name, base, replace(overrides, text_weights=None))
    loaded = load_weights(backbone.clip, path)
    text = {f"text tower {key}": backbone.origin[key] for key in ("file", "sha256")}
    origin = backbone.origin | text | origin_of(path)
    note = f"{path.name} holds the image tower alone; all else is as in {base}"
    return replace(backbone, origin=origin, notes=[note, *backbone.notes, *left_over(path, loaded)])


def origin_of(path: Path) -> dict[str, str]:
    """Return the name of a file of weights, and its SHA-256."""
    return {"file": path.name, "sha256": sha256(path)}


def left_over(path: Path, loaded: Loaded) -> list[str]:
    """Say which entries of a file are no part of the model."""
    names = ", ".join(loaded.left[:3]) + (" ..." if len(loaded.left) > 3 else "")
    return [f"{path.name}: not loaded, for the model has no such part: {names}"] if names else []


def published_preprocess(name: str) -> dict[str, Any]:
    """Return the entries of preprocessing that all published weights of an architecture share."""
    values: dict[str, set] = {key: set() for key in PREPROCESS}
    for tag in open_clip.list_pretrained_tags_by_model(name):
        published = asdict(PreprocessCfg(**preprocess_of(open_clip.get_pretrained_cfg(name, tag))))
        for key in PREPROCESS:
            values[key].add(published[key])
    return {key: shared.pop() for key, shared in values.items() if len(shared) == 1}


def preprocess_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a configuration says of PREPROCESS."""
    return {key: config[key] for key in PREPROCESS if config.get(key) is not None}


def assumptions(
    name: str, path: Path, overrides: Overrides, preprocess: Mapping[str, Any], quick: bool | None
) -> list[str]:
    """Say what is assumed of a checkpoint file, which does not say how it was trained.

    preprocess: open_clip's entries that the model will run with. quick: whether QuickGELU is asked
    for or known; None: neither.
    """
    assumed = {key: preprocess[key] for key in PREPROCESS if getattr(overrides, key) is None}
    words = ", ".join(f"{key} {numbers(value)}" for key, value in assumed.items())
    notes = [f"assumed of {path.name}: {words}"] if words else []
    if quick and overrides.quick_gelu is None:
        notes.append(f"{path.name} runs with QuickGELU, as OpenAI's archives do; --no-quick-gelu")
    if quick is None and f"{name}-quickgelu" in open_clip.list_models():
        notes.append(
            f"{path.name} runs with GELU; what comes from OpenAI's weights needs --quick-gelu, "
            "and --try-quick-gelu finds out which of the two is right"
        )
    return notes


def numbers(value: Any) -> str:
    """Write an entry of preprocessing."""
    return value if isinstance(value, str) else "/".join(f"{number:g}" for number in value)
