"""Accuracy by level, and the level matrices."""

from collections.abc import Sequence

import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from hierclip.evaluate import Record
from hierclip.model import READINGS
from hierclip.params import Params
from hierclip.plots.frames import in_order


def level_bars(records: Sequence[Record], split: str, params: Params) -> Figure:
    """Clean accuracy (pale) and accuracy under the level's own attack (full), by level and method.

    A panel for each reading; the first seed of each method, with its 95 % intervals over pictures.
    """
    shown = {r.method: r for r in reversed(in_order(records, params.labels)) if r.split == split}
    figure, axes = plt.subplots(1, 2, figsize=(params.plots.width, 2.6), sharey=True)
    for axis, reading in zip(axes, READINGS, strict=True):
        for k, r in enumerate(in_order(list(shown.values()), params.labels)):
            width = 0.8 / len(shown)
            places = np.arange(len(r.levels)) + (k - (len(shown) - 1) / 2) * width
            own = [r.robust[reading][level][level] for level in range(len(r.levels))]
            bounds = [r.intervals[reading].robust[level][level] for level in range(len(r.levels))]
            reach = np.abs(np.transpose(bounds) - own)
            colour = params.plots.palette[r.method]
            axis.bar(places, r.clean[reading], width, color=colour, alpha=0.3)
            axis.bar(places, own, width, color=colour, yerr=reach, error_kw={"lw": 0.7}, label=params.labels[r.method])
        axis.set(title=f"{reading.replace('_', '-')} reading", ylim=(0, 1), xlabel="level (0: leaves)")
    threat = next(iter(shown.values())).threat_model
    axes[0].set_ylabel(f"accuracy, clean (pale)\nand at {threat.norm} {threat.eps}")
    axes[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def matrices(records: Sequence[Record], reading: str, params: Params) -> Figure:
    """A[attack level, evaluated level] as heat maps, the clean row on top; a panel for each record."""
    figure, axes = plt.subplots(
        1, len(records), figsize=(params.plots.width, 0.6 + params.plots.width / len(records)), squeeze=False
    )
    for axis, record in zip(axes[0], in_order(records, params.labels), strict=True):
        values = 100 * np.array([record.clean[reading], *record.robust[reading]])
        rows = ["clean", *range(len(values) - 1)]
        sns.heatmap(
            values, ax=axis, annot=True, fmt=".0f", vmin=0, vmax=100, cmap="viridis", cbar=False, square=True,
            yticklabels=rows if axis is axes[0, 0] else False, annot_kws={"size": 6},
        )  # fmt: skip
        axis.set(title=params.labels[record.method], xlabel="evaluated level")
    axes[0, 0].set_ylabel("attacked level")
    return figure


def tree_bars(records: Sequence[Record], split: str, params: Params) -> Figure:
    """Path-robust accuracy in every tree of the forest, by method, on the same pictures; a panel for each reading."""
    shown = in_order([r for r in records if (r.split, r.seed) == (split, params.seeds[0])], params.labels)
    figure, axes = plt.subplots(1, 2, figsize=(params.plots.width, 2.6), sharey=True)
    for axis, reading in zip(axes, READINGS, strict=True):
        for k, r in enumerate(shown):
            width = 0.8 / len(shown)
            places = np.arange(len(r.forest)) + (k - (len(shown) - 1) / 2) * width
            values = [tree.path_robust[reading] for tree in r.forest.values()]
            reach = np.abs(np.transpose([tree.intervals[reading] for tree in r.forest.values()]) - values)
            colour, label = params.plots.palette[r.method], params.labels[r.method]
            axis.bar(places, values, width, color=colour, yerr=reach, error_kw={"lw": 0.7}, label=label)
        axis.set(title=f"{reading.replace('_', '-')} reading", ylim=(0, 1))
        axis.set_xticks(range(len(shown[0].forest)), list(shown[0].forest))
    axes[0].set_ylabel("path-robust accuracy")
    axes[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
