"""The Poincaré disk of a tree and images: as a page (`disk`), and what notebook 90 draws."""

from hierclip.explorer.page import (
    FILES as FILES,
    DrawnImage as DrawnImage,
    disk as disk,
    marks as marks,
    node_angles as node_angles,
    png as png,
    scene as scene,
)
