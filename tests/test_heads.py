"""How embeddings become logits: by angle, or by distance in a ball or a flat space."""

import json

import pytest
import torch

from hierclip import hyperbolic
from hierclip.models import CosineHead, EuclideanHead, PoincareHead
from hierclip.models.heads import head_from_dict, head_to_dict
from tests.conftest import distance

close = torch.testing.assert_close
HEADS = [
    CosineHead(20.0),
    PoincareHead(1.0, 1.5, 2.0, 1.0, 7.0),
    PoincareHead(0.5, 1.5, 2.0, 1.0, 7.0, "free", 3.0, 0.4),
    EuclideanHead(1.0, 1.5, 2.0, 1.0, 7.0),
]
NAMES = ["cosine", "poincare", "poincare with free norms", "euclidean"]


@pytest.mark.parametrize("head", HEADS, ids=NAMES)
def test_a_head_comes_back_out_of_json(head):
    assert head_from_dict(json.loads(json.dumps(head_to_dict(head)))) == head


@pytest.mark.parametrize("entries", [{"kind": "lorentz"}, {}])
def test_an_unknown_head_is_refused_beside_the_known(entries):
    with pytest.raises(ValueError, match="no head .*; known are cosine, poincare, euclidean"):
        head_from_dict(entries)


def test_a_number_that_a_head_does_not_have_is_refused():
    with pytest.raises(ValueError, match="no tau 1.0, curvature 1.0; it has scale, numbers"):
        head_from_dict({"kind": "cosine", "scale": 1.0, "tau": 1.0, "curvature": 1.0})


def test_cosine_logits_ask_only_for_the_angle():
    head = CosineHead(10.0)
    seen, said = torch.tensor([[3.0, 4.0]]), torch.tensor([[5.0, 0.0], [0.0, 0.1], [-6.0, -8.0]])
    close(
        head.logits(head.image_points(seen), head.text_points(said, 0, 2)),
        torch.tensor([[6.0, 8.0, -10.0]]),
    )


def _depth(z, r):
    """The distance from the centre."""
    return distance(z, torch.zeros_like(z), r)


def test_superclasses_stand_nearer_to_the_centre_than_leaves_in_even_steps():
    head, texts = (
        PoincareHead(0.5, 1.0, 2.0, 0.8, 7.0),
        torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),
    )
    depths = [_depth(head.text_points(texts, level, 4), 0.5) for level in range(5)]
    for depth, radius in zip(depths, [2.0, 1.7, 1.4, 1.1, 0.8], strict=True):
        close(depth, torch.full((4,), 2 * radius), rtol=1e-4, atol=0)
    close(
        _depth(head.text_points(texts, 0, 0), 0.5), depths[0]
    )  # a tree of leaves alone has them at theirs


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
        (head.text_tangents(embeddings, 0.0), 2.0, 0.5),
        (head.text_tangents(embeddings, 0.25), 1.75, 0.5),
        (head.text_tangents(embeddings, 1.0), 1.0, 0.5),
    ):
        lengths = tangents.norm(dim=1)
        close(lengths, torch.tensor([2 * radius * n / (n + typical) for n in norms.tolist()]))
        assert (lengths.diff() > 0).all() and lengths.max() < 2 * radius
        close(tangents / lengths[:, None], torch.tensor([0.6, 0.8]).expand(5, 2))
    close(
        head.image_tangents(embeddings)[2].norm(), torch.tensor(1.5)
    )  # the typical length is the radius


def test_poincare_logits_are_the_distance_times_minus_tau():
    head = PoincareHead(1.0, 1.5, 2.0, 1.0, 7.0)
    seen, said = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.2, 0.0], [-9.0, 0.0]])
    points, texts = head.image_points(seen), head.text_points(said, 0, 1)
    close(
        head.logits(points, texts), -7 * torch.tensor([[1.0, 7.0]]), rtol=1e-4, atol=0
    )  # 2 |a - b| along a line


