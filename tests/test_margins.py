from math import atanh, log, pi, sqrt
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from scipy.stats import mannwhitneyu, spearmanr
from torch.nn import functional as F

from hierclip.hyperbolic import (
    euclidean_bound,
    expmap0,
    hyperbolic_bound,
    sibling_distance,
)
from hierclip.margins import level_bounds
from hierclip.models import Classifier, CosineHead, EuclideanHead, PoincareHead
from tests.conftest import distance, notebook_functions
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
