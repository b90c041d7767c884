"""The level matrix: every level attacked, every level read, image by image."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hierclip.attacks import Aim, Budget, aims, attack, frozen
from hierclip.data import Pictures
from hierclip.model import READINGS, Classifier, read
from hierclip.progress import progress, work_key


def outcomes_path(root: Path, method: str, seed: int, split: str) -> Path:
    """Where a model's outcomes on a split are kept."""
    return root / "data/attacks" / f"{method}-{seed}" / f"{split}.npz"


@dataclass(frozen=True)
class Outcomes:
    """Whether each of N images is read rightly, by reading.

    clean[reading]: (N, L + 1) bool, by evaluated level.
    robust[reading]: (L + 1, N, L + 1) bool, by attacked level first: right under everything that the attack at
    that level tried.
    """

    clean: dict[str, np.ndarray]
    robust: dict[str, np.ndarray]

    def take(self, rows: np.ndarray | slice, levels: list[int] | slice) -> "Outcomes":
        """Some of the images, and some of the levels in place of all, attacked and read."""
        return Outcomes(
            {reading: values[rows][:, levels] for reading, values in self.clean.items()},
            {reading: values[levels][:, rows][:, :, levels] for reading, values in self.robust.items()},
        )

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {f"clean_{k}": v for k, v in self.clean.items()} | {f"robust_{k}": v for k, v in self.robust.items()}
        np.savez_compressed(path, allow_pickle=False, **arrays)

    @staticmethod
    def load(path: Path) -> "Outcomes":
        with np.load(path) as arrays:
            return Outcomes(
                {reading: arrays[f"clean_{reading}"] for reading in READINGS},
                {reading: arrays[f"robust_{reading}"] for reading in READINGS},
            )


def level_matrix(
    classifier: Classifier,
    pictures: Pictures,
    paths: Tensor,
    budget: Budget,
    *,
    seed: int,
    batch: int,
    kept: Path | None = None,
    what: str = "attack",
) -> Outcomes:
    """Attacks every level, through the objective of each reading, and reads every level after it.

    paths: (leaves, L + 1), the tree's; labels of the pictures are its rows. Each aim has random numbers of its
    own, drawn from `seed`, and its outcomes go to the file `kept` at once, if there is one, so that a run that was
    stopped goes on where it was; removing the file is the caller's.

    An attack stops where its aim is wrong: a picture that is wrong already is left as it is, and the other levels
    are read on a perturbation no larger than it took. So A[a, e] off the diagonal says what an attack at a does in
    passing, not the worst that could be done at e; that is A[e, e].
    """
    images, nodes = pictures.floats(), paths[pictures.labels]
    tensors = [pictures.images, pictures.labels, paths, *classifier.state_dict().values(), *classifier.text_points]
    done = _Partial(kept, work_key(budget, classifier.head, seed, batch, *tensors))
    todo = [aim for level in range(paths.shape[1]) for aim in aims(paths, level)]

    def outcome(aim: Aim | None, seed: int) -> np.ndarray:
        moved = attacked(classifier, images, nodes, aim, budget, seed, batch) if aim else images
        return _right(classifier, moved, nodes, paths, batch)

    with frozen(classifier):
        clean = done.get("clean", outcome, None, 0)
        robust = {reading: np.ones((paths.shape[1], *clean[0].shape), dtype=bool) for reading in READINGS}
        for k, aim in enumerate(progress(todo, what) if kept else todo):
            right = done.get(f"{aim.level}_{aim.reading}", outcome, aim, 1000 * seed + k)
            for reading, values in zip(READINGS, right, strict=True):
                robust[reading][aim.level] &= values
    return Outcomes(dict(zip(READINGS, clean, strict=True)), robust)


def attacked(classifier, images: Tensor, nodes: Tensor, aim: Aim, budget: Budget, seed: int, batch: int) -> Tensor:
    """Batch by batch, each with random numbers of its own; on the CPU several at once, a thread each."""
    score = partial(classifier.score, level=aim.source)

    def moved(k: int, x: Tensor, y: Tensor) -> Tensor:
        own = aim.own[y[:, aim.level]].to(classifier.device)
        generator = torch.Generator().manual_seed(1000 * seed + k)
        return attack(score, x.to(classifier.device), own, budget, generator).cpu()

    batches = [(k, *pair) for k, pair in enumerate(_batches(images, nodes, batch))]
    with _one_thread_each(classifier.device) as workers:
        return torch.cat(list(workers.map(moved, *zip(*batches, strict=True))))


@contextmanager
def _one_thread_each(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """As many workers as torch has threads, of one thread each: small batches leave little to share out within one.

    What comes out is then the same however many cores there are. Elsewhere than on the CPU a single worker.
    """
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(threads if device.type == "cpu" else 1) as workers:
            yield workers
    finally:
        torch.set_num_threads(threads)


def _batches(images: Tensor, nodes: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(images.split(batch), nodes.split(batch), strict=True)


@torch.no_grad()
def _right(classifier: Classifier, images: Tensor, nodes: Tensor, paths: Tensor, batch: int) -> np.ndarray:
    """(readings, N, L + 1) bool."""
    rows = []
    for x, y in _batches(images, nodes, batch):
        readings = read([level.cpu() for level in classifier(x.to(classifier.device))], paths)
        rows.append(torch.stack([readings[reading] == y for reading in READINGS]))
    return torch.cat(rows, dim=1).numpy()


class _Partial:
    """Arrays kept in a file under one key; those of another key are forgotten."""

    def __init__(self, path: Path | None, key: str):
        self.path, self.arrays = path, {"key": np.array(key)}
        if path and path.exists():
            with np.load(path) as kept:
                if str(kept["key"]) == key:
                    self.arrays = dict(kept)

    def get(self, name: str, compute: Callable[..., np.ndarray], *arguments) -> np.ndarray:
        if name not in self.arrays:
            self.arrays[name] = compute(*arguments)
            if self.path is None:
                return self.arrays[name]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_name(self.path.name + ".part.npz")
            np.savez(part, allow_pickle=False, **self.arrays)
            part.replace(self.path)
        return self.arrays[name]
