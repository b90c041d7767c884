"""Interactive explorer of trees, images and attacks, for notebooks."""

from hierclip.explorer.explorer import Explorer
