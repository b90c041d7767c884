"""Pictures on a sheet."""

from collections.abc import Sequence

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from hierclip.model import Classifier
from hierclip.trees import Tree


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


@torch.no_grad()
def attack_strip(classifier: Classifier, before: Tensor, after: Tensor, tree: Tree, eps: float, credit: str) -> Figure:
    """Pictures (N, 3, H, W) in [0, 1], what was added to them (magnified to the full range), and what came of it; under
    each the path that it is given, nearest node by level, leaf first. classifier: over the levels of `tree`.
    """
    figure, axes = plt.subplots(3, len(before), figsize=(1.4 * len(before), 6.2), squeeze=False)
    noise = ((after - before) / (2 * eps) + 0.5).clamp(0, 1)
    for row, (images, what) in enumerate(
        ((before, "clean"), (noise, f"{0.5 / eps:.0f} times the change"), (after, "attacked"))
    ):
        nodes = torch.stack([level.argmax(1) for level in classifier(images)], dim=1) if row != 1 else None
        for column, image in enumerate(images):
            axis = axes[row, column]
            axis.imshow(image.permute(1, 2, 0).cpu().numpy())
            axis.set(xticks=[], yticks=[], title=what if column == 0 else "")
            path = [] if nodes is None else [tree.levels[l][int(node)].name for l, node in enumerate(nodes[column])]
            axis.set_xlabel("\n".join(path), fontsize=5)
    figure.text(0.5, 0.0, credit, ha="center", va="top", fontsize=6, color="0.4")
    figure.tight_layout(pad=0.3)
    return figure
