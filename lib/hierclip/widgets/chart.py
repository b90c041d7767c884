"""The bound against depth, with one picture's margins on it."""

from collections.abc import Sequence
from io import StringIO
from math import isfinite

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hierclip.margins import head_bounds
from hierclip.widgets.look import Lens, Look, ordered_norms

CLEAN, MOVED, ASKED, BOUND = "#111111", "#d00000", "#0060b0", "#a05000"
APART = 0.02  # between levels that share one norm


def bound_chart(lens: Lens, looks: Sequence[Look], zeta: float, trained: Lens) -> Figure:
    """The bound of a pair against norm; at the largest norm of each level's texts, that bound, the one of all its texts
    as siblings, and the margins of the looks (clean, attacked).

    lens: perhaps at another curvature than the `trained` one, whose curve is drawn too. zeta: diamonds are the least
    norms that an order with such gaps asks for, on the curve; none where the head has no depth.
    """
    figure = Figure(figsize=(5.0, 3.8), layout="constrained")
    axis = figure.subplots()
    levels = lens.bounds()
    norms = [eta for eta, _, _ in (*levels, *trained.bounds())]
    ends = 0.9 * min(norms), 1.02 * max(lens.rim, trained.rim) if isfinite(lens.rim) else 1.15 * max(norms)
    if lens.head != trained.head:
        _curve(axis, trained, ends, color="0.7", lw=1, label="the same as trained")
    _curve(axis, lens, ends, color=BOUND, gid="bound", label="bound of a pair")
    if isfinite(lens.rim):
        axis.axvline(lens.rim, color=BOUND, lw=0.8, ls="--")
        axis.annotate("rim", (lens.rim, 1.01), xycoords=("data", "axes fraction"), ha="center", color=BOUND, fontsize=8)
    if lens.deep:
        asked = [eta for eta in ordered_norms(levels[-1][0], zeta, lens.tree.top) if eta < lens.rim]
        values = [head_bounds(lens.head, eta, 2)[0] for eta in asked]
        axis.plot(asked, values, "D", mfc="w", color=ASKED, ms=5, gid="asked", label="least norms by zeta_gap")
    _levels(axis, lens, looks)
    tops = [pair for _, pair, _ in (*levels, *trained.bounds()) if isfinite(pair)]
    margins = [m for seen in looks for m in seen.margins if isfinite(m)]
    high = 1.15 * max(tops, default=1.0)
    axis.set(xlim=ends, ylim=(min(0, *margins) - 0.07 * high, high))
    axis.set(xlabel="norm of the level's texts", ylabel="margin (logits)")
    axis.axhline(0, color="0.3", lw=0.6)
    figure.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=2)
    return figure


def _curve(axis: Axes, lens: Lens, ends: tuple[float, float], **style) -> None:
    eta = np.linspace(ends[0], min(ends[1], 0.9999 * lens.rim), 200)
    axis.plot(eta, [head_bounds(lens.head, e, 2)[0] for e in eta.tolist()], **style)


def _levels(axis: Axes, lens: Lens, looks: Sequence[Look]) -> None:
    """Each level's number in a disc at its margins, under its bounds; side by side where all have one norm."""
    for l, (eta, pair, siblings) in enumerate(lens.bounds()):
        x = eta if lens.deep else eta + APART * (l - lens.tree.top / 2)
        axis.plot(x, pair, "_", color=BOUND, ms=9, mew=2)
        axis.plot(x, siblings, "_", color="k", ms=9, mew=1.5, label="bound of all siblings" if l == 0 else None)
        margins = [float(seen.margins[l]) for seen in looks if isfinite(seen.margins[l])]
        axis.plot([x] * len(margins), margins, color=MOVED, lw=1)
        for margin, ink in zip(margins, (CLEAN, MOVED), strict=False):
            axis.plot(x, margin, "o", color=ink, mec="w", ms=11)
            axis.annotate(str(l), (x, margin), ha="center", va="center", color="w", fontsize=7)


def svg(figure: Figure) -> str:
    """A figure as an element of a page, its words as text."""
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(text := StringIO(), format="svg")
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]
