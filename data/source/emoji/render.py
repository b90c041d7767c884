"""Render the nouns of classes.csv in nine styles: `python data/source/emoji/render.py FOLDER`.

The sheets are needed to draw images, this script only to make the sheets anew. FOLDER holds the
unpacked packages of styles.csv, each in a folder named like its style. For each style:

    npm pack @iconify-json/STYLE@VERSION
    mkdir FOLDER/STYLE
    tar xzf iconify-json-STYLE-VERSION.tgz -C FOLDER/STYLE --strip-components=1

The script needs numpy, pandas, Pillow and resvg-py; the committed sheets come from resvg-py 0.5.0.
It writes STYLE.png for each style: the table's glyphs from left to right in rows of 20, 64 pixels
a side, premultiplied RGBA. A noun that the style does not draw is fully transparent. It also writes
the column `drawn` of styles.csv: how many nouns the style draws. LICENSES/ has each style's terms.
"""

import json
import sys
import unicodedata
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from resvg_py import svg_to_bytes

SOURCE = Path(__file__).parent
GLYPH = 64  # pixels a side
COLUMNS = 20
RENDERED = 512  # pixels a side, before the drawing is cropped and resized
# Old names that have another sense: these two call the bat and ball of the game `cricket`.
OTHER_SENSE = {("noto-v1", "cricket"), ("emojione", "cricket")}
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">{body}</svg>'
)


def possible_names(emoji: str, cldr_names: dict[str, str]) -> list[str]:
    """List the names that a style may give to `emoji`, the likeliest first.

    cldr_names: by hexadecimal code point. The name is that of the Unicode CLDR, with dashes; old
    styles have the character's name in the Unicode standard instead, and fxemoji omits the dashes.
    """
    cldr = cldr_names[f"{ord(emoji):x}"]
    unicode = unicodedata.name(emoji, "").lower().replace(" ", "-")
    return [cldr, unicode, cldr.replace("-", ""), unicode.replace("-", "")]


def find_icon(icons: dict, name: str) -> dict | None:
    """Return the icon `name` of an IconifyJSON record, aliases resolved; None if it has none.

    Raises ValueError for an alias that turns or flips its parent: no noun has needed one.
    """
    if (icons["prefix"], name) in OTHER_SENSE:
        return None
    alias = icons.get("aliases", {}).get(name)
    if alias is None:
        return icons["icons"].get(name)
    if set(alias) != {"parent"}:
        raise ValueError(f"the alias {name!r} of {icons['prefix']} transforms its parent: {alias}")
    return find_icon(icons, alias["parent"])


def render_glyph(icons: dict, icon: dict) -> np.ndarray:
    """Render `icon` of the record `icons` as premultiplied RGBA, (64, 64, 4) uint8.

    The drawing is cropped to its box, which is made square and centred. The background is empty and
    `currentColor` is black, as SVG has it. Raises ValueError for an icon that draws nothing.
    """
    box = {"left": 0, "top": 0, "width": 16, "height": 16}  # IconifyJSON's defaults
    for key in box:
        box[key] = icon.get(key, icons.get(key, box[key]))
    svg = SVG.format(body=icon["body"], **box)
    zoom = RENDERED / max(box["width"], box["height"])
    png = bytes(svg_to_bytes(svg_string=svg, zoom=zoom, skip_system_fonts=True))
    image = Image.open(BytesIO(png)).convert("RGBA")
    drawn = image.getbbox()
    if drawn is None:
        raise ValueError(f"an icon of {icons['prefix']} draws nothing: {icon['body'][:80]}")
    left, top, right, bottom = drawn
    half = (max(right - left, bottom - top) + 1) // 2
    x = (left + right) // 2
    y = (top + bottom) // 2
    square = image.crop((x - half, y - half, x + half, y + half)).convert("RGBa")
    return np.asarray(square.resize((GLYPH, GLYPH), Image.Resampling.BOX))


def render_style(icons: dict, names: list[list[str]]) -> list[np.ndarray]:
    """Render a glyph for each list of possible names; all zero where the style has none of them."""
    glyphs = []
    for possible in names:
        found = [icon for icon in (find_icon(icons, name) for name in possible) if icon]
        if found:
            glyphs.append(render_glyph(icons, found[0]))
        else:
            glyphs.append(np.zeros((GLYPH, GLYPH, 4), np.uint8))
    return glyphs


def main(folder: Path) -> None:
    """Write the sheets and the column `drawn`; ValueError for a package of another version."""
    styles = pd.read_csv(SOURCE / "styles.csv")
    # The four packages that have a chars.json agree on the nouns' names.
    cldr_names = json.loads((folder / "openmoji/chars.json").read_text())
    emojis = pd.read_csv(SOURCE / "classes.csv")["emoji"]
    names = [possible_names(emoji, cldr_names) for emoji in emojis]
    for place, style, wanted in styles[["style", "version"]].itertuples():
        version = json.loads((folder / style / "package.json").read_text())["version"]
        if version != wanted:
            raise ValueError(f"{folder / style} is version {version}; styles.csv says {wanted}")
        glyphs = render_style(json.loads((folder / style / "icons.json").read_text()), names)
        styles.loc[place, "drawn"] = sum(bool(glyph.any()) for glyph in glyphs)
        rows = [np.hstack(glyphs[k : k + COLUMNS]) for k in range(0, len(glyphs), COLUMNS)]
        Image.fromarray(np.vstack(rows)).save(SOURCE / f"{style}.png", optimize=True)
    styles.to_csv(SOURCE / "styles.csv", index=False, lineterminator="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
