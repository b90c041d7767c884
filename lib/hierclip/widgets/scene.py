"""What the disk shows, as plain data for the page."""

from base64 import b64encode
from collections.abc import Iterable
from io import BytesIO

import numpy as np
from PIL import Image
from torch import Tensor

from hierclip.widgets.disk import geodesic, place
from hierclip.widgets.look import Lens, Look, drawn_radius, in_ball

THUMB = 56  # longest side of a picture that the pointer shows, pixels
SHOWN = 6  # pictures of a node
FLAT = (
    "This head reads by angle: every text and every picture has norm 1 and none has a depth. "
    "All levels share the one circle; lines only join parent and child."
)
STRAIGHT = "A flat space has no rim: radii are norms in proportion, edges straight lines."


def png(image: Tensor, longest: int | None = None) -> str:
    """A picture (3, H, W) in [0, 1] as the address of an <img>, made smaller where a side exceeds `longest`."""
    drawn = Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().cpu().numpy())
    if longest:
        drawn.thumbnail((longest, longest))
    buffer = BytesIO()
    drawn.save(buffer, "png")
    return f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"


def scene(lens: Lens, stretch: float) -> dict:
    """Nodes of every level, leaves first, and the edge from each to its parent, those of the coarsest to the root."""
    tree, nodes, edges = lens.tree, [], []
    above = [*tree.parents, [0] * tree.sizes[-1]]
    spots = [place(drawn_radius(lens.head, n, stretch), a) for n, a in zip(lens.norms, lens.angles, strict=True)]
    for level, names in enumerate(tree.levels):
        upper = spots[level + 1] if level < tree.top else np.zeros((1, 2))  # the root has no text: the centre
        family = {int(path[level]): int(path[-1]) for path in tree.paths}
        for k, node in enumerate(names):
            leaves = np.flatnonzero(tree.paths[:, level] == k)
            entry = {"level": level, "name": node.name, "norm": round(float(lens.norms[level][k]), 4)}
            entry |= {"family": family[k], "x": _short(spots[level][k][0]), "y": _short(spots[level][k][1])}
            entry |= {"angle": _short(lens.angles[level][k]), "leaves": leaves[:SHOWN].tolist(), "count": len(leaves)}
            nodes.append(entry)
            edges.append(_line(lens, spots[level][k], upper[above[level][k]]))
    note = "" if in_ball(lens.head) else STRAIGHT if lens.deep else FLAT
    return {"nodes": nodes, "edges": edges, "families": tree.sizes[-1], "rim": in_ball(lens.head), "note": note}


def marks(lens: Lens, label: int, looks: Iterable[Look], stretch: float) -> dict:
    """The true path's places among the scene's nodes, and for each look (before, after) those of the nearest nodes, the
    points of the picture and its roll-ups, and the lines between them.
    """
    starts = np.concatenate([[0], np.cumsum(lens.tree.sizes)[:-1]])
    drawn = []
    for seen in looks:
        spots = place(drawn_radius(lens.head, seen.norms, stretch), seen.angles)
        lines = [_line(lens, p, q) for p, q in zip(spots, spots[1:], strict=False)]
        points = [[_short(x), _short(y)] for x, y in spots]
        drawn.append({"points": points, "lines": lines, "found": (starts + seen.nodes).tolist()})
        drawn[-1]["norms"] = [round(float(norm), 4) for norm in seen.norms]
    moved = [_line(lens, *(d["points"][0] for d in drawn))] if len(drawn) == 2 else []
    return {"path": (starts + lens.tree.paths[label]).tolist(), "looks": drawn, "moved": moved}


def _line(lens: Lens, p, q) -> list[float]:
    """From p to q: their coordinates, and radius and sweep of the geodesic; straight where there is no ball."""
    radius, sweep = geodesic(p, q) if in_ball(lens.head) else (0.0, False)
    return [*(_short(v) for v in (*p, *q)), _short(radius), int(sweep)]


def _short(value: float) -> float:
    return round(float(value), 4)
