"""What models are trained and attacked on: classes, their images and their trees."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hierclip.config import EmojiParams, Params
from hierclip.data import (
    CONTENT,
    SPLITS,
    Dataset,
    ImageSet,
    Leaf,
    class_indices,
    ids_of,
    load_dataset,
)
from hierclip.errors import HierclipError, no_such
from hierclip.progress import differences, fingerprint, sha256
from hierclip.trees import Tree, load_forest, load_tree

BASE, MODELS, TREES = "data/models/base", "data/models", "data/trees"  # in a project's folder
INPUTS = "inputs.json"  # in a part's folder: what it is made from
ZERO_SHOT = "data/zero_shot"  # images and trees of the sets that no stage trains on
SECTIONS = {  # of params.yaml, by part of a project: what it depends on
    "trees": ("trees",),
    "zero_shot": ("trees", "zero_shot"),
    "base": ("trees", "model", "pretrain"),
}


@dataclass(frozen=True)
class Task:
    """Classes to tell apart. trees: over these classes; template: of their prompts.

    thorough: whether a record of it also has gradient-masking checks, every tree, and attacks
    inside superclasses and without a stop.
    """

    name: str
    dataset: Dataset
    trees: list[Tree]
    template: str
    thorough: bool = True


@dataclass
class MeasuredDataset:
    """A `data.Dataset` that is only measured on. splits: by name, of `data.SPLITS`."""

    name: str
    leaves: tuple[Leaf, ...]
    splits: Mapping[str, ImageSet]
    credit: str = ""
    unreadable: Sequence[str] = ()  # files that cannot be read
    notes: Sequence[str] = ()  # of their source

    def images(self, split: str) -> ImageSet:
        if split not in self.splits:
            raise HierclipError(f"{self.name}: {no_such('split', split, self.splits)}")
        return self.splits[split]

    def batch(self, *_, **__):
        raise HierclipError(f"{self.name}: these images are not trained on")


def inputs_of(root: Path, params: Params, part: str) -> dict[str, str]:
    """Return a fingerprint of everything that a part of a project is made from, by name.

    part: a name of SECTIONS, or METHOD-SEED of a model. What earlier parts are made from counts.
    """
    dataset = load_dataset(params.data, root)
    inputs = {dataset.prepared.name: str(dataset.provenance().get(CONTENT))}
    sections = params.model_dump(exclude={"model": {"accelerator"}})
    keys = [*SECTIONS.get(part, (*SECTIONS["base"], "finetune"))]
    if part not in SECTIONS:
        method = part.rpartition("-")[0]
        keys.append(f"method.{method}")
        sections[keys[-1]] = params.method[method]
    folders = "sets", "wordnet", f"trees/{params.data.name}"
    files = [file for folder in folders for file in root.glob(f"data/source/{folder}/*")]
    files += [Path(params.model.pretrained or "")] if "model" in keys else []
    for file in files:
        if file.is_file():
            inputs[os.path.relpath(file, root)] = sha256(file)
    return inputs | {f"params.yaml: {key}": fingerprint(sections[key]) for key in keys}


def inputs_file(root: Path, part: str) -> Path:
    """Return the file in a part's folder that says what it is made from."""
    folders = {"trees": TREES, "zero_shot": f"{ZERO_SHOT}/trees", "base": BASE}
    return root / folders.get(part, f"{MODELS}/{part}") / INPUTS


def write_inputs(folder: Path, root: Path, params: Params, part: str) -> None:
    """Write down in a folder what a part of a project is made from."""
    text = json.dumps(inputs_of(root, params, part), indent=1, sort_keys=True)
    (folder / INPUTS).write_text(text + "\n", encoding="utf8")


def check_inputs(root: Path, params: Params, part: str) -> None:
    """Raise HierclipError where a part was made from something else than what is there now.

    A part that does not say what it is made from is not checked.
    """
    file = inputs_file(root, part)
    if not file.exists():
        return
    recorded = json.loads(file.read_text(encoding="utf8"))
    changed = differences(inputs_of(root, params, part), recorded)
    if changed:
        raise HierclipError(
            f"{file.parent} was made from another {', '.join(changed[:3])}; "
            "run the notebook that makes it again, or `dvc repro`"
        )


def zero_shot_file(name: str) -> str:
    """Return the project's file in which notebook 10 keeps the images of a zero-shot set."""
    return f"{ZERO_SHOT}/images/{name}.safetensors"


def load_zero_shot(root: Path, params: Params, name: str) -> Dataset:
    """Open a zero-shot set, whose classes may be superclasses of the project's first tree."""
    data = params.zero_shot[name].data
    dataset = load_dataset(data, root, zero_shot_file(name))
    level = data.level if isinstance(data, EmojiParams) else 0
    if not level:
        return dataset
    (tree,) = load_forest(root / TREES, params.trees.names[:1])
    part = tree.restrict([leaf.id for leaf in dataset.leaves])
    classes, ancestors = class_indices(dataset, part.ids), torch.from_numpy(part.paths[:, level])
    splits = {}
    for split in SPLITS:
        images = dataset.images(split).select_classes(classes)
        splits[split] = replace(images, labels=ancestors[images.labels])
    leaves = tuple(Leaf(node.id, node.name, "unseen") for node in part.levels[level])
    return MeasuredDataset(dataset.name, leaves, splits, dataset.credit)


def load_task(root: Path, params: Params, name: str) -> Task:
    """Load a task of a project. Raises HierclipError for a name that is not in `params.tasks`."""
    if name not in params.tasks:
        raise HierclipError(no_such("task", name, params.tasks))
    check_inputs(root, params, "trees" if name in params.subsets else "zero_shot")
    if name in params.subsets:
        dataset = load_dataset(params.data, root)
        forest = load_forest(root / TREES, params.trees.names)
        trees = [tree.restrict(ids_of(dataset, name)) for tree in forest]
        return Task(name, dataset, trees, params.model.template)
    tree = load_tree(root / ZERO_SHOT / f"trees/{name}.json")
    entry = params.zero_shot[name]
    template = entry.template or params.model.template
    return Task(name, load_zero_shot(root, params, name), [tree], template, entry.thorough)
