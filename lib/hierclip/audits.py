"""How robust any model is on anybody's images, at every level of a class tree."""

import re
import shutil
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from hierclip.attacks import ATTACKS, STANDARD
from hierclip.config import AttackParams, error_line, parse_budget
from hierclip.data import (
    Cut,
    ImageSet,
    Leaf,
    Source,
    StoredImages,
    by_class,
    class_folders,
    class_indices,
    dataset_source,
    shards_source,
    square,
    write_images,
)
from hierclip.data.sources import CLASSES, SPLITS, folders_in, shard_files, split_folders
from hierclip.data.tasks import MeasuredDataset, Task
from hierclip.distributed import broadcast, join_processes, rank
from hierclip.errors import HierclipError, no_such, refuse
from hierclip.evaluation import Evaluation, Record, outcomes_path, save_record
from hierclip.evaluation.records import git_revision, parse_record
from hierclip.models import (
    AS_PUBLISHED,
    CosineHead,
    Model,
    Overrides,
    load,
    load_model,
    open_backbone,
)
from hierclip.models.classifier import HEAD
from hierclip.models.opening import check_name
from hierclip.models.wrapped import Wrapped, wrap
from hierclip.progress import exclusive
from hierclip.trees import Tree
from hierclip.trees.chosen import audit_trees

SUITES: dict[str, dict[str, Any]] = {  # what the name of a suite means
    "standard": {"suite": STANDARD, "steps": 100, "queries": 5000},
    "quick": {"suite": ("apgd_ce", "apgd_margin"), "steps": 8, "queries": 300},
}
TEMPLATE = "a photo of a(n) {}"
NO_PROMPT = "none"  # of a model that reads no texts
IN_MEMORY = ("texts", "scale", "surrogate", "processor", "size")  # of models without a name
NAMED = ("pretrained", *(each.name for each in fields(Overrides)), "try_quick_gelu")
RESIZING = {  # open_clip's
    "resize_mode": ("shortest", "longest", "squash"),
    "interpolation": ("bicubic", "bilinear"),
}
RECORD = "record.json"
WORK = "work"  # folder for what a stopped audit resumes from
CHECKOUT = Path(__file__).parents[2]


class FailedChecks(UserWarning):
    """Warn that an audit's accuracies cannot be trusted yet."""


@dataclass(frozen=True)
class Audited:
    """The result of an audit. trees: the first is the one that the record's metrics are for."""

    record: Record = field(repr=False)
    trees: list[Tree] = field(repr=False)
    notes: list[str]  # what was audited, and what a reader should know about it


