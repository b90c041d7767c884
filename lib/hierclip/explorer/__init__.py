"""The disk of notebook 90 and of pages: a tree and images in the Poincaré disk."""

from hierclip.explorer.page import DrawnImage, disk
from hierclip.explorer.widget import Disk, marks, node_angles, png, scene
