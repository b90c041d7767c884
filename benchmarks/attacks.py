"""Attacks beside the limit and the peers: PGD-10, the whole multi-level figure, the standard
suite.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import inf
from unittest.mock import patch

import numpy as np
import pyautoattack
import torch
import torchattacks
from torch import Tensor
from torch.nn import functional as F

from benchmarks.default import LevelLogits, Task, load_task
from benchmarks.measure import Row, interleaved, ratio, thread_counts, threads
from hierclip.attacks import STANDARD, Budget, budget_of, frozen, level_goals
from hierclip.evaluation import LevelMatrix, Outcomes, level_metrics, matrix as evaluate_matrix
from hierclip.evaluation.matrix import CLEAN, READ, attacked, read_logits
from hierclip.models import READINGS
from hierclip.models.backbone import ImageEncoder

STEPS = 10  # of PGD
PGD_IMAGES, PGD_ROUNDS = 256, 9
MATRIX_IMAGES, MATRIX_ROUNDS = 300, 2
SUITE_IMAGES, SUITE_ROUNDS = 96, 1  # minutes a round: on all threads only


def pgd() -> list[Row]:
    """Time PGD-10 on the leaves of the default's TeCoA, from images to a robust accuracy."""
    task = load_task(PGD_IMAGES)
    images, labels, eps = task.images.floats(), task.images.labels, task.params.attack.eps
    step = eps / 4
    logits = LevelLogits(task.classifier, task.paths)
    unfolded = ImageEncoder(task.model.backbone).train(False).requires_grad_(True)
    goal = level_goals(task.paths, 0)[0]
    budget = Budget(eps=eps, step=step, steps=STEPS, restarts=1, suite=("pgd_ce",), queries=0)
    peer = torchattacks.PGD(logits, eps=eps, alpha=step, steps=STEPS)

    def limit() -> None:
        """Only what must be done for a clean and a robust accuracy: two looks, and two passes for
        each step.
        """
        with torch.no_grad():
            logits(images)
        x = images.clone()
        for _ in range(STEPS):
            x.requires_grad_(True)
            (gradient,) = torch.autograd.grad(task.classifier.encoder(x).sum(), x)
            x = x.detach() + 0 * gradient
        with torch.no_grad():
            logits(x)

    def ours(stop_margin: float) -> None:
        attacked(
            task.classifier,
            images,
            labels,
            goal,
            replace(budget, stop_margin=stop_margin),
            0,
            PGD_IMAGES,
        )

    def theirs() -> None:
        with torch.no_grad():
            logits(images)
        moved = peer(images, labels)
        with torch.no_grad():
            logits(moved)

    def released() -> None:
        """The loop of TeCoA's released code: gradients of the weights are computed with those of
        the image.
        """
        texts = task.classifier.text_points[0]
        delta = torch.empty_like(images).uniform_(-eps, eps).requires_grad_(True)
        for _ in range(STEPS):
            loss = F.cross_entropy(
                task.classifier.head.logits(unit(unfolded(images + delta)), texts), labels
            )
            loss.backward()
            assert delta.grad is not None
            moved = (delta.data + step * delta.grad.sign()).clamp(-eps, eps)
            delta.data = (images + moved).clamp(0, 1) - images
            delta.grad.zero_()
        with torch.no_grad():
            unfolded(images)
            unfolded(images + delta)
        unfolded.zero_grad()

    ways = {
        "ours, never stopping": partial(ours, inf),
        "ours": partial(ours, 0.0),
        "torchattacks": theirs,
        "TeCoA's released loop": released,
        "limit": limit,
    }
    with frozen(task.classifier):
        return against(
            ways,
            "limit",
            PGD_ROUNDS,
            "pgd-10",
            {"ours": 1.03, "ours, never stopping": 1.03},
            describe(task),
        )


def unit(embeddings: Tensor) -> Tensor:
    """Scale embeddings (N, D) to length 1."""
    return F.normalize(embeddings, dim=-1)


def describe(task: Task) -> str:
    """Say what was measured on."""
    return f"TeCoA of the default, {len(task.images)} images, {255 * task.params.attack.eps:g}/255"


def against(
    ways: dict[str, Callable[[], object]],
    base: str,
    rounds: int,
    part: str,
    limits: dict[str, float],
    note: str,
    warm_up: int = 1,
    counts: Sequence[int] | None = None,
) -> list[Row]:
    """Time ways in turn; give every other way's time in units of the base's, on one thread and on
    all.
    """
    rows, note = [], f"{note}; {rounds} round{'s' if rounds > 1 else ''}"
    for count in counts or thread_counts():
        with threads(count):
            times = interleaved(ways, rounds, warm_up)
        for way in ways:
            if way != base:
                what = f"{way} / {base}"
                rows.append(
                    Row(
                        part,
                        what,
                        count,
                        ratio(times, way, base),
                        at_most=limits.get(way),
                        note=note,
                    )
                )
    return rows


