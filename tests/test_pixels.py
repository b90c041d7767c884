"""Images of every mode in RGB: by Pillow's own conversion, or by arithmetic on what was saved."""

import struct
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from hierclip.data import Source, dataset_source, square
from hierclip.data.photos import read_image, to_rgb
from hierclip.models import create
from tests.miniatures import noise, put

GREY = np.array([[0, 257, 32768, 65535]])  # of 16 bits


def saved(image: Image.Image | np.ndarray, kind: str = "PNG", **settings) -> Image.Image:
    """What Pillow opens of an image that it saved."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = BytesIO()
    image.save(file, kind, **settings)
    return Image.open(BytesIO(file.getvalue()))


def greys(image: Image.Image) -> list[int]:
    """The grey values of an image's first line in RGB."""
    pixels = np.asarray(to_rgb(image))
    assert pixels.ndim == 3 and (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].tolist()


def one(image: Image.Image) -> Source:
    return Source({"cat": "cat"}, [0], lambda _: image, lambda _: "1.png")


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("PNG", "L"), ("JPEG", "RGB")])
def test_plain_images_keep_their_bytes(kind, mode, params):
    image = saved(Image.fromarray(noise(0)).convert(mode), kind)
    assert to_rgb(image).tobytes() == image.convert("RGB").tobytes()
    cut = create(params.model, seed=0, size=32).cut
    found = read_image(one(image), cut, 0)
    assert torch.equal(found, cut(image))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
def test_what_pillow_converts_right_is_as_it_converts_it(mode):
    colours = Image.fromarray(noise(0))
    image = colours.convert("RGB" if mode == "LAB" else mode)
    if mode == "LAB":
        image = Image.merge("LAB", colours.split())
    assert to_rgb(image).tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("order", ["I;16", "I;16L", "I;16B"])
def test_grey_of_16_bits_is_scaled_whatever_the_order_of_its_bytes(order):
    kind = ">u2" if order == "I;16B" else "<u2"
    image = Image.frombytes(order, (4, 1), GREY.astype(kind).tobytes())
    assert greys(image) == [0, 1, 128, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000", "PPM"])
def test_files_of_16_bit_grey_are_scaled(kind):
    assert greys(saved(GREY.astype(np.uint16), kind)) == [0, 1, 128, 255]


def test_a_pgm_is_scaled_by_its_own_white():
    values = struct.pack(">3H", 0, 2048, 4095)
    assert greys(Image.open(BytesIO(b"P5 3 1 4095\n" + values))) == [0, 128, 255]


def tiff(bits: int, photometric: int, values: bytes, form: int = 1) -> Image.Image:
    """A TIFF of two grey pixels, written by hand."""
    tags = [(256, 2), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 200), (277, 1)]
    tags += [(278, 1), (279, len(values)), (339, form)]
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0" * 4
    return Image.open(BytesIO(head.ljust(200, b"\0") + values))


def test_a_tiff_is_scaled_by_its_bits_and_by_what_it_calls_white():
    assert greys(tiff(16, 1, struct.pack("<2H", 0, 65535))) == [0, 255]
    assert greys(tiff(16, 0, struct.pack("<2H", 0, 65535))) == [255, 0]  # white is zero
    assert greys(tiff(12, 1, bytes([0xFF, 0xF8, 0x00]))) == [255, 128]  # 4095 and 2048
    assert greys(tiff(32, 1, struct.pack("<2f", 0, 0.5), form=3)) == [0, 128]
    assert greys(tiff(32, 0, struct.pack("<2f", 0, 0.2), form=3)) == [255, 204]


def test_floats_in_0_to_1_are_scaled():
    image = saved(np.array([[0, 0.2, 0.5, 1]], np.float32), "TIFF")
    assert greys(image) == [0, 51, 128, 255]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (saved(np.array([[0, 255]], np.float32), "TIFF"), "values from 0 to 255; floats in"),
        (saved(np.array([[-0.1, 1]], np.float32), "TIFF"), "values from -0.1 to 1; floats in"),
        (saved(np.array([[0, np.nan]], np.float32), "TIFF"), "values from nan to nan; floats in"),
        (saved(np.array([[0, np.inf]], np.float32), "TIFF"), "values from 0 to inf; floats in"),
        (saved(np.array([[0, 255]], np.int32), "TIFF"), "integers whose range is not known"),
        (tiff(16, 1, struct.pack("<2h", -1, 9), form=2), "integers whose range is not known"),
        (Image.new("I", (2, 2)), "integers whose range is not known; save it with 8 or 16 bits"),
    ],
)
def test_values_of_an_unknown_range_are_refused(image, words):
    with pytest.raises(ValueError, match=words):
        to_rgb(image)
    assert words in str(read_image(one(image), square(2), 0))


