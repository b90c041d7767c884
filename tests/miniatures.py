"""Small copies of published sets in their published layouts: a few noisy images of each class."""

import json
import pickle
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

COUNT = 3  # images of a class in each part


def noise(seed: int, side: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side + 8, 3), dtype=np.uint8)


def put(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed)).save(path)


def lines(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf8")


def folders(
    base: Path, classes: list[str], inner: str = "", name: str = "{}.jpg", seed: int = 0
) -> None:
    for k, c in enumerate(classes):
        for i in range(COUNT):
            put(base / c / inner / name.format(i + 1, k=k + 1), seed + 100 * k + i)


def cifar(
    base: Path, parts: list[str], key: str, meta: tuple[str, str], classes: list[str]
) -> None:
    base.mkdir(parents=True)
    labels = [k for k in range(len(classes)) for _ in range(COUNT)]
    for n, part in enumerate(parts):
        data = np.stack(
            [noise(100 * n + i, 32)[:, :32].transpose(2, 0, 1).ravel() for i in range(len(labels))]
        )
        (base / part).write_bytes(pickle.dumps({"data": data, key: labels}))
    (base / meta[0]).write_bytes(pickle.dumps({meta[1]: classes}))


def cifar10(root: Path) -> None:
    parts = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    cifar(
        root / "cifar-10-batches-py",
        parts,
        "labels",
        ("batches.meta", "label_names"),
        ["airplane", "cat"],
    )


def cifar100(root: Path) -> None:
    parts, meta = ["train", "test"], ("meta", "fine_label_names")
    cifar(root / "cifar-100-python", parts, "fine_labels", meta, ["apple", "aquarium_fish"])


def stl10(root: Path) -> None:
    base = root / "stl10_binary"
    lines(base / "class_names.txt", "airplane", "bird")
    for n, part in enumerate(("train", "test")):
        images = np.stack(
            [noise(100 * n + i, 96)[:, :96].transpose(2, 1, 0) for i in range(2 * COUNT)]
        )
        (base / f"{part}_X.bin").write_bytes(images.tobytes())
        (base / f"{part}_y.bin").write_bytes(bytes([1] * COUNT + [2] * COUNT))


def caltech101(root: Path) -> None:
    base = root / "caltech101/101_ObjectCategories"
    folders(base, ["BACKGROUND_Google", "accordion", "grand_piano"], name="image_{:04d}.jpg")


def caltech256(root: Path) -> None:
    base = root / "caltech256/256_ObjectCategories"
    folders(base, ["001.ak47", "002.american-flag", "257.clutter"], name="{k:03d}_{:04d}.jpg")


def food101(root: Path) -> None:
    base, classes = root / "food-101", ["apple_pie", "sushi"]
    for n, part in enumerate(("train", "test")):
        rows = {c: [f"{c}/{10 * n + i}" for i in range(COUNT)] for c in classes}
        lines(base / f"meta/{part}.json", json.dumps(rows))
        for k, row in enumerate(row for found in rows.values() for row in found):
            put(base / f"images/{row}.jpg", 100 * n + k)


def pets(root: Path) -> None:
    base = root / "oxford-iiit-pet"
    for n, part in enumerate(("trainval", "test")):
        rows = [
            (f"{c}_{10 * n + i}", k + 1)
            for k, c in enumerate(("Abyssinian", "basset_hound"))
            for i in range(COUNT)
        ]
        lines(base / f"annotations/{part}.txt", *(f"{row} {k} {k} 1" for row, k in rows))
        for i, (row, _) in enumerate(rows):
            put(base / f"images/{row}.jpg", 100 * n + i)


def flowers102(root: Path) -> None:
    base, labels = root / "flowers-102", [k for k in range(1, 103) for _ in range(2)]
    for i in range(len(labels)):
        put(base / f"jpg/image_{i + 1:05d}.jpg", i)
    savemat(base / "imagelabels.mat", {"labels": np.array(labels)})
    odd, even = np.arange(1, len(labels), 2), np.arange(2, len(labels) + 1, 2)
    savemat(base / "setid.mat", {"trnid": odd, "valid": even[:1], "tstid": even})


def aircraft(root: Path) -> None:
    base, classes = root / "fgvc-aircraft-2013b/data", ["707-320", "A300B4"]
    lines(base / "variants.txt", *classes)
    for n, part in enumerate(("trainval", "test")):
        rows = [(f"{n}{k}{i}", c) for k, c in enumerate(classes) for i in range(COUNT)]
        lines(base / f"images_variant_{part}.txt", *(f"{name} {c}" for name, c in rows))
        for i, (name, _) in enumerate(rows):
            put(base / f"images/{name}.jpg", 100 * n + i)


def cars(root: Path) -> None:
    base, kind = root / "stanford_cars", [("fname", "O"), ("class", "O")]
    (base / "devkit").mkdir(parents=True)
    savemat(
        base / "devkit/cars_meta.mat",
        {"class_names": np.array(["Acura RL Sedan 2012", "BMW M3 Coupe 2012"], dtype=object)},
    )
    for n, (part, file) in enumerate(
        [("train", "devkit/cars_train_annos"), ("test", "cars_test_annos_withlabels")]
    ):
        rows = [(f"{k}{i}.jpg", k) for k in (1, 2) for i in range(COUNT)]
        savemat(base / f"{file}.mat", {"annotations": np.array(rows, dtype=kind)})
        for i, (name, _) in enumerate(rows):
            put(base / f"cars_{part}" / name, 100 * n + i)


def sun397(root: Path) -> None:
    classes = ["abbey", "apartment_building/outdoor"]
    lines(root / "SUN397/ClassName.txt", *(f"/{c[0]}/{c}" for c in classes))
    folders(root / "SUN397/a", classes, name="sun_{}.jpg")


def eurosat(root: Path) -> None:
    folders(root / "eurosat/2750", ["AnnualCrop", "Forest"])


def dtd(root: Path) -> None:
    base = root / "dtd/dtd"
    for n, part in enumerate(("train", "val", "test")):
        rows = [f"{c}/{c}_{10 * n + i}.jpg" for c in ("banded", "woven") for i in range(COUNT)]
        lines(base / f"labels/{part}1.txt", *rows)
        for i, row in enumerate(rows):
            put(base / "images" / row, 100 * n + i)


def pcam(root: Path) -> None:
    import h5py

    (root / "pcam").mkdir(parents=True)
    for n, part in enumerate(("train", "valid", "test")):
        name = f"pcam/camelyonpatch_level_2_split_{part}"
        with h5py.File(root / f"{name}_x.h5", "w") as file:
            file["x"] = np.stack([noise(100 * n + i, 96)[:, :96] for i in range(2 * COUNT)])
        with h5py.File(root / f"{name}_y.h5", "w") as file:
            file["y"] = np.array([0, 1] * COUNT).reshape(-1, 1, 1, 1)


def country211(root: Path) -> None:
    for n, part in enumerate(("train", "valid", "test")):
        folders(root / "country211" / part, ["AD", "XK"], seed=1000 * n)


def tiny_imagenet(root: Path) -> None:
    base, wnids = root / "tiny-imagenet-200", ["n02124075", "n04067472"]
    lines(base / "wnids.txt", *wnids)
    for k, wnid in enumerate(wnids):
        for i in range(12):
            put(base / f"train/{wnid}/images/{wnid}_{i}.JPEG", 100 * k + i)
    rows = [(f"val_{i}.JPEG", wnids[i % 2]) for i in range(2 * COUNT)]
    lines(
        base / "val/val_annotations.txt",
        *(f"{name}\t{wnid}\t0\t0\t9\t9" for name, wnid in [*rows, ("val_9.JPEG", wnids[0])]),
    )
    for i, (name, _) in enumerate(rows):
        put(base / f"val/images/{name}", 1000 + i)


def imagenet(root: Path) -> None:
    for n, part in enumerate(("train", "val")):
        folders(
            root / "imagenet" / part,
            ["n02012849", "n03126707"],
            name=f"{part}_" + "{}.JPEG",
            seed=1000 * n,
        )


def folder(root: Path) -> None:
    for n, part in enumerate(("train", "test")):
        folders(root / "mine" / part, ["big_cat", "dog"], seed=1000 * n)


def shards(root: Path) -> None:
    for n, part in enumerate(("train", "test")):
        (root / "sharded" / part).mkdir(parents=True)
        for shard in range(2):
            with tarfile.open(root / f"sharded/{part}/{shard:03d}.tar", "w") as file:
                for i in range(2 * COUNT):
                    image = BytesIO()
                    Image.fromarray(noise(1000 * n + 100 * shard + i)).save(image, "png")
                    for ending, content in (
                        ("png", image.getvalue()),
                        ("cls", str(i % 2).encode()),
                    ):
                        entry = tarfile.TarInfo(f"{i:06d}.{ending}")
                        entry.size = len(content)
                        file.addfile(entry, BytesIO(content))
    lines(root / "sharded/classes.csv", "id,name", "cat.n.01,cat", "dog.n.01,dog")


# By set: what writes it, and the names of its classes.
MINIATURES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "cifar10": (cifar10, ["airplane", "cat"]),
    "cifar100": (cifar100, ["apple", "aquarium fish"]),
    "stl10": (stl10, ["airplane", "bird"]),
    "caltech101": (caltech101, ["accordion", "grand piano"]),
    "caltech256": (caltech256, ["ak47", "american flag"]),
    "food101": (food101, ["apple pie", "sushi"]),
    "pets": (pets, ["Abyssinian", "Basset Hound"]),
    "flowers102": (flowers102, ["pink primrose", "hard-leaved pocket orchid"]),
    "aircraft": (aircraft, ["707-320", "A300B4"]),
    "cars": (cars, ["Acura RL Sedan 2012", "BMW M3 Coupe 2012"]),
    "sun397": (sun397, ["abbey", "outdoor apartment building"]),
    "eurosat": (eurosat, ["annual crop", "forest"]),
    "dtd": (dtd, ["banded", "woven"]),
    "pcam": (pcam, ["healthy lymph node tissue", "lymph node tumor tissue"]),
    "country211": (country211, ["Andorra", "Kosovo"]),
    "tiny-imagenet": (tiny_imagenet, ["Egyptian cat", "reel"]),
    "imagenet": (imagenet, ["crane bird", "construction crane"]),
    "mine": (folder, ["big cat", "dog"]),
    "sharded": (shards, ["cat", "dog"]),
}
