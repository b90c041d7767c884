"""Audits of any kind of model, on any kind of images: six models, six kinds of images."""

import json
import tarfile
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.datasets import ImageFolder

import hierclip
from hierclip import models
from hierclip.audits import image_folder
from hierclip.cli.audit import folder_names
from hierclip.errors import HierclipError
from hierclip.trees import Node, Tree
from tests.conftest import LEAVES
from tests.miniatures import COUNT, MINIATURES, folders, lines
from tests.test_cli import TREE
from tests.test_opening import VIT, architectures

__all__ = ["architectures"]  # a fixture
QUICK = {"suite": "apgd_ce", "steps": 2, "checks": 2, "eps": "8/255"}
LABELS = torch.arange(10) % 5
CLASSES = dict(zip(LEAVES, LEAVES, strict=True))
COLOURS = torch.tensor(
    [[0.9, 0.1, 0.1], [0.7, 0.3, 0.1], [0.5, 0.5, 0.1], [0.1, 0.1, 0.9], [0.1, 0.5, 0.7]]
)  # dog, cat, eagle, car, bus


def images() -> torch.Tensor:
    noise = 0.02 * torch.rand(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return (COLOURS[LABELS][:, :, None, None] + noise).clamp(0, 1)


def logits(x):
    """Of the class by colour: right on every image, until pixels move far."""
    return -60 * torch.cdist(x.mean((2, 3)), COLOURS.to(x.dtype))


def of_two(x):
    return logits(x)[:, :2]


class Towers(nn.Module):
    """The mean colour as an embedding, and of each prompt the mean colour of the leaves it names."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.mix.weight.copy_(torch.eye(3))

    def forward(self, x):
        return self.mix(x.mean((2, 3)) - 0.4)

    def texts(self, prompts):
        below = {"animal": [0, 1, 2], "mammal": [0, 1], "bird": [2], "vehicle": [3, 4]}
        below |= {leaf: [k] for k, leaf in enumerate(LEAVES)}
        return torch.stack([COLOURS[below[text.split()[-1]]].mean(0) - 0.4 for text in prompts])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tree.json").write_text(json.dumps(TREE), encoding="utf8")
    return tmp_path


def audit(model, *given, **changes):
    settings = QUICK | {"tree": "tree.json"} | changes
    return hierclip.audit(model, *given, **settings).record


def on_tensors(model, **changes):
    return audit(model, images(), LABELS, classes=LEAVES, **changes)


def test_a_function_from_images_to_logits(here):
    record = on_tensors(logits)
    assert record.method == "logits" and record.images == 10 and record.levels == [5, 4, 2]
    assert record.clean["direct"] == record.clean["roll_up"] == [1, 1, 1]
    assert record.origin == {} and "cosine" not in record.audit.checks
    assert (
        record.threat_model.prompt == "none"
        and len(record.outputs) == 10
        and 0 < record.pgd_20[0] <= 1
    )


def test_the_columns_of_logits_are_the_classes_whatever_the_order_of_the_tree(here):
    """The tree lists bus before car and cat before dog; the model's columns are as the labels."""
    record = on_tensors(logits, eps="1/255")
    assert record.clean["direct"][0] == 1
    turned = torch.tensor([4, 2, 0, 3, 1])
    found = audit(
        lambda x: logits(x)[:, turned],
        images(),
        turned.argsort()[LABELS],
        classes=[LEAVES[k] for k in turned],
        eps="1/255",
        out="turned",
    )
    assert found.clean == record.clean and found.robust == record.robust


def test_a_superclass_has_the_sum_of_its_leaves_shares(here):
    tree = hierclip.trees.read_tree(here / "tree.json", CLASSES)
    wrapped = models.wrapped.wrap(logits, LEAVES)
    leaves, level, top = (each.softmax(1) for each in wrapped.classifier(tree, "a {}")(images()))
    for shares, column in ((level, 1), (top, 2)):
        for node in range(shares.shape[1]):
            below = torch.from_numpy(tree.paths[:, column] == node)
            torch.testing.assert_close(shares[:, node], leaves[:, below].sum(1))
    far = wrapped.classifier(tree, "a {}").read(torch.tensor([[1e4, -1e4, 0.0, 5.0, -1e4]]))
    assert all(each.isfinite().all() for each in far)


def test_a_module_from_images_to_embeddings_with_a_function_for_texts(here):
    record = on_tensors(Towers(), texts=Towers().texts)
    assert record.method == "Towers" and record.clean["direct"] == [1, 1, 1]
    assert "cosine" not in record.audit.checks and "float64" in record.audit.checks
    again = on_tensors(Towers(), texts=Towers().texts)  # read, not made
    assert again == record


def test_a_module_with_text_embeddings_of_the_classes_alone(here):
    record = on_tensors(Towers(), texts=COLOURS - 0.4)
    assert record.clean["direct"][0] == 1 and record.clean["roll_up"] == [1, 1, 1]
    with pytest.raises(HierclipError, match="4 text embeddings for 5 classes"):
        on_tensors(Towers(), texts=COLOURS[:4], out="other")


@pytest.fixture
def saved():
    torch.manual_seed(0)
    return models.open_backbone(VIT, None)


def test_an_architecture_with_a_checkpoint_file(here, saved):
    folders(here / "zoo", list(LEAVES))
    torch.save(saved.clip.state_dict(), here / "mine.pt")
    record = audit(VIT, "zoo", pretrained="mine.pt", limit=1)
    assert record.method == f"{VIT}-mine" and record.images == 5
    assert record.origin["file"] == "mine.pt" and record.threat_model.resolution == 32


def test_images_in_memory_have_the_size_that_the_model_takes(here, saved):
    models.save(saved, here / "model")
    with pytest.raises(HierclipError, match=r"images of \(8, 8\) pixels; model takes \(32, 32\)"):
        on_tensors("model")


def test_a_folder_of_a_model(here, saved):
    folders(here / "zoo", list(LEAVES))
    models.save(saved, here / "model")
    assert audit("model", "zoo", limit=1).origin["file"] == "open_clip_model.safetensors"


def test_a_checkpoint_of_the_image_tower_alone(here, saved):
    folders(here / "zoo", list(LEAVES))
    torch.save(saved.clip.state_dict(), here / "base.pt")
    torch.manual_seed(1)
    other = models.open_backbone(VIT, None)
    tower = {f"module.{k}": v for k, v in other.clip.visual.state_dict().items()}
    torch.save({"vision_encoder_state_dict": tower, "epoch": 2}, here / "tecoa.pth.tar")
    record = audit(VIT, "zoo", pretrained="tecoa.pth.tar", text_weights="base.pt", limit=1)
    base = audit(VIT, "zoo", pretrained="base.pt", limit=1, out="base")
    assert record.origin["text tower file"] == "base.pt"
    assert record.hashes["texts"] == base.hashes["texts"]
    assert record.hashes["weights"] != base.hashes["weights"]


@pytest.mark.filterwarnings("ignore")
def test_a_clip_of_transformers(here):
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    size |= {"num_attention_heads": 2}
    vision = size | {"image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(
        text_config=size | {"vocab_size": 49408, "max_position_embeddings": 16},
        vision_config=vision,
        projection_dim=16,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    pixels = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_mean=mean,
        image_std=std,
    )
    words = open_clip.get_tokenizer(VIT)

    def tokenizer(prompts, max_length, **_):
        return {"input_ids": words(prompts, context_length=max_length)}

    processor = SimpleNamespace(image_processor=pixels, tokenizer=tokenizer)
    folders(here / "zoo", list(LEAVES))
    record = audit(model, "zoo", processor=processor, limit=1)
    assert record.method == "CLIPModel" and record.threat_model.resolution == 32
    file = sorted((here / "zoo/dog").iterdir())[0]
    image = Image.open(file).convert("RGB")
    wrapped = models.wrapped.wrap(model, LEAVES, processor=processor)
    tree = hierclip.trees.read_tree(here / "tree.json", CLASSES)
    ours = wrapped.classifier(tree, "a {}")(wrapped.cut(image)[None].float() / 255, [0])[0]
    prompts = [f"a {leaf.name}".replace("a eagle", "a eagle") for leaf in tree.leaves]
    with torch.no_grad():
        theirs = model(
            input_ids=words(prompts, context_length=16),
            pixel_values=pixels(image, return_tensors="pt")["pixel_values"],
        ).logits_per_image
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


# Images


def test_images_of_a_torchvision_dataset_and_of_its_folder_are_the_same(here):
    folders(here / "zoo", list(LEAVES))
    one = audit(logits, "zoo", size=16)
    other = audit(logits, ImageFolder(str(here / "zoo")), size=16, out="other")
    assert one.hashes["images"] == other.hashes["images"] and one.robust == other.robust


class HuggingFace:
    """A dataset as Hugging Face's `datasets` has them: rows by name, typed columns."""

    def __init__(self, rows, names):
        Image_ = type("Image", (), {})
        self.features = {"photo": Image_(), "kind": SimpleNamespace(names=names)}
        self.rows = rows

    def __getitem__(self, key):
        if isinstance(key, str):
            return [row[key] for row in self.rows]
        return self.rows[key]


def test_images_of_a_hugging_face_dataset_and_of_shards(here):
    folders(here / "zoo", list(LEAVES))
    names = sorted(LEAVES)
    files = [file for name in names for file in sorted((here / "zoo" / name).iterdir())]
    rows = [{"photo": Image.open(file), "kind": names.index(file.parent.name)} for file in files]
    one = audit(logits, "zoo", size=16)
    found = audit(logits, HuggingFace(rows, names), size=16, out="hf")
    assert found.hashes["images"] == one.hashes["images"]
    (here / "shards").mkdir()
    with tarfile.open(here / "shards/0.tar", "w") as shard:
        for k, file in enumerate(files):
            for ending, content in (
                ("jpg", file.read_bytes()),
                ("cls", str(names.index(file.parent.name)).encode()),
            ):
                entry = tarfile.TarInfo(f"{k:03d}.{ending}")
                entry.size = len(content)
                shard.addfile(entry, BytesIO(content))
    lines(here / "shards/classes.csv", "id,name", *(f"{name},{name}" for name in names))
    assert audit(logits, "shards", size=16, out="tar").hashes["images"] == one.hashes["images"]


def test_a_dataset_that_transforms_its_images_is_refused(here):
    folders(here / "zoo", list(LEAVES))
    tensors = ImageFolder(str(here / "zoo"), transform=lambda image: torch.zeros(3, 4, 4))
    with pytest.raises(HierclipError, match="a Tensor; pictures of Pillow are needed"):
        audit(logits, tensors, size=16)


LEAF_NODES = tuple(Node(leaf, leaf) for leaf in LEAVES)
BAD = {
    "bytes as floats": ({"x": 255 * images()}, r"values from 2.* to 23\d.*; pixels in \[0, 1\]"),
    "normalised": ({"x": (images() - 0.5) / 0.2}, r"values from -1.99.* to 2.*not normalised"),
    "no number": ({"x": images().fill_(torch.nan)}, "values from nan to nan"),
    "one channel": ({"x": images()[:, :1]}, r"images \(10, 1, 8, 8\) of torch.float32: \(N, 3"),
    "integers": ({"x": images().long()}, "of torch.int64"),
    "no labels": ({"labels": None}, r"labels: \(0,\) for 10 images"),
    "too few labels": ({"labels": LABELS[:4]}, r"labels: \(4,\) for 10 images"),
    "shares for labels": ({"labels": LABELS / 2}, "one whole number each"),
    "no classes": ({"classes": None}, "classes: their names are needed"),
    "too few classes": ({"classes": LEAVES[:3]}, r"labels: \[4\] and 3 classes"),
    "a class twice": ({"classes": ["dog"] * 5}, "classes: 5 names, some of them twice"),
    "a class without images": (
        {"classes": [*LEAVES, "yak"], "tree": ()},
        "no images in class yak; put some there",
    ),
    "a number of columns": (
        {"model": lambda x: logits(x)[:, :3]},
        r"the model gives \(\d+, 3\); logits \(N, 5\), a column for each class",
    ),
    "no model": ({"model": 5}, "a int is no model; give a name, a file, a folder"),
    "a number that is none": (
        {"model": lambda x: logits(x) * torch.tensor([1, 1, 1, 1, torch.nan])},
        r"level 0: the model gives \d+ logits that are not finite, such as nan",
    ),
    "an infinite one": (
        {"model": lambda x: logits(x) + torch.tensor([0, 0, 0, 0, torch.inf])},
        "not finite, such as inf",
    ),
    "a scale that is none": ({"texts": torch.eye(5), "scale": torch.nan}, "scale nan: a number"),
    "a scale below 0": ({"texts": torch.eye(5), "scale": -1.0}, "scale -1.0: a number above 0"),
    "no checks": ({"checks": 0}, "checks 0: one image at least is needed"),
    "no budget": ({"eps": None}, "eps: None is no budget; write"),
    "a budget of the whole range": ({"eps": 1}, "eps: 1 is no budget; write"),
    "a tree outside": (
        {"tree": Tree("../../tree", Node("", "all"), (LEAF_NODES,), ())},
        "tree '../../tree': files are named by it; write it without /",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_would_give_a_wrong_figure_is_refused(here, case):
    changes, words = BAD[case]
    given = {"model": logits, "x": images(), "labels": LABELS, "classes": LEAVES} | changes
    model, x, labels = (given.pop(key) for key in ("model", "x", "labels"))
    with pytest.raises(HierclipError, match=words):
        audit(model, x, labels, **given)
    assert not (here / "hierclip-audit/record.json").exists()


def test_nothing_is_written_outside_the_folder_whatever_a_model_is_called(here):
    def model(x):
        return logits(x)

    model.__name__ = "../../<script>|" + 200 * "x"
    (here / "work").mkdir()
    before = {*here.parent.rglob("*")}
    record = on_tensors(model, out="work/out/here")
    assert record.method == "script-" + 73 * "x"
    new = {*here.parent.rglob("*")} - before
    assert new and all(path.is_relative_to(here / "work/out") for path in new)


def test_a_folder_for_a_function_needs_a_size(here):
    folders(here / "zoo", list(LEAVES))
    with pytest.raises(HierclipError, match="size: how many pixels a side does the model take"):
        audit(logits, "zoo")


def test_equal_logits_count_as_wrong(here):
    """Two classes that a model never tells apart: neither is ever right."""

    def twins(x):
        scores = logits(x)
        either = scores[:, :2].amax(1, keepdim=True)  # dog and cat
        return torch.cat([either, either, scores[:, 2:]], dim=1)

    record = on_tensors(twins)
    assert record.clean["direct"][0] == record.clean["roll_up"][0] == 0.6
    assert record.robust["direct"][0][0] <= 0.6 and record.clean["roll_up"][1] == 1


CHANGES = {  # what is changed of an audited model, and the hash that says so
    "image tower": (lambda clip: clip.visual.proj.data.add_(1e-3), "weights"),
    "text tower": (lambda clip: clip.ln_final.weight.data.mul_(1.01), "texts"),
    "logit scale": (lambda clip: clip.logit_scale.data.add_(0.1), "head"),
}


@pytest.mark.parametrize("part", CHANGES)
def test_the_result_of_another_checkpoint_does_not_come_back(here, saved, part):
    folders(here / "zoo", list(LEAVES))
    torch.save(saved.clip.state_dict(), here / "mine.pt")
    before = audit(VIT, "zoo", pretrained="mine.pt", limit=1)
    change, name = CHANGES[part]
    change(saved.clip)
    torch.save(saved.clip.state_dict(), here / "mine.pt")
    with pytest.raises(HierclipError, match=r"holds another audit \(hashes differ\)"):
        audit(VIT, "zoo", pretrained="mine.pt", limit=1)
    after = audit(VIT, "zoo", pretrained="mine.pt", limit=1, out="other")
    changed = {key for key in after.hashes if after.hashes[key] != before.hashes[key]}
    assert name in changed and changed <= {name, "texts"}


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": (0.0, 0.0, 0.0)},
        {"std": (1.0, 1.0, 1.0)},
        {"resize_mode": "squash"},
        {"interpolation": "bilinear"},
        {"template": "art of a {}"},
        {"quick_gelu": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_result_of_other_settings_does_not_come_back(here, saved, changes):
    folders(here / "zoo", list(LEAVES))
    torch.save(saved.clip.state_dict(), here / "mine.pt")
    audit(VIT, "zoo", pretrained="mine.pt", limit=1)
    with pytest.raises(HierclipError, match="holds another audit"):
        audit(VIT, "zoo", pretrained="mine.pt", limit=1, **changes)


def test_the_result_of_another_function_does_not_come_back(here):
    on_tensors(lambda x: logits(x))
    with pytest.raises(HierclipError, match="holds another audit"):
        on_tensors(lambda x: 2 * logits(x))


class Rounded(nn.Module):
    """A model whose attribute, which is no weight, decides."""

    def __init__(self, mean=0.0):
        super().__init__()
        self.scale, self.mean = nn.Parameter(torch.ones(())), torch.tensor(mean)

    def forward(self, x):
        return self.scale * logits(x - self.mean)


def test_the_result_of_other_attributes_or_a_surrogate_does_not_come_back(here):
    on_tensors(Rounded())
    for model, labels, changes in (
        (Rounded(0.3), LABELS, {}),
        (Rounded(), LABELS, {"surrogate": Rounded(0.1)}),
        (Rounded(), LABELS, {"texts": COLOURS[:, :1].expand(5, 5)}),
    ):
        with pytest.raises(HierclipError, match="holds another audit"):
            audit(model, images(), labels, classes=LEAVES, **changes)


def test_the_result_of_other_labels_of_the_same_images_does_not_come_back(here):
    """The images, which are grouped by label, stay in the same order."""
    labels = torch.arange(10) // 2
    audit(logits, images(), labels, classes=LEAVES)
    labels[1] = 1
    with pytest.raises(HierclipError, match=r"holds another audit \(hashes differ\)"):
        audit(logits, images(), labels, classes=LEAVES)


def test_a_function_with_random_numbers_of_its_own_gets_a_result(here):
    rng = torch.Generator().manual_seed(0)

    def noisy(x):
        return logits(x) + 0.1 * torch.randn(x.shape[0], 5, generator=rng)

    assert on_tensors(noisy, eot=2).outputs == []


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        (
            logits,
            {"mean": [0.5] * 3, "quick_gelu": True},
            "mean, quick_gelu: a function takes none",
        ),
        (logits, {"pretrained": "openai"}, "pretrained: a function takes none"),
        (VIT, {"pretrained": "mine.pt", "size": 32}, "size: a model with a name takes none"),
        (
            VIT,
            {"pretrained": "mine.pt", "mean": [123.7, 116.3, 103.5]},
            "three numbers from 0 to 1",
        ),
    ],
)
def test_what_does_not_belong_to_a_kind_of_model_is_refused(here, model, changes, words):
    with pytest.raises(HierclipError, match=words):
        on_tensors(model, **changes)


def test_logits_that_are_no_number_under_attack_are_refused(here):
    clean = images()

    def torn(x):
        moved = (x - clean[: len(x)]).abs().amax() > 0 if len(x) == len(clean) else True
        return logits(x) + (torch.nan if moved and x.requires_grad else 0)

    with pytest.raises(HierclipError, match=r"no number \(nan\) on \d+ attacked images"):
        on_tensors(torn)


def test_a_model_that_gives_several_things_is_refused(here):
    with pytest.raises(HierclipError, match="the model gives a tuple; a tensor of logits"):
        on_tensors(lambda x: (logits(x), x))


def test_both_activations_are_tried_where_that_is_asked_for(here, saved):
    """The labels are what the model with QuickGELU takes the images for, and GELU does not."""
    torch.save(saved.clip.state_dict(), here / "mine.pt")
    tree = hierclip.trees.read_tree(here / "tree.json", CLASSES)
    x = torch.rand(3000, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    x = x * torch.rand(3000, 3, 1, 1, generator=torch.Generator().manual_seed(2))
    nodes = []
    for quick in (True, False):
        backbone = models.open_backbone(VIT, "mine.pt", models.Overrides(quick_gelu=quick))
        model = models.Model(backbone, models.CosineHead(10.0), "clip")
        with torch.no_grad():
            nodes.append(model.classifier(tree, "a photo of a(n) {}")(x, [0])[0].argmax(1))
    differ = nodes[0] != nodes[1]
    x, nodes = x[differ], nodes[0][differ]
    kinds = nodes.unique().tolist()
    labels = torch.tensor([kinds.index(k) for k in nodes.tolist()])
    names = [tree.leaves[k].name for k in kinds]
    given = {"classes": names, "pretrained": "mine.pt", "try_quick_gelu": True}
    found = hierclip.audit(VIT, x, labels, **given, **QUICK)
    note = next(note for note in found.notes if "images right, clean" in note)
    assert len(names) > 1 and note.startswith(
        f"QuickGELU, which reads more of {len(x)} images right, clean: "
    )
    assert found.record.origin["activation"] == "QuickGELU" and found.record.clean["direct"][0] == 1


def test_a_surrogate_gives_the_gradient_that_a_model_hides(here):
    def stepped(x):
        return logits((16 * x).round() / 16) + 0 * logits(x)

    hidden = on_tensors(stepped, eps="60/255")
    through = on_tensors(stepped, surrogate=logits, eps="60/255", out="through")
    assert through.robust["direct"][0][0] < hidden.robust["direct"][0][0]
    assert through.clean == hidden.clean


def test_a_randomised_model_is_averaged_over_and_said_to_be_random(here):
    def noisy(x):
        # Six times what reaches the limit: the check sees it whatever is drawn.
        return logits((x + 0.3 * torch.randn_like(x)).clamp(0, 1))

    record = on_tensors(noisy, eot=4)
    assert record.threat_model.eot == 4 and "random" in record.audit.failed


def test_every_line_of_classes_csv_names_one_folder_and_every_folder_has_a_line(here):
    folders(here / "zoo", ["001", "002"])
    settings = {"size": 8, "tree": ()}
    for content, words in {
        ("1,cat", "2,dog"): "no folder for id 1, 2; no line for folder 001, 002",
        ("001,cat",): "no line for folder 002",
        ("001,cat", "002,dog", "003,eel"): "no folder for id 003",
        ("001,cat", "001,dog", "002,dog"): "id 001 stands twice",
        ("001,", "002,dog"): "no name for '001'",
        ("001", "002,dog"): "no name for '001'",
    }.items():
        lines(here / "zoo/classes.csv", "id,name", *content)
        with pytest.raises(HierclipError, match=words):
            audit(of_two, "zoo", **settings)
    lines(here / "zoo/classes.csv", "id,name", "001,cat", "002,dog")
    assert audit(of_two, "zoo", **settings).images == 2 * COUNT


def test_an_audit_reads_the_split_to_test_on_and_no_split_as_a_class(here):
    for k, part in enumerate(("train", "val")):
        folders(here / "zoo" / part, ["cat", "dog"], seed=1000 * k)
    found = image_folder(Path("zoo"))
    assert list(found.classes) == ["cat", "dog"]
    assert found.content.called(0).startswith("zoo/val/")  # pyright: ignore
    MINIATURES["tiny-imagenet"][0](here)
    with pytest.raises(HierclipError, match="val has images; splits need the same class folders"):
        image_folder(Path("tiny-imagenet-200"))


def test_archives_beside_class_folders_are_no_shards(here):
    folders(here / "zoo", ["cat", "dog"])
    (here / "zoo/old.tar").touch()
    assert list(image_folder(Path("zoo")).classes) == ["cat", "dog"]
    lines(here / "zoo/classes.csv", "id,name", "cat,cat", "dog,dog")
    with pytest.raises(HierclipError, match=r"1 shards that are damaged, .*old.tar \(empty file"):
        image_folder(Path("zoo"))


def test_folders_named_in_another_form_of_unicode_are_those_of_the_lines(here):
    folders(here / "zoo", ["cafe\u0301", "the\u0301"])  # decomposed, as a Mac writes them
    lines(here / "zoo/classes.csv", "id,name", "caf\u00e9,coffee", "th\u00e9,tea")
    assert audit(of_two, "zoo", size=8, tree=()).images == 2 * COUNT


def test_pixels_as_bytes_are_the_same_as_in_floats(here):
    pixels = (255 * images()).round().byte()
    one = audit(logits, pixels, LABELS, classes=LEAVES)
    other = audit(logits, pixels / 255, LABELS, classes=LEAVES, out="other")
    assert one.robust == other.robust and one.hashes["images"] != other.hashes["images"]
    assert np.isclose(one.pgd_20[0], other.pgd_20[0])


def test_audits_whose_files_have_one_name_go_to_folders_of_their_own():
    every = [(("RN50", f"{run}/model.pt"), Path("a/val")) for run in ("run3", "run4")]
    assert folder_names(every) == ["RN50-run3-model.pt-a-val", "RN50-run4-model.pt-a-val"]
    assert folder_names(every[:1]) == ["RN50-model-val"]


def test_a_dataset_whose_classes_are_lists_of_words_is_named_by_who_audits_it(here):
    folders(here / "zoo", ["n02084071", "n02121620"])
    images = ImageFolder(str(here / "zoo"))
    images.classes = [("dog", "domestic dog"), ("cat",)]
    with pytest.raises(HierclipError, match="its classes are no words; give them as classes="):
        audit(of_two, images, size=8, tree=())
    names = audit(of_two, images, size=8, tree=(), classes=["dog", "cat"])
    assert names.images == 2 * COUNT
