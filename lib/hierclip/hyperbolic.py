"""The Poincare ball D = {z : r |z|^2 < 1} of sectional curvature -r, as pure functions on tensors.

Points are (..., D); r > 0 is a number, or a tensor of no dimensions where it is learned. float32
unless the caller gives float64. Norm is depth: near the centre general, near the rim specific.
Formulas: Ganea et al., Hyperbolic Neural Networks (2018), section 2; the Einstein midpoint:
Gulcehre et al., Hyperbolic Attention Networks (2019), section 3.2.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Scalar = float | Tensor

# sqrt(r) |z| never exceeds 1 - BALL_EPS: beyond, 1 - r |z|^2 has no correct digit left.
BALL_EPS = {torch.float32: 1e-4, torch.float64: 1e-9}
EPS = 1e-12  # under a root or a quotient: keeps the gradient finite where points coincide


def expmap0(v: Tensor, r: Scalar) -> Tensor:
    """Map tangent vectors (..., D) at the centre into the ball: tanh(sqrt(r) |v|) v / (sqrt(r)
    |v|).

    Longer vectors than `max_tangent_norm` stop at the rim, where only their direction has a
    gradient.
    """
    length = v.square().sum(-1, keepdim=True).add(EPS).sqrt()
    bounded = length.clamp(max=max_tangent_norm(r, v.dtype))
    return v * (torch.tanh(r**0.5 * bounded) / (r**0.5 * length))


def max_tangent_norm(r: Scalar, dtype: torch.dtype = torch.float32) -> Scalar:
    """Return the largest norm of a tangent vector that `expmap0` does not clip."""
    return float(torch.atanh(torch.tensor(1 - BALL_EPS[dtype], dtype=torch.float64))) / r**0.5


def is_clipped(v: Tensor, r: Scalar) -> Tensor:
    """Return (...) bool: which tangent vectors (..., D) `expmap0` clips. Their radial gradient is
    zero.
    """
    return v.norm(dim=-1) > max_tangent_norm(r, v.dtype)


def distance(u: Tensor, v: Tensor, r: Scalar) -> Tensor:
    """Return d(u, v), (...), of points (..., D) that broadcast."""
    return _distance((u - v).square().sum(-1), u.square().sum(-1), v.square().sum(-1), r)


def pairwise_distance(u: Tensor, v: Tensor, r: Scalar) -> Tensor:
    """Return d between every point of u (B, D) and of v (K, D): (B, K), in B x K memory."""
    return distance_of_factors(
        left_factor(*_hyperboloid(u, r)), right_factor(*_hyperboloid(v, r)), r
    )


def left_factor(x: Tensor, height: Tensor) -> Tensor:
    """(B, D + 2) of points (x, x0) of the hyperboloid x0^2 - |x|^2 = 1, with their height x0 - 1:
    (B, D), (B, 1).
    """
    return torch.cat([-x, height, torch.ones_like(height)], dim=1)


def right_factor(x: Tensor, height: Tensor) -> Tensor:
    """(K, D + 2): what a `left_factor` is multiplied with."""
    return torch.cat([x, 1 + height, height], dim=1)


def distance_of_factors(left: Tensor, right: Tensor, r: Scalar) -> Tensor:
    """d between the points of which these are the factors: (B, K).

    d = arccosh(1 + p) / sqrt(r) with p = x0 y0 - <x, y> - 1, which is (x0 - 1) y0 + (y0 - 1) - <x,
    y>: one matrix product, in which no small number is lost beside 1. Its rounding, of the order of
    1e-7 of its terms, is what a float32 distance between nearly equal points rests on.
    """
    return _ArccoshOfOneMore.apply(left @ right.T) / r**0.5  # pyright: ignore[reportOptionalOperand]


class _ArccoshOfOneMore(torch.autograd.Function):
    """arccosh(1 + p) = log1p(p + sqrt(p (p + 2))), which keeps the digits of a small p, and its
    derivative in one pass.

    p below EPS is rounding between points that coincide: it is taken as EPS, and has no gradient.
    """

    @staticmethod
    def forward(ctx, p: Tensor) -> Tensor:
        p = p.clamp(min=EPS)
        root = (p + 2).mul_(p).sqrt_()  # what the derivative is one over
        ctx.save_for_backward(root)
        return root.add(p).log1p_()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (root,) = ctx.saved_tensors
        return torch.where(root > (2 * EPS) ** 0.5 * 1.01, gradient / root, 0.0)


def _distance(gap: Tensor, uu: Tensor, vv: Tensor, r: Scalar) -> Tensor:
    """(2 / sqrt(r)) arsinh(sqrt(q)) with q = r |u - v|^2 / ((1 - r|u|^2)(1 - r|v|^2)).

    The same as (1 / sqrt(r)) arccosh(1 + 2 q), since cosh 2x = 1 + 2 sinh^2 x; but where arccosh
    loses half the digits of a small q, arsinh keeps them all. It is written as arsinh(s) = log1p(s
    + s^2 / (1 + sqrt(1 + s^2))), which is vectorised on the CPU: torch.asinh takes five times as
    long there.
    """
    q = r * gap / ((1 - r * uu) * (1 - r * vv)) + EPS
    return 2 / r**0.5 * torch.log1p(q.sqrt() + q / (1 + (1 + q).sqrt()))


def lift_tangents(v: Tensor, r: Scalar) -> tuple[Tensor, Tensor]:
    """The points of the hyperboloid that `expmap0` and `_hyperboloid` together make of tangent
    vectors (..., D): with angle 2 sqrt(r) |v|, x = sinh(angle) v / |v| and the height x0 - 1 = 2
    sinh(angle / 2)^2: (..., D), (..., 1).
    """
    length = v.norm(dim=-1, keepdim=True).clamp(min=EPS**0.5)
    half = r**0.5 * length.clamp(max=max_tangent_norm(r))
    return (2 * half).sinh() / length * v, 2 * half.sinh().square()


def norm_at_height(height: Tensor, r: Scalar) -> Tensor:
    """|z| of a point of the ball that stands at a height x0 - 1 of the hyperboloid."""
    return (height / (height + 2) / r).clamp(min=EPS).sqrt()


def einstein_midpoints(lifted: Tensor, groups: Tensor, count: int) -> Tensor:
    """Return HypAvg, the Einstein midpoint, of each group of points as a lifted point: (count, D +
    1).

    lifted: (B, D + 1), from `to_klein_sum`; groups: (B,) int64, every one of 0..count-1 in it. The
    midpoint is the group's sum, scaled back to the hyperboloid.
    """
    sums = lifted.new_zeros(count, lifted.shape[-1]).index_add(0, groups, lifted)
    signs = sums.new_full((sums.shape[-1],), -1.0)
    signs[-1] = 1.0
    return sums * (sums.square() @ signs).clamp(min=EPS).rsqrt()[:, None]


def to_klein_sum(z: Tensor, r: Scalar) -> Tensor:
    """Return (sqrt(r) g k, g) of points (..., D), in float64: the terms of an Einstein midpoint,
    (..., D + 1).

    In Klein coordinates k = 2z / (1 + r|z|^2), with Lorentz factor g = 1 / sqrt(1 - r|k|^2), the
    midpoint is sum(g k) / sum(g). In terms of z the factor is g = (1 + r|z|^2) / (1 - r|z|^2), so
    that g k = 2z / (1 - r|z|^2), with no root at all. 1 - r|k|^2 is the square of what is left to
    the rim: float32 has lost it. This is also the point's place (x, x0) on the hyperboloid x0^2 -
    |x|^2 = 1.
    """
    x, height = _hyperboloid(z.double(), r)
    return torch.cat([x, 1 + height], dim=-1)


def _hyperboloid(z: Tensor, r: Scalar) -> tuple[Tensor, Tensor]:
    """(x, x0 - 1): 2 sqrt(r) z / (1 - r|z|^2), (..., D), and 2 r|z|^2 / (1 - r|z|^2), (..., 1)."""
    rzz = r * z.square().sum(-1, keepdim=True)
    double = 2 / (1 - rzz)
    return r**0.5 * double * z, double * rzz


def from_klein_sum(lifted: Tensor, r: Scalar) -> Tensor:
    """Return the Einstein midpoint (..., D) of a (weighted) sum (..., D + 1) of `to_klein_sum`s.

    k = sum(g k) / sum(g), taken back to z = k / (1 + sqrt(1 - r|k|^2)).
    """
    klein = lifted[..., :-1] / lifted[..., -1:]  # times sqrt(r)
    rkk = klein.square().sum(-1, keepdim=True)
    return klein / (r**0.5 * (1 + torch.sqrt(torch.clamp(1 - rkk, min=EPS))))
