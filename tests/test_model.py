import copy
import logging
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image

from hierclip import models
from hierclip.models import ModelError
from tests.conftest import notebook_functions
from tests.test_heads import HEADS, NAMES

close = torch.testing.assert_close
TEMPLATE = "a picture of a {}"


@pytest.fixture
def images():
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def classifier(request, backbone, tree):
    """Of the head that the test is parametrised with, or of CLIP's own."""
    return models.Model(backbone, getattr(request, "param", HEADS[0]), "").classifier(
        tree, TEMPLATE
    )


every_head = pytest.mark.parametrize("classifier", HEADS, indirect=True, ids=NAMES)


@every_head
def test_there_are_logits_for_every_node_of_every_level(classifier, images, tree):
    logits = classifier(images)
    assert [tuple(level.shape) for level in logits] == [(6, size) for size in tree.sizes]
    assert all(level.isfinite().all() and level.std() > 0 for level in logits)


@every_head
def test_the_levels_asked_for_are_those_of_all_in_the_order_asked(classifier, images):
    logits = classifier(images)
    for levels in ([0], [2], [2, 0], (0, 1, 2), []):
        found = classifier(images, levels)
        assert len(found) == len(levels)
        assert all(
            torch.equal(one, logits[level]) for one, level in zip(found, levels, strict=True)
        )


@pytest.mark.parametrize("head", HEADS, ids=NAMES)
def test_a_saved_model_gives_the_same_logits(tmp_path, backbone, tree, images, head):
    saved = models.Model(backbone, head, "hier", template=TEMPLATE)
    models.save_model(saved, tmp_path / "model")
    loaded = models.load_model(tmp_path / "model")
    assert (loaded.head, loaded.method, loaded.template) == (head, "hier", TEMPLATE)
    assert (loaded.backbone.mean, loaded.backbone.std) == (backbone.mean, backbone.std)
    for before, after in zip(
        *(m.classifier(tree, TEMPLATE)(images) for m in (saved, loaded)), strict=True
    ):
        close(after, before)


def test_a_loaded_model_can_be_saved_again(tmp_path, backbone):
    models.save(backbone, tmp_path / "one")
    models.save(models.load(tmp_path / "one"), tmp_path / "two")
    for file in ("open_clip_config.json", "open_clip_model.safetensors"):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()


PLAIN = """
import sys
import open_clip, torch
from PIL import Image

folder, *prompts = sys.argv[1:]
clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
images = torch.stack([preprocess(Image.open(f"{folder}/{k}.png")) for k in range(6)])
with torch.no_grad():
    seen = clip.eval().encode_image(images, normalize=True)
    said = clip.encode_text(tokenizer(prompts), normalize=True)
assert "hierclip" not in sys.modules
torch.save(seen @ said.T, f"{folder}/cosines.pt")
"""


def test_plain_open_clip_gives_a_saved_model_the_same_predictions(
    tmp_path, backbone, classifier, images, tree
):
    """In a process of its own, which never imports hierclip."""
    models.save_model(models.Model(backbone, HEADS[0], "clip"), tmp_path)
    pixels = (images * 255).round().byte()
    for k, image in enumerate(pixels):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{k}.png")
    prompts = [TEMPLATE.format(leaf.name) for leaf in tree.leaves]
    subprocess.run([sys.executable, "-c", PLAIN, str(tmp_path), *prompts], check=True, cwd=tmp_path)
    found, expected = torch.load(tmp_path / "cosines.pt"), classifier(pixels.float() / 255)[0]
    close(HEADS[0].scale * found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.argmax(1), expected.argmax(1))


