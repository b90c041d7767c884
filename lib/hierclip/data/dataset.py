"""What every dataset offers: leaves, their class subsets, training images and fixed images to
measure.
"""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from hierclip.config import SUBSETS
from hierclip.errors import HierclipError
from hierclip.progress import differences

MADE = "made"  # a prepared file's entry of metadata, JSON: `PreparedDataset.inputs` and CONTENT
CONTENT = "content"
CHUNK = 256  # images read at a time for their fingerprint
SPLITS = ("val", "test")  # images that choices are made on, and images that results are made on


class DataError(HierclipError):
    """Raised when images are missing or unreadable, with what would be right."""


@dataclass(frozen=True)
class Leaf:
    id: str  # unique: a WordNet synset where there is one
    name: str  # the words of a prompt
    subset: str  # one of SUBSETS


@dataclass(frozen=True)
class StoredImages:
    """Images in a file. Indexing reads the selected ones; the memory map is closed after each read.

    So the memory in use does not grow with the number of images that have been read.
    """

    path: Path
    shape: Sequence[int]  # (N, 3, H, W), of uint8
    start: int = 0  # the first image's byte

    def __getitem__(self, rows: Tensor) -> Tensor:
        images = np.memmap(self.path, np.uint8, "r", self.start, tuple(self.shape))
        return torch.from_numpy(images[rows.numpy()])


def stored_images(path: Path, name: str) -> StoredImages:
    """Find the images of that name in a file of safetensors, whose header says where they start."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
    return StoredImages(path, entry["shape"], 8 + length + entry["data_offsets"][0])


@dataclass(frozen=True)
class ImageSet:
    """Labelled images. A selection of them reads and copies nothing until it is read.

    pixels: (M, 3, H, W), of which `rows` are selected: uint8, in memory or in a file; or in memory
    float32 in [0, 1].
    labels: (N,) int64, indices into the dataset's `leaves`.
    rows: (N,) int64, each image's row in `pixels`; None: all rows in order.
    """

    pixels: Tensor | StoredImages
    labels: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> "ImageSet":
        return ImageSet(self.pixels, self.labels[index], self._selected()[index])

    def _selected(self) -> Tensor:
        return torch.arange(len(self)) if self.rows is None else self.rows

    def read(self) -> Tensor:
        """Return the images in memory, (N, 3, H, W), in the type of `pixels`."""
        return self.pixels[self._selected()]

    def floats(self) -> Tensor:
        """Return the images as (N, 3, H, W) float32 in [0, 1], channels last in memory."""
        images = self.read()
        floats = images.to(torch.float32, memory_format=torch.channels_last)
        return floats / 255 if images.dtype == torch.uint8 else floats

    def fingerprint(self) -> str:
        """Return the SHA-256 of the images' bytes."""
        digest = hashlib.sha256()
        for rows in torch.arange(len(self)).split(CHUNK):
            digest.update(self[rows].read().flatten().numpy().data)
        return digest.hexdigest()

    def batches(self, size: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
        """Yield `floats` of `size` images at a time, on a device."""
        for rows in torch.arange(len(self)).split(size):
            yield self[rows].floats().to(device)

    def select_classes(self, classes: Tensor) -> "ImageSet":
        """Select the images of the leaves at the indices `classes`; their labels become positions
        in it.
        """
        position = torch.full((int(max(self.labels.max(), classes.max())) + 1,), -1)
        position[classes] = torch.arange(len(classes))
        labels = position[self.labels]
        return replace(self[labels >= 0], labels=labels[labels >= 0])

    def evenly_spaced(self, count: int) -> Tensor:
        """Return the indices of `count` evenly spaced images, or of all: (min(count, N),) int64."""
        return torch.linspace(0, len(self) - 1, min(count, len(self))).long()


class Dataset(Protocol):
    name: str
    leaves: tuple[Leaf, ...]
    credit: str  # a line to set under every figure that shows the images

    def batch(
        self, classes: Tensor, size: int, seed: int, step: int, rows: slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """Make `size` training images of the leaves at the indices `classes`; return them and their
        labels.

        Images: (size, 3, H, W) float32 in [0, 1], of which only the `rows` are made and
        returned. Labels: (size,) int64, of all rows, positions in `classes`. The same seed and step
        give the same batch, whatever was drawn before.
        """
        ...

    def images(self, split: str) -> ImageSet:
        """Return all images of a split, one of SPLITS."""
        ...


class PreparedDataset(Dataset):
    """A dataset that keeps its images in one file of safetensors, which notebook 10 writes."""

    def __init__(self, params: Any, project: Path, prepared: Path):
        self.params = params
        self.project = project
        self.prepared = prepared
        self.name = params.name

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the prepared file, mapped from it.

        Raises DataError where the file is missing or was made from something else.
        """
        changed = self.changed()
        if changed:
            raise DataError(
                f"{self.prepared} was made from another {', '.join(changed)}; "
                "run notebooks/10_data.ipynb or `dvc repro data` again"
            )
        return load_file(self.prepared)

    @abstractmethod
    def inputs(self) -> dict[str, str]:
        """Return a fingerprint of every choice and file that decides what is prepared, by name."""

    def provenance(self) -> dict[str, Any]:
        """Read what the prepared file was made from, and a hash of its tensors.

        Raises DataError where the file is missing.
        """
        if not self.prepared.exists():
            raise DataError(
                f"{self.prepared} is missing; run notebooks/10_data.ipynb or `dvc repro data`"
            )
        with safe_open(self.prepared, "pt") as file:
            return json.loads((file.metadata() or {}).get(MADE, "{}"))

    def changed(self) -> list[str]:
        """Name what differs from what the prepared file was made from."""
        return differences(self.inputs(), self.provenance())

    def images(self, split: str) -> ImageSet:
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; known are {', '.join(SPLITS)}")
        labels = self.tensors[f"{split}.labels"]  # first: refuses a missing or a changed file
        return ImageSet(stored_images(self.prepared, f"{split}.images"), labels)


def ids_of(dataset: Dataset, subset: str) -> list[str]:
    """Return the identifiers of the leaves of a class subset. Raises ValueError for an unknown
    one.
    """
    if subset not in SUBSETS:
        raise ValueError(f"no subset {subset!r}; known are {', '.join(SUBSETS)}")
    return [leaf.id for leaf in dataset.leaves if leaf.subset == subset]


def class_indices(dataset: Dataset, ids: tuple[str, ...]) -> Tensor:
    """Return each leaf's index in the dataset, (len(ids),) int64.

    Raises HierclipError for an unknown leaf.
    """
    place = {leaf.id: k for k, leaf in enumerate(dataset.leaves)}
    unknown = [i for i in ids if i not in place]
    if unknown:
        raise HierclipError(f"dataset {dataset.name} has no leaf {', '.join(unknown)}")
    return torch.tensor([place[i] for i in ids])


def step_seed(seed: int, step: int) -> int:
    """Return a seed for this seed and step alone; the odd number after it is free for another."""
    return 2 * (seed * 10**10 + step)
