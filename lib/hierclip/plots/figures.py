"""Figures of records that two notebooks share: accuracy by level, level matrices, the audit.

`records` are one for each method, drawn in their order; `labels` and `palette` are by method;
`width`, of the figure, is in inches.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from scipy.stats import binomtest

from hierclip.evaluation import Record
from hierclip.models import READINGS

PAGE = 5.0  # inches; a narrower figure is for a column of a page
Words = Mapping[str, str]


def level_bars(records: Sequence[Record], labels: Words, palette: Words, width: float) -> Figure:
    """Draw clean accuracy (pale) and accuracy under the level's own attack (full), by level.

    A panel for each reading; 95 % intervals over images.
    """
    ylabel = (
        "accuracy (%): clean (pale),\n"
        f"under {records[0].threat_model.norm} {records[0].threat_model.eps} (full)"
    )
    figure, axes = reading_panels(width, 2.8, ylabel, "level (0: leaves)")
    for axis, reading in zip(axes, READINGS, strict=True):
        for k, record in enumerate(records):
            bounds, place = record.intervals[reading], (k, len(records))
            style = {"color": palette[record.method]}
            bars(axis, place, record.clean[reading], bounds.clean, alpha=0.3, **style)
            robust, robust_bounds = (
                np.diagonal(record.robust[reading]),
                np.diagonal(bounds.robust).T,
            )
            bars(axis, place, robust, robust_bounds, label=labels[record.method], **style)
    legend(figure, axes[0])
    return figure


def matrices(records: Sequence[Record], reading: str, labels: Words, width: float) -> Figure:
    """Draw A[attacked level, evaluated level] as heat maps, the clean row on top.

    An attack's own level is framed. A panel for each record, five in a row of a page.
    """
    columns = fitting(width, 1.3, len(records))
    rows = -(-len(records) // columns)
    deep = max(len(record.levels) for record in records)
    side = min(0.83 * width / columns, 2.5)
    height = 0.2 + rows * (0.5 + side * (deep + 1) / deep)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, height), squeeze=False, layout="constrained"
    )
    for axis, record in zip(axes.flat, records, strict=False):
        values = 100 * np.array([record.clean[reading], *record.robust[reading]])
        names = ["clean", *range(len(record.levels))] if axis in axes[:, 0] else False
        sns.heatmap(
            values, ax=axis, annot=True, fmt=".0f", annot_kws={"size": 7}, square=True,
            vmin=0, vmax=100, cmap="viridis", cbar=False, yticklabels=names,
        )  # fmt: skip
        for level in range(len(record.levels)):
            axis.add_patch(Rectangle((level, level + 1), 1, 1, fill=False, ec="white", lw=1))
        axis.tick_params(axis="y", rotation=0)
        axis.set_title(labels[record.method].replace(", ", ",\n"))
    for axis in axes.flat[len(records) :]:
        axis.axis("off")
    figure.supxlabel("evaluated level (0: leaves)", size="medium")
    figure.supylabel("attacked level", size="medium")
    figure.colorbar(axes[0, 0].collections[0], ax=axes, label="accuracy (%)", aspect=30, pad=0.01)
    return figure


def audit_figure(records: Sequence[Record], labels: Words, palette: Words, width: float) -> Figure:
    """Draw leaf accuracy against budget, steps and restarts, and every check against its limit.

    Accuracies have exact 95 % intervals, a check's share the upper bound of its record.
    """
    panels, ratios, height = [["budgets", "checks"], ["effort", "checks"]], [1.2, 1], 5.2
    if width < PAGE:
        panels, ratios, height = [["budgets"], ["effort"], ["checks"], ["checks"]], [1], 10
    size = {"figsize": (width, height), "width_ratios": ratios, "layout": "constrained"}
    figure, axes = plt.subplot_mosaic(panels, **size)  # pyright: ignore
    rows = list(dict.fromkeys(name for record in records for name in record.audit.checks))
    audit = records[0].audit
    for k, record in enumerate(records):
        shift = offset(k, len(records))
        style = {"color": palette[record.method], "elinewidth": 0.6, "label": labels[record.method]}
        _audit_curves(axes["budgets"], axes["effort"], record, shift, style)
        for name, check in record.audit.checks.items():
            value, limit = 100 * max(check.value, 0), 100 * check.limit
            axes["checks"].errorbar(
                value, rows.index(name) + shift, xerr=[[0], [100 * check.high - value]], ls="",
                marker="o", ms=4, mfc="white" if check.passed else style["color"], **style,
            )  # fmt: skip
            ends = (rows.index(name) - 0.45, rows.index(name) + 0.45)
            axes["checks"].plot([limit, limit], ends, color="black", lw=1)
    accuracy = {"ylabel": "leaf accuracy (%)", "ylim": (0, 102)}
    axes["budgets"].set(
        xlabel=f"budget (1/255, {records[0].threat_model.norm})",
        xticks=range(len(audit.budgets)),
        xticklabels=[name.removesuffix("/255") for name in audit.budgets],
        **accuracy,
    )
    axes["effort"].set(
        xlabel="steps; random starts (×, dotted)",
        xticks=range(len(audit.steps) + len(audit.restarts)),
        xticklabels=[*audit.steps, *(f"×{count}" for count in audit.restarts)],
        **accuracy,
    )
    axes["checks"].set(
        xlabel="share (%)\nbar: limit; filled: failed",
        yticks=range(len(rows)),
        yticklabels=rows,
        ylim=(len(rows) - 0.5, -0.5),
        xlim=(-1, None),
    )
    legend(figure, axes["budgets"])
    return figure


def _audit_curves(by_budget: Axes, by_effort: Axes, record: Record, shift: float, style: dict):
    """Draw leaf accuracies, one a tick: by budget; by steps and then, dotted, by restarts."""
    audit, starts = record.audit, len(record.audit.steps)
    curves = [(by_budget, audit.budgets, 0, "-"), (by_effort, audit.steps, 0, "-")]
    for axis, accuracies, first, line in [*curves, (by_effort, audit.restarts, starts, ":")]:
        values = np.array(list(accuracies.values()))
        tests = [binomtest(round(value * audit.images), audit.images) for value in values]
        errors = 100 * np.abs(np.transpose([t.proportion_ci() for t in tests]) - values)
        positions = first + np.arange(len(values)) + shift
        axis.errorbar(positions, 100 * values, errors, marker="o", ms=2.5, ls=line, **style)


def reading_panels(width: float, height: float, ylabel: str, xlabel: str) -> tuple[Figure, list]:
    """Make a panel in percent for each reading: side by side, or stacked in a column."""
    rows, columns = (1, 2) if width >= PAGE else (2, 1)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, rows * height), sharey=True, layout="constrained"
    )
    for axis, reading in zip(axes, READINGS, strict=True):
        axis.set(title=f"{reading.replace('_', '-')} reading", ylim=(0, 100), xlabel=xlabel)
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel(ylabel)
    return figure, axes


def bars(axis: Axes, place: tuple[int, int], values, bounds, **style) -> None:
    """Draw a method's accuracies (N,) with their intervals (N, 2), fractions, as bars in percent.

    place: which of how many methods, as `offset` takes it.
    """
    positions, height = np.arange(len(values)) + offset(*place), 100 * np.asarray(values)
    axis.bar(positions, height, 0.8 / place[1], **style)
    errors = 100 * np.abs(np.transpose(bounds) - np.asarray(values))
    drawn = axis.errorbar(positions, height, errors, ls="", elinewidth=0.8, color="black")
    drawn[2][0].set_path_effects([withStroke(linewidth=1.6, foreground="white")])  # on a dark bar


def offset(k: int, count: int) -> float:
    """Return where the k-th of `count` methods lies within its group, which is 0.8 wide."""
    return 0.8 * ((k + 0.5) / count - 0.5)


def fitting(width: float, least: float, count: int) -> int:
    """Return how many of `count` things of a least width, in inches, fit in a row; five at most."""
    return max(1, min(5, count, int(width / least)))


def legend(figure: Figure, axis: Axes) -> None:
    """Put the legend of one panel above all panels."""
    handles, names = axis.get_legend_handles_labels()
    columns = fitting(figure.get_size_inches()[0], 1.4, len(names))
    figure.legend(handles, names, loc="outside upper center", ncols=columns)
