"""The level matrix: every level attacked, every level read, image by image."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from hierclip.attacks import AttackGoal, AttackState, Budget, aims, frozen, margin, run_attacks
from hierclip.data import Pictures
from hierclip.distributed import agreed, merged, rank, world
from hierclip.evaluate.outcomes import CLEAN, Outcomes, Readout, gather
from hierclip.model import Classifier
from hierclip.progress import cache_key, kept_under, progress

T = TypeVar("T")
RANKED = 20  # leaves kept of a picture's ranking
READ = ("nodes", "confidence", "ranked")  # what is kept of each picture in each condition
PRUNE_THRESHOLD = 0.75  # fraction to the boundary below which another goal hardly ever succeeds


def level_matrix(
    classifier: Classifier,
    pictures: Pictures,
    paths: Tensor,
    budget: Budget,
    *,
    seed: int,
    batch: int,
    more: Sequence[AttackGoal] = (),
    prune: bool = True,
    kept: Path | None = None,
    what: str = "attack",
) -> Outcomes:
    """Attacks every level, through the objective of each reading, then the aims in `more`; reads every level after it.

    paths: (leaves, L + 1), the tree's; labels of the pictures are its rows. Each aim has random numbers of its own,
    drawn from `seed`, and its outcomes go to the file `kept` at once, if there is one, so that a run that was stopped
    goes on where it was; removing the file is the caller's.

    Skip misclassified images. With `prune`, also skip images whose prerequisite attack (`AttackGoal.prerequisites`)
    covered less than PRUNE_THRESHOLD of the way to the boundary; they are read as that attack left them.
    An attack stops where its aim is wrong: A[a, e] off the diagonal says what an attack at a does in passing, not the
    worst that could be done at e; that is A[e, e].
    """
    labels = pictures.labels
    tensors = [labels, paths, *classifier.parameters(), *classifier.buffers()]  # of what is not saved too: the texts
    todo = [*(aim for level in range(paths.shape[1]) for aim in aims(paths, level)), *more]
    settings = [pictures.fingerprint(), budget, prune, PRUNE_THRESHOLD, classifier.head, seed, batch]
    settings += [[aim.name for aim in todo], [type(module).__name__ for module in classifier.modules()]]
    done = _Partial(kept, cache_key(*settings, *tensors) if kept else "")
    with frozen(classifier):
        clean = done.get(CLEAN, _read_clean, classifier, pictures, todo, batch)
        readouts: dict[str, Readout] = {CLEAN: {key: clean[key] for key in READ}}

        def outcome(k: int, aim: AttackGoal) -> Readout:
            return _attack_open(classifier, pictures, aim, readouts, clean[aim.name], budget, (seed, k), batch, prune)

        for k, aim in enumerate(progress(todo, what) if kept else todo):
            readouts[aim.name] = done.get(aim.name, outcome, k, aim)
    return gather(readouts, paths.numpy(), labels.numpy())


def _attack_open(
    classifier: Classifier,
    pictures: Pictures,
    aim: AttackGoal,
    readouts: Mapping[str, Readout],
    first: np.ndarray,
    budget: Budget,
    seed: Sequence[int],
    batch: int,
    prune: bool,
) -> Readout:
    """Attacks the pictures for which an aim is open, and reads them; the others are as the aim before left them.

    first: (N,), the clean margins.
    """
    needs = [readouts[need.name] for need in aim.prerequisites] if prune else []
    out = {key: values.copy() for key, values in (needs[0] if needs else readouts[CLEAN]).items()}
    out["way"], open = np.zeros(len(pictures), dtype=np.float32), np.ones(len(pictures), dtype=bool)
    for need in needs:
        open &= need["way"] >= PRUNE_THRESHOLD

    def attack(rows: Tensor) -> Readout:
        some, margins = pictures[rows], torch.from_numpy(first[rows.numpy()])
        state = attack_part(classifier, some.floats(), some.labels, aim, budget, seed, rows, margins)
        return {**read_logits(classifier(state.x_adv)), "way": state.fraction_to_boundary().float().cpu().numpy()}

    for rows, values in _in_parts(torch.from_numpy(np.flatnonzero(open)), batch, classifier.device, attack):
        for key in out:
            out[key][rows.numpy()] = values[key]
    return out


def fallen(aim: AttackGoal, nodes: np.ndarray, labels: Tensor) -> Tensor:
    """(N,) bool: an aim is reached, by the nearest nodes (N, L + 1) of pictures of the leaves `labels`."""
    return aim.is_reached(torch.from_numpy(nodes).long(), labels)


def attacked(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    aim: AttackGoal,
    budget: Budget,
    seed: int | Sequence[int],
    batch: int,
    names: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Images moved by the attack on an aim, and how far it brought them (N,): `AttackState.way`.

    labels: (N,) leaves. names: (N,), what the images' random numbers go by; 0, 1 ... if None.
    """
    names = torch.arange(len(images)) if names is None else names

    def moved(rows: Tensor) -> tuple[Tensor, Tensor]:
        state = attack_part(classifier, images[rows], labels[rows], aim, budget, seed, names[rows])
        return state.x_adv.cpu(), state.fraction_to_boundary().cpu()

    parts = _in_parts(torch.arange(len(images)), batch, classifier.device, moved)
    moved_images, ways = zip(*(found for _, found in parts), strict=True)
    return torch.cat(moved_images), torch.cat(ways)


