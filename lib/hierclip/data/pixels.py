"""From any image that Pillow opens to RGB, by the range that its values have."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# What Pillow raises for damaged files, besides an OSError without the system's error number.
DAMAGED = (
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
BITS, PHOTOMETRIC = 258, 262  # tags of TIFF; photometric 0: white is zero


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB, upright as its EXIF data say, with white behind what is transparent.

    Grey of up to 16 bits, and floats, keep their range: black is 0, white the most that the bits
    hold, or 1. Everything else is as Pillow converts it. Raises ValueError, which says what is
    wrong, for integers of 32 bits, whose range nobody knows, and floats outside [0, 1].
    """
    image.load()
    try:
        upright = ImageOps.exif_transpose(image)
    except DAMAGED:  # the pixels are whole: only the EXIF data are damaged
        upright = image
    if image.mode[0] in "IF":
        return _grey(np.asarray(upright), image).convert("RGB")
    if upright.mode == "La":  # which Pillow would convert to RGBA without its alpha
        upright = upright.convert("LA")
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    return upright.convert("RGB")


def _grey(values: np.ndarray, image: Image.Image) -> Image.Image:
    """Scale the values of an image of mode I;16, I or F to 8 bits."""
    tags = getattr(image, "tag_v2", {})
    white = 2 ** tags.get(BITS, (16,))[0] - 1 if image.mode != "F" else 1
    if image.format == "FITS" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError("integers whose range is not known; save it with 8 or 16 bits, as a PNG")
    if not ((values >= 0) & (values <= white)).all():  # NaN is neither
        raise ValueError(
            f"values from {values.min():g} to {values.max():g}; floats in [0, 1] are needed"
        )
    grey = np.round(255 * (values / white)).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == 0:
        grey = 255 - grey
    grey[values == image.info.get("transparency", -1)] = 255
    return Image.fromarray(grey)


def open_rgb(path: str | Path) -> Image.Image:
    """Open a file as `to_rgb` makes it."""
    with Image.open(path) as image:
        return to_rgb(image)
