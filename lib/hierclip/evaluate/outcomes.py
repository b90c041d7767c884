"""What a model made of each picture, clean and under every attack: what all figures are computed from."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hierclip.model import READINGS

CLEAN = "clean"
PARTS = ("test", "val", "forest", "levels")  # the sets of outcomes that a record's figures come from


def outcomes_path(root: Path, method: str, seed: int, split: str, part: str = "test") -> Path:
    """Where a model's outcomes on a split are kept."""
    return root / "data/attacks" / f"{method}-{seed}" / f"{split}{'' if part == 'test' else '-' + part}.npz"


@dataclass(frozen=True)
class Outcomes:
    """The readings of N pictures in A conditions: clean, then under each attack in turn.

    conditions: (A,) "clean", or an aim's name such as "roll_up-2". paths: (leaves, L + 1), the tree's. labels: (N,)
    leaves. nodes: (A, N, L + 1), the nearest node of every level. confidence: (A, N, L + 1), its share of the softmax.
    ranked: (A, N, k), the k nearest leaves, best first.
    """

    conditions: np.ndarray
    paths: np.ndarray
    labels: np.ndarray
    nodes: np.ndarray
    confidence: np.ndarray
    ranked: np.ndarray

    @property
    def top(self) -> int:
        return self.paths.shape[1] - 1

    @cached_property
    def right(self) -> dict[str, np.ndarray]:
        """By reading, (A, N, L + 1) bool: whether each level is read rightly in each condition."""
        truth = self.paths[self.labels]
        return {"direct": self.nodes == truth, "roll_up": self.paths[self.nodes[..., 0]] == truth}

    def under(self, condition: str) -> int:
        """The place of a condition. Raises KeyError, listing the known ones, for another."""
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
        """By reading, (L + 1, N, L + 1) bool, by attacked level first: right under the attack on either reading."""
        attacks = [
            [self.under(f"{kind}-{level}") for kind in READINGS if level or kind == "direct"]
            for level in range(self.top + 1)
        ]
        return {reading: np.stack([self.right[reading][a].all(0) for a in attacks]) for reading in READINGS}

    def by_attack(self, reading: str) -> np.ndarray:
        """(L + 1, N, L + 1) bool: right in a reading under the attack on that reading, by attacked level first."""
        kinds = ["direct" if not level else reading for level in range(self.top + 1)]
        return np.stack([self.right[reading][self.under(f"{kind}-{level}")] for level, kind in enumerate(kinds)])

    def take(self, levels: list[int]) -> "Outcomes":
        """Some of the levels, the leaves first, in place of all: attacked and read."""
        wanted = {f"{kind}-{level}": f"{kind}-{k}" for k, level in enumerate(levels) for kind in READINGS}
        names = {CLEAN: CLEAN} | {old: new for old, new in wanted.items() if old in self.conditions}
        at = [self.under(name) for name in names]
        return Outcomes(
            np.array(list(names.values())),
            self.paths[:, levels],
            self.labels,
            self.nodes[at][:, :, levels],
            self.confidence[at][:, :, levels],
            self.ranked[at],
        )

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part.npz")
        np.savez_compressed(part, allow_pickle=False, **{f.name: getattr(self, f.name) for f in fields(self)})
        part.replace(path)

    @staticmethod
    def load(path: Path | BinaryIO) -> "Outcomes":
        with np.load(path) as arrays:
            return Outcomes(**{field.name: arrays[field.name] for field in fields(Outcomes)})


Readout = Mapping[str, np.ndarray]  # of one condition: nodes, confidence, ranked


def gather(readouts: Mapping[str, Readout], paths: np.ndarray, labels: np.ndarray) -> Outcomes:
    """The outcomes of all conditions together."""
    stacked = {key: np.stack([readout[key] for readout in readouts.values()]) for key in readouts[CLEAN]}
    return Outcomes(np.array(list(readouts)), paths, labels, **stacked)
