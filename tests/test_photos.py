"""Photographs, in miniature copies of the layouts in which they are published."""

import errno
import os
import shutil
import tarfile
import threading
from concurrent.futures import wait
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from scipy.io import savemat

from hierclip.config import PhotoParams
from hierclip.data import DATASETS, SPLITS, DataError, Photos, load_dataset
from hierclip.data.photos import read_image, square, varied
from hierclip.data.sources import PUBLISHED_CLASSES, TINY_CLASSES, imagenet_names, number
from tests.conftest import prepare
from tests.miniatures import COUNT, MINIATURES, put

ENTRIES = {
    "root": "sets",
    "download": False,
    "size": 16,
    "train_per_class": None,
    "val_per_class": 1,
    "test_per_class": None,
    "holdout_every": 2,
    "stream": False,
    "strict": False,
}


@pytest.fixture
def project(tmp_path, root, monkeypatch) -> Path:
    """A folder with the project's class names, in which torchvision checks no checksums."""
    (tmp_path / "data/source").mkdir(parents=True)
    for file in (PUBLISHED_CLASSES, TINY_CLASSES):
        shutil.copy(root / file, tmp_path / file)
    for module in ("cifar", "stl10", "flowers102"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *_: True)
    return tmp_path


def opened(project: Path, name: str, **changes) -> Photos:
    if name in MINIATURES and not (project / "sets").exists():
        MINIATURES[name][0](project / "sets")
    layout = "shards" if name == "sharded" else "published" if name in DATASETS else "folder"
    entries = ENTRIES | {"name": name, "layout": layout} | changes
    dataset = load_dataset(PhotoParams.model_validate(entries), project)
    assert isinstance(dataset, Photos)
    return dataset


@pytest.mark.parametrize("name", MINIATURES)
def test_a_published_layout_is_read(name, project):
    dataset = opened(project, name, test_per_class=1)
    assert [leaf.name for leaf in dataset.leaves][:2] == MINIATURES[name][1]
    assert [leaf.subset for leaf in dataset.leaves][:2] == ["seen", "unseen"]
    prepare(dataset)
    classes = len(dataset.leaves)
    for part in SPLITS:
        found = dataset.images(part)
        images = found.read()
        assert images.shape == (classes, 3, 16, 16) and images.dtype == torch.uint8
        assert found.labels.tolist() == list(range(classes)) and images.float().std() > 10
    if (
        name != "flowers102"
    ):  # of which there is one picture of a class to train on, and it is for validation
        images, labels = dataset.batch(torch.tensor([1]), 4, seed=0, step=0)
        assert (
            images.shape == (4, 3, 16, 16)
            and labels.tolist() == [0] * 4
            and 0 <= images.min() < images.max() <= 1
        )


@pytest.mark.parametrize("name", [name for name in MINIATURES if name not in ("mine", "sharded")])
def test_a_set_that_is_not_there_is_missed_by_name_and_place(name, project):
    with pytest.raises(DataError) as error:
        load_dataset(
            PhotoParams.model_validate(ENTRIES | {"name": name, "layout": "published"}), project
        )
    assert str(project / "sets") in str(error.value) and "\n" not in str(error.value)


def test_pictures_of_a_class_are_taken_by_number(project):
    dataset = opened(project, "tiny-imagenet", train_per_class=8, val_per_class=3, test_per_class=2)
    train, val, test = (dataset.sources[part] for part in ("train", *SPLITS))
    names = [Path(train.called(row)).name for row in range(8)]
    assert names == [f"n02124075_{i}.JPEG" for i in range(8)]
    assert [Path(val.called(row)).stem.split("_")[1] for row in range(3)] == ["8", "9", "10"]
    assert [Path(test.called(row)).name for row in range(4)] == [
        f"val_{i}.JPEG" for i in (0, 2, 1, 3)
    ]
    assert (train.labels, test.labels) == ([0] * 8 + [1] * 8, [0, 0, 1, 1])


