"""Where photographs come from: published sets, folders and shards as classes, labels and images."""

import os
import re
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize

import numpy as np
import pandas as pd
from PIL import Image
from torchvision import datasets
from torchvision.datasets.folder import default_loader

from hierclip.config import PhotoParams
from hierclip.data.dataset import DataError
from hierclip.errors import refuse
from hierclip.trees.tables import read_columns, visible

CLASSES = "classes.csv"  # beside a user's images: columns id (the class's folder) and name
SPLITS = (  # what folders of splits are called, in any case; the first of each kind is taken
    *("train", "training", "training_set"),
    *("test", "testing", "test_set", "val", "valid", "validation", "validation_set"),
)
JUNK = (  # what systems leave in folders, beside hidden files; in lower case
    *("__macosx", "__pycache__", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin"),
    *("recycler", "recycled", "system volume information", "lost+found", "network trash folder"),
    *("temporary items", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", CLASSES),
)
NO_IMAGES = ("BUFR", "GRIB", "HDF5", "MPEG")  # formats that Pillow knows but does not decode
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
    notes: Sequence[str] = ()  # what was left out

    def take(self, rows: Sequence[int]) -> "Source":
        """Select some of the images."""
        return replace(
            self,
            labels=[self.labels[row] for row in rows],
            read=lambda i: self.read(rows[i]),
            called=lambda i: self.called(rows[i]),
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


# Folders


@cache
def image_endings() -> frozenset[str]:
    """Return the endings, in lower case, of the images that the installed Pillow opens."""
    kinds = Image.registered_extensions()
    formats = Image.OPEN.keys() - {*NO_IMAGES}
    return frozenset({".mpo", *(ending for ending in kinds if kinds[ending] in formats)})


def is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in image_endings()


def listed(folder: str | Path) -> tuple[list[str], list[str]]:
    """List the folders and the files in a folder by name, without JUNK and what is hidden.

    Raises DataError for a folder that cannot be read, and for a broken link, if it is not called
    like an image.
    """
    entries = next(os.walk(folder), None)
    if entries is None:
        raise DataError(f"{folder}: the folder cannot be read; do you have the right to?")
    folders, files = (
        [os.path.join(folder, name) for name in sorted(names) if not is_junk(name)]
        for names in entries[1:]
    )
    dangling = [file for file in files if not (is_image(file) or os.path.exists(file))]
    if dangling:
        raise DataError(f"{dangling[0]}: a broken link; mend or remove it")
    return folders, files


def is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in JUNK


def folders_in(folder: Path) -> dict[str, Path]:
    """Find the folders in a folder by name; not links to it or to what it is in."""
    around = {folder.resolve(), *folder.resolve().parents}
    paths = map(Path, listed(folder)[0])
    return {path.name: path for path in paths if path.resolve() not in around}


def files_below(folder: Path) -> list[str]:
    """Find the files in a folder and below it, without JUNK.

    Links are followed, but no folder is entered twice, nor one that `folder` is in.
    """
    entered = {folder.resolve(), *folder.resolve().parents}
    files: list[str] = []
    left = [str(folder)]
    for path in left:
        folders, beside = listed(path)
        files += beside
        for inner in folders:
            real = Path(inner).resolve()
            if real not in entered:
                entered.add(real)
                left.append(inner)
    return sorted(files, key=os.path.split)


def split_folders(folder: Path) -> list[Path]:
    """Return the folders of images to train on, if there is one, and to test on.

    They are called as SPLITS are, and have class folders in them; where there are none, `folder`
    itself is to test on. A folder with images directly in it is a class, whatever it is called.
    Raises DataError where splits have different class folders, where images are beside splits, and
    where there is nothing to test on.
    """
    inside = folders_in(folder)
    within = {
        name: set(folders_in(path))
        for name, path in inside.items()
        if name.lower() in SPLITS and not any(map(is_image, listed(path)[1]))
    }
    splits = {name: classes for name, classes in within.items() if classes}
    if not splits:
        return [folder]
    others = [n for n in inside if n not in splits and any(map(is_image, files_below(inside[n])))]
    if others and sum(map(len, splits.values())) == 1:
        return [folder]
    parts = sorted(splits, key=lambda name: SPLITS.index(name.lower()))
    tests = [name for name in parts if not name.lower().startswith("train")]
    refuse(
        {
            f"{folder}: {', '.join(parts)} with class folders, beside {', '.join(others[:5])} with "
            "images: splits or classes? name the folder to read, or move what is no split": others,
            f"{folder}: class folders in {parts[0]} alone; put test beside it, or name it": (
                not tests
            ),
        },
        DataError,
    )
    same_classes(folder, splits)
    return [inside[name] for name in dict.fromkeys((parts[0], tests[0]))]


def same_classes(folder: Path, splits: Mapping[str, set[str]]) -> None:
    """Raise DataError, which names the difference, unless all splits have the same classes."""
    common = set.intersection(*splits.values())
    odd = {name: ", ".join(sorted(classes - common)[:5]) for name, classes in splits.items()}
    named = "; ".join(f"{name} has {classes}" for name, classes in odd.items() if classes)
    refuse(
        {
            f"{folder}: {named}; splits need the same class folders in each, so add what is "
            "missing, or name the folder to read": named
        },
        DataError,
    )


def class_folders(folder: Path, known: Mapping[str, str] | None = None) -> Source:
    """Read a folder of class folders, as torchvision's ImageFolder does, each class by number.

    known: names by WordNet id, by default ImageNet-1k's. A file classes.csv in the folder or beside
    it names them all instead. Raises DataError where there is no class folder, for a WordNet id
    without a name, and for a line of the file without its folder or a folder without its line.
    """
    folders = folders_in(folder) if folder.is_dir() else {}
    if not folders:
        raise DataError(
            f"{folder}: no class folders; "
            "put the images of each class into one, named after the class"
        )
    tables = [file for file in (folder / CLASSES, folder.parent / CLASSES) if file.exists()]
    ids = list(folders)
    classes = names_of(ids, tables[0]) if tables else {i: class_name(i, known) for i in ids}
    files: list[tuple[str, int]] = []
    others = [f"{file} in no class folder" for file in listed(folder)[1] if is_image(file)]
    for label, path in enumerate(folders.values()):
        inside = files_below(path)
        files += [(file, label) for file in inside if is_image(file)]
        others += [file for file in inside if not is_image(file)]
    return files_source(classes, files, others_line(folder, others))


def others_line(folder: Path, files: Sequence[str]) -> list[str]:
    """Describe files that are no images of a class by their endings, in a line if there are any."""
    counts = Counter(os.path.splitext(file)[1].lower() or "without an ending" for file in files)
    kinds = [f"{count} {kind}" for kind, count in sorted(counts.items())]
    return [f"{folder}: left out {', '.join(kinds)}"] if kinds else []


def files_source(
    classes: dict[str, str], files: Sequence[tuple[str, int]], notes: Sequence[str] = ()
) -> Source:
    """Make a source of files, each with its label, sorted by their numbers."""
    files = sorted(files, key=lambda file: number(Path(file[0])))
    labels = [label for _, label in files]
    return Source(classes, labels, lambda i: Image.open(files[i][0]), lambda i: files[i][0], notes)


def number(path: Path) -> tuple[int, str]:
    """Return what files are sorted by: the last number in the name, then the name."""
    numbers = re.findall(r"\d+", path.stem)
    return int(numbers[-1]) if numbers else -1, path.name


def given_names(file: Path) -> dict[str, str]:
    """Read classes' names by identifier, as text in Unicode's composed form (NFC), from a CSV.

    Raises HierclipError for what `read_columns` refuses, and a class without a name.
    """
    rows = read_columns(file, "id", "name")
    bare = ", ".join([repr(row["id"]) for row in rows if not row["name"]][:5])
    refuse({f"{file}: no name for {bare}; each class needs one": bare}, DataError)
    return {normalize("NFC", row["id"]): row["name"] for row in rows}


def names_of(ids: Sequence[str], file: Path) -> dict[str, str]:
    """Read the names of the class folders `ids`. Raises DataError where it names others."""
    names = given_names(file)
    folders = {normalize("NFC", identifier) for identifier in ids}
    odd = {
        "no folder for id": sorted(names.keys() - folders),
        "no line for folder": sorted(folders - names.keys()),
    }
    problem = "; ".join(
        f"{kind} {', '.join(map(visible, odd[kind][:5]))}" for kind in odd if odd[kind]
    )
    message = (
        f"{file}: every line needs its class folder and every folder its line; {problem} "
        "(an id is compared as text: 1 is not 001)"
    )
    refuse({message: problem}, DataError)
    return {identifier: names[normalize("NFC", identifier)] for identifier in ids}


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


def folder(params: PhotoParams, project: Path) -> Sources:
    """Read class folders: those of `split_folders`, or alone, all of them to test on."""
    base = project / params.root / params.name
    need(base, "put class folders there, or train/ and test/ with class folders in them")
    return [class_folders(part) for part in split_folders(base)]


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
    parts = {part: base / part for part in ("train", "val")}
    same_classes(base, {part: set(folders_in(path)) for part, path in parts.items()})
    return [class_folders(path) for path in parts.values()]


# Shards


def shards(params: PhotoParams, project: Path) -> Sources:
    """Read WebDataset shards, *.tar with KEY.jpg and KEY.cls, in `train` and `test` or all to test.

    KEY.cls holds the class's number: its row in classes.csv beside the shards. Raises DataError
    where shards, classes or a label are missing.
    """
    base = project / params.root / params.name
    parts = [base / part for part in ("train", "test") if (base / part).is_dir()]
    parts = parts if len(parts) == 2 else parts[-1:] or [base]
    return [shards_source(part, base, params.strict) for part in parts]


def shard_files(folder: Path) -> list[Path]:
    """Find the shards in a folder."""
    return sorted(path for path in folder.glob("*.tar") if not is_junk(path.name))


def shard_members(file: Path) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield the key, the ending and the entry of each file in a shard.

    Raises tarfile.ReadError for what is no tar or compressed, and where a tar is cut off, damaged,
    or followed by another one: tarfile reads as far as it can and does not say so.
    """
    with tarfile.open(file, "r:") as shard, file.open("rb") as stream:
        for member in shard:
            path = PurePosixPath(member.name)
            if member.offset_data + member.size > file.stat().st_size:
                raise tarfile.ReadError("cut off")
            if not member.isdir() and not any(map(is_junk, path.parts)):
                stem, _, ending = path.name.partition(".")
                yield f"{file}/{path.parent / stem}", f".{ending}".lower(), member
        stream.seek(shard.offset)
        end = stream.read(2 * tarfile.RECORDSIZE)  # a tar ends in zeros
    if not end or any(end):
        raise tarfile.ReadError("cut off" if not end else f"damaged at byte {shard.offset}")


def shards_source(folder: Path, base: Path, strict: bool = True) -> Source:
    """Find where each image begins in the shards of a folder, so that it can be read by itself.

    base: where classes.csv is. Raises DataError, which names and counts them, for damaged shards,
    labels that are no class's number, and keys without one image and one label, each a plain file;
    or, if not `strict`, warns of them and leaves them out.
    """
    what = "the classes, in the order of their numbers: columns id and name"
    classes = given_names(need(base / CLASSES, what))
    images: dict[str, tuple[Path, int, int]] = {}
    labels: dict[str, tuple[Path, int, int]] = {}
    others: list[str] = []
    wrong: dict[str, str] = {}  # what is wrong with a key or a shard
    for file in shard_files(folder):
        before = len(images)
        try:
            for key, ending, member in shard_members(file):
                entries = labels if ending == ".cls" else images
                if entries is images and ending not in image_endings():
                    others.append(member.name)
                elif key in entries or not member.isreg() or member.issparse():
                    wrong[key] = "keys with several images or labels, or a link for one"
                else:
                    entries[key] = file, member.offset_data, member.size
            if len(images) == before:
                wrong[str(file)] = "shards without an image"
        except tarfile.ReadError as error:
            name = f"{file} ({error}, after {len(images) - before} images)"
            wrong[name] = "shards that are damaged, compressed or no tar"
    numbers = {key: content(*place).strip() for key, place in labels.items()}
    for key in images | labels:
        if key not in labels:
            wrong.setdefault(key, "images without a label (KEY.cls)")
        elif key not in images:
            wrong.setdefault(key, "labels without an image")
        elif not numbers[key].isdigit() or int(numbers[key]) >= len(classes):
            wrong.setdefault(key, f"labels that are no class number below {len(classes)}")
    if wrong:
        counts = Counter(wrong.values())
        firsts = {kind: [n for n in wrong if wrong[n] == kind][:5] for kind in counts}
        problem = "; ".join(f"{counts[k]} {k}: {', '.join(firsts[k])}" for k in counts)
        if strict:
            raise DataError(
                f"{folder}: {problem}; mend that, or leave it out by a project's data.strict: false"
            )
        warnings.warn(f"{folder}: {problem}; left out", stacklevel=2)
    keys = [key for key in images if key not in wrong]
    message = f"{folder}: no images in shards; *.tar with KEY.jpg and KEY.cls are needed"
    refuse({message: not keys}, DataError)
    return Source(
        classes,
        [int(numbers[key]) for key in keys],
        lambda i: Image.open(BytesIO(content(*images[keys[i]]))),
        keys.__getitem__,
        others_line(folder, others),
    )


def content(file: Path, start: int, size: int) -> bytes:
    return np.fromfile(file, np.uint8, size, offset=start).tobytes()


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
    if getattr(images, "loader", None) is default_loader and images.transforms is None:
        images = copy(images)
        images.loader = Image.open  # the default one makes 16 bits black and white

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
