"""The Poincaré disk of a tree and images: a page (`disk`), and notebook 90's (`widget.Disk`)."""

from hierclip.explorer.page import (
    DrawnImage as DrawnImage,
    disk as disk,
    marks as marks,
    node_angles as node_angles,
    png as png,
    scene as scene,
)