def test_without_a_published_division_a_class_is_shared_out(project):
    dataset = opened(project, "eurosat", test_per_class=1)
    assert len(dataset.sources["train"].labels) == 2 * (COUNT - 2)
    rows = [set(map(s.called, range(len(s.labels)))) for s in dataset.sources.values()]
    assert not rows[0] & rows[1] and not rows[1] & rows[2] and not rows[0] & rows[2]


def test_numbers_order_files():
    assert sorted(
        [Path("b_10.jpg"), Path("a_9.jpg"), Path("x.jpg"), Path("c_9.jpg")], key=number
    ) == [
        Path("x.jpg"),
        Path("a_9.jpg"),
        Path("c_9.jpg"),
        Path("b_10.jpg"),
    ]


def test_a_square_is_the_middle_at_the_size_asked_for(project):
    put(project / "sets/mine/cat/1.png", 0)
    image = Image.new("RGB", (64, 32))
    image.paste((255, 0, 0), (16, 0, 48, 32))
    image.save(project / "sets/mine/cat/1.png")
    source = opened(project, "mine").sources["test"]
    pixels = read_image(source, square(8), 0)
    assert isinstance(pixels, torch.Tensor) and pixels.shape == (3, 8, 8)
    assert (pixels[0, :, 1:-1] == 255).all() and (pixels[0] > 200).all() and (pixels[1:] == 0).all()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_kind_of_colour_becomes_rgb(mode, project):
    folder = project / "sets/mine/cat"
    folder.mkdir(parents=True)
    Image.new("RGB", (20, 20), (200, 200, 200)).convert(mode).save(folder / "1.tif")
    pixels = read_image(opened(project, "mine").sources["test"], square(8), 0)
    assert (
        isinstance(pixels, torch.Tensor)
        and pixels.shape == (3, 8, 8)
        and pixels.float().mean() > 150
    )


def test_broken_pictures_are_left_out_named_and_counted(project, monkeypatch):
    MINIATURES["mine"][0](project / "sets")
    (project / "sets/mine/test/dog/1.jpg").write_bytes(b"no image")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    Image.new("RGB", (100, 100)).save(project / "sets/mine/test/dog/2.jpg")  # too large
    whole = (project / "sets/mine/train/dog/2.jpg").read_bytes()
    (project / "sets/mine/train/dog/2.jpg").write_bytes(whole[:200])  # cut off
    dataset = opened(project, "mine", val_per_class=1)
    with pytest.warns(
        UserWarning,
        match=r"mine: 3 images cannot be read: .*train/dog/2.jpg \(Truncated File Read\), "
        r".*test/dog/1.jpg \(no image that Pillow knows\), .*test/dog/2.jpg \(Image size .*\); they",
    ):
        prepare(dataset)
    assert dataset.images("test").labels.tolist() == [0] * COUNT + [1] * (COUNT - 2)
    assert dataset.tensors["train.labels"].tolist() == [0] * (COUNT - 1) + [1] * (COUNT - 2)
    with pytest.raises(
        DataError, match=r"cannot be read: .* mend or remove them, or set data.strict: false"
    ):
        prepare(opened(project, "mine", strict=True))


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ENOENT])
def test_a_picture_that_the_disk_does_not_give_stops_the_work_and_is_not_left_out(
    project, monkeypatch, number
):
    dataset, opener = opened(project, "mine"), Image.open

    def failing(file, *others, **settings):
        if Path(file).match("test/dog/2.jpg"):
            raise OSError(number, os.strerror(number), str(file))
        return opener(file, *others, **settings)

    monkeypatch.setattr(Image, "open", failing)
    with pytest.raises(
        DataError, match=rf"test/dog/2.jpg: not read, .*{os.strerror(number)}.*; try again$"
    ) as error:
        prepare(dataset)
    assert "\n" not in str(error.value) and not dataset.prepared.exists()


