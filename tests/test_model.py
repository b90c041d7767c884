import json
import logging

import open_clip
import pytest
import torch

from hierclip import model, poincare
from hierclip.model import CosineHead, ModelError, PoincareHead
from hierclip.model.heads import head_from_dict, head_to_dict

close = torch.testing.assert_close
TEMPLATE = "a picture of a {}"
HEADS = [CosineHead(20.0), PoincareHead(1.0, 1.5, 2.0, 7.0)]


@pytest.fixture
def images():
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def classifier(request, backbone, tree):
    """Of the head that the test is parametrised with, or of CLIP's own."""
    return model.make_classifier(backbone, getattr(request, "param", HEADS[0]), tree, TEMPLATE)


every_head = pytest.mark.parametrize("classifier", HEADS, indirect=True, ids=["cosine", "poincare"])


@every_head
def test_there_are_logits_for_every_node_of_every_level(classifier, images, tree):
    logits = classifier(images)
    assert [tuple(level.shape) for level in logits] == [(6, size) for size in tree.sizes]
    assert all(level.isfinite().all() and level.std() > 0 for level in logits)


@every_head
def test_the_score_of_a_level_is_what_forward_gives_for_it(classifier, images):
    for level, logits in enumerate(classifier(images)):
        assert torch.equal(classifier.score(images, level), logits)


@pytest.mark.parametrize("head", HEADS, ids=["cosine", "poincare"])
def test_a_saved_model_gives_the_same_logits(tmp_path, backbone, tree, images, head):
    saved = model.Model(backbone, head, "hier")
    model.save_model(saved, tmp_path / "model")
    loaded = model.load_model(tmp_path / "model")
    assert (loaded.head, loaded.method) == (head, "hier")
    assert (loaded.backbone.mean, loaded.backbone.std) == (backbone.mean, backbone.std)
    for before, after in zip(*(m.classifier(tree, TEMPLATE)(images) for m in (saved, loaded)), strict=True):
        close(after, before)


def test_a_loaded_model_can_be_saved_again(tmp_path, backbone):
    model.save(backbone, tmp_path / "one")
    model.save(model.load(tmp_path / "one"), tmp_path / "two")
    for file in ("open_clip_config.json", "open_clip_model.safetensors"):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()


def test_a_saved_model_is_an_open_clip_model(tmp_path, backbone, classifier, images, tree):
    model.save_model(model.Model(backbone, HEADS[0], "clip"), tmp_path)
    clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    normalise = preprocess.transforms[-1]
    with torch.no_grad():
        seen = clip.eval().encode_image(normalise(images), normalize=True)
        said = clip.encode_text(tokenizer([TEMPLATE.format(leaf.name) for leaf in tree.leaves]), normalize=True)
    close(HEADS[0].scale * seen @ said.T, classifier(images)[0], rtol=1e-4, atol=1e-4)


def test_new_weights_are_drawn_from_the_seed(params):
    one, same, other = (model.create(params.model, seed, 32).clip.visual.attnpool.c_proj.weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_checkpoint_file_can_be_started_from(tmp_path, params, backbone):
    file = tmp_path / "weights.pt"
    torch.save(backbone.clip.state_dict(), file)
    other = model.create(params.model.model_copy(update={"pretrained": str(file)}), seed=1, size=32)
    for name, weight in backbone.clip.state_dict().items():
        assert torch.equal(other.clip.state_dict()[name], weight), name


def test_a_new_backbone_is_in_evaluation_mode(backbone):
    assert not any(part.training for part in backbone.clip.modules())


def test_making_a_model_leaves_logging_as_it_was(params, monkeypatch):
    monkeypatch.setattr(logging.root, "level", logging.INFO)
    model.create(params.model, seed=0, size=32)
    assert (logging.root.level, logging.root.manager.disable) == (logging.INFO, logging.NOTSET)


def test_an_unknown_architecture_is_refused(params):
    with pytest.raises(ModelError, match="no model 'ViT-Z-99'; `open_clip.list_models"):
        model.create(params.model.model_copy(update={"architecture": "ViT-Z-99"}), seed=0, size=32)


@pytest.mark.parametrize("pretrained", ["no-such-tag", "junk.pt"])
def test_weights_that_cannot_be_had_are_refused(tmp_path, monkeypatch, params, pretrained):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "junk.pt").write_bytes(b"these are no weights")
    with pytest.raises(ModelError, match=f"cannot load hierclip-tiny with weights '{pretrained}'"):
        model.create(params.model.model_copy(update={"pretrained": pretrained}), seed=0, size=32)