def audit(
    model: Any,
    images: Any,
    labels: Sequence[int] | Tensor | None = None,
    *,
    pretrained: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize_mode: str | None = None,
    interpolation: str | None = None,
    quick_gelu: bool | None = None,
    try_quick_gelu: bool = False,
    text_weights: str | None = None,
    texts: Any = None,
    scale: float | None = None,
    surrogate: Any = None,
    processor: Any = None,
    size: int | None = None,
    classes: Sequence[str] | Mapping[str, str] | None = None,
    tree: str | Path | Tree | Sequence[str | Path | Tree] = (),
    synsets: str | Path | None = None,
    widths: Sequence[int] | None = None,
    eps: str | float = "1/255",
    suite: str = "standard",
    norm: str = "Linf",
    steps: int | None = None,
    queries: int | None = None,
    restarts: int = 1,
    eot: int = 1,
    batch: int = 64,
    limit: int | None = None,
    checks: int = 20,
    template: str | None = None,
    device: str = "auto",
    seed: int = 0,
    out: str | Path = "hierclip-audit",
) -> Audited:
    """Measure how robust a model is at every level of a tree over the classes of images.

    model: what `open_model` opens, with `pretrained` and, from mean to text_weights, `Overrides`;
    or what `wrap` takes, with texts, scale, surrogate and processor. try_quick_gelu: open it with
    GELU and with QuickGELU, and keep what is right on more clean images. images, labels, classes:
    as `open_images` takes them. size: pixels a side that images are cut to for a model that does
    not say. tree, synsets, widths: as `audit_trees` takes them. eps, suite, steps, queries: as
    `attack_params`. eot: calls of a randomised model that its logits and gradients are averaged
    over. limit: images of a class; None: all. checks: number of images that the attack is checked
    on, and that all trees are attacked on. template: a prompt; None: the one that a model of this
    project was trained with, else TEMPLATE.

    Writes the record and, in `outcomes`, the outcome of every image to the folder `out`. A stopped
    audit resumes from there; the record of a finished one is read. Warns with FailedChecks where a
    check of the attack failed. Raises HierclipError for every mistake in what is given, and where
    another process is at work on `out`.
    """
    given = dict(locals())
    attack, trees, about_trees, source = read_arguments(given)
    overrides = Overrides(**{each.name: given[each.name] for each in fields(Overrides)})
    if isinstance(model, str | Path):
        audited: Model | Wrapped = open_model(str(model), pretrained, overrides)
    else:
        wrapped = wrap(model, list(source.classes), texts, scale, surrogate, processor)
        audited = replace(wrapped, method=file_name(wrapped.method))
    cut = audited.cut or (square(size) if size else None)
    template = template or audited.template or TEMPLATE
    template = template if audited.reads_texts else NO_PROMPT
    place = join_processes(device)
    out = Path(out)
    disk = next(folder for folder in (out, *out.parents) if folder.is_dir())
    with exclusive(out), TemporaryDirectory(prefix="hierclip-", dir=disk) as folder:
        dataset = read_dataset(source, cut, limit, Path(folder, "images"))
        task = Task(dataset.name, dataset, trees, template)
        tried = []
        if try_quick_gelu:
            quick = open_model(str(model), pretrained, replace(overrides, quick_gelu=True))
            plain = open_model(str(model), pretrained, replace(overrides, quick_gelu=False))
            audited, note = better_activation(
                {"QuickGELU": quick, "GELU": plain}, task, batch, place
            )
            tried = [note]
        test = dataset.images("test")
        shape = tuple(test.pixels.shape[-2:])
        refuse(
            {
                f"images of {shape} pixels; {audited.method} takes {audited.size}": (
                    audited.size not in (None, shape)
                ),
                f"images of {shape} pixels; Square, a check, needs square ones": (
                    shape[0] != shape[1]
                ),
            }
        )
        notes = [
            f"{audited.method} on {dataset.name}: {len(test)} images "
            f"of {len(dataset.leaves)} classes",
            about_trees,
            *audited.notes,
            *tried,
            *dataset_notes(dataset),
            *["no GPU: the suite standard takes long here; quick is a first look"]
            * (place.type == "cpu" and suite == "standard"),
        ]
        if rank() == 0:
            print("\n".join(notes), flush=True)
        evaluation = Evaluation(audited, task, 0, attack, out / WORK, place)
        identity = evaluation.identity
        others = {path.name for path in evaluation.kept.parent.glob("*")} - {evaluation.kept.name}
        refuse(
            {
                f"{out} has a stopped audit in it ({', '.join(sorted(others))}); go on with that, "
                "name another folder, or remove it": others
            }
        )
        if not (out / RECORD).exists():
            try:
                pgd_20 = evaluation.pgd_20()
                record = evaluation.record().model_copy(update={"pgd_20": pgd_20})
            except torch.OutOfMemoryError:
                raise HierclipError(
                    f"{place} has no memory for {batch} images at a time; ask for a smaller batch"
                ) from None
            if rank() == 0:
                _move_results(record, out / WORK, out)
            broadcast(None)  # the other processes wait until all is there
    record = parse_record((out / RECORD).read_text(encoding="utf8"), str(out / RECORD))
    same_outputs = len(record.outputs) == len(identity["outputs"]) and np.allclose(
        record.outputs, identity["outputs"], rtol=1e-3, atol=1e-4
    )
    identity = identity | {"outputs": record.outputs if same_outputs else None}
    odd = [key for key, value in identity.items() if getattr(record, key) != value]
    if odd:
        raise HierclipError(
            f"{out} holds another audit ({', '.join(odd)} differ); "
            "name another folder, or remove that"
        )
    failed = record.audit.failed
    if failed and rank() == 0:
        warnings.warn(
            f"{len(failed)} of {len(record.audit.checks)} checks of the attack failed "
            f"({', '.join(failed)}): no accuracy of {record.method} is to be trusted before it is "
            "known why; record.audit has their numbers",
            FailedChecks,
            stacklevel=2,
        )
    return Audited(record, trees, notes)


