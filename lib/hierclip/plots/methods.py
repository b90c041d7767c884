"""What figures that compare methods share: whose records, in which colours, bars side by side, the
legend.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from hierclip.evaluate import Record
from hierclip.params import Params
from hierclip.plots.frames import in_order

PAGE = 5.0  # inches; what is narrower is a column of a page


def first_seeds(records: Sequence[Record], split: str, params: Params) -> list[Record]:
    """The record of each method's first seed on a split, in the order of the methods."""
    return in_order(
        [r for r in records if (r.split, r.seed) == (split, params.seeds[0])], params.labels
    )


def beside(k: int, count: int) -> float:
    """Where the k-th of `count` methods stands, as seen from the middle of its group, which is 0.8
    wide.
    """
    return 0.8 * ((k + 0.5) / count - 0.5)


def reach(values: Sequence[float], bounds: Sequence[tuple[float, float]]) -> np.ndarray:
    """(2, N): how far intervals go down and up from their values, as matplotlib's error bars want
    it.
    """
    return np.abs(np.transpose(bounds) - np.asarray(values))


def bars(axis: Axes, place: tuple[int, int], values, bounds, colour: str, **style) -> None:
    """Accuracies, fractions, as a method's bars in percent, with their intervals; `place` as
    `beside` takes it.
    """
    places, height = np.arange(len(values)) + beside(*place), 100 * np.asarray(values)
    axis.bar(places, height, 0.8 / place[1], color=colour, **style)
    drawn = axis.errorbar(
        places, height, 100 * reach(values, bounds), ls="", elinewidth=0.8, color="black"
    )
    drawn[2][0].set_path_effects(
        [withStroke(linewidth=1.6, foreground="white")]
    )  # to be seen on a dark bar too


def pair(width: float, height: float, ylabel: str) -> tuple[Figure, np.ndarray]:
    """Two panels of one vertical axis: beside each other on a page, one above the other in a
    column.
    """
    rows, columns = (1, 2) if width >= PAGE else (2, 1)
    size = (width, rows * height)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axis in axes[:, 0]:
        axis.set_ylabel(ylabel)
    return figure, axes.ravel()


def fitting(width: float, least: float, count: int) -> int:
    """How many of `count` things of a least width, in inches, stand in a row; five at most."""
    return max(1, min(5, count, int(width / least)))


def legend(figure: Figure, axis: Axes) -> None:
    """The legend of one panel, above all."""
    handles, names = axis.get_legend_handles_labels()
    columns = fitting(figure.get_size_inches()[0], 1.4, len(names))
    figure.legend(handles, names, loc="outside upper center", ncols=columns)
