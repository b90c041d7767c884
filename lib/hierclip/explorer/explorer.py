"""The explorer's page: controls, and what each of them recomputes and redraws."""

from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from math import isclose, isfinite
from pathlib import Path
from threading import RLock
from typing import Any

import ipywidgets as ui
import torch

from hierclip.attacks import GOALS, budget_of
from hierclip.explorer.disk import Disk, marks, png, scene
from hierclip.explorer.panels import bound_chart, bound_table, path_table, picture_strip, sheet, svg
from hierclip.explorer.task import Artifacts
from hierclip.explorer.view import ImageState, ModelView, attack_image, image_state
from hierclip.params import HierParams, Params, format_budget

HELP = """<small>Radius: the norm that the model gives a text, its depth, times the depth scale as a distance from the
centre. Angle: families side by side. Black: the clean picture (disc), what it is rolled up to with a picture of every
other leaf (squares), rings around the nearest node of each level. Red: the same, attacked. Grey: the true path. A
picture's angle is the mean of the nodes' by the model's confidence in them. Point at a mark to name it; click a node to
take a picture of it.</small>"""
BOUND_HELP = """<small>The largest margin that a depth allows (Theorem 1, 60_margin_depth), and the picture's margin at
each level (numbers; red: attacked). Another curvature, a multiple of the trained one, places the same vectors anew,
without training, and reads the picture and the attacked one again: norms, the curve, the siblings' bound and the
margins move, while a pair's bound, 4 tau times the longest vector, stays. zeta_gap is the gap in norm wanted between
parent and child: diamonds are the least norms that it asks for from the coarsest level downwards, and the bound
there.</small>"""
AIM_LABELS = {
    "direct": "the nearest node",
    "roll_up": "the leaf's superclass",
    "stay": "the leaf, inside its superclass,",
    "every": "every level up to it,",
}
STYLE, LAYOUT = {"description_width": "92px"}, {"width": "312px"}
ROW = {"flex_flow": "row wrap", "width": "100%"}
WIDTH, PAIR_WIDTH = 680, 470  # pixels of a disk; two fit beside the file list on a screen of 1440


def choice(name: str, options, value=None) -> Any:
    """Makes a drop-down list of `options`, names or (name, value), at that value or else at the first."""
    values = [option[1] if isinstance(option, tuple) else option for option in options]
    start = value if value in values else values[0]
    return ui.Dropdown(options=options, value=start, description=name, layout=LAYOUT, style=STYLE)


def slider(name: str, low: float, high: float, value: float, step: float = 1, kind=None, **more) -> Any:
    """Makes a slider, of whole numbers where `step` is one; it calls back when it is let go."""
    kind = kind or (ui.IntSlider if isinstance(step, int) else ui.FloatSlider)
    return kind(
        value=value,
        min=low,
        max=high,
        step=step,
        description=name,
        continuous_update=False,
        layout=LAYOUT,
        style=STYLE,
        **more,
    )


class ModelPanel:
    """The widgets of one model: its disk, the pictures, the path table, and what the attack came to."""

    def __init__(self, width: int):
        self.disk, self.strip, self.path = Disk(width=width), ui.HTML(), ui.HTML()
        self.verdict = ui.HTML(layout={"min_height": "56px"})  # two lines, so that all disks start at one height


