"""Two methods on the same picture, each attacked by itself."""

from pathlib import Path

import ipywidgets as ui

from hierclip.params import Params
from hierclip.widgets.controls import ROW
from hierclip.widgets.page import HELP, Page
from hierclip.widgets.panels import sheet

WIDTH = 470  # two of them fit beside the file list on a screen of 1440 pixels


class Compare(Page):
    """A page for two models side by side, each under the list that it is chosen from. Arguments as `Explorer`'s."""

    def __init__(self, root: Path, params: Params, models: tuple[str, str], tree: str = "", task: str = ""):
        super().__init__(root, params, models, WIDTH, tree, task)
        if self.missing:
            return
        columns = []
        for model, says, view in zip(self.models, self.says, self.views, strict=True):
            says.layout.min_height = "56px"  # two lines, so that both disks start at one height
            parts = [model, says, view.disk, view.strip, view.path]
            columns.append(ui.VBox(parts, layout={"width": f"{WIDTH + 10}px"}))
        self.children = [*self._chosen(), ui.HBox(columns, layout=ROW), ui.HTML(sheet(HELP)), *self._gone()]
