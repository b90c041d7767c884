from math import asin, atanh, cos, cosh, exp, log, pi, sin, sinh, sqrt, tanh
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st
from matplotlib import pyplot as plt
from scipy.optimize import minimize
from scipy.stats import mannwhitneyu, spearmanr
from torch.nn import functional as F

from hierclip.hyperbolic import (
    euclidean_bound,
    expmap0,
    from_klein_sum,
    hyperbolic_bound,
    sibling_distance,
    to_klein_sum,
)
from hierclip.margins import level_bounds
from hierclip.models import Classifier, CosineHead, EuclideanHead, PoincareHead
from hierclip.trees import tree_from_graph
from tests.conftest import LEAVES, distance, notebook_functions, tiny_graph
from tests.test_evaluate import PATHS, random_images

curvatures = st.floats(0.1, 4)
notebook = SimpleNamespace(**notebook_functions("60_margin_depth"))


@given(curvatures, st.floats(0.01, 0.95), st.floats(0.1, 10))
def test_bound_is_attained_by_an_opposed_pair(r, share, scale):
    t = torch.tensor([share / sqrt(r), 0.0], dtype=torch.float64)
    attained = scale * (distance(t, -t, r) - distance(t, t, r))
    assert float(attained) == pytest.approx(
        hyperbolic_bound(share / sqrt(r), r, scale), rel=1e-4, abs=1e-4
    )


@given(
    curvatures,
    st.floats(0.01, 0.95),
    st.floats(0, 2 * pi),
    st.floats(0, 2 * pi),
    st.floats(0, 0.99),
)
def test_no_image_point_has_a_larger_margin(r, share, angle, other, depth):
    def point(norm, a):
        a = torch.tensor(a, dtype=torch.float64)
        return norm / sqrt(r) * torch.stack([torch.cos(a), torch.sin(a)])

    z, right, wrong = point(depth, 0.0), point(share, angle), point(share, other)
    margin = distance(z, wrong, r) - distance(z, right, r)
    assert float(margin) <= hyperbolic_bound(share / sqrt(r), r, 1.0) + 1e-5


@given(curvatures, st.floats(0, 0.98))
def test_bound_rises_with_the_norm(r, share):
    assert hyperbolic_bound((share + 0.01) / sqrt(r), r, 1) > hyperbolic_bound(
        share / sqrt(r), r, 1
    )


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


def simplex(eta: float, siblings: int, dimension: int) -> torch.Tensor:
    """(K, D) float64: corners at norm eta, turned at random. D >= K - 1."""
    centred = torch.eye(siblings, dtype=torch.float64) - 1 / siblings
    corners = F.normalize(torch.linalg.svd(centred)[0][:, : siblings - 1], dim=1)
    generator = torch.Generator().manual_seed(siblings)
    turn = torch.linalg.qr(
        torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    )[0]
    return eta * corners @ turn[: siblings - 1]


def scattered(
    count: int, dimension: int, longest: float, generator: torch.Generator
) -> torch.Tensor:
    """(count, D) float64 points of any norm up to `longest`."""
    norms = longest * torch.rand(count, 1, generator=generator, dtype=torch.float64).sqrt()
    return norms * F.normalize(
        torch.randn(count, dimension, generator=generator, dtype=torch.float64), dim=1
    )


def apart(points: torch.Tensor, r: float) -> torch.Tensor:
    """(K, K - 1) distances of each point to the others."""
    return off_diagonal(distance(points[:, None], points, r))


def off_diagonal(square: torch.Tensor) -> torch.Tensor:
    return square[~torch.eye(len(square), dtype=torch.bool)].reshape(len(square), -1)


def least_margins(logits: torch.Tensor) -> torch.Tensor:
    """(K,) of image i, row i, of text i against the best of the others. logits: (K, K)."""
    return logits.diagonal() - off_diagonal(logits).amax(1)


shares, counts, seeds = st.floats(0.01, 0.95), st.integers(2, 9), st.integers(0, 2**31)


@given(curvatures, shares)
def test_two_siblings_are_the_opposed_pair(r, share):
    eta = share / sqrt(r)
    assert sibling_distance(eta, r, 2) == pytest.approx(
        4 / sqrt(r) * atanh(sqrt(r) * eta), rel=1e-12
    )
    assert hyperbolic_bound(eta, r, 3, 2) == hyperbolic_bound(eta, r, 3)
    assert euclidean_bound(eta, 3, 2) == euclidean_bound(eta, 3)


