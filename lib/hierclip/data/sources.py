"""Where photographs come from: published sets, folders and shards as classes, labels and images."""

import csv
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize

import numpy as np
import pandas as pd
from PIL import Image
from torchvision import datasets
from torchvision.datasets.folder import default_loader, make_dataset

from hierclip.config import PhotoParams
from hierclip.data.dataset import DataError
from hierclip.data.pixels import open_rgb

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
CLASSES = "classes.csv"  # beside a user's images: columns id (the class's folder) and name
PUBLISHED_CLASSES = "data/source/classes.csv"  # columns set, id (torchvision's name) and name
TINY_CLASSES = "data/source/tiny-imagenet.csv"
TINY_FOLDER = "tiny-imagenet-200"
# ImageNet has two classes of one name twice. In WordNet's words these two differ from the others.
TWINS = {"n04008634": "projectile", "n04355933": "sunglass"}


@dataclass(frozen=True)
class Source:
    """Labelled images that are not read yet, those of a class in the order of their numbers."""

    classes: dict[str, str]  # identifier (a WordNet id where there is one) to name, by label
    labels: Sequence[int]
    read: Callable[[int], Image.Image]
    called: Callable[[int], str]  # what a message calls an image

    def take(self, rows: Sequence[int]) -> "Source":
        """Select some of the images."""
        labels = [self.labels[row] for row in rows]
        return Source(
            self.classes, labels, lambda i: self.read(rows[i]), lambda i: self.called(rows[i])
        )


Sources = list[Source]  # images to train on and images to test on, or those of an undivided set
Opener = Callable[[PhotoParams, Path], Sources]  # of a set in a project; DataError: it is not there


def by_class(source: Source) -> list[list[int]]:
    """Return the rows of each class, in order."""
    labels = np.asarray(source.labels)
    return [np.flatnonzero(labels == k).tolist() for k in range(len(source.classes))]


def need(path: Path, what: str) -> Path:
    """Return the path. Raises DataError, which says what to put there, where nothing is."""
    if not path.exists():
        raise DataError(f"{path} is missing; {what}")
    return path


# Class folders


def class_folders(folder: Path, known: Mapping[str, str] | None = None) -> Source:
    """Read a folder of class folders, as torchvision's ImageFolder does, each class by number.

    known: names by WordNet id, by default ImageNet-1k's. A file classes.csv in the folder or beside
    it names them all instead. Raises DataError where there is no class folder, for a WordNet id
    without a name, and for a line of the file without its folder or a folder without its line.
    """
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    ids = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    if not ids:
        raise DataError(
            f"{folder}: no class folders; "
            "put the images of each class into one, named after the class"
        )
    files = [file for file in (folder / CLASSES, folder.parent / CLASSES) if file.exists()]
    names = names_of(ids, files[0]) if files else {i: class_name(i, known) for i in ids}
    classes = {i: names[i] for i in ids}
    labels = {i: label for label, i in enumerate(ids)}
    return files_source(classes, make_dataset(folder, labels, IMAGES, allow_empty=True))


def files_source(classes: dict[str, str], files: Sequence[tuple[str, int]]) -> Source:
    """Make a source of files, each with its label, sorted by their numbers."""
    files = sorted(files, key=lambda file: number(Path(file[0])))
    labels = [label for _, label in files]
    return Source(classes, labels, lambda i: Image.open(files[i][0]), lambda i: files[i][0])


def number(path: Path) -> tuple[int, str]:
    """Return what files are sorted by: the last number in the name, then the name."""
    numbers = re.findall(r"\d+", path.stem)
    return int(numbers[-1]) if numbers else -1, path.name


def given_names(file: Path) -> dict[str, str]:
    """Read classes' names by identifier, as text in Unicode's composed form (NFC), from a CSV.

    Raises DataError for a file without columns id and name, a class without a name, and an
    identifier given twice.
    """
    try:
        rows = list(csv.DictReader(file.read_text(encoding="utf-8-sig").splitlines()))
    except UnicodeDecodeError:
        raise DataError(f"{file}: not in UTF-8; save it so") from None
    if not rows or {"id", "name"} - set(rows[0]):
        raise DataError(f"{file}: columns id and name are needed")
    bare = [row["id"] for row in rows if not (row["id"] and (row["name"] or "").strip())]
    if bare:
        raise DataError(
            f"{file}: no name for {', '.join(map(repr, bare[:5]))}; each class needs one"
        )
    ids = Counter(normalize("NFC", row["id"]) for row in rows)
    twice = [identifier for identifier, count in ids.items() if count > 1]
    if twice:
        raise DataError(f"{file}: id {', '.join(twice[:5])} stands twice; a class has one line")
    return {normalize("NFC", row["id"]): row["name"] for row in rows}


