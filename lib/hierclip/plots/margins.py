"""Margin against depth."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from hierclip.margins import euclidean_bound, hyperbolic_bound


def margin_depth(margins: pd.DataFrame) -> Figure:
    """Measured margins at the norm of each level's texts, under the bound of the ball and that of inner products."""
    figure, axis = plt.subplots(figsize=(6, 3.2))
    curvature, scale = margins[["curvature", "tau"]].iloc[0]
    eta = np.linspace(0, 0.995 / np.sqrt(curvature), 300)
    axis.plot(eta, [hyperbolic_bound(e, curvature, scale) for e in eta], label="largest in the ball", color="C3")
    axis.plot(eta, [euclidean_bound(e, scale) for e in eta], label="largest with inner products", color="0.5", ls="--")
    levels = [part for _, part in margins.groupby("level")]
    norms = [part["norm"].iloc[0] for part in levels]
    drawn = axis.violinplot([part["margin"] for part in levels], positions=norms, widths=0.03, showmedians=True)
    drawn["cmedians"].set_color("k")
    for level, (norm, part) in enumerate(zip(norms, levels, strict=True)):
        axis.annotate(str(level), (norm, part["margin"].max()), xytext=(0, 3), textcoords="offset points", ha="center")
    axis.axhline(0, color="k", lw=0.5)
    axis.set(xlabel="norm of the level's texts (numbers: levels)", ylabel="margin (logits)")
    axis.legend(frameon=False, loc="upper left")
    return figure
