"""The disk of the explorer: its widget, and what it draws of a model and an image."""

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from PIL import Image
from torch import Tensor

from hierclip.models.heads import Head, head_to_dict
from hierclip.trees import Tree


class Disk(anywidget.AnyWidget):
    """Draw `scene` and `marks`; a click on a node is a message {"leaf": its first leaf}."""

    _esm = Path(__file__).parent / "disk.js"
    _css = Path(__file__).parent / "explorer.css"
    scene = traitlets.Dict().tag(sync=True)
    marks = traitlets.Dict().tag(sync=True)
    images = traitlets.Dict().tag(sync=True)  # by leaf, what the pointer shows
    level = traitlets.Int(0).tag(sync=True)
    stretch = traitlets.Float(0.6).tag(sync=True)


def node_angles(tree: Tree) -> list[np.ndarray]:
    """Return by level (K_l,) radians: leaves evenly spaced, nodes in the middle of theirs."""
    ranks = np.argsort(np.lexsort(tree.paths.T))  # the last column, the coarsest, first
    angles = 2 * np.pi * (ranks + 0.5) / len(ranks)
    return [np.bincount(nodes, angles) / np.bincount(nodes) for nodes in tree.paths.T]


def scene(tree: Tree, text_points: Sequence[Tensor], head: Head) -> dict:
    """List the tree's nodes for disk.js, leaves first; parent: a place in the list, or -1.

    text_points: (K_l, D) by level.
    """
    norms = [points.norm(dim=-1).tolist() for points in text_points]
    angles = node_angles(tree)
    starts = np.cumsum([0, *tree.sizes])
    nodes = []
    for level, names in enumerate(tree.levels):
        for k, node in enumerate(names):
            leaves = np.flatnonzero(tree.paths[:, level] == k)
            parent = starts[level + 1] + tree.parents[level][k] if level < tree.max_level else -1
            nodes.append(
                {
                    "level": level,
                    "name": node.name,
                    "parent": int(parent),
                    "norm": norms[level][k],
                    "angle": float(angles[level][k]),
                    "family": int(tree.paths[leaves[0], -1]),
                    "leaves": leaves[:6].tolist(),  # the pointer shows an image of each
                    "count": len(leaves),
                }
            )
    return {"head": head_to_dict(head), "nodes": nodes, "families": tree.sizes[-1]}


def marks(tree: Tree, states: Sequence[Any]) -> dict:
    """List for disk.js the true path and each state's nearest nodes and points, leaves first.

    states: of one image, each with its label, and arrays with an entry per level: nodes, norms,
    angles.
    """
    starts = np.cumsum([0, *tree.sizes[:-1]])
    path = starts + tree.paths[states[0].label]
    drawn = [
        {
            "nodes": (starts + state.nodes).tolist(),
            "norms": state.norms.tolist(),
            "angles": state.angles.tolist(),
        }
        for state in states
    ]
    return {"path": path.tolist(), "states": drawn}


def png(image: Tensor, longest: int = 1000) -> str:
    """Encode an image (3, H, W) in [0, 1] as the address of an <img>, at most `longest` pixels."""
    pixels = Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().cpu().numpy())
    pixels.thumbnail((longest, longest))
    buffer = BytesIO()
    pixels.save(buffer, "png")
    return f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"
