"""What stands beside the disk, as HTML: pictures, the path, the numbers of the bound."""

from collections.abc import Sequence
from html import escape
from math import isfinite

import pandas as pd
from markupsafe import Markup
from torch import Tensor

from hierclip.margins import head_bounds
from hierclip.plots.pictures import magnified
from hierclip.plots.words import table_html
from hierclip.widgets.chart import ASKED, MOVED
from hierclip.widgets.look import Lens, Look, ordered_norms
from hierclip.widgets.scene import png

STYLE = """<style>
.hierclip-sheet {background: #fff; color: #222; font: 13px/1.35 sans-serif; padding: 4px; overflow-x: auto}
.hierclip-sheet table {border-collapse: collapse; font-size: 12px; color: #222; margin: 0}
.hierclip-sheet tr {background: none !important; vertical-align: top}
.hierclip-sheet th, .hierclip-sheet td {text-align: left !important; padding: 1px 10px 1px 2px}
.hierclip-sheet tr.marked {background: #e3ecf8 !important}
.hierclip-sheet img {image-rendering: pixelated; display: block; width: 128px; height: 128px}
.hierclip-sheet figure {margin: 0} .hierclip-sheet small {color: #555}
</style>"""


def sheet(inner: str) -> str:
    """On white, whatever the theme."""
    return f'{STYLE}<div class="hierclip-sheet">{inner}</div>'


def notice(words: str) -> str:
    """What is missing, and what to run."""
    return sheet(f'<b>Nothing to show yet.</b> <span class="missing">{escape(words)}</span>')


def picture_strip(before: Tensor, after: Tensor | None = None, *, credit: str) -> str:
    """The picture (3, H, W) in [0, 1], what was added to it, as `magnified` has it, and what came of it."""
    shown = {"clean": before}
    if after is not None:
        change, times = magnified(before, after)
        shown |= {f"the change, {times:.0f} times": change, "attacked": after}
    cells = (f'<figure><img src="{png(x)}"><figcaption>{what}</figcaption></figure>' for what, x in shown.items())
    return sheet(f'<div style="display:flex;gap:10px">{"".join(cells)}</div><small>{escape(credit)}</small>')


def path_table(lens: Lens, label: int, looks: Sequence[Look], level: int) -> str:
    """Leaf to root: the right node of every level, the nearest one with its confidence, clean and attacked, and the
    right one's margin against the bound. What the ancestor of the predicted leaf is, where it is another one.
    """
    rows = []
    for l, (_, pair, _) in enumerate(lens.bounds()):
        right = int(lens.tree.paths[label, l])
        row = {"level": str(l), "right": lens.tree.levels[l][right].name}
        row |= {what: _reading(lens, seen, l, right) for what, seen in zip(("clean", "attacked"), looks, strict=False)}
        rows.append(row | {"margin": _both(looks, l), "bound": number(pair)})
    return sheet(table_html(pd.DataFrame(rows), marked=[level], name="hierclip-path"))


def _reading(lens: Lens, seen: Look, level: int, right: int) -> Markup:
    found, upward, share = int(seen.nodes[level]), int(seen.upward[level]), float(seen.confidence[level])
    names = lens.tree.levels[level]
    ink, sign = ("#187018", "✓") if found == right else (MOVED, "✗")
    words = Markup('<span style="color:{}">{} {}</span> {:.0%}').format(ink, sign, names[found].name, share)
    words += Markup('<div style="height:4px;width:{}px;background:{}"></div>').format(round(80 * share), ink)
    other = Markup("<small>its leaf says {}</small>").format(names[upward].name)
    return words + other if upward != found else words


def bound_table(lens: Lens, looks: Sequence[Look], zeta: float) -> str:
    """What the chart shows, in numbers."""
    levels, rows = lens.bounds(), []
    asked = ordered_norms(levels[-1][0], zeta, lens.tree.top)
    for l, ((eta, pair, siblings), need) in enumerate(zip(levels, asked, strict=True)):
        row = {"level": str(l), "norm": f"{eta:.3f}", "bound, pair": number(pair), "siblings": number(siblings)}
        row["margin"] = _both(looks, l)
        if lens.deep:
            there = f"{head_bounds(lens.head, need, 2)[0]:.1f}" if need < lens.rim else "outside the ball"
            words = Markup('<span style="color:{}">{:.3f}, {}</span>').format(ASKED, need, there)
            row["by zeta_gap: norm, bound"] = words
        rows.append(row)
    return sheet(table_html(pd.DataFrame(rows), name="hierclip-bounds"))


def _both(looks: Sequence[Look], level: int) -> str:
    return "\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}".join(number(float(seen.margins[level])) for seen in looks)


def number(value: float) -> str:
    """One digit after the point; a level of one text has no margin and no bound."""
    return f"{round(value, 1) + 0.0:.1f}" if isfinite(value) else "none"  # no minus before 0.0
