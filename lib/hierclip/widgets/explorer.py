"""The explorer: a tree in the disk, a picture in it, an attack on the picture, and the bound that depth sets."""

from math import isclose, log10
from pathlib import Path

import ipywidgets as ui

from hierclip.params import HierParams, Params
from hierclip.widgets.chart import bound_chart, svg
from hierclip.widgets.controls import ROW, slider
from hierclip.widgets.look import in_ball, look_again
from hierclip.widgets.page import HELP, Page
from hierclip.widgets.panels import bound_table, sheet

BOUND = """<small>The largest margin that a depth allows (Theorem 1, 60_margin_depth), and the picture's margin at each
level (numbers; red: attacked). Another curvature places the same vectors anew, without training, and reads the picture
and the attacked one again: norms, the curve, the siblings' bound and the margins move, while a pair's bound, 4 tau
times the longest vector, stays. zeta_gap is the gap in norm wanted between parent and child: diamonds are the least
norms that it asks for from the coarsest level downwards, and the bound there.</small>"""
WIDE = {"width": "400px"}
GAP = 0.1  # how far the gap can be moved, at the least
DECADES = 0.6  # how far the curvature can be moved from the trained one, up and down


class Explorer(Page):
    """A page for one model. model: a folder of data/models; tree, task: names of the parameters; "": the first."""

    def __init__(self, root: Path, params: Params, model: str = "", tree: str = "", task: str = ""):
        super().__init__(root, params, (model,), 680, tree, task)
        if self.missing:
            return
        left = ui.VBox([self.views[0].disk, ui.HTML(sheet(HELP), layout={"width": "680px"})])
        beside = [self.views[0].strip, self.views[0].path, self.curvature, self.zeta, self.chart]
        beside += [self.numbers, ui.HTML(sheet(BOUND))]
        right = ui.VBox(beside, layout={"width": "560px"})
        self.children = [*self._chosen(*self.models), self.says[0], ui.HBox([left, right], layout=ROW), *self._gone()]

    def _make(self, *args) -> None:
        self.curvature = slider("curvature", -DECADES, DECADES, 1.0, 0.02, kind=ui.FloatLogSlider, layout=WIDE)
        self.zeta = slider("zeta_gap", 0.0, GAP, 0.0, 0.002, readout_format=".3f", layout=WIDE)
        self.chart, self.numbers = ui.HTML(), ui.HTML()
        super()._make(*args)
        self.quiet.tie(lambda: self._timed("view", self._show_bound), self.curvature, self.zeta)

    def _lens_changed(self) -> None:
        """The curvature and the gap are again those that the model was trained with."""
        head, method = self._lens().head, self.params.method.get(self.models[0].value.rpartition("-")[0])
        with self.quiet():
            r = float(head.curvature) if in_ball(head) else 1.0  # pyright: ignore
            with self.curvature.hold_trait_notifications():  # ends and value fit together only when all are set
                self.curvature.min, self.curvature.max = log10(r) - DECADES, log10(r) + DECADES
                self.curvature.value, self.curvature.disabled = r, not in_ball(head)
            gap = method.zeta_gap if isinstance(method, HierParams) else 0.0
            self.zeta.max = max(GAP, 2 * gap)
            self.zeta.value = gap
            self.zeta.disabled = not self._lens().deep
        super()._lens_changed()

    def _lens(self):
        return self.store.lens(self.models[0].value, self.task.value, self.tree.value)

    def _show(self) -> None:
        super()._show()
        self._show_bound()

    def _clear(self) -> None:
        super()._clear()
        self.chart.value = self.numbers.value = ""

    def _show_bound(self) -> None:
        case = self.cases[0]
        moved = in_ball(case.lens.head) and not isclose(self.curvature.value, case.lens.head.curvature)  # pyright: ignore
        bent = case.lens.bent(self.curvature.value) if moved else case.lens
        looks = [look_again(bent, seen.embedding, case.label) for seen in case.looks] if moved else case.looks
        self.chart.value = sheet(svg(bound_chart(bent, looks, self.zeta.value, case.lens)))
        self.numbers.value = bound_table(bent, looks, self.zeta.value)
