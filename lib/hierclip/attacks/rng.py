"""Random numbers of an attack."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

Seed = int | Sequence[int]


class PerSampleRNG:
    """A stream of random numbers for each image of a batch, and one that they share.

    What an image gets does not depend on its batch, nor on which of the others still stand.
    """

    def __init__(self, seed: Seed, names: Iterable[int]):
        """seed, names: whole numbers from 0; a name for each image, such as its row in the whole set."""
        seed = [seed] if isinstance(seed, int) else [*seed]
        self.shared = np.random.default_rng([*seed, 0])
        self._own = [np.random.default_rng([*seed, 1 + int(name)]) for name in names]

    def uniform(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """(n, *shape) float32 in [0, 1), for the images `rows` of the batch, where those are."""
        out = np.empty((len(rows), *shape), dtype=np.float32)
        for values, row in zip(out, rows.tolist(), strict=True):
            self._own[row].random(dtype=np.float32, out=values)
        return torch.from_numpy(out).to(rows.device)

    def signs(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """(n, *shape) float32, -1 or 1."""
        return 2 * (self.uniform(rows, shape) < 0.5).float() - 1
