"""Pictures on a sheet."""

from collections.abc import Sequence

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor


def sheet(images: Tensor, names: Sequence[str], columns: int, credit: str) -> Figure:
    """Pictures (N, 3, H, W) in [0, 1] with their names."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(0.62 * columns, 0.75 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, name in zip(axes.flat, images, names, strict=False):
        axis.imshow(image.permute(1, 2, 0).numpy())
        axis.set_title(name, fontsize=5, pad=1)
    figure.text(0.5, 0.0, credit, ha="center", va="top", fontsize=6, color="0.4")
    figure.tight_layout(pad=0.2)
    return figure
