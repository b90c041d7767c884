"""Photographs as they lie on a disk: classes, each picture's class, and how to read one."""

import csv
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

from PIL import Image
from torchvision.datasets import ImageNet

from hierclip.errors import HierclipError

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
CLASSES = "classes.csv"  # of a folder of one's own: columns id (the class's folder) and name
TWINS = {"n04008634": "projectile", "n04355933": "sunglass"}  # beside a missile and sunglasses, in WordNet's words
TINY = "data/source/tiny-imagenet.csv"


class DataError(HierclipError):
    """Pictures that cannot be had, and what would be right."""


@dataclass(frozen=True)
class Source:
    """Some pictures of a set, those of a class in the order of their numbers."""

    classes: dict[str, str]  # identifier (a WordNet id where there is one) to name, in the order of the labels
    labels: Sequence[int]
    read: Callable[[int], Image.Image]
    called: Callable[[int], str]  # what a picture is called where it is broken

    def take(self, rows: Sequence[int]) -> "Source":
        """Some of its pictures."""
        labels = [self.labels[row] for row in rows]
        return Source(self.classes, labels, lambda i: self.read(rows[i]), lambda i: self.called(rows[i]))


def by_class(source: Source) -> list[list[int]]:
    """The rows of each class, in their order."""
    rows: list[list[int]] = [[] for _ in source.classes]
    for row, label in enumerate(source.labels):
        rows[label].append(row)
    return rows


def number(path: Path) -> tuple[int, str]:
    """What files are sorted by: the last number in the name, then the name."""
    found = re.findall(r"\d+", path.stem)
    return int(found[-1]) if found else -1, path.name


def files_source(classes: dict[str, str], files: Sequence[tuple[Path, int]]) -> Source:
    """Files, each with its label."""
    return Source(classes, [k for _, k in files], lambda i: Image.open(files[i][0]), lambda i: str(files[i][0]))


def class_folders(folder: Path, known: Mapping[str, str] | None = None, inner: str = "") -> Source:
    """A folder of class folders, which may keep their pictures in a folder `inner` of their own.

    known: names by WordNet id, by default ImageNet-1k's; a file classes.csv in the folder or beside it goes first.
    Raises DataError where there is no class folder, and no name for one that is called by a WordNet id.
    """
    places = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")) if folder.is_dir() else []
    if not places:
        raise DataError(f"{folder}: no class folders; put the pictures of each class into one, named after the class")
    names = _given_names(folder)
    classes = {p.name: names.get(p.name) or class_name(p.name, known) for p in places}
    files = [
        (file, k)
        for k, place in enumerate(places)
        for file in sorted((f for f in (place / inner).iterdir() if f.suffix.lower() in IMAGES), key=number)
    ]
    return files_source(classes, files)


def _given_names(folder: Path) -> dict[str, str]:
    for file in (folder / CLASSES, folder.parent / CLASSES):
        if file.exists():
            with file.open(encoding="utf8", newline="") as lines:
                rows = list(csv.DictReader(lines))
            if not rows or {"id", "name"} - set(rows[0]):
                raise DataError(f"{file}: columns id and name are needed")
            return {row["id"]: row["name"] for row in rows}
    return {}


def class_name(identifier: str, known: Mapping[str, str] | None) -> str:
    """Words for a class: for a WordNet id what it is known by, else the identifier's own, a synset's too (dog.n.01)."""
    if not re.fullmatch(r"n\d{8}", identifier):
        return re.sub(r"\.n\.\d\d$", "", identifier).replace("_", " ").strip()
    if (name := (imagenet_names() if known is None else known).get(identifier)) is None:
        raise DataError(f"no name is known for class {identifier}; give it one in a file {CLASSES} (id, name)")
    return name


@cache
def imagenet_names() -> dict[str, str]:
    """open_clip's names for ImageNet-1k's classes, by WordNet id; of two pairs of twins one is called otherwise."""
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data.imagenet_info import ImageNetInfo

    return dict(zip(ImageNetInfo().label_names(), IMAGENET_CLASSNAMES, strict=True)) | TWINS


def need(path: Path, what: str) -> Path:
    """The path itself. Raises DataError, saying what to put there, where there is nothing."""
    if not path.exists():
        raise DataError(f"{path} is missing; {what}")
    return path


