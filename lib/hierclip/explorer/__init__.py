"""The disk of notebook 90: a tree and images in the Poincaré disk."""

from hierclip.explorer.disk import Disk, marks, node_angles, png, scene
