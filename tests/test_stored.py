"""Images that lie in a file are those that would be in memory, and few of them are at a time."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

import hierclip
from hierclip.data import ImageSet, StoredImages
from hierclip.data.dataset import stored_images
from hierclip.errors import HierclipError
from hierclip.progress import fingerprint
from tests.miniatures import COUNT
from tests.test_cli import ARCHITECTURE, place, weights

__all__ = ["place", "weights"]  # fixtures

IMAGES = torch.randint(
    0, 256, (11, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
LABELS = torch.arange(11) % 4


@pytest.fixture
def images(tmp_path) -> ImageSet:
    (tmp_path / "images").write_bytes(b"head" + IMAGES.numpy().tobytes())
    return ImageSet(StoredImages(tmp_path / "images", (11, 3, 4, 5), start=4), LABELS)


def test_stored_images_are_selected_as_those_in_memory_are(images):
    whole = ImageSet(IMAGES, LABELS)
    for select in (
        lambda some: some,
        lambda some: some.select_classes(torch.tensor([3, 1])),
        lambda some: some[some.evenly_spaced(4)][torch.tensor([2, 0])],
        lambda some: some[torch.tensor([], dtype=torch.int64)],
    ):
        found, expected = select(images), select(whole)
        assert found.pixels is images.pixels and torch.equal(found.labels, expected.labels)
        assert torch.equal(found.read(), expected.read()) and torch.equal(
            found.floats(), expected.floats()
        )
        assert torch.equal(torch.cat([*found.batches(2)]), expected.floats())


def test_a_fingerprint_is_the_hash_of_all_bytes_at_once(images, monkeypatch):
    expected = hashlib.sha256(IMAGES.numpy().tobytes()).hexdigest()
    monkeypatch.setattr("hierclip.data.dataset.CHUNK", 4)
    assert (
        images.fingerprint()
        == ImageSet(IMAGES, LABELS).fingerprint()
        == fingerprint(IMAGES)
        == expected
    )
    turned = IMAGES.to(memory_format=torch.channels_last)
    assert ImageSet(turned, LABELS).fingerprint() == fingerprint(turned) == expected
    assert images[torch.arange(10)].fingerprint() != expected


def test_images_of_a_file_of_safetensors_are_found_by_name(tmp_path):
    other = {"val.images": IMAGES[:0], "a": torch.rand(7), "z": torch.rand(3).double()}
    save_file({"test.images": IMAGES, **other}, tmp_path / "kept", {"classes": "{}"})
    everything = torch.arange(11)
    assert torch.equal(stored_images(tmp_path / "kept", "test.images")[everything], IMAGES)
    assert stored_images(tmp_path / "kept", "val.images")[everything[:0]].shape == (0, 3, 4, 5)


def test_a_file_that_was_cut_short_is_refused(images):
    path = images.pixels.path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="mmap length is greater than file size"):
        images.read()


def start(weights, images: str = "zoo", **changes):
    settings = {
        "tree": "tree.json",
        "suite": "apgd_ce",
        "steps": 1,
        "queries": 2,
        "checks": 2,
        "batch": 1,
    } | changes
    return hierclip.audit(ARCHITECTURE, images, pretrained=str(weights), **settings)


def test_an_audit_reads_few_images_at_a_time_and_leaves_no_copy_of_them(
    place, weights, monkeypatch
):
    read, counts = ImageSet.read, []

    def counted(self: ImageSet) -> torch.Tensor:
        counts.append(len(self))
        return read(self)

    monkeypatch.setattr(ImageSet, "read", counted)
    monkeypatch.setattr("hierclip.data.dataset.CHUNK", 8)
    found, out = start(weights), place / "hierclip-audit"
    assert found.record.images == 5 * COUNT > 8 >= max(counts)
    assert start(weights).record == found.record
    assert {file.name for file in out.iterdir()} == {"record.json", "outcomes"}
    assert not list(place.glob("hierclip-*/images"))


def test_an_audit_that_is_stopped_leaves_what_it_goes_on_from_and_no_images(
    place, weights, monkeypatch
):
    done = place / "hierclip-audit/work/done"

    def stopped(evaluation):
        root = evaluation.root
        (images,) = place.glob("hierclip-*/images")
        assert images.stat().st_size == 5 * COUNT * 3 * 32 * 32
        root.mkdir(parents=True)
        done.write_text("half", encoding="utf8")
        raise KeyboardInterrupt

    monkeypatch.setattr("hierclip.audits.Evaluation.record", stopped)
    with pytest.raises(KeyboardInterrupt):
        start(weights)
    assert list(done.parent.iterdir()) == [done] and not list(place.glob("hierclip-*/images"))


def test_an_audit_that_cannot_begin_leaves_nothing(place, weights):
    for file in (place / "zoo/cat").iterdir():
        file.write_text("none", encoding="utf8")
    with pytest.raises(HierclipError, match="no image of class cat can be read"):
        start(weights)
    assert not list(place.glob("hierclip-*"))
