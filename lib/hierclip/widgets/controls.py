"""Choices and sliders that call back when their value is settled."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ipywidgets as ui

NAMED, SIZE = {"description_width": "92px"}, {"width": "312px"}
ROW = {"flex_flow": "row wrap", "width": "100%"}


class Quiet:
    """Ties widgets to callbacks, which are not called while the program itself sets values."""

    def __init__(self):
        self.silent = False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        before, self.silent = self.silent, True
        try:
            yield
        finally:
            self.silent = before

    def tie(self, changed: Callable[[], None], *widgets: ui.Widget) -> None:
        for widget in widgets:
            widget.observe(lambda _: None if self.silent else changed(), "value")


def choice(name: str, options, value=None) -> Any:
    """A drop-down list of `options`, names or (name, value), at that value or else at the first."""
    values = [option[1] if isinstance(option, tuple) else option for option in options]
    value = value if value in values else values[0]
    return ui.Dropdown(options=options, value=value, description=name, layout=SIZE, style=NAMED)


def slider(name: str, low: float, high: float, value: float, step: float = 1, kind=None, **more) -> Any:
    """Of whole numbers where `step` is one, if of no other `kind`. It calls back when it is let go."""
    kind = kind or (ui.IntSlider if isinstance(step, int) else ui.FloatSlider)
    settings = {"continuous_update": False, "layout": SIZE, "style": NAMED, **more}
    return kind(value=value, min=low, max=high, step=step, description=name, **settings)