def better_activation(
    models: Mapping[str, Model], task: Task, batch: int, device: torch.device
) -> tuple[Model, str]:
    """Choose the model that reads more clean images right at the leaves; say both shares."""
    images = task.dataset.images("test")
    images = images.select_classes(class_indices(task.dataset, task.trees[0].ids))
    right = {}
    for name, model in models.items():
        classifier = model.classifier(task.trees[0], task.template).to(device)
        parts = images.batches(batch, device)
        with torch.no_grad():
            nodes = torch.cat([classifier(part, [0])[0].argmax(1).cpu() for part in parts])
        right[name] = int((nodes == images.labels).sum())
    best = max(right, key=lambda name: right[name])
    shares = ", ".join(f"{name} {100 * count / len(images):.1f} %" for name, count in right.items())
    return models[best], f"{best}, which reads more of {len(images)} images right, clean: {shares}"


def _move_results(record: Record, work: Path, out: Path) -> None:
    """Move what `Evaluation` left in the folder `work` to where a reader looks for it."""
    shutil.rmtree(out / "outcomes", ignore_errors=True)  # of an audit stopped on the next line
    outcomes = outcomes_path(work, record.method, record.seed, record.subset)
    outcomes.parent.replace(out / "outcomes")
    record = record.model_copy(update={"git": git_revision(CHECKOUT)})
    save_record(record, work).replace(out / RECORD)
    shutil.rmtree(work)


