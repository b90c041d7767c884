"""The level matrix: every level attacked, every level read, image by image."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.backends import cudnn

from hierclip.attacks import (
    AttackGoal,
    AttackState,
    Budget,
    Score,
    frozen,
    largest_margin,
    level_goals,
    run_attacks,
)
from hierclip.data import ImageSet
from hierclip.distributed import broadcast, merge_by_index, rank, world
from hierclip.errors import HierclipError
from hierclip.models import READINGS, Classifier
from hierclip.progress import cache_key, kept_under, progress, replacing

CLEAN = "clean"  # the condition without an attack
READ = ("nodes", "confidence", "ranked", "top_down")  # kept of each image in each condition
FRACTION = "fraction_to_boundary"  # moved by an attack, of each image
SAMPLE = 16  # images whose logits stand for a function
RANKED = 20  # leaves kept of an image's ranking
PRUNE_THRESHOLD = 0.75  # of the way to the boundary; below it, another goal is hardly ever reached
Readout = Mapping[str, np.ndarray]  # of one condition: READ, and FRACTION under an attack


@dataclass(frozen=True)
class Outcomes:
    """The predictions for N images in A conditions: clean, then under each attack in turn.

    conditions: (A,) "clean", or a goal's name such as "roll_up-2". paths: (leaves, L + 1), the
    tree's. labels: (N,) leaves. nodes: (A, N, L + 1), the nearest node of every level. confidence:
    (A, N, L + 1), its share of the softmax. ranked: (A, N, k), the k nearest leaves, best first.
    top_down: (A, N), the leaf that `top_down` finds.
    """

    conditions: np.ndarray
    paths: np.ndarray
    labels: np.ndarray
    nodes: np.ndarray
    confidence: np.ndarray
    ranked: np.ndarray
    top_down: np.ndarray

    @cached_property
    def right(self) -> dict[str, np.ndarray]:
        """Tell by reading, (A, N, L + 1) bool, where a level is predicted right in a condition."""
        truth = self.paths[self.labels]
        return {"direct": self.nodes == truth, "roll_up": self.paths[self.nodes[..., 0]] == truth}

    def under(self, condition: str) -> int:
        """Return the row of a condition. Raises ValueError for one that is not there."""
        return self.conditions.tolist().index(condition)

    @cached_property
    def clean(self) -> dict[str, np.ndarray]:
        """Tell by reading, (N, L + 1) bool, where a level is right without an attack."""
        return {reading: right[self.under(CLEAN)] for reading, right in self.right.items()}

    @cached_property
    def robust(self) -> dict[str, np.ndarray]:
        """Tell by reading, (L + 1, N, L + 1) bool, where a level is right under all its attacks.

        The attacked level comes first.
        """
        return self.robust_to([k for k in READINGS if f"{k}-1" in self.conditions] or READINGS)

    def robust_to(self, attacked: Sequence[str]) -> dict[str, np.ndarray]:
        """Return `robust` where only these readings are attacked; at the leaves all are one."""
        attacks = [[self.under("direct-0")]]
        for level in range(1, self.paths.shape[1]):
            attacks.append([self.under(f"{reading}-{level}") for reading in attacked])
        return {k: np.stack([right[a].all(0) for a in attacks]) for k, right in self.right.items()}

    def save(self, path: Path) -> None:
        """Write a file that `load` reads."""
        _save(path, {field.name: getattr(self, field.name) for field in fields(self)})

    @staticmethod
    def load(path: Path) -> "Outcomes":
        """Read a file. Raises TypeError where an earlier version left out an array, naming it."""
        return Outcomes(**_load(path))


def outcomes_path(root: Path, method: str, seed: int, subset: str, part: str = "test") -> Path:
    """Return the file of a model's outcomes on a subset."""
    name = subset if part == "test" else f"{subset}-{part}"
    return root / "data/attacks" / f"{method}-{seed}" / f"{name}.npz"


