"""The base of every error that is a user's mistake."""


class HierclipError(ValueError):
    """Raised for a user's mistake: one line that says what is wrong and what would be right."""

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows of it in a notebook: the line, and no traceback."""
        return [f"hierclip: {self}"]
