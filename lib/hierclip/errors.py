"""What every error of the user's making is."""


class HierclipError(ValueError):
    """Say in a line what is wrong with what was given, and what would be right: no bug of the
    program.
    """
