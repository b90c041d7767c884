"""Opening a model: the weights that are meant, whoever wrote them, and what has to be assumed."""

import gzip
import io
import json
import os
import pickle
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
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
    "empty": (b"", "is empty; a state_dict that torch or safetensors wrote is needed"),
    "a page": (b"<!DOCTYPE html><title>404</title>", r"is text \('<!DOCTYPE .*get the file itself"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid", "`git lfs pull`"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(9), "is HDF5"),
    "GGUF": (b"GGUF\3" + bytes(9), "is GGUF"),
    "ONNX": (b"\x08\x07\x12\x07pytorch\x1a\x05", "is an ONNX graph"),
    "gzip": (gzip.compress(b"weights"), "is a gzip archive; unpack it"),
    "a pickle": (pickle.dumps({"a": Path("x")}), "holds code beside tensors, which is never run"),
    "no tensors": ({"epoch": 3}, "no weights in it; a state_dict of a model is needed"),
    "code": (
        {"args": Path("x"), "state_dict": {"a": torch.ones(1)}},
        r"holds pathlib.PosixPath beside tensors, which is never run",
    ),
    "an optimizer's": (
        lambda state: {"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
        "50 missing.*it is an optimizer's state",
    ),
    "an adapter": (
        lambda state: state | {"visual.proj.lora_A": torch.ones(4, 64)},
        "1 left over, such as visual.proj.lora_A; it has a LoRA adapter; merge",
    ),
    "transformers": (
        lambda state: {"vision_model.embeddings.class_embedding": torch.ones(64)},
        "it is in the layout of transformers; in Python, hierclip.audit",
    ),
    "quantised": (
        lambda state: {name: value.to(torch.int8) for name, value in state.items()},
        "50 not in floating point, such as",
    ),
    "no values": (
        lambda state: state | {"visual.proj": state["visual.proj"].to("meta")},
        "1 not in floating point, such as visual.proj",
    ),
    "the scale itself": (
        lambda state: state | {"logit_scale": torch.tensor(100.0)},
        "logit_scale is 100; the logarithm of the scale is needed, such as 4.6052 for 100",
    ),
    "two scales": (
        lambda state: state | {"logit_scale": torch.tensor([4.0, 4.0])},
        r"1 of another shape, such as logit_scale \(2,\) for \(\)",
    ),
    "a layer less": (
        lambda state: {k: v for k, v in state.items() if ".resblocks.1." not in k},
        "12 missing, such as visual.transformer.resblocks.1",
    ),
    "a layer more": (
        lambda state: state | {"visual.transformer.resblocks.9.ln_1.weight": torch.ones(64)},
        r"1 left over, such as visual.transformer.resblocks.9.ln_1.weight; give the architecture that",
    ),
    "another resolution": (
        lambda state: state | {"visual.positional_embedding": torch.ones(26, 64)},
        r"1 of another shape, such as visual.positional_embedding \(26, 64\) for \(17, 64\)",
    ),
    "two models": (
        lambda state: {f"{k}{n}": v for k in ("model.", "ema.") for n, v in state.items()},
        r"several sets of weights fit: model\.visual\.\*, ema\.visual\.\*; save the one that is meant",
    ),
    "two sets": (
        lambda state: {"model": state, "ema": {"shadow": dict(state)}},
        r"weights fit: \['model'\] visual\.\*, \['ema'\]\['shadow'\] visual\.\*; save the one",
    ),
    "a text tower of other names": (
        lambda state: {
            "visual": {k[7:]: v for k, v in state.items() if k.startswith("visual.")},
            "text": {k: v for k, v in state.items() if not k.startswith("visual.")},
        },
        "an image tower, and a text tower under other names",
    ),
    "no number": (
        lambda state: state | {"visual.proj": torch.full((64, 32), torch.nan)},
        r"not finite: visual.proj \(1 weights\); its training diverged",
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


def test_archives_and_what_is_cut_short_are_told_from_weights(tmp_path):
    torch.save(new().clip.state_dict(), whole := io.BytesIO())
    models.save(new(), tmp_path)
    tensors = (tmp_path / "open_clip_model.safetensors").read_bytes()
    np.savez(arrays := io.BytesIO(), weights=np.ones(3))
    image = io.BytesIO()
    Image.new("RGB", (9, 9)).save(image, "png")
    with tarfile.TarFile(fileobj=(tar := io.BytesIO()), mode="w") as archive:
        archive.add(HERE / f"{VIT}.json")
    with zipfile.ZipFile(other := io.BytesIO(), "w") as archive:
        archive.write(HERE / f"{VIT}.json")
    files = {
        "is a zip archive of other files": [arrays.getvalue(), other.getvalue()],
        "is a tar archive; unpack it": [tar.getvalue()],
        "is cut short or damaged": [whole.getvalue()[:9999], tensors[:9999], tensors + b"x"],
        "is an image": [image.getvalue()],
    }
    for words, contents in files.items():
        for content in contents:
            for name in ("mine.pt", "mine.safetensors"):
                (tmp_path / name).write_bytes(content)
                with pytest.raises(ModelError, match=f"{name} {words}") as raised:
                    open_backbone(VIT, str(tmp_path / name))
                assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("written", "name"), [("pt", "w.safetensors"), ("safetensors", "w.pt")])
def test_weights_are_read_whatever_the_name_of_their_file_ends_in(tmp_path, written, name):
    models.save(new(), tmp_path)
    path = tmp_path / name
    if written == "pt":
        save(new().clip.state_dict(), path)
    else:
        (tmp_path / "open_clip_model.safetensors").rename(path)
    assert same(open_backbone(VIT, str(path)), new())


@pytest.mark.parametrize(
    "wrapping", ["_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"]
)
def test_names_that_wrappers_put_between_are_left_out(tmp_path, wrapping):
    state = {
        key.replace("resblocks.1.", f"resblocks.1.{wrapping}."): value
        for key, value in new().clip.state_dict().items()
    }
    assert same(open_backbone(VIT, save({"model": state}, tmp_path / "mine.pt")), new())


class Intruder:
    """A pickle that makes a file when somebody runs it."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_torchs_older_format_is_read_and_told_from_a_pickle_where_it_is_cut_short(tmp_path):
    path = tmp_path / "old.pt"
    torch.save(new().clip.state_dict(), path, _use_new_zipfile_serialization=False)
    assert same(open_backbone(VIT, str(path)), new())
    path.write_bytes(path.read_bytes()[:9999])
    with pytest.raises(ModelError, match="old.pt is cut short or damaged"):
        open_backbone(VIT, str(path))


@pytest.mark.parametrize("name", ["mine.pt", "mine.bin", "mine.safetensors", "zipped.pt"])
def test_a_pickles_code_is_never_run(tmp_path, name):
    content = {"state_dict": new().clip.state_dict(), "extra": Intruder(tmp_path / "ran")}
    if name == "zipped.pt":
        save(content, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(content))
    with pytest.raises(ModelError, match="beside tensors, which is never run"):
        open_backbone(VIT, str(tmp_path / name))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("part", ["whole", "tower"])
@pytest.mark.parametrize("published", ["ViT-B-32-256", "RN50"])
def test_weights_of_another_published_architecture_are_called_by_its_name(
    tmp_path, published, part
):
    with torch.device("meta"):
        clip = open_clip.create_model(published, load_weights=False, device="meta")
    state = (clip if part == "whole" else clip.visual).state_dict()
    small = {name: torch.zeros(()).expand(value.shape) for name, value in state.items()}
    path = tmp_path / "mine.pt"
    torch.save({"state_dict": {f"module.{name}": value for name, value in small.items()}}, path)
    with pytest.raises(ModelError, match=f"by its sizes it may be {published}"):
        open_backbone(VIT, str(path))


class Net(torch.nn.Linear):
    """No CLIP."""


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_an_archive_of_torchscript_that_is_no_clip_is_refused(tmp_path):
    torch.jit.script(Net(3, 4)).save(str(tmp_path / "net.pt"))
    with pytest.raises(ModelError, match="net.pt: weights of another model: 50 missing"):
        open_backbone(VIT, str(tmp_path / "net.pt"))


def test_the_bias_of_logits_that_siglips_loss_trains_changes_no_prediction(tmp_path):
    config = json.loads((HERE / f"{VIT}.json").read_text(encoding="utf8"))
    biased = tmp_path / f"{VIT}-bias.json"
    biased.write_text(json.dumps(config | {"init_logit_bias": -10.0}), encoding="utf8")
    open_clip.add_model_config(biased)
    trained = new(f"{VIT}-bias")
    with_bias = save(trained.clip.state_dict(), tmp_path / "siglip.pt")
    without = save(new().clip.state_dict(), tmp_path / "clip.pt")
    assert same(open_backbone(f"{VIT}-bias", with_bias), trained)
    assert open_backbone(f"{VIT}-bias", without).clip.logit_bias == 0
    found = open_backbone(VIT, with_bias)
    assert any("no such part: logit_bias" in note for note in found.notes)
    with torch.no_grad():
        assert found.clip.visual(images()).equal(trained.clip.visual(images()))


def test_a_tokenizer_whose_package_is_missing_is_refused_with_what_to_install(
    tmp_path, monkeypatch
):
    config = json.loads((HERE / f"{VIT}.json").read_text(encoding="utf8"))
    config["text_cfg"]["hf_tokenizer_name"] = "somebody/tokenizer"
    models.save(new(), tmp_path)
    written = json.dumps({"model_cfg": config, "preprocess_cfg": {}})
    (tmp_path / "open_clip_config.json").write_text(written, encoding="utf8")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match="transformers is hierclip's extra `transformers`"):
        models.load(tmp_path)


HEAD_FILES = {
    "{": "Expecting property name",
    "[]": "no method and head",
    '{"head": {"kind": "cosine", "scale": 3}}': "'method'",
    '{"method": "x", "head": {"kind": "cosine", "scale": NaN}}': "no scale nan; it has scale, numbers",
    '{"method": "x", "head": {"kind": "cosine", "scale": "3"}}': "has no scale '3'",
    '{"method": "x", "head": {"kind": "cosine"}}': "scale",
}


@pytest.mark.parametrize("content", HEAD_FILES)
def test_a_damaged_head_is_refused_by_its_file(tmp_path, content):
    models.save(new(), tmp_path)
    (tmp_path / "hierclip.json").write_text(content, encoding="utf8")
    with pytest.raises(ModelError, match=f"hierclip.json: .*{HEAD_FILES[content]}"):
        models.load_model(tmp_path)


def test_a_folder_without_the_weights_that_are_meant_is_refused(tmp_path):
    models.save(new(), tmp_path / "one")
    weights = tmp_path / "one/open_clip_model.safetensors"
    assert same(models.load(tmp_path / "one"), new())
    weights.rename(tmp_path / "one/epoch_3.safetensors")  # the only file: it is meant
    assert same(models.load(tmp_path / "one"), new())
    save_file({"a": torch.ones(1)}, tmp_path / "one/epoch_4.safetensors")
    right = "epoch_4.safetensors.; all weights belong into one file"  # of a sharded one, too
    with pytest.raises(ModelError, match=f"which of epoch_3.safetensors, {right}"):
        models.load(tmp_path / "one")
    for file in (tmp_path / "one").glob("*.safetensors"):
        file.rename(file.with_suffix(".txt"))
    with pytest.raises(
        ModelError, match="no file of weights; all weights belong into one file, open_"
    ):
        models.load(tmp_path / "one")


def test_a_folder_whose_path_has_a_colon_is_a_folder(tmp_path):
    models.save(new(), tmp_path / "12:30:05/model")
    assert same(models.load(tmp_path / "12:30:05/model"), new())


def serve_from_hub(folder: Path, monkeypatch) -> None:
    """Let open_clip find a model's folder, but for its weights, on the hub."""
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf8"))
    monkeypatch.setattr(open_clip.factory, "_get_hf_config", lambda *_, **__: config)


def test_weights_of_the_hub_are_never_resized_to_the_model(tmp_path, monkeypatch):
    models.save(new(), tmp_path)
    serve_from_hub(tmp_path, monkeypatch)
    path = tmp_path / "open_clip_model.safetensors"
    download = "download_pretrained_from_hf"
    monkeypatch.setattr(open_clip.factory, download, lambda *_, **__: str(path))
    found = open_backbone("hf-hub:me/clip", None)
    assert same(found, new()) and found.origin["sha256"] == sha256(path)
    state = {name: value.contiguous() for name, value in new().clip.state_dict().items()}
    save_file(state | {"visual.positional_embedding": torch.ones(26, 64)}, path)
    with pytest.raises(ModelError, match=r"visual.positional_embedding \(26, 64\) for \(17, 64\)"):
        open_backbone("hf-hub:me/clip", None)


def test_a_hub_that_has_the_configuration_alone_is_refused(tmp_path, monkeypatch):
    models.save(new(), tmp_path)
    serve_from_hub(tmp_path, monkeypatch)

    def nothing(*_, **__):
        raise FileNotFoundError("no weights here")

    monkeypatch.setattr(open_clip.factory, "download_pretrained_from_hf", nothing)
    with pytest.raises(ModelError, match="cannot load hf-hub:me/clip: no weights here"):
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