def folder(base: Path, project: Path) -> tuple[Source | None, Source]:
    """Pictures to train on and to test on: folders `train` and `test` (or `val`) of class folders, or class folders
    alone, all of them to test on."""
    need(base, "put class folders there, or train/ and test/ with class folders in them")
    tests = [base / name for name in ("test", "val") if (base / name).is_dir()]
    test = class_folders(tests[0] if tests else base)
    if not (base / "train").is_dir():
        return None, test
    return _same_classes(class_folders(base / "train"), test, base)


def _same_classes(train: Source, test: Source, base: Path) -> tuple[Source, Source]:
    if odd := sorted(set(train.classes) ^ set(test.classes)):
        raise DataError(f"{base}: {', '.join(odd[:5])} is not in both parts; every class needs a folder in each")
    return train, test


def tiny_imagenet(base: Path, project: Path) -> tuple[Source, Source]:
    """Tiny-ImageNet as published; of its validation pictures those that are there."""
    need(base / "wnids.txt", "unpack tiny-imagenet-200.zip of cs231n.stanford.edu there")
    with (project / TINY).open(encoding="utf8", newline="") as rows:
        known = {row["wnid"]: row["name"] for row in csv.DictReader(rows)}
    train = class_folders(base / "train", known, "images")
    place = {wnid: k for k, wnid in enumerate(train.classes)}
    lines = need(base / "val/val_annotations.txt", "it says the class of every picture in val/images")
    given = [line.split("\t")[:2] for line in lines.read_text(encoding="utf8").splitlines()]
    files = [(base / "val/images" / file, place[wnid]) for file, wnid in given]
    there = sorted((f for f in files if f[0].exists()), key=lambda f: number(f[0]))
    return train, files_source(train.classes, there)


def imagenet(base: Path, project: Path) -> tuple[Source, Source]:
    """ImageNet-1k as class folders named by WordNet id in `train` and `val`, unpacked once where its archives are."""
    for part in ("train", "val"):
        if not (base / part).is_dir() and (base / f"ILSVRC2012_img_{part}.tar").exists():
            try:
                ImageNet(base, part)
            except (RuntimeError, OSError) as error:
                raise DataError(f"{base}: cannot unpack ILSVRC2012_img_{part}.tar; {error}") from None
        what = f"put ILSVRC2012_img_{part}.tar and ILSVRC2012_devkit_t12.tar.gz beside it, or a folder for each class"
        need(base / part, f"{what}, named by its WordNet id, into it")
    return _same_classes(class_folders(base / "train"), class_folders(base / "val"), base)


def shards(base: Path, project: Path) -> tuple[Source | None, Source]:
    """WebDataset shards: *.tar with KEY.jpg and KEY.cls (the class's number), in `train` and `test` or all to test on.

    Classes are the rows of classes.csv beside them. Raises DataError where shards, classes or a label are missing.
    """
    need(base / CLASSES, "the classes, in the order of their numbers: columns id and name")
    classes = _given_names(base)
    parts = [base / part for part in ("train", "test") if (base / part).is_dir()]
    found = [_indexed(sorted(part.glob("*.tar")), classes, part) for part in parts or [base]]
    return (found[0], found[1]) if len(found) == 2 else (None, found[-1])


def _indexed(files: Iterable[Path], classes: dict[str, str], where: Path) -> Source:
    """Where each picture begins in its shard: the shards are read through once, a picture later by itself."""
    places: dict[str, tuple[Path, int, int]] = {}
    labels: dict[str, int] = {}
    for file in files:
        with tarfile.open(file) as shard:
            for member in shard:
                ending = member.name.rpartition("/")[2].partition(".")[2]
                key = member.name.removeprefix("./").removesuffix(f".{ending}")
                if f".{ending.lower()}" in IMAGES:
                    places[f"{file}/{key}"] = file, member.offset_data, member.size
                elif ending == "cls" and (content := shard.extractfile(member)):
                    labels[f"{file}/{key}"] = int(content.read())
    if not places:
        raise DataError(f"{where}: no pictures in shards; *.tar with KEY.jpg and KEY.cls are needed")
    if odd := [key for key in places if not 0 <= labels.get(key, -1) < len(classes)]:
        raise DataError(f"{odd[0]}: no class number below {len(classes)} ({len(odd)} pictures); KEY.cls gives it")
    rows = list(places)

    def read(i: int) -> Image.Image:
        file, offset, size = places[rows[i]]
        with file.open("rb") as shard:
            shard.seek(offset)
            return Image.open(BytesIO(shard.read(size)))

    return Source(classes, [labels[row] for row in rows], read, rows.__getitem__)
