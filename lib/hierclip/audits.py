"""How robust a model is on somebody's own images, at every level of a class tree."""

import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import networkx as nx
import open_clip
import torch
import yaml
from pydantic import ValidationError

from hierclip.attacks import ATTACKS, STANDARD
from hierclip.config import AttackParams, error_line, parse_budget
from hierclip.data import (
    ImageSet,
    Leaf,
    Source,
    StoredImages,
    by_class,
    class_folders,
    write_squares,
)
from hierclip.data.tasks import Task
from hierclip.errors import HierclipError
from hierclip.evaluation import Evaluation, Record, outcomes_path, save_record
from hierclip.evaluation.records import git_revision, parse_record, threat_model
from hierclip.models import CosineHead, ImageEncoder, Model, load, load_model, open_backbone
from hierclip.models.classifier import HEAD
from hierclip.progress import fingerprint
from hierclip.trees import (
    WNID,
    Node,
    Tree,
    TreeError,
    read_tree,
    set_synsets,
    synsets_by_name,
    tree_from_graph,
    wordnet_tree,
)

SUITES: dict[str, dict[str, Any]] = {  # what the name of a suite means
    "standard": {"suite": STANDARD, "steps": 100, "queries": 5000},
    "quick": {"suite": ("apgd_ce", "apgd_margin"), "steps": 8, "queries": 300},
}
READING_IMAGES = 32  # that choose the reading
TEMPLATE = "a photo of a(n) {}"
WORDNET = "wordnet"  # in place of the file of a tree
SYNSET = re.compile(r".+\.n\.\d\d")
RECORD = "record.json"
WORK = "work"  # folder for what a stopped audit resumes from
CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Audited:
    """The result of an audit. trees: the first is the one that the record's metrics are for."""

    record: Record = field(repr=False)
    trees: list[Tree] = field(repr=False)
    notes: list[str]  # what was audited, and what a reader should know about it


