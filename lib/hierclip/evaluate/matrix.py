"""The level matrix: every level attacked, every level read, image by image."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from torch import Tensor

from hierclip.attacks import AttackGoal, AttackState, Budget, aims, frozen, margin, run_attacks
from hierclip.data import Pictures
from hierclip.distributed import agreed, merged, rank, world
from hierclip.model import READINGS, Classifier
from hierclip.progress import cache_key, kept_under

T = TypeVar("T")
Readout = Mapping[str, np.ndarray]  # of one condition: nodes, confidence, ranked
READ = ("nodes", "confidence", "ranked")
RANKED = 20  # leaves kept of an image's ranking
CLEAN = "clean"
PRUNE_THRESHOLD = 0.75  # fraction to the boundary below which another goal hardly ever succeeds


@dataclass(frozen=True)
class Outcomes:
    """The readings of N images in A conditions: clean, then under each attack in turn.

    conditions: (A,) "clean", or a goal's name such as "roll_up-2". paths: (leaves, L + 1), the
    tree's. labels: (N,) leaves. nodes: (A, N, L + 1), the nearest node of every level. confidence:
    (A, N, L + 1), its softmax probability. ranked: (A, N, k), the k nearest leaves, best first.
    """

    conditions: np.ndarray
    paths: np.ndarray
    labels: np.ndarray
    nodes: np.ndarray
    confidence: np.ndarray
    ranked: np.ndarray

    @property
    def top(self) -> int:
        """The coarsest level, L."""
        return self.paths.shape[1] - 1

    @cached_property
    def right(self) -> dict[str, np.ndarray]:
        """By reading, (A, N, L + 1) bool: whether each level is predicted correctly."""
        truth = self.paths[self.labels]
        rolled_up = self.paths[self.nodes[..., 0]]
        return {"direct": self.nodes == truth, "roll_up": rolled_up == truth}

    def under(self, condition: str) -> int:
        """Return the index of a condition. Raises KeyError, listing the known ones, for another."""
        known = self.conditions.tolist()
        if condition not in known:
            raise KeyError(f"no condition {condition!r}; known are {', '.join(known)}")
        return known.index(condition)

    @cached_property
    def clean(self) -> dict[str, np.ndarray]:
        """By reading, (N, L + 1) bool."""
        return {reading: self.right[reading][self.under(CLEAN)] for reading in READINGS}

    @cached_property
    def robust(self) -> dict[str, np.ndarray]:
        """By reading, (L + 1, N, L + 1) bool by attacked level: right under both attacks on it."""
        attacks = [[self.under("direct-0")]]
        for level in range(1, self.top + 1):
            attacks.append([self.under(f"{kind}-{level}") for kind in READINGS])
        return {key: np.stack([self.right[key][a].all(0) for a in attacks]) for key in READINGS}

    def by_attack(self, reading: str) -> np.ndarray:
        """Return (L + 1, N, L + 1) bool by attacked level: right under that reading's attack."""
        names = ["direct-0", *(f"{reading}-{level}" for level in range(1, self.top + 1))]
        return np.stack([self.right[reading][self.under(name)] for name in names])

    def take(self, levels: list[int]) -> "Outcomes":
        """Return the outcomes of some of the levels alone, the leaves first."""
        names = {CLEAN: CLEAN}
        for k, level in enumerate(levels):
            for kind in READINGS:
                if f"{kind}-{level}" in self.conditions:
                    names[f"{kind}-{level}"] = f"{kind}-{k}"
        rows = [self.under(name) for name in names]
        return Outcomes(
            np.array(list(names.values())),
            self.paths[:, levels],
            self.labels,
            self.nodes[rows][:, :, levels],
            self.confidence[rows][:, :, levels],
            self.ranked[rows],
        )

    def save(self, path: Path) -> None:
        """Write the outcomes as compressed arrays; the file is never seen half written."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part.npz")
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez_compressed(part, allow_pickle=False, **arrays)
        part.replace(path)

    @staticmethod
    def load(path: Path | BinaryIO) -> "Outcomes":
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            return Outcomes(**{field.name: arrays[field.name] for field in fields(Outcomes)})


def gather(readouts: Mapping[str, Readout], paths: np.ndarray, labels: np.ndarray) -> Outcomes:
    """Stack the readouts of all conditions."""
    stacked = {key: np.stack([readout[key] for readout in readouts.values()]) for key in READ}
    return Outcomes(np.array(list(readouts)), paths, labels, **stacked)


class LevelMatrix:
    """Attacks every level through the objective of each reading, and reads every level after each.

    An attack stops where its goal is reached. So A[a, e] off the diagonal says what an attack at a
    does to level e in passing; the worst that can be done to e is A[e, e].

    Misclassified images are skipped. With `prune`, images are also skipped whose prerequisite
    attack (`AttackGoal.prerequisites`) covered less than PRUNE_THRESHOLD of the way to the
    boundary; they are read as that attack left them.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: Pictures,
        paths: Tensor,
        budget: Budget,
        *,
        seed: int,
        batch: int,
        more: Sequence[AttackGoal] = (),
        prune: bool = True,
        kept: Path | None = None,
    ):
        """Read the clean images.

        paths: (leaves, L + 1), the tree's; labels of the images are its rows. more: goals after
        those of the levels. kept: a file to which each goal's readout goes at once, from which the
        same matrix resumes; removing it is the caller's.
        """
        self.classifier, self.images, self.paths = classifier, images, paths
        self.budget, self.seed, self.batch, self.prune, self.path = budget, seed, batch, prune, kept
        self.goals = [goal for level in range(paths.shape[1]) for goal in aims(paths, level)]
        self.goals += more
        key = self._key() if kept else ""
        found = kept_under(key, kept, _arrays, "the attack") if kept and rank() == 0 else None
        self.arrays = agreed(dict(found or {"key": np.array(key)}))
        clean = self._get(CLEAN) or self._keep(CLEAN, self._read_clean())
        self.clean_margins = {goal.name: clean[goal.name] for goal in self.goals}
        self.readouts: dict[str, Readout] = {CLEAN: {key: clean[key] for key in READ}}

    def attack(self, goal: AttackGoal) -> Readout:
        """Return the readout of all images under the attack on one of `goals`, computed or kept.

        A goal comes after its prerequisites.
        """
        readout = self._get(goal.name) or self._keep(goal.name, self._attack(goal))
        self.readouts[goal.name] = readout
        return readout

    def outcomes(self) -> Outcomes:
        """Return the outcomes of the clean images and of the goals attacked so far."""
        return gather(self.readouts, self.paths.numpy(), self.images.labels.numpy())

    def _key(self) -> str:
        names = [goal.name for goal in self.goals]
        modules = [type(module).__name__ for module in self.classifier.modules()]
        settings = [self.images.fingerprint(), self.budget, self.prune, PRUNE_THRESHOLD]
        settings += [self.classifier.head, self.seed, self.batch, names, modules]
        weights = [*self.classifier.parameters(), *self.classifier.buffers()]  # texts too
        return cache_key(*settings, self.images.labels, self.paths, *weights)

    def _attack(self, goal: AttackGoal) -> Readout:
        before = [self.readouts[need.name] for need in goal.prerequisites] if self.prune else []
        start = before[0] if before else self.readouts[CLEAN]
        readout = {key: start[key].copy() for key in READ}
        readout["way"] = np.zeros(len(self.images), dtype=np.float32)
        open = np.ones(len(self.images), dtype=bool)
        for need in before:
            open &= need["way"] >= PRUNE_THRESHOLD
        clean_margins = self.clean_margins[goal.name]
        seed = (self.seed, self.goals.index(goal))

        def attack(rows: Tensor) -> Readout:
            some, margins = self.images[rows], torch.from_numpy(clean_margins[rows.numpy()])
            images, labels = some.floats(), some.labels
            state = attack_part(
                self.classifier, images, labels, goal, self.budget, seed, rows, margins
            )
            way = state.fraction_to_boundary().float().cpu().numpy()
            return {**read_logits(self.classifier(state.x_adv)), "way": way}

        rows = torch.from_numpy(np.flatnonzero(open))
        with frozen(self.classifier):
            for part, found in in_parts(rows, self.batch, self.classifier.device, attack):
                for key, values in readout.items():
                    values[part.numpy()] = found[key]
        return readout

    def _read_clean(self) -> Readout:
        """Read the clean images, and by goal their margins (N,), negative where it is reached."""

        @torch.no_grad()
        def read(rows: Tensor) -> Readout:
            some = self.images[rows]
            logits = self.classifier(some.floats().to(self.classifier.device))
            labels, readout = some.labels.to(self.classifier.device), read_logits(logits)
            for goal in self.goals:
                pairs = zip(goal.levels, goal.masks(labels), strict=True)
                margins = [margin(logits[level], mask) for level, mask in pairs]
                readout[goal.name] = torch.stack(margins).amax(0).cpu().numpy()
            return readout

        rows = torch.arange(len(self.images))
        with frozen(self.classifier):
            parts = in_parts(rows, self.batch, self.classifier.device, read)
        return {key: np.concatenate([part[key] for _, part in parts]) for key in parts[0][1]}

    def _get(self, name: str) -> dict[str, np.ndarray]:
        prefix = f"{name}/"
        kept = {key: values for key, values in self.arrays.items() if key.startswith(prefix)}
        return {key.removeprefix(prefix): values for key, values in kept.items()}

    def _keep(self, name: str, readout: Readout) -> Readout:
        readout = agreed(readout)  # processes may round differently
        self.arrays |= {f"{name}/{key}": values for key, values in readout.items()}
        if self.path is not None and rank() == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_name(self.path.name + ".part.npz")
            np.savez(part, allow_pickle=False, **self.arrays)
            part.replace(self.path)
        return readout


