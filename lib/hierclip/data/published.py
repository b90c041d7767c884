"""Published sets through torchvision: how each is opened, where it says the labels, what its classes are called."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from torchvision import datasets

from hierclip.data.sources import DataError, Source


def _plain(name: str) -> str:
    return name.replace("_", " ").strip()


def _without_number(name: str) -> str:
    """ "007.bat" and "104.homer-simpson" of Caltech-256, "t-shirt" as it is."""
    return re.sub(r"-(101|256)$", "", re.sub(r"^\d+\.", "", name)).replace("-", " ")


def _from_camels(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _scene(name: str) -> str:
    """ "apartment_building/outdoor" of SUN397 to "outdoor apartment building"."""
    return " ".join(_plain(part) for part in reversed(name.split("/")))


def _country(code: str) -> str:
    from babel import Locale

    return Locale("en").territories[code]


def _tissue(name: str) -> str:
    return {"0": "healthy lymph node tissue", "1": "lymph node tumor tissue"}[name]


Arguments = dict[str, Any]


@dataclass(frozen=True)
class Published:
    """parts: what torchvision's class is asked for to train on and to test on, or None where the set is not divided."""

    open: Callable[..., Any]
    parts: tuple[Arguments, Arguments] | None
    labels: str | Callable[[Any], Sequence[int]]  # torchvision's attribute, or what reads them
    folder: str  # under the root, where the publisher's files lie
    name: Callable[[str], str] = _plain
    classes: Callable[[Any], Sequence[str]] = attrgetter("classes")
    downloads: bool = True
    left_out: str = ""  # a class that is none
    paths: Callable[[Any], Sequence[Path]] | None = None  # to sort by, where torchvision takes files as they come


def _splits(train: str, test: str = "test") -> tuple[Arguments, Arguments]:
    return {"split": train}, {"split": test}


def _car_labels(found) -> Sequence[int]:
    return [label for _, label in found._samples]


def _pcam_labels(found) -> Sequence[int]:
    with found.h5py.File(found._base_folder / found._FILES[found._split]["targets"][0]) as file:
        return file["y"][:, 0, 0, 0].tolist()


_BOTH: tuple[Arguments, Arguments] = {"train": True}, {"train": False}
_CATEGORIES, _FILES = attrgetter("categories"), attrgetter("_image_files")
PUBLISHED: dict[str, Published] = {
    "cifar10": Published(datasets.CIFAR10, _BOTH, "targets", "cifar-10-batches-py"),
    "cifar100": Published(datasets.CIFAR100, _BOTH, "targets", "cifar-100-python"),
    "stl10": Published(datasets.STL10, _splits("train"), "labels", "stl10_binary"),
    "caltech101": Published(datasets.Caltech101, None, "y", "caltech101", classes=_CATEGORIES),
    "caltech256": Published(
        datasets.Caltech256, None, "y", "caltech256", _without_number, _CATEGORIES, left_out="257.clutter"
    ),
    "food101": Published(datasets.Food101, _splits("train"), "_labels", "food-101"),
    "pets": Published(datasets.OxfordIIITPet, _splits("trainval"), "_labels", "oxford-iiit-pet"),
    "flowers102": Published(datasets.Flowers102, _splits("train"), "_labels", "flowers-102"),
    "aircraft": Published(datasets.FGVCAircraft, _splits("trainval"), "_labels", "fgvc-aircraft-2013b"),
    "cars": Published(datasets.StanfordCars, _splits("train"), _car_labels, "stanford_cars", downloads=False),
    "sun397": Published(datasets.SUN397, None, "_labels", "SUN397", _scene, paths=_FILES),
    "eurosat": Published(datasets.EuroSAT, None, "targets", "eurosat", _from_camels),
    "dtd": Published(datasets.DTD, _splits("train"), "_labels", "dtd"),
    "pcam": Published(datasets.PCAM, _splits("train"), _pcam_labels, "pcam", _tissue, lambda _: ["0", "1"]),
    "country211": Published(datasets.Country211, _splits("train"), "targets", "country211", _country),
}


def published(name: str, root: Path, download: bool) -> tuple[Source | None, Source]:
    """A published set's pictures to train on, where the publisher sets some apart, and those to test on.

    Raises DataError, saying what to put where, for one that is not there and was not, or cannot be, downloaded.
    """
    entry = PUBLISHED[name]
    with _explained(name, entry, root, download):
        fetch = download and entry.downloads
        found = [_source(name, entry, entry.open(root, **asked, download=fetch)) for asked in entry.parts or ({},)]
        return (found[0] if entry.parts else None), found[-1]


@contextmanager
def _explained(name: str, entry: Published, root: Path, download: bool) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError) as error:
        there = f"put the publisher's files under {root / entry.folder}"
        hint = there if download or not entry.downloads else f"{there}, or set data.download: true"
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{name}: {said} {hint}") from error


def _source(name: str, entry: Published, found) -> Source:
    given = getattr(found, entry.labels) if isinstance(entry.labels, str) else entry.labels(found)
    classes, labels = [str(c) for c in entry.classes(found)], [int(label) for label in given]
    kept = [row for row, label in enumerate(labels) if not entry.left_out or classes[label] != entry.left_out]
    if entry.paths:
        kept.sort(key=entry.paths(found).__getitem__)
    names = {c: entry.name(c) for c in classes if c != entry.left_out}
    return Source(names, labels, lambda i: found[i][0], lambda i: f"{name} {i}").take(kept)
