"""A tree in the Poincare disk of radius 1: angles by subtree, radii by norm, edges as geodesics."""

from collections.abc import Sequence
from math import hypot
from typing import NamedTuple

import numpy as np

from hierclip.trees import Tree

STRAIGHT = 1e-6  # of the cross product of two ends, under which their geodesic is a diameter
EDGE = 0.999  # where a point at the rim is drawn


def leaf_angles(tree: Tree) -> np.ndarray:
    """(leaves,) radians: evenly around the circle, so ordered that every node's leaves stand side by side."""
    turns = np.empty(len(tree.leaves))
    turns[np.lexsort(tree.paths.T)] = np.arange(len(turns)) + 0.5  # the last column, the coarsest, counts first
    return 2 * np.pi * turns / len(turns)


def node_angles(tree: Tree) -> list[np.ndarray]:
    """By level, (K_l,) radians: the middle of each node's leaves."""
    angles = leaf_angles(tree)
    return [np.bincount(nodes, angles) / np.bincount(nodes) for nodes in tree.paths.T]


def mean_angle(weights: np.ndarray, angles: np.ndarray) -> float:
    """The direction of the weighted mean of unit vectors, in radians of [0, 2 pi). weights, angles: (K,)."""
    return float(np.angle(np.sum(weights * np.exp(1j * angles))) % (2 * np.pi))


def ball_radius(share: np.ndarray, stretch: float) -> np.ndarray:
    """Where depth is drawn: tanh(stretch artanh(share)), share = sqrt(r) |z| of [0, 1), (...).

    The distance from the centre times `stretch`: 1 draws norms as they are, less makes room between deep ones.
    """
    return np.minimum(np.tanh(stretch * np.arctanh(np.minimum(share, 1 - 1e-9))), EDGE)


def place(radius: np.ndarray | float, angle: np.ndarray | float) -> np.ndarray:
    """Polar to Cartesian, (..., 2)."""
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


class Arc(NamedTuple):
    """The geodesic between two points of the disk, as SVG's elliptical arc has it; radius 0: a straight line."""

    radius: float
    sweep: bool  # the angle around the arc's centre rises on the way


def geodesic(p: Sequence[float], q: Sequence[float]) -> Arc:
    """The arc from p to q of the circle that meets the rim at right angles: its centre c has |c|^2 = 1 + radius^2."""
    cross = p[0] * q[1] - p[1] * q[0]
    if abs(cross) < STRAIGHT:
        return Arc(0.0, False)
    a, b = (1 + hypot(*p) ** 2) / 2, (1 + hypot(*q) ** 2) / 2  # c p = a, c q = b
    x, y = (a * q[1] - b * p[1]) / cross, (b * p[0] - a * q[0]) / cross
    return Arc(hypot(p[0] - x, p[1] - y), (p[0] - x) * (q[1] - y) - (p[1] - y) * (q[0] - x) > 0)
