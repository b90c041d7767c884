import warnings

import pytest
import torch

from hierclip import hyperbolic
from tests.conftest import distance

with warnings.catch_warnings():  # geoopt uses torch.jit.script, which torch has deprecated
    warnings.simplefilter("ignore")
    import geoopt

CURVATURES = [0.1, 1.0, 3.0]
SEEDS = range(8)
close = torch.testing.assert_close


def depth(z, r):
    """The distance from the centre."""
    return distance(z, torch.zeros_like(z), r)


def midpoints(z, groups, count, r):
    """Of each group: (count, D)."""
    return hyperbolic.from_klein_sum(
        hyperbolic.einstein_midpoints(hyperbolic.to_klein_sum(z, r), groups, count), r
    ).to(z.dtype)


def midpoint(z, r):
    """Of all points as one group."""
    return midpoints(z, torch.zeros(len(z), dtype=torch.long), 1, r)[0]


def points(
    r: float, seed: int, count: int = 6, most: float = 0.9, dtype=torch.float64
) -> torch.Tensor:
    """Random points (count, 5) with sqrt(r) |z| up to `most`."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.nn.functional.normalize(
        torch.randn(count, 5, generator=generator, dtype=torch.float64), dim=-1
    )
    return (z * most * torch.rand(count, 1, generator=generator, dtype=torch.float64) / r**0.5).to(
        dtype
    )


def ball(r: float) -> geoopt.PoincareBall:
    return geoopt.PoincareBall(c=torch.tensor(r, dtype=torch.float64))


def value_and_gradient(function, *inputs):
    inputs = [x.clone().requires_grad_(True) for x in inputs]
    value = function(*inputs)
    weight = torch.linspace(1, 2, value.numel(), dtype=value.dtype).view_as(value)
    return value, *torch.autograd.grad((weight * value).sum(), inputs)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("r", CURVATURES)
class TestAgainstGeoopt:
    def test_exp0(self, r, seed):
        v = 2 * points(r, seed)
        close(
            value_and_gradient(lambda v: hyperbolic.expmap0(v, r), v),
            value_and_gradient(ball(r).expmap0, v),
        )

    def test_pairwise_distance(self, r, seed):
        u, v = points(r, seed), points(r, seed + 100, count=4)
        ours = value_and_gradient(lambda u, v: hyperbolic.pairwise_distance(u, v, r), u, v)
        close(ours, value_and_gradient(lambda u, v: ball(r).dist(u[:, None], v[None]), u, v))

    def test_midpoint(self, r, seed):
        z = points(r, seed)
        ours = value_and_gradient(lambda z: midpoint(z, r), z)
        close(ours, value_and_gradient(ball(r).weighted_midpoint, z))


@pytest.mark.parametrize("r", CURVATURES)
def test_distance_is_the_arccosh_of_the_definition(r):
    u, v = points(r, 0), points(r, 1)
    uu, vv = u.square().sum(-1), v.square().sum(-1)
    q = r * (u - v).square().sum(-1) / ((1 - r * uu) * (1 - r * vv))
    close(hyperbolic.pairwise_distance(u, v, r).diagonal(), torch.acosh(1 + 2 * q) / r**0.5)
    close(hyperbolic.pairwise_distance(u, v, r), distance(u[:, None], v, r))


@pytest.mark.parametrize("r", CURVATURES)
def test_tangents_are_lifted_to_where_their_points_are(r):
    v = torch.cat(
        [2 * points(r, 0), torch.zeros(1, 5, dtype=torch.float64), 100 * points(r, 1, count=1)]
    )
    z = hyperbolic.expmap0(v, r)
    x, height = hyperbolic.lift_tangents(v, r)
    close(torch.cat([x, 1 + height], dim=1)[:-1], hyperbolic.to_klein_sum(z, r)[:-1])
    close(hyperbolic.lifted_norms(x, height, r)[:-2], z.norm(dim=1)[:-2])
    at_rim = hyperbolic.to_klein_sum(
        hyperbolic.expmap0(v[-1].float(), r), r
    )  # where float32 ends, in every dtype
    close(torch.cat([x, 1 + height], dim=1)[-1], at_rim, rtol=1e-2, atol=0)
    gradient = torch.autograd.functional.jacobian(
        lambda v: hyperbolic.lift_tangents(v, r)[0], torch.zeros(1, 5).double()
    )
    assert gradient.isfinite().all()


@pytest.mark.parametrize("r", CURVATURES)
def test_the_distance_from_the_centre_is_twice_the_tangent_length(r):
    v = points(r, 0)
    z = hyperbolic.expmap0(v, r)
    close(depth(z, r), 2 * v.norm(dim=-1))


def test_a_flat_ball_has_twice_the_euclidean_distance():
    u, v = points(1.0, 0), points(1.0, 1)
    close(hyperbolic.pairwise_distance(u, v, 1e-6), 2 * torch.cdist(u, v), rtol=1e-5, atol=0)


def test_distance_of_a_point_to_itself_is_zero_with_a_finite_gradient():
    u = points(1.0, 0, dtype=torch.float32)
    value, du, dv = value_and_gradient(
        lambda u, v: hyperbolic.pairwise_distance(u, v, 1.0).diagonal(), u, u
    )
    assert value.max() < 5e-3 and du.isfinite().all() and dv.isfinite().all()


def test_exp0_at_the_centre_is_the_centre_with_the_identity_as_gradient():
    jacobian = torch.autograd.functional.jacobian(
        lambda v: hyperbolic.expmap0(v, 2.0), torch.zeros(3, dtype=torch.float64)
    )
    close(hyperbolic.expmap0(torch.zeros(3), 2.0), torch.zeros(3))
    close(jacobian, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("seed", SEEDS)
def test_group_midpoints_are_the_midpoint_of_each_group(seed):
    z, groups = points(1.0, seed, count=7), torch.tensor([2, 0, 1, 0, 2, 2, 1])
    expected = torch.stack([midpoint(z[groups == k], 1.0) for k in range(3)])
    close(midpoints(z, groups, 3, 1.0), expected)


@pytest.mark.parametrize("r", CURVATURES)
def test_midpoint_of_a_single_point_is_that_point(r):
    z = points(r, 0, count=20, most=0.99, dtype=torch.float32)
    close(midpoints(z, torch.arange(20), 20, r), z, rtol=1e-4, atol=1e-6)


def test_midpoint_of_a_single_point_at_the_rim_keeps_its_depth():
    z = hyperbolic.expmap0(100 * points(1.0, 0, count=20, dtype=torch.float32), 1.0)
    single = midpoints(z, torch.arange(20), 20, 1.0)
    close(depth(single, 1.0), depth(z, 1.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("r", CURVATURES)
def test_midpoint_of_opposite_points_is_the_centre(r):
    z = points(r, 0)
    for pair in torch.stack([z, -z], 1):
        close(midpoint(pair, r), torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("length", [0.1, 1.0, 5.0, 1e6])
@pytest.mark.parametrize("seed", SEEDS)
def test_midpoint_stays_inside_the_ball_with_a_finite_gradient(seed, length):
    v = length * torch.nn.functional.normalize(points(1.0, seed, dtype=torch.float32), dim=-1)
    value, gradient = value_and_gradient(lambda v: midpoint(hyperbolic.expmap0(v, 1.0), 1.0), v)
    assert value.norm() < 1 and gradient.isfinite().all()


@pytest.mark.parametrize("r", CURVATURES)
def test_values_and_gradients_are_finite_at_the_rim(r):
    v = torch.eye(4) * torch.tensor([1.0, 10.0, 1e3, 1e6])[:, None]

    def distances(v):
        z = hyperbolic.expmap0(v, r)
        return hyperbolic.pairwise_distance(torch.cat([z, -z]), z, r)

    value, gradient = value_and_gradient(distances, v)
    assert value.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("r", CURVATURES)
def test_at_rim_are_exactly_the_vectors_that_are_shortened(r, dtype):
    lengths = hyperbolic.max_tangent_norm(r, dtype) * torch.tensor(
        [0.1, 0.5, 0.95, 1.05, 2.0, 1e3], dtype=dtype
    )
    v = lengths[:, None] * torch.tensor([0.6, 0.8], dtype=dtype)
    shortened = depth(hyperbolic.expmap0(v, r), r) < 1.98 * lengths
    assert shortened.tolist() == [False] * 3 + [True] * 3
    assert hyperbolic.is_clipped(v, r).tolist() == shortened.tolist()


def test_only_the_direction_has_a_gradient_at_the_rim():
    v = torch.tensor([[60.0, 80.0]])
    _, radial = value_and_gradient(
        lambda v: hyperbolic.expmap0(v, 1.0) @ torch.tensor([0.6, 0.8]), v
    )
    _, sideways = value_and_gradient(
        lambda v: hyperbolic.expmap0(v, 1.0) @ torch.tensor([-0.8, 0.6]), v
    )
    assert abs(radial @ torch.tensor([0.6, 0.8])).item() < 1e-8
    assert abs(sideways @ torch.tensor([-0.8, 0.6])).item() > 1e-3


@pytest.mark.parametrize("r", CURVATURES)
def test_distance_of_opposite_points_grows_up_to_the_rim(r):
    lengths = torch.linspace(0.1, 0.99, 30) * hyperbolic.max_tangent_norm(r)
    z = hyperbolic.expmap0(lengths[:, None] * torch.tensor([0.6, -0.8]), r)
    distances = hyperbolic.pairwise_distance(z, -z, r).diagonal()
    assert (distances.diff() > 0).all()
    close(distances, 4 * lengths, rtol=1e-2, atol=0)
