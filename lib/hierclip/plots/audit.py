"""The audit in one figure."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binomtest

from hierclip.evaluate import Record
from hierclip.evaluate.masking import Check
from hierclip.params import Params
from hierclip.plots.methods import PAGE, beside, first_seeds, legend, reach


def audit_figure(records: Sequence[Record], split: str, params: Params) -> Figure:
    """Leaf accuracy against budget, steps and restarts, and every check's share against its limit;
    a colour a method.

    The first seed of each method, with exact 95 % intervals; a check's goes up only, as the record
    has it.
    """
    shown = first_seeds(records, split, params)
    panels, ratios, height = [["budgets", "checks"], ["effort", "checks"]], [1.2, 1], 5.2
    if (width := params.plots.width) < PAGE:
        panels, ratios, height = [["budgets"], ["effort"], ["checks"], ["checks"]], [1], 10
    figure, axes = plt.subplot_mosaic(
        panels,  # pyright: ignore
        figsize=(width, height),
        width_ratios=ratios,
        layout="constrained",
    )
    checks = list(dict.fromkeys(name for r in shown for name in r.audit.checks))
    for k, r in enumerate(shown):
        audit, shift = r.audit, beside(k, len(shown))
        style = {"color": params.plots.palette[r.method], "elinewidth": 0.6}
        starts = {f"×{n}": value for n, value in audit.restarts.items()}
        _curve(
            axes["budgets"],
            audit.budgets,
            0,
            shift,
            audit.images,
            style | {"label": params.labels[r.method]},
        )
        _curve(axes["effort"], audit.steps, 0, shift, audit.images, style)
        _curve(axes["effort"], starts, len(audit.steps), shift, audit.images, style | {"ls": ":"})
        _checks(
            axes["checks"],
            {checks.index(name): check for name, check in audit.checks.items()},
            shift,
            style,
        )
    _name(axes, shown[0], checks)
    legend(figure, axes["budgets"])
    return figure


def _curve(
    axis: Axes, found: Mapping[str, float], start: int, shift: float, images: int, style: dict
) -> None:
    """Accuracies of so many images, one a tick from `start` on, with exact 95 % intervals."""
    values = list(found.values())
    bounds = [binomtest(round(value * images), images).proportion_ci() for value in values]
    errors = 100 * reach(values, [(b.low, b.high) for b in bounds])
    places = start + np.arange(len(values)) + shift
    axis.errorbar(places, 100 * np.array(values), errors, marker="o", ms=2.5, **style)


def _checks(axis: Axes, found: Mapping[int, Check], shift: float, style: dict) -> None:
    """Shares by the row of their check, with what they may be at most; filled where the check
    failed.
    """
    for row, check in found.items():
        value, high = 100 * max(check.value, 0), 100 * check.high
        filled = {"mfc": "white" if check.passed else style["color"], "marker": "o", "ms": 4}
        axis.errorbar(value, row + shift, xerr=[[0], [high - value]], ls="", **filled, **style)
        axis.plot([100 * check.limit] * 2, [row - 0.45, row + 0.45], color="black", lw=1)


def _name(axes: Mapping[str, Axes], record: Record, checks: Sequence[str]) -> None:
    """What stands on the axes."""
    audit = record.audit
    ticks = {
        "budgets": [n.removesuffix("/255") for n in audit.budgets],
        "effort": [*audit.steps, *(f"×{n}" for n in audit.restarts)],
    }
    for panel, names in ticks.items():
        axes[panel].set_xticks(range(len(names)), names)
        axes[panel].set(ylabel="leaf accuracy (%)", ylim=(0, 102))
    axes["budgets"].set_xlabel(f"budget (1/255, {record.threat_model.norm})")
    axes["effort"].set_xlabel("steps; random starts (×, dotted)")
    axes["checks"].set_yticks(range(len(checks)), checks)
    axes["checks"].set(
        xlabel="share of pictures (%)\nbar: limit; filled: failed", ylim=(len(checks) - 0.5, -0.5)
    )
    axes["checks"].set_xlim(left=-1)
