"""Weights from a file, whoever wrote it: of which towers, what is missing, what is left over."""

import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from safetensors.torch import load_file
from torch import Tensor

from hierclip.errors import HierclipError

VISUAL = "visual."  # open_clip's prefix of the image tower
# The last part of the names of entries that are no weights: of OpenAI's archives, of older files.
NO_WEIGHTS = {
    "input_resolution",
    "context_length",
    "vocab_size",
    "attn_mask",
    "position_ids",
    "num_batches_tracked",
}
PREFERRED = (  # where a folder has several files of weights
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
)
State = dict[str, Tensor]


class ModelError(HierclipError):
    """Say which model cannot be loaded, and what would be right."""


@dataclass(frozen=True)
class Loaded:
    """What `load_weights` found in a file."""

    image_only: bool  # the file holds no text tower
    left: Sequence[str]  # names of weights that are no part of the model


def weights_in(folder: Path) -> Path:
    """Find the file of weights in a model's folder. Raises ModelError for none, or several."""
    preferred = [folder / name for name in PREFERRED if (folder / name).is_file()]
    endings = (".safetensors", ".bin", ".pt", ".pth")
    files = sorted(file for file in folder.iterdir() if file.suffix in endings)
    if not preferred and len(files) != 1:
        problem = f"which of {', '.join(f.name for f in files)}?" if files else "no file of weights"
        raise ModelError(f"{folder}: {problem}; they belong into {PREFERRED[0]}")
    return [*preferred, *files][0]


def load_weights(clip: Any, path: Path) -> Loaded:
    """Load a file's weights into an open_clip model, or into its image tower alone.

    The file holds a state_dict, bare or inside other entries, its names behind any prefix (of
    DataParallel, Lightning, compilation): the whole model's, as open_clip or OpenAI name them, or
    the image tower's. Raises ModelError where there is none, where a weight of the model is missing
    or has another shape, and where a tower's weight is left over.
    """
    sets = [*sets_of_weights(read_file(path))]
    if not sets:
        raise ModelError(f"{path}: no weights in it; a state_dict of a model is needed")
    entries = clip.state_dict()
    vision = {name.removeprefix(VISUAL) for name in entries if name.startswith(VISUAL)}
    text = {name for name in entries if not name.startswith((VISUAL, "logit_"))}
    state, prefix = best_set(path, sets, vision)
    given = behind(prefix, state)
    root = prefix.removesuffix(VISUAL)
    if _missing(vision, given):  # named otherwise, as `converted` may know
        state, root = best_set(path, sets, entries.keys())
    whole = converted(clip, behind(root, state))
    image_only = not _missing(vision, given) and (root == prefix or not text & whole.keys())
    others = {k: v for each in sets for k, v in each.items() if each is not state}
    others |= {k: v for k, v in state.items() if not k.startswith(prefix)}
    if image_only and len(text & behind(prefix_of(others, text)[0], others).keys()) > len(text) / 2:
        raise ModelError(
            f"{path}: an image tower, and a text tower under other names; save the state_dict of "
            "the whole model, or the image tower alone"
        )
    module, expected = (clip.visual, vision) if image_only else (clip, entries.keys())
    given = given if image_only else whole
    missing = _missing(expected, given)
    left = _missing(given, expected)
    parts = {name.partition(".")[0] for name in expected}
    foreign = [name for name in left if name.partition(".")[0] in parts]
    for what, names in {"missing": missing, "left over": foreign}.items():
        if names:
            raise ModelError(
                f"{path}: weights of another model: {what} {', '.join(names[:3])} "
                f"({len(names)} of {len(expected)})"
            )
    try:
        module.load_state_dict(
            {name: given[name] for name in expected & given.keys()}, strict=False
        )
    except RuntimeError as error:  # another shape
        reason = shorten(str(error), 200, placeholder=" ...")
        raise ModelError(f"{path}: weights of another model: {reason}") from None
    check_finite(clip, path)
    return Loaded(image_only, [*left, *(k for k in state if not k.startswith(root))])


def check_finite(clip: Any, path: Path | None) -> None:
    """Raise ModelError where a weight is not finite."""
    bad = [key for key, values in clip.state_dict().items() if not values.isfinite().all()]
    if bad:
        raise ModelError(f"{path}: not finite: {', '.join(bad[:3])} ({len(bad)} weights)")


def _missing(names: Collection[str], present: Collection[str]) -> list[str]:
    absent = set(names) - set(present)
    return sorted(name for name in absent if name.rpartition(".")[2] not in NO_WEIGHTS)


def read_file(path: Path) -> Any:
    """Read what torch or safetensors wrote to a file.

    Raises ModelError for any other file, and for a pickle that needs more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, its files are not
            if is_torchscript(path):
                return torch.jit.load(path, "cpu").state_dict()
            return torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # torch, pickle, zipfile and safetensors raise their own
        if "Unsupported global" in str(error) or "GLOBAL" in str(error):
            problem = "holds more than tensors; load it where it was made and save its state_dict"
        elif not path.stat().st_size:
            problem = "is empty"
        else:
            reason = shorten(str(error) or type(error).__name__, 100, placeholder=" ...")
            problem = f"is no file of weights, or damaged ({reason})"
        raise ModelError(f"{path} {problem}") from error


def is_torchscript(path: Path) -> bool:
    """Tell whether a file is an archive of TorchScript."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def sets_of_weights(content: Any) -> Iterator[State]:
    """Find the sets of weights in what a file holds: dicts of tensors, at any depth."""
    if isinstance(content, Mapping):
        state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if state:
            yield state
        for value in content.values():
            yield from sets_of_weights(value)


def best_set(path: Path, sets: Sequence[State], expected: Collection[str]) -> tuple[State, str]:
    """Choose the set of weights with most of the expected names, and the prefix they stand behind.

    Raises ModelError where two fit as well: which is meant, a file does not say.
    """
    choices = []
    for state in sets:
        prefix, fits = prefix_of(state, expected)
        choices.append((fits[prefix], state, prefix))
        twins = [f"{each}*" for each, count in fits.items() if count == fits[prefix]]
        if len(twins) > 1 and fits[prefix] > len(expected) / 2:
            raise ModelError(f"{path}: several models fit: {', '.join(twins)}; keep one of them")
    most, state, prefix = max(choices, key=lambda choice: choice[0])
    if sum(count == most for count, _, _ in choices) > 1 and most:
        raise ModelError(f"{path}: several sets of weights fit the model; keep one of them")
    return state, prefix


def prefix_of(state: State, expected: Collection[str]) -> tuple[str, Counter[str]]:
    """Find the prefix behind which most of the expected names stand; count them by prefix."""
    prefixes: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for k in range(len(parts)):
            if ".".join(parts[k:]) in expected:
                prefixes["".join(part + "." for part in parts[:k])] += 1
    best = max(prefixes, key=lambda each: (prefixes[each], -len(each)), default="")
    return best, prefixes


def behind(prefix: str, state: State) -> State:
    """Return the weights whose names have a prefix, under their names without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def converted(clip: Any, state: State) -> State:
    """Name weights as open_clip's own loader does, where it knows another convention."""
    state = convert_state_dict(clip, dict(state))
    if "positional_embedding" in state and not hasattr(clip, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    scale, bias = clip.logit_scale, getattr(clip, "logit_bias", None)
    if "logit_scale" in state:
        state["logit_scale"] = state["logit_scale"].reshape(scale.shape)
    if bias is not None:
        state["logit_bias"] = state.get("logit_bias", torch.zeros_like(bias)).reshape(bias.shape)
    return state