def attack_part(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    aim: AttackGoal,
    budget: Budget,
    seed: int | Sequence[int],
    names: Tensor,
    first: Tensor | None = None,
) -> AttackState:
    """Attacks images (N, 3, H, W) of the leaves `labels` (N,) for an aim. names, first: as `run_attacks` takes them."""
    score, own = partial(classifier, levels=aim.levels), aim.masks(labels.to(classifier.device))
    return run_attacks(score, images.to(classifier.device), own, budget, seed, names.tolist(), first)


def _in_parts(rows: Tensor, batch: int, device: torch.device, work: Callable[[Tensor], T]) -> list[tuple[Tensor, T]]:
    """Does `work` on rows, at most `batch` of them at a time; gives each part of them with what came of it.

    On the CPU several parts are at work at once, a thread each: small batches leave little to share out within one.
    What comes out is the same however many cores there are. Of several processes each does every so manieth part, and
    what comes of it goes to all.
    """
    if (
        device.type == "cpu"
    ):  # two parts at least, for two cores; not as many as cores, whose number is to change nothing
        batch = max(1, min(batch, -(-len(rows) // 2)))
    parts = [*rows.split(batch)] if len(rows) else []
    mine, threads = range(rank(), len(parts), world()), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(threads if device.type == "cpu" else 1) as workers:
            found = dict(zip(mine, workers.map(lambda k: work(parts[k]), mine), strict=True))
    finally:
        torch.set_num_threads(threads)
    return list(zip(parts, merged(found), strict=True))


def _read_clean(classifier: Classifier, pictures: Pictures, todo: Sequence[AttackGoal], batch: int) -> Readout:
    """Reads the pictures as they are, and by aim its margins (N,), negative where it is reached."""

    @torch.no_grad()
    def read(rows: Tensor) -> Readout:
        some = pictures[rows]
        logits = classifier(some.floats().to(classifier.device))
        labels, out = some.labels.to(classifier.device), read_logits(logits)
        for aim in todo:
            pairs = zip(aim.levels, aim.masks(labels), strict=True)
            out[aim.name] = torch.stack([margin(logits[l], own) for l, own in pairs]).amax(0).cpu().numpy()
        return out

    parts = [found for _, found in _in_parts(torch.arange(len(pictures)), batch, classifier.device, read)]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


@torch.no_grad()
def read_logits(logits: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """What is kept of the logits (n, K_l) of every level: READ."""
    logits = [level.detach().cpu() for level in logits]
    nodes = torch.stack([level.argmax(1) for level in logits], dim=1)  # (n, L + 1)
    shares = torch.stack([level.softmax(1).amax(1) for level in logits], dim=1)
    ranked = logits[0].topk(min(RANKED, logits[0].shape[1]), dim=1).indices
    return {"nodes": nodes.int().numpy(), "confidence": shares.numpy(), "ranked": ranked.int().numpy()}


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file, np.load(file) as kept:  # of a damaged file np.load would leave it open
        return dict(kept)


class _Partial:
    """Readouts kept in a file under one key; those of another key are forgotten, and those of a damaged file."""

    def __init__(self, path: Path | None, key: str):
        found = kept_under(key, path, _arrays, "the attack") if path and rank() == 0 else None
        self.path, self.arrays = path, agreed(dict(found or {"key": np.array(key)}))

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
