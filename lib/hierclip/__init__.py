"""Robustness of CLIP-style models at every level of a class hierarchy."""


def __getattr__(name: str):
    """Import `audit` when it is first asked for, because importing torch is slow."""
    if name != "audit":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hierclip.audits import audit

    return audit
