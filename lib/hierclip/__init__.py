"""Robustness of CLIP-style models at every level of a class hierarchy."""

from importlib import import_module


def __getattr__(name: str):
    """Import `audit` when it is first asked for, because importing torch is slow."""
    if name != "audit":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("hierclip.audits").audit  # by name: no stage depends on the audits