def test_euclidean_logits_are_twice_the_distance_of_the_tangents_times_minus_tau():
    head = EuclideanHead(1.0, 5.0, 12.0, 1.0, 7.0)
    points, texts = (
        head.image_points(torch.tensor([[0.1, 0.0]])),
        head.text_points(torch.tensor([[0.0, 4.0]]), 0, 1),
    )
    close(head.logits(points, texts), torch.tensor([[-7.0 * 2 * 13]]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("norms", ["fixed", "free"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_euclidean_head_has_the_formulas_of_flat_space(norms, dtype):
    """Logits, midpoints and gradients, to 1e-5 of plain Euclidean ones in float64."""
    head = EuclideanHead(1.0, 1.5, 2.0, 1.0, 7.0, norms, 2.0, 2.0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(60, 16, generator=generator, dtype=torch.float64)
    texts = torch.randn(30, 16, generator=generator, dtype=torch.float64)

    def flat(x):
        return -14 * torch.cdist(head.image_tangents(x), head.text_tangents(texts, 1 / 3))

    def ball(x):
        return head.logits(head.image_points(x), head.text_points(texts.to(x.dtype), 1, 3))

    weights = torch.randn(60, 30, generator=generator, dtype=torch.float64)
    found = []
    for logits, x in ((ball, images.to(dtype)), (flat, images)):
        x.requires_grad_(True)
        value = logits(x)
        (gradient,) = torch.autograd.grad((value * weights.to(x.dtype)).sum(), x)
        found.append((value.double(), gradient.double()))
    (value, gradient), (flat_value, flat_gradient) = found
    close(value, flat_value, rtol=1e-5, atol=0)
    assert (gradient - flat_gradient).norm() < 1e-5 * flat_gradient.norm()
    points = head.image_points(images.to(dtype).detach())
    close(points.double(), head.image_tangents(images), rtol=1e-5, atol=1e-7)
    assert not hyperbolic.is_clipped(head.image_tangents(images), head.curvature).any()


def test_midpoints_at_a_euclidean_heads_curvature_are_means():
    points, r = (
        torch.tensor([[0.0, 2.0], [2.4, 1.4], [2.0, 0.0]]),
        EuclideanHead(*[1.0] * 5).curvature,
    )
    terms = hyperbolic.to_klein_sum(points, r)
    lifted = hyperbolic.einstein_midpoints(terms, torch.tensor([1, 0, 1]), 2)
    means = torch.tensor([[2.4, 1.4], [1.0, 1.0]]).double()
    close(hyperbolic.from_klein_sum(lifted, r), means, rtol=1e-5, atol=0)


@pytest.mark.parametrize("given", [1e-9, 0.5, 3.0])
def test_a_euclidean_head_is_flat_whatever_curvature_it_is_given(given):
    head, numbers = EuclideanHead(1.0, 1.5, 2.0, 1.0, 7.0), head_to_dict(HEADS[3])
    assert head == EuclideanHead(given, 1.5, 2.0, 1.0, 7.0)
    assert head == head_from_dict(numbers | {"curvature": given})


@pytest.mark.parametrize("curvature", [0.5, 1.0, 3.0])
def test_points_are_on_the_rim_where_their_tangents_were_shortened(curvature):
    tangents = (
        hyperbolic.max_tangent_norm(curvature)
        * torch.tensor([0.5, 0.9, 1.01, 5.0])[:, None]
        * torch.tensor([0.6, 0.8])
    )
    points = hyperbolic.expmap0(tangents, curvature)
    assert (
        hyperbolic.is_clipped(tangents, curvature).tolist()
        == hyperbolic.points_are_clipped(points, curvature).tolist()
        == [False, False, True, True]
    )


def test_embeddings_of_half_precision_are_read_in_single_and_those_of_double_in_double():
    for head in HEADS:
        for given, kept in (
            (torch.bfloat16, torch.float32),
            (torch.float32,) * 2,
            (torch.float64,) * 2,
        ):
            embeddings = torch.eye(3, dtype=given)
            assert (
                head.image_points(embeddings).dtype
                == head.text_points(embeddings, 1, 2).dtype
                == kept
            )