def audit(
    model: str,
    pretrained: str | None = None,
    images: str | Path = ".",
    *,
    tree: str | Path | Tree | Sequence[str | Path | Tree] = (),
    synsets: str | Path | None = None,
    widths: Sequence[int] | None = None,
    eps: str | float = "1/255",
    suite: str = "standard",
    norm: str = "Linf",
    steps: int | None = None,
    queries: int | None = None,
    restarts: int = 1,
    batch: int = 64,
    limit: int | None = None,
    checks: int = 20,
    template: str | None = None,
    device: str = "auto",
    seed: int = 0,
    out: str | Path = "hierclip-audit",
) -> Audited:
    """Measure how robust a model is at every level of a tree over the classes of images.

    model, pretrained: as `open_model` takes them. images: class folders. tree, synsets, widths: as
    `audit_trees` takes them. eps, suite, steps, queries: as `attack_params`. limit: images of a
    class; None: all. checks: number of images that the attack is checked on, and that all trees are
    attacked on. template: a prompt; None: the one that a model of this project was trained with,
    else TEMPLATE.

    Writes the record and, in `outcomes`, the outcome of every image to the folder `out`. A stopped
    audit resumes from there; the record of a finished one is read. Raises HierclipError for every
    mistake in what is given.
    """
    attack, trees, about_trees = read_arguments(**locals())
    audited = open_model(model, pretrained)
    template = template or audited.template or TEMPLATE
    size = audited.backbone.config["vision_cfg"]["image_size"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    out = Path(out)
    disk = next(place for place in (out, *out.parents) if place.is_dir())
    with TemporaryDirectory(prefix="hierclip-", dir=disk) as folder:
        dataset = read_folder(Path(images), size, limit, Path(folder, "images"))
        test = dataset.splits["test"]
        notes = [
            f"{audited.method} on {dataset.name}: {len(test)} images "
            f"of {len(dataset.leaves)} classes",
            about_trees,
            *dataset_notes(trees, dataset),
        ]
        print("\n".join(notes), flush=True)
        weights = ImageEncoder(audited.backbone, fold=True).state_dict().values()
        identity = {
            "method": audited.method,
            "trees": {tree.name: tree.hash for tree in trees},
            "threat_model": threat_model(attack, template, size),
            "settings": attack.model_dump(mode="json"),
            "hashes": {"weights": fingerprint(*weights), "images": test.fingerprint()},
        }
        if not (out / RECORD).exists():
            task = Task(dataset.name, dataset, trees, template)
            try:
                record = Evaluation(
                    audited, task, seed=0, params=attack, root=out / WORK, device=device
                ).record()
            except torch.OutOfMemoryError:
                raise HierclipError(
                    f"{device} has no memory for {batch} images at a time; ask for a smaller batch"
                ) from None
            _move_results(record, out / WORK, out)
    record = parse_record((out / RECORD).read_text(encoding="utf8"), str(out / RECORD))
    odd = [key for key, value in identity.items() if getattr(record, key) != value]
    if odd:
        raise HierclipError(
            f"{out} holds another audit ({', '.join(odd)} differ); "
            "name another folder, or remove that"
        )
    return Audited(record, trees, notes)


def _move_results(record: Record, work: Path, out: Path) -> None:
    """Move what `Evaluation` left in the folder `work` to where a reader looks for it."""
    shutil.rmtree(out / "outcomes", ignore_errors=True)  # of an audit stopped on the next line
    outcomes = outcomes_path(work, record.method, record.seed, record.subset)
    outcomes.parent.replace(out / "outcomes")
    revision = git_revision(CHECKOUT) if (CHECKOUT / "params.yaml").exists() else ""
    record = record.model_copy(update={"git": revision})
    save_record(record, work).replace(out / RECORD)
    shutil.rmtree(work)


def _refuse(mistakes: Mapping[str, object]) -> None:
    """Raise HierclipError with the first message whose value is true."""
    for message, applies in mistakes.items():
        if applies:
            raise HierclipError(message)


def read_arguments(
    model, pretrained, images, tree, synsets, widths, eps, suite, norm, steps, queries, restarts,
    batch, limit, checks, template, device, seed, out,
) -> tuple[AttackParams, list[Tree], str]:  # fmt: skip
    """Check the arguments of `audit`; return the attack, the trees, and a line about the trees.

    Opens neither the model nor an image, so it is quick. Raises HierclipError for the first
    mistake.
    """
    others = {"norm": norm, "restarts": restarts, "batch": batch, "seed": seed}
    attack = attack_params(eps, suite, steps, queries, checks, **others)
    gpus = [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    devices = ["auto", "cpu", *["cuda"][: len(gpus)], *gpus]
    _refuse(
        {
            f"template {template!r} has no {{}} for the class's name; write it like "
            "'a photo of a {}'": template is not None and "{}" not in template,
            f"limit {limit}: a class needs one image at least": limit is not None and limit < 1,
            f"no device {device!r}; here are {', '.join(devices)}": device not in devices,
            f"{out} is a file, or in one; name a folder for what comes out": any(
                path.is_file() for path in (Path(out), *Path(out).parents)
            ),
            **_model_mistakes(model, pretrained),
        }
    )
    chosen = [tree] if isinstance(tree, str | Path | Tree) else list(tree)
    classes = image_source(Path(images)).classes
    trees, about = audit_trees(classes, chosen, Path(synsets) if synsets else None, widths)
    return attack, trees, about


def attack_params(
    eps: str | float, suite: str, steps: int | None, queries: int | None, checks: int, **others
) -> AttackParams:
    """Build the attack of an audit.

    eps: "n/255" or a share of a pixel's range. suite: one of SUITES, or names of ATTACKS with
    commas between them, with the steps of "standard". The step of PGD is 2.5 times the budget
    divided by the number of steps. checks: number of images that are attacked in further ways.
    Raises HierclipError for a bad budget, an unknown attack, and a number out of range.
    """
    names = [name.strip() for name in suite.split(",")]
    settings = SUITES.get(suite, SUITES["standard"] | {"suite": names})
    unknown = [name for name in settings["suite"] if name not in ATTACKS]
    try:
        share = parse_budget(eps) if "/" in str(eps) else float(eps)
    except ValueError:
        share = 0.0
    _refuse(
        {
            f"suite: no attack {''.join(unknown[:1])!r}; known are "
            f"{', '.join((*SUITES, *ATTACKS))}": unknown,
            f"eps: {eps!r} is no budget; write n/255, such as 1/255, or a share of 1, such as "
            "0.004": not 0 < share <= 1,
        }
    )
    given = {"steps": steps, "queries": queries}
    settings = settings | {name: value for name, value in given.items() if value is not None}
    n = 255 * share
    settings |= {
        "eps": f"{n}/255",
        "step": f"{2.5 * n / max(1, settings['steps'])}/255",
        "bootstrap": 1000,
        "prune": 0.0,
        "reading_images": READING_IMAGES,
        **dict.fromkeys(("forest_images", "audit_images", "transfer_images"), checks),
    }
    try:
        return AttackParams.model_validate(settings | others)
    except ValidationError as error:
        raise HierclipError(error_line(error.errors()[0])) from None


def open_model(model: str, pretrained: str | None) -> Model:
    """Open a model that `_model_mistakes` finds no mistake in.

    model: an architecture of open_clip with, as `pretrained`, a published tag or a checkpoint file;
    or what has weights of its own: open_clip's hf-hub:NAME, or a folder in its layout, which
    notebook 40 and `hierclip export` write. Raises ModelError for what cannot be loaded.
    """
    folder = Path(model)
    name = folder.resolve().name if pretrained is None else f"{model}-{Path(pretrained).stem}"
    name = _file_name(name)
    if (folder / HEAD).exists():
        return replace(load_model(folder), method=name)
    backbone = load(folder) if folder.is_dir() else open_backbone(model, pretrained)
    return Model(backbone, CosineHead(float(backbone.clip.logit_scale.detach().exp())), name)


def _model_mistakes(model: str, pretrained: str | None) -> dict[str, object]:
    """Map a message for each mistake that can be seen without loading to whether it was made."""
    tags = open_clip.list_pretrained_tags_by_model(model)
    published = f"published are {', '.join(tags)}" if tags else "none are published for it"
    right = f"{published}; a checkpoint file will do"
    weights = pretrained or ""
    if Path(model).is_dir() or ":" in model:
        return {f"{model} has weights of its own; leave out {weights!r}": weights}
    return {
        f"no folder {model!r} with a model in it; one of the hub is hf-hub:NAME": (
            model.startswith(".") or {"/", "\\"} & set(model)
        ),
        f"no model {model!r}: neither a folder, nor hf-hub:NAME, nor one of open_clip, "
        "`open_clip.list_models()`": model not in open_clip.list_models(),
        f"{model}: which weights? {right}": not weights,
        f"{model}: no weights {weights!r}, and no such file; {right}": not (
            open_clip.is_pretrained_cfg(model, weights) or Path(weights).is_file()
        ),
    }


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text)


Chosen = Sequence[str | Path | Tree]


def audit_trees(
    leaves: Mapping[str, str], chosen: Chosen, synsets: Path | None, widths: Sequence[int] | None
) -> tuple[list[Tree], str]:
    """Return the chosen trees as `class_trees` does, and a line that describes them.

    Where none is chosen: the tree of WordNet if every class is a synset, a WordNet id, or a word of
    one sense there; else a tree without a level above the leaves.
    """
    try:
        trees = class_trees(leaves, chosen or [WORDNET], synsets, widths)
    except TreeError as error:
        if chosen or synsets is not None or widths is not None:
            raise
        why = str(error).splitlines()[0].partition(";")[0]
        nodes = tuple(Node(leaf, name) for leaf, name in leaves.items())
        return [Tree("leaves", Node("", "all"), (nodes,), ())], (
            f"no tree, so the {len(leaves)} leaves are all there is ({why}); "
            "give one with --tree FILE, or --tree wordnet and --synsets FILE"
        )
    asked = "" if chosen else " (none was asked for)"
    return trees, "; ".join(
        f"tree {tree.name}{asked}, levels of {', '.join(map(str, tree.sizes))} nodes"
        for tree in trees
    )


def class_trees(
    leaves: Mapping[str, str],
    chosen: Chosen,
    synsets: Path | None = None,
    widths: Sequence[int] | None = None,
) -> list[Tree]:
    """Build trees over `leaves` (identifier to name), all with the order of leaves of the first.

    chosen: "wordnet", files that `read_tree` knows, or trees. synsets: a file of `read_synsets`.
    widths: the most nodes at levels 1..L; None: a file's own levels, and about half of the level
    before for WordNet. Raises TreeError for a tree over other leaves, a class for which WordNet has
    no synset or several, widths that cannot be reached, and two trees of one name.
    """
    trees = [_class_tree(leaves, each, synsets, widths) for each in chosen]
    names = [tree.name for tree in trees]
    if len(set(names)) < len(names):
        raise TreeError(f"two trees of one name: {', '.join(names)}; call each by its own")
    in_order = nx.dfs_preorder_nodes(trees[0].graph(), trees[0].root.id)
    order = [node for node in in_order if node in leaves]
    return [tree_from_graph(tree.graph(), tree.name, order) for tree in trees]


def _class_tree(
    leaves: Mapping[str, str], chosen: str | Path | Tree, synsets: Path | None, widths
) -> Tree:
    if isinstance(chosen, Tree):
        return tree_from_graph(chosen.graph(), chosen.name, list(leaves))
    if str(chosen) != WORDNET:
        return read_tree(Path(chosen), leaves, widths=widths)
    known = all(map(WNID.fullmatch, leaves)) or all(map(SYNSET.fullmatch, leaves))
    if known and synsets is None:
        return wordnet_tree(WORDNET, leaves, widths)
    synset_of, under = read_synsets(synsets, leaves) if synsets else ({}, {})
    looked_up = {leaf: name for leaf, name in leaves.items() if leaf not in under}
    try:
        synsets_of = synsets_by_name(
            looked_up.values(), {leaves[leaf]: synset for leaf, synset in synset_of.items()}
        )
    except TreeError as error:
        head, newline, senses = str(error).partition("\n")
        right = "say which by --synsets FILE, of lines `dog: dog.n.01`"
        raise TreeError(f"{head}; {right}{newline}{senses}") from None
    by_leaf = {leaf: synsets_of[name] for leaf, name in looked_up.items()}
    return wordnet_tree(WORDNET, leaves, widths, synsets=by_leaf, under=under)


def read_synsets(path: Path, leaves: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Read, by class of `leaves` (identifier to name), its synset or the synset of its parent.

    path: YAML, `class: synset`; or CSV, columns class, synset, and under: the parent of a class
    that has no synset. A class is written by its identifier or its name; other classes in the file
    are ignored. Raises TreeError for other content.
    """
    under = {}
    try:
        if path.suffix.lower() == ".csv":
            synset_of, under = set_synsets(path)
        else:
            synset_of = dict(yaml.safe_load(path.read_text(encoding="utf8")))
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise TreeError(
            f"{path}: no lines `class: synset`, nor a CSV of class, synset, under "
            f"({' '.join(str(error).split())})"
        ) from None
    return _by_leaf(synset_of, leaves), _by_leaf(under, leaves)


def _by_leaf(written: Mapping[str, str], leaves: Mapping[str, str]) -> dict[str, str]:
    chosen = {leaf: written.get(leaf) or written.get(name) for leaf, name in leaves.items()}
    return {leaf: str(synset) for leaf, synset in chosen.items() if synset}


def same_words(tree: Tree) -> list[str]:
    """List nodes of a level that have one name: no prompt tells them apart."""
    counts = Counter(
        (node.name, level) for level, nodes in enumerate(tree.levels) for node in nodes
    )
    return [f"{name} (level {level})" for (name, level), count in counts.items() if count > 1]


@dataclass
class Folder:
    """A `data.Dataset` that is only measured on. splits: by name, one of `data.SPLITS`."""

    name: str
    leaves: tuple[Leaf, ...]
    splits: Mapping[str, ImageSet]
    unreadable: Sequence[str]  # files that cannot be read
    credit: str = ""

    def images(self, split: str) -> ImageSet:
        return self.splits[split]

    def batch(self, *_, **__):
        raise HierclipError(f"{self.name}: images of an audit are not trained on")


def image_source(folder: Path) -> Source:
    """Find the images of `folder`: in its class folders, or in those of its folder `test` or `val`.

    Raises HierclipError for a folder that does not exist, fewer than two classes, a class without
    an image, and two classes of one name.
    """
    _refuse(
        {
            f"{folder}: no such folder; give one with a folder of images for each class": (
                not folder.is_dir()
            )
        }
    )
    folders = [place for place in (folder / "test", folder / "val", folder) if place.is_dir()]
    source = class_folders(folders[0])
    empty = [c for c, rows in zip(source.classes, by_class(source), strict=True) if not rows]
    words = Counter(source.classes.values())
    twins = [name for name, word in source.classes.items() if words[word] > 1]
    _refuse(
        {
            f"{folder}: one class only ({', '.join(words)}); there must be two or more to tell "
            "apart": len(source.classes) < 2,
            f"{folder}: no images in class folder {', '.join(empty[:5])}; put some there or "
            "remove it": empty,
            f"{folder}: {', '.join(twins[:5])} have one name; give each its own in classes.csv "
            "(id, name)": twins,
        }
    )
    return source


def read_folder(folder: Path, size: int, limit: int | None, path: Path) -> Folder:
    """Read the first `limit` readable images of each class, or all, as squares of `size` pixels.

    The squares are written to the file `path` and read from it when they are needed. They are the
    split "test". Split "val", which chooses the reading, is the next image of each class; where no
    class has one, it is the split "test" itself. Unreadable images are left out.
    Raises HierclipError as `image_source` does, and for a class without a readable image.
    """
    source = image_source(folder)
    count = limit or len(source.labels)
    left = by_class(source)
    labels: list[int] = []
    unreadable: list[str] = []
    with path.open("wb") as file:
        tried = [rows[: count + 1] for rows in left]
        while any(tried):
            selection = source.take(list(chain(*tried)))
            written = write_squares(selection, size, folder.resolve().name, unreadable, file)
            labels += [selection.labels[row] for row in written]
            left = [rows[len(gone) :] for rows, gone in zip(left, tried, strict=True)]
            tried = [rows[: count + 1 - labels.count(k)] for k, rows in enumerate(left)]
    by_label = by_class(replace(source, labels=labels))
    lost = [c for c, rows in zip(source.classes, by_label, strict=True) if not rows]
    if lost:
        raise HierclipError(
            f"{folder}: no image of class {', '.join(lost[:5])} can be read; "
            f"mend or remove {', '.join(unreadable[:5])}"
        )
    squares = StoredImages(path, (len(labels), 3, size, size))
    readable = ImageSet(squares, torch.tensor(labels))
    test = readable[torch.tensor(list(chain(*(rows[:count] for rows in by_label))))]
    rest = list(chain(*(rows[count:] for rows in by_label)))
    val = readable[torch.tensor(rest)] if rest else test
    leaves = tuple(Leaf(identifier, name, "seen") for identifier, name in source.classes.items())
    return Folder(_file_name(folder.resolve().name), leaves, {"test": test, "val": val}, unreadable)


def dataset_notes(trees: Sequence[Tree], dataset: Folder) -> list[str]:
    """List what a reader of the result should know about its images and trees."""
    more = f" and {len(dataset.unreadable) - 5} more" if len(dataset.unreadable) > 5 else ""
    alike = {tree.name: ", ".join(same_words(tree)) for tree in trees}
    notes = {f"tree {name}: no prompt tells apart {nodes}": nodes for name, nodes in alike.items()}
    notes |= {
        "the better reading is chosen on the audited images: there are no others": (
            dataset.splits["val"] is dataset.splits["test"]
        ),
        f"left out, as they cannot be read: {', '.join(dataset.unreadable[:5])}{more}": (
            dataset.unreadable
        ),
    }
    return [note for note, applies in notes.items() if applies]
