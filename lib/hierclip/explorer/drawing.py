"""What the page shows of a model and an image: the data of the disk, images and tables."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from io import BytesIO
from math import isfinite

import numpy as np
from jinja2 import Environment
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from hierclip.explorer.view import ImageState, ModelView
from hierclip.models.heads import head_to_dict
from hierclip.plots.images import magnified

HTML = Environment(autoescape=True)
TABLE = HTML.from_string("""<table class="{{ name }}"><thead>
<tr>{% for column in rows[0] %}<th scope="col">{{ column }}</th>{% endfor %}</tr></thead><tbody>
{% for row in rows %}<tr{% if loop.index0 == marked %} class="marked"{% endif %}>
{%- for cell in row.values() -%}
{% if loop.first %}<th scope="row">{{ cell }}</th>{% else %}<td>{{ cell }}</td>{% endif %}
{%- endfor %}</tr>
{% endfor %}</tbody></table>""")
NEAREST = HTML.from_string("""<span style="color:{{ colour }}">{{ sign }} {{ nearest }}</span>
{{ percent }}%<div style="height:4px;width:{{ width }}px;background:{{ colour }}"></div>
{%- if rolled_up != nearest %}<small>its leaf says {{ rolled_up }}</small>{% endif %}""")


def scene(view: ModelView) -> dict:
    """List the tree's nodes for disk.js, leaves first; parent: a place in the list, or -1."""
    tree = view.tree
    norms = [points.norm(dim=-1).tolist() for points in view.classifier.text_points]
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
                    "angle": float(view.angles[level][k]),
                    "family": int(tree.paths[leaves[0], -1]),
                    "leaves": leaves[:6].tolist(),  # the pointer shows an image of each
                    "count": len(leaves),
                }
            )
    return {"head": head_to_dict(view.model.head), "nodes": nodes, "families": tree.sizes[-1]}


def marks(view: ModelView, states: Sequence[ImageState]) -> dict:
    """List for disk.js the true path and each state's nearest nodes and points, leaves first."""
    starts = np.cumsum([0, *view.tree.sizes[:-1]])
    path = starts + view.tree.paths[states[0].label]
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


def image_strip(states: Sequence[ImageState], credit: str) -> str:
    """Show the clean image and, of an attacked one, the magnified change and the image."""
    images = {"clean": states[0].image}
    if len(states) == 2:
        change, factor = magnified(states[0].image, states[1].image)
        images |= {f"the change, {factor:.0f} times": change, "attacked": states[1].image}
    cells = [
        f'<figure><img src="{png(image)}"><figcaption>{name}</figcaption></figure>'
        for name, image in images.items()
    ]
    return f'<div class="strip">{"".join(cells)}</div><small>{escape(credit)}</small>'


def path_table(view: ModelView, states: Sequence[ImageState], level: int) -> str:
    """List the right and the nearest node of every level, and the margin against its bound.

    level: the row that is marked.
    """
    rows = []
    for l, (_, pair, _) in enumerate(view.bounds()):
        right = view.tree.levels[l][view.tree.paths[states[0].label, l]].name
        row = {"level": str(l), "right": right}
        for name, state in zip(("clean", "attacked"), states, strict=False):
            row[name] = nearest_cell(view, state, l)
        rows.append(row | {"margin": margin_cell(states, l), "bound": number(pair)})
    return TABLE.render(name="hierclip-path", rows=rows, marked=level)


def nearest_cell(view: ModelView, state: ImageState, level: int) -> Markup:
    """Show the nearest node, its confidence, and the predicted leaf's ancestor if it differs."""
    names = [node.name for node in view.tree.levels[level]]
    right, rolled_up = view.tree.paths[[state.label, state.nodes[0]], level]
    colour, sign = ("#187018", "✓") if state.nodes[level] == right else ("#d00000", "✗")
    cell = NEAREST.render(
        colour=colour,
        sign=sign,
        nearest=names[state.nodes[level]],
        rolled_up=names[rolled_up],
        percent=f"{100 * state.confidence[level]:.0f}",
        width=round(80 * state.confidence[level]),
    )
    return Markup(cell)


def margin_cell(states: Sequence[ImageState], level: int) -> str:
    """Show a level's margin, clean and attacked."""
    margins = [number(state.margins[level]) for state in states]
    return "\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}".join(margins)


def number(value: float) -> str:
    """Format logits with one digit; a level of one text has no margin and no bound."""
    return f"{round(value, 1) + 0.0:.1f}" if isfinite(value) else "none"  # no minus before 0.0
