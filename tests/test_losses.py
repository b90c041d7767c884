"""The baselines against their formulas, on towers with known outputs; the registry of methods."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hierclip.config import load_params
from hierclip.losses import (
    OBJECTIVES,
    PERTURBATIONS,
    Context,
    Perturbation,
    make_head,
    make_nodes,
)
from hierclip.losses.baselines import attention
from hierclip.models import CosineHead, EuclideanHead, PoincareHead
from hierclip.models.heads import FLAT_CURVATURE
from tests.conftest import ROOT

close = torch.testing.assert_close
METHOD = load_params(ROOT / "params.yaml").method
TRAINED = {name: method for name, method in METHOD.items() if method.loss != "none"}
TRAINED["anchored"] = TRAINED["agft_mixed"].model_copy(update={"anchor_weight": 2.0})
FLAT = [name for name, method in TRAINED.items() if method.loss != "hier"]
IMAGES, LEAVES, DIMENSIONS, SCALE = 4, 5, 3, 4.0
CLEAN, MOVED = torch.zeros(IMAGES, 3, 2, 2), torch.ones(IMAGES, 3, 2, 2)


class Told:
    """Towers that say of the clean images and of the moved ones what they were told."""

    def __init__(self, seed: int):
        generator = torch.Generator().manual_seed(seed)
        draw = [torch.randn(IMAGES, DIMENSIONS, generator=generator) for _ in range(2)]
        self.clean, self.moved = (embeddings.requires_grad_(True) for embeddings in draw)
        draw = [torch.randn(IMAGES, DIMENSIONS, 2, 2, generator=generator) for _ in range(2)]
        self.local_clean, self.local_moved = (features.requires_grad_(True) for features in draw)
        self.texts = torch.randn(2 * LEAVES + 5, DIMENSIONS, generator=generator)  # of two trees
        self.asked: list[bool] = []  # for local features

    def __call__(self, images, local=False):
        self.asked.append(local)
        moved = bool(images.flatten()[0])
        features = self.local_moved if moved else self.local_clean
        embeddings = 1 * (
            self.moved if moved else self.clean
        )  # computed, so that `no_grad` matters
        return embeddings, 1 * features if local else images.new_zeros(0), self.texts

    def by_tree(self, texts):
        first, second, third, leaves, fifth = texts.split([LEAVES, 2, 1, LEAVES, 2])
        return [[first, second, third], [leaves, fifth]]


@pytest.fixture(params=range(3))
def case(request) -> SimpleNamespace:
    """A context, and all that its towers say in float64 for the formulas."""
    own, original = Told(10 + request.param), Told(20 + request.param)
    labels = torch.tensor([0, 3, 3, 1])
    paths = [torch.stack([labels, labels // 3], dim=1)]
    context = Context(
        CLEAN, paths, [make_nodes([[0, 0, 0, 1, 1]], 2)], own, original, CosineHead(SCALE)
    )

    def numbers(tensor):
        return tensor.detach().double().numpy()

    return SimpleNamespace(
        context=context,
        own=own,
        original=original,
        labels=labels.numpy(),
        **{f"own_{k}": numbers(v) for k, v in vars(own).items() if k != "asked"},
        **{f"original_{k}": numbers(v) for k, v in vars(original).items() if k != "asked"},
    )


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def leaf_logits(embeddings, texts):
    """SCALE times the cosine with the leaves' texts."""
    texts = texts[:LEAVES]
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (embeddings, texts)]
    return SCALE * unit[0] @ unit[1].T


def cross_entropy(c, embeddings):
    return -log_softmax(leaf_logits(embeddings, c.own_texts))[np.arange(IMAGES), c.labels].mean()


def kl(p, q):
    """KL(p || q) of logits, mean over images."""
    p, q = log_softmax(p), log_softmax(q)
    return (np.exp(p) * (p - q)).sum(1).mean()


def tecoa_by_hand(c, params):
    return cross_entropy(c, c.own_moved)


def fare_by_hand(c, params):
    return np.mean([np.sum((c.own_moved[i] - c.original_clean[i]) ** 2) for i in range(IMAGES)])


def pmg_aft_by_hand(c, params):
    adversarial, clean = (leaf_logits(v, c.own_texts) for v in (c.own_moved, c.own_clean))
    original = leaf_logits(c.original_moved, c.original_texts)
    return cross_entropy(c, c.own_moved) + kl(original, adversarial) + kl(clean, adversarial)


