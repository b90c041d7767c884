"""A tree in the Poincare disk of radius 1: angles by subtree, radii by norm, edges as geodesics; drawn by disk.js."""

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from math import hypot, isfinite
from pathlib import Path

import anywidget
import numpy as np
import traitlets
from PIL import Image
from torch import Tensor

from hierclip.explorer.view import ImageState, ModelView
from hierclip.trees import Tree

ANGLE_NOTE = (
    "This head reads by angle: every text and every picture has norm 1 and none has a depth. "
    "All levels share the one circle; lines only join parent and child."
)
FLAT_NOTE = "A flat space has no rim: radii are norms in proportion, edges straight lines."


class Disk(anywidget.AnyWidget):
    """Draws what `scene` and `marks` give; `clicked` is the index of the node that was clicked."""

    _esm = Path(__file__).parent / "disk.js"
    scene = traitlets.Dict().tag(sync=True)
    marks = traitlets.Dict().tag(sync=True)
    pictures = traitlets.Dict().tag(sync=True)  # by leaf, what the pointer shows
    level = traitlets.Int(0).tag(sync=True)
    width = traitlets.Int(680).tag(sync=True)
    clicked = traitlets.Int(-1).tag(sync=True)


def node_angles(tree: Tree) -> list[np.ndarray]:
    """Computes by level (K_l,) radians: leaves evenly around the circle, those of every node side by side, and each
    node in the middle of its leaves.
    """
    ranks = np.empty(len(tree.leaves))
    ranks[np.lexsort(tree.paths.T)] = np.arange(len(ranks)) + 0.5  # the last column, the coarsest, counts first
    angles = 2 * np.pi * ranks / len(ranks)
    return [np.bincount(nodes, angles) / np.bincount(nodes) for nodes in tree.paths.T]


def mean_angle(weights: np.ndarray, angles: np.ndarray) -> float:
    """Computes the direction of the weighted mean of unit vectors, in [0, 2 pi) radians. weights, angles: (K,)."""
    return float(np.angle(np.sum(weights * np.exp(1j * angles))) % (2 * np.pi))


def ball_radius(share: np.ndarray, stretch: float) -> np.ndarray:
    """Computes drawn radii tanh(stretch artanh(share)) from share = sqrt(r) |z| of [0, 1), (...).

    The distance from the centre times `stretch`: 1 draws norms as they are, less makes room between deep ones.
    """
    return np.minimum(np.tanh(stretch * np.arctanh(np.minimum(share, 1 - 1e-9))), 0.999)


def drawn_radius(model_view: ModelView, norms: np.ndarray | float, stretch: float) -> np.ndarray:
    """Computes drawn radii from norms: by `ball_radius` in the ball; in a flat space in proportion, the rim being twice
    the longest radius asked for, which norms stay below; all on one circle for a head by angle.
    """
    head, norms = model_view.head, np.asarray(norms)
    if isfinite(model_view.rim):
        return ball_radius(norms / model_view.rim, stretch)
    if model_view.has_depth:
        return norms / (2 * max(float(head.image_radius), float(head.text_radius), float(head.top_radius)))  # pyright: ignore
    return 0.8 * norms


def place(radius: np.ndarray | float, angle: np.ndarray | float) -> np.ndarray:
    """Converts polar to Cartesian coordinates, (..., 2)."""
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


def geodesic(p: Sequence[float], q: Sequence[float]) -> tuple[float, bool]:
    """Computes radius and sweep, as SVG's elliptical arc has them, of the geodesic from p to q: an arc of the circle
    orthogonal to the rim, whose centre c has |c|^2 = 1 + radius^2; radius 0: a straight line.

    sweep: the angle around the arc's centre rises on the way.
    """
    cross = p[0] * q[1] - p[1] * q[0]
    if abs(cross) < 1e-6:  # a diameter
        return 0.0, False
    a, b = (1 + hypot(*p) ** 2) / 2, (1 + hypot(*q) ** 2) / 2  # c p = a, c q = b
    x, y = (a * q[1] - b * p[1]) / cross, (b * p[0] - a * q[0]) / cross
    return hypot(p[0] - x, p[1] - y), (p[0] - x) * (q[1] - y) - (p[1] - y) * (q[0] - x) > 0


def png(image: Tensor, longest: int = 1000) -> str:
    """Encodes a picture (3, H, W) in [0, 1] as the address of an <img>, no side above `longest` pixels."""
    picture = Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().cpu().numpy())
    picture.thumbnail((longest, longest))
    picture.save(buffer := BytesIO(), "png")
    return f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"


def scene(model_view: ModelView, stretch: float) -> dict:
    """Lists the nodes of every level, leaves first, and the edge from each to its parent, or to the centre."""
    tree, nodes, edges = model_view.tree, [], []
    parents, angles = [*tree.parents, [0] * tree.sizes[-1]], node_angles(tree)
    points = [place(drawn_radius(model_view, n, stretch), a) for n, a in zip(model_view.norms, angles, strict=True)]
    points.append(np.zeros((1, 2)))  # the root has no text: the centre
    for level, names in enumerate(tree.levels):
        for k, node in enumerate(names):
            leaves = np.flatnonzero(tree.paths[:, level] == k)
            nodes.append(
                {
                    "level": level,
                    "name": node.name,
                    "norm": _short(model_view.norms[level][k]),
                    "family": int(tree.paths[leaves[0], -1]),
                    "angle": _short(angles[level][k]),
                    "x": _short(points[level][k][0]),
                    "y": _short(points[level][k][1]),
                    "leaves": leaves[:6].tolist(),  # of as many the pointer shows a picture
                    "count": len(leaves),
                }
            )
            edges.append(_line(model_view, points[level][k], points[level + 1][parents[level][k]]))
    rim = isfinite(model_view.rim)
    note = "" if rim else FLAT_NOTE if model_view.has_depth else ANGLE_NOTE
    return {"nodes": nodes, "edges": edges, "families": tree.sizes[-1], "rim": rim, "note": note}


def marks(model_view: ModelView, states: Sequence[ImageState], stretch: float) -> dict:
    """Lists the true path's places among the scene's nodes and, for each state (clean, attacked), those of the nearest
    nodes, the points of the picture and its roll-ups, and the lines between them.

    A point's angle is the mean of its level's nodes' by the softmax.
    """
    starts = np.concatenate([[0], np.cumsum(model_view.tree.sizes)[:-1]])
    angles, drawn = node_angles(model_view.tree), []
    for state in states:
        means = np.array([mean_angle(w, a) for w, a in zip(state.shares, angles, strict=False)])
        points = place(drawn_radius(model_view, state.norms, stretch), means)
        drawn.append(
            {
                "points": [[_short(x), _short(y)] for x, y in points],
                "lines": [_line(model_view, p, q) for p, q in zip(points, points[1:], strict=False)],
                "nodes": (starts + state.nodes).tolist(),
                "norms": [_short(norm) for norm in state.norms],
            }
        )
    moved = [_line(model_view, *(entry["points"][0] for entry in drawn))] if len(drawn) == 2 else []
    return {"path": (starts + model_view.tree.paths[states[0].label]).tolist(), "states": drawn, "moved": moved}


def _line(model_view: ModelView, p, q) -> list[float]:
    """Gives the coordinates of p and q, and radius and sweep of their geodesic; straight where there is no ball."""
    radius, sweep = geodesic(p, q) if isfinite(model_view.rim) else (0.0, False)
    return [*(_short(v) for v in (*p, *q)), _short(radius), int(sweep)]


def _short(value: float) -> float:
    return round(float(value), 4)
