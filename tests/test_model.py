import json
import logging

import open_clip
import pytest
import torch

from hierclip import model, poincare
from hierclip.model import CosineHead, EuclideanHead, LearnedHead, ModelError, PoincareHead
from hierclip.model.heads import head_from_dict, head_to_dict

close = torch.testing.assert_close
TEMPLATE = "a picture of a {}"
HEADS = [
    CosineHead(20.0),
    PoincareHead(1.0, 1.5, 2.0, 1.0, 7.0),
    PoincareHead(0.5, 1.5, 2.0, 1.0, 7.0, "free", 3.0, 0.4),
    EuclideanHead(1.0, 1.5, 2.0, 1.0, 7.0),
]
NAMES = ["cosine", "poincare", "poincare with free norms", "euclidean"]


@pytest.fixture
def images():
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def classifier(request, backbone, tree):
    """Of the head that the test is parametrised with, or of CLIP's own."""
    return model.make_classifier(backbone, getattr(request, "param", HEADS[0]), tree, TEMPLATE)


every_head = pytest.mark.parametrize("classifier", HEADS, indirect=True, ids=NAMES)


@every_head
def test_there_are_logits_for_every_node_of_every_level(classifier, images, tree):
    logits = classifier(images)
    assert [tuple(level.shape) for level in logits] == [(6, size) for size in tree.sizes]
    assert all(level.isfinite().all() and level.std() > 0 for level in logits)


@every_head
def test_the_score_of_a_level_is_what_forward_gives_for_it(classifier, images):
    for level, logits in enumerate(classifier(images)):
        assert torch.equal(classifier.score(images, level), logits)


@pytest.mark.parametrize("head", HEADS, ids=NAMES)
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


@pytest.mark.parametrize("head", HEADS, ids=NAMES)
def test_a_head_comes_back_out_of_json(head):
    assert head_from_dict(json.loads(json.dumps(head_to_dict(head)))) == head


@pytest.mark.parametrize("entries", [{"kind": "lorentz"}, {}])
def test_an_unknown_head_is_refused_beside_the_known(entries):
    with pytest.raises(ValueError, match="no head .*; known are cosine, poincare, euclidean"):
        head_from_dict(entries)


def test_a_number_that_a_head_does_not_have_is_refused():
    with pytest.raises(ValueError, match="a cosine head has no curvature, tau"):
        head_from_dict({"kind": "cosine", "scale": 1.0, "tau": 1.0, "curvature": 1.0})


def test_cosine_logits_ask_only_for_the_angle():
    head = CosineHead(10.0)
    seen, said = torch.tensor([[3.0, 4.0]]), torch.tensor([[5.0, 0.0], [0.0, 0.1], [-6.0, -8.0]])
    close(head.logits(head.image_points(seen), head.text_points(said, 0, 2)), torch.tensor([[6.0, 8.0, -10.0]]))


def test_superclasses_stand_nearer_to_the_centre_than_leaves_in_even_steps():
    head, texts = PoincareHead(0.5, 1.0, 2.0, 0.8, 7.0), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    depths = [poincare.depth(head.text_points(texts, level, 4), 0.5) for level in range(5)]
    for depth, radius in zip(depths, [2.0, 1.7, 1.4, 1.1, 0.8], strict=True):
        close(depth, torch.full((4,), 2 * radius), rtol=1e-4, atol=0)
    close(poincare.depth(head.text_points(texts, 0, 0), 0.5), depths[0])  # a tree of leaves alone has them at theirs


def test_fixed_norms_take_from_an_embedding_its_direction_alone():
    head, embeddings = PoincareHead(1.0, 1.5, 2.0, 1.0, 7.0), torch.randn(4, 3)
    close(head.image_points(100 * embeddings), head.image_points(embeddings))
    close(head.image_tangents(embeddings).norm(dim=1), torch.full((4,), 1.5))


