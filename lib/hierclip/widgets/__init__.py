"""The explorer, and two methods side by side: interactive pages for notebooks."""

from hierclip.widgets.compare import Compare
from hierclip.widgets.explorer import Explorer
