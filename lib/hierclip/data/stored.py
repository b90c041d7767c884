"""Images in a file, of which only those that are asked for are in memory."""

import json
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from hierclip.errors import HierclipError


@dataclass(frozen=True)
class StoredImages:
    """N images (3, H, W) uint8 of a file that holds one after another from the byte `start` on.

    rows: (N,) int64, the images' places in the file. An index selects rows and reads nothing; `read` reads.
    """

    path: Path
    size: tuple[int, ...]  # of one image: (3, H, W)
    rows: Tensor
    start: int = 0

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.rows), *self.size))

    def __getitem__(self, rows: Tensor) -> "StoredImages":
        return replace(self, rows=self.rows[rows])

    def read(self) -> Tensor:
        """Read the images, (N, 3, H, W) uint8. Raises HierclipError for a file that ends before one of them does."""
        images = torch.empty(self.shape, dtype=torch.uint8)
        length = prod(self.size)
        with self.path.open("rb") as file:
            for image, row in zip(images.flatten(1).numpy(), self.rows.tolist(), strict=True):
                file.seek(self.start + row * length)
                if file.readinto(image) < length:
                    raise HierclipError(f"{self.path} ends before its image {row} does; make it again")
        return images


def stored_images(path: Path, name: str) -> StoredImages:
    """Find the images of that name in a file of safetensors, whose header says where they start."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
    count, *size = entry["shape"]
    return StoredImages(path, tuple(size), torch.arange(count), 8 + length + entry["data_offsets"][0])
