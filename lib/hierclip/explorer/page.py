"""Draw a tree and images in the disk, for notebook 90 and as a page that needs no kernel."""

import json
import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from jinja2 import Environment
from PIL import Image
from torch import Tensor

from hierclip.errors import refuse
from hierclip.hyperbolic import pairwise_distance
from hierclip.models.heads import Head, PoincareHead, head_to_dict
from hierclip.trees import Tree

FILES = Path(__file__).parent  # of disk.js and the style sheet


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


@dataclass(frozen=True)
class DrawnImage:
    """An image in the disk, and what an attack made of it.

    label: its leaf. points: (S, D) in the ball: clean, then along the attack. pixels: (S, 3, H, W)
    in [0, 1]; None shows no image. name: in the page's list; by default its leaf's.
    """

    label: int
    points: Tensor
    pixels: Tensor | None = None
    name: str = ""


@dataclass(frozen=True)
class DiskPage:
    """What a page shows, as JSON can hold it."""

    title: str
    content: dict
    credit: str = ""

    def to_html(self, path: str | Path | None = None) -> str:
        """Return the page, which loads nothing; write it to a file if one is named."""
        script = (FILES / "disk.js").read_text(encoding="utf8")
        page = Environment(autoescape=True).from_string(
            (FILES / "page.html").read_text(encoding="utf8")
        )
        html = page.render(
            title=self.title,
            credit=self.credit,
            script=re.sub(r"^export (default .*)?", "", script, flags=re.M),
            content=json.dumps(self.content).replace("<", "\\u003c"),  # nor does a name end it
        )
        if path is not None:
            Path(path).write_text(html, encoding="utf8")
        return html


def disk(
    points: Sequence[Tensor],
    tree: Tree,
    images: Sequence[DrawnImage] = (),
    *,
    curvature: float = 1.0,
    tau: float = 7.0,
    title: str = "A class tree in the Poincaré disk",
    credit: str = "",
) -> DiskPage:
    """Draw a tree's nodes and some images in the ball of curvature -curvature.

    points: by level, leaves first, (K_l, D) in the ball; an angle in the disk keeps families side
    by side, the radius is the norm. tau: of the softmax of distances, whose mean over the leaves is
    an image's angle. credit: a line of whom the images are. Raises HierclipError for points of
    another number or dimension, or outside the ball.
    """
    points = [level.detach().cpu() for level in points]
    images = [replace(image, points=image.points.detach().cpu()) for image in images]
    sizes = tuple(len(level) for level in points)
    shapes = {level.shape[1:] for level in (*points, *(image.points for image in images))}
    rim = curvature**-0.5
    norms = [level.norm(dim=-1) for level in (*points, *(image.points for image in images))]
    odd = [image.label for image in images if not 0 <= image.label < len(tree.leaves)]
    refuse(
        {
            f"points of {sizes} nodes; the levels of tree {tree.name} have {tree.sizes}": (
                sizes != tree.sizes
            ),
            f"points of shapes (..., {', '.join(str(tuple(each)) for each in shapes)}); (K, D) of "
            "one D are needed": len(shapes) > 1 or len(next(iter(shapes))) != 1,
            f"points outside the ball, whose rim is at norm {rim:g}": any(
                not (level < rim).all() for level in norms
            ),
            f"label {odd[:1]}: tree {tree.name} has {len(tree.leaves)} leaves, from 0": odd,
        }
    )
    head = PoincareHead(curvature, 1.0, 1.0, 1.0, tau)
    angles = node_angles(tree)[0]
    drawn, thumbnails = [], {}
    for image in images:
        distances = [pairwise_distance(image.points, level, curvature) for level in points]
        nodes = np.stack([each.argmin(1).numpy() for each in distances], axis=1)  # (S, L + 1)
        weights = (-tau * distances[0]).softmax(1).numpy()
        states = [
            SimpleNamespace(
                label=image.label, nodes=nodes[k], norms=norm[None], angles=np.atleast_1d(angle)
            )
            for k, (norm, angle) in enumerate(
                zip(
                    image.points.norm(dim=-1).numpy(),
                    np.angle(weights @ np.exp(1j * angles)),
                    strict=True,
                )
            )
        ]
        strip = [] if image.pixels is None else [png(each, 160) for each in image.pixels]
        thumbnails |= {str(image.label): each for each in strip[:1]}
        words = {"name": image.name or tree.leaves[image.label].name, "strip": strip}
        drawn.append(marks(tree, states) | words)
    content = {
        "scene": scene(tree, points, head),
        "marks": drawn,
        "images": thumbnails,
        "levels": [[node.name for node in level] for level in tree.levels],
    }
    return DiskPage(title, content, credit)
