"""Pictures on a sheet."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from hierclip.model import Classifier
from hierclip.trees import Tree

WRONG = "#b00020"


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


def strip_path(root: Path, model: str) -> Path:
    """Where the strip of a model, METHOD-SEED, is kept, without the suffix."""
    return root / "data/attacks" / model / "strip"


def magnified(before: Tensor, after: Tensor) -> tuple[Tensor, float]:
    """What was added to pictures in [0, 1], around grey, and how many times larger it is drawn: the
    largest change reaches black or white, in whatever norm the budget is.
    """
    change = after - before
    times = 0.5 / (float(change.abs().max()) or 0.5)
    return (times * change + 0.5).clamp(0, 1), times


@torch.no_grad()
def attack_strip(
    classifier: Classifier,
    before: Tensor,
    after: Tensor,
    labels: Tensor,
    tree: Tree,
    credit: str,
    width: float,
) -> Figure:
    """Pictures (N, 3, H, W) in [0, 1], what was added to them (`magnified`), and what came of it;
    above them the leaf that is true (labels: (N,)), under each the path that it is given, nearest
    node by level, leaf first; bold and in colour is what is wrong. classifier: over the levels of
    `tree`; width in inches.
    """
    columns = max(4, len(before))
    size = (width, 2.6 * width / columns + 0.25 * len(tree.levels) + 0.5)
    figure, axes = plt.subplots(3, columns, figsize=size, layout="constrained")
    for axis in axes[:, len(before) :].flat:
        axis.axis("off")
    noise, times = magnified(before, after)
    paths = [
        torch.stack([level.argmax(1) for level in classifier(images)], dim=1).tolist()
        for images in (before, after)
    ]
    truth = tree.paths[labels.cpu().numpy()].tolist()  # a tensor of one would count as a number
    shown = (
        (before, "clean", paths[0]),
        (noise, f"change, ×{times:.0f}", None),
        (after, "attacked", paths[1]),
    )
    for row, (images, what, nodes) in enumerate(shown):
        axes[row, 0].set_ylabel(what)
        for column, image in enumerate(images):
            axes[row, column].imshow(image.permute(1, 2, 0).cpu().numpy())
            axes[row, column].set(xticks=[], yticks=[])
            if nodes:
                _path(axes[row, column], nodes[column], truth[column], tree)
    for column, path in enumerate(truth):
        axes[0, column].set_title(_shortened(tree.levels[0][path[0]].name), size=7)
    figure.supxlabel(credit, size=7, color="0.4")
    return figure


def _shortened(name: str) -> str:
    return textwrap.shorten(name, 20, placeholder="…")


def _path(axis: Axes, nodes: list[int], truth: list[int], tree: Tree) -> None:
    """The names of a path under a picture, leaf first, bold and in colour where the true one is
    another.
    """
    names = [_shortened(tree.levels[l][node].name) for l, node in enumerate(nodes)]
    axis.set_xlabel("\n".join(names), size=7, alpha=0)  # keeps the room
    for l, (node, true, name) in enumerate(zip(nodes, truth, names, strict=True)):
        weight, colour = ("normal", "black") if node == true else ("bold", WRONG)
        style = {"ha": "center", "va": "top", "size": 7, "weight": weight, "color": colour}
        axis.annotate(name, (0.5, 0), (0, -4 - 8.6 * l), "axes fraction", "offset points", **style)