def test_streamed_pictures_are_those_that_would_have_been_kept(project):
    kept, streamed = (opened(project, "mine", stream=stream) for stream in (False, True))
    some = torch.tensor([0, 1])
    prepare(kept)
    expected = kept.batch(some, 6, seed=1, step=2)
    prepare(streamed)
    with safe_open(streamed.prepared, "pt") as file:
        assert "train.images" not in set(file.keys())
    assert all(
        torch.equal(a, b)
        for a, b in zip(streamed.batch(some, 6, seed=1, step=2), expected, strict=True)
    )


@pytest.fixture
def streamed(project) -> Photos:
    dataset = opened(project, "mine", stream=True)
    prepare(dataset)
    return dataset


def test_streamed_batches_are_the_same_in_any_order(project, streamed):
    kept = opened(project, "mine", stream=False)
    kept.prepared = kept.prepared.with_name("kept.safetensors")
    prepare(kept)
    for classes, size, seed, step, rows in [
        ([0, 1], 6, 1, 2, slice(None)),
        ([0, 1], 6, 1, 3, slice(None)),
        ([0, 1], 6, 1, 4, slice(2, 4)),
        ([0, 1], 6, 1, 5, slice(0, 2)),
        ([0, 1], 6, 2, 6, slice(0, 2)),
        ([1, 0], 6, 2, 7, slice(0, 2)),
        ([1, 0], 5, 2, 8, slice(0, 2)),
        ([1, 0], 5, 2, 8, slice(0, 2)),
        ([1], 5, 2, 0, slice(0, 2)),
    ]:
        found, expected = (
            data.batch(torch.tensor(classes), size, seed, step, rows) for data in (streamed, kept)
        )
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_next_step_is_decoded_while_one_computes_and_nothing_runs_on(streamed, monkeypatch):
    some, before = torch.tensor([0, 1]), set(threading.enumerate())
    first, second = (streamed._batch(some, 6, 1, step, slice(None)) for step in (2, 3))
    assert set(threading.enumerate()) <= before
    assert torch.equal(streamed.batch(some, 6, 1, 2)[0], first[0])
    wait(streamed._ahead.values(), timeout=60)
    with monkeypatch.context() as patch:
        patch.setattr("hierclip.data.photos.read_images", None)  # by now it has been called
        assert torch.equal(streamed.batch(some, 6, 1, 3)[0], second[0])
    wait(streamed._ahead.values(), timeout=60)
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert set(threading.enumerate()) <= before


def test_a_picture_that_is_gone_is_named_at_the_step_that_needs_it(streamed):
    some = torch.tensor([0, 1])
    expected = streamed._batch(some, 6, 1, 2, slice(None))[0]
    streamed.batch(some, 6, 1, 0)
    wait(streamed._ahead.values(), timeout=60)
    files = {file: file.read_bytes() for file in (streamed.project / "sets/mine/train").glob("*/*")}
    for file in files:
        file.write_text("none", encoding="utf8")
    streamed.batch(some, 6, 1, 1)  # made before they were gone
    wait(streamed._ahead.values(), timeout=60)
    with pytest.raises(
        DataError,
        match=r"mine: .*train/\w+/\d.jpg could be read once and cannot now \(no image that Pillow knows\); run `dvc",
    ):
        streamed.batch(some, 6, 1, 2)
    for file, content in files.items():
        file.write_bytes(content)
    assert torch.equal(streamed.batch(some, 6, 1, 2)[0], expected)


def test_what_pillow_warns_of_is_passed_over_in_any_thread(streamed):
    for file in (streamed.project / "sets/mine/train").glob("*/*"):
        Image.new("P", (20, 20)).save(file, "png", transparency=b"\x80")
    with (
        Image.open(file) as image,
        pytest.warns(UserWarning, match="Palette images with Transparency"),
    ):
        image.convert("RGB")
    prepare(streamed)
    for step in range(2):
        streamed.batch(torch.tensor([0, 1]), 6, 1, step)
        wait(streamed._ahead.values(), timeout=60)