def matrix() -> list[Row]:
    """Time the whole multi-level figure: every level attacked and read in both readings, one after
    the other.

    Beside ours: every attack on every image for all of its steps, with our attacks; and
    torchattacks' APGD with the cross-entropy, then with its DLR loss on what is not misclassified
    yet, level by level, as its users would.
    """
    task = load_task(MATRIX_IMAGES)
    budget = budget_of(task.params.attack)
    found: dict[str, Outcomes] = {}
    tries: list[tuple[int, int]] = []

    def ours(name: str, budget: Budget, prune: bool) -> None:
        settings = {"seed": 0, "batch": task.params.attack.batch, "prune": prune}
        found[name] = LevelMatrix(
            task.classifier, task.images, task.paths, budget, **settings
        ).outcomes()

    def theirs() -> None:
        found["torchattacks"] = torchattacks_matrix(task)

    ways = {
        "ours": partial(ours, "ours", budget, True),
        "ours, naive": partial(
            ours, "ours, naive", replace(budget, stop_margin=inf, prune=0.0), False
        ),
        "torchattacks": theirs,
    }
    with frozen(task.classifier):
        rows = against(
            ways, "torchattacks", MATRIX_ROUNDS, "matrix", {"ours": 0.4}, describe(task), warm_up=0
        )
        with count_tries(tries):
            ours("ours", budget, True)
    robust = {
        name: {r: level_metrics(o, r)["path_robust"] for r in READINGS} for name, o in found.items()
    }
    for reading in READINGS:
        difference = robust["ours"][reading] - robust["torchattacks"][reading]
        note = ", ".join(f"{name} {100 * values[reading]:.1f} %" for name, values in robust.items())
        rows.append(
            Row(
                "matrix",
                f"path-robust, {reading}: ours - torchattacks",
                None,
                difference,
                "",
                0.0,
                note=note,
            )
        )
    given = sum(count for count, _ in tries)
    skipped = 1 - given / ((2 * task.tree.max_level + 1) * len(task.images))
    far = sum(count for _, count in tries) / given
    note = "an earlier attack on the level below did not bring the image near"
    rows.append(
        Row("matrix", "share of images and goals that pruning skips", None, skipped, "", note=note)
    )
    note = "the first attack of the suite moved the image less than half of the way"
    rows.append(
        Row("matrix", "share of the others that get no second attack", None, far, "", note=note)
    )
    return rows


def torchattacks_matrix(task: Task) -> Outcomes:
    """Attack every level in both readings with torchattacks' APGDs, and read every level after each
    attack.
    """
    images, leaves = task.images.floats(), task.images.labels
    settings = task.params.attack
    readouts = {CLEAN: read_logits(task.classifier(images), task.paths, leaves)}
    for level in range(task.tree.max_level + 1):
        for reading in READINGS if level else ("direct",):
            logits = LevelLogits(task.classifier, task.paths, level, reading)
            labels = task.paths[leaves, level]
            parts = [
                torchattacks.APGD(logits, eps=settings.eps, steps=settings.steps, loss=loss)
                for loss in ("ce", "dlr")
            ]
            moved = torchattacks.MultiAttack(parts)(images, labels)
            with torch.no_grad():
                readouts[f"{reading}-{level}"] = read_logits(
                    task.classifier(moved), task.paths, leaves
                )
    stacked = {key: np.stack([readout[key] for readout in readouts.values()]) for key in READ}
    return Outcomes(
        np.array(list(readouts)), task.tree.paths, task.images.labels.numpy(), **stacked
    )


@contextmanager
def count_tries(counts: list[tuple[int, int]]) -> Iterator[None]:
    """Note inside how many images every attack is given, and how many of them the last of the suite
    is not given.
    """
    real = evaluate_matrix.attack_part

    def counting(classifier, images, *rest):
        state = real(classifier, images, *rest)
        counts.append((len(images), int(state.skipped.sum())))
        return state

    with patch.object(evaluate_matrix, "attack_part", counting):
        yield


def suite() -> list[Row]:
    """Time the standard suite on the leaves: APGD-CE, targeted APGD-DLR, targeted FAB, Square; 100
    steps, 5,000 queries.
    """
    task = load_task(SUITE_IMAGES)
    images, labels, eps = task.images.floats(), task.images.labels, task.params.attack.eps
    logits = LevelLogits(task.classifier, task.paths)
    goal = level_goals(task.paths, 0)[0]
    budget = Budget(eps=eps, step=eps, steps=100, restarts=1, suite=STANDARD, queries=5000)
    robust: dict[str, float] = {}

    def ours() -> None:
        moved, _ = attacked(task.classifier, images, labels, goal, budget, 0, SUITE_IMAGES)
        robust["ours"] = accuracy(logits, moved, labels)

    def theirs() -> None:
        judge = pyautoattack.AutoAttack(logits, norm="Linf", eps=eps, seed=0, version="standard")
        moved, _ = judge.run_standard_evaluation(
            images.contiguous(), labels, batch_size=SUITE_IMAGES
        )
        robust["pyautoattack"] = accuracy(logits, moved, labels)

    ways = {"ours": ours, "pyautoattack": theirs}
    with frozen(task.classifier):
        every = thread_counts()[-1:]
        rows = against(
            ways, "pyautoattack", SUITE_ROUNDS, "suite", {"ours": 0.8}, describe(task), 0, every
        )
    note = ", ".join(f"{name} {100 * value:.1f} %" for name, value in robust.items())
    difference = robust["ours"] - robust["pyautoattack"]
    rows.append(
        Row("suite", "robust accuracy: ours - pyautoattack", None, difference, "", 0.0, note=note)
    )
    return rows


@torch.no_grad()
def accuracy(logits: LevelLogits, images: Tensor, labels: Tensor) -> float:
    """Return the share of images (N, 3, H, W) whose best logit is that of their label."""
    return float((logits(images).argmax(1) == labels).float().mean())