def names_of(ids: Sequence[str], file: Path) -> dict[str, str]:
    """Read the names of the class folders `ids`. Raises DataError where it names others."""
    names = given_names(file)
    folders = {normalize("NFC", identifier): identifier for identifier in ids}
    without = ", ".join(sorted(names.keys() - folders.keys())[:5])
    unnamed = ", ".join(sorted(folders.keys() - names.keys())[:5])
    if without or unnamed:
        raise DataError(
            f"{file}: every line needs its class folder and every folder its line; "
            + (f"no folder for id {without}" if without else "")
            + ("; " if without and unnamed else "")
            + (f"no line for folder {unnamed}" if unnamed else "")
            + " (an id is compared as text: 1 is not 001)"
        )
    return {folder: names[identifier] for identifier, folder in folders.items()}


def class_name(identifier: str, known: Mapping[str, str] | None) -> str:
    """Return a class's name: a WordNet id's in `known`, else the identifier's own words.

    A synset (dog.n.01) loses its number. known: None takes ImageNet-1k's names.
    """
    if not re.fullmatch(r"n\d{8}", identifier):
        return re.sub(r"\.n\.\d\d$", "", identifier).replace("_", " ").strip()
    names = imagenet_names() if known is None else known
    if identifier not in names:
        raise DataError(
            f"no name is known for class {identifier}; give it one in a file {CLASSES} (id, name)"
        )
    return names[identifier]


@cache
def imagenet_names() -> dict[str, str]:
    """Return open_clip's names of ImageNet-1k's classes by WordNet id, made unique."""
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data.imagenet_info import ImageNetInfo

    return dict(zip(ImageNetInfo().label_names(), IMAGENET_CLASSNAMES, strict=True)) | TWINS


def folder(params: PhotoParams, project: Path, tests: Sequence[str] = ("test", "val")) -> Sources:
    """Read class folders in `train` and the first of `tests`, or alone, all of them to test on."""
    base = project / params.root / params.name
    need(base, "put class folders there, or train/ and test/ with class folders in them")
    test = class_folders(next((base / n for n in tests if (base / n).is_dir()), base))
    if not (base / "train").is_dir():
        return [test]
    train = class_folders(base / "train")
    odd = sorted(set(train.classes) ^ set(test.classes))
    if odd:
        raise DataError(
            f"{base}: {', '.join(odd[:5])} is not in both parts; every class needs a folder in each"
        )
    return [train, test]


def tiny_imagenet(params: PhotoParams, project: Path) -> Sources:
    """Read Tiny-ImageNet as published; of its validation images those that are there."""
    base = project / params.root / TINY_FOLDER
    need(base / "wnids.txt", "unpack tiny-imagenet-200.zip of cs231n.stanford.edu there")
    known = pd.read_csv(project / TINY_CLASSES, index_col="wnid")["name"].to_dict()
    train = class_folders(base / "train", known)
    labels = {wnid: label for label, wnid in enumerate(train.classes)}
    file = need(base / "val/val_annotations.txt", "it says the class of every image in val/images")
    wnids = pd.read_csv(file, sep="\t", header=None, index_col=0)[1].to_dict()
    images = (base / "val/images").glob("*")
    files = [(str(image), labels[wnids[image.name]]) for image in images if image.name in wnids]
    return [train, files_source(train.classes, files)]


def imagenet(params: PhotoParams, project: Path) -> Sources:
    """Read ImageNet-1k's class folders `train` and `val`; unpack its archives where there are none.

    The folders are named by WordNet id.
    """
    base = project / params.root / params.name
    for part in ("train", "val"):
        archive = base / f"ILSVRC2012_img_{part}.tar"
        if archive.exists() and not (base / part).is_dir():
            try:
                datasets.ImageNet(base, part)
            except (RuntimeError, OSError) as error:
                raise DataError(f"{base}: cannot unpack {archive.name}; {error}") from None
        what = f"put {archive.name} and ILSVRC2012_devkit_t12.tar.gz beside it"
        need(base / part, f"{what}, or a folder for each class, named by its WordNet id, into it")
    return folder(params, project, ["val"])


# Shards


