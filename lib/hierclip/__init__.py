"""Robustness of CLIP-style models at every level of a class hierarchy."""
