"""What an attack changes in an image, to be seen."""

from torch import Tensor


def magnified(before: Tensor, after: Tensor) -> tuple[Tensor, float]:
    """Return the change of images in [0, 1], drawn around grey, and by what factor it is
    magnified.

    The largest change reaches black or white, in whatever norm the budget is.
    """
    change = after - before
    factor = 0.5 / (float(change.abs().max()) or 0.5)
    return (factor * change + 0.5).clamp(0, 1), factor
