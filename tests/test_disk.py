"""The geometry of the disk, against closed forms."""

from math import cos, hypot, pi, sin, tau

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hierclip.explorer.disk import ball_radius, geodesic, mean_angle, node_angles, place

inside = st.tuples(st.floats(0.05, 0.95), st.floats(0, tau)).map(lambda p: (p[0] * cos(p[1]), p[0] * sin(p[1])))


def centre(p, q, radius, sweep):
    """Of the circle through p and q, on the side that SVG's short arc with this sweep bends around."""
    middle, half = ((p[0] + q[0]) / 2, (p[1] + q[1]) / 2), hypot(q[0] - p[0], q[1] - p[1]) / 2
    along = ((q[0] - p[0]) / (2 * half), (q[1] - p[1]) / (2 * half))
    off = max(radius**2 - half**2, 0) ** 0.5 * (1 if sweep else -1)
    return middle[0] - off * along[1], middle[1] + off * along[0]


@given(inside, inside)
def test_a_geodesic_lies_on_a_circle_that_meets_the_rim_at_right_angles(p, q):
    radius, sweep = geodesic(p, q)
    if 1e-2 < radius < 1e2 and hypot(p[0] - q[0], p[1] - q[1]) > 1e-2:
        c = centre(p, q, radius, sweep)
        assert hypot(*c) ** 2 == pytest.approx(1 + radius**2, rel=1e-4)


def test_the_geodesic_between_two_points_of_one_norm_is_the_known_one():
    p, q = (0.5, 0.0), (0.0, 0.5)  # on x^2 + y^2 - 2.5 (x + y) + 1 = 0
    radius, sweep = geodesic(p, q)
    assert radius == pytest.approx((2 * 1.25**2 - 1) ** 0.5) and not sweep
    assert geodesic(q, p) == (pytest.approx(radius), True)


def test_a_geodesic_through_the_centre_is_straight():
    assert geodesic((0.3, 0.4), (-0.6, -0.8))[0] == 0
    assert geodesic((0.0, 0.0), (0.3, 0.4))[0] == 0


def test_radius_rises_with_norm_and_stays_inside_the_rim():
    shares = np.linspace(0, 1, 1001)
    for stretch in (0.1, 0.5, 1.0):
        radii = ball_radius(shares, stretch)
        assert radii[0] == 0 and radii.max() < 1
        assert (np.diff(radii)[:-20] > 0).all() and (np.diff(radii) >= 0).all()


def test_a_stretch_of_one_draws_norms_as_they_are_and_half_of_it_halves_the_distance():
    shares = np.array([0.0, 0.3, 0.9])
    np.testing.assert_allclose(ball_radius(shares, 1.0), shares, atol=1e-12)
    np.testing.assert_allclose(np.arctanh(ball_radius(shares, 0.5)), np.arctanh(shares) / 2)


def test_leaves_stand_evenly_and_those_of_a_node_side_by_side(forest):
    for tree in forest:
        turns = np.sort(node_angles(tree)[0])
        np.testing.assert_allclose(np.diff(turns), tau / len(turns))
        ranks = np.argsort(np.argsort(node_angles(tree)[0]))
        for nodes in tree.paths.T:
            for node in set(nodes):
                own = ranks[nodes == node]
                assert np.ptp(own) == len(own) - 1


def test_a_node_stands_in_the_middle_of_its_leaves(tree):
    leaves, level = node_angles(tree)[:2]
    for node, angle in enumerate(level):
        own = leaves[tree.paths[:, 1] == node]
        assert angle == pytest.approx((own.min() + own.max()) / 2)


def test_the_mean_angle_is_that_of_the_mean_vector():
    assert mean_angle(np.array([1.0, 0.0]), np.array([1.0, 2.0])) == pytest.approx(1.0)
    assert mean_angle(np.array([0.5, 0.5]), np.array([tau - 0.2, 0.4])) == pytest.approx(0.1)
    x, y = place(2.0, pi / 2)
    assert (x, y) == (pytest.approx(0, abs=1e-12), 2.0)
