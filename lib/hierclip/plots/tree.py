"""A tree as rings."""

import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from hierclip.trees import Tree


def sunburst(tree: Tree) -> Figure:
    """Draw a tree as rings, from the coarsest level inside to the leaves on the rim.

    Each leaf has the same angle, each node a wedge. A name is larger where its wedge has room.
    """
    side = min(13.0, 3.5 + len(tree.leaves) / 15)
    figure, axis = plt.subplots(figsize=(side, side))
    rings = len(tree.levels)
    tops = sns.color_palette("husl", tree.sizes[-1])
    shades = [sns.light_palette(colour, n_colors=rings + 3) for colour in tops]
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
            labels=[tree.levels[level][node].name for node in paths[starts, level]],
            labeldistance=middle / outer, rotatelabels=True,
            wedgeprops={"width": width, "ec": "w", "lw": 0.6},
            textprops={"ha": "center", "va": "center"},
        )  # fmt: skip
        for label, angle in zip(labels, 2 * np.pi * sizes / len(paths), strict=True):
            if len(label.get_text()) > 9 and angle > 0.07:
                label.set_text(label.get_text().replace(" ", "\n", 1))
            room = min(9.0, 2.4 + 14 * middle * angle)
            label.set_size(min(room, 60 / max(map(len, label.get_text().splitlines()))))
    axis.set(xlim=(-rings - 1, rings + 1), ylim=(-rings - 1, rings + 1))
    return figure
