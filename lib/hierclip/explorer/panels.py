"""What stands beside the disk: pictures, the path, and the bound against depth as a chart and as numbers."""

from collections.abc import Sequence
from html import escape
from io import StringIO
from math import isfinite

import matplotlib as mpl
import numpy as np
from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure
from torch import Tensor

from hierclip.explorer.disk import png
from hierclip.explorer.view import ImageState, ModelView
from hierclip.margins import head_bounds
from hierclip.plots.pictures import magnified

CLEAN, ATTACKED, GAP_COLOUR, BOUND_COLOUR = "#111111", "#d00000", "#0060b0", "#a05000"
STYLE = """<style>
.hierclip-sheet {background: #fff; color: #222; font: 13px/1.35 sans-serif; padding: 4px; overflow-x: auto}
.hierclip-sheet table {border-collapse: collapse; font-size: 12px; color: #222; margin: 0}
.hierclip-sheet tr {background: none !important; vertical-align: top}
.hierclip-sheet th, .hierclip-sheet td {text-align: left !important; padding: 1px 10px 1px 2px}
.hierclip-sheet tr.marked {background: #e3ecf8 !important}
.hierclip-sheet img {image-rendering: pixelated; display: block; width: 128px; height: 128px}
.hierclip-sheet figure {margin: 0} .hierclip-sheet small {color: #555}
</style>"""
TABLE = Environment(autoescape=True).from_string("""<table class="{{ name }}"><thead>
<tr>{% for column in rows[0] %}<th scope="col">{{ column }}</th>{% endfor %}</tr></thead><tbody>
{% for row in rows %}<tr{% if loop.index0 == marked %} class="marked"{% endif %}>
{%- for cell in row.values() %}{% if loop.first %}<th scope="row">{{ cell }}</th>
{%- else %}<td>{{ cell }}</td>{% endif %}{% endfor %}</tr>
{% endfor %}</tbody></table>""")


def sheet(inner: str) -> str:
    """Puts HTML on white, whatever the theme."""
    return f'{STYLE}<div class="hierclip-sheet">{inner}</div>'


def picture_strip(clean: Tensor, attacked: Tensor | None = None, *, credit: str) -> str:
    """Shows the clean picture (3, H, W) in [0, 1], the change, as `magnified` has it, and the attacked picture."""
    pictures = {"clean": clean}
    if attacked is not None:
        change, factor = magnified(clean, attacked)
        pictures |= {f"the change, {factor:.0f} times": change, "attacked": attacked}
    cells = (f'<figure><img src="{png(x)}"><figcaption>{name}</figcaption></figure>' for name, x in pictures.items())
    return sheet(f'<div style="display:flex;gap:10px">{"".join(cells)}</div><small>{escape(credit)}</small>')


def path_table(model_view: ModelView, states: Sequence[ImageState], level: int) -> str:
    """Lists from leaf to root the right node, the nearest one with its confidence, clean and attacked, and the right
    one's margin against the bound, in logits; the ancestor of the predicted leaf where it is another node.
    """
    rows = []
    for l, (_, pair, _) in enumerate(model_view.bounds()):
        right = int(model_view.tree.paths[states[0].label, l])
        readings = (_reading(model_view, state, l, right) for state in states)
        rows.append(
            {
                "level": str(l),
                "right": model_view.tree.levels[l][right].name,
                **dict(zip(("clean", "attacked"), readings, strict=False)),
                "margin": _margins(states, l),
                "bound": number(pair),
            }
        )
    return sheet(TABLE.render(name="hierclip-path", rows=rows, marked=level))


def _reading(model_view: ModelView, state: ImageState, level: int, right: int) -> Markup:
    nearest, upward, share = int(state.nodes[level]), int(state.upward[level]), float(state.confidence[level])
    names = model_view.tree.levels[level]
    colour, sign = ("#187018", "✓") if nearest == right else (ATTACKED, "✗")
    cell = Markup('<span style="color:{}">{} {}</span> {:.0%}').format(colour, sign, names[nearest].name, share)
    cell += Markup('<div style="height:4px;width:{}px;background:{}"></div>').format(round(80 * share), colour)
    if upward != nearest:
        cell += Markup("<small>its leaf says {}</small>").format(names[upward].name)
    return cell


def ordered_norms(coarsest: float, zeta: float, top: int) -> list[float]:
    """Computes by level, leaves first, the least norms that an order with gaps of `zeta` from parent to child allows,
    from the norm of the coarsest level.
    """
    return [coarsest + (top - level) * zeta for level in range(top + 1)]


