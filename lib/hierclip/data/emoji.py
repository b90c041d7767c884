"""The embedded default: 200 nouns that WordNet knows, each drawn in up to nine styles of emoji.

An image is a glyph under a random affine map and colour shift, on a smooth background, with noise.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hierclip.config import STYLES, EmojiParams
from hierclip.data.dataset import (
    DataError,
    ImageSet,
    Leaf,
    PreparedDataset,
    step_seed,
)
from hierclip.progress import fingerprint, sha256

SOURCE = "data/source/emoji"  # classes.csv, and a sheet of glyphs a style, which render.py makes
GLYPH = 64  # pixels a side in the sheets
FIXED = 10**9  # steps from here on are for the fixed images

ROTATION = 20  # largest angle, degrees
SCALE = (0.75, 1.05)  # the glyph's side as a share of the image's
SHIFT = 0.10  # largest displacement, share of the image's side
SHEAR = 0.15
COLOUR = 0.15  # largest change of a colour's gain and offset
NOISE = 0.03  # standard deviation, in units of [0, 1]


def draw(glyphs: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Draw an image of each glyph: (N, 3, side, side) float32 in [0, 1].

    glyphs: (N, 4, g, g) premultiplied uint8. The same generator state draws the same images.
    """
    n = len(glyphs)
    grid = F.affine_grid(_affine(n, generator), [n, 4, side, side], align_corners=False)
    sprite = F.grid_sample(glyphs.float() / 255, grid, align_corners=False)
    colour, alpha = sprite.split([3, 1], dim=1)
    gain = 1 + _uniform((n, 3, 1, 1), COLOUR, generator)
    offset = _uniform((n, 3, 1, 1), COLOUR, generator)
    coarse = torch.rand((n, 3, 3, 3), generator=generator)
    background = F.interpolate(coarse, (side, side), mode="bilinear", align_corners=True)
    noise = NOISE * torch.randn((n, 3, side, side), generator=generator)
    return (colour * gain + offset * alpha + background * (1 - alpha) + noise).clamp(0, 1)


def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    return (2 * torch.rand(shape, generator=generator) - 1) * bound


def _affine(n: int, generator: torch.Generator) -> Tensor:
    """Draw maps from the image's square [-1, 1]^2 to the glyph's: (N, 2, 3)."""
    angle = torch.deg2rad(_uniform((n,), ROTATION, generator))
    low, high = SCALE
    zoom = 1 / (low + (high - low) * torch.rand(n, generator=generator))
    shear = _uniform((n,), SHEAR, generator)
    shift = _uniform((n, 2), 2 * SHIFT, generator)
    cos = torch.cos(angle) * zoom
    sin = torch.sin(angle) * zoom
    linear = torch.stack([cos, -sin + shear * cos, sin, cos + shear * sin], -1).view(n, 2, 2)
    return torch.cat([linear, -(linear @ shift[..., None])], -1)


@cache
def read_sheet(file: Path, side: int) -> Tensor:
    """Read a sheet's glyphs in the order of the nouns: (N, 4, side, side) premultiplied uint8."""
    sheet = torch.from_numpy(np.array(Image.open(file)))
    glyphs = sheet.unfold(0, GLYPH, GLYPH).unfold(1, GLYPH, GLYPH).flatten(0, 1)
    smaller = F.interpolate(glyphs.float(), (side, side), mode="bilinear", antialias=True)
    return smaller.round().clamp(0, 255).byte()


class Emoji(PreparedDataset):
    """Images of the nouns of a class subset in `params.styles`, all alike.

    A noun that none of the styles draws is no class. The fixed images of a drawing, which is a noun
    in a style, are the same in every dataset that has them.
    """

    def __init__(self, params: EmojiParams, project: Path, prepared: Path):
        super().__init__(params, project, prepared)
        folder = project / SOURCE
        credit = pd.read_csv(folder / "styles.csv", index_col="style")["credit"]
        self.credit = "; ".join(credit[list(params.styles)])
        # Images are at most 1.05 times their glyph: more pixels would only be lost.
        side = min(GLYPH, round(1.25 * params.size))
        self.sheets = torch.stack([read_sheet(folder / f"{s}.png", side) for s in params.styles])
        table = pd.read_csv(folder / "classes.csv")[["synset", "name", "subset"]]
        nouns = [Leaf(*row) for row in table.itertuples(index=False)]
        self.is_drawn = (self.sheets[:, : len(nouns), 3] > 0).flatten(2).any(-1)  # (styles, nouns)
        self.rows = torch.tensor(
            [
                row
                for row, noun in enumerate(nouns)
                if params.subset in (None, noun.subset) and self.is_drawn[:, row].any()
            ]
        )
        self.leaves = tuple(nouns[row] for row in self.rows)

    def inputs(self) -> dict[str, str]:
        choices = self.params.model_dump(exclude={"styles", "subset", "level"})
        files = sorted((self.project / SOURCE).glob("*.*"))
        sources = {f"{SOURCE}/{file.name}": sha256(file) for file in files}
        return {"params.yaml: data": fingerprint(choices)} | sources

    def batch(
        self, classes: Tensor, size: int, seed: int, step: int, rows: slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step_seed(seed, step))
        labels = torch.randint(len(classes), (size,), generator=generator)
        nouns = self.rows[classes[labels]]
        styles = torch.multinomial(self.is_drawn[:, nouns].T.float(), 1, generator=generator)[:, 0]
        images = draw(self.sheets[styles, nouns], self.params.size, generator)
        return images[rows].contiguous(memory_format=torch.channels_last), labels

    def images(self, split: str) -> ImageSet:
        stored = super().images(split)
        styles = torch.tensor([STYLES.index(style) for style in self.params.styles])
        kept = self.tensors[f"{split}.styles"]
        is_kept = torch.zeros(len(STYLES), self.is_drawn.shape[1], dtype=torch.bool)
        is_kept[kept, stored.labels] = True
        lacks = (self.is_drawn & ~is_kept[styles])[:, self.rows].nonzero()
        if len(lacks):
            style, leaf = self.params.styles[lacks[0, 0]], self.leaves[lacks[0, 1]]
            raise DataError(
                f"{self.prepared} lacks {len(lacks)} drawings, such as the {leaf.name} of {style}; "
                "run `dvc repro data` again"
            )
        labels = stored.labels.new_full((self.is_drawn.shape[1],), -1)
        labels[self.rows] = torch.arange(len(self.rows))
        labels = labels[stored.labels]
        return ImageSet(stored.pixels, labels)[torch.isin(kept, styles) & (labels >= 0)]
