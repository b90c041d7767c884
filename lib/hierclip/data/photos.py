"""Sets of photographs behind the interface of datasets: cut to squares, divided by a rule, kept as bytes."""

import json
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from hierclip.data.dataset import PARTS, Leaf, Pictures, step_seed
from hierclip.data.published import PUBLISHED, published
from hierclip.data.sources import DataError, Source, by_class, folder, imagenet, shards, tiny_imagenet
from hierclip.data.stored import StoredImages, stored_images
from hierclip.params import SPLITS, PhotoParams
from hierclip.progress import progress

T = TypeVar("T")
TRAIN = "train"
OWN: dict[str, tuple[str, Callable]] = {  # by name: the folder under the root, and what reads it
    "tiny-imagenet": ("tiny-imagenet-200", tiny_imagenet),
    "imagenet": ("imagenet", imagenet),
}
READERS: dict[str, Callable] = {"folder": folder, "shards": shards}
BATCH = 256  # pictures decoded at a time
# What Pillow and what it calls raise for damaged files, beside an OSError that has no number of the system's.
DAMAGED = (SyntaxError, ValueError, EOFError, LookupError, struct.error, zlib.error, Image.DecompressionBombError)


class Photos:
    """Photographs: `train` pictures to fine-tune on, `val` and `test` ones of every class.

    Of every class the first pictures by number: `train_per_class` and after them `val_per_class` of those to train on,
    `test_per_class` of those to test on. Where the publisher sets none apart, a class's pictures are first to test on,
    then for validation, then to train on; where test_per_class is null, all but `val_per_class` are to test on.
    """

    def __init__(self, params: PhotoParams, project: Path, prepared: Path):
        self.params, self.project, self.prepared, self.name = params, project, prepared, params.name
        self.credit = f"Photographs: {self.name}"
        self.leaves = self._leaves()
        self._ahead: dict[str, Future] = {}  # the batch of the next step, while it is made

    @cached_property
    def sources(self) -> dict[str, Source]:
        """Each part's pictures. Raises DataError where the set is not there."""
        return _divided(*self._published(), self.params)

    def _published(self) -> tuple[Source | None, Source]:
        p, root = self.params, self.project / self.params.root
        if p.name in PUBLISHED:
            return published(p.name, root, p.download)
        if p.name in OWN:
            place, read = OWN[p.name]
            return read(root / place, self.project)
        return READERS[p.layout](root / p.name, self.project)

    def _leaves(self) -> tuple[Leaf, ...]:
        """The classes; every `held_out_every`-th is held out of fine-tuning."""
        if self.prepared.exists():
            with safe_open(self.prepared, "pt") as file:
                classes = json.loads(file.metadata()["classes"])
        else:
            classes = self.sources["test"].classes
        every = self.params.held_out_every
        return tuple(
            Leaf(identifier, name, SPLITS[every is not None and (k + 1) % every == 0])
            for k, (identifier, name) in enumerate(classes.items())
        )

    def prepare(self) -> None:
        """Reads the pictures of every part once, and keeps them; those to train on not where they are streamed.

        A picture that cannot be read is left out and named in a warning; in strict data it is a DataError.
        """
        broken, tensors, size = [], {}, self.params.size
        self.prepared.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.prepared.parent) as work:
            for part, source in self.sources.items():
                path = Path(work, part)
                streamed = part == TRAIN and self.params.stream
                with path.open("wb") as file:
                    rows = write_squares(source, size, f"{self.name}, {part}", broken, None if streamed else file)
                tensors[f"{part}.labels"] = torch.tensor([source.labels[row] for row in rows], dtype=torch.int64)
                if streamed:
                    tensors[f"{part}.rows"] = torch.tensor(rows)
                else:  # mapped, so that saving reads them from the disk
                    images = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
                    tensors[f"{part}.images"] = images.view(-1, 3, size, size)
            self._report(broken)
            save_file(tensors, self.prepared, {"classes": json.dumps(self.sources["test"].classes)})
        self.__dict__.pop("tensors", None)

    def _report(self, broken: Sequence[str]) -> None:
        if not broken:
            return
        more = f" and {len(broken) - 10} more" if len(broken) > 10 else ""
        said = f"{self.name}: {len(broken)} pictures cannot be read: {', '.join(islice(broken, 10))}{more}"
        if self.params.strict:
            raise DataError(f"{said}; mend or remove them, or set data.strict: false to leave them out")
        warnings.warn(f"{said}; they are left out", stacklevel=3)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """What is prepared beside the images: the labels of every part, and the rows of those that are streamed."""
        if not self.prepared.exists():
            raise DataError(f"{self.prepared} is missing; run notebooks/10_data.ipynb or `dvc repro data`")
        with safe_open(self.prepared, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys() if not key.endswith("images")}  # noqa: SIM118

    def _images(self, part: str) -> StoredImages:
        images = stored_images(self.prepared, f"{part}.images")
        if images.shape[-1] != self.params.size:
            raise DataError(f"{self.prepared} has pictures of {images.shape[-1]} pixels; run `dvc repro data` again")
        return images

    def pictures(self, part: str) -> Pictures:
        if part not in PARTS:
            raise ValueError(f"no part {part!r}; known are {', '.join(PARTS)}")
        labels = self.tensors[f"{part}.labels"]
        return Pictures(self._images(part), labels)

    @cached_property
    def _rows(self) -> list[list[int]]:
        """By class, its pictures to train on. Raises DataError for a set without any."""
        labels = self.tensors[f"{TRAIN}.labels"]
        return [torch.nonzero(labels == k)[:, 0].tolist() for k in range(len(self.leaves))]

    def batch(self, places: Tensor, size: int, seed: int, step: int, own: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Make a batch; of streamed pictures the next step's too, in the background, for when it is asked for."""
        if not self.params.stream:
            return self._batch(places, size, seed, step, own)

        def key(k: int) -> str:
            return str((places.tolist(), size, seed, k, own))

        begun = self._ahead.pop(key(step), None)
        made = begun.result() if begun else self._batch(places, size, seed, step, own)
        self._ahead = {key(step + 1): in_background(partial(self._batch, places, size, seed, step + 1, own))}
        return made

    def _batch(self, places: Tensor, size: int, seed: int, step: int, own: slice) -> tuple[Tensor, Tensor]:
        if bare := [self.leaves[k].name for k in places.tolist() if not self._rows[k]]:
            raise DataError(f"{self.name}: no pictures to train on for {', '.join(bare[:5])}")
        generator = torch.Generator().manual_seed(step_seed(seed, step))
        labels = torch.randint(len(places), (size,), generator=generator)
        share = torch.rand(size, generator=generator).tolist()
        classes = [self._rows[int(places[label])] for label in labels]
        rows = [found[int(u * len(found))] for found, u in zip(classes, share, strict=True)][own]
        images = self._streamed(rows) if self.params.stream else self._images(TRAIN)[torch.tensor(rows)].read()
        moved = varied(images.float() / 255, generator, size, own)
        return moved.contiguous(memory_format=torch.channels_last), labels

    def _streamed(self, rows: Sequence[int]) -> Tensor:
        source, places = self.sources[TRAIN], self.tensors[f"{TRAIN}.rows"][rows].tolist()
        images = read_squares(source, self.params.size, places)
        if lost := [source.called(row) for row, image in zip(places, images, strict=True) if image is None]:
            raise DataError(f"{self.name}: {lost[0]} could be read once and cannot now; run `dvc repro data` again")
        return torch.stack(images)  # pyright: ignore


def _divided(train: Source | None, test: Source, params: PhotoParams) -> dict[str, Source]:
    """The rule of `Photos`."""
    most, val, tested = params.train_per_class, params.val_per_class, params.test_per_class
    pool = test if train is None else train
    shown, left = [rows[:tested] for rows in by_class(test)], by_class(pool)
    if train is None:
        if tested is None:
            shown = [rows[: max(1, len(rows) - val)] for rows in shown]
        left = [rows[len(mine) :] for mine, rows in zip(shown, left, strict=True)]
        chosen, rest = [rows[:val] for rows in left], [rows[val:][:most] for rows in left]
    else:
        counts = [min(len(rows) if most is None else most, max(0, len(rows) - val)) for rows in left]
        chosen = [rows[n : n + val] for n, rows in zip(counts, left, strict=True)]
        rest = [rows[:n] for n, rows in zip(counts, left, strict=True)]
    if empty := [name for name, rows in zip(test.classes.values(), shown, strict=True) if not rows]:
        raise DataError(f"{params.name}: no pictures to test on for {', '.join(empty[:5])}")
    flat = (sum(rows, []) for rows in (rest, chosen, shown))
    return {part: s.take(rows) for part, s, rows in zip((TRAIN, *PARTS), (pool, pool, test), flat, strict=True)}


def write_squares(source: Source, size: int, what: str, broken: list[str], file: BinaryIO | None) -> list[int]:
    """Write the images that can be read to `file`, if there is one, (3, size, size) bytes each; return their rows.

    broken: gets the names of the others.
    """
    rows, kept = range(len(source.labels)), []
    for start in progress(range(0, len(rows), BATCH), what):
        some = rows[start : start + BATCH]
        for row, image in zip(some, read_squares(source, size, some), strict=True):
            if image is None:
                broken.append(source.called(row))
                continue
            if file:
                file.write(image.contiguous().numpy().data)
            kept.append(row)
    return kept


def read_squares(source: Source, size: int, rows: Sequence[int]) -> list[Tensor | None]:
    """`read_square` of several pictures at once. What Pillow warns of, odd metadata, is passed over."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # for good: catch_warnings is not for several threads
    with ThreadPoolExecutor() as workers:
        return list(workers.map(partial(read_square, source, size), rows))


def in_background(call: Callable[[], T]) -> "Future[T]":
    """Begin a call in a thread of its own, which ends with it."""
    worker = ThreadPoolExecutor(1)
    future = worker.submit(call)
    worker.shutdown(wait=False)
    return future


def read_square(source: Source, size: int, row: int) -> Tensor | None:
    """The middle of a picture, its shorter side `size` pixels: (3, size, size) uint8; None where it is damaged.

    Raises DataError, naming the picture, where reading failed for another reason: a disk's, or a missing file.
    """
    try:
        with source.read(row) as image:
            square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    except Exception as error:
        if isinstance(error, DAMAGED) or (isinstance(error, OSError) and error.errno is None):
            return None
        said = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{source.called(row)}: not read, though it may be whole ({said}); try again") from error
    return torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)


def varied(images: Tensor, generator: torch.Generator, whole: int | None = None, own: slice = slice(None)) -> Tensor:
    """Each image (N, 3, s, s) moved by up to an eighth of its side, and mirrored half of the time.

    The images are the rows `own` of a batch of `whole`, for all of which numbers are drawn.
    """
    n, _, side, _ = images.shape
    whole = whole or n
    most = side // 8
    padded = F.pad(images, (most,) * 4, mode="reflect")
    top, left = torch.randint(2 * most + 1, (2, whole, 1), generator=generator)[:, own]
    rows, columns = top + torch.arange(side), left + torch.arange(side)
    mirrored = torch.rand(whole, 1, generator=generator)[own] < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    picked = torch.arange(n)[:, None, None]
    return padded.permute(0, 2, 3, 1)[picked, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
