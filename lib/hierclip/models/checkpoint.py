"""Weights from a file, whoever wrote it: of which towers, what is missing, what is left over."""

import logging
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import CLIPVisionCfg, convert_to_custom_text_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

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
# What wrappers put into names, at any depth: FSDP, activation checkpointing, compilation.
WRAPPING = re.compile(r"(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
FIRST_BYTES = {  # of files that are no weights: what they are, and what to do
    b"version https://git-lfs": "is a pointer of Git LFS; get the file with `git lfs pull`",
    b"\x89HDF": "is HDF5, as Keras writes it",
    b"GGUF": "is GGUF, quantised weights for llama.cpp",
    b"\x93NUMPY": "is an array of NumPy",
    b"\x89PNG": "is an image",
    b"\xff\xd8\xff": "is an image",
    b"\x1f\x8b": "is a gzip archive; unpack it",
    b"\x08": "is an ONNX graph",
}
LAYOUTS = {  # parts of the names of entries that are not a CLIP's: what they are, and what to do
    "lora_": "it has a LoRA adapter; merge that into its base model, and save the whole",
    "vision_model.": "it is in the layout of transformers; in Python, "
    "hierclip.audit(CLIPModel.from_pretrained(FOLDER), images) takes that",
    "exp_avg": "it is an optimizer's state; save the state_dict of the model",
}
State = dict[str, Tensor]

# open_clip tells the root logger what it loads, and what it cannot; here that is an error's line.
logging.getLogger().addFilter(lambda record: not record.pathname.startswith(open_clip.__path__[0]))


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
        raise ModelError(f"{folder}: {problem}; all weights belong into one file, {PREFERRED[0]}")
    return [*preferred, *files][0]


def load_weights(clip: Any, path: Path) -> Loaded:
    """Load a file's weights into an open_clip model, or into its image tower alone.

    The file holds a state_dict, bare or inside other entries, its names behind any prefix (of
    DataParallel, Lightning, compilation): the whole model's, as open_clip or OpenAI name them, or
    the image tower's. Raises ModelError where there is none, where a weight of the model is missing
    or has another shape, and where a tower's weight is left over.
    """
    sets = dict(sets_of_weights(read_file(path)))
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
    others = {k: v for each in sets.values() for k, v in each.items() if each is not state}
    others |= {k: v for k, v in state.items() if not k.startswith(prefix)}
    if image_only and max([0, *prefixes_of(others, text).values()]) > len(text) / 2:
        raise ModelError(
            f"{path}: an image tower, and a text tower under other names; save the state_dict of "
            "the whole model, or the image tower alone"
        )
    module = clip.visual if image_only else clip
    expected, given = module.state_dict(), given if image_only else whole
    shared = {
        name: given[name].reshape(v.shape) if given[name].numel() == v.numel() == 1 else given[name]
        for name, v in expected.items()
        if name in given
    }
    left = _missing(given, expected)
    parts = {name.partition(".")[0] for name in expected}
    problems = {
        "missing": _missing(expected, given),
        "left over": [name for name in left if name.partition(".")[0] in parts],
        "of another shape": [
            f"{name} {tuple(v.shape)} for {tuple(expected[name].shape)}"
            for name, v in shared.items()
            if v.shape != expected[name].shape
        ],
        "not in floating point": [
            name
            for name, v in shared.items()
            if v.is_meta or v.is_floating_point() < expected[name].is_floating_point()
        ],
    }
    for what, names in problems.items():
        if names:
            raise ModelError(
                f"{path}: weights of another model: {len(names)} {what}, such as "
                f"{', '.join(names[:3])}; {whose(state, entries)}"
            )
    module.load_state_dict({name: v.to_dense() for name, v in shared.items()}, strict=False)
    check_finite(clip, path)
    return Loaded(image_only, [*left, *(k for k in state if not k.startswith(root))])


def whose(state: State, entries: State) -> str:
    """Say whose weights are that do not fit the model of `entries`.

    An architecture of open_clip is named if the weights, and not the model, have every size of its
    image tower.
    """
    layouts = [kind for part, kind in LAYOUTS.items() if any(part in name for name in state)]
    sizes, model_sizes = (
        {size for values in each.values() for size in values.shape} for each in (state, entries)
    )
    names = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name) or {}
        vision = asdict(CLIPVisionCfg(**config["vision_cfg"]))
        patch = vision["patch_size"] or 32  # what a ResNet divides sides by
        needed = {
            config["embed_dim"],
            vision["width"],
            patch,
            (vision["image_size"] // patch) ** 2 + 1,  # positions
        }
        if not vision["timm_model_name"] and needed <= sizes and not needed <= model_sizes:
            names.append(name)
    sized = f"by its sizes it may be {' or '.join(sorted(names, key=len)[:3])}" if names else ""
    return "".join(layouts[:1]) or sized or "give the architecture that it was trained as"


def not_finite(module: nn.Module) -> list[str]:
    """List a module's weights and buffers with a value that is not finite."""
    return [key for key, values in module.state_dict().items() if not values.isfinite().all()]


def check_finite(clip: Any, path: Path | None) -> None:
    """Raise ModelError where a weight is not finite, or the scale of cosines cannot be meant."""
    bad = not_finite(clip)
    if bad:
        raise ModelError(
            f"{path}: not finite: {', '.join(bad[:3])} ({len(bad)} weights); its training "
            "diverged, so take an earlier checkpoint"
        )
    if clip.logit_scale.exp().max() > 10_000:  # CLIP ends its training at 100
        raise ModelError(
            f"{path}: logit_scale is {clip.logit_scale.max():g}; the logarithm of the scale is "
            "needed, such as 4.6052 for 100"
        )


def _missing(names: Collection[str], present: Collection[str]) -> list[str]:
    absent = set(names) - set(present)
    return sorted(name for name in absent if name.rpartition(".")[2] not in NO_WEIGHTS)


def read_file(path: Path) -> Any:
    """Read what torch or safetensors wrote to a file, whatever its name ends in.

    A pickle's code is never run. Raises ModelError for any other file, and for a pickle that needs
    more than tensors.
    """
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, its files are not
        head = file.read(512)
        file.seek(0)
        try:
            if head[8:9] == b"{":
                return load_file(path)
            if is_torchscript(path):
                return torch.jit.load(path, "cpu").state_dict()
            return torch.load(file, "cpu", weights_only=True)
        except Exception as error:  # torch, pickle, zipfile and safetensors raise their own
            raise ModelError(f"{path} {what_is(head, str(error))}") from error


def what_is(head: bytes, reason: str) -> str:
    """Say of a file without weights what it is and what to do, by its first bytes.

    reason: why it could not be read.
    """
    known = [kind for first, kind in FIRST_BYTES.items() if head.startswith(first)]
    # The number is that of torch's older format, which may be cut short.
    raw = head.startswith(b"\x80") and not head.startswith(b"\x80\x02\x8a\nl\xfc\x9c")
    code = ", ".join(re.findall(r"GLOBAL ([\w.]+)", reason)) or "code"
    text = shorten(head.decode("utf8", "replace"), 40, placeholder=" ...")
    problems = {
        "is empty": not head,
        "".join(known[:1]): known,
        "is a tar archive; unpack it": head[257:262] == b"ustar",
        f"holds {code} beside tensors, which is never run (where you trust it, "
        "torch.load(FILE, weights_only=False) reads it)": raw or "GLOBAL" in reason,
        f"is text ({text!r}), such as an error's page; get the file itself": b"\0" not in head,
        "is a zip archive of other files, such as NumPy's; unpack it": head.startswith(b"PK")
        and b"data.pkl" not in head,
        f"is cut short or damaged ({shorten(reason, 80, placeholder=' ...')})": True,
    }
    problem = next(problem for problem, applies in problems.items() if applies)
    return f"{problem}; a state_dict that torch or safetensors wrote is needed"


def is_torchscript(path: Path) -> bool:
    """Tell whether a file is an archive of TorchScript."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def sets_of_weights(content: Any, place: str = "") -> Iterator[tuple[str, State]]:
    """Find the sets of weights in what a file holds: dicts of tensors, at any depth, by place."""
    if isinstance(content, Mapping):
        state = {
            WRAPPING.sub("", str(name)): value
            for name, value in content.items()
            if isinstance(value, Tensor)
        }
        if state:
            yield place, state
        for name, value in content.items():
            yield from sets_of_weights(value, f"{place}[{name!r}]")


def best_set(path: Path, sets: Mapping[str, State], expected: Collection[str]) -> tuple[State, str]:
    """Choose the set of weights with most of the expected names, and the prefix they stand behind.

    Raises ModelError where two fit as well: which is meant, a file does not say.
    """
    largest = max(sets, key=lambda place: len(sets[place]))
    fits = {(largest, ""): 0}
    for place, state in sets.items():
        for prefix, count in prefixes_of(state, expected).items():
            fits[place, prefix] = count
    place, prefix = max(fits, key=lambda each: (fits[each], -len(each[1])))
    most = fits[place, prefix]
    twins = [f"{where} {each}*".strip() for (where, each), count in fits.items() if count == most]
    if len(twins) > 1 and most > len(expected) / 2:
        raise ModelError(
            f"{path}: several sets of weights fit: {', '.join(twins)}; save the one that is meant "
            f"to a file of its own, such as torch.save(torch.load(FILE){place}, NEW)"
        )
    return sets[place], prefix


def prefixes_of(state: State, expected: Collection[str]) -> Counter[str]:
    """Count the expected names in a set of weights by the prefix that they stand behind."""
    prefixes: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for k in range(len(parts)):
            if ".".join(parts[k:]) in expected:
                prefixes["".join(part + "." for part in parts[:k])] += 1
    return prefixes


def behind(prefix: str, state: State) -> State:
    """Return the weights whose names have a prefix, under their names without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def converted(clip: Any, state: State) -> State:
    """Name weights as open_clip's own loader does, where it knows another convention."""
    state = convert_state_dict(clip, dict(state))
    if "positional_embedding" in state and not hasattr(clip, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    if getattr(clip, "logit_bias", None) is not None:
        state.setdefault("logit_bias", torch.zeros_like(clip.logit_bias))
    return state
