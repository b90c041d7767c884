"""The disk as a page that opens from a file, without a kernel, for any embeddings with a tree."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from jinja2 import Environment
from torch import Tensor

from hierclip.errors import refuse
from hierclip.explorer.widget import marks, node_angles, png, scene
from hierclip.hyperbolic import pairwise_distance
from hierclip.models.heads import PoincareHead
from hierclip.trees import Tree

HERE = Path(__file__).parent


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

    def to_html(self, path: str | Path | None = None) -> str:
        """Return the page, which loads nothing; write it to a file if one is named."""
        script = (HERE / "disk.js").read_text(encoding="utf8")
        page = Environment(autoescape=True).from_string(
            (HERE / "page.html").read_text(encoding="utf8")
        )
        html = page.render(
            title=self.title,
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
) -> DiskPage:
    """Draw a tree's nodes and some images in the ball of curvature -curvature.

    points: by level, leaves first, (K_l, D) in the ball; an angle in the disk keeps families side
    by side, the radius is the norm. tau: of the softmax of distances, whose mean over the leaves is
    an image's angle. Raises HierclipError for points of another number, or outside the ball.
    """
    sizes = tuple(len(level) for level in points)
    rim = curvature**-0.5
    norms = [level.norm(dim=-1) for level in (*points, *(image.points for image in images))]
    odd = [image.label for image in images if not 0 <= image.label < len(tree.leaves)]
    refuse(
        {
            f"points of {sizes} nodes; the levels of tree {tree.name} have {tree.sizes}": (
                sizes != tree.sizes
            ),
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
        pictures = [] if image.pixels is None else [png(each, 160) for each in image.pixels]
        thumbnails |= {str(image.label): each for each in pictures[:1]}
        name = image.name or tree.leaves[image.label].name
        drawn.append(marks(tree, states) | {"name": name, "pictures": pictures})
    levels = [[node.name for node in level] for level in tree.levels]
    content = {"scene": scene(tree, points, head), "marks": drawn, "images": thumbnails}
    return DiskPage(title, content | {"levels": levels})