def test_new_weights_are_drawn_from_the_seed(params):
    one, same, other = (
        models.create(params.model, seed, 32).clip.visual.attnpool.c_proj.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_checkpoint_file_can_be_started_from(tmp_path, params, backbone):
    file = tmp_path / "weights.pt"
    torch.save(backbone.clip.state_dict(), file)
    other = models.create(
        params.model.model_copy(update={"pretrained": str(file)}), seed=1, size=32
    )
    for name, weight in backbone.clip.state_dict().items():
        assert torch.equal(other.clip.state_dict()[name], weight), name


def test_an_exported_folder_can_be_started_from(tmp_path, params, backbone):
    models.save(backbone, tmp_path)
    wanted = params.model.model_copy(update={"architecture": f"local-dir:{tmp_path}"})
    assert not wanted.scratch and params.model.scratch
    other = models.create(wanted, seed=1, size=32)
    assert all(
        torch.equal(a, b)
        for a, b in zip(*(m.clip.state_dict().values() for m in (backbone, other)), strict=True)
    )


def test_a_model_with_its_text_tower_apart_reads_texts_and_comes_back(params, tmp_path):
    open_clip.add_model_config(Path(__file__).with_name("hierclip-custom.json"))
    apart = models.create(
        params.model.model_copy(update={"architecture": "hierclip-custom"}), seed=0, size=32
    )
    assert type(apart.clip).__name__ == "CustomTextCLIP"
    with torch.no_grad():
        said = apart.clip.encode_text(apart.tokenizer(["a dog", "a cat"]))
        torch.testing.assert_close(models.encode_texts(apart, ["a dog", "a cat"]), said)
        models.save(apart, tmp_path)
        torch.testing.assert_close(
            models.encode_texts(models.load(tmp_path), ["a dog", "a cat"]), said
        )


def test_a_new_backbone_is_in_evaluation_mode(backbone):
    assert not any(part.training for part in backbone.clip.modules())


def test_making_a_model_leaves_logging_as_it_was(params, monkeypatch):
    monkeypatch.setattr(logging.root, "level", logging.INFO)
    models.create(params.model, seed=0, size=32)
    assert (logging.root.level, logging.root.manager.disable) == (logging.INFO, logging.NOTSET)


def test_an_unknown_architecture_is_refused(params):
    with pytest.raises(ModelError, match="no model of open_clip 'ViT-Z-99'; did you mean ViT-"):
        models.create(params.model.model_copy(update={"architecture": "ViT-Z-99"}), seed=0, size=32)


@pytest.mark.parametrize(
    ("pretrained", "words"),
    [
        ("no-such-tag", "hierclip-tiny: no file 'no-such-tag', and no published weights"),
        ("junk.pt", "junk.pt is text .*these are no weights"),
    ],
)
def test_weights_that_cannot_be_had_are_refused(tmp_path, monkeypatch, params, pretrained, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "junk.pt").write_bytes(b"these are no weights")
    with pytest.raises(ModelError, match=words):
        models.create(params.model.model_copy(update={"pretrained": pretrained}), seed=0, size=32)


@pytest.mark.parametrize("load", [models.load, models.load_model])
def test_a_folder_without_a_model_is_refused(tmp_path, load):
    with pytest.raises(ModelError, match=f"no model in {tmp_path}"):
        load(tmp_path)


def test_a_folder_without_a_head_is_refused(tmp_path, backbone):
    models.save(backbone, tmp_path)
    with pytest.raises(ModelError, match="hierclip.json"):
        models.load_model(tmp_path)


def test_features_times_projection_are_clips_text_embeddings(backbone):
    prompts, projection = ["a dog", "a picture of a bus"], backbone.clip.text_projection
    with torch.no_grad():
        features = models.text_features(backbone, prompts)
        expected = backbone.clip.encode_text(backbone.tokenizer(prompts))
        close(features @ projection, expected)
        close(models.encode_texts(backbone, prompts), expected)
    assert backbone.clip.text_projection is projection


def test_prompts_are_encoded_in_batches_as_they_are_all_at_once(backbone, monkeypatch):
    prompts, counts = [f"a picture of {k} dogs" for k in range(23)], []
    with torch.no_grad():
        whole = models.text_features(backbone, prompts)
        backbone.clip.token_embedding.register_forward_pre_hook(
            lambda _, inputs: counts.append(len(inputs[0]))
        )
        monkeypatch.setattr("hierclip.models.backbone.TEXT_BATCH", 7)
        close(models.text_features(backbone, prompts), whole)
    assert counts == [7, 7, 7, 2]


def test_the_projection_is_back_in_place_after_a_failure(backbone):
    projection = backbone.clip.text_projection
    with pytest.raises(TypeError):
        models.text_features(backbone, [None])
    assert backbone.clip.text_projection is projection
    assert "text_projection" in backbone.clip.state_dict()


def test_readings_are_the_nearest_node_and_the_leafs_ancestor(tree):
    logits = [torch.eye(5)[[0, 2]], torch.eye(3)[[2, 1]], torch.eye(2)[[0, 0]]]
    readings = notebook_functions("30_pretrain")["read"](logits, torch.from_numpy(tree.paths))
    assert tuple(readings) == models.READINGS
    assert readings["direct"].tolist() == [[0, 2, 0], [2, 1, 0]]
    assert readings["roll_up"].tolist() == [[0, 0, 0], [2, 1, 0]]


def test_a_template_without_a_place_for_the_name_is_refused(backbone, tree):
    with pytest.raises(ValueError, match="template 'a image' has no {}"):
        models.Model(backbone, HEADS[0], "").classifier(tree, "a image")


def test_folding_batch_norm_changes_no_embedding_and_not_the_model(backbone):
    images, backbone = torch.rand(4, 3, 32, 32), copy.deepcopy(backbone)
    for part in backbone.clip.visual.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            for values in (part.running_mean, part.bias.data):
                values.normal_()
            for values in (part.running_var, part.weight.data):
                values.uniform_(0.5, 2)
    plain, folded = models.ImageEncoder(backbone), models.ImageEncoder(backbone, fold=True)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in folded.modules())
    assert any(isinstance(part, torch.nn.BatchNorm2d) for part in backbone.clip.modules())
    assert type(folded.visual) is type(plain.visual)
    for one, other in zip(folded.with_local(images), plain.with_local(images), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(folded(images), plain(images), atol=1e-4, rtol=1e-4)


def vision(**changes) -> models.Backbone:
    """A small CLIP of open_clip's own, with the image tower that `changes` describe."""
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    torch.manual_seed(0)
    clip = open_clip.model.CLIP(
        embed_dim=24, vision_cfg={"width": 32, **changes}, text_cfg=text
    ).eval()
    preprocess = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    return models.Backbone(clip, lambda texts: torch.zeros(len(texts), 8).long(), {}, preprocess)


VIT = {"image_size": 32, "patch_size": 8, "layers": 2, "head_width": 16}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}


