"""Accuracy by level, and the level matrices."""

from collections.abc import Sequence

import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hierclip.evaluate import Record
from hierclip.model import READINGS
from hierclip.params import Params
from hierclip.plots.frames import in_order
from hierclip.plots.methods import bars, first_seeds, fitting, legend, pair


def level_bars(records: Sequence[Record], split: str, params: Params) -> Figure:
    """Clean accuracy (pale) and accuracy under the level's own attack (full), by level and method.

    A panel for each reading; the first seed of each method, with its 95 % intervals over pictures.
    """
    shown = first_seeds(records, split, params)
    threat = shown[0].threat_model
    accuracy = f"accuracy (%): clean (pale),\nunder {threat.norm} {threat.eps} (full)"
    figure, axes = pair(params.plots.width, 2.8, accuracy)
    for axis, reading in zip(axes, READINGS, strict=True):
        for k, r in enumerate(shown):
            place, colour, bounds = (
                (k, len(shown)),
                params.plots.palette[r.method],
                r.intervals[reading],
            )
            own = [r.robust[reading][level][level] for level in range(len(r.levels))]
            own_bounds = [bounds.robust[level][level] for level in range(len(r.levels))]
            bars(axis, place, r.clean[reading], bounds.clean, colour, alpha=0.3)
            bars(axis, place, own, own_bounds, colour, label=params.labels[r.method])
        axis.set(
            title=f"{reading.replace('_', '-')} reading", ylim=(0, 100), xlabel="level (0: leaves)"
        )
    legend(figure, axes[0])
    return figure


def matrices(records: Sequence[Record], reading: str, params: Params) -> Figure:
    """A[attack level, evaluated level] as heat maps, the clean row on top and an attack's own level
    framed.

    A panel for each record, five in a row of a page.
    """
    shown, columns = (
        in_order(records, params.labels),
        fitting(params.plots.width, 1.3, len(records)),
    )
    rows, deep = -(-len(shown) // columns), max(len(r.levels) for r in shown)
    side = min(0.83 * params.plots.width / columns, 2.5)
    size = (params.plots.width, 0.2 + rows * (0.5 + side * (deep + 1) / deep))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis, record in zip(axes.flat, shown, strict=False):
        values = 100 * np.array([record.clean[reading], *record.robust[reading]])
        names = ["clean", *range(len(values) - 1)] if axis in axes[:, 0] else False
        sns.heatmap(
            values, ax=axis, annot=True, fmt=".0f", vmin=0, vmax=100, cmap="viridis", cbar=False, square=True,
            yticklabels=names, annot_kws={"size": 7},
        )  # fmt: skip
        for level in range(len(record.levels)):
            axis.add_patch(Rectangle((level, level + 1), 1, 1, fill=False, ec="white", lw=1))
        axis.tick_params(axis="y", rotation=0)
        axis.set_title(params.labels[record.method].replace(", ", ",\n"))
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    figure.supxlabel("evaluated level (0: leaves)", size="medium")
    figure.supylabel("attacked level", size="medium")
    figure.colorbar(axes[0, 0].collections[0], ax=axes, label="accuracy (%)", aspect=30, pad=0.01)
    return figure


def tree_bars(records: Sequence[Record], split: str, params: Params) -> Figure:
    """Path-robust accuracy in every tree of the forest, by method, on the same pictures; a panel
    for each reading.

    The first seed of each method, with its 95 % intervals over pictures.
    """
    shown = first_seeds(records, split, params)
    figure, axes = pair(params.plots.width, 2.6, "path-robust accuracy (%)")
    for axis, reading in zip(axes, READINGS, strict=True):
        for k, r in enumerate(shown):
            values = [tree.path_robust[reading] for tree in r.forest.values()]
            bounds, colour = (
                [tree.intervals[reading] for tree in r.forest.values()],
                params.plots.palette[r.method],
            )
            bars(axis, (k, len(shown)), values, bounds, colour, label=params.labels[r.method])
        axis.set(title=f"{reading.replace('_', '-')} reading", ylim=(0, 100), xlabel="tree")
        axis.set_xticks(range(len(shown[0].forest)), list(shown[0].forest))
    legend(figure, axes[0])
    return figure