def attention_by_hand(local, text):
    """Of one image, at 2 x 2 places, which is the image's own size here."""
    cosine = np.array(
        [local[:, y, x] @ text / np.linalg.norm(local[:, y, x]) for y in (0, 1) for x in (0, 1)]
    )
    return (cosine - cosine.min()) / (cosine.max() - cosine.min())


def tga_zsr_by_hand(c, params):
    refined = constrained = 0.0
    for i, label in enumerate(c.labels):
        text = c.own_texts[label]
        clean = attention_by_hand(c.original_local_clean[i], text)
        refined += np.linalg.norm(attention_by_hand(c.own_local_moved[i], text) - clean) / IMAGES
        constrained += (
            np.linalg.norm(attention_by_hand(c.own_local_clean[i], text) - clean) / IMAGES
        )
    return cross_entropy(c, c.own_moved) + params.alpha * refined + params.beta * constrained


def agft_by_hand(c, params):
    soft = np.exp(log_softmax(params.gamma * leaf_logits(c.original_clean, c.original_texts)))
    target = (1 - params.hard_label_weight) * soft + params.hard_label_weight * np.eye(LEAVES)[
        c.labels
    ]
    return -(target * log_softmax(leaf_logits(c.own_moved, c.own_texts))).sum(1).mean()


def anchored_by_hand(c, params):
    moved, clean = (
        v / np.linalg.norm(v, axis=1, keepdims=True) for v in (c.own_moved, c.original_clean)
    )
    return agft_by_hand(c, params) + params.anchor_weight * (1 - (moved * clean).sum(1)).mean()


def match_by_hand(c, params):
    """Of two trees, of 5, 2 and 1 nodes and of 5 and 2."""
    above = params.superclass_weight
    weights = [*[1] * 5, *[above * 2 / 3] * 2, above / 3, *[1] * 5, *[above / 2] * 2]
    total = 0.0
    for moved, clean in zip(c.own_moved, c.original_clean, strict=True):
        for weight, text in zip(weights, c.own_texts, strict=True):
            after, before = (
                v @ text / np.linalg.norm(v) / np.linalg.norm(text) for v in (moved, clean)
            )
            total += weight * (after - before) ** 2 / IMAGES
    return total


BY_HAND = {
    "tecoa": tecoa_by_hand,
    "fare": fare_by_hand,
    "pmg_aft": pmg_aft_by_hand,
    "tga_zsr": tga_zsr_by_hand,
    "agft": anchored_by_hand,
    "match": match_by_hand,
}
CLIMBED = BY_HAND | {"pmg_aft": tecoa_by_hand, "tga_zsr": tecoa_by_hand, "agft": agft_by_hand}


@pytest.mark.parametrize("name", FLAT)
def test_a_baselines_loss_is_what_its_formula_gives(case, name):
    params = TRAINED[name]
    loss = OBJECTIVES[params.loss].loss(case.context, Perturbation(MOVED), params)
    close(loss.item(), BY_HAND[params.loss](case, params), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FLAT)
