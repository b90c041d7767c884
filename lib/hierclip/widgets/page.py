"""What the explorer and the comparison share: a picture chosen, seen through one model or two, and attacked."""

from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from time import perf_counter

import ipywidgets as ui
import torch

from hierclip.attacks import GOALS, budget_of
from hierclip.params import Params, format_budget
from hierclip.widgets.controls import ROW, Quiet, choice, slider
from hierclip.widgets.look import strike
from hierclip.widgets.panels import notice, sheet
from hierclip.widgets.store import MISSING, Store
from hierclip.widgets.view import Case, View, open_case, thumbnails

HELP = """<small>Radius: the norm that the model gives a text, its depth, times the depth scale as a distance from the
centre. Angle: families side by side. Black: the clean picture (disc), what it is rolled up to with a picture of every
other leaf (squares), rings around the nearest node of each level. Red: the same, attacked. Grey: the true path. A
picture's angle is the mean of the nodes' by the model's confidence in them. Point at a mark to name it; click a node to
take a picture of it.</small>"""
AIMED = {
    "direct": "the nearest node",
    "roll_up": "the leaf's superclass",
    "stay": "the leaf, inside its superclass,",
    "every": "every level up to it,",
}


class Page(ui.VBox):
    """missing: what there is to run before anything can be shown, else ""; cases: what is shown, one for each model."""

    def __init__(self, root: Path, params: Params, models: tuple[str, ...], width: int, tree: str = "", task: str = ""):
        super().__init__()
        self.store, self.params, self.missing = Store(root, params), params, ""
        self.models, self.lenses, self.cases = [], [], list[Case]()
        self.took: dict[str, float] = {}  # seconds, by what was done last
        try:
            self._make(models, width, tree, task)
            self._task_changed()
        except MISSING as error:
            self.missing = self._remedy(error)
            self.children = [ui.HTML(notice(self.missing))]

    def _make(self, models: tuple[str, ...], width: int, tree: str, task: str) -> None:
        params, eps = self.params, 255 * self.params.attack.eps or 4.0
        named = [(label, name) for name, label in self.store.models.items()]
        self.models = [choice("method", named, model) for model in models]
        self.task = choice("classes", params.tasks, task)
        self.tree = choice("tree", [t.name for t in self.store.shelf(self.task.value).task.trees], tree)
        self.leaf, self.number = choice("picture of", self._leaves()), slider("number", 0, 0, 0)
        self.level, self.stretch = slider("level shown", 0, 0, 0), slider("depth scale", 0.1, 1.0, 0.6, 0.05)
        self.aim = choice("attack on", [(AIMED.get(name, name).strip(","), name) for name in GOALS])
        self.attacked = slider("level attacked", 0, 0, 0)
        self.budget = slider("budget /255", 0.0, 4 * eps, eps, eps / 8)
        self.views = [View(width) for _ in models]
        self.says = [ui.HTML() for _ in models]
        self.status = ui.HTML()
        wanted = [*zip(self.models, models, strict=True), (self.task, task), (self.tree, tree)]
        gone = [(w, name) for w, name in wanted if name not in ("", w.value)]
        self.instead = [f"There is no {w.description} {name} here: {w.label} is shown instead." for w, name in gone]
        self.instead += [f"{self.store.command} makes what `params.yaml` names."] if gone else []
        self.quiet = Quiet()
        tie = self.quiet.tie
        tie(partial(self._open_guarded, self._task_changed), self.task)
        tie(partial(self._open_guarded, self._lens_changed), *self.models, self.tree)
        tie(partial(self._open_guarded, self._leaf_changed), self.leaf)
        tie(self._picture_changed, self.number)
        tie(lambda: self._timed("view", self._show_level), self.level)
        tie(lambda: self._timed("view", self._show), self.stretch)
        tie(self._attack, self.aim, self.attacked, self.budget)
        for view in self.views:
            view.disk.observe(self._clicked, "clicked")

    @property
    def names(self) -> list[str]:
        """What the models are called that are shown, one for each case."""
        return [model.label for model in self.models]

    def _chosen(self, *models: ui.Widget) -> list[ui.Widget]:
        """What is shown in place of what was asked for; the controls that choose what is seen, and the attack's."""
        first = ui.HBox([*models, self.task, self.tree, self.level, self.stretch], layout=ROW)
        second = ui.HBox([self.leaf, self.number, self.aim, self.attacked, self.budget], layout=ROW)
        said = (f'<b class="instead">{escape(line)}</b>' for line in self.instead)
        return [*(ui.HTML(sheet(line)) for line in said), first, second, self.status]

    def _gone(self) -> list[ui.Widget]:
        names = ", ".join(self.store.untrained)
        said = f"<small>Not trained yet: {names}; {self.store.command} trains them.</small>"
        return [ui.HTML(sheet(said))] if names else []

    def _leaves(self) -> list[tuple[str, int]]:
        leaves = self.store.shelf(self.task.value).task.trees[0].leaves
        return sorted((leaf.name, k) for k, leaf in enumerate(leaves))

    def _open_guarded(self, changed: Callable[[], None]) -> None:
        """What cannot be opened leaves no picture under its name, but the reason."""
        try:
            changed()
        except MISSING as error:
            self._clear()
            self.status.value = notice(self._remedy(error))

    def _clear(self) -> None:
        self.lenses, self.cases = [], []
        for view, says in zip(self.views, self.says, strict=True):
            view.clear()
            says.value = ""

    def _remedy(self, error: Exception) -> str:
        return f"{error}; {self.store.command} makes what is missing"

    def _task_changed(self) -> None:
        shelf = self.store.shelf(self.task.value)
        with self.quiet():
            names = [tree.name for tree in shelf.task.trees]
            kept = self.tree.value
            self.tree.options, self.leaf.options = names, self._leaves()
            self.tree.value = kept if kept in names else names[0]
            self._count()
        for view in self.views:
            view.credit, view.disk.pictures = shelf.task.dataset.credit, thumbnails(shelf)
        self._lens_changed()

    def _count(self) -> None:
        """As many numbers as the leaf has pictures."""
        own = self.store.shelf(self.task.value).pictures.labels == self.leaf.value
        self.number.value, self.number.max = 0, int(own.sum()) - 1

    def _leaf_changed(self) -> None:
        with self.quiet():
            self._count()
        self._picture_changed()

    def _lens_changed(self) -> None:
        """Another model, tree or set: other levels."""
        self.lenses = [self.store.lens(model.value, self.task.value, self.tree.value) for model in self.models]
        with self.quiet():
            for levels in (self.level, self.attacked):
                levels.max = self.lenses[0].tree.top
        self._picture_changed()

    def _picture_changed(self) -> None:
        """First what is seen, then what the attack makes of it."""
        self._timed("view", self._open)
        self._attack()

    def _open(self) -> None:
        pictures = self.store.shelf(self.task.value).pictures
        rows = torch.nonzero(pictures.labels == self.leaf.value)[:, 0]
        image = pictures[rows[[self.number.value]]].floats()[0]
        self.cases = [open_case(lens, self.leaf.value, image) for lens in self.lenses]
        self._show()

    def _attack(self) -> None:
        self._timed("attack", self._strike)

    def _strike(self) -> None:
        attack, eps = self.params.attack, self.budget.value / 255
        aim, level = self.aim.value, self.attacked.value
        for k, case in enumerate(self.cases):
            moved, way = strike(case.lens, case.images[0], case.label, aim, level, eps, budget_of(attack), attack.seed)
            still = torch.equal(moved, case.images[0])
            self.cases[k] = open_case(case.lens, case.label, *case.images[:1], *[moved] * (not still))
            stood = f"stands, after {way:.0%} of the way to the boundary" if way else "is not moved"
            fell = "was wrong already, and is left alone" if still else "falls"
            words = f"Attack on {AIMED.get(aim, aim)} at level {level}, {attack.norm} {format_budget(eps)}"
            self.says[k].value = sheet(f"{words}: the picture <b>{fell if way > 1 else stood}</b>.")
        self._show()

    def _show_level(self) -> None:
        for view, case in zip(self.views, self.cases, strict=True):
            view.show_level(case, self.level.value)

    def _show(self) -> None:
        for view, case in zip(self.views, self.cases, strict=True):
            view.show(case, self.level.value, self.stretch.value)

    def _clicked(self, change) -> None:
        nodes = change["owner"].scene.get("nodes", ())
        if 0 <= change["new"] < len(nodes):
            self.leaf.value = nodes[change["new"]]["leaves"][0]
            change["owner"].clicked = -1  # the same node may be clicked again

    def _timed(self, what: str, work: Callable[[], None]) -> None:
        if not self.lenses:  # nothing is open
            return
        start = perf_counter()
        work()
        self.took[what] = perf_counter() - start
        took = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.took.items())
        self.status.value = sheet(f'<small class="hierclip-took">answered in: {took}</small>')