def layered(mode: str) -> Image.Image:
    """A transparent, a half transparent and an opaque black pixel."""
    layers = bytes([0, 0, 0, 128, 0, 255])
    if mode == "PA":
        image = Image.frombytes("PA", (3, 1), layers)
        image.putpalette([0, 0, 0] * 256)
        return image
    image = Image.frombytes("LA", (3, 1), layers)
    return image.convert("RGBA").convert(mode) if mode.startswith("RGB") else image.convert(mode)


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_transparent_pixels_show_white(mode):
    assert greys(layered(mode)) == [255, 127, 0]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF"])
def test_transparency_of_a_file_shows_white(kind):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((0, 0), (9, 9, 9, 0))
    settings = {"lossless": True} if kind == "WEBP" else {}
    assert greys(saved(image, kind, **settings)) == [255, 0]


@pytest.mark.parametrize(
    ("mode", "entry"), [("1", 0), ("L", 0), ("RGB", (0, 0, 0)), ("P", 0), ("P", b"\0\xff")]
)
def test_a_transparency_entry_shows_white(mode, entry):
    image = Image.new(mode, (2, 1))
    if mode == "P":
        image.putpalette([0, 0, 0, 90, 90, 90])
    image.putpixel((1, 0), {"RGB": (90, 90, 90), "L": 90}.get(mode, 1))
    right = 255 if mode == "1" else 90
    assert greys(saved(image, transparency=entry)) == [255, right]


def test_a_transparent_grey_of_16_bits_shows_white():
    image = saved(GREY.astype(np.uint16))
    image.load()
    image.info["transparency"] = 257
    assert greys(image) == [0, 255, 128, 255]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_an_image_is_turned_upright(kind, orientation):
    image = Image.new("RGB", (32, 16))
    image.paste((255, 255, 255), (0, 0, 16, 16))  # the left half
    exif = Image.Exif()
    exif[0x112] = orientation
    upright = to_rgb(saved(image, kind, exif=exif))
    white = np.argwhere(np.asarray(upright)[..., 0] > 128).mean(0)  # row and column, in the middle
    middle = {1: (7.5, 7.5), 3: (7.5, 23.5), 6: (7.5, 7.5), 8: (23.5, 7.5)}[orientation]
    assert upright.size == ((32, 16) if orientation in (1, 3) else (16, 32))
    assert white == pytest.approx(middle, abs=0.5)
    if kind == "PNG":
        assert to_rgb(upright).tobytes() == upright.tobytes()  # not turned again


def test_damaged_exif_data_are_passed_over():
    image = saved(noise(0), exif=b"Exif\0\0no TIFF at all")
    assert to_rgb(image).tobytes() == image.convert("RGB").tobytes()


def test_the_first_of_several_frames_is_taken():
    frames = [Image.new("L", (4, 4), value) for value in (200, 50)]
    image = saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert greys(image) == [200] * 4


def test_a_torchvision_folder_keeps_16_bits_and_transparency(tmp_path):
    for name, image in {"cat": saved(GREY.astype(np.uint16)), "dog": layered("RGBA")}.items():
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "1.png")
    images = ImageFolder(str(tmp_path))
    loader = images.loader
    source = dataset_source(images, "ImageFolder")
    found = [read_image(source, pil_to_tensor, row)[0, 0].tolist() for row in range(2)]  # pyright: ignore
    assert found == [[0, 1, 128, 255], [255, 127, 0]] and images.loader is loader


def test_what_is_wrong_with_a_file_is_said(tmp_path):
    put(tmp_path / "1.jpg", 0)
    whole = (tmp_path / "1.jpg").read_bytes()
    for content, words in {
        b"": "no image that Pillow knows",
        b"version https://git-lfs.github.com/spec/v1": "no image that Pillow knows",
        whole[:900]: "image file is truncated",
    }.items():
        (tmp_path / "1.jpg").write_bytes(content)
        source = Source({}, [0], lambda _: Image.open(tmp_path / "1.jpg"), lambda _: "1.jpg")
        assert str(read_image(source, square(4), 0)).startswith(words)


@pytest.mark.parametrize("mode", sorted({*Image.MODES} - {"I"}))
def test_every_mode_of_pillow_but_one_is_converted(mode):
    rgb = to_rgb(Image.new(mode, (3, 2)))
    assert (rgb.mode, rgb.size) == ("RGB", (3, 2))
