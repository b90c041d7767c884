from math import pi, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hierclip.margins import euclidean_bound, hyperbolic_bound, measured_margins, summary
from hierclip.model import Classifier, PoincareHead
from hierclip.poincare import distance
from tests.test_evaluate import PATHS, pictures

curvatures = st.floats(0.1, 4)


@given(curvatures, st.floats(0.01, 0.95), st.floats(0.1, 10))
def test_bound_is_attained_by_an_opposed_pair(r, share, scale):
    t = torch.tensor([share / sqrt(r), 0.0], dtype=torch.float64)
    attained = scale * (distance(t, -t, r) - distance(t, t, r))
    assert float(attained) == pytest.approx(hyperbolic_bound(share / sqrt(r), r, scale), rel=1e-4, abs=1e-4)


@given(curvatures, st.floats(0.01, 0.95), st.floats(0, 2 * pi), st.floats(0, 2 * pi), st.floats(0, 0.99))
def test_no_image_point_has_a_larger_margin(r, share, angle, other, depth):
    def point(norm, a):
        a = torch.tensor(a, dtype=torch.float64)
        return norm / sqrt(r) * torch.stack([torch.cos(a), torch.sin(a)])

    z, right, wrong = point(depth, 0.0), point(share, angle), point(share, other)
    margin = distance(z, wrong, r) - distance(z, right, r)
    assert float(margin) <= hyperbolic_bound(share / sqrt(r), r, 1.0) + 1e-5


@given(curvatures, st.floats(0, 0.98))
def test_bound_rises_with_the_norm(r, share):
    assert hyperbolic_bound((share + 0.01) / sqrt(r), r, 1) > hyperbolic_bound(share / sqrt(r), r, 1)


def test_bound_diverges_at_the_rim():
    values = [hyperbolic_bound(1 - 10.0**-k, 1, 1) for k in range(1, 15)]
    assert values == sorted(values)
    assert values[-1] > 5 * values[0]


def test_bound_tends_to_four_eta_as_the_ball_flattens():
    assert hyperbolic_bound(0.5, 1e-8, 1) == pytest.approx(4 * 0.5)


def test_inner_products_gain_at_most_two_over_r():
    assert euclidean_bound(0.999, 3) < 2 * 3


@pytest.mark.parametrize("eta", [-0.1, 1.0, 2.0])
def test_norm_outside_the_ball_is_refused(eta):
    with pytest.raises(ValueError, match="outside the ball"):
        hyperbolic_bound(eta, 1, 1)


def test_measured_margins_lie_under_their_bound_and_tell_right_from_wrong():
    texts = [torch.eye(3), torch.tensor([[1.0, 1, 0], [0, 0, 1]])]
    encoder = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    classifier = Classifier(encoder, PoincareHead(1.0, 2.0, 2.0, 5.0), texts)
    shown = pictures(0.5)
    rows = measured_margins(classifier, shown, PATHS, batch=4)
    assert len(rows) == 2 * len(shown)
    assert (rows["margin"] <= rows["bound"]).all()
    right = classifier(shown.floats())[0].argmax(1) == shown.labels
    assert ((rows[rows["level"] == 0]["margin"] > 0).to_numpy() == right.numpy()).all()
    table = summary(rows)
    assert (table["norm"].diff().dropna() < 0).all()
    assert (table["share"] <= 1).all()
