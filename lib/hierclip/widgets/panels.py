"""What stands beside the disk, as HTML: pictures, the path, the numbers of the bound."""

from collections.abc import Sequence
from html import escape
from math import isfinite

import pandas as pd
from torch import Tensor

from hierclip.margins import head_bounds
from hierclip.widgets.chart import ASKED, MOVED
from hierclip.widgets.look import Lens, Look, ordered_norms
from hierclip.widgets.scene import png

STYLE = """<style>
.hierclip-sheet {background: #fff; color: #222; font: 13px/1.35 sans-serif; padding: 4px}
.hierclip-sheet table {border-collapse: collapse; font-size: 12px; color: #222; margin: 0}
.hierclip-sheet tr {background: none !important; vertical-align: top}
.hierclip-sheet th, .hierclip-sheet td {text-align: left !important; padding: 1px 10px 1px 2px}
.hierclip-sheet tr.chosen {background: #e3ecf8 !important}
.hierclip-sheet img {image-rendering: pixelated; display: block; width: 128px; height: 128px}
.hierclip-sheet figure {margin: 0} .hierclip-sheet small {color: #555}
</style>"""


def sheet(inner: str) -> str:
    """On white, whatever the theme."""
    return f'{STYLE}<div class="hierclip-sheet">{inner}</div>'


def notice(words: str) -> str:
    """What is missing, and what to run."""
    return sheet(f'<b>Nothing to show yet.</b> <span class="missing">{escape(words)}</span>')


def picture_strip(before: Tensor, after: Tensor | None, credit: str) -> str:
    """The picture (3, H, W) in [0, 1], what was added to it, magnified to the full range, and what came of it."""
    shown = {"clean": before}
    if after is not None:
        change, largest = after - before, float((after - before).abs().max())
        times = 0.5 / largest if largest else 1.0
        shown |= {f"the change, {times:.0f} times": (times * change + 0.5).clamp(0, 1), "attacked": after}
    cells = (f'<figure><img src="{png(x)}"><figcaption>{what}</figcaption></figure>' for what, x in shown.items())
    return sheet(f'<div style="display:flex;gap:10px">{"".join(cells)}</div><small>{escape(credit)}</small>')


def path_table(lens: Lens, label: int, looks: Sequence[Look], level: int) -> str:
    """Leaf to root: the right node of every level, the nearest one with its confidence, clean and attacked, and the
    right one's margin against the bound. What the ancestor of the predicted leaf is, where it is another one.
    """
    rows = []
    for l, (_, pair, _) in enumerate(lens.bounds()):
        right = int(lens.tree.paths[label, l])
        row = {"level": str(l), "right": escape(lens.tree.levels[l][right].name)}
        row |= {what: _reading(lens, seen, l, right) for what, seen in zip(("clean", "attacked"), looks, strict=False)}
        rows.append(row | {"margin": _both(looks, l), "bound": number(pair)})
    table = _table(rows, "hierclip-path").split("<tr>")
    return sheet("<tr>".join(table[: level + 2]) + '<tr class="chosen">' + "<tr>".join(table[level + 2 :]))


def _reading(lens: Lens, seen: Look, level: int, right: int) -> str:
    found, upward, share = int(seen.nodes[level]), int(seen.upward[level]), float(seen.confidence[level])
    names = lens.tree.levels[level]
    ink, sign = ("#187018", "✓") if found == right else (MOVED, "✗")
    bar = f'<div style="height:4px;width:{round(80 * share)}px;background:{ink}"></div>'
    words = f'<span style="color:{ink}">{sign} {escape(names[found].name)}</span> {share:.0%}{bar}'
    return words + (f"<small>its leaf says {escape(names[upward].name)}</small>" if upward != found else "")


def bound_table(lens: Lens, looks: Sequence[Look], zeta: float) -> str:
    """What the chart shows, in numbers."""
    levels, rows = lens.bounds(), []
    asked = ordered_norms(levels[-1][0], zeta, lens.tree.top)
    for l, ((eta, pair, siblings), need) in enumerate(zip(levels, asked, strict=True)):
        row = {"level": str(l), "norm": f"{eta:.3f}", "bound, pair": number(pair), "siblings": number(siblings)}
        row["margin"] = _both(looks, l)
        if lens.deep:
            there = f"{head_bounds(lens.head, need, 2)[0]:.1f}" if need < lens.rim else "outside the ball"
            row["by zeta_gap: norm, bound"] = f'<span style="color:{ASKED}">{need:.3f}, {there}</span>'
        rows.append(row)
    return sheet(_table(rows, "hierclip-bounds"))


def _both(looks: Sequence[Look], level: int) -> str:
    return (
        '<span style="white-space: nowrap">'
        + " → ".join(number(float(seen.margins[level])) for seen in looks)
        + "</span>"
    )


def number(value: float) -> str:
    """One digit after the point; a level of one text has no margin and no bound."""
    return f"{value:.1f}" if isfinite(value) else "none"


def _table(rows: list[dict[str, str]], name: str) -> str:
    html = pd.DataFrame(rows).to_html(index=False, escape=False, border=0, classes=name)
    return html.replace('<tr style="text-align: right;">', "<tr>")