def test_a_batch_is_the_same_whatever_was_drawn_before(project):
    dataset = opened(project, "mine")
    prepare(dataset)
    some = torch.tensor([1, 0])
    first = dataset.batch(some, 8, seed=1, step=5)
    dataset.batch(some, 3, seed=1, step=4)
    assert all(
        torch.equal(a, b)
        for a, b in zip(first, dataset.batch(some, 8, seed=1, step=5), strict=True)
    )
    assert not torch.equal(first[0], dataset.batch(some, 8, seed=1, step=6)[0])


def test_variation_moves_and_mirrors_and_does_nothing_else():
    side = 16
    images = torch.rand(1, 1, side, side).expand(64, 3, -1, -1)
    out, reach = varied(images, torch.Generator().manual_seed(0), 64), side // 8
    padded = torch.nn.functional.pad(images[:1], (reach,) * 4, mode="reflect")[0]
    places = [(t, l) for t in range(2 * reach + 1) for l in range(2 * reach + 1)]
    views = [padded[:, t : t + side, l : l + side] for t, l in places]
    views += [view.flip(-1) for view in views]
    found = [next(i for i, view in enumerate(views) if torch.equal(view, image)) for image in out]
    assert len(set(found)) > 20 and min(found) < len(places) <= max(found)


def test_classes_are_known_from_the_prepared_file_alone(project):
    dataset = opened(project, "mine")
    prepare(dataset)
    shutil.rmtree(project / "sets")
    again = load_dataset(dataset.params, project)
    assert again.leaves == dataset.leaves and len(again.images("test")) == 2 * COUNT


@pytest.mark.parametrize("changes", [{"size": 8}, {"val_per_class": 2}, {"stream": True}])
def test_a_prepared_file_of_other_choices_is_refused(project, changes):
    prepare(opened(project, "mine"))
    message = "was made from another params.yaml: data; run .*10_data.* again"
    with pytest.raises(DataError, match=message):
        opened(project, "mine", **changes).images("test")


@pytest.mark.parametrize("changes", [{"strict": True}, {"holdout_every": 3}, {"download": True}])
def test_a_prepared_file_serves_choices_that_change_no_image_in_it(project, changes):
    prepare(opened(project, "mine"))
    assert len(opened(project, "mine", **changes).images("test"))


def replace_image(folder: Path) -> None:
    file = next(folder.glob("train/*/*"))
    shutil.copy(next(folder.glob("test/*/*")), file)


def touch_image(folder: Path) -> None:
    os.utime(next(folder.glob("train/*/*")), ns=(1, 1))  # another one of as many bytes


def name_classes(folder: Path) -> None:
    ids = [path.name for path in sorted(folder.glob("train/*"))]
    lines = [f"{identifier},thing {identifier}" for identifier in ids]
    (folder / "classes.csv").write_text("\n".join(["id,name", *lines]), encoding="utf8")


@pytest.mark.parametrize(
    "change",
    [
        replace_image,
        touch_image,
        name_classes,
        lambda folder: next(folder.glob("test/*/*")).unlink(),
        lambda folder: (file := next(folder.glob("test/*/*"))).rename(file.with_name("99.jpg")),
        lambda folder: [
            shutil.copytree(next(part.glob("*")), part / "new") for part in folder.iterdir()
        ],
    ],
)
def test_a_prepared_file_of_other_photographs_is_refused(project, change):
    prepare(opened(project, "mine"))
    change(project / "sets/mine")
    dataset = opened(project, "mine")
    with pytest.raises(DataError, match="was made from another set of photographs; run .*10_data"):
        dataset.images("test")


def test_classes_are_those_of_the_photographs_where_the_prepared_file_has_others(project):
    prepare(opened(project, "mine"))
    name_classes(project / "sets/mine")
    assert all(leaf.name.startswith("thing ") for leaf in opened(project, "mine").leaves)


def test_a_prepared_file_is_enough_where_the_photographs_are_gone(project):
    prepare(opened(project, "mine"))
    shutil.rmtree(project / "sets")
    (project / "sets").mkdir()  # or `opened` would make them again
    assert len(opened(project, "mine").images("test"))


