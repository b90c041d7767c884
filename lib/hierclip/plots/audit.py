"""The audit in one figure."""

from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from hierclip.evaluate import Record
from hierclip.params import Params
from hierclip.plots.frames import in_order


def audit_figure(records: Sequence[Record], split: str, params: Params) -> Figure:
    """Leaf accuracy against budget, steps and restarts, and every check's number against its limit; a colour a method.

    The first seed of each method. A check's bar is the share of its limit that is used: failed beyond 1.
    """
    shown = in_order([r for r in records if (r.split, r.seed) == (split, params.seeds[0])], params.labels)
    figure, axes = plt.subplots(1, 3, figsize=(params.plots.width, 2.8), width_ratios=[1, 0.8, 1.3])
    checks = list(dict.fromkeys(name for r in shown for name in r.audit.checks))
    for k, r in enumerate(shown):
        style = {"color": params.plots.palette[r.method], "label": params.labels[r.method]}
        axes[0].plot(list(r.audit.budgets), list(r.audit.budgets.values()), marker=".", lw=1, **style)
        axes[1].plot(list(r.audit.steps), list(r.audit.steps.values()), marker=".", lw=1, **style)
        axes[1].plot(
            [f"x{n}" for n in r.audit.restarts],
            list(r.audit.restarts.values()),
            marker="s",
            ms=3,
            lw=1,
            ls=":",
            **style,
        )
        found = [(i, check) for i, name in enumerate(checks) if (check := r.audit.checks.get(name))]
        height = 0.8 / len(shown)
        places = [i + (k - (len(shown) - 1) / 2) * height for i, _ in found]
        axes[2].barh(places, [min(3, max(check.value, 0) / check.limit) for _, check in found], height, **style)
    axes[0].set(xlabel="budget", ylabel="leaf accuracy", ylim=(0, 1.02))
    axes[0].tick_params(axis="x", rotation=60)
    axes[1].set(xlabel="steps; restarts (dotted)", ylim=(0, 1.02))
    axes[2].axvline(1, color="black", lw=0.7)
    axes[2].set_yticks(np.arange(len(checks)), checks)
    axes[2].invert_yaxis()
    axes[2].set(xlabel="number by its limit (failed beyond 1)", xlim=(0, 3))
    axes[2].legend(frameon=False, fontsize=6)
    figure.suptitle(f"{shown[0].audit.images} pictures, {split.replace('_', '-')} classes", fontsize=8)
    figure.tight_layout()
    return figure
