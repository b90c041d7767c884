"""The Poincare ball of sectional curvature -r, and depth-margin bounds: pure functions.

The ball is D = {z : r |z|^2 < 1}. Points are (..., D); r > 0. float32 unless the caller gives
float64. Norm is depth: near the centre general, near the rim specific.
Formulas: Ganea et al., Hyperbolic Neural Networks (2018), section 2; the Einstein midpoint:
Gulcehre et al., Hyperbolic Attention Networks (2019), section 3.2.

A margin is the logit of the right node minus the best logit of the other nodes of its level. With
logits -lambda d the bounds of a pair of texts, of K siblings and of siblings in a cone are Theorems
1, 2 and 4 of notebooks/60_margin_depth.ipynb, where they are proved. With inner products of vectors
no longer than eta the bound of a pair is 2 lambda eta^2. For siblings t_i of mean m the mean over
pairs of lambda <z_i, t_i - t_j> is lambda / (K - 1) sum <z_i, t_i - m>
<= lambda eta / (K - 1) (K sum |t_i - m|^2)^(1/2) <= lambda eta^2 K / (K - 1), attained by the
simplex and z_i = t_i.
"""

from math import asinh, pi, sin, sqrt

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# sqrt(r) |z| never exceeds 1 - BALL_EPS: beyond, 1 - r |z|^2 has no correct digit left.
BALL_EPS = {torch.float32: 1e-4, torch.float64: 1e-9}
EPS = 1e-12  # under a root or a quotient: keeps the gradient finite where points coincide


def expmap0(v: Tensor, r: float) -> Tensor:
    """Map tangent vectors (..., D) at the centre into the ball.

    z = tanh(sqrt(r) |v|) v / (sqrt(r) |v|). Vectors longer than `max_tangent_norm` stop at the rim,
    where only their direction has a gradient.
    """
    length = v.square().sum(-1, keepdim=True).add(EPS).sqrt()
    bounded = length.clamp(max=max_tangent_norm(r, v.dtype))
    return v * (torch.tanh(r**0.5 * bounded) / (r**0.5 * length))


def max_tangent_norm(r: float, dtype: torch.dtype = torch.float32) -> float:
    """Return the largest norm of a tangent vector that `expmap0` does not clip."""
    return float(torch.atanh(torch.tensor(1 - BALL_EPS[dtype], dtype=torch.float64))) / r**0.5


def is_clipped(v: Tensor, r: float) -> Tensor:
    """Return (...) bool: which tangent vectors (..., D) `expmap0` clips."""
    return v.norm(dim=-1) > max_tangent_norm(r, v.dtype)


def points_are_clipped(z: Tensor, r: float) -> Tensor:
    """Return (...) bool: which points (..., D) are where `expmap0` puts vectors that it clips in
    float32.
    """
    return r**0.5 * z.norm(dim=-1) > 1 - 1.01 * BALL_EPS[torch.float32]


def pairwise_distance(u: Tensor, v: Tensor, r: float) -> Tensor:
    """Return d between every point of u (B, D) and of v (K, D): (B, K), in B x K memory."""
    left, right = left_factor(*_hyperboloid(u, r)), right_factor(*_hyperboloid(v, r))
    return distance_of_factors(left, right, r)


def left_factor(x: Tensor, height: Tensor) -> Tensor:
    """Return the left factor (N, D + 2) of points, for `distance_of_factors`.

    A point (x, x0) of the hyperboloid x0^2 - |x|^2 = 1 is given as x (N, D) and its height x0 - 1
    (N, 1).
    """
    return torch.cat([-x, height, torch.ones_like(height)], dim=1)


def right_factor(x: Tensor, height: Tensor) -> Tensor:
    """Return the right factor (N, D + 2); arguments as for `left_factor`."""
    return torch.cat([x, 1 + height, height], dim=1)


def distance_of_factors(left: Tensor, right: Tensor, r: float) -> Tensor:
    """Return the distances (B, K) between the points whose factors are given.

    d = arccosh(1 + p) / sqrt(r), where p = x0 y0 - <x, y> - 1 is, in terms of points of the ball,
    2 r |u - v|^2 / ((1 - r|u|^2)(1 - r|v|^2)). As (x0 - 1) y0 + (y0 - 1) - <x, y> it is one matrix
    product, in which no small number is lost beside 1. It rounds at 1e-7 of its terms, which limits
    the precision of a float32 distance between nearly equal points.
    """
    return _ArccoshOfOneMore.apply(left @ right.T) / r**0.5  # pyright: ignore[reportOptionalOperand]


class _ArccoshOfOneMore(torch.autograd.Function):
    """Compute arccosh(1 + p) = log1p(p + sqrt(p (p + 2))) and its derivative in one pass.

    The formula keeps the digits of a small p. A p below EPS is rounding between points that
    coincide: it is raised to EPS and gets no gradient.
    """

    @staticmethod
    def forward(ctx, p: Tensor) -> Tensor:
        p = p.clamp(min=EPS)
        root = (p + 2).mul_(p).sqrt_()  # the derivative is 1 / root
        ctx.save_for_backward(root)
        return root.add(p).log1p_()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (root,) = ctx.saved_tensors
        return torch.where(root > (2 * EPS) ** 0.5 * 1.01, gradient / root, 0.0)