def test_bad_folders_are_explained(project):
    with pytest.raises(DataError, match="sets/nothing is missing; put class folders there"):
        prepare(opened(project, "nothing"))
    (project / "sets/empty").mkdir(parents=True)
    with pytest.raises(
        DataError, match="empty: no class folders; put the images of each class into one"
    ):
        prepare(opened(project, "empty"))
    put(project / "sets/odd/train/cat/1.jpg", 0)
    put(project / "sets/odd/test/dog/1.jpg", 0)
    with pytest.raises(
        DataError,
        match="odd: test has dog; train has cat; splits need the same class folders in each",
    ):
        prepare(opened(project, "odd"))
    put(project / "sets/wnids/n99999999/1.jpg", 0)
    with pytest.raises(
        DataError, match="no name is known for class n99999999; give it one in a file classes"
    ):
        prepare(opened(project, "wnids"))


def test_a_class_without_pictures_is_named(project):
    opened(project, "mine", val_per_class=COUNT)
    dataset = opened(project, "mine", val_per_class=COUNT)
    prepare(dataset)
    with pytest.raises(DataError, match="mine: no images to train on for big cat, dog"):
        dataset.batch(torch.tensor([0, 1]), 4, seed=0, step=0)
    for file in (project / "sets/mine/test/dog").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="mine: no images to test on for dog"):
        prepare(opened(project, "mine"))


def test_names_of_ones_own_are_taken_from_beside_the_folders(project):
    put(project / "sets/mine/k1/1.jpg", 0)
    (project / "sets/mine/classes.csv").write_text("id,name\nk1,kestrel\n", encoding="utf8")
    assert [(leaf.id, leaf.name) for leaf in opened(project, "mine").leaves] == [("k1", "kestrel")]


def test_no_picture_is_in_two_parts_where_nobody_set_some_apart(project):
    for k in range(4):
        put(project / f"sets/mine/cat/{k}.jpg", k)
    for tested, counts in ((None, (0, 1, 3)), (2, (1, 1, 2)), (9, (0, 0, 4))):
        sources = opened(project, "mine", test_per_class=tested).sources
        named = [
            [s.called(row) for row in range(len(s.labels))]
            for s in (sources[p] for p in ("train", *SPLITS))
        ]
        assert tuple(map(len, named)) == counts
        assert len({name for part in named for name in part}) == sum(counts)


def test_a_shard_may_have_been_written_of_a_folder(project):
    MINIATURES["sharded"][0](project / "sets")
    for shard in (project / "sets/sharded").glob("*/*.tar"):
        with tarfile.open(shard) as old:
            members = [(member, old.extractfile(member)) for member in old]
            content = [(member, file.read()) for member, file in members if file]
        with tarfile.open(shard, "w") as new:
            for member, data in content:
                member.name = f"./v1.0/{member.name}"
                new.addfile(member, BytesIO(data))
    dataset = opened(project, "sharded")
    prepare(dataset)
    assert len(dataset.images("test")) == 4 * COUNT


def test_imagenets_archives_are_unpacked_as_published(project, monkeypatch):
    base, wnids = project / "sets/imagenet", ["n02012849", "n03126707"]
    kind = [("id", "i4"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "i4")]
    synsets = np.array(
        [(k + 1, wnid, "crane", "a crane", 0) for k, wnid in enumerate(wnids)], dtype=kind
    )
    data = project / "ILSVRC2012_devkit_t12/data"
    data.mkdir(parents=True)
    savemat(data / "meta.mat", {"synsets": synsets})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n", encoding="utf8")
    for k, wnid in enumerate(wnids):
        put(project / f"val/ILSVRC2012_val_{k + 1:08d}.JPEG", k)
        for n in range(2):
            put(project / f"{wnid}/{wnid}_{n}.JPEG", 10 * k + n)
        with tarfile.open(project / f"{wnid}.tar", "w") as tar:
            tar.add(project / wnid, ".")
    base.mkdir(parents=True)
    for name, held in {
        "img_train.tar": [f"{w}.tar" for w in wnids],
        "devkit_t12.tar.gz": [data.parent.name],
    }.items():
        with tarfile.open(
            base / f"ILSVRC2012_{name}", "w:gz" if name.endswith("gz") else "w"
        ) as tar:
            for member in held:
                tar.add(project / member, member)
    with tarfile.open(base / "ILSVRC2012_img_val.tar", "w") as tar:
        for image in (project / "val").iterdir():
            tar.add(image, image.name)
    monkeypatch.setattr(
        "torchvision.datasets.imagenet.check_integrity", lambda path, *_: Path(path).exists()
    )
    dataset = opened(project, "imagenet", test_per_class=1)
    prepare(dataset)
    assert [leaf.id for leaf in dataset.leaves] == wnids and len(dataset.images("test")) == 2
    assert [Path(dataset.sources["test"].called(row)).name[-6] for row in (0, 1)] == ["2", "1"]