def shards(params: PhotoParams, project: Path) -> Sources:
    """Read WebDataset shards, *.tar with KEY.jpg and KEY.cls, in `train` and `test` or all to test.

    KEY.cls holds the class's number: its row in classes.csv beside the shards. Raises DataError
    where shards, classes or a label are missing.
    """
    base = project / params.root / params.name
    parts = [base / part for part in ("train", "test") if (base / part).is_dir()]
    return [
        shards_source(part, base) for part in (parts if len(parts) == 2 else parts[-1:] or [base])
    ]


def shards_source(folder: Path, base: Path) -> Source:
    """Find where each image begins in the shards of a folder, so that it can be read by itself.

    base: where classes.csv is.
    """
    what = "the classes, in the order of their numbers: columns id and name"
    classes = given_names(need(base / CLASSES, what))
    entries: dict[str, tuple[Path, int, int]] = {}
    labels: dict[str, int] = {}
    for file in sorted(folder.glob("*.tar")):
        with tarfile.open(file) as shard:
            for member in shard:
                path = PurePosixPath(member.name)
                stem, _, ending = path.name.partition(".")
                key = f"{file}/{path.parent / stem}"
                if f".{ending.lower()}" in IMAGES:
                    entries[key] = file, member.offset_data, member.size
                elif ending == "cls" and member.isfile():
                    labels[key] = int(shard.extractfile(member).read())  # pyright: ignore
    if not entries:
        raise DataError(f"{folder}: no images in shards; *.tar with KEY.jpg and KEY.cls are needed")
    keys = list(entries)
    odd = [key for key in keys if not 0 <= labels.get(key, -1) < len(classes)]
    if odd:
        raise DataError(
            f"{odd[0]}: no class number below {len(classes)} ({len(odd)} images); KEY.cls gives it"
        )

    def read(i: int) -> Image.Image:
        file, offset, size = entries[keys[i]]
        return Image.open(BytesIO(np.fromfile(file, np.uint8, size, offset=offset).tobytes()))

    return Source(classes, [labels[key] for key in keys], read, keys.__getitem__)


# Published sets through torchvision


@dataclass(frozen=True)
class Published:
    """How torchvision opens a set."""

    open: Callable[..., Any]
    folder: str  # under the root, where the publisher's files lie
    parts: Sequence[dict[str, Any]]  # arguments: to train on and to test on, or of an undivided set
    downloads: bool = True


UNDIVIDED = [{}]
TRUE_FALSE = [{"train": True}, {"train": False}]
TRAIN_TEST = [{"split": "train"}, {"split": "test"}]
TRAINVAL_TEST = [{"split": "trainval"}, {"split": "test"}]
PUBLISHED = {
    "cifar10": Published(datasets.CIFAR10, "cifar-10-batches-py", TRUE_FALSE),
    "cifar100": Published(datasets.CIFAR100, "cifar-100-python", TRUE_FALSE),
    "stl10": Published(datasets.STL10, "stl10_binary", TRAIN_TEST),
    "caltech101": Published(datasets.Caltech101, "caltech101", UNDIVIDED),
    "caltech256": Published(datasets.Caltech256, "caltech256", UNDIVIDED),
    "food101": Published(datasets.Food101, "food-101", TRAIN_TEST),
    "pets": Published(datasets.OxfordIIITPet, "oxford-iiit-pet", TRAINVAL_TEST),
    "flowers102": Published(datasets.Flowers102, "flowers-102", TRAIN_TEST),
    "aircraft": Published(datasets.FGVCAircraft, "fgvc-aircraft-2013b", TRAINVAL_TEST),
    "cars": Published(datasets.StanfordCars, "stanford_cars", TRAIN_TEST, downloads=False),
    "sun397": Published(datasets.SUN397, "SUN397", UNDIVIDED),
    "eurosat": Published(datasets.EuroSAT, "eurosat", UNDIVIDED),
    "dtd": Published(datasets.DTD, "dtd", TRAIN_TEST),
    "pcam": Published(datasets.PCAM, "pcam", TRAIN_TEST),
    "country211": Published(datasets.Country211, "country211", TRAIN_TEST),
}