@pytest.mark.parametrize("extra", [0, 4])
@given(curvatures, shares, counts)
def test_simplex_attains_the_sibling_bounds(extra, r, share, siblings):
    eta = share / sqrt(r)
    t = simplex(eta, siblings, siblings - 1 + extra)
    assert apart(t, r).numpy() == pytest.approx(sibling_distance(eta, r, siblings), rel=1e-4)
    reached = least_margins(-3 * distance(t[:, None], t, r)).numpy()
    assert reached == pytest.approx(hyperbolic_bound(eta, r, 3, siblings), rel=1e-3, abs=1e-5)
    assert least_margins(3 * t @ t.T).numpy() == pytest.approx(
        euclidean_bound(eta, 3, siblings), rel=1e-9
    )


@given(curvatures, shares, counts, st.integers(1, 10), seeds)
def test_no_siblings_up_to_a_norm_exceed_the_sibling_bounds_in_the_mean(
    r, share, siblings, dimension, seed
):
    eta, generator = share / sqrt(r), torch.Generator().manual_seed(seed)
    t = scattered(siblings, dimension, eta, generator)
    assert apart(t, r).mean() <= sibling_distance(eta, r, siblings) + 1e-5
    for z in (t, scattered(siblings, dimension, 0.99 / sqrt(r), generator)):
        reached = least_margins(-3 * distance(z[:, None], t, r))
        assert reached.min() <= reached.mean() <= hyperbolic_bound(eta, r, 3, siblings) + 1e-5
    for z in (t, scattered(siblings, dimension, eta, generator)):
        assert least_margins(3 * z @ t.T).mean() <= euclidean_bound(eta, 3, siblings) + 1e-9


@pytest.mark.parametrize("siblings, dimension", [(2, 2), (3, 2), (4, 3), (5, 8), (6, 2)])
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_climbing_reaches_the_sibling_bound_where_there_is_room_and_never_exceeds_it(
    siblings, dimension, share
):
    r, steps, generator = 0.7, 300, torch.Generator().manual_seed(siblings)
    bound, longest = hyperbolic_bound(share / sqrt(r), r, 1, siblings), atanh(share) / sqrt(r)
    start = scattered(siblings, dimension, longest, generator)
    tangents = torch.stack([start, start]).requires_grad_()
    for step in range(steps):
        images, texts = expmap0(tangents, r)
        gaps = (
            off_diagonal(distance(images[:, None], texts, r)) - distance(images, texts, r)[:, None]
        )
        assert gaps.amin(1).mean() <= bound + 1e-5
        (climb,) = torch.autograd.grad((-10 * gaps / bound).exp().sum().log(), tangents)
        with torch.no_grad():
            tangents -= 0.2 * longest * (1 - step / steps) * climb / climb.norm()
            tangents /= (tangents.norm(dim=-1, keepdim=True) / longest).clamp(min=1)
    assert dimension < siblings - 1 or gaps.min() > 0.95 * bound


@given(curvatures, st.floats(0, 0.98), counts)
def test_sibling_bound_rises_with_the_norm_and_falls_with_the_siblings(r, share, siblings):
    eta = share / sqrt(r)
    assert sibling_distance((share + 0.01) / sqrt(r), r, siblings) > sibling_distance(
        eta, r, siblings
    )
    if share > 1e-6:
        assert sibling_distance(eta, r, siblings + 1) < sibling_distance(eta, r, siblings)
        assert euclidean_bound(eta, 1, siblings + 1) < euclidean_bound(eta, 1, siblings)


@given(curvatures, shares)
def test_many_siblings_tend_to_right_angles_at_a_cost_of_at_most_log_two(r, share):
    eta = share / sqrt(r)
    corner = torch.tensor([[eta, 0], [0, eta]], dtype=torch.float64)
    many = sibling_distance(eta, r, 10**9)
    assert many == pytest.approx(float(distance(corner[0], corner[1], r)), rel=1e-4)
    assert 0 < hyperbolic_bound(eta, r, 1) - many < log(2) / sqrt(r)
    assert euclidean_bound(eta, 1, 10**9) == pytest.approx(euclidean_bound(eta, 1) / 2)


@pytest.mark.parametrize("siblings", [2, 3, 1000])
def test_sibling_bound_diverges_at_the_rim(siblings):
    values = [sibling_distance(1 - 10.0**-k, 1, siblings) for k in range(1, 15)]
    assert np.diff(values) == pytest.approx(2 * log(10), abs=0.5)


