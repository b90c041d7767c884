"""Datasets of photographs: cut to squares, divided by a rule, kept as bytes."""

import os
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor

from hierclip.config import PhotoParams
from hierclip.data.dataset import DataError, Leaf, PreparedDataset, step_seed, stored_images
from hierclip.data.sources import (
    CLASSES,
    LAYOUTS,
    SETS,
    Source,
    Sources,
    by_class,
    source_folder,
)
from hierclip.progress import fingerprint, progress

TRAIN = "train"
Cut = Callable[[Image.Image], Tensor]  # from an image in RGB to its pixels, (3, H, W) uint8
BATCH = 256  # images decoded at a time
# What Pillow raises for damaged files, besides an OSError without the system's error number.
DAMAGED = (
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
BITS, PHOTOMETRIC = 258, 262  # tags of TIFF; photometric 0: white is zero


class Photos(PreparedDataset):
    """Photographs: "train" images to fine-tune on, "val" and "test" ones of every class.

    A class's images are taken by number: of those to train on the first `train_per_class`, and
    after them `val_per_class` for validation; of those to test on the first `test_per_class`. Where
    the publisher sets none apart, a class's first images are to test on, the next for validation,
    the others to train on; if test_per_class is null, all but `val_per_class` are to test on.
    """

    def __init__(self, params: PhotoParams, project: Path, prepared: Path):
        super().__init__(params, project, prepared)
        self.credit = f"Photographs: {self.name}"
        self._ahead: dict[str, Future] = {}  # the batch of the next step, while it is made
        if prepared.exists() and not self.changed():
            classes = self.provenance()["classes"]
        else:
            classes = self.sources["test"].classes
        every = params.holdout_every
        self.leaves = tuple(
            Leaf(identifier, name, "unseen" if every and k % every == 0 else "seen")
            for k, (identifier, name) in enumerate(classes.items(), start=1)
        )

    @cached_property
    def sources(self) -> dict[str, Source]:
        """Each split's images. Raises DataError where the set is not there."""
        opener = SETS.get(self.name) or LAYOUTS[self.params.layout]
        return divided(opener(self.params, self.project), self.params)

    def inputs(self) -> dict[str, str]:
        choices = self.params.model_dump(exclude={"root", "download", "holdout_every", "strict"})
        inputs = {"params.yaml: data": fingerprint(choices)}
        folder = source_folder(self.params, self.project)
        if folder.exists():  # else the prepared file is enough
            inputs["set of photographs"] = listing(folder)
        return inputs

    @cached_property
    def _rows(self) -> list[list[int]]:
        """The rows of each class's images to train on."""
        labels = self.tensors[f"{TRAIN}.labels"]
        return [torch.nonzero(labels == k)[:, 0].tolist() for k in range(len(self.leaves))]

    def batch(
        self, classes: Tensor, size: int, seed: int, step: int, rows: slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """Make a batch. Of streamed images, decode the next step's in the background meanwhile."""
        if not self.params.stream:
            return self._batch(classes, size, seed, step, rows)
        request = (classes.tolist(), size, seed, rows)
        future = self._ahead.pop(f"{request} {step}", None)
        batch = future.result() if future else self._batch(classes, size, seed, step, rows)
        worker = ThreadPoolExecutor(1)
        following = worker.submit(self._batch, classes, size, seed, step + 1, rows)
        worker.shutdown(wait=False)  # its thread ends with the call
        self._ahead = {f"{request} {step + 1}": following}
        return batch

    def _batch(
        self, classes: Tensor, size: int, seed: int, step: int, rows: slice
    ) -> tuple[Tensor, Tensor]:
        bare = [self.leaves[k].name for k in classes.tolist() if not self._rows[k]]
        if bare:
            raise DataError(f"{self.name}: no images to train on for {', '.join(bare[:5])}")
        generator = torch.Generator().manual_seed(step_seed(seed, step))
        labels = torch.randint(len(classes), (size,), generator=generator)
        share = torch.rand(size, generator=generator).tolist()
        pools = [self._rows[k] for k in classes[labels].tolist()]
        drawn = [pool[int(u * len(pool))] for pool, u in zip(pools, share, strict=True)]
        images = varied(self._train_images(drawn[rows]).float() / 255, generator, size, rows)
        return images.contiguous(memory_format=torch.channels_last), labels

    def _train_images(self, rows: Sequence[int]) -> Tensor:
        if not self.params.stream:
            return stored_images(self.prepared, f"{TRAIN}.images")[torch.tensor(rows)]
        source = self.sources[TRAIN]
        stored = self.tensors[f"{TRAIN}.rows"][rows].tolist()
        images = read_images(source, square(self.params.size), stored)
        for row, image in zip(stored, images, strict=True):
            if isinstance(image, str):
                raise DataError(
                    f"{self.name}: {source.called(row)} could be read once and cannot now "
                    f"({image}); run `dvc repro data` again"
                )
        return torch.stack(images)  # pyright: ignore


def listing(folder: Path) -> str:
    """Hash the names, sizes and times of the files in a folder, and of classes.csv beside it."""
    states = []
    for file in [*sorted(folder.rglob("*")), folder.parent / CLASSES]:
        if file.is_file():
            state = file.stat()
            states.append((os.path.relpath(file, folder), state.st_size, state.st_mtime_ns))
    return fingerprint(states)


def divided(sources: Sources, params: PhotoParams) -> dict[str, Source]:
    """Divide a set's images into "train", "val" and "test" by the rule of `Photos`."""
    pool = sources[0]
    test = sources[-1]
    val = params.val_per_class
    rows: dict[str, list[int]] = {TRAIN: [], "val": [], "test": []}
    for left, tested in zip(by_class(pool), by_class(test), strict=True):
        if pool is test:
            tested = tested[: params.test_per_class or max(1, len(tested) - val)]
            chosen = left[len(tested) :][:val]
            trained = left[len(tested) + len(chosen) :][: params.train_per_class]
        else:
            tested = tested[: params.test_per_class]
            trained = left[: max(0, len(left) - val)][: params.train_per_class]
            chosen = left[len(trained) :][:val]
        for name, part in zip(rows, (trained, chosen, tested), strict=True):
            rows[name] += part
    splits = {
        TRAIN: pool.take(rows[TRAIN]),
        "val": pool.take(rows["val"]),
        "test": test.take(rows["test"]),
    }
    labels = set(splits["test"].labels)
    empty = [name for k, name in enumerate(test.classes.values()) if k not in labels]
    if empty:
        raise DataError(f"{params.name}: no images to test on for {', '.join(empty[:5])}")
    return splits


def write_images(
    source: Source, cut: Cut, what: str, unreadable: list[str], file: BinaryIO | None
) -> list[int]:
    """Write the readable images to `file`, if there is one, as the bytes that `cut` makes of them.

    Return their rows. unreadable: the other images are added to it, "name (what is wrong)".
    """
    rows = []
    for batch in progress(torch.arange(len(source.labels)).split(BATCH), what):
        images = read_images(source, cut, batch.tolist())
        for row, image in zip(batch.tolist(), images, strict=True):
            if isinstance(image, str):
                unreadable.append(f"{source.called(row)} ({image})")
                continue
            rows.append(row)
            if file:
                file.write(image.contiguous().numpy().data)
    return rows


def read_images(source: Source, cut: Cut, rows: Sequence[int]) -> list[Tensor | str]:
    """Read several images at once. Pillow's warnings, of odd metadata, are passed over."""
    # For good: catch_warnings is not for several threads.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with ThreadPoolExecutor() as workers:
        return list(workers.map(partial(read_image, source, cut), rows))


def read_image(source: Source, cut: Cut, row: int) -> Tensor | str:
    """Read an image as `cut` makes it of `to_rgb`'s; for a bad image return what is wrong with it.

    Raises DataError, which names the image, where reading failed for another reason: a disk's, or a
    missing file.
    """
    try:
        with source.read(row) as image:
            return cut(to_rgb(image))
    except DataError:
        raise
    except UnidentifiedImageError:
        return "no image that Pillow knows"
    except Exception as error:
        if isinstance(error, FileNotFoundError) and os.path.islink(error.filename):
            return "a broken link"
        problem = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, DAMAGED) or (isinstance(error, OSError) and error.errno is None):
            return problem
        raise DataError(
            f"{source.called(row)}: not read, though it may be whole ({problem}); try again"
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB, upright as its EXIF data say, with white behind what is transparent.

    Grey of up to 16 bits, and floats, keep their range: black is 0, white the most that the bits
    hold, or 1. Everything else is as Pillow converts it. Raises ValueError, which says what is
    wrong, for integers of 32 bits, whose range nobody knows, and floats outside [0, 1].
    """
    image.load()
    try:
        upright = ImageOps.exif_transpose(image)
    except DAMAGED:  # the pixels are whole: only the EXIF data are damaged
        upright = image
    if image.mode[0] in "IF":
        return _grey(np.asarray(upright), image).convert("RGB")
    if upright.has_transparency_data:
        # Not at once: of La, Pillow would drop the alpha.
        upright = upright.convert("LA" if upright.mode == "La" else "RGBA").convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    return upright.convert("RGB")


def _grey(values: np.ndarray, image: Image.Image) -> Image.Image:
    """Scale the values of an image of mode I;16, I or F to 8 bits."""
    tags = getattr(image, "tag_v2", {})
    white = 2 ** tags.get(BITS, (16,))[0] - 1 if image.mode != "F" else 1
    if image.format == "FITS" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError("integers whose range is not known; save it with 8 or 16 bits, as a PNG")
    if not ((values >= 0) & (values <= white)).all():  # NaN is neither
        raise ValueError(
            f"values from {values.min():g} to {values.max():g}; floats in [0, 1] are needed"
        )
    grey = np.round(255 * (values / white)).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == 0:
        grey = 255 - grey
    grey[values == image.info.get("transparency", -1)] = 255
    return Image.fromarray(grey)


def square(size: int) -> Cut:
    """Cut the middle of an image, its shorter side `size` pixels."""

    def cut(image: Image.Image) -> Tensor:
        whole = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        return pil_to_tensor(whole)

    return cut


def varied(
    images: Tensor, generator: torch.Generator, whole: int, rows: slice = slice(None)
) -> Tensor:
    """Move each image by up to an eighth of its side, and mirror it half of the time.

    images: (N, 3, s, s), `rows` of a batch of `whole`, for all of which numbers are drawn.
    """
    n, _, side, _ = images.shape
    reach = side // 8
    padded = F.pad(images, (reach,) * 4, mode="reflect").permute(0, 2, 3, 1)
    top, left = torch.randint(2 * reach + 1, (2, whole, 1), generator=generator)[:, rows]
    mirrored = torch.rand(whole, 1, generator=generator)[rows] < 0.5
    lines = top + torch.arange(side)
    columns = left + torch.arange(side)
    columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(n)[:, None, None]
    return padded[index, lines[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
