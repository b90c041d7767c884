"""Interactive explorer of trees, pictures and attacks, for notebooks."""

from hierclip.explorer.explorer import Explorer, compare