class Explorer(ui.VBox):
    """A page for one model, with the bounds of its margins, or for several side by side on the same picture.

    models: a folder of data/models, or several; tree, task: names of the parameters; "": the first. missing: what has
    to be run before anything can be shown, else ""; model_views, states: what is shown, by model, where a picture has a
    clean state and, where the attack changed it, an attacked one.
    """

    def __init__(self, root: Path, params: Params, models: str | tuple[str, ...] = "", tree: str = "", task: str = ""):
        super().__init__()
        self.artifacts, self.params, self.missing, self.updating = Artifacts(root, params), params, "", False
        self.model_views, self.states, self.panels = list[ModelView](), list[list[ImageState]](), list[ModelPanel]()
        self.chart, self.numbers, self.status = ui.HTML(), ui.HTML(), ui.HTML()
        self.children, self.models, self.notes, self.lock = [self.status], [], [], RLock()
        self.steps = [self._open_task, self._open_models, self._count_images, self._attack, self._draw]
        self._update(
            [
                partial(self._build, (models,) if isinstance(models, str) else models, tree, task),
                *self.steps,
            ]
        )

    def _build(self, models: tuple[str, ...], tree: str, task: str) -> None:
        """Makes the controls and the layout."""
        eps, (labels, untrained) = 255 * self.params.attack.eps or 4.0, self.artifacts.models()
        named, command = [(label, name) for name, label in labels.items()], self.artifacts.command
        self.models = [choice("method", named, model) for model in models]
        self.task = choice("classes", self.params.tasks, task)
        self.tree = choice("tree", [t.name for t in self.artifacts.task_data(self.task.value).task.trees], tree)
        self.leaf, self.number = choice("picture of", [0]), slider("number", 0, 0, 0)
        self.level, self.stretch = slider("level shown", 0, 0, 0), slider("depth scale", 0.1, 1.0, 0.6, 0.05)
        self.aim = choice("attack on", [(AIM_LABELS.get(name, name).strip(","), name) for name in GOALS])
        self.attacked = slider("level attacked", 0, 0, 0)
        self.budget = slider("budget /255", 0.0, 4 * eps, eps, eps / 8)
        self.curvature = slider("curvature \N{MULTIPLICATION SIGN}", -0.6, 0.6, 1.0, 0.02, kind=ui.FloatLogSlider)
        self.zeta = slider("zeta_gap", 0.0, 0.1, 0.0, 0.002, readout_format=".3f")
        self.panels = [ModelPanel(WIDTH if len(models) == 1 else PAIR_WIDTH) for _ in models]
        self._tie(self.steps, self.task)
        self._tie(self.steps[1:], *self.models, self.tree)
        self._tie(self.steps[2:], self.leaf)
        self._tie(self.steps[3:], self.number, self.aim, self.attacked, self.budget)
        self._tie(self.steps[4:], self.stretch)
        self._tie([self._draw_level], self.level)
        self._tie([self._draw_bounds], self.curvature, self.zeta)
        for panel in self.panels:
            panel.disk.observe(self._clicked, "clicked")
        wanted = [*zip(self.models, models, strict=True), (self.task, task), (self.tree, tree)]
        replaced = [(w, name) for w, name in wanted if name not in ("", w.value)]
        lines = [f"There is no {w.description} {name} here: {w.label} is shown instead." for w, name in replaced]
        self.notes = [*lines, f"{command} makes what `params.yaml` names."] if lines else []
        rows = [
            ui.HBox([self.task, self.tree, self.level, self.stretch], layout=ROW),
            ui.HBox([self.leaf, self.number, self.aim, self.attacked, self.budget], layout=ROW),
        ]
        notes = [ui.HTML(sheet(f'<b class="instead">{escape(line)}</b>')) for line in self.notes]
        footer = f"<small>Not trained yet: {', '.join(untrained)}; {command} trains them.</small>" if untrained else ""
        self.children = [*notes, *rows, self.status, self._columns(), ui.HTML(sheet(HELP + footer))]
        self.add_class("hierclip-explorer" if len(models) == 1 else "hierclip-compare")

    def _columns(self) -> ui.HBox:
        """Lays out the models, each under the list that it is chosen from, and the bounds beside a single one."""
        pairs, widths = zip(self.models, self.panels, strict=True), [PAIR_WIDTH + 10] * len(self.panels)
        parts = [[model, panel.verdict, panel.disk, panel.strip, panel.path] for model, panel in pairs]
        if len(parts) == 1:
            bounds = [self.curvature, self.zeta, self.chart, self.numbers, ui.HTML(sheet(BOUND_HELP))]
            parts, widths = [parts[0][:3], parts[0][3:] + bounds], [WIDTH, 560]
        pairs = zip(parts, widths, strict=True)
        return ui.HBox([ui.VBox(part, layout={"width": f"{w}px"}) for part, w in pairs], layout=ROW)

    def _tie(self, steps: Sequence[Callable[[], None]], *widgets: ui.Widget) -> None:
        """Runs steps when a user changes one of the widgets, not when a step does."""
        for widget in widgets:
            widget.observe(lambda _: self._update(steps), "value")

    def _update(self, steps: Sequence[Callable[[], None]]) -> None:
        """Runs steps; where something cannot be opened, shows the reason and no picture."""
        with self.lock:  # JupyterLab may handle the messages of several widgets in threads
            if self.updating:
                return
            self.updating = True
            try:
                for step in steps:
                    step()
            except (ValueError, OSError) as error:  # those of data, models and trees among them
                self.missing = f"{error}; {self.artifacts.command} makes what is missing"
                self._clear()
                self.status.value = sheet(
                    f'<b>Nothing to show.</b> <span class="missing">{escape(self.missing)}</span>'
                )
            finally:
                self.updating = False

    def _clear(self) -> None:
        self.model_views, self.states = [], []
        for panel in self.panels:
            panel.disk.scene = panel.disk.marks = {}
            panel.strip.value = panel.path.value = panel.verdict.value = ""
        self.chart.value = self.numbers.value = ""

    def _open_task(self) -> None:
        self.data, tree = self.artifacts.task_data(self.task.value), self.tree.value
        trees, references = [tree.name for tree in self.data.task.trees], self.data.references
        self.leaf.options = sorted((leaf.name, k) for k, leaf in enumerate(self.data.task.trees[0].leaves))
        self.tree.options = trees
        self.tree.value = tree if tree in trees else trees[0]
        thumbnails = {
            str(int(leaf)): png(image, 56) for leaf, image in zip(references.labels, references.floats(), strict=True)
        }
        for panel in self.panels:
            panel.disk.pictures = thumbnails

    def _open_models(self) -> None:
        """Opens the models over the tree; curvature and gap are again those that the first was trained with."""
        names = [model.value for model in self.models]
        self.model_views = [self.artifacts.model_view(name, self.task.value, self.tree.value) for name in names]
        self.missing = self.status.value = ""
        self.level.max = self.attacked.max = self.model_views[0].tree.top
        method = self.params.method.get(names[0].rpartition("-")[0])
        self.curvature.value, self.curvature.disabled = 1.0, not isfinite(self.model_views[0].rim)
        gap = method.zeta_gap if isinstance(method, HierParams) else 0.0
        self.zeta.max = max(0.1, 2 * gap)
        self.zeta.value, self.zeta.disabled = gap, not self.model_views[0].has_depth

    def _count_images(self) -> None:
        self.rows = torch.nonzero(self.data.pictures.labels == self.leaf.value)[:, 0]
        self.number.max = len(self.rows) - 1

    def _attack(self) -> None:
        """Reads the picture in each model, clean and attacked."""
        attack, eps = self.params.attack, self.budget.value / 255
        aim, level, label = self.aim.value, self.attacked.value, self.leaf.value
        (image,) = self.data.pictures[self.rows[[self.number.value]]].floats()
        self.states = []
        for panel, model_view in zip(self.panels, self.model_views, strict=False):
            moved, share = attack_image(model_view, image, label, aim, level, eps, budget_of(attack), attack.seed)
            same = torch.equal(moved, image)
            self.states.append([image_state(model_view, x, label) for x in (image, moved)[: 1 if same else 2]])
            stands = f"stands, after {share:.0%} of the way to the boundary" if share else "is not moved"
            falls = "was wrong already, and is left alone" if same else "falls"
            goal = f"Attack on {AIM_LABELS.get(aim, aim)} at level {level}, {attack.norm} {format_budget(eps)}"
            panel.verdict.value = sheet(f"{goal}: the picture <b>{falls if share > 1 else stands}</b>.")

    def _draw(self) -> None:
        for panel, model_view, states in zip(self.panels, self.model_views, self.states, strict=False):
            with panel.disk.hold_sync():  # marks name nodes of the scene: the page gets both at once
                panel.disk.scene = scene(model_view, self.stretch.value)
                panel.disk.marks = marks(model_view, states, self.stretch.value)
            panel.strip.value = picture_strip(*[state.image for state in states], credit=self.data.task.dataset.credit)
        self._draw_level()
        self._draw_bounds()

    def _draw_level(self) -> None:
        for panel, model_view, states in zip(self.panels, self.model_views, self.states, strict=False):
            panel.disk.level = self.level.value
            panel.path.value = path_table(model_view, states, self.level.value)

    def _draw_bounds(self) -> None:
        if len(self.states) != 1:
            return
        (trained,), (states,), factor = self.model_views, self.states, self.curvature.value
        model_view = trained
        if isfinite(trained.rim) and not isclose(factor, 1):
            model_view = trained.with_curvature(factor * trained.head.curvature)  # pyright: ignore
            states = [image_state(model_view, state.image, state.label, state.embedding) for state in states]
        self.chart.value = sheet(svg(bound_chart(model_view, states, self.zeta.value, trained)))
        self.numbers.value = bound_table(model_view, states, self.zeta.value)

    def _clicked(self, change) -> None:
        nodes = change["owner"].scene.get("nodes", ())
        if 0 <= change["new"] < len(nodes):
            self.leaf.value = nodes[change["new"]]["leaves"][0]
            change["owner"].clicked = -1  # the same node may be clicked again


def compare(root: Path, params: Params, models: tuple[str, ...], tree: str = "", task: str = "") -> Explorer:
    """Opens a page of several models side by side on the same picture, each attacked by itself."""
    return Explorer(root, params, models, tree, task)
