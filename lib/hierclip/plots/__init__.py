"""Figures that two notebooks share, and the style of all figures."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

# For figures at the size of the page: no letter is smaller than 7 points.
STYLE = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7,
    "ytick.labelsize": 7, "legend.fontsize": 7, "legend.frameon": False, "axes.spines.top": False,
    "axes.spines.right": False, "lines.linewidth": 1, "errorbar.capsize": 0, "figure.dpi": 100,
    "pdf.fonttype": 42,
}  # fmt: skip


def style() -> None:
    """Set matplotlib to STYLE for this process: for a notebook; the library uses `rc_context`."""
    mpl.rcParams.update(STYLE)  # pyright: ignore


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write PATH.png and PATH.pdf without dates, the same to the byte each time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):  # pyright: ignore
        figure.savefig(f"{path}.png", dpi=dpi, metadata={"Software": None})
        figure.savefig(f"{path}.pdf", metadata={"CreationDate": None})