@dataclass
class LevelMatrix:
    """Attack a classifier goal by goal, and read every level of every image after each attack.

    paths: (leaves, L + 1), the tree's; labels of the images are its rows. readings: that are
    attacked at every level; the leaves' are one. more: goals beside them. kept: a folder to which
    the readout of each goal goes at once, so that a stopped run resumes; removing it is the
    caller's work. Each goal has random numbers of its own, drawn from `seed`.

    Images that are misclassified without an attack are skipped. With `prune`, images are also
    skipped whose prerequisite attack (`AttackGoal.prerequisites`) covered less than PRUNE_THRESHOLD
    of the way to the boundary; they are read as that attack left them. An attack stops where it
    reaches its goal: off the diagonal the matrix shows side effects of an attack on another level,
    not the worst that could be done to a level.
    """

    classifier: Classifier
    images: ImageSet
    paths: Tensor
    budget: Budget
    seed: int
    batch: int
    readings: Sequence[str] = READINGS
    more: Sequence[AttackGoal] = ()
    prune: bool = True
    kept: Path | None = None
    what: str = ""  # shown beside the progress
    readouts: dict[str, Readout] = field(default_factory=dict, init=False)

    @cached_property
    def goals(self) -> list[AttackGoal]:
        """List the goals in the order of attack."""
        by_level = [level_goals(self.paths, level) for level in range(self.paths.shape[1])]
        goals = [goal for goal in chain(*by_level) if not goal.level or goal.kind in self.readings]
        return [*goals, *self.more]

    @property
    def clean(self) -> Readout:
        """Read the clean images; the readout also has, by goal, their margins (N,)."""
        return self._resumed(CLEAN, self._read_clean)

    def attack(self, goal: AttackGoal) -> Readout:
        """Attack one of `goals`, or return what its attack did if it is known or on disk.

        The readout has READ, and FRACTION (N,): the share of the clean margin closed.
        """
        return self._resumed(goal.name, partial(self._attack, goal))

    def outcomes(self) -> Outcomes:
        """Attack the goals that are left; return the outcomes of all."""
        left = [goal for goal in self.goals if goal.name not in self.readouts]
        for goal in progress(left, self.what) if left and self.what else left:
            self.attack(goal)
        readouts = [self.clean, *(self.attack(goal) for goal in self.goals)]
        stacked = {key: np.stack([readout[key] for readout in readouts]) for key in READ}
        conditions = np.array([CLEAN, *(goal.name for goal in self.goals)])
        return Outcomes(conditions, self.paths.numpy(), self.images.labels.numpy(), **stacked)

    @cached_property
    def key(self) -> str:
        """Hash all that the readouts depend on, the weights and the texts among it."""
        names = [goal.name for goal in self.goals]
        modules = [type(module).__name__ for module in self.classifier.modules()]
        settings = self.budget, self.prune, PRUNE_THRESHOLD, self.seed, self.batch, names, modules
        images = self.images.fingerprint(), self.images.labels, self.paths
        outputs = [float(f"{value:.3g}") for value in self.sample_outputs()]
        tensors = [*self.classifier.parameters(), *self.classifier.buffers()]
        return cache_key(READ, settings, self.classifier.head, outputs, *images, *tensors)

    @torch.no_grad()
    def sample_outputs(self) -> list[float]:
        """Return a number for each of a few images, a mixture of its logits, of a wrapped model.

        They stand for what its weights do not show. None for other models, and for one whose
        numbers change from call to call.
        """
        if not getattr(self.classifier, "opaque", False):
            return []
        images = self.images[self.images.evenly_spaced(SAMPLE)].floats().to(self.classifier.device)
        surrogate = getattr(self.classifier, "surrogate", None)
        values = []
        for _ in range(2):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                logits = [*self.classifier(images), *(surrogate(images) if surrogate else ())]
            mixed = torch.cat([level.double().cpu() for level in logits], dim=1)
            values.append(mixed @ torch.cos(torch.arange(mixed.shape[1])).double())
        return values[0].tolist() if torch.allclose(*values, rtol=1e-4) else []

    def _resumed(self, name: str, compute: Callable[[], Readout]) -> Readout:
        """Return the readout of a condition: from memory, from the folder `kept`, or computed."""
        if name not in self.readouts:
            path = self.kept / f"{name}.npz" if self.kept and rank() == 0 else None
            readout = broadcast(kept_under(self.key, path, _load, "the attack") if path else None)
            if readout is None:
                with frozen(self.classifier), cudnn.flags(enabled=True, allow_tf32=False):
                    readout = broadcast(compute())  # processes round differently
                if path:
                    _save(path, {**readout, "key": np.array(self.key)})
            self.readouts[name] = readout
        return self.readouts[name]

    def _read_clean(self) -> Readout:
        @torch.no_grad()
        def read(rows: Tensor) -> dict[str, Tensor]:
            images = self.images[rows]
            logits = self.classifier(images.floats().to(self.classifier.device))
            labels = images.labels.to(self.classifier.device)
            out = read_logits(logits, self.paths, labels)
            for goal in self.goals:
                visible = [logits[level] for level in goal.levels]
                out[goal.name] = largest_margin(visible, goal.masks(labels)).cpu()
            return out

        readout = _in_parts(torch.arange(len(self.images)), self.batch, self.classifier, read)
        return {key: values.numpy() for key, values in readout.items()}

    def _attack(self, goal: AttackGoal) -> Readout:
        """Attack the images that are left to attack, and read them; copy the readout of others."""
        prerequisites = [self.attack(each) for each in goal.prerequisites] if self.prune else []
        start = prerequisites[0] if prerequisites else self.clean
        out = {key: start[key].copy() for key in READ}
        out[FRACTION] = np.zeros(len(self.images), dtype=np.float32)
        fractions = [np.full_like(out[FRACTION], np.inf), *(p[FRACTION] for p in prerequisites)]
        least_fraction = np.min(fractions, axis=0)
        rows = torch.from_numpy(np.flatnonzero(least_fraction >= PRUNE_THRESHOLD))
        seed = self.seed, [each.name for each in self.goals].index(goal.name)
        margins = torch.from_numpy(self.clean[goal.name])

        def attack(rows: Tensor) -> dict[str, Tensor]:
            images = self.images[rows]
            state = attack_part(
                self.classifier,
                images.floats(),
                images.labels,
                goal,
                self.budget,
                seed,
                rows,
                margins[rows],
            )
            if state.met_nan.any():
                raise HierclipError(
                    f"{goal.name}: the model gives logits that are no number (nan) on "
                    f"{int(state.met_nan.sum())} attacked images; no accuracy can be read from them"
                )
            return {
                **read_logits(self.classifier(state.x_adv), self.paths, images.labels),
                FRACTION: state.fraction_to_boundary().float().cpu(),
            }

        for key, values in _in_parts(rows, self.batch, self.classifier, attack).items():
            out[key][rows.numpy()] = values.numpy()
        return out