def read_arguments(given: Mapping[str, Any]) -> tuple[AttackParams, list[Tree], str, "Images"]:
    """Check the arguments of `audit`; return the attack, the trees, a line about them, the images.

    Opens neither the model nor an image, so it is quick. Raises HierclipError for the first
    mistake.
    """
    attack = attack_params(given)
    gpus = [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    devices = ["auto", "cpu", *["cuda"][: len(gpus)], *gpus]
    template, limit, device, out = (given[k] for k in ("template", "limit", "device", "out"))
    model, tree, synsets = (given[key] for key in ("model", "tree", "synsets"))
    refuse(
        {
            f"template {template!r} has no {{}} for the class's name; write it like "
            "'a photo of a {}'": template is not None and "{}" not in template,
            f"limit {limit}: a class needs one image at least": limit is not None and limit < 1,
            f"scale {given.get('scale')}: a number above 0 is needed": (
                given.get("scale") is not None and not 0 < given["scale"] < float("inf")
            ),
            no_such("device", device, devices): device not in devices,
            f"{out} is a file, or in one; name a folder for what comes out": any(
                path.is_file() for path in (Path(out), *Path(out).parents)
            ),
            "both quick_gelu and try_quick_gelu; which is meant?": (
                given["quick_gelu"] is not None and given["try_quick_gelu"]
            ),
            **_preprocess_mistakes(given),
        }
    )
    named = isinstance(model, str | Path)
    others = {key: given.get(key) for key in (IN_MEMORY if named else NAMED)}
    odd = [key for key, value in others.items() if value is not None and value is not False]
    kind = "a model with a name" if named else f"a {type(model).__name__}"
    refuse({f"{', '.join(odd)}: {kind} takes none; leave it out": odd})
    if named:
        check_name(str(model), given["pretrained"], needed=True)
    chosen = [tree] if isinstance(tree, str | Path | Tree) else list(tree)
    images = open_images(given["images"], given.get("labels"), given.get("classes"))
    synsets = Path(synsets) if synsets else None
    trees, about = audit_trees(images.classes, chosen, synsets, given["widths"])
    refuse(
        {
            f"tree {each.name!r}: files are named by it; write it without /": (
                each.name != Path(each.name).name
            )
            for each in trees
        }
    )
    return attack, trees, about, images


def _preprocess_mistakes(given: Mapping[str, Any]) -> dict[str, object]:
    """Map a message for each mistake in preprocessing to whether it was made."""
    mean, std = given["mean"], given["std"]
    return {
        f"mean {mean}: three numbers from 0 to 1, of red, green and blue, are needed": mean
        and not (len(mean) == 3 and 0 <= min(mean) <= max(mean) <= 1),
        f"std {std}: three numbers above 0, up to 1, are needed": std
        and not (len(std) == 3 and 0 < min(std) <= max(std) <= 1),
        **{
            no_such(name, given[name], known): given[name] not in (None, *known)
            for name, known in RESIZING.items()
        },
    }


def attack_params(given: Mapping[str, Any]) -> AttackParams:
    """Build the attack of an audit from its arguments.

    eps: "n/255", or a share of a pixel's range, which for Linf is at most 0.5: a 1 may be meant as
    1/255. L2 is over all pixels of an image, at most 1. suite: one of SUITES, or names of ATTACKS
    with commas between them, with the steps of "standard". The step of PGD is 2.5 times the budget
    divided by the number of steps. checks: number of images that are attacked in further ways.
    Raises HierclipError for a bad budget, an unknown attack, and a number out of range.
    """
    eps, suite = given["eps"], given["suite"]
    names = [name.strip() for name in suite.split(",")]
    settings = SUITES.get(suite, SUITES["standard"] | {"suite": names})
    unknown = [name for name in settings["suite"] if name not in ATTACKS]
    try:
        share = parse_budget(eps) if "/" in str(eps) else float(eps)
    except (ValueError, TypeError):
        share = 0.0
    largest = 0.5 if given["norm"] == "Linf" and "/" not in str(eps) else 1
    refuse(
        {
            f"checks {given['checks']}: one image at least is needed": given["checks"] < 1,
            f"suite: {no_such('attack', ''.join(unknown[:1]), (*SUITES, *ATTACKS))}": unknown,
            f"eps: {eps!r} is no budget; write n/255, such as 1/255, or a share of 1, such as "
            "0.004 (for Linf at most 0.5, for 1 may be meant as 1/255)": not 0 < share <= largest,
        }
    )
    asked = {key: given[key] for key in ("steps", "queries") if given[key] is not None}
    settings = (
        settings | asked | {key: given[key] for key in ("norm", "restarts", "eot", "batch", "seed")}
    )
    n = 255 * share
    settings |= {
        "eps": f"{n}/255",
        "step": f"{2.5 * n / max(1, settings['steps'])}/255",
        "bootstrap": 1000,
        "prune": 0.0,
        **dict.fromkeys(("forest_images", "audit_images", "transfer_images"), given["checks"]),
    }
    try:
        return AttackParams.model_validate(settings)
    except ValidationError as error:
        raise HierclipError(error_line(error.errors()[0])) from None


def open_model(model: str, pretrained: str | None, overrides: Overrides = AS_PUBLISHED) -> Model:
    """Open a model that `check_name` lets through.

    model: an architecture of open_clip with, as `pretrained`, a published tag or a checkpoint file;
    or what has weights of its own: open_clip's hf-hub:NAME, or a folder in its layout, which
    notebook 40 and `hierclip export` write. Raises ModelError for what cannot be loaded.
    """
    folder = Path(model.removeprefix("local-dir:"))
    name = file_name(
        folder.resolve().name if pretrained is None else f"{model}-{Path(pretrained).stem}"
    )
    if (folder / HEAD).exists():
        return replace(load_model(folder, overrides), method=name)
    backbone = (
        load(folder, overrides) if folder.is_dir() else open_backbone(model, pretrained, overrides)
    )
    if "sha256" not in backbone.origin:
        raise HierclipError(f"{model}: no weights were loaded")
    return Model(backbone, CosineHead(backbone.logit_scale), name)


def file_name(text: str) -> str:
    """Return a text as the name of a file, of which other characters are left out."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[:80] or "unnamed"


@dataclass(frozen=True)
class Images:
    """Images to audit on: a source that is not read yet, or pixels in memory."""

    name: str
    classes: dict[str, str]  # identifier to name, by label
    content: Source | ImageSet


def open_images(
    images: Any, labels: Sequence[int] | Tensor | None, classes: Sequence[str] | Mapping | None
) -> Images:
    """Find the images of an audit, and their classes.

    images: a folder of class folders or of WebDataset shards, or with such a folder test or val in
    it; a dataset as of torchvision or Hugging Face; or a tensor (N, 3, H, W), uint8 or in [0, 1],
    with `labels` (N,). classes: names, or names by identifier, in the order of the labels; class
    folders have theirs. Raises HierclipError for what is none of these, values outside [0, 1],
    fewer than two classes, a class without an image, and two classes of one name.
    """
    given = classes or ()
    names = dict(given) if isinstance(given, Mapping) else {name: name for name in given}
    if len(names) < len(given):
        raise HierclipError(f"classes: {len(given)} names, some of them twice; a class has its own")
    if isinstance(images, str | Path):
        opened = image_folder(Path(images), names)
    elif isinstance(images, Tensor):
        opened = Images("tensor", names, pixels_of(images, labels, len(names)))
    else:
        name = type(images).__name__
        source = dataset_source(images, name, classes)
        opened = Images(name, source.classes, source)
    counts = Counter(map(int, opened.content.labels))
    empty = [each for k, each in enumerate(opened.classes) if not counts[k]]
    words = Counter(opened.classes.values())
    twins = [each for each, word in opened.classes.items() if words[word] > 1]
    refuse(
        {
            f"{opened.name}: one class only ({', '.join(words)}); there must be two or more to "
            "tell apart": len(opened.classes) < 2,
            f"{opened.name}: no images in class {', '.join(empty[:5])}; put some there or "
            "remove it": empty,
            f"{opened.name}: {', '.join(twins[:5])} have one name; give each its own in "
            "classes.csv (id, name)": twins,
        }
    )
    return opened


def image_folder(folder: Path, classes: Mapping | None = None) -> Images:
    """Find the images in a folder, or in its split to test on, as shards or class folders.

    Raises HierclipError for one that does not exist, and as `split_folders` does.
    """
    refuse(
        {
            f"{folder}: no such folder; give one with a folder of images for each class": (
                not folder.is_dir()
            ),
            f"{folder}: classes are the folders; name them in classes.csv (id, name)": classes,
        }
    )
    parts = [folder / name for name in SPLITS if not name.startswith("train")]
    if (folder / CLASSES).exists() or not folders_in(folder):
        parts.append(folder)
    sharded = [part for part in parts if shard_files(part)]
    source = (
        shards_source(sharded[0], folder) if sharded else class_folders(split_folders(folder)[-1])
    )
    return Images(file_name(folder.resolve().name), source.classes, source)


def pixels_of(images: Tensor, labels: Any, classes: int) -> ImageSet:
    """Check images in memory, (N, 3, H, W), and their labels (N,), below the number of classes."""
    try:
        numbers = torch.as_tensor(labels if labels is not None else ())
    except (TypeError, ValueError):
        raise HierclipError("labels: whole numbers are needed, of the classes from 0") from None
    low, high = images.aminmax() if images.numel() else (0, 0)
    outside = images.is_floating_point() and not (low >= 0 and high <= 1)  # NaN is neither
    refuse(
        {
            f"images {tuple(images.shape)} of {images.dtype}: (N, 3, H, W), floats in [0, 1] or "
            "uint8, are needed": images.ndim != 4
            or images.shape[1] != 3
            or not (images.is_floating_point() or images.dtype == torch.uint8),
            f"images: values from {float(low):g} to {float(high):g}; pixels in [0, 1] are needed, "
            "not normalised (the model normalises them itself), or uint8": outside,
            f"labels: {tuple(numbers.shape)} for {len(images)} images; one whole number each is "
            "needed": numbers.shape != images.shape[:1] or numbers.is_floating_point(),
            "classes: their names are needed, in the order of the labels": not classes,
            f"labels: {numbers.unique().tolist()[-1:]} and {classes} classes; a label is "
            "a class's number, from 0": bool(len(numbers))
            and (int(numbers.min()) < 0 or int(numbers.max()) >= classes),
        }
    )
    pixels = images if images.dtype == torch.uint8 else images.float()
    return ImageSet(pixels.detach().cpu(), numbers.long().cpu())


def read_dataset(images: Images, cut: Cut | None, limit: int | None, path: Path) -> MeasuredDataset:
    """Read the first `limit` readable images of each class, or all, as `cut` makes them.

    Their bytes are written to the file `path` and read from it when they are needed. Unreadable
    images are left out.
    Raises HierclipError for a class without a readable image, and where `cut` is needed and None.
    """
    unreadable: list[str] = []
    if isinstance(images.content, ImageSet):
        readable = images.content
    elif cut is None:
        raise HierclipError("size: how many pixels a side does the model take? give size=...")
    else:
        readable = _stored(images.content, images.name, cut, limit, path, unreadable)
    count = limit or len(readable)
    rows = [torch.nonzero(readable.labels == k)[:, 0] for k in range(len(images.classes))]
    lost = [each for each, group in zip(images.classes, rows, strict=True) if not len(group)]
    if lost:
        raise HierclipError(
            f"{images.name}: no image of class {', '.join(lost[:5])} can be read; "
            f"mend or remove {', '.join(unreadable[:5])}"
        )
    leaves = tuple(Leaf(each, name, "seen") for each, name in images.classes.items())
    notes = images.content.notes if isinstance(images.content, Source) else ()
    splits = {"test": readable[torch.cat([group[:count] for group in rows])]}
    return MeasuredDataset(images.name, leaves, splits, unreadable=unreadable, notes=notes)


def _stored(
    source: Source, name: str, cut: Cut, limit: int | None, path: Path, unreadable: list[str]
) -> ImageSet:
    """Write the first `limit` readable images of each class, or all, to a file."""
    count = limit or len(source.labels)
    left = by_class(source)
    labels: list[int] = []
    with path.open("wb") as file:
        tried = [rows[:count] for rows in left]
        while any(tried):
            selection = source.take(list(chain(*tried)))
            written = write_images(selection, cut, name, unreadable, file)
            labels += [selection.labels[row] for row in written]
            left = [rows[len(gone) :] for rows, gone in zip(left, tried, strict=True)]
            tried = [rows[: count - labels.count(k)] for k, rows in enumerate(left)]
    shape = cut(Image.new("RGB", (64, 48))).shape  # of every image that it makes
    return ImageSet(StoredImages(path, (len(labels), *shape)), torch.tensor(labels))


def dataset_notes(dataset: MeasuredDataset) -> list[str]:
    """List what a reader of the result should know about its images."""
    more = f" and {len(dataset.unreadable) - 5} more" if len(dataset.unreadable) > 5 else ""
    lost = f"left out, as they cannot be read: {', '.join(dataset.unreadable[:5])}{more}"
    return [*dataset.notes, *[lost] * bool(dataset.unreadable)]
