"""The Poincaré disk of a tree and images: a page (`disk`), and notebook 90's (`widget.Disk`)."""

from hierclip.explorer.page import DrawnImage, disk, marks, node_angles, png, scene
