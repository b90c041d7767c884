"""A folder of pictures by class, as it is audited: all of them, or the first of each class by number."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hierclip.data import DataError, Leaf, Pictures, Source, StoredImages, by_class, class_folders, write_squares


@dataclass
class Folder:
    """A dataset (`data.Dataset`) that is only measured on.

    parts: by name, one of `data.PARTS`. broken: the files that cannot be read.
    """

    name: str
    leaves: tuple[Leaf, ...]
    parts: Mapping[str, Pictures]
    broken: Sequence[str]
    credit: str = ""

    def pictures(self, part: str) -> Pictures:
        return self.parts[part]

    def batch(self, *_, **__):
        raise DataError(f"{self.name}: pictures of an audit are not trained on")


def picture_source(folder: Path) -> Source:
    """The pictures of `folder`: of its class folders, or of those in a folder `test` or `val` of it.

    Raises DataError for a folder that is not there, fewer than two classes, a class without a picture, and two
    classes of one name.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give one with a folder of pictures for each class")
    source = class_folders(next((place for n in ("test", "val") if (place := folder / n).is_dir()), folder))
    names = list(source.classes.values())
    if len(names) < 2:
        raise DataError(f"{folder}: one class only ({names[0]}); there must be two or more to tell apart")
    if empty := [c for c, rows in zip(source.classes, by_class(source), strict=True) if not rows]:
        raise DataError(f"{folder}: no pictures in class folder {', '.join(empty[:5])}; put some there or remove it")
    if twins := [c for c, name in source.classes.items() if names.count(name) > 1]:
        raise DataError(f"{folder}: {', '.join(twins[:5])} have one name; give each its own in classes.csv (id, name)")
    return source


def class_names(folder: Path) -> dict[str, str]:
    """By class folder, what the class is called in prompts. Raises DataError as `picture_source` does."""
    return picture_source(folder).classes


def read_folder(folder: Path, size: int, limit: int | None, path: Path) -> Folder:
    """The first `limit` pictures of each class that can be read, or all, cut to squares of `size` pixels: part "test".
    They are written to the file `path` and read from it when they are needed.

    Part "val", which chooses the reading, is the picture after them of each class, or where there is none of any, the
    same ones. A picture that cannot be read is left out.
    Raises DataError as `picture_source` does, and for a class of which no picture can be read.
    """
    source, broken = picture_source(folder), []
    left, name = by_class(source), folder.resolve().name
    labels: list[int] = []
    wanted = [limit or len(rows) for rows in left]
    with path.open("wb") as file:

        def write(rows: Sequence[int], what: str) -> list[int]:
            some = source.take(rows)
            return [some.labels[row] for row in write_squares(some, size, what, broken, file)]

        while any(tried := [rows[:count] for rows, count in zip(left, wanted, strict=True)]):
            found = write([row for rows in tried for row in rows], name)
            labels += found
            wanted = [count - found.count(k) for k, count in enumerate(wanted)]
            left = [rows[len(gone) :] for rows, gone in zip(left, tried, strict=True)]
        tested = len(labels)
        if beyond := [row for rows in left for row in rows[:1]]:
            labels += write(beyond, f"{name}, to choose the reading")
    images = StoredImages(path, (len(labels), 3, size, size))
    whole = Pictures(images, torch.tensor(labels, dtype=torch.int64))
    test = whole[whole.labels[:tested].argsort(stable=True)]  # class by class, those of each in their order
    val = whole[torch.arange(tested, len(labels))]
    if lost := [c for k, c in enumerate(source.classes) if k not in test.labels]:
        said = f"{folder}: no picture of class {', '.join(lost[:5])} can be read; mend or remove"
        raise DataError(f"{said} {', '.join(broken[:5])}")
    leaves = tuple(Leaf(identifier, words, "tuned") for identifier, words in source.classes.items())
    return Folder(re.sub(r"[^\w.-]+", "-", name), leaves, {"test": test, "val": val if len(val) else test}, broken)
