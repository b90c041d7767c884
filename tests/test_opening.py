"""Opening a model: the weights that are meant, whoever wrote them, and what has to be assumed."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from hierclip import models
from hierclip.models import ModelError, Overrides, open_backbone
from hierclip.progress import sha256

HERE = Path(__file__).parent
VIT, CUSTOM = "hierclip-vit", "hierclip-custom"


@pytest.fixture(autouse=True, scope="module")
def architectures(tmp_path_factory):
    """Small architectures, one of them in a variant with QuickGELU."""
    folder = tmp_path_factory.mktemp("architectures")
    config = json.loads((HERE / f"{VIT}.json").read_text(encoding="utf8"))
    quick = folder / f"{VIT}-quickgelu.json"
    quick.write_text(json.dumps(config | {"quick_gelu": True}), encoding="utf8")
    for file in (HERE / f"{VIT}.json", HERE / f"{CUSTOM}.json", quick):
        open_clip.add_model_config(file)


def new(name=VIT, seed=3):
    torch.manual_seed(seed)
    return open_backbone(name, None)


def save(content, path) -> str:
    torch.save(content, path)
    return str(path)


def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def texts(backbone) -> torch.Tensor:
    return models.encode_texts(backbone, ["a dog", "a bus"])


def same(one, other) -> bool:
    a, b = one.clip.state_dict(), other.clip.state_dict()
    return a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)


WRAPPERS = {  # how somebody's training script keeps a state_dict
    "bare": lambda state: state,
    "open_clip": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"state": {}}},
    "model": lambda state: {"model": state, "best_acc1": 41.2},
    "DataParallel": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "compiled": lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
    "Lightning": lambda state: {"state_dict": {f"model.clip.{k}": v for k, v in state.items()}},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", [VIT, "hierclip-tiny"])
def test_a_whole_checkpoint_is_loaded_from_whatever_is_around_it(tmp_path, name, wrapper):
    saved = new(name)
    path = save(WRAPPERS[wrapper](saved.clip.state_dict()), tmp_path / "mine.pth.tar")
    found = open_backbone(name, path)
    assert same(found, saved)
    assert found.origin["file"] == "mine.pth.tar"
    assert found.origin["sha256"] == sha256(Path(path))


@pytest.mark.parametrize("wrapper", [*WRAPPERS, "tower"])
def test_an_image_tower_alone_goes_beside_the_text_tower_that_is_meant(tmp_path, wrapper):
    trained, original = new(seed=4), new(seed=5)
    state = trained.clip.visual.state_dict()
    wrap = WRAPPERS.get(wrapper, lambda state: {f"module.visual.{k}": v for k, v in state.items()})
    path = save(wrap(state), tmp_path / "fare.pt")
    base = save(original.clip.state_dict(), tmp_path / "base.pt")
    found = open_backbone(VIT, path, Overrides(text_weights=base))
    with torch.no_grad():
        assert found.clip.visual(images()).equal(trained.clip.visual(images()))
        assert texts(found).equal(texts(original)) and not texts(found).equal(texts(trained))
    assert any("holds the image tower alone" in note for note in found.notes)
    assert found.origin["sha256"] == sha256(Path(path))
    assert found.origin["text tower sha256"] == sha256(Path(base))


def test_an_image_tower_alone_without_a_text_tower_is_refused(tmp_path):
    path = save(new().clip.visual.state_dict(), tmp_path / "fare.pt")
    with pytest.raises(ModelError, match="holds an image tower alone.*--text-weights"):
        open_backbone(VIT, path)


def test_openais_names_are_read_by_a_model_with_its_text_tower_apart(tmp_path):
    apart = new(CUSTOM)
    state = {key.removeprefix("text."): value for key, value in apart.clip.state_dict().items()}
    assert same(open_backbone(CUSTOM, save(state, tmp_path / "old.pt")), apart)


def test_what_is_no_part_of_the_model_is_said_and_left(tmp_path):
    state = new().clip.state_dict() | {"prompter.pad": torch.zeros(3), "fc.weight": torch.eye(2)}
    found = open_backbone(VIT, save(state, tmp_path / "more.pt"))
    (note,) = [note for note in found.notes if "no such part" in note]
    assert "fc.weight, prompter.pad" in note


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_an_archive_of_torchscript_is_read_and_runs_with_quickgelu(tmp_path):
    saved = new()

    class Both(torch.nn.Module):
        """The weights under OpenAI's names, and the entries that its archives have beside them."""

        def __init__(self):
            super().__init__()
            for name, child in saved.clip.named_children():
                self.add_module(name, Holder(child))
            for name, value in saved.clip.named_parameters(recurse=False):
                self.register_parameter(name, value)
            self.register_buffer("input_resolution", torch.tensor(32))

        def forward(self, x: torch.Tensor):
            return x

    class Holder(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            for name, value in module.named_parameters(recurse=False):
                self.register_parameter(name, value)
            for name, child in module.named_children():
                self.add_module(name, Holder(child))

        def forward(self, x: torch.Tensor):
            return x

    torch.jit.script(Both()).save(str(tmp_path / "ViT.pt"))
    found = open_backbone(VIT, str(tmp_path / "ViT.pt"))
    assert same(found, saved) and found.config["quick_gelu"]
    assert found.origin["activation"] == "QuickGELU"
    assert any("QuickGELU, as OpenAI's archives do; --no-quick-gelu" in n for n in found.notes)


REFUSED = {
    "empty": (b"", "is empty"),
    "text": (b"hello", "is no file of weights, or damaged"),
    "no tensors": ({"epoch": 3}, "no weights in it; a state_dict of a model is needed"),
    "code": ({"args": Path("x"), "state_dict": {"a": torch.ones(1)}}, "holds more than tensors"),
    "a layer less": (
        lambda state: {k: v for k, v in state.items() if ".resblocks.1." not in k},
        r"missing .*resblocks.1",
    ),
    "a layer more": (
        lambda state: state | {"visual.transformer.resblocks.9.ln_1.weight": torch.ones(64)},
        r"left over visual.transformer.resblocks.9.ln_1.weight \(1 of",
    ),
    "another resolution": (
        lambda state: state | {"visual.positional_embedding": torch.ones(26, 64)},
        "size mismatch for visual.positional_embedding",
    ),
    "two models": (
        lambda state: {f"{k}{n}": v for k in ("model.", "ema.") for n, v in state.items()},
        r"several models fit: model\.visual\.\*, ema\.visual\.\*; keep one",
    ),
    "two sets": (lambda state: {"model": state, "original": state}, "several sets of weights fit"),
    "a text tower of other names": (
        lambda state: {
            "visual": {k[7:]: v for k, v in state.items() if k.startswith("visual.")},
            "text": {k: v for k, v in state.items() if not k.startswith("visual.")},
        },
        "an image tower, and a text tower under other names",
    ),
    "no number": (
        lambda state: state | {"visual.proj": torch.full((64, 32), torch.nan)},
        r"not finite: visual.proj",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_weights_that_are_none_or_another_models_are_refused(tmp_path, case):
    content, words = REFUSED[case]
    path = tmp_path / "mine.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save(content(new().clip.state_dict()) if callable(content) else content, path)
    with pytest.raises(ModelError, match=words):
        open_backbone(VIT, str(path))


def test_a_folder_without_the_weights_that_are_meant_is_refused(tmp_path):
    models.save(new(), tmp_path / "one")
    weights = tmp_path / "one/open_clip_model.safetensors"
    assert same(models.load(tmp_path / "one"), new())
    weights.rename(tmp_path / "one/epoch_3.safetensors")  # the only file: it is meant
    assert same(models.load(tmp_path / "one"), new())
    save_file({"a": torch.ones(1)}, tmp_path / "one/epoch_4.safetensors")
    with pytest.raises(ModelError, match="which of epoch_3.safetensors, epoch_4.safetensors"):
        models.load(tmp_path / "one")
    for file in (tmp_path / "one").glob("*.safetensors"):
        file.rename(file.with_suffix(".txt"))
    with pytest.raises(ModelError, match="no file of weights; they belong into open_clip_model"):
        models.load(tmp_path / "one")


def test_a_folder_whose_path_has_a_colon_is_a_folder(tmp_path):
    models.save(new(), tmp_path / "12:30:05/model")
    assert same(models.load(tmp_path / "12:30:05/model"), new())


def test_a_hub_that_has_the_configuration_alone_is_refused(tmp_path, monkeypatch):
    models.save(new(), tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text(encoding="utf8"))
    monkeypatch.setattr(open_clip.factory, "_get_hf_config", lambda *_, **__: config)

    def nothing(*_, **__):
        raise FileNotFoundError("no weights here")

    monkeypatch.setattr(open_clip.factory, "download_pretrained_from_hf", nothing)
    with pytest.raises(ModelError, match="cannot load hf-hub:me/clip"):
        open_backbone("hf-hub:me/clip", None)


@pytest.mark.parametrize(
    ("quick_gelu", "activation"), [(None, "GELU"), (False, "GELU"), (True, "QuickGELU")]
)
def test_a_file_runs_with_the_activation_that_is_asked_for(tmp_path, quick_gelu, activation):
    path = save(new().clip.state_dict(), tmp_path / "mine.pt")
    found = open_backbone(VIT, path, Overrides(quick_gelu=quick_gelu))
    quick, plain = open_backbone(f"{VIT}-quickgelu", path), new()
    meant = quick if quick_gelu else plain
    with torch.no_grad():
        assert found.clip.visual(images()).equal(meant.clip.visual(images()))
        assert not quick.clip.visual(images()).equal(plain.clip.visual(images()))
    assert found.origin["activation"] == activation
    assert any("runs with GELU" in note for note in found.notes) == (quick_gelu is None)
    models.save(found, tmp_path / "again")  # and keeps it
    with torch.no_grad():
        again = models.load(tmp_path / "again").clip.visual(images())
        assert again.equal(meant.clip.visual(images()))


@pytest.mark.parametrize(("tag", "quick"), [("openai", True), ("laion2b_s34b_b79k", False)])
def test_published_weights_get_the_activation_that_they_were_trained_with(monkeypatch, tag, quick):
    made = {}

    def create(name, *_, **settings):
        made.update(settings)
        raise RuntimeError("no network")

    monkeypatch.setattr(open_clip, "create_model", create)
    with pytest.raises(ModelError, match="no network; a checkpoint file needs no network"):
        open_backbone("ViT-B-32", tag)
    assert made.get("quick_gelu", False) is quick and made["require_pretrained"] is True


def test_preprocessing_of_a_file_is_what_is_said_or_published_or_assumed_and_named(tmp_path):
    path = save(new().clip.state_dict(), tmp_path / "mine.pt")
    assumed = open_backbone(VIT, path)
    assert assumed.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert any(note.startswith("assumed of mine.pt: mean 0.481455/") for note in assumed.notes)
    said = Overrides((0.0,) * 3, (1.0,) * 3, "squash", "bilinear")
    found = open_backbone(VIT, path, said)
    assert (found.mean, found.std) == ((0.0,) * 3, (1.0,) * 3)
    assert found.origin["resize_mode"] == "squash" and found.origin["mean"] == "0/0/0"
    assert not any("assumed" in note for note in found.notes)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("MobileCLIP-S1", {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bilinear"}),
        ("ViT-B-16-SigLIP", {"mean": (0.5,) * 3, "resize_mode": "squash"}),
        ("ViT-L-14", {"resize_mode": "shortest"}),  # whose weights have two means
    ],
)
def test_what_all_published_weights_share_is_taken_for_a_file(name, published):
    from hierclip.models.opening import published_preprocess

    found = published_preprocess(name)
    assert published.items() <= found.items()
    assert ("mean" in found) == (name != "ViT-L-14")


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_images_are_cut_as_open_clips_own_preprocessing_cuts_them(
    tmp_path, resize_mode, interpolation
):
    import numpy as np
    from PIL import Image

    path = save(new().clip.state_dict(), tmp_path / "mine.pt")
    found = open_backbone(
        VIT, path, Overrides(resize_mode=resize_mode, interpolation=interpolation)
    )
    models.save(found, tmp_path / "model")
    *_, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'model'}")
    noise = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert("CMYK")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (found.mean, found.std))
    ours = (found.cut(image).float() / 255 - mean) / std
    torch.testing.assert_close(ours, preprocess(image), rtol=0, atol=1e-6)


def test_prompts_that_the_tokenizer_cannot_tell_apart_are_refused_by_name(backbone):
    from hierclip.trees import Node, Tree

    def over(*names) -> Tree:
        nodes = tuple(Node(str(k), name) for k, name in enumerate(names))
        return Tree("mine", Node("", "all"), (nodes,), ())

    model = models.Model(backbone, models.CosineHead(10.0), "clip")
    with pytest.raises(ModelError, match="tree mine, level 0: 'a Cat' and 'a cat' are the same"):
        model.classifier(over("Cat", "dog", "cat"), "a {}")
    long = "very " * 90
    with pytest.raises(ModelError, match="are the same to the model's tokenizer"):
        model.classifier(over(f"{long}red bird", f"{long}blue bird"), "a {}")
    assert model.classifier(over("cat", "cats"), "a {}").count == 1
