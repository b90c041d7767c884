"""What every dataset offers: leaves, a split of them, pictures to train on and fixed pictures to measure on."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hierclip.data.stored import StoredImages
from hierclip.errors import HierclipError
from hierclip.params import SPLITS

CHUNK = 256  # images read at a time for their fingerprint
PARTS = ("val", "test")  # pictures that choices are made on, and pictures that results are made on


@dataclass(frozen=True)
class Leaf:
    id: str  # unique: a WordNet synset where there is one
    name: str  # the words of a prompt
    split: str  # one of SPLITS


@dataclass(frozen=True)
class Pictures:
    """images: (N, 3, H, W) uint8, in memory or in a file; labels: (N,) int64, places in the dataset's `leaves`."""

    images: Tensor | StoredImages
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def read(self) -> Tensor:
        """Return the images in memory, (N, 3, H, W) uint8."""
        return self.images.read() if isinstance(self.images, StoredImages) else self.images

    def floats(self) -> Tensor:
        """(N, 3, H, W) float32 in [0, 1], channels last in memory."""
        return self.read().to(torch.float32, memory_format=torch.channels_last).div_(255)  # one copy, no more

    def fingerprint(self) -> str:
        """Return the SHA-256 of the images' bytes."""
        digest = hashlib.sha256()
        for rows in torch.arange(len(self)).split(CHUNK):
            digest.update(self[rows].read().flatten().numpy().data)
        return digest.hexdigest()

    def batches(self, size: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
        """`floats` of `size` pictures after another, on a device: never of all at once."""
        for rows in torch.arange(len(self)).split(size):
            yield self[rows].floats().to(device)

    def of(self, places: Tensor) -> "Pictures":
        """The pictures of the leaves at `places`; labels become positions in it."""
        position = torch.full((int(max(self.labels.max(), places.max())) + 1,), -1)
        position[places] = torch.arange(len(places))
        kept = position[self.labels] >= 0
        return Pictures(self.images[kept], position[self.labels[kept]])

    def spread(self, count: int) -> Tensor:
        """The rows of `count` pictures evenly spaced over the set, or of all: (min(count, N),) int64."""
        return torch.linspace(0, len(self) - 1, min(count, len(self))).long()

    def __getitem__(self, rows: Tensor) -> "Pictures":
        return Pictures(self.images[rows], self.labels[rows])


class Dataset(Protocol):
    name: str
    leaves: tuple[Leaf, ...]
    credit: str  # a line to set under every figure that shows the pictures

    def batch(self, places: Tensor, size: int, seed: int, step: int, own: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Training pictures of the leaves at `places`: (size, 3, H, W) float32 in [0, 1], of which only the rows `own`
        are made, and the labels of all, positions in `places`. The same for the same seed and step, whatever was drawn
        before.
        """
        ...

    def pictures(self, part: str) -> Pictures:
        """All pictures of a part, one of PARTS."""
        ...


def ids_of(dataset: Dataset, split: str) -> list[str]:
    """The identifiers of a split's leaves. Raises ValueError, listing the known splits, for another."""
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; known are {', '.join(SPLITS)}")
    return [leaf.id for leaf in dataset.leaves if leaf.split == split]


def places_of(dataset: Dataset, ids: tuple[str, ...]) -> Tensor:
    """(len(ids),) int64: where each leaf stands in the dataset. Raises HierclipError for an unknown one."""
    place = {leaf.id: k for k, leaf in enumerate(dataset.leaves)}
    if unknown := [i for i in ids if i not in place]:
        raise HierclipError(f"dataset {dataset.name} has no leaf {', '.join(unknown)}")
    return torch.tensor([place[i] for i in ids])


def step_seed(seed: int, step: int) -> int:
    """A seed of its own for every seed and step; the odd number after it is free for a second generator."""
    return 2 * (seed * 10**10 + step)