@given(st.floats(0, 5), counts)
def test_sibling_distance_tends_to_twice_the_edge_as_the_ball_flattens(eta, siblings):
    t = simplex(eta, siblings, siblings - 1)
    flat = 2 * float((t[0] - t[1]).norm())
    assert sibling_distance(eta, 1e-10, siblings) == pytest.approx(flat, rel=1e-6)
    assert sibling_distance(eta, 0, siblings) == pytest.approx(flat, rel=1e-9)


@pytest.mark.parametrize(
    "eta, r", [(-0.1, 1.0), (1.0, 1.0), (2.0, 1.0), (-0.1, 0.0), (float("nan"), 1.0)]
)
def test_siblings_outside_the_ball_are_refused(eta, r):
    with pytest.raises(ValueError, match="outside the ball"):
        hyperbolic_bound(eta, r, 1, 3)


@pytest.mark.parametrize("siblings", [0, 1])
def test_one_alone_has_no_siblings(siblings):
    with pytest.raises(ValueError, match="at least 2"):
        sibling_distance(0.5, 1, siblings)
    with pytest.raises(ValueError, match="at least 2"):
        euclidean_bound(0.5, 1, siblings)


def classifier(head=None) -> Classifier:
    head = head or PoincareHead(1.0, 2.0, 2.0, 1.0, 5.0)
    texts = [torch.eye(3), torch.tensor([[1.0, 1, 0], [0, 0, 1]])]
    encoder = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    return Classifier(
        encoder, head, [head.text_points(text, level, 1) for level, text in enumerate(texts)]
    )


def test_measured_margins_lie_under_their_bounds_and_tell_right_from_wrong():
    shown = random_images(0.5)
    rows = notebook.measured_margins(classifier(), shown, PATHS, batch=4)
    assert len(rows) == 2 * len(shown)
    assert (rows["margin"] <= rows["bound"]).all()
    assert (rows["siblings"] == np.repeat([3, 2], len(shown))).all()
    right = classifier()(shown.floats())[0].argmax(1) == shown.labels
    assert ((rows[rows["level"] == 0]["margin"] > 0).to_numpy() == right.numpy()).all()
    table = notebook.summary(rows.assign(tree="a"))
    assert (table["norm"].diff().dropna() < 0).all()
    assert (table["share"] <= 1).all()
    assert (table["reached"] <= table["sibling_bound"]).all()
    assert (table["sibling_bound"] <= table["bound"]).all()


def test_levels_are_bounded_at_their_longest_text_in_the_geometry_of_the_head():
    assert level_bounds(classifier(CosineHead(10.0)), 0) == pytest.approx((20, 15))
    flat = EuclideanHead(1.0, 2.0, 2.0, 1.0, 5.0, norms="free")
    texts = classifier(flat).text_points[1]
    assert level_bounds(classifier(flat), 1) == pytest.approx(
        [4 * 5 * float(texts.norm(dim=1).max())] * 2
    )


def test_summary_and_figure_keep_trees_apart():
    rows = notebook.measured_margins(classifier(), random_images(0.5), PATHS, batch=4)
    rows = rows.assign(curvature=1.0, tau=5.0, tree="b")
    one = notebook.summary(rows)
    both = pd.concat([rows, rows.assign(tree="a", margin=rows["margin"] / 2)])
    table = notebook.summary(both)
    assert table["tree"].tolist() == ["b", "b", "a", "a"]
    pd.testing.assert_frame_equal(table[:2], one, check_dtype=False)
    assert table["reached"][2:].to_numpy() == pytest.approx(one["reached"].to_numpy() / 2)
    figure = notebook.margin_depth(both, "#cc79a7", 7.0)
    assert [axis.get_title() for axis in figure.axes] == ["b", "a"]
    siblings = figure.axes[0].lines[2]
    assert np.asarray(siblings.get_ydata()) == pytest.approx(one["sibling_bound"].to_numpy())
    plt.close(figure)


def test_the_summary_of_no_margins_has_its_columns_and_no_rows():
    rows = notebook.measured_margins(classifier(), random_images(0.5), PATHS, batch=4).assign(
        tree="a"
    )
    empty = notebook.summary(pd.DataFrame(columns=rows.columns, dtype=float))
    assert empty.empty and list(empty.columns) == list(notebook.summary(rows).columns)


