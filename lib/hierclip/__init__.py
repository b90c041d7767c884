"""Robustness of CLIP-style models at every level of a class hierarchy."""

from importlib import import_module

FRONT = {
    "audit": "hierclip.audits"
}  # what is had from here, and where it is: read when asked for, as torch is heavy


def __getattr__(name: str):
    if name not in FRONT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(FRONT[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *FRONT]
