"""The base of every error that is a user's mistake, and the message for a name that is unknown."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

LISTED = 12  # known names in a message


class HierclipError(ValueError):
    """Raised for a user's mistake: one line that says what is wrong and what would be right."""

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows of it in a notebook: the line, and no traceback."""
        return [f"hierclip: {self}"]


def no_such(kind: str, name: object, known: Iterable[str]) -> str:
    """Say that there is nothing of a kind under a name; offer near names, and list what is known.

    Names are near whatever their case, and with "/" for "-".
    """
    names = {each.lower(): each for each in known}
    near = get_close_matches(name.lower().replace("/", "-"), names) if isinstance(name, str) else []
    meant = f"; did you mean {' or '.join(names[each] for each in near)}?" if near else ";"
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    listed = ", ".join([*names.values()][:LISTED]) or "none"
    return f"no {kind} {name!r}{meant} known are {listed}{more}"


def refuse(mistakes: Mapping[str, object], kind: type[HierclipError] = HierclipError) -> None:
    """Raise an error with the first message whose value is true."""
    for message, applies in mistakes.items():
        if applies:
            raise kind(message)
