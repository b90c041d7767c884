"""The base of all errors that a user can correct."""


class HierclipError(ValueError):
    """Say in one line what is wrong with what was given, and what would be right."""