def published(params: PhotoParams, project: Path) -> Sources:
    """Open a published set.

    Raises DataError, which says what to put where, for a set that is not there and that was not, or
    cannot be, downloaded.
    """
    entry = PUBLISHED[params.name]
    root = project / params.root
    settings = {"root": root, "download": params.download and entry.downloads}
    names = published_names(project, params.name)
    try:
        opened = [entry.open(**settings, **part) for part in entry.parts]
        return [dataset_source(images, params.name, names) for images in opened]
    except (RuntimeError, OSError) as error:
        right = f"put the publisher's files under {root / entry.folder}"
        if entry.downloads and not params.download:
            right = f"{right}, or set data.download: true"
        problem = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{params.name}: {problem} {right}") from error


def published_names(project: Path, name: str) -> dict[str, str]:
    """Read what prompts call the classes of a published set, by torchvision's names for them."""
    table = pd.read_csv(project / PUBLISHED_CLASSES, dtype=str, keep_default_na=False)
    return table[table["set"] == name].set_index("id")["name"].to_dict()


# Where torchvision keeps labels, which are had without reading an image, and classes.
LABELS = ("targets", "labels", "y", "_labels")
CLASS_LISTS = ("classes", "categories")


def dataset_source(
    images: Any, what: str, names: Mapping[str, str] | Sequence[str] | None = None
) -> Source:
    """Take the images of a dataset as torchvision's and Hugging Face's `datasets` are, unread.

    what: a message calls its images so. names: of the classes, by the dataset's words for them or
    in the order of the labels; None: those words. Images of a class whose name is empty, such as
    Caltech-256's clutter, are left out. Raises DataError where no list of classes is found, and
    where an image is none of Pillow's.
    """
    if getattr(images, "loader", None) is default_loader:  # 16 bits it makes black and white
        images = copy(images)
        images.loader = open_rgb
    features = getattr(images, "features", None)
    column, label = _columns(features, what) if features else (0, 1)
    if features:
        given, listed = images[label], features[label].names
    else:
        given = next((getattr(images, key) for key in LABELS if hasattr(images, key)), None)
        listed = next((getattr(images, key) for key in CLASS_LISTS if hasattr(images, key)), names)
    if given is None:  # of Cars and PCAM
        given = [item[label] for item in images]
    if listed is None:
        raise DataError(f"{what}: it does not list its classes; give them as classes=[...]")
    listed = getattr(images, "wnids", listed)  # ImageNet's classes are lists of words
    labels, classes = [int(label) for label in given], list(map(str, listed))
    if names is None and not all(isinstance(identifier, str | int) for identifier in listed):
        raise DataError(f"{what}: its classes are no words; give them as classes=[...]")
    if names is None:
        names = {identifier: class_name(identifier, None) for identifier in classes}
    elif not isinstance(names, Mapping):
        if len(names) != len(classes):
            raise DataError(f"{what}: {len(names)} names for {len(classes)} classes")
        names = dict(zip(classes, names, strict=True))
    odd = sorted(set(classes) - set(names))
    if odd:
        raise DataError(f"{what}: no name for class {', '.join(odd[:5])}")
    rows = [row for row, label in enumerate(labels) if names[classes[label]]]
    if what == "sun397":  # whose files torchvision takes as the disk lists them
        rows.sort(key=images._image_files.__getitem__)

    def read(row: int) -> Image.Image:
        image = images[row][column]
        if not isinstance(image, Image.Image):
            raise DataError(
                f"{what} {row}: a {type(image).__name__}; pictures of Pillow are needed, "
                "as a dataset gives them without a transform"
            )
        return image

    named = {identifier: names[identifier] for identifier in classes if names[identifier]}
    return Source(named, labels, read, lambda row: f"{what} {row}").take(rows)


def _columns(features: Mapping[str, Any], what: str) -> tuple[str, str]:
    """Find the columns of images and of labels in the features of a Hugging Face dataset."""
    images = [key for key, kind in features.items() if type(kind).__name__ == "Image"]
    labels = [key for key, kind in features.items() if hasattr(kind, "names")]
    if not images or not labels:
        raise DataError(
            f"{what}: no column of images, or none of class labels, among {', '.join(features)}"
        )
    return images[0], labels[0]


def source_folder(params: PhotoParams, project: Path) -> Path:
    """Return where the files of a set are."""
    name = PUBLISHED[params.name].folder if params.name in PUBLISHED else params.name
    return project / params.root / {"tiny-imagenet": TINY_FOLDER}.get(name, name)


SETS: dict[str, Opener] = {
    "tiny-imagenet": tiny_imagenet,
    "imagenet": imagenet,
    **dict.fromkeys(PUBLISHED, published),
}
LAYOUTS: dict[str, Opener] = {"folder": folder, "shards": shards}  # of a user's own images