@pytest.mark.parametrize(
    ("changes", "side", "places"),
    [
        (VIT, 32, 4),
        (VIT | {"pool_type": "avg"}, 32, 4),
        (RESNET, 64, 2),
        (RESNET | {"image_size": 32}, 32, 2),
    ],
    ids=[
        "ViT",
        "ViT that pools by the mean",
        "ResNet",
        "ResNet whose last stage is one place, seen twice as large",
    ],
)
def test_embeddings_with_local_features_are_the_plain_ones(changes, side, places):
    encoder = models.ImageEncoder(vision(**changes))
    images = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    embeddings, local = encoder.with_local(images)
    close(embeddings, encoder(images))
    assert tuple(local.shape) == (3, 24, places, places)
    assert local.flatten(2).std(2).min() > 0  # places differ


def test_local_features_of_a_pool_that_attends_evenly_have_the_embedding_for_their_mean():
    """Without queries and positions, attention weighs all tokens alike, the mean included."""
    backbone = vision(**RESNET)
    pool = backbone.clip.visual.attnpool
    with torch.no_grad():
        for weight in (pool.positional_embedding, pool.q_proj.weight, pool.q_proj.bias):
            weight.zero_()
        embeddings, local = models.ImageEncoder(backbone).with_local(torch.rand(3, 3, 64, 64))
    close(local.mean((2, 3)), embeddings, rtol=1e-4, atol=1e-5)


def test_local_features_of_a_vit_that_pools_by_the_mean_have_the_embedding_for_theirs():
    encoder = models.ImageEncoder(vision(**VIT, pool_type="avg"))
    embeddings, local = encoder.with_local(torch.rand(3, 3, 32, 32))
    close(local.mean((2, 3)), embeddings, rtol=1e-4, atol=1e-5)


def test_local_features_stand_where_the_picture_has_them():
    encoder = models.ImageEncoder(vision(**VIT))
    encoder.visual.transformer.resblocks = torch.nn.ModuleList()  # no place looks at another
    images = torch.zeros(2, 3, 32, 32)
    images[1, :, 8:16, 24:] = 1.0  # row 1, column 3 of the patches
    local = encoder.with_local(images)[1]
    assert (local[1] != local[0]).any(0).nonzero().tolist() == [[1, 3]]


def test_a_vit_gives_no_tokens_after_local_features_were_asked_for():
    encoder = models.ImageEncoder(vision(**VIT))
    encoder.with_local(torch.rand(1, 3, 32, 32))
    assert isinstance(encoder(torch.rand(1, 3, 32, 32)), torch.Tensor)


def test_local_features_of_another_tower_are_refused():
    backbone = vision(**VIT)
    backbone.clip.visual = torch.nn.Flatten()
    with pytest.raises(
        ModelError, match="no local features are known for a Flatten; open_clip's ResNet or ViT"
    ):
        models.ImageEncoder(backbone).with_local(torch.rand(1, 3, 32, 32))
