"""The disk of notebook 90, which needs a kernel."""

from pathlib import Path

import anywidget
import traitlets


class Disk(anywidget.AnyWidget):
    """Draw `scene` and `marks`; a click on a node is a message {"leaf": its first leaf}."""

    _esm = Path(__file__).parent / "disk.js"
    _css = Path(__file__).parent / "explorer.css"
    scene = traitlets.Dict().tag(sync=True)
    marks = traitlets.Dict().tag(sync=True)
    images = traitlets.Dict().tag(sync=True)  # by leaf, what the pointer shows
    level = traitlets.Int(0).tag(sync=True)
    stretch = traitlets.Float(0.6).tag(sync=True)