def level_matrix(*arguments, **settings) -> Outcomes:
    """Return the outcomes of a whole `LevelMatrix`, which takes the same arguments."""
    matrix = LevelMatrix(*arguments, **settings)
    for goal in matrix.goals:
        matrix.attack(goal)
    return matrix.outcomes()


def attacked(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    goal: AttackGoal,
    budget: Budget,
    seed: int | Sequence[int],
    batch: int,
) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, H, W) as the attack on a goal changes them, and their fraction to the
    boundary (N,). labels: (N,) leaves.
    """

    def attack(rows: Tensor) -> tuple[Tensor, Tensor]:
        state = attack_part(classifier, images[rows], labels[rows], goal, budget, seed, rows)
        return state.x_adv.cpu(), state.fraction_to_boundary().cpu()

    parts = in_parts(torch.arange(len(images)), batch, classifier.device, attack)
    x_adv, fractions = zip(*(found for _, found in parts), strict=True)
    return torch.cat(x_adv), torch.cat(fractions)


def attack_part(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    goal: AttackGoal,
    budget: Budget,
    seed: int | Sequence[int],
    sample_ids: Tensor,
    clean_margins: Tensor | None = None,
) -> AttackState:
    """Attack images (N, 3, H, W) of the leaves `labels` (N,) for a goal, all at once.

    sample_ids, clean_margins: (N,), as `run_attacks` takes them.
    """
    logits, masks = (
        partial(classifier, levels=goal.levels),
        goal.masks(labels.to(classifier.device)),
    )
    images = images.to(classifier.device)
    return run_attacks(logits, images, masks, budget, seed, sample_ids.tolist(), clean_margins)


def in_parts(
    rows: Tensor, batch: int, device: torch.device, work: Callable[[Tensor], T]
) -> list[tuple[Tensor, T]]:
    """Do `work` on rows, at most `batch` of them at a time; return each part with its result.

    On the CPU several parts are worked on at once, one thread each, because small batches use few
    threads well. Results are the same for any number of cores. Each of several processes works on
    every k-th part, and all get all results.
    """
    if device.type == "cpu":  # at least two parts, whatever the number of cores
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


@torch.no_grad()
def read_logits(logits: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """Return what is kept of the logits (n, K_l) of every level: READ."""
    logits = [level.detach().cpu() for level in logits]
    nodes = torch.stack([level.argmax(1) for level in logits], dim=1)  # (n, L + 1)
    confidence = torch.stack([level.softmax(1).amax(1) for level in logits], dim=1)
    ranked = logits[0].topk(min(RANKED, logits[0].shape[1]), dim=1).indices
    return {
        "nodes": nodes.int().numpy(),
        "confidence": confidence.numpy(),
        "ranked": ranked.int().numpy(),
    }


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file, np.load(file) as arrays:  # np.load leaves a damaged file open
        return dict(arrays)
