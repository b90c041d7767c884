"""Margin against depth."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hierclip.margins import euclidean_bound, hyperbolic_bound


def margin_depth(margins: pd.DataFrame) -> Figure:
    """Measured margins at the norm of each level's texts, under the bound of the ball and that of inner products.

    A tick at each level is what its K texts can all have at once. A panel for each `tree`, where there is that column.
    """
    trees = list(margins.groupby("tree", sort=False)) if "tree" in margins else [("", margins)]
    size = (max(6, 2.6 * len(trees)), 3.4)
    figure, axes = plt.subplots(
        1, len(trees), figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (name, part) in zip(axes[0], trees, strict=True):
        _panel(axis, part)
        axis.set_title(str(name))
    figure.supxlabel("norm of the level's texts (numbers: levels)", size="medium")
    axes[0, 0].set_ylabel("margin (logits)")
    drawn = axes[0, 0].get_legend_handles_labels()
    figure.legend(*drawn, frameon=False, loc="outside upper left", ncols=min(1 + len(trees), 3))
    return figure


def _panel(axis: Axes, margins: pd.DataFrame) -> None:
    """One tree's levels; `margins` has columns `curvature` and `tau` beside those of `measured_margins`."""
    curvature, scale = margins[["curvature", "tau"]].iloc[0]
    eta = np.linspace(0, 0.995 / np.sqrt(curvature), 300)
    axis.plot(eta, [hyperbolic_bound(e, curvature, scale) for e in eta], label="largest in the ball", color="C3")
    axis.plot(eta, [euclidean_bound(e, scale) for e in eta], label="largest with inner products", color="0.5", ls="--")
    levels = [part for _, part in margins.groupby("level")]
    norms = [part["norm"].iloc[0] for part in levels]
    siblings = [part["sibling_bound"].iloc[0] for part in levels]
    axis.plot(norms, siblings, "_", color="k", ms=8, mew=1.5, label="largest smallest margin of K siblings")
    drawn = axis.violinplot([part["margin"] for part in levels], positions=norms, widths=0.03, showmedians=True)
    drawn["cmedians"].set_color("k")  # pyright: ignore
    for level, (norm, part) in enumerate(zip(norms, levels, strict=True)):
        axis.annotate(str(level), (norm, part["margin"].max()), xytext=(0, 3), textcoords="offset points", ha="center")
    axis.axhline(0, color="k", lw=0.5)
