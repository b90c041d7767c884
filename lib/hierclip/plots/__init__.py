"""Figures, a module for each matter, each function giving a matplotlib Figure; and the results table."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

STYLE = {"font.size": 8, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 100}
mpl.rcParams.update(STYLE)  # pyright: ignore


def save(figure: Figure, path: Path, dpi: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, bbox_inches="tight", metadata={"Software": None})
