"""What users write, spoiled at random: it is read, or refused in one line, and never slowly."""

import io
import random
import time
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from safetensors.torch import save_file

from hierclip.audits import image_folder, open_model
from hierclip.config import load_params
from hierclip.data.photos import read_image, square
from hierclip.errors import HierclipError
from hierclip.models import create
from hierclip.trees.chosen import audit_trees
from tests.conftest import ROOT

INPUTS = 100  # of each kind
LONGEST = 5.0  # seconds
WORDS = [
    *b"\0\n\r\t ,;:\"'{}[]&*!|>#%-",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    "ü".encode("latin1"),
    "é猫\u202e".encode(),
]
WORDS += [
    b"no",
    b"null",
    b"1e999",
    b"NaN",
    b"-1",
    b"../x",
    b"<<: *a",
    b"!!python/name:os.system",
    b"9" * 30,
]
CLASSES = ["dog", "cat", "eagle", "car", "bus"]
TREES = {
    "outline.yaml": "animal:\n  mammal: [dog, cat]\n  bird: [eagle]\nvehicle: [car, bus]\n",
    "outline.json": '{"animal": {"mammal": ["dog", "cat"], "bird": ["eagle"]}, "vehicle": ["car", "bus"]}',
    "paths.csv": "dog,mammal,animal\ncat,mammal,animal\neagle,bird,animal\ncar,land,vehicle\nbus,land,vehicle\n",
}
spoiled = settings(
    max_examples=INPUTS,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
seeds = st.integers(0, 2**32)


def spoil(content: bytes, seed: int) -> bytes:
    """Change some bytes: other ones, some more, some fewer, some twice, words that mean something."""
    draw, changed = random.Random(seed), bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 5, 20])):
        start = draw.randrange(len(changed) + 1)
        stop = min(len(changed), start + draw.choice([0, 1, 4, 40, 10**6]))
        word = draw.choice(WORDS)
        changed[start:stop] = draw.choice(
            [
                b"",
                bytes([word]) if isinstance(word, int) else word,
                draw.randbytes(draw.choice([1, 8])),
                2 * changed[start:stop],
            ]
        )
    return bytes(changed)


class Refusals:
    """Counts what was read and what was refused, and lets nothing else happen."""

    def __init__(self, lines: int = 1):
        self.lines, self.read, self.refused = lines, 0, 0

    def __call__(self, work) -> None:
        began = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                work()
            self.read += 1
        except HierclipError as error:
            assert 1 <= len(str(error).splitlines()) <= self.lines, str(error)
            self.refused += 1
        assert time.monotonic() - began < LONGEST


@pytest.mark.parametrize("name", TREES)
def test_trees(tmp_path, name):
    tried, leaves = Refusals(), dict(zip(CLASSES, CLASSES, strict=True))

    @settings(spoiled, max_examples=INPUTS // 2)
    @given(seeds)
    def each(seed):
        (tmp_path / name).write_bytes(spoil(TREES[name].encode(), seed))
        tried(lambda: audit_trees(leaves, [tmp_path / name], None, None))

    each()
    assert tried.read and tried.refused


def test_tables_of_classes(tmp_path):
    tried = Refusals()
    for name in CLASSES:
        (tmp_path / "zoo" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "zoo" / name / "1.png")
    table = "id,name\n" + "".join(f"{name},a {name}\n" for name in CLASSES)

    @spoiled
    @given(seeds)
    def each(seed):
        (tmp_path / "zoo/classes.csv").write_bytes(spoil(table.encode(), seed))
        tried(lambda: image_folder(tmp_path / "zoo"))

    each()
    assert tried.read and tried.refused


def test_parameters(tmp_path):
    tried = Refusals(lines=99)  # one for each bad key
    content = (ROOT / "presets/smoke/params.yaml").read_bytes()

    @spoiled
    @given(seeds)
    def each(seed):
        (tmp_path / "params.yaml").write_bytes(spoil(content, seed))
        tried(lambda: load_params(tmp_path / "params.yaml"))

    each()
    assert tried.read and tried.refused


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP"])
def test_images(tmp_path, kind):
    tried, whole = Refusals(), io.BytesIO()
    pixels = random.Random(0).randbytes(3 * 12 * 9)
    Image.frombytes("RGB", (12, 9), pixels).save(whole, kind)
    file = tmp_path / f"zoo/dog/1.{kind.lower()}"
    file.parent.mkdir(parents=True)

    def read():
        file.write_bytes(content)
        image = read_image(image_folder(tmp_path / "zoo").content, square(8), 0)
        if isinstance(image, str):
            raise HierclipError(image)
        assert image.shape == (3, 8, 8) and image.dtype == torch.uint8

    content = b""

    @settings(spoiled, max_examples=INPUTS // 4)
    @given(seeds)
    def each(seed):
        nonlocal content
        content = spoil(whole.getvalue(), seed)
        tried(read)

    each()
    assert tried.refused


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_checkpoints(tmp_path, params, kind):
    tried, file = Refusals(), tmp_path / f"mine.{kind}"
    small = create(
        params.model.model_copy(update={"architecture": "hierclip-tiny"}), seed=0, size=32
    )
    state = {name: weight.contiguous() for name, weight in small.clip.state_dict().items()}
    save_file(state, file) if kind == "safetensors" else torch.save(state, file)
    whole = file.read_bytes()
    ends = whole[:4096], whole[-4096:]  # where what is not a weight's bits lies

    @settings(spoiled, max_examples=INPUTS // 2)
    @given(seeds)
    def each(seed):
        head = seed % 2
        parts = (
            [spoil(ends[0], seed), whole[4096:]] if head else [whole[:-4096], spoil(ends[1], seed)]
        )
        file.write_bytes(b"".join(parts))
        tried(lambda: open_model("hierclip-tiny", str(file)))

    each()
    assert tried.refused