@pytest.mark.parametrize("kind", [PoincareHead, EuclideanHead])
def test_free_norms_rise_with_the_embeddings_own_and_stay_below_twice_the_radius(kind):
    head = kind(1.0, 1.5, 2.0, 1.0, 7.0, "free", 3.0, 0.5)
    norms = torch.tensor([1e-3, 0.5, 3.0, 9.0, 1e3])
    embeddings = norms[:, None] * torch.tensor([0.6, 0.8])
    for tangents, radius, typical in (
        (head.image_tangents(embeddings), 1.5, 3.0),
        (head.text_tangents(embeddings, 0, 4), 2.0, 0.5),
        (head.text_tangents(embeddings, 1, 4), 1.75, 0.5),
        (head.text_tangents(embeddings, 4, 4), 1.0, 0.5),
    ):
        lengths = tangents.norm(dim=1)
        close(lengths, torch.tensor([2 * radius * n / (n + typical) for n in norms.tolist()]))
        assert (lengths.diff() > 0).all() and lengths.max() < 2 * radius
        close(tangents / lengths[:, None], torch.tensor([0.6, 0.8]).expand(5, 2))
    close(head.image_tangents(embeddings)[2].norm(), torch.tensor(1.5))  # the typical length is the radius


def test_poincare_logits_are_the_distance_times_minus_tau():
    head = PoincareHead(1.0, 1.5, 2.0, 1.0, 7.0)
    seen, said = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.2, 0.0], [-9.0, 0.0]])
    points, texts = head.image_points(seen), head.text_points(said, 0, 1)
    close(head.logits(points, texts), -7 * torch.tensor([[1.0, 7.0]]), rtol=1e-4, atol=0)  # 2 |a - b| along a line


def test_euclidean_logits_are_twice_the_distance_of_the_tangents_times_minus_tau():
    head = EuclideanHead(1.0, 5.0, 12.0, 1.0, 7.0)
    points, texts = head.image_points(torch.tensor([[0.1, 0.0]])), head.text_points(torch.tensor([[0.0, 4.0]]), 0, 1)
    close(head.logits(points, texts), torch.tensor([[-7.0 * 2 * 13]]))
    close(head.distance(points, texts), torch.tensor([26.0]))


@pytest.mark.parametrize("norms", ["fixed", "free"])
def test_euclid_is_what_poincare_tends_to_as_curvature_goes_to_nothing(norms):
    """At r = 1e-6, to 1e-4 of each number: d differs from 2 |u - v| by a share of the order of r, and float32."""
    numbers = (1.5, 2.0, 1.0, 7.0, norms, 2.0, 2.0)
    ball, flat = PoincareHead(1e-6, *numbers), EuclideanHead(1.0, *numbers)
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(6, 4, generator=generator), torch.randn(3, 4, generator=generator)
    assert torch.equal(ball.image_tangents(images), flat.image_tangents(images))
    assert torch.equal(ball.text_tangents(texts, 1, 3), flat.text_tangents(texts, 1, 3))
    groups = torch.tensor([0, 0, 1, 1, 1, 0])
    found = []
    for head in (ball, flat):
        u, v = head.image_points(images), head.text_points(texts, 1, 3)
        middle = head.midpoints(u, groups, 2)
        found.append([u, v, head.logits(u, v), head.distance(u[:3], v), middle, head.logits(middle, v)])
        assert not head.clamped(head.image_tangents(images)).any()
    for bent, straight in zip(*found, strict=True):
        close(bent, straight, rtol=1e-4, atol=1e-4)


def test_euclidean_midpoints_are_means():
    points = torch.tensor([[0.0, 2.0], [4.0, 4.0], [2.0, 0.0]])
    middle = HEADS[3].midpoints(points, torch.tensor([1, 0, 1]), 2)
    close(middle, torch.tensor([[4.0, 4.0], [1.0, 1.0]]))


@pytest.mark.parametrize("kind", [PoincareHead, EuclideanHead])
def test_the_gradient_reaches_every_number_that_is_learned(kind):
    names = ("curvature", "image_radius", "text_radius", "top_radius", "tau")
    learned = LearnedHead(kind(0.7, 1.5, 2.0, 1.0, 7.0), names)
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(4, 3, generator=generator), torch.randn(5, 3, generator=generator)
    head = learned.head()
    logits = head.logits(head.image_points(images), head.text_points(texts, 1, 2))
    found = torch.autograd.grad(logits.square().sum(), list(learned.parameters()), allow_unused=True)
    reached = {name: bool(g is not None and g) for name, g in zip(learned.logs, found, strict=True)}
    assert reached == dict.fromkeys(names, True) | {"curvature": kind is PoincareHead}