def test_the_attack_climbs_the_loss_of_the_method_but_plain_cross_entropy_for_pmg_aft_and_tga_zsr(
    case, name
):
    params = TRAINED[name]
    climbed = OBJECTIVES[params.loss].attack(case.context, Perturbation(MOVED), params)
    close(climbed.item(), CLIMBED[params.loss](case, params), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hard", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("gamma", [0.4, 2.0])
def test_agft_mixes_the_originals_softmax_and_the_label(case, gamma, hard):
    params = TRAINED["agft"].model_copy(update={"gamma": gamma, "hard_label_weight": hard})
    loss = OBJECTIVES["agft"].loss(case.context, Perturbation(MOVED), params)
    close(loss.item(), agft_by_hand(case, params), rtol=1e-5, atol=1e-6)


def test_agft_with_the_label_alone_is_tecoa(case):
    loss = OBJECTIVES["agft"].loss(
        case.context,
        Perturbation(MOVED),
        TRAINED["agft"].model_copy(update={"hard_label_weight": 1.0}),
    )
    close(loss, OBJECTIVES["tecoa"].loss(case.context, Perturbation(MOVED), TRAINED["tecoa"]))


def gradients(case, name):
    """Return the loss's gradients in both towers' embeddings of clean and of moved images."""
    told = [(tower, field) for tower in (case.own, case.original) for field in ("clean", "moved")]
    loss = OBJECTIVES[name].loss(case.context, Perturbation(MOVED), TRAINED[name])
    found = torch.autograd.grad(loss, [getattr(*place) for place in told], allow_unused=True)
    return dict(
        zip(["own_clean", "own_moved", "original_clean", "original_moved"], found, strict=True)
    )


def slope(case, name, field):
    """The gradient of the formula by central differences."""
    values, out = getattr(case, field), np.zeros((IMAGES, DIMENSIONS))
    for place in np.ndindex(out.shape):
        ends = []
        for step in (1e-5, -1e-5):
            moved = values.copy()
            moved[place] += step
            ends.append(
                BY_HAND[name](SimpleNamespace(**vars(case) | {field: moved}), TRAINED[name])
            )
        out[place] = (ends[0] - ends[1]) / 2e-5
    return torch.from_numpy(out).float()


def test_pmg_aft_has_a_gradient_through_both_sides_of_its_own_divergence(case):
    found = gradients(case, "pmg_aft")
    for field in ("own_clean", "own_moved"):
        assert found[field].any()
        close(found[field], slope(case, "pmg_aft", field), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", BY_HAND)
def test_no_gradient_goes_into_the_original_model(case, name):
    found = gradients(case, name)
    assert found["original_clean"] is None and found["original_moved"] is None
    assert found["own_moved"] is not None


@pytest.mark.parametrize("name", BY_HAND)
def test_local_features_are_asked_for_by_tga_zsr_alone(case, name):
    for loss in (OBJECTIVES[name].attack, OBJECTIVES[name].loss):
        loss(case.context, Perturbation(MOVED), TRAINED[name])
    assert any(case.own.asked) == any(case.original.asked) == (name == "tga_zsr")


def test_the_original_sees_the_clean_images_once_a_step_however_many_steps_the_attack_takes(case):
    for name in ("fare", "agft"):
        for _ in range(3):
            OBJECTIVES[name].attack(case.context, Perturbation(MOVED), TRAINED[name])
    assert len(case.original.asked) == 1


def test_fare_asks_for_the_length_of_embeddings_too(case):
    before = OBJECTIVES["fare"].loss(case.context, Perturbation(MOVED), TRAINED["fare"])
    case.own.moved = 2 * case.own.moved
    assert OBJECTIVES["fare"].loss(case.context, Perturbation(MOVED), TRAINED["fare"]) != before


def test_attention_is_stretched_to_the_unit_range_and_drawn_at_the_images_size():
    text = torch.tensor([[2.0, 0.0]])
    right = torch.tensor(
        [[0.0, 3.0], [0.0, 1.0]]
    )  # along the text on the right, across it on the left
    local = torch.stack([right, torch.tensor([[5.0, 0.0], [2.0, 0.0]])])[None]
    drawn = attention(local, text, 4).view(4, 4)
    close(drawn, torch.tensor([0.0, 0.25, 0.75, 1.0]).expand(4, 4))


def test_attention_that_is_the_same_everywhere_is_nothing_and_no_number_is_lost():
    assert attention(torch.ones(1, 2, 2, 2), torch.tensor([[1.0, 0.0]]), 4).tolist() == [[0.0] * 16]


def test_perturbations_are_for_the_levels_that_their_names_say():
    assert PERTURBATIONS["universal"](2) == [(None, None)]  # found and learned on all levels
    assert PERTURBATIONS["leaf"](2) == [((0,), None)]  # found on the leaves
    assert PERTURBATIONS["level"](2) == [((0,), (0,)), ((1,), (1,)), ((2,), (2,))]


def test_flat_methods_are_read_by_the_cosine_at_their_share_of_the_scale():
    for method in (METHOD["clip"], *(TRAINED[name] for name in FLAT)):
        assert make_head(method, 20.0, 3.0, 4.0) == CosineHead(20.0 * method.logit_scale)


@pytest.mark.parametrize(
    ("geometry", "kind"), [("poincare", PoincareHead), ("euclidean", EuclideanHead)]
)
def test_the_hierarchical_method_is_read_by_distance_in_its_geometry(geometry, kind):
    method = TRAINED["hier"].model_copy(update={"geometry": geometry})
    head = make_head(method, 20.0, 3.0, 4.0)
    assert type(head) is kind and (head.image_norm, head.text_norm) == (3.0, 4.0)
    for field in ("image_radius", "text_radius", "top_radius", "tau", "norms"):
        assert getattr(head, field) == getattr(method, field)
    assert head.curvature == (method.curvature if geometry == "poincare" else FLAT_CURVATURE)


def test_every_trained_method_has_an_objective():
    assert {method.loss for method in TRAINED.values()} == set(OBJECTIVES)