def test_what_shards_and_folders_leave_out_is_said(project, capsys):
    """In data that are not strict: a shard's bad pairs in a warning, other files in a line."""
    MINIATURES["sharded"][0](project / "sets")
    shard = project / "sets/sharded/test/000.tar"
    entries = shard.read_bytes().rstrip(b"\0")
    shard.write_bytes(entries + b"\0" * (-len(entries) % 512))  # all pairs, without the end
    with pytest.raises(
        DataError, match="shards that are damaged, compressed or no tar: .*test/000"
    ):
        prepare(opened(project, "sharded", strict=True))
    with pytest.warns(UserWarning, match=r"test/000.tar \(cut off, after 6 images\); left out$"):
        dataset = opened(project, "sharded")
    prepare(dataset)
    assert len(dataset.images("test")) == 4 * COUNT
    MINIATURES["mine"][0](project / "sets")
    (project / "sets/mine/train/dog/notes.txt").touch()
    prepare(opened(project, "mine"))
    assert capsys.readouterr().out == f"{project / 'sets/mine/train'}: left out 1 .txt\n"


def test_imagenets_splits_need_the_same_classes(project):
    MINIATURES["imagenet"][0](project / "sets")
    put(project / "sets/imagenet/train/n02124075/1.jpg", 0)
    put(project / "sets/imagenet/test/1.jpg", 0)  # of the challenge, without labels
    with pytest.raises(DataError, match="imagenet: train has n02124075; splits need the same"):
        prepare(opened(project, "imagenet"))


def test_imagenets_classes_have_a_name_each():
    assert len(set(imagenet_names().values())) == 1000


def test_shards_without_a_class_are_named(project):
    MINIATURES["sharded"][0](project / "sets")
    (project / "sets/sharded/classes.csv").write_text("id,name\ncat.n.01,cat\n", encoding="utf8")
    with pytest.raises(
        DataError,
        match=r"6 labels that are no class number below 1: .*000.tar/000001, .*; mend that",
    ):
        prepare(opened(project, "sharded", strict=True))


@pytest.mark.parametrize(
    ("name", "folder", "classes", "shown"),
    [
        ("tiny-imagenet", "tiny-imagenet-200", 200, 25),
        ("cifar10-images", "cifar10-images", 10, 500),
    ],
)
def test_real_photographs_are_read(name, folder, classes, shown, project, root):
    if not (root / "data/source" / folder).exists():
        pytest.skip(f"needs data/source/{folder}")
    dataset = opened(
        project,
        name,
        root=str(root / "data/source"),
        train_per_class=2,
        val_per_class=1,
        test_per_class=3,
    )
    prepare(dataset)
    assert len(dataset.leaves) == classes and len(dataset.images("test")) == 3 * classes
    assert len(dataset.sources["test"].labels) == 3 * classes <= shown * classes
    assert 60 < dataset.images("test").read().float().mean() < 180


def test_an_error_without_words_is_called_by_its_kind(project, monkeypatch):
    def silent(*_, **__):
        raise OSError

    monkeypatch.setattr("torchvision.datasets.CIFAR10.__init__", silent)
    with pytest.raises(DataError, match="^cifar10: OSError put the publisher's files under "):
        prepare(opened(project, "cifar10"))