def test_a_learned_number_is_its_logarithms_exponential():
    learned = LearnedHead(PoincareHead(0.7, 1.5, 2.0, 1.0, 7.0), ("tau", "curvature"))
    assert {name for name, _ in learned.named_parameters()} == {"logs.tau", "logs.curvature"}
    with torch.no_grad():
        learned.logs["tau"].fill_(-3.0)
    head, fixed = learned.head(), learned.fixed()
    close(head.tau, torch.tensor(-3.0).exp())
    assert fixed.tau == pytest.approx(0.0497870684) and fixed.curvature == pytest.approx(0.7)
    assert type(fixed.tau) is type(fixed.curvature) is float and not isinstance(fixed.tau, torch.Tensor)
    assert (fixed.image_radius, fixed.text_radius, fixed.top_radius) == (1.5, 2.0, 1.0)
    assert head_from_dict(json.loads(json.dumps(head_to_dict(fixed)))) == fixed


@pytest.mark.parametrize("head", HEADS, ids=NAMES)
def test_a_head_of_which_nothing_is_learned_is_itself(head):
    assert LearnedHead(head).head() == LearnedHead(head).fixed() == head


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


def vision(**changes) -> model.Backbone:
    """A small CLIP of open_clip's own, with the image tower that `changes` describe."""
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    torch.manual_seed(0)
    clip = open_clip.model.CLIP(embed_dim=24, vision_cfg={"width": 32, **changes}, text_cfg=text).eval()
    return model.Backbone(clip, lambda prompts: torch.zeros(len(prompts), 8).long(), {}, (0.5,) * 3, (0.25,) * 3)


VIT = {"image_size": 32, "patch_size": 8, "layers": 2, "head_width": 16}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}


@pytest.mark.parametrize(
    ("changes", "side", "places"),
    [(VIT, 32, 4), (VIT | {"pool_type": "avg"}, 32, 4), (RESNET, 64, 2), (RESNET | {"image_size": 32}, 32, 2)],
    ids=["ViT", "ViT that pools by the mean", "ResNet", "ResNet whose last stage is one place, seen twice as large"],
)
def test_embeddings_with_local_features_are_the_plain_ones(changes, side, places):
    encoder = model.ImageEncoder(vision(**changes))
    images = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    embeddings, local = encoder.with_local(images)
    close(embeddings, encoder(images))
    assert tuple(local.shape) == (3, 24, places, places)
    assert local.flatten(2).std(2).min() > 0  # places differ


def test_local_features_of_a_pool_that_attends_evenly_have_the_embedding_for_their_mean():
    """Without queries and positions, attention weighs its tokens, the places and their mean, alike."""
    backbone = vision(**RESNET)
    pool = backbone.clip.visual.attnpool
    with torch.no_grad():
        for weight in (pool.positional_embedding, pool.q_proj.weight, pool.q_proj.bias):
            weight.zero_()
        embeddings, local = model.ImageEncoder(backbone).with_local(torch.rand(3, 3, 64, 64))
    close(local.mean((2, 3)), embeddings, rtol=1e-4, atol=1e-5)


def test_local_features_of_a_vit_that_pools_by_the_mean_have_the_embedding_for_theirs():
    encoder = model.ImageEncoder(vision(**VIT, pool_type="avg"))
    embeddings, local = encoder.with_local(torch.rand(3, 3, 32, 32))
    close(local.mean((2, 3)), embeddings, rtol=1e-4, atol=1e-5)


def test_local_features_stand_where_the_picture_has_them():
    encoder = model.ImageEncoder(vision(**VIT))
    encoder.visual.transformer.resblocks = torch.nn.ModuleList()  # no place looks at another
    images = torch.zeros(2, 3, 32, 32)
    images[1, :, 8:16, 24:] = 1.0  # row 1, column 3 of the patches
    local = encoder.with_local(images)[1]
    assert (local[1] != local[0]).any(0).nonzero().tolist() == [[1, 3]]


def test_a_vit_gives_no_tokens_after_local_features_were_asked_for():
    encoder = model.ImageEncoder(vision(**VIT))
    encoder.with_local(torch.rand(1, 3, 32, 32))
    assert isinstance(encoder(torch.rand(1, 3, 32, 32)), torch.Tensor)


def test_local_features_of_another_tower_are_refused():
    backbone = vision(**VIT)
    backbone.clip.visual = torch.nn.Flatten()
    with pytest.raises(ModelError, match="no local features are known for a Flatten; open_clip's ResNet or ViT"):
        model.ImageEncoder(backbone).with_local(torch.rand(1, 3, 32, 32))
