"""The level matrix: every level attacked, every level read, image by image."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hierclip.attacks import Aim, Budget, aims, besiege, frozen
from hierclip.data import Pictures
from hierclip.distributed import agreed, merged, rank, world
from hierclip.evaluate.outcomes import CLEAN, Outcomes, Readout, gather
from hierclip.model import Classifier
from hierclip.progress import progress, work_key

RANKED = 20  # leaves kept of a picture's ranking
AT_ONCE = 8  # batches of pictures that are held as floats at a time
NEAR = 0.6  # of its way to the boundary: what an attack brought less far, it hardly ever breaks in another try


def level_matrix(
    classifier: Classifier,
    pictures: Pictures,
    paths: Tensor,
    budget: Budget,
    *,
    seed: int,
    batch: int,
    more: Sequence[Aim] = (),
    prune: bool = True,
    kept: Path | None = None,
    what: str = "attack",
) -> Outcomes:
    """Attacks every level, through the objective of each reading, then the aims in `more`; reads every level after it.

    paths: (leaves, L + 1), the tree's; labels of the pictures are its rows. Each aim has random numbers of its own,
    drawn from `seed`, and its outcomes go to the file `kept` at once, if there is one, so that a run that was stopped
    goes on where it was; removing the file is the caller's.

    Nothing is attacked that is decided: a picture that is wrong already, or, with `prune`, one that was not even NEAR
    where an aim had to succeed before this one can (`Aim.needs`: a picture leaves a superclass only where its leaf
    falls), which is then read as that aim left it.
    An attack stops where its aim is wrong: A[a, e] off the diagonal says what an attack at a does in passing, not the
    worst that could be done at e; that is A[e, e].
    """
    labels = pictures.labels
    tensors = [labels, paths, *classifier.state_dict().values(), *classifier.text_points]
    todo = [*(aim for level in range(paths.shape[1]) for aim in aims(paths, level)), *more]
    own = [table for aim in todo for table in aim.own]
    settings = [pictures.fingerprint(), budget, prune, classifier.head, seed, batch]
    done = _Partial(kept, work_key(*settings, *tensors, *own))
    with frozen(classifier):
        readouts = {CLEAN: done.get(CLEAN, _read_clean, classifier, pictures, batch)}

        def outcome(k: int, aim: Aim) -> Readout:
            return _attack_open(classifier, pictures, aim, readouts, budget, (seed, k), batch, prune)

        for k, aim in enumerate(progress(todo, what) if kept else todo):
            readouts[aim.name] = done.get(aim.name, outcome, k, aim)
    return gather(readouts, paths.numpy(), labels.numpy())


def _attack_open(
    classifier, pictures: Pictures, aim: Aim, readouts: dict[str, Readout], budget, seed, batch: int, prune: bool
) -> Readout:
    """Attacks the pictures for which an aim is open, and reads them; the others are as the aim before left them."""
    needs = [readouts[need.name] for need in aim.needs] if prune else []
    out = {key: values.copy() for key, values in (needs[0] if needs else readouts[CLEAN]).items()}
    out["way"], open = np.zeros(len(pictures), dtype=np.float32), np.ones(len(pictures), dtype=bool)
    for need in needs:
        open &= need["way"] >= NEAR
    for rows in torch.from_numpy(np.flatnonzero(open)).split(AT_ONCE * batch) if open.any() else ():
        some = pictures[rows]
        moved, way = attacked(classifier, some.floats(), some.labels, aim, budget, seed, batch, rows)
        for key, values in {**_read(classifier, moved, batch), "way": way.float().numpy()}.items():
            out[key][rows.numpy()] = values
    return out


def fallen(aim: Aim, nodes: np.ndarray, labels: Tensor) -> Tensor:
    """(N,) bool: an aim is reached, by the nearest nodes (N, L + 1) of pictures of the leaves `labels`."""
    return aim.broken(torch.from_numpy(nodes).long(), labels)


def attacked(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    aim: Aim,
    budget: Budget,
    seed: int | Sequence[int],
    batch: int,
    names: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Images moved by the attack on an aim, and how far it brought them (N,): `Siege.way`. Batch by batch; on the CPU
    several at once, a thread each, and several processes take every so manieth.

    labels: (N,) leaves. names: (N,), what the images' random numbers go by; 0, 1 ... if None.
    """
    score, names = partial(classifier, levels=aim.sources), torch.arange(len(images)) if names is None else names

    def moved(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        own = [table[y].to(classifier.device) for table in aim.own]
        siege = besiege(score, x.to(classifier.device), own, budget, seed, z.tolist())
        return siege.best.cpu(), siege.way().cpu()

    # Two batches at least, for two cores; not as many as there are cores, whose number is to change nothing.
    batch = min(batch, -(-len(images) // 2))
    parts = list(zip(images.split(batch), labels.split(batch), names.split(batch), strict=True))
    mine = range(rank(), len(parts), world())
    with _one_thread_each(classifier.device) as workers:
        found = dict(zip(mine, workers.map(lambda k: moved(*parts[k]), mine), strict=True))
    moved_images, ways = zip(*merged(found), strict=True)
    return torch.cat(moved_images), torch.cat(ways)


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


def _read_clean(classifier: Classifier, pictures: Pictures, batch: int) -> Readout:
    parts = [_read(classifier, x, batch) for x in pictures.batches(batch)]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


@torch.no_grad()
def _read(classifier: Classifier, images: Tensor, batch: int) -> Readout:
    parts: dict[str, list[Tensor]] = {"nodes": [], "confidence": [], "ranked": []}
    for x in images.split(batch):
        logits = [level.cpu() for level in classifier(x.to(classifier.device))]
        nodes = torch.stack([level.argmax(1) for level in logits], dim=1)  # (n, L + 1)
        shares = [level.softmax(1).amax(1) for level in logits]
        ranked = logits[0].topk(min(RANKED, logits[0].shape[1]), dim=1).indices
        parts["nodes"].append(nodes.int())
        parts["confidence"].append(torch.stack(shares, dim=1))
        parts["ranked"].append(ranked.int())
    return {key: torch.cat(values).numpy() for key, values in parts.items()}


class _Partial:
    """Readouts kept in a file under one key; those of another key are forgotten."""

    def __init__(self, path: Path | None, key: str):
        self.path, self.arrays = path, agreed(self._read(path, key))

    @staticmethod
    def _read(path: Path | None, key: str) -> dict[str, np.ndarray]:
        if path and path.exists():
            with np.load(path) as kept:
                if str(kept["key"]) == key:
                    return dict(kept)
        return {"key": np.array(key)}

    def get(self, name: str, compute: Callable[..., Readout], *arguments) -> Readout:
        found = {key.partition("/")[2]: v for key, v in self.arrays.items() if key.startswith(f"{name}/")}
        if found:
            return found
        made = agreed(compute(*arguments))  # not each its own rounding
        self.arrays |= {f"{name}/{key}": values for key, values in made.items()}
        if self.path is not None and rank() == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_name(self.path.name + ".part.npz")
            np.savez(part, allow_pickle=False, **self.arrays)
            part.replace(self.path)
        return made