@pytest.mark.parametrize("load", [model.load, model.load_model])
def test_a_folder_without_a_model_is_refused(tmp_path, load):
    with pytest.raises(ModelError, match=f"no model in {tmp_path}"):
        load(tmp_path)


def test_a_folder_without_a_head_is_refused(tmp_path, backbone):
    model.save(backbone, tmp_path)
    with pytest.raises(ModelError, match="hierclip.json"):
        model.load_model(tmp_path)


def test_features_times_projection_are_clips_text_embeddings(backbone):
    prompts, projection = ["a dog", "a picture of a bus"], backbone.clip.text_projection
    with torch.no_grad():
        features = model.text_features(backbone, prompts)
        expected = backbone.clip.encode_text(backbone.tokenizer(prompts))
        close(features @ projection, expected)
        close(model.encode_texts(backbone, prompts), expected)
    assert backbone.clip.text_projection is projection


def test_the_projection_is_back_in_place_after_a_failure(backbone):
    projection = backbone.clip.text_projection
    with pytest.raises(TypeError):
        model.text_features(backbone, [None])
    assert backbone.clip.text_projection is projection
    assert "text_projection" in backbone.clip.state_dict()


@pytest.mark.parametrize("head", HEADS, ids=["cosine", "poincare"])
def test_a_head_comes_back_out_of_json(head):
    assert head_from_dict(json.loads(json.dumps(head_to_dict(head)))) == head


@pytest.mark.parametrize("entries", [{"kind": "lorentz"}, {}])
def test_an_unknown_head_is_refused_beside_the_known(entries):
    with pytest.raises(ValueError, match="no head .*; known are cosine, poincare"):
        head_from_dict(entries)


def test_cosine_logits_ask_only_for_the_angle():
    head = CosineHead(10.0)
    seen, said = torch.tensor([[3.0, 4.0]]), torch.tensor([[5.0, 0.0], [0.0, 0.1], [-6.0, -8.0]])
    close(head.logits(head.image_points(seen), head.text_points(said, 0, 2)), torch.tensor([[6.0, 8.0, -10.0]]))


def test_superclasses_stand_nearer_to_the_centre_than_leaves():
    head, texts = PoincareHead(0.5, 1.0, 2.0, 7.0), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    depths = [poincare.depth(head.text_points(texts, level, 4), 0.5) for level in range(5)]
    for depth, radius in zip(depths, [2.0, 1.75, 1.5, 1.25, 1.0], strict=True):
        close(depth, torch.full((4,), 2 * radius), rtol=1e-4, atol=0)
    close(poincare.depth(head.text_points(texts, 0, 0), 0.5), depths[0])


def test_poincare_logits_are_the_distance_times_minus_tau():
    head = PoincareHead(1.0, 1.5, 2.0, 7.0)
    seen, said = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.2, 0.0], [-9.0, 0.0]])
    points, texts = head.image_points(seen), head.text_points(said, 0, 1)
    close(head.logits(points, texts), -7 * torch.tensor([[1.0, 7.0]]), rtol=1e-4, atol=0)  # 2 |a - b| along a line


def test_readings_are_the_nearest_node_and_the_leafs_ancestor(tree):
    logits = [torch.eye(5)[[0, 2]], torch.eye(3)[[2, 1]], torch.eye(2)[[0, 0]]]
    readings = model.read(logits, torch.from_numpy(tree.paths))
    assert tuple(readings) == model.READINGS
    assert readings["direct"].tolist() == [[0, 2, 0], [2, 1, 0]]
    assert readings["roll_up"].tolist() == [[0, 0, 0], [2, 1, 0]]


def test_a_template_without_a_place_for_the_name_is_refused(backbone, tree):
    with pytest.raises(ValueError, match="template 'a picture' has no {}"):
        model.make_classifier(backbone, HEADS[0], tree, "a picture")


def test_folding_batch_norm_changes_no_embedding_and_not_the_model(backbone):
    images = torch.rand(4, 3, 32, 32)
    plain, folded = model.ImageEncoder(backbone), model.ImageEncoder(backbone, fold=True)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in folded.modules())
    assert any(isinstance(part, torch.nn.BatchNorm2d) for part in backbone.clip.modules())
    torch.testing.assert_close(folded(images), plain(images), atol=1e-5, rtol=1e-4)