def bound_table(model_view: ModelView, states: Sequence[ImageState], zeta: float) -> str:
    """Lists the numbers of `bound_chart`."""
    levels, rows = model_view.bounds(), []
    norms = ordered_norms(levels[-1][0], zeta, model_view.tree.top)
    for l, ((eta, pair, siblings), norm) in enumerate(zip(levels, norms, strict=True)):
        row = {
            "level": str(l),
            "norm": f"{eta:.3f}",
            "bound, pair": number(pair),
            "siblings": number(siblings),
            "margin": _margins(states, l),
        }
        if model_view.has_depth:
            bound = number(head_bounds(model_view.head, norm, 2)[0]) if norm < model_view.rim else "outside the ball"
            row["by zeta_gap: norm, bound"] = Markup('<span style="color:{}">{:.3f}, {}</span>').format(
                GAP_COLOUR, norm, bound
            )
        rows.append(row)
    return sheet(TABLE.render(name="hierclip-bounds", rows=rows))


def _margins(states: Sequence[ImageState], level: int) -> str:
    return "\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}".join(number(float(state.margins[level])) for state in states)


def number(value: float) -> str:
    """Formats logits with one digit after the point; a level of one text has no margin and no bound."""
    return f"{round(value, 1) + 0.0:.1f}" if isfinite(value) else "none"  # no minus before 0.0


def bound_chart(model_view: ModelView, states: Sequence[ImageState], zeta: float, trained: ModelView) -> Figure:
    """Plots the bound of a pair in logits against norm; at the largest norm of each level's texts, that bound, the one
    of all its texts as siblings, and the margins of the states (clean, attacked).

    model_view: perhaps at another curvature than the `trained` one, whose curve is drawn too. zeta: diamonds are the
    least norms that an order with such gaps asks for, on the curve; none where the head has no depth.
    """
    figure = Figure(figsize=(5.0, 3.8), layout="constrained")
    axis = figure.subplots()
    levels, head, rim = model_view.bounds(), model_view.head, model_view.rim
    norms, pairs, _ = zip(*levels, *trained.bounds(), strict=True)
    limits = 0.9 * min(norms), 1.02 * max(rim, trained.rim) if isfinite(rim) else 1.15 * max(norms)
    curves = [(trained, {"color": "0.7", "lw": 1, "label": "the same as trained"})] * (head != trained.head)
    curves.append((model_view, {"color": BOUND_COLOUR, "gid": "bound", "label": "bound of a pair"}))
    for view, style in curves:
        eta = np.linspace(limits[0], min(limits[1], 0.9999 * view.rim), 200).tolist()
        axis.plot(eta, [head_bounds(view.head, e, 2)[0] for e in eta], **style)
    if isfinite(rim):
        axis.axvline(rim, color=BOUND_COLOUR, lw=0.8, ls="--", label="rim")
    if model_view.has_depth:
        least = [eta for eta in ordered_norms(levels[-1][0], zeta, model_view.tree.top) if eta < rim]
        axis.plot(
            least,
            [head_bounds(head, eta, 2)[0] for eta in least],
            "D",
            mfc="w",
            color=GAP_COLOUR,
            ms=5,
            gid="least",
            label="least norms by zeta_gap",
        )
    for l, (eta, pair, siblings) in enumerate(levels):  # side by side where all levels have one norm
        x = eta if model_view.has_depth else eta + 0.02 * (l - model_view.tree.top / 2)
        axis.plot(x, pair, "_", color=BOUND_COLOUR, ms=9, mew=2)
        axis.plot(x, siblings, "_", color="k", ms=9, mew=1.5, label="bound of all siblings" if l == 0 else None)
        margins = [float(state.margins[l]) for state in states if isfinite(state.margins[l])]
        axis.plot([x] * len(margins), margins, color=ATTACKED, lw=1)
        for value, colour in zip(margins, (CLEAN, ATTACKED), strict=False):
            axis.plot(x, value, "o", color=colour, mec="w", ms=11)
            axis.annotate(str(l), (x, value), ha="center", va="center", color="w", fontsize=7)
    high = 1.15 * max(filter(isfinite, pairs), default=1.0)
    low = min(0.0, *(state.margins.min() for state in states))
    axis.set(xlim=limits, ylim=(low - 0.07 * high, high), xlabel="norm of the level's texts", ylabel="margin (logits)")
    axis.axhline(0, color="0.3", lw=0.6)
    figure.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=2)
    return figure


def svg(figure: Figure) -> str:
    """Renders a figure as an element of a page, its words as text."""
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(text := StringIO(), format="svg")
    return "".join(text.getvalue().partition("<svg")[1:])