def attacked(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    goal: AttackGoal,
    budget: Budget,
    seed: int | Sequence[int],
    batch: int,
) -> tuple[Tensor, Tensor]:
    """Return attacked images, and the fraction of the way to the boundary that each moved, (N,).

    images: (N, 3, H, W). labels: (N,) leaves.
    """

    def attack(rows: Tensor) -> dict[str, Tensor]:
        state = attack_part(classifier, images[rows], labels[rows], goal, budget, seed, rows)
        return {"images": state.x_adv.cpu(), FRACTION: state.fraction_to_boundary().cpu()}

    results = _in_parts(torch.arange(len(images)), batch, classifier, attack)
    return results["images"], results[FRACTION]


def attack_part(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    goal: AttackGoal,
    budget: Budget,
    seed: int | Sequence[int],
    sample_ids: Tensor,
    clean_margin: Tensor | None = None,
) -> AttackState:
    """Attack images (N, 3, H, W) of the leaves `labels` (N,) at once.

    sample_ids, clean_margin: (N,), as in `run_attacks`.
    """
    device = classifier.device
    return run_attacks(
        partial(classifier, levels=goal.levels),
        images.to(device),
        goal.masks(labels.to(device)),
        budget,
        seed,
        sample_ids.tolist(),
        clean_margin,
        surrogate_score(classifier, goal),
    )


