"""Folders and shards as users have them: every image of a class once, or a line that says why not."""

import gzip
import os
import re
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from hierclip.data import DataError, Source, class_folders, shards_source
from hierclip.data.photos import read_image
from hierclip.data.sources import image_endings, split_folders
from tests.miniatures import lines


def touch(base: Path, *names: str) -> None:
    """Make empty files, which are listed and not read."""
    for name in names:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).touch()


def found(source: Source, base: Path) -> list[str]:
    """The files of a source, from its folder, each as often as it is there."""
    return sorted(os.path.relpath(source.called(row), base) for row in range(len(source.labels)))


# Class folders


def test_images_at_any_depth_and_of_any_kind_belong_to_their_class(tmp_path):
    names = ["cat/1.png", "cat/a/b/2.JPEG", "dog/3.jfif", "dog/4.AVIF", "dog/5.mpo", "dog/6.webp"]
    touch(tmp_path, *names)
    source = class_folders(tmp_path)
    assert found(source, tmp_path) == names and list(source.classes) == ["cat", "dog"]
    assert source.labels == [0, 0, 1, 1, 1, 1] and source.notes == []


def test_a_class_has_the_images_that_torchvision_finds(tmp_path):
    touch(tmp_path, *(f"{c}/{n}.jpg" for c in ("a", "a b", "c") for n in ("1", "x/1", "x-y/1")))
    theirs = ImageFolder(str(tmp_path))
    ours = class_folders(tmp_path)
    assert list(ours.classes) == theirs.classes
    rows = [(ours.called(row), label) for row, label in enumerate(ours.labels)]
    assert rows == theirs.samples


def test_what_systems_leave_in_folders_is_passed_over(tmp_path):
    touch(tmp_path, "cat/1.png", "dog/1.png", "cat/Thumbs.db", "cat/desktop.ini", "cat/.DS_Store")
    touch(tmp_path, "cat/._1.png", "dog/.hidden.jpg", "cat/a/._2.png")
    junk = ["__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information"]
    for name in [*junk, "lost+found", "__pycache__", ".git", ".ipynb_checkpoints"]:
        touch(tmp_path, f"{name}/cat/1.png", f"{name}/2.png", f"cat/{name}/3.png")
        touch(tmp_path, f"dog/a/{name}/4.png")
    source = class_folders(tmp_path)
    assert found(source, tmp_path) == ["cat/1.png", "dog/1.png"] and source.notes == []


def test_files_that_are_no_images_are_counted_by_ending(tmp_path):
    touch(tmp_path, "cat/1.png", "cat/a.txt", "cat/b/c.TXT", "dog/1.png", "dog/film.mpg")
    touch(tmp_path, "dog/data.h5", "dog/README", "3.png", "notes.md")
    counts = "1 .h5, 1 .mpg, 1 .png in no class folder, 2 .txt, 1 without an ending"
    assert class_folders(tmp_path).notes == [f"{tmp_path}: left out {counts}"]


def test_a_part_of_a_source_keeps_its_notes(tmp_path):
    touch(tmp_path, "cat/1.png", "cat/a.txt")
    source = class_folders(tmp_path)
    assert source.take([0]).notes == source.notes != []


def test_the_endings_are_those_of_images_that_pillow_opens():
    endings = image_endings()
    assert {".jpg", ".jpe", ".jfif", ".png", ".avif", ".jp2", ".mpo", ".tif", ".bmp"} <= endings
    assert not {".pdf", ".h5", ".mpg", ".palm", ".txt", ""} & endings


def test_a_loop_of_links_reads_no_image_twice(tmp_path):
    touch(tmp_path, "zoo/cat/a/1.png", "zoo/dog/1.png", "far/2.png")
    for link, target in {
        "zoo/cat/a/up": "zoo/cat",
        "zoo/cat/zoo": "zoo",
        "zoo/all": "zoo",
        "zoo/cat/far": "far",
        "zoo/cat/far2": "far",
        "far/back": "zoo/cat/a",
    }.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    source = class_folders(tmp_path / "zoo")
    assert list(source.classes) == ["cat", "dog"]
    assert len(source.labels) == 3
    real = {os.path.realpath(source.called(row)) for row in range(3)}
    assert real == {
        str(tmp_path / name) for name in ("zoo/cat/a/1.png", "zoo/dog/1.png", "far/2.png")
    }


def test_links_to_elsewhere_are_followed(tmp_path):
    touch(tmp_path, "all/1.png", "all/2.png", "zoo/cat/3.png")
    (tmp_path / "zoo/dog").symlink_to(tmp_path / "all")
    (tmp_path / "zoo/cat/4.png").symlink_to(tmp_path / "all/1.png")
    source = class_folders(tmp_path / "zoo")
    assert found(source, tmp_path / "zoo") == ["cat/3.png", "cat/4.png", "dog/1.png", "dog/2.png"]


