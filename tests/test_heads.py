"""How embeddings become logits: by angle, or by distance in a ball or a flat space."""

import json

import pytest
import torch

from hierclip import hyperbolic
from hierclip.models import CosineHead, EuclideanHead, LearnedHead, PoincareHead
from hierclip.models.heads import head_from_dict, head_to_dict

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
    with pytest.raises(ValueError, match="a cosine head has no curvature, tau"):
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
    return hyperbolic.distance(z, torch.zeros_like(z), r)


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
    close(head.logits(points, texts), torch.tensor([[-7.0 * 2 * 13]]))


@pytest.mark.parametrize("norms", ["fixed", "free"])
def test_euclid_is_what_poincare_tends_to_as_curvature_goes_to_nothing(norms):
    """At r = 1e-6, to 1e-4: d differs from 2 |u - v| by a share of order r, and by rounding."""
    numbers = (1.5, 2.0, 1.0, 7.0, norms, 2.0, 2.0)
    ball, flat = PoincareHead(1e-6, *numbers), EuclideanHead(1.0, *numbers)
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(6, 4, generator=generator), torch.randn(3, 4, generator=generator)
    assert torch.equal(ball.image_tangents(images), flat.image_tangents(images))
    assert torch.equal(ball.text_tangents(texts, 1 / 3), flat.text_tangents(texts, 1 / 3))
    groups = torch.tensor([0, 0, 1, 1, 1, 0])
    found = []
    for head in (ball, flat):
        u, v = head.image_points(images), head.text_points(texts, 1, 3)
        lifted = head.space.einstein_midpoints(head.space.to_klein_sum(u, 1e-6), groups, 2)
        middle = head.space.from_klein_sum(lifted, 1e-6).float()
        found.append([u, v, head.logits(u, v), middle, head.logits(middle, v)])
        assert not head.space.is_clipped(head.image_tangents(images), 1e-6).any()
    for bent, straight in zip(*found, strict=True):
        close(bent, straight, rtol=1e-4, atol=1e-4)


def test_euclidean_midpoints_are_means():
    points = torch.tensor([[0.0, 2.0], [4.0, 4.0], [2.0, 0.0]])
    flat = HEADS[3].space
    lifted = flat.einstein_midpoints(flat.to_klein_sum(points, 1.0), torch.tensor([1, 0, 1]), 2)
    middle = flat.from_klein_sum(lifted, 1.0)
    close(middle, torch.tensor([[4.0, 4.0], [1.0, 1.0]]).double())


@pytest.mark.parametrize("kind", [PoincareHead, EuclideanHead])
def test_the_gradient_reaches_every_number_that_is_learned(kind):
    names = ("curvature", "image_radius", "text_radius", "top_radius", "tau")
    learned = LearnedHead(kind(0.7, 1.5, 2.0, 1.0, 7.0), names)
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(4, 3, generator=generator), torch.randn(5, 3, generator=generator)
    head = learned.head()
    logits = head.logits(head.image_points(images), head.text_points(texts, 1, 2))
    found = torch.autograd.grad(
        logits.square().sum(), list(learned.parameters()), allow_unused=True
    )
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
    assert type(fixed.tau) is type(fixed.curvature) is float and not isinstance(
        fixed.tau, torch.Tensor
    )
    assert (fixed.image_radius, fixed.text_radius, fixed.top_radius) == (1.5, 2.0, 1.0)
    assert head_from_dict(json.loads(json.dumps(head_to_dict(fixed)))) == fixed


@pytest.mark.parametrize("head", HEADS, ids=NAMES)
def test_a_head_of_which_nothing_is_learned_is_itself(head):
    assert LearnedHead(head).head() == LearnedHead(head).fixed() == head


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
    assert not HEADS[3].space.points_are_clipped(tangents, curvature).any()  # a flat space has none


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
