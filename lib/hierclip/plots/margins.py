"""Margin against depth."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hierclip.margins import euclidean_bound, hyperbolic_bound
from hierclip.plots.methods import fitting, legend


def margin_depth(margins: pd.DataFrame, colour: str, width: float) -> Figure:
    """Measured margins at the depth of each level's texts, under the bound of the ball and that of
    inner products.

    Depth is the distance from the centre, 2 artanh(sqrt(r) norm) / sqrt(r), along which the ball's
    bound is a line. A bar at each level is what its K texts can all have at once; boxes hold the
    middle half of the pictures, whiskers all but 5 % at either end, and a cross is the largest. A
    panel for each `tree`, where there is that column; `width` in inches is for three of them.
    """
    trees = list(margins.groupby("tree", sort=False)) if "tree" in margins else [("", margins)]
    columns = min(3, fitting(width, 1.6, len(trees)))
    rows = -(-len(trees) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(width, 0.6 + 2.1 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (name, part) in zip(axes.flat, trees, strict=False):
        _panel(axis, part, colour)
        axis.set_title(str(name))
        axis.tick_params(labelbottom=True)
    for axis in axes.flat[len(trees) :]:
        axis.remove()
    figure.supxlabel(
        "distance of the level's texts from the centre\n(numbers: levels)", size="medium"
    )
    figure.supylabel("margin (logits)", size="medium")
    legend(figure, axes[0, 0])
    return figure


def _panel(axis: Axes, margins: pd.DataFrame, colour: str) -> None:
    """One tree's levels; `margins` has columns `curvature` and `tau` beside those of
    `measured_margins`.
    """
    r, scale = (float(value) for value in margins[["curvature", "tau"]].iloc[0])
    levels = [part for _, part in margins.groupby("level")]
    places = [_depth(part["norm"].iloc[0], r) for part in levels]
    along = np.linspace(0, 1.1 * max(places), 100)
    norms = np.tanh(np.sqrt(r) * along / 2) / np.sqrt(r)
    axis.plot(
        along,
        [hyperbolic_bound(e, r, scale) for e in norms],
        color="black",
        label="largest in the ball",
    )
    axis.plot(
        along,
        [euclidean_bound(e, scale) for e in norms],
        color="0.5",
        ls="--",
        label="largest by inner products",
    )
    siblings = [part["sibling_bound"].iloc[0] for part in levels]
    axis.plot(places, siblings, "_", color="black", ms=8, mew=1.5, label="all K siblings at once")
    values = [part["margin"] for part in levels]
    narrow, box = 0.6 * min([0.4, *np.abs(np.diff(places))]), {"facecolor": colour, "lw": 0.7}
    middle = {"color": "white", "lw": 1.2}
    axis.boxplot(
        values,
        positions=places,
        widths=narrow,
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        # Fmt: skip
        manage_ticks=False,
        boxprops=box,
        medianprops=middle,
        label="measured",
    )
    largest = [part.max() for part in values]
    axis.plot(places, largest, "x", color=colour, ms=4, label="largest measured")
    for level, place in enumerate(places):
        axis.annotate(
            str(level),
            (place, largest[level]),
            (0, 4),
            textcoords="offset points",
            ha="center",
            size=7,
        )
    axis.axhline(0, color="black", lw=0.5)


def _depth(norm: float, r: float) -> float:
    """The distance from the centre of a point of this norm."""
    return 2 / np.sqrt(r) * np.arctanh(np.sqrt(r) * norm)