def test_a_broken_link_is_named(tmp_path):
    touch(tmp_path, "dog/1.png")
    (tmp_path / "dog/0.png").symlink_to(tmp_path / "nothing")
    assert read_image(class_folders(tmp_path), lambda _: None, 0) == "a broken link"  # pyright: ignore
    for name in ("dog/puppies", "cat"):
        (tmp_path / name).symlink_to(tmp_path / "nothing")
        with pytest.raises(DataError, match=f"^{tmp_path / name}: a broken link; mend or remove"):
            class_folders(tmp_path)
        (tmp_path / name).unlink()


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    touch(tmp_path, "cat/1.png", "dog/shut/1.png")
    walk = os.walk

    def shut(folder):
        return iter(()) if str(folder).endswith("shut") else walk(folder)

    monkeypatch.setattr(os, "walk", shut)
    with pytest.raises(DataError, match="dog/shut: the folder cannot be read"):
        class_folders(tmp_path)


# Splits

BOTH = ("{}/cat/1.png", "{}/dog/1.png")


def each(*names: str) -> list[str]:
    return [pattern.format(name) for name in names for pattern in BOTH]


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["cat/1.png", "dog/1.png"], ["."]),
        (each("train", "test"), ["train", "test"]),
        (each("Train", "TEST"), ["Train", "TEST"]),
        (each("train", "val", "test"), ["train", "test"]),
        (each("training_set", "validation"), ["training_set", "validation"]),
        (each("val", "valid"), ["val"]),
        (each("test"), ["test"]),
        (
            [*each("train", "test"), "docs/a.txt", "__MACOSX/train/1.png", "1.png"],
            ["train", "test"],
        ),
        (["train/1.png", "test/1.png"], ["."]),  # two classes of these names
        (["train/1.png", "plane/1.png"], ["."]),
        (["train/1.png", "train/steam/1.png", "plane/1.png"], ["."]),
        (["train/steam/1.png", "plane/1.png"], ["."]),
        (["dog/train/1.png", "cat/train/1.png"], ["."]),
    ],
)
def test_splits_are_folders_of_the_same_class_folders(tmp_path, names, parts):
    touch(tmp_path, *names)
    assert split_folders(tmp_path) == [tmp_path / part for part in parts]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([*each("train", "test"), "test/eel/1.png"], "test has eel; splits need the same class"),
        ([*each("train"), "test/cat/1.png"], "train has dog; splits need"),
        (
            ["train/n01/images/1.JPEG", "train/n02/images/2.JPEG", "val/images/3.JPEG"],
            "train has n01, n02; val has images; splits need",
        ),
        ([*each("train", "test"), "plane/1.png"], "test, train with class folders, beside plane"),
        ([*each("train"), "unlabeled/1.png"], "train with class folders, beside unlabeled with im"),
        ([*each("train"), "test/1.png"], "train with class folders, beside test with images"),
        (each("train"), "class folders in train alone; put test beside it, or name it"),
    ],
)
def test_splits_that_differ_or_may_be_classes_are_refused(tmp_path, names, words):
    touch(tmp_path, *names)
    with pytest.raises(DataError) as caught:
        split_folders(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: ") and "\n" not in message
    assert words in message or words.replace("test, train", "train, test") in message


# Shards

PAIRS = [(f"{k}.{ending}", b"1" if ending == "cls" else b"image") for k in range(3) for ending in ("png", "cls")]  # fmt: skip


def shard(path: Path, *members: tuple[str, bytes], extra: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    """Write a shard of files, and of entries without content; and two classes beside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, BytesIO(content))
        for entry in extra:
            file.addfile(entry)
    lines(path.parent / "classes.csv", "id,name", "cat,cat", "dog,dog")
    return path


def refused(folder: Path) -> str:
    """What is said of the shards of a folder: one line, as an error or as a warning."""
    with pytest.raises(DataError) as caught:
        shards_source(folder, folder)
    message = str(caught.value)
    assert message.startswith(f"{folder}: ") and "\n" not in message
    return message


def kept(folder: Path) -> list[str]:
    """The keys of the images that are left where data are not strict, which is said."""
    message = refused(folder).partition("; mend that")[0]
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}; left out$"):
        return found(shards_source(folder, folder, strict=False), folder)


def test_a_whole_shard_is_read(tmp_path):
    others = [("0.json", b"{}"), ("1.seg.txt", b""), ("._0.png", b""), ("__MACOSX/0.png", b"")]
    folder = tarfile.TarInfo("a")
    folder.type = tarfile.DIRTYPE
    image = BytesIO()
    Image.new("RGB", (3, 2), "red").save(image, "png")
    last = [("a/x.PNG", image.getvalue()), ("a/x.CLS", b" 0\n")]
    shard(tmp_path / "0.tar", *PAIRS, *others, *last, extra=(folder,))
    touch(tmp_path, "._0.tar")
    source = shards_source(tmp_path, tmp_path)
    assert source.labels == [1, 1, 1, 0]
    assert found(source, tmp_path) == ["0.tar/0", "0.tar/1", "0.tar/2", "0.tar/a/x"]
    assert source.notes == [f"{tmp_path}: left out 1 .json, 1 .txt"]
    with source.read(3) as opened:
        assert opened.size == (3, 2)


def test_a_shard_that_is_cut_off_anywhere_is_refused(tmp_path):
    whole = shard(tmp_path / "0.tar", *PAIRS).read_bytes()
    end = 2 * 512 * len(PAIRS)  # of the last entry: a header and a block each
    assert not any(whole[end:]) and any(whole[end - 512 : end])
    for length in (1, 300, 512, 515, 1024, 1030, 1536, 2048, 2051, 2560, 4096, end - 511, end):
        (tmp_path / "0.tar").write_bytes(whole[:length])
        message = refused(tmp_path)
        assert f"{tmp_path / '0.tar'} (" in message and "damaged, compressed or no tar" in message


def test_of_a_shard_that_is_cut_off_the_whole_pairs_are_left(tmp_path):
    whole = shard(tmp_path / "0.tar", *PAIRS).read_bytes()
    for length, left in {2048: ["0"], 2051: ["0"], 3072: ["0"], 4096: ["0", "1"]}.items():
        (tmp_path / "0.tar").write_bytes(whole[:length])
        assert kept(tmp_path) == [f"0.tar/{key}" for key in left]


def test_a_label_that_is_cut_off_is_no_label(tmp_path):
    whole = shard(tmp_path / "0.tar", *PAIRS[:2], ("x.png", b""), ("x.cls", b"0" * 600 + b"1"))
    content = whole.read_bytes()
    whole.write_bytes(content[: content.rindex(b"1")])
    assert kept(tmp_path) == ["0.tar/0"]


def test_what_is_no_plain_tar_is_refused(tmp_path):
    whole = shard(tmp_path / "0.tar", *PAIRS).read_bytes()
    damaged = whole[:1024] + b"\xff" * 512 + whole[1536:]
    for content, why in {
        b"": "empty file, after 0 images",
        b"no tar " * 200: "after 0 images",
        gzip.compress(whole): "after 0 images",
        whole + whole: "damaged at byte 6144, after 3 images",  # of which tarfile reads one
        damaged: "damaged at byte 1024, after 1 images",
    }.items():
        (tmp_path / "1.tar").write_bytes(content)
        assert f"1 shards that are damaged, compressed or no tar: {tmp_path}/1.tar (" in refused(tmp_path)  # fmt: skip
        assert f"{why})" in refused(tmp_path)


def test_a_shard_without_images_is_named(tmp_path):
    shard(tmp_path / "0.tar", *PAIRS)
    shard(tmp_path / "1.tar")
    assert f"1 shards without an image: {tmp_path}/1.tar" in refused(tmp_path)
    assert len(kept(tmp_path)) == 3


@pytest.mark.parametrize("label", [b"dog", b"-1", b"2", b"", b"1.0", b"1_0", b"0 1", b"\xff", "\u0661".encode()])  # fmt: skip
def test_a_label_that_is_no_class_is_refused(tmp_path, label):
    shard(tmp_path / "0.tar", *PAIRS, ("x.png", b""), ("x.cls", label))
    assert f"1 labels that are no class number below 2: {tmp_path}/0.tar/x;" in refused(tmp_path)
    assert kept(tmp_path) == ["0.tar/0", "0.tar/1", "0.tar/2"]


def test_images_without_labels_and_labels_without_images_are_named_and_counted(tmp_path):
    alone = [("x.png", b""), ("y.jpg", b""), ("z.cls", b"0")]
    shard(tmp_path / "0.tar", *PAIRS, *alone)
    message = refused(tmp_path)
    assert f"2 images without a label (KEY.cls): {tmp_path}/0.tar/x, {tmp_path}/0.tar/y" in message
    assert f"1 labels without an image: {tmp_path}/0.tar/z" in message
    assert kept(tmp_path) == ["0.tar/0", "0.tar/1", "0.tar/2"]


@pytest.mark.parametrize("twice", ["0.png", "0.jpg", "0.cls"])
def test_a_key_twice_is_refused(tmp_path, twice):
    shard(tmp_path / "0.tar", *PAIRS, (twice, b"0"))
    assert f"1 keys with several images or labels, or a link for one: {tmp_path}/0.tar/0" in refused(tmp_path)  # fmt: skip
    assert kept(tmp_path) == ["0.tar/1", "0.tar/2"]


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_link_in_a_shard_is_refused(tmp_path, kind):
    link = tarfile.TarInfo("x.png")
    link.type, link.linkname = kind, "0.png"
    shard(tmp_path / "0.tar", *PAIRS, ("x.cls", b"0"), extra=(link,))
    assert f"or a link for one: {tmp_path}/0.tar/x" in refused(tmp_path)


def test_a_folder_without_a_good_image_is_refused(tmp_path):
    shard(tmp_path / "0.tar", ("0.png", b""))
    with (
        pytest.warns(UserWarning, match="1 images without a label"),
        pytest.raises(DataError, match="no images in shards"),
    ):
        shards_source(tmp_path, tmp_path, strict=False)
