"""One model's view of one picture: the disk, the pictures and the path, before and after an attack."""

from dataclasses import dataclass
from pathlib import Path

import anywidget
import ipywidgets as ui
import traitlets
from torch import Tensor

from hierclip.widgets.look import Lens, Look, look
from hierclip.widgets.panels import path_table, picture_strip
from hierclip.widgets.scene import THUMB, marks, png, scene
from hierclip.widgets.store import Shelf


class Disk(anywidget.AnyWidget):
    """What `scene` and `marks` give, drawn by disk.js; `clicked` is the node that was."""

    _esm = Path(__file__).parent / "disk.js"
    scene = traitlets.Dict().tag(sync=True)
    marks = traitlets.Dict().tag(sync=True)
    pictures = traitlets.Dict().tag(sync=True)  # by leaf, what the pointer shows
    level = traitlets.Int(0).tag(sync=True)
    width = traitlets.Int(680).tag(sync=True)
    clicked = traitlets.Int(-1).tag(sync=True)


def thumbnails(shelf: Shelf) -> dict[str, str]:
    """By leaf, its first picture."""
    some = shelf.pictures[shelf.first]
    return {str(int(leaf)): png(image, THUMB) for leaf, image in zip(some.labels, some.floats(), strict=True)}


@dataclass(frozen=True)
class Case:
    """A picture (3, H, W) in [0, 1] of a leaf, seen clean and then, if it was attacked, moved."""

    lens: Lens
    label: int
    images: tuple[Tensor, ...]
    looks: tuple[Look, ...]


def open_case(lens: Lens, label: int, *images: Tensor) -> Case:
    return Case(lens, label, images, tuple(look(lens, image, label) for image in images))


class View:
    """The widgets that show a case."""

    def __init__(self, width: int):
        self.disk, self.strip, self.path, self.credit = Disk(width=width), ui.HTML(), ui.HTML(), ""

    def show(self, case: Case, level: int, stretch: float) -> None:
        with self.disk.hold_sync():  # marks name nodes of the scene: the page gets both at once
            self.disk.scene = scene(case.lens, stretch)
            self.disk.marks = marks(case.lens, case.label, case.looks, stretch)
        self.strip.value = picture_strip(*case.images, credit=self.credit)
        self.show_level(case, level)

    def show_level(self, case: Case, level: int) -> None:
        """Only what the chosen level changes."""
        self.disk.level, self.path.value = level, path_table(case.lens, case.label, case.looks, level)

    def clear(self) -> None:
        self.disk.scene, self.disk.marks, self.strip.value, self.path.value = {}, {}, "", ""
