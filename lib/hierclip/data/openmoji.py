"""The embedded default: 200 nouns that WordNet knows, their images drawn from emoji.

An image is a glyph under a random affine map and colour shift, on a smooth background, with noise.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from hierclip.config import OpenMojiParams
from hierclip.data.dataset import Leaf, PreparedDataset, step_seed

SOURCE = "data/source/openmoji.csv"
SHEET = "data/source/openmoji.png"  # the glyphs in rows, premultiplied RGBA; openmoji.py makes it
GLYPH = 40  # pixels a side
FIXED = 10**9  # steps from here on are for the fixed images


@dataclass(frozen=True)
class Variation:
    """How far an image strays from its glyph."""

    rotation: float  # largest angle, degrees
    scale: tuple[float, float]  # the glyph's side as a share of the image's
    shift: float  # largest displacement, share of the image's side
    shear: float
    colour: float  # largest change of a colour's gain and offset
    noise: float  # standard deviation, in units of [0, 1]


TRAIN = Variation(rotation=20, scale=(0.75, 1.05), shift=0.10, shear=0.15, colour=0.15, noise=0.03)
HARD = Variation(rotation=25, scale=(0.70, 1.10), shift=0.12, shear=0.20, colour=0.20, noise=0.04)


def draw(
    glyphs: Tensor, labels: Tensor, side: int, variation: Variation, generator: torch.Generator
) -> Tensor:
    """Draw images of `glyphs[labels]`: (N, 3, side, side) float32 in [0, 1].

    glyphs: (C, 4, g, g) premultiplied uint8. The same generator state draws the same images.
    """
    n = len(labels)
    theta = _affine(n, variation, generator)
    grid = F.affine_grid(theta, [n, 4, side, side], align_corners=False)
    sprite = F.grid_sample(glyphs[labels].float() / 255, grid, align_corners=False)
    colour, alpha = sprite.split([3, 1], dim=1)
    gain = 1 + _uniform((n, 3, 1, 1), variation.colour, generator)
    offset = _uniform((n, 3, 1, 1), variation.colour, generator)
    coarse = torch.rand((n, 3, 3, 3), generator=generator)
    background = F.interpolate(coarse, (side, side), mode="bilinear", align_corners=True)
    noise = variation.noise * torch.randn((n, 3, side, side), generator=generator)
    return (colour * gain + offset * alpha + background * (1 - alpha) + noise).clamp(0, 1)


def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    return (2 * torch.rand(shape, generator=generator) - 1) * bound


def _affine(n: int, variation: Variation, generator: torch.Generator) -> Tensor:
    """Draw maps from the image's square [-1, 1]^2 to the glyph's: (N, 2, 3)."""
    angle = torch.deg2rad(_uniform((n,), variation.rotation, generator))
    low, high = variation.scale
    zoom = 1 / (low + (high - low) * torch.rand(n, generator=generator))
    shear = _uniform((n,), variation.shear, generator)
    shift = _uniform((n, 2), 2 * variation.shift, generator)
    cos = torch.cos(angle) * zoom
    sin = torch.sin(angle) * zoom
    linear = torch.stack([cos, -sin + shear * cos, sin, cos + shear * sin], -1).view(n, 2, 2)
    return torch.cat([linear, -(linear @ shift[..., None])], -1)


class OpenMoji(PreparedDataset):
    credit = "Images drawn from OpenMoji glyphs (openmoji.org), CC BY-SA 4.0"

    def __init__(self, params: OpenMojiParams, project: Path, prepared: Path):
        super().__init__(params, project, prepared)
        table = pd.read_csv(project / SOURCE)[["synset", "name", "subset"]]
        self.leaves = tuple(Leaf(*row) for row in table.itertuples(index=False))

    def batch(
        self, classes: Tensor, size: int, seed: int, step: int, rows: slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step_seed(seed, step))
        labels = torch.randint(len(classes), (size,), generator=generator)
        glyphs = self.tensors["glyphs"]
        images = draw(glyphs, classes[labels], self.params.size, TRAIN, generator)
        return images[rows].contiguous(memory_format=torch.channels_last), labels