def lift_tangents(v: Tensor, r: float) -> tuple[Tensor, Tensor]:
    """Map tangent vectors (..., D) onto the hyperboloid, as `expmap0` and `_hyperboloid` would.

    Vectors are clipped at float32's longest in every precision.

    With angle 2 sqrt(r) |v| this returns x = sinh(angle) v / |v| (..., D) and the height
    x0 - 1 = 2 sinh(angle / 2)^2 (..., 1).
    """
    length = v.norm(dim=-1, keepdim=True).clamp(min=EPS**0.5)
    half = r**0.5 * length.clamp(max=max_tangent_norm(r))
    return (2 * half).sinh() / length * v, 2 * half.sinh().square()


def lifted_norms(_x: Tensor, height: Tensor, r: float) -> Tensor:
    """Return |z|, (N,), of the points of the ball at these heights x0 - 1 on the hyperboloid."""
    return (height / (height + 2) / r).clamp(min=EPS).sqrt()[:, 0]


def einstein_midpoints(lifted: Tensor, groups: Tensor, count: int) -> Tensor:
    """Return HypAvg, the Einstein midpoint, of each group as a lifted point (count, D + 1).

    lifted: (B, D + 1), from `to_klein_sum`; groups: (B,) int64, with every number of 0..count-1 in
    it. The midpoint is the group's sum, scaled back to the hyperboloid.
    """
    sums = lifted.new_zeros(count, lifted.shape[-1]).index_add(0, groups, lifted)
    signs = sums.new_full((sums.shape[-1],), -1.0)
    signs[-1] = 1.0
    return sums * (sums.square() @ signs).clamp(min=EPS).rsqrt()[:, None]


def to_klein_sum(z: Tensor, r: float) -> Tensor:
    """Return the terms (..., D + 1) of an Einstein midpoint of points (..., D), in float64.

    They are (sqrt(r) g k, g). In Klein coordinates k = 2z / (1 + r|z|^2), with Lorentz factor
    g = 1 / sqrt(1 - r|k|^2), the midpoint is sum(g k) / sum(g). In terms of z the factor is
    g = (1 + r|z|^2) / (1 - r|z|^2), so that g k = 2z / (1 - r|z|^2), with no root at all.
    1 - r|k|^2 is the square of the distance to the rim, which float32 cannot hold. The pair is also
    the point (x, x0) of the hyperboloid x0^2 - |x|^2 = 1.
    """
    x, height = _hyperboloid(z.double(), r)
    return torch.cat([x, 1 + height], dim=-1)


def _hyperboloid(z: Tensor, r: float) -> tuple[Tensor, Tensor]:
    """Lift points to x = 2 sqrt(r) z / (1 - r|z|^2) and the height 2 r|z|^2 / (1 - r|z|^2)."""
    rzz = r * z.square().sum(-1, keepdim=True)
    double = 2 / (1 - rzz)
    return r**0.5 * double * z, double * rzz


def from_klein_sum(lifted: Tensor, r: float) -> Tensor:
    """Return the Einstein midpoint (..., D) of a (weighted) sum (..., D + 1) of `to_klein_sum`s.

    k = sum(g k) / sum(g), taken back to z = k / (1 + sqrt(1 - r|k|^2)).
    """
    klein = lifted[..., :-1] / lifted[..., -1:]  # times sqrt(r)
    rkk = klein.square().sum(-1, keepdim=True)
    return klein / (r**0.5 * (1 + torch.sqrt(torch.clamp(1 - rkk, min=EPS))))


def hyperbolic_bound(eta: float, r: float, scale: float, siblings: int = 2) -> float:
    """Return the largest margin that `siblings` texts of norm at most `eta` can have all at once.

    Logits are -scale d. With one image for each text, wherever it lies, neither the least nor the
    mean of the margins is larger. Raises ValueError as `sibling_distance` does.
    """
    return scale * sibling_distance(eta, r, siblings)


def sibling_distance(eta: float, r: float, siblings: int, half_angle: float = pi / 2) -> float:
    """Return the largest possible mean distance between `siblings` points of norm at most `eta`.

    It is also the largest possible smallest distance, the edge of the simplex:
    (2 / sqrt(r)) arsinh(sqrt(2K / (K - 1)) sqrt(r) eta / (1 - r eta^2)), for two points
    (4 / sqrt(r)) artanh(sqrt(r) eta). Where the points lie within `half_angle` (radians) of one
    direction, all at the norm `eta`, the argument of arsinh has a factor sin(half_angle); from a
    right angle on the cone costs nothing. r = 0 is the flat limit, d(u, v) = 2 |u - v|. Raises
    ValueError for fewer than two siblings and for a norm outside [0, 1/sqrt(r)).
    """
    if siblings < 2:
        raise ValueError(
            f"{siblings} siblings have no distance between them; there must be at least 2"
        )
    share = sqrt(r) * eta
    if not (eta >= 0 and share < 1):
        raise ValueError(
            f"norm {eta} is outside the ball of curvature {-r:g}; it must be in [0, 1/sqrt({r:g}))"
        )
    edge = eta * sin(min(half_angle, pi / 2)) * sqrt(2 * siblings / (siblings - 1))
    return 2 / sqrt(r) * asinh(sqrt(r) * edge / ((1 - share) * (1 + share))) if r else 2 * edge


def euclidean_bound(eta: float, scale: float, siblings: int = 2) -> float:
    """Return the largest margin that `siblings` texts can have all at once, by inner products.

    Logits are scale times the inner product of texts and images of norm at most `eta`. The bound
    is scale eta^2 K / (K - 1), half the square of the straight edge of the simplex. Raises
    ValueError as `sibling_distance` does.
    """
    sibling_distance(eta, 0, siblings)  # refuses what is no norm, and a text alone
    return scale * eta**2 * siblings / (siblings - 1)
