"""The explorer's page: its controls, and what they change."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from html import escape
from pathlib import Path
from threading import RLock
from typing import Any

import anywidget
import ipywidgets as ui
import torch
import traitlets

from hierclip.attacks import GOALS
from hierclip.config import Params, format_budget
from hierclip.explorer.drawing import image_strip, marks, path_table, png, scene
from hierclip.explorer.view import (
    attack_image,
    image_state,
    list_models,
    open_model,
    open_task,
)

HELP = """Radius: the norm that the model gives a text, its depth, times the depth scale as a
distance from the centre. Angle: families side by side. Black: the clean image (disc), the points
that it is rolled up to with an image of every other leaf (squares), rings around the nearest node
of each level. Red: the same, attacked. Grey: the true path. An image's angle is the mean of the
nodes' angles by the model's confidence in them. Point at a mark to name it; click a node to take an
image of it."""
GOAL_LABELS = {
    "direct": "the nearest node",
    "roll_up": "the leaf's superclass",
    "within_superclass": "the leaf, inside its superclass,",
    "all_levels": "every level up to it,",
}
CONTROL = {"layout": {"width": "312px"}, "style": {"description_width": "92px"}}
SLIDER = CONTROL | {"continuous_update": False}  # they answer when they are let go
ROW = {"flex_flow": "row wrap", "width": "100%"}
WIDTH = 680  # pixels of a disk
PAIR_WIDTH = 470  # two fit beside the file list on a screen of 1440


class Disk(anywidget.AnyWidget):
    """Draw `scene` and `marks`; a click on a node is a message {"leaf": its first leaf}."""

    _esm = Path(__file__).parent / "disk.js"
    _css = Path(__file__).parent / "explorer.css"
    scene = traitlets.Dict().tag(sync=True)
    marks = traitlets.Dict().tag(sync=True)
    images = traitlets.Dict().tag(sync=True)  # by leaf, what the pointer shows
    level = traitlets.Int(0).tag(sync=True)
    stretch = traitlets.Float(0.6).tag(sync=True)


class ModelPanel(ui.HBox):
    """One model: its disk and, in the box `side`, what it makes of the image.

    view, states: what is shown; an image has a clean state and, where the attack changed it, an
    attacked one.
    """

    view = traitlets.Any()
    states = traitlets.List()

    def __init__(self, method: ui.Dropdown, width: int, on_click: Callable):
        self.method = method
        self.verdict = ui.HTML(layout={"min_height": "56px"})  # two lines: all disks at one height
        self.disk = Disk()
        self.disk.on_msg(on_click)
        self.strip = ui.HTML()
        self.path = ui.HTML()
        self.side = ui.VBox([self.strip, self.path], layout={"max_width": "560px"})
        main = ui.VBox([method, self.verdict, self.disk], layout={"width": f"{width}px"})
        layout = {"flex": f"1 1 {PAIR_WIDTH}px", "align_content": "flex-start"}
        super().__init__([main, self.side], layout=ROW | layout)


class Explorer(ui.VBox):
    """A page for one model, or for several side by side on the same image.

    models: folders of data/models; tree, task: names of the parameters; "": the first. missing:
    what has to be run before anything can be shown, else "".
    """

    def __init__(
        self,
        root: Path,
        params: Params,
        models: Sequence[str] = ("",),
        tree: str = "",
        task: str = "",
    ):
        super().__init__()
        self.root = root
        self.params = params
        self.open_task = cache(partial(open_task, root, params))
        self.open_model = cache(partial(open_model, root, params))
        preset = f" PRESET={root.name}" if root.parent.name == "presets" else ""
        self.command = f"`make repro{preset}`"
        self.panels = list[ModelPanel]()
        self.notes = list[str]()
        self.missing = ""
        self.updating = False
        self.lock = RLock()
        self.status = ui.HTML()
        self.children = [self.status]
        self.add_class("hierclip-compare" if len(models) > 1 else "hierclip-explorer")
        self._update(partial(self._build, models, tree, task))

    def _build(self, models: Sequence[str], tree: str, task: str) -> None:
        """Make the controls, lay them out, and open what was asked for."""
        labels, untrained = list_models(self.root, self.params)
        methods = [self._menu("method", labels, model) for model in models]
        self.task = self._menu("classes", {name: name for name in self.params.tasks}, task)
        trees = self.open_task(self.task.value).task.trees
        self.tree = self._menu("tree", {each.name: each.name for each in trees}, tree)
        self.level = ui.IntSlider(max=0, description="level shown", **SLIDER)
        self.stretch = ui.FloatSlider(
            0.6, min=0.1, max=1.0, step=0.05, description="depth scale", **SLIDER
        )
        self.leaf = self._menu("image of", {"": 0})  # filled by `_open`
        self.number = ui.IntSlider(max=0, description="number", **SLIDER)
        goals = {GOAL_LABELS.get(name, name).strip(","): name for name in GOALS}
        self.goal = self._menu("attack on", goals)
        self.attacked = ui.IntSlider(max=0, description="level attacked", **SLIDER)
        eps = 255 * self.params.attack.eps or 4.0
        self.budget = ui.FloatSlider(
            eps, max=4 * eps, step=eps / 8, description="budget /255", **SLIDER
        )
        reacts = {
            self._open: [self.task, self.tree, *methods],
            self._attack: [self.leaf, self.number, self.goal, self.attacked, self.budget],
            self._draw: [self.level, self.stretch],
        }
        for action, controls in reacts.items():
            for control in controls:
                control.observe(partial(self._update, action), "value")
        width = PAIR_WIDTH if len(models) > 1 else WIDTH
        self.panels = [ModelPanel(method, width, self._click) for method in methods]
        if self.notes:
            self.notes.append(f"{self.command} makes what `params.yaml` names.")
        footer = f" Not trained yet: {', '.join(untrained)}; {self.command} trains them."
        self.children = [
            *(ui.HTML(f'<b class="instead">{escape(note)}</b>') for note in self.notes),
            ui.HBox([self.task, self.tree, self.level, self.stretch], layout=ROW),
            ui.HBox(reacts[self._attack], layout=ROW),
            self.status,
            ui.HBox(self.panels, layout=ROW),
            ui.HTML(f"<small>{HELP}{footer if untrained else ''}</small>"),
        ]
        self._open()

    def _menu(self, name: str, options: dict[str, Any], chosen: str = "") -> Any:
        """Make a drop-down list at `chosen` or, with a note, at its first option."""
        menu = ui.Dropdown(options=list(options.items()), description=name, **CONTROL)
        if chosen in options.values():
            menu.value = chosen
        elif chosen:
            self.notes.append(f"There is no {name} {chosen} here: {menu.label} is shown instead.")
        return menu

    def _update(self, action: Callable[[], None], _change: object = None) -> None:
        """Do what a control asks for; where something cannot be opened, show only the reason."""
        with self.lock:  # JupyterLab may handle the messages of several widgets in threads
            if self.updating:  # the page itself set a control
                return
            if self.missing:  # what could not be opened may be there by now
                action = self._open
            self.updating = True
            try:
                action()
            except (ValueError, OSError) as error:  # those of data, models and trees among them
                self.missing = f"{error}; {self.command} makes what is missing"
                reason = f'<span class="missing">{escape(self.missing)}</span>'
                self.status.value = f"<b>Nothing to show.</b> {reason}"
                for panel in self.panels:
                    panel.states = []
                    panel.disk.scene = panel.disk.marks = {}
                    panel.verdict.value = panel.strip.value = panel.path.value = ""
            finally:
                self.updating = False

    def _open(self) -> None:
        """Open the task, and the models over the tree."""
        data = self.open_task(self.task.value)
        trees = {tree.name: tree for tree in data.task.trees}
        self.leaf.options = sorted((n.name, k) for k, n in enumerate(data.task.trees[0].leaves))
        name = self.tree.value
        self.tree.options = list(trees)
        self.tree.value = name if name in trees else next(iter(trees))
        pairs = zip(data.references.labels.tolist(), data.references.floats(), strict=True)
        thumbnails = {str(leaf): png(image, 56) for leaf, image in pairs}
        for panel in self.panels:
            panel.disk.images = thumbnails
            panel.states = []  # they are of another view
            panel.view = self.open_model(panel.method.value, data, trees[self.tree.value])
        self.level.max = self.attacked.max = trees[self.tree.value].max_level
        self.missing = self.status.value = ""
        self._attack()

    def _attack(self) -> None:
        """Read the image in each model, clean and attacked."""
        images = self.open_task(self.task.value).images
        rows = torch.nonzero(images.labels == self.leaf.value)[:, 0]
        self.number.max = len(rows) - 1
        (image,) = images[rows[[self.number.value]]].floats()
        eps = self.budget.value / 255
        level = self.attacked.value
        goal = GOAL_LABELS.get(self.goal.value, self.goal.value)
        attack = (
            f"Attack on {goal} at level {level}, {self.params.attack.norm} {format_budget(eps)}"
        )
        for panel in self.panels:
            clean = image_state(panel.view, image, self.leaf.value)
            x_adv, fraction = attack_image(
                panel.view, clean, self.goal.value, level, eps, self.params.attack
            )
            if torch.equal(x_adv, image):
                panel.states = [clean]
                outcome = "was misclassified already" if fraction else "is not moved"
            else:
                panel.states = [clean, image_state(panel.view, x_adv, clean.label)]
                covered = f"{fraction:.0%} of the way to the boundary"
                outcome = "is misclassified" if fraction > 1 else f"withstands it, moved {covered}"
            panel.verdict.value = f"{attack}: the image <b>{outcome}</b>."
        self._draw()

    def _draw(self) -> None:
        """Show the states of the image in each model."""
        credit = self.open_task(self.task.value).task.dataset.credit
        for panel in self.panels:
            with panel.disk.hold_sync():  # marks name nodes of the scene: they are sent together
                panel.disk.scene = scene(panel.view)
                panel.disk.marks = marks(panel.view, panel.states)
                panel.disk.level = self.level.value
                panel.disk.stretch = self.stretch.value
            panel.strip.value = image_strip(panel.states, credit)
            panel.path.value = path_table(panel.view, panel.states, self.level.value)

    def _click(self, _disk: Disk, message: dict, _buffers: list) -> None:
        """Take an image of the node that was clicked."""
        self.leaf.value = message["leaf"]