def surrogate_score(classifier: Classifier, goal: AttackGoal) -> Score | None:
    """Return the goal's logits as the surrogate gives them that a classifier may carry (BPDA).

    It is the attribute `surrogate`: called as the classifier is, but differentiable.
    """
    surrogate = getattr(classifier, "surrogate", None)
    return None if surrogate is None else partial(surrogate, levels=goal.levels)


def _in_parts(
    rows: Tensor, batch: int, classifier: Classifier, work: Callable[[Tensor], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Do `work` on at most `batch` rows at a time; return its results for all rows by key.

    On the CPU each thread works on a part of its own, because threads that share a small batch
    mostly wait. The result does not depend on their number. Several processes share the parts.
    """
    on_cpu = classifier.device.type == "cpu"
    if on_cpu:  # two parts at least, for two cores; the number of cores must not change results
        batch = max(1, min(batch, -(-len(rows) // 2)))
    parts = [*rows.split(batch)] if len(rows) else []
    numbers, threads = range(rank(), len(parts), world()), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(threads if on_cpu else 1) as workers:
            results = workers.map(work, [parts[number] for number in numbers])
            results = merge_by_index(dict(zip(numbers, results, strict=True)))
    finally:
        torch.set_num_threads(threads)
    return {key: torch.cat([part[key] for part in results]) for key in chain(*results[:1])}


@torch.no_grad()
def read_logits(logits: Sequence[Tensor], paths: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return READ of the logits (n, K_l) of every level of the tree of `paths` (leaves, L + 1).

    Of equal logits the node farthest from that of the true leaf `labels` (n,) is taken for the
    prediction: what cannot be told from a wrong class counts as wrong. Raises HierclipError for
    logits that are not finite.
    """
    logits, labels = [level.detach().cpu() for level in logits], labels.cpu()
    for level, scores in enumerate(logits):
        bad = scores[~scores.isfinite()]
        if len(bad):
            raise HierclipError(
                f"level {level}: the model gives {len(bad)} logits that are not finite, such as "
                f"{float(bad[0])}; no accuracy can be read from them"
            )
    wrong = paths[None] != paths[labels][:, None]  # (n, leaves, L + 1)
    ranked = _ranked(logits[0], wrong.sum(2))
    nodes = [ranked[:, 0]]
    for level, scores in enumerate(logits[1:], start=1):
        others = torch.arange(scores.shape[1]) != paths[labels, level][:, None]
        nodes.append(_ranked(scores, others.int())[:, 0])
    confidence = torch.stack([level.softmax(1).amax(1) for level in logits], dim=1)
    return {
        "nodes": torch.stack(nodes, dim=1).int(),  # (n, L + 1)
        "confidence": confidence,
        "ranked": ranked[:, :RANKED].int(),
        "top_down": top_down(logits, paths, labels).int(),
    }


def _ranked(scores: Tensor, wrong: Tensor) -> Tensor:
    """Rank columns by `scores` (n, K), the best first; equal ones by `wrong`, the worst first."""
    order = wrong.argsort(dim=1, descending=True, stable=True)
    by_score = scores.gather(1, order).argsort(dim=1, descending=True, stable=True)
    return order.gather(1, by_score)


def top_down(logits: Sequence[Tensor], paths: Tensor, labels: Tensor) -> Tensor:
    """Return (n,) the leaf that is reached from the root by the best child of each node in turn.

    logits: (n, K_l) by level. paths: (leaves, L + 1). labels: (n,), true leaves. Where the levels
    of several trees are listed, the leaf lies below every node chosen before. Source: Silla and
    Freitas, DMKD 2011.
    """
    below = torch.ones(len(logits[0]), len(paths), dtype=torch.bool)  # all nodes chosen
    for level in reversed(range(paths.shape[1])):
        nodes = paths[:, level]
        scores = logits[level][:, nodes].masked_fill(~below, -torch.inf)
        # The first leaf of the best child; of equal ones, of one that is not the true leaf's.
        best = _ranked(scores, (nodes != nodes[labels][:, None]).int())[:, 0]
        below &= nodes == nodes[best, None]
    return below.int().argmax(1)


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _load(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file, np.load(file) as arrays:  # np.load leaves a damaged file open
        return dict(arrays)
