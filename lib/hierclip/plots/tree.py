"""A tree as rings."""

import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Wedge

from hierclip.trees import Tree


def sunburst(tree: Tree) -> Figure:
    """Draw a tree as rings, from the coarsest level inside to the leaves on the rim.

    Each leaf has the same angle, each node a wedge.
    """
    side = min(13.0, 3.5 + len(tree.leaves) / 15)
    figure, axis = plt.subplots(figsize=(side, side))
    turn, rings = 360 / len(tree.leaves), len(tree.levels)
    tops = sns.color_palette("husl", tree.sizes[-1])
    paths = tree.paths[np.lexsort(tree.paths.T)]  # depth first, in whatever order leaves are kept
    for level in range(rings):
        nodes = paths[:, level]
        starts = np.flatnonzero(np.diff(nodes, prepend=-1))
        ends = np.append(starts[1:], len(nodes))
        inner, width = rings - level - 0.5, 1 if level else 1.2
        for start, end in zip(starts, ends, strict=True):
            shades = sns.light_palette(tops[paths[start, -1]], n_colors=rings + 3)
            wedge = Wedge(
                (0, 0), inner + width, start * turn, end * turn, width=width,
                fc=shades[rings - level + 1], ec="w", lw=0.6,
            )  # fmt: skip
            axis.add_patch(wedge)
            name, middle = tree.levels[level][nodes[start]].name, (start + end) / 2 * turn
            _ring_label(axis, name, middle, inner + width / 2, (end - start) * turn)
    axis.set(xlim=(-rings - 1, rings + 1), ylim=(-rings - 1, rings + 1), aspect="equal")
    axis.axis("off")
    return figure


def _ring_label(axis: Axes, name: str, degrees: float, radius: float, wedge: float) -> None:
    """Write a name along the radius, upright, larger where the wedge has room."""
    angle = np.deg2rad(degrees)
    rotation = degrees if np.cos(angle) >= 0 else degrees + 180
    lines = name.replace(" ", "\n", 1) if len(name) > 9 and wedge > 4 else name
    room = min(9.0, 2.4 + 14 * radius * np.deg2rad(wedge))
    size = min(room, 60 / max(map(len, lines.splitlines())))
    axis.text(
        radius * np.cos(angle), radius * np.sin(angle), lines,
        ha="center", va="center", rotation=rotation, fontsize=size,
    )  # fmt: skip
