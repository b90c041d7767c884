"""One model's adversarial images on another, and other ways to a model's own gradient."""

import pytest
import torch
from torch import nn

from hierclip.attacks import GOALS
from hierclip.data import ImageSet
from hierclip.evaluation import LevelMatrix
from hierclip.evaluation.masking import surrogates
from hierclip.hyperbolic import is_clipped
from hierclip.models import Classifier, CosineHead, EuclideanHead, PoincareHead
from tests.conftest import notebook_functions
from tests.test_evaluate import BUDGET, PATHS, classifier, random_images

transfer = notebook_functions("55_transfer")["transfer"]
read = notebook_functions("30_pretrain")["read"]
AIM = GOALS["direct"](PATHS, 0)
close = torch.testing.assert_close


class Blind(nn.Module):
    def forward(self, images):
        return torch.tensor([3.0, 2.0, 1.0]) + 0 * images.mean((2, 3))


@pytest.fixture
def shown() -> ImageSet:
    """Some that fall and some that do not, one of them with another's label."""
    parts = [random_images(strength) for strength in (0.02, 0.1, 0.2, 0.8)]
    labels = torch.cat([part.labels for part in parts])
    labels[-1] = 0
    return ImageSet(torch.cat([part.pixels for part in parts]), labels)


@pytest.fixture
def stands(shown):
    blind = Classifier(Blind(), CosineHead(10.0), classifier().text_points)
    level_goals = [AIM, GOALS["roll_up"](PATHS, 1)]
    table = transfer(
        {"seeing": classifier(), "blind": blind}, shown, level_goals, BUDGET, seed=0, batch=4
    )
    assert list(table.columns) == ["goal", "source", "target", "robust"] and len(table) == 2 * 3 * 2
    return table.set_index(["goal", "source", "target"])["robust"]


def test_a_model_under_its_own_images_stands_where_the_matrix_says(stands, shown):
    out = LevelMatrix(classifier(), shown, PATHS, BUDGET, seed=0, batch=4).outcomes()
    white_box = out.robust["direct"][0, :, 0].mean()
    assert 0 < white_box < 1 and stands["direct-0", "seeing", "seeing"] == pytest.approx(white_box)


def test_a_model_that_sees_nothing_stands_whatever_the_source(stands, shown):
    right = float((shown.labels == 0).float().mean())
    assert [
        stands["direct-0", source, "blind"] for source in ("clean", "seeing", "blind")
    ] == pytest.approx([right] * 3)


def test_images_as_they_are_give_clean_accuracy(stands, shown):
    right = {
        k: v == PATHS[shown.labels] for k, v in read(classifier()(shown.floats()), PATHS).items()
    }
    assert stands["direct-0", "clean", "seeing"] == pytest.approx(
        float(right["direct"][:, 0].float().mean())
    )
    assert stands["roll_up-1", "clean", "seeing"] == pytest.approx(
        float(right["roll_up"][:, 1].float().mean())
    )


def test_images_move_against_what_a_model_sees_and_not_against_what_it_does_not(stands):
    assert stands["direct-0", "seeing", "seeing"] < stands["direct-0", "clean", "seeing"]
    assert stands["direct-0", "blind", "seeing"] == pytest.approx(
        stands["direct-0", "clean", "seeing"]
    )


def ball(**changes) -> Classifier:
    """A model in the ball whose embedding is the mean of each colour."""
    numbers = {
        "curvature": 1.0,
        "image_radius": 1.5,
        "text_radius": 2.0,
        "top_radius": 1.0,
        "tau": 5.0,
    }
    head, texts = (
        PoincareHead(**numbers | changes),
        [torch.eye(3), torch.tensor([[1.0, 1, 0], [0, 0, 1]])],
    )
    return Classifier(
        classifier().encoder, head, [head.text_points(t, l, 1) for l, t in enumerate(texts)]
    )


@pytest.mark.parametrize("norms", ["fixed", "free"])
@pytest.mark.parametrize("curvature", [0.3, 1.0])
def test_the_unclamped_surrogate_has_the_models_logits_where_nothing_is_clamped(curvature, norms):
    native = ball(curvature=curvature, norms=norms)
    free, images = surrogates(native)["unclamped"], random_images(0.5).floats()
    tangents = native.head.image_tangents(native.encoder(images))
    assert not is_clipped(tangents, curvature).any()
    for one, other in zip(free(images), native(images), strict=True):
        close(one.float(), other, rtol=1e-3, atol=1e-3)


def test_the_unclamped_surrogate_has_a_radial_gradient_where_the_clamped_model_has_none():
    native = ball(image_radius=8.0, norms="free")
    embedding = torch.tensor([[4.0, 2.0, 1.0]])
    assert is_clipped(native.head.image_tangents(embedding), native.head.curvature).all()

    def radial(head, texts) -> float:
        x = embedding.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(head.logits(head.image_points(x), texts)[0, 0], x)
        return float((gradient * embedding).sum() / embedding.norm())

    free = surrogates(native)["unclamped"]
    assert abs(radial(native.head, native.text_points[0])) < 1e-3
    assert radial(free.head, free.text_points[0]) < -1  # farther out is farther from the text


def test_only_a_ball_has_clamps_to_leave_out_and_cosine_is_no_surrogate_of_itself():
    flat = Classifier(
        classifier().encoder, EuclideanHead(1.0, 1.5, 2.0, 1.0, 5.0), classifier().text_points
    )
    assert list(surrogates(ball())) == ["unclamped", "cosine"]
    assert list(surrogates(flat)) == ["cosine"] and not surrogates(classifier())


def test_the_cosine_surrogate_reads_the_texts_directions():
    native, images = ball(), random_images(0.5).floats()
    directions = [texts / texts.norm(dim=1, keepdim=True) for texts in native.text_points]
    embeddings = torch.nn.functional.normalize(native.encoder(images), dim=1)
    for found, texts in zip(surrogates(native)["cosine"](images), directions, strict=True):
        close(found, 20 * embeddings @ texts.T)


def test_surrogates_of_a_model_with_weights_take_the_images_that_it_takes():
    native = ball()
    native.encoder = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    images = random_images(0.5).floats()
    for surrogate in surrogates(native).values():
        assert surrogate(images)[0].shape == (6, 3)