# Theorem 3: margin and angle.

radii, half_angles = st.floats(0.1, 3), st.floats(0.05, pi / 2)


def directions(count: int, dimension: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(
        torch.randn(count, dimension, generator=generator, dtype=torch.float64), dim=1
    )


def on_circle(*angles: float) -> torch.Tensor:
    """(N, 2) unit vectors at these angles."""
    angles = torch.tensor(angles, dtype=torch.float64)
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def turned(e: torch.Tensor, angle: float, towards: torch.Tensor) -> torch.Tensor:
    """The unit vectors (N, D) at an angle from e (D,), on the way to others (N, D)."""
    across = F.normalize(towards - (towards @ e)[:, None] * e, dim=1)
    return cos(angle) * e + sin(angle) * across


def margin_at(e: torch.Tensor, texts: torch.Tensor, radius: float, r: float) -> torch.Tensor:
    """(N,) margins of directions e (N, D), the first text being right; logits are -3 d."""
    points = expmap0(radius * e, r)[:, None]
    away = distance(points, expmap0(radius * texts, r), r)
    return 3 * (away[:, 1:].amin(1) - away[:, 0])


@given(curvatures, radii, st.floats(0.01, pi), st.floats(0.01, pi))
def test_margin_of_angles_is_that_of_the_distances(r, rho, right, wrong):
    rho /= sqrt(r)
    margin = margin_at(on_circle(0), on_circle(right, -wrong), rho, r)
    assert notebook.direction_margin(right, wrong, rho, r, 3) == pytest.approx(
        float(margin), rel=1e-4, abs=1e-4
    )


@given(curvatures, st.floats(0.01, 1.5), st.floats(0.01, 1.5))
def test_margin_of_a_direction_rises_with_depth_to_its_limit(r, right, more):
    wrong = right + more
    deep = notebook.direction_margin(right, wrong, np.linspace(0.1, 12, 50) / sqrt(r), r, 3)
    limit = 6 / sqrt(r) * log(sin(wrong / 2) / sin(right / 2))
    assert (np.diff(deep) >= -1e-12 * limit).all() and deep[0] < limit
    assert deep[-1] == pytest.approx(limit, rel=1e-4)


@given(curvatures, st.floats(0.1, pi))
def test_margin_on_the_texts_own_direction_grows_linearly_without_bound(r, wrong):
    depths = np.array([8.0, 9.0]) / sqrt(r)
    margin = notebook.direction_margin(0, wrong, depths, r, 3)
    assert np.diff(margin) == pytest.approx(4 * 3 * np.diff(depths), rel=1e-4)
    asymptote = 4 * 3 * depths + 6 / sqrt(r) * log(sin(wrong / 2))
    assert margin == pytest.approx(asymptote, rel=1e-4)


@given(curvatures, radii, seeds, st.integers(2, 5))
def test_no_turn_by_less_than_the_exact_angle_errs_and_one_by_a_little_more_does(
    r, rho, seed, dimension
):
    texts, e = directions(4, dimension, seed), directions(1, dimension, seed + 1)[0]
    others = (e @ texts.T).argsort(descending=True)
    texts = texts[others]  # the nearest one is right
    _, _, exact = notebook.text_angles(e[None].numpy(), texts.numpy(), np.array([0]))
    random = directions(300, dimension, seed + 2)
    boundary = texts[1:] - texts[0]
    every = torch.cat([random, boundary, -boundary])
    if exact > 1e-3:
        safe = turned(e, 0.999 * float(exact[0]), every)
        assert (safe @ texts.T).argmax(1).eq(0).all()
        wrong = turned(e, 1.001 * float(exact[0]) + 1e-6, every)
        assert (wrong @ texts.T).argmax(1).ne(0).any()
        certified = notebook.certified_angle(
            float(margin_at(e[None], texts, rho / sqrt(r), r)), rho / sqrt(r), r, 3
        )
        assert certified <= exact[0] + 1e-5


def test_exact_angle_is_negative_where_the_prediction_is_wrong():
    texts = on_circle(0, 1).numpy()
    image = on_circle(0.8).numpy()
    right, wrong, exact = notebook.text_angles(image, texts, np.array([0]))
    assert np.concatenate([right, wrong, exact]) == pytest.approx([0.8, 0.2, -0.3])
    right, wrong, exact = notebook.text_angles(image, texts, np.array([1]))
    assert np.concatenate([right, wrong, exact]) == pytest.approx([0.2, 0.8, 0.3])


@given(curvatures, radii, st.floats(0.02, pi / 2))
def test_certified_angle_is_tight_between_two_texts(r, rho, theta):
    rho /= sqrt(r)
    margin = notebook.direction_margin(0, 2 * theta, rho, r, 3)
    # Next to a right angle arcsin has no digits left.
    assert notebook.certified_angle(margin, rho, r, 3) == pytest.approx(theta, abs=1e-6)
    texts = on_circle(0, 2 * theta)
    before, after = margin_at(on_circle(0.99 * theta, 1.01 * theta), texts, rho, r)
    assert before > 0 > after


def test_descent_finds_no_smaller_angle_than_the_certified_one_and_comes_near_it():
    rho, r, margin = 0.9, 0.7, 2.0
    certified = notebook.certified_angle(margin, rho, r, 3)

    def exact(angle, turn):
        """To the boundary, at the given margin, in three dimensions."""
        stretch = sinh(2 * sqrt(r) * rho)
        wanted_sine = sinh(np.arcsinh(stretch * abs(sin(angle / 2))) + sqrt(r) * margin / 6)
        wrong = 2 * asin(min(1, wanted_sine / stretch))
        e = np.array([[1.0, 0, 0]])
        right_text = [cos(angle), sin(angle), 0]
        wrong_text = [cos(wrong), sin(wrong) * cos(turn), sin(wrong) * sin(turn)]
        return notebook.text_angles(e, np.array([right_text, wrong_text]), np.array([0]))[2][0]

    rng = np.random.default_rng(0)
    found = []
    for start in rng.uniform(0.1, 0.8, (10, 2)):
        bounds = [(0, 0.8), (0, pi)]
        result = minimize(lambda x: exact(*x), start, method="Nelder-Mead", bounds=bounds)
        found.append(result.fun)
    assert min(found) >= certified - 1e-9
    assert min(found) == pytest.approx(certified, rel=1e-3)


@given(curvatures, radii, st.floats(0.01, 1))
def test_lipschitz_angle_lies_below_and_at_the_largest_margin_far_below(r, rho, share):
    rho /= sqrt(r)
    largest = 4 * 3 * rho
    given = (share * largest, rho, r, 3)
    assert 0 < notebook.lipschitz_angle(*given) <= notebook.certified_angle(*given) + 1e-12
    assert notebook.certified_angle(largest, rho, r, 3) == pytest.approx(pi / 2, abs=1e-6)
    assert notebook.lipschitz_angle(largest, rho, r, 3) == pytest.approx(
        2 * asin(1 / (2 * cosh(sqrt(r) * rho)))
    )


@given(curvatures, st.floats(0.1, 5))
def test_certified_angles_of_a_margin_shrink_exponentially_with_depth(r, margin):
    rho = 8 / sqrt(r)
    small = sqrt(r) * margin / 6
    certified = notebook.certified_angle(margin, rho, r, 3)
    assert certified == pytest.approx(2 * sinh(small) * exp(-16), rel=1e-4)
    lipschitz = notebook.lipschitz_angle(margin, rho, r, 3)
    assert lipschitz == pytest.approx(4 * sinh(small / 2) * exp(-16), rel=1e-4)


def test_wrong_predictions_certify_nothing():
    assert notebook.certified_angle(-1.0, 1.0, 1.0, 3) == 0
    assert notebook.lipschitz_angle(-1.0, 1.0, 1.0, 3) == 0


@given(curvatures, radii, st.floats(0.001, pi))
def test_depth_stretches_an_angle_as_theorem_3_has_it(r, rho, theta):
    u, v = expmap0(rho / sqrt(r) * on_circle(0, theta), r)
    stretched = sinh(sqrt(r) * float(distance(u, v, r)) / 2)
    assert stretched == pytest.approx(sinh(2 * rho) * sin(theta / 2), rel=1e-3)


# Theorem 4: siblings in a cone.


@given(curvatures, shares, counts, half_angles)
def test_simplex_across_the_axis_attains_the_bound_of_the_cone(r, share, siblings, phi):
    eta = share / sqrt(r)
    e = notebook.cone_simplex(siblings, phi)
    assert e[:, 0].acos().numpy() == pytest.approx(phi)
    bound = sibling_distance(eta, r, siblings, phi)
    assert apart(eta * e, r).numpy() == pytest.approx(bound, rel=1e-3)
    flat = euclidean_bound(eta, 3, siblings) * sin(phi) ** 2
    assert least_margins(3 * eta**2 * e @ e.T).numpy() == pytest.approx(flat)
    free = 3 * eta**2 * F.normalize(e - e.mean(0), dim=1) @ e.T
    assert least_margins(free).numpy() == pytest.approx(
        euclidean_bound(eta, 3, siblings) * sin(phi)
    )


@given(curvatures, shares, counts, st.integers(2, 10), half_angles, seeds)
def test_no_siblings_in_a_cone_exceed_its_bound_in_the_mean(
    r, share, siblings, dimension, phi, seed
):
    eta, generator = share / sqrt(r), torch.Generator().manual_seed(seed)
    e = notebook.cone(1, siblings, dimension, phi, generator)[0]
    assert (e[:, 0] >= cos(phi) - 1e-12).all()
    t, bound = eta * e, sibling_distance(eta, r, siblings, phi)
    assert apart(t, r).mean() <= bound + 1e-5
    anywhere = scattered(siblings, dimension, 0.99 / sqrt(r), generator)
    for z in (t, anywhere):
        assert least_margins(-3 * distance(z[:, None], t, r)).mean() <= 3 * bound + 1e-5
    flat = euclidean_bound(eta, 3, siblings) * sin(phi)
    images = eta * notebook.cone(1, siblings, dimension, phi, generator)[0]
    for z in (t, images):
        assert least_margins(3 * z @ t.T).mean() <= flat * sin(phi) + 1e-9
    best = eta * F.normalize(t - t.mean(0), dim=1)
    for z in (best, scattered(siblings, dimension, eta, generator)):
        assert least_margins(3 * z @ t.T).mean() <= flat + 1e-9


@pytest.mark.parametrize("siblings", [2, 3, 5])
@pytest.mark.parametrize("phi", [0.3, 1.2])
def test_climbing_in_a_cone_reaches_its_bound_and_never_exceeds_it(siblings, phi):
    r, eta, generator = 0.7, 0.9, torch.Generator().manual_seed(siblings)
    bound = sibling_distance(eta, r, siblings, phi)
    across = torch.randn(siblings, siblings, generator=generator, dtype=torch.float64)
    across.requires_grad_()
    optimiser = torch.optim.Adam([across], lr=0.05)
    for _ in range(300):
        length = across.norm(dim=1, keepdim=True)
        angle = phi * length.clamp(max=1)
        t = eta * torch.cat([angle.cos(), angle.sin() * across / length], dim=1)
        mean = apart(t, r).mean()
        assert mean <= bound + 1e-5
        optimiser.zero_grad()
        (-mean).backward()
        optimiser.step()
    assert mean > 0.999 * bound


def test_siblings_of_unequal_norm_exceed_the_bound_of_their_cone():
    along = torch.tensor([[0.9, 0.0], [0.5, 0.0]], dtype=torch.float64)
    assert apart(along, 1.0).mean() > sibling_distance(0.9, 1, 2, 1e-9)


@given(curvatures, st.floats(0.01, 0.95), counts, half_angles)
def test_nesting_costs_less_than_the_logarithm_of_the_sine_and_tends_to_it(r, share, siblings, phi):
    def cost(share):
        eta = share / sqrt(r)
        return sibling_distance(eta, r, siblings) - sibling_distance(eta, r, siblings, phi)

    most = 2 / sqrt(r) * log(1 / sin(phi))
    assert -1e-12 <= cost(share) <= most + 1e-12
    assert cost(1 - 1e-9) == pytest.approx(most, abs=1e-6)


def test_a_cone_of_a_right_angle_or_more_costs_nothing():
    for phi in (pi / 2, 2.0, pi):
        assert sibling_distance(0.8, 1, 4, phi) == sibling_distance(0.8, 1, 4)
        assert notebook.tree_radii([phi], 1.5, 2.0) == pytest.approx([1.5, 1.5])


@given(curvatures, radii, st.lists(half_angles, max_size=4), counts)
def test_radii_of_a_tree_give_nested_siblings_what_their_parents_depth_gives_unnested(
    r, rho, angles, siblings
):
    found = notebook.tree_radii(angles, rho / sqrt(r), r)
    assert len(found) == len(angles) + 1 and found[-1] == rho / sqrt(r)
    for angle, child, parent in zip(angles, found, found[1:], strict=False):
        norms = [tanh(min(sqrt(r) * each, 8)) / sqrt(r) for each in (child, parent)]
        if child * sqrt(r) < 8:  # beyond, the norm has no digits left
            assert sibling_distance(norms[0], r, siblings, angle) == pytest.approx(
                sibling_distance(norms[1], r, siblings), rel=1e-6
            )
        step = log(1 / sin(angle)) / (2 * sqrt(r))
        assert -1e-12 <= child - parent <= step + 1e-12


@given(curvatures, half_angles)
def test_step_of_a_deep_tree_is_the_logarithm_of_the_sine_in_distance(r, phi):
    deep = 6 / sqrt(r)
    child, parent = expmap0(
        torch.tensor([notebook.tree_radii([phi], deep, r)], dtype=torch.float64).T, r
    ).abs()
    centre = torch.zeros(1, dtype=torch.float64)
    step = float(distance(child, centre, r) - distance(parent, centre, r))
    assert step == pytest.approx(log(1 / sin(phi)) / sqrt(r), abs=1e-4)


@pytest.mark.parametrize("angle", [0.0, -0.1])
def test_cone_without_width_has_no_radius(angle):
    with pytest.raises(ValueError, match=f"half-angle {angle:g}"):
        notebook.tree_radii([1.0, angle], 1, 1)


def test_cones_of_a_tree_are_those_of_its_edges():
    tree = tree_from_graph(tiny_graph(), "tiny", LEAVES)
    leaves = {"dog": 0.1, "cat": -0.3, "eagle": 1.0, "car": 2.0, "bus": 2.4}
    mammals = {"mammal": 0.0, "eagle": 1.0, "vehicle": 2.1}
    at = [leaves, mammals, {"animal": 0.4, "vehicle": 2.1}]
    by_level = [
        on_circle(*(angles[node.id] for node in level)).numpy()
        for angles, level in zip(at, tree.levels, strict=True)
    ]
    table = notebook.sibling_cones(tree, by_level, [1.0, 0.8, 0.5], 1.0)
    assert table["level"].tolist() == [0, 0, 1]
    assert sorted(table["angle"][:2]) == pytest.approx([0.3, 0.3])
    assert table["angle"][2] == pytest.approx(0.6)
    assert (table["siblings"] == 2).all()
    dogs, cats = expmap0(on_circle(0.1, -0.3), 1.0)
    bound = sibling_distance(tanh(1.0), 1, 2, 0.3)
    assert table["used"].tolist()[:2] == pytest.approx(
        [float(distance(dogs, cats, 1.0)) / bound] * 2, rel=1e-4
    )
    assert (table["used"] < 1).all()


def test_even_radii_are_those_of_the_head():
    head = classifier().head
    for level, radius in enumerate(notebook.even_radii(head, 4)):
        point = head.text_points(torch.eye(2), level, 3)[0]
        assert float(point.norm()) == pytest.approx(tanh(radius), rel=1e-5)
    assert notebook.even_radii(head, 1).tolist() == [head.text_radius]


# Theorem 5: the concentration of images.


@given(curvatures, st.floats(0.01, 0.95), st.floats(0.01, 0.95), seeds, st.integers(1, 6))
def test_no_margin_between_texts_of_equal_norm_exceeds_twice_the_distance_of_the_image(
    r, share, depth, seed, dimension
):
    texts = share / sqrt(r) * directions(5, dimension, seed)
    z = depth / sqrt(r) * directions(20, dimension, seed + 1)
    away = distance(z[:, None], texts, r).sort(dim=1).values
    most = 4 / sqrt(r) * atanh(depth)
    assert (away[:, -1] - away[:, 0]).max() <= most + 1e-5
    if depth < share:  # attained between the centre and an opposed pair
        pair = torch.stack([texts[0], -texts[0]])
        at = depth / share * texts[:1]
        there = distance(at, pair, r)
        assert float(there[1] - there[0]) == pytest.approx(most, rel=1e-3, abs=1e-4)


@given(curvatures, st.floats(0.1, 2.5), seeds, counts)
def test_roll_up_lies_where_its_mean_resultant_length_says(r, rho, seed, images):
    e = directions(images, 4, seed)
    points = expmap0(rho / sqrt(r) * e, r)
    z = from_klein_sum(to_klein_sum(points, r).sum(0), r)
    resultant = notebook.resultants(e.numpy(), np.zeros(images, dtype=int))
    assert resultant.tolist() == pytest.approx([float(e.mean(0).norm())])
    formula = notebook.roll_up_distance(resultant[0], 2 * rho / sqrt(r), r)
    reached = float(distance(z, torch.zeros_like(z), r))
    assert formula == pytest.approx(reached, rel=1e-3, abs=1e-4)
    assert formula < atanh(float(resultant[0])) / sqrt(r)


def test_resultants_are_kept_apart_by_node():
    e = on_circle(0, pi / 2, 0.3, 0.3, pi).numpy()
    found = notebook.resultants(e, np.array([4, 4, 1, 1, 7]))
    assert found.to_dict() == pytest.approx({1: 1.0, 4: sqrt(0.5), 7: 1.0})


@pytest.mark.parametrize("norms", ["fixed", "free"])
def test_roll_ups_have_at_most_the_margin_that_their_distance_allows(norms):
    head = PoincareHead(0.5, 2.0, 1.5, 1.0, 5.0, norms=norms)
    reader, shown = classifier(head), random_images(0.5, n=9)
    embeddings = reader.encoder(shown.floats())
    table = notebook.roll_up_margins(reader, embeddings, PATHS, shown.labels)
    assert table.groupby("level").size().tolist() == [9, 2]
    assert (table["reached"] <= table["attainable"] + 1e-9).all()
    margins = notebook.measured_margins(reader, shown, PATHS, batch=4)
    leaves = margins.loc[margins["level"] == 0, "margin"].to_numpy()
    assert table.loc[table["level"] == 0, "reached"].to_numpy() == pytest.approx(leaves, rel=1e-4)
    if norms == "fixed":
        texts = reader.text_points[1]
        assert texts.norm(dim=1).numpy() == pytest.approx(float(texts[0].norm()))
        above = table[table["level"] == 1]
        nodes = PATHS[shown.labels, 1].numpy()
        e = F.normalize(embeddings.double(), dim=1).numpy()
        formula = notebook.roll_up_distance(notebook.resultants(e, nodes), 4.0, 0.5)
        assert above["distance"].to_numpy() == pytest.approx(formula.to_numpy(), rel=1e-5)
        assert above["attainable"].to_numpy() == pytest.approx(10 * above["distance"], rel=1e-5)


def outcomes(seed, n=60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    margins = rng.normal(size=n).round(1)
    return margins, margins + rng.normal(size=n) < 0


@pytest.mark.parametrize("seed", range(5))
def test_rank_correlation_and_separation_are_those_of_scipy(seed):
    margins, broken = outcomes(seed)
    rho = notebook.rank_correlation(margins, broken)
    low, high = notebook.bootstrap_interval(margins, broken, 300, 0)
    assert rho == pytest.approx(spearmanr(margins, broken).statistic)
    assert -1 <= low < rho < high < 0
    u = mannwhitneyu(margins[~broken], margins[broken]).statistic
    area = u / (broken.sum() * (~broken).sum())
    assert notebook.separation(margins, broken) == pytest.approx(area)


def test_rank_correlation_sees_order_alone_and_its_interval_repeats():
    margins, broken = outcomes(0)
    exponential = np.exp(margins)
    assert notebook.rank_correlation(margins, broken) == notebook.rank_correlation(
        exponential, broken
    )
    interval = notebook.bootstrap_interval(margins, broken, 50, 1)
    assert interval == notebook.bootstrap_interval(exponential, broken, 50, 1)
    assert notebook.separation(np.arange(4), np.array([True, True, False, False])) == 1


def test_interval_leaves_out_resamples_that_broke_nothing():
    margins, broken = outcomes(0)
    rare = margins == margins.min()
    assert np.isfinite(notebook.bootstrap_interval(margins, rare, 200, 0)).all()
    assert np.isfinite(notebook.bootstrap_interval(margins, broken, 1, 0)).all()


def test_constant_outcomes_have_no_correlation():
    margins, broken = outcomes(0)
    for constant in (np.zeros(60, bool), np.ones(60, bool)):
        assert np.isnan(notebook.rank_correlation(margins, constant))
        assert np.isnan(notebook.bootstrap_interval(margins, constant, 10, 0)).all()
        assert np.isnan(notebook.separation(margins, constant))
    assert np.isnan(notebook.rank_correlation(np.zeros(60), broken))
