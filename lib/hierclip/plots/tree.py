"""A tree as rings."""

from textwrap import wrap

import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font, get_font_names

from hierclip.trees import Tree

FONTS = [  # those that are installed, in this order; the first comes with matplotlib
    font
    for font in ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Arial Unicode MS")
    if font in get_font_names()
]
GLYPHS = set().union(*(get_font(findfont(font)).get_charmap() for font in FONTS))


def sunburst(tree: Tree) -> Figure:
    """Draw a tree as rings, from the coarsest level inside to the leaves on the rim.

    Each leaf has the same angle, each node a wedge. A name is larger where its wedge has room.
    """
    rings = len(tree.levels)
    side = max(min(13.0, 3.5 + len(tree.leaves) / 15), 1.2 * (rings + 1))  # a name fits in a ring
    figure, axis = plt.subplots(figsize=(side, side))
    shades = [
        sns.light_palette(colour, n_colors=rings + 3)
        for colour in sns.color_palette("husl", tree.sizes[-1])
    ]
    paths = tree.paths[np.lexsort(tree.paths.T)]  # depth first, in whatever order leaves are kept
    for level in range(rings):
        starts = np.flatnonzero(np.diff(paths[:, level], prepend=-1))
        sizes = np.diff(starts, append=len(paths))
        width = 1 if level else 1.2
        outer = rings - level - 0.5 + width
        middle = outer - width / 2
        colors = [shades[top][rings - level + 1] for top in paths[starts, -1]]
        _, labels = axis.pie(
            sizes, radius=outer, colors=colors,
            labels=[drawable(tree.levels[level][node].name) for node in paths[starts, level]],
            labeldistance=middle / outer, rotatelabels=True,
            wedgeprops={"width": width, "ec": "w", "lw": 0.6},
            textprops={"ha": "center", "va": "center", "family": FONTS, "parse_math": False},
        )  # fmt: skip
        for label, angle in zip(labels, 2 * np.pi * sizes / len(paths), strict=True):
            if len(label.get_text()) > 24 and angle > 0.4:
                label.set_text("\n".join(wrap(label.get_text(), 14, break_long_words=False)))
            elif len(label.get_text()) > 9 and angle > 0.07:
                label.set_text(label.get_text().replace(" ", "\n", 1))
            by_line = [60 / len(line) for line in label.get_text().splitlines()]
            label.set_size(min(9.0, 2.4 + 14 * middle * angle, *by_line))
    axis.set(xlim=(-rings - 1, rings + 1), ylim=(-rings - 1, rings + 1))
    return figure


def drawable(name: str) -> str:
    """Return a name in at most 40 letters, those that none of FONTS has by number: "[732B]"."""
    line = " ".join(name.split())
    line = line if len(line) <= 40 else line[:39] + "…"
    return "".join(letter if ord(letter) in GLYPHS else f"[{ord(letter):X}]" for letter in line)
