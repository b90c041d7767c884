"""Accuracy by level, and the level matrices."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from hierclip.evaluate import Record
from hierclip.losses import METHODS
from hierclip.params import PlotsParams
from hierclip.plots.table import in_order


def level_bars(frame: pd.DataFrame, split: str, params: PlotsParams) -> Figure:
    """Clean accuracy (pale) and robust accuracy (full) by level and method, a panel for each reading."""
    rows = frame[frame["split"] == split]
    figure, axes = plt.subplots(1, 2, figsize=(params.width, 2.6), sharey=True)
    order = [method for method in METHODS if method in set(rows["method"])]
    for axis, (reading, part) in zip(axes, rows.groupby("reading"), strict=True):
        common = {
            "data": part,
            "x": "level",
            "hue": "method",
            "hue_order": order,
            "palette": params.palette,
            "ax": axis,
        }
        sns.barplot(**common, y="clean", alpha=0.3, errorbar=None, legend=False)
        sns.barplot(**common, y="robust", errorbar=None, legend=axis is axes[1])
        axis.set(
            title=f"{str(reading).replace('_', '-')} reading",
            ylim=(0, 1),
            ylabel="accuracy",
            xlabel="level (0: leaves)",
        )
    handles, _ = axes[1].get_legend_handles_labels()
    axes[1].legend(handles, [METHODS[m].label for m in order], frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def matrices(records: Sequence[Record], reading: str, params: PlotsParams) -> Figure:
    """A[attack level, evaluated level] as heat maps, the clean row on top; a panel for each record."""
    figure, axes = plt.subplots(
        1, len(records), figsize=(params.width, 0.6 + params.width / len(records)), squeeze=False
    )
    for axis, record in zip(axes[0], in_order(records), strict=True):
        values = 100 * np.array([record.clean[reading], *record.robust[reading]])
        rows = ["clean", *range(len(values) - 1)]
        sns.heatmap(
            values, ax=axis, annot=True, fmt=".0f", vmin=0, vmax=100, cmap="viridis", cbar=False, square=True,
            yticklabels=rows if axis is axes[0, 0] else False, annot_kws={"size": 6},
        )  # fmt: skip
        axis.set(title=METHODS[record.method].label, xlabel="evaluated level")
    axes[0, 0].set_ylabel("attacked level")
    return figure
