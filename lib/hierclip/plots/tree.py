"""A tree as rings."""

import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Wedge

from hierclip.trees import Tree


def sunburst(tree: Tree) -> Figure:
    """Rings from the coarsest level inside to the leaves on the rim: an angle for each leaf, a
    wedge for each node.
    """
    side = min(13.0, 3.5 + len(tree.leaves) / 15)
    figure, axis = plt.subplots(figsize=(side, side))
    turn, rings = 360 / len(tree.leaves), len(tree.levels)
    tops = sns.color_palette("husl", tree.sizes[-1])
    paths = tree.paths[
        np.lexsort(tree.paths.T)
    ]  # depth first, whatever order the tree keeps its leaves in
    for level in range(rings):
        nodes = paths[:, level]
        starts = np.flatnonzero(np.diff(nodes, prepend=-1))
        ends = np.append(starts[1:], len(nodes))
        inner, width = rings - level - 0.5, 1 if level else 1.2
        for start, end in zip(starts, ends, strict=True):
            colour = sns.light_palette(tops[paths[start, -1]], n_colors=rings + 3)[
                rings - level + 1
            ]
            span = {"theta1": start * turn, "theta2": end * turn, "width": width}
            axis.add_patch(Wedge((0, 0), inner + width, **span, fc=colour, ec="w", lw=0.6))
            middle = (start + end) / 2 * turn
            _ring_label(
                axis,
                tree.levels[level][nodes[start]].name,
                middle,
                inner + width / 2,
                (end - start) * turn,
            )
    axis.set(xlim=(-rings - 1, rings + 1), ylim=(-rings - 1, rings + 1), aspect="equal")
    axis.axis("off")
    return figure


def _ring_label(axis, name: str, angle: float, radius: float, spread: float) -> None:
    """Along the radius, kept upright; larger where the wedge has room."""
    size = min(9.0, 2.4 + 14 * radius * np.deg2rad(spread))
    rotation = angle if np.cos(np.deg2rad(angle)) >= 0 else angle + 180
    x, y = radius * np.cos(np.deg2rad(angle)), radius * np.sin(np.deg2rad(angle))
    lines = name.replace(" ", "\n", 1) if len(name) > 9 and spread > 4 else name
    size = min(size, 60 / max(map(len, lines.splitlines())))
    axis.text(x, y, lines, ha="center", va="center", rotation=rotation, fontsize=size)
