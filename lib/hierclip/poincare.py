"""The Poincare ball D = {z : r |z|^2 < 1} of sectional curvature -r, as pure functions on tensors.

Points are (..., D); r > 0 is a number, or a tensor of no dimensions where it is learned. float32 unless the caller
gives float64. Norm is depth: near the centre general, near the rim specific.
Formulas: Ganea et al., Hyperbolic Neural Networks (2018), section 2;
the Einstein midpoint: Gulcehre et al., Hyperbolic Attention Networks (2019), section 3.2.
"""

import torch
from torch import Tensor

Scalar = float | Tensor

# sqrt(r) |z| never exceeds 1 - RIM: beyond, 1 - r |z|^2 has no correct digit left.
RIM = {torch.float32: 1e-4, torch.float64: 1e-9}
TINY = 1e-12  # under a root or a quotient: keeps the gradient finite where points coincide


def exp0(v: Tensor, r: Scalar) -> Tensor:
    """The point that tangent vectors (..., D) at the centre lead to: tanh(sqrt(r) |v|) v / (sqrt(r) |v|).

    Longer vectors than `longest` stop at the rim, where only their direction has a gradient.
    """
    length = v.square().sum(-1, keepdim=True).add(TINY).sqrt()
    bounded = length.clamp(max=longest(r, v.dtype))
    return v * (torch.tanh(r**0.5 * bounded) / (r**0.5 * length))


def longest(r: Scalar, dtype: torch.dtype = torch.float32) -> Scalar:
    """The length of the longest tangent vector that `exp0` takes as it is."""
    return float(torch.atanh(torch.tensor(1 - RIM[dtype], dtype=torch.float64))) / r**0.5


def at_rim(v: Tensor, r: Scalar) -> Tensor:
    """Which tangent vectors (..., D) `exp0` has to shorten: (...) bool. Their radial gradient is zero."""
    return v.norm(dim=-1) > longest(r, v.dtype)


def distance(u: Tensor, v: Tensor, r: Scalar) -> Tensor:
    """d(u, v) between points that broadcast, (..., D) and (..., D): (...)."""
    return _distance((u - v).square().sum(-1), u.square().sum(-1), v.square().sum(-1), r)


def pairwise_distance(u: Tensor, v: Tensor, r: Scalar) -> Tensor:
    """d between every point of u (B, D) and of v (K, D): (B, K), in B x K memory.

    |u - v|^2 comes from the Gram matrix; its rounding, of the order of 1e-7, is what a float32 distance
    between nearly equal points rests on.
    """
    uu, vv = u.square().sum(-1, keepdim=True), v.square().sum(-1)  # (B, 1), (K,)
    return _distance((uu + vv - 2 * u @ v.T).clamp(min=0), uu, vv, r)


def _distance(gap: Tensor, uu: Tensor, vv: Tensor, r: Scalar) -> Tensor:
    """(2 / sqrt(r)) arsinh(sqrt(q)) with q = r |u - v|^2 / ((1 - r|u|^2)(1 - r|v|^2)).

    The same as (1 / sqrt(r)) arccosh(1 + 2 q), since cosh 2x = 1 + 2 sinh^2 x; but where arccosh loses half
    the digits of a small q, arsinh keeps them all.
    """
    q = r * gap / ((1 - r * uu) * (1 - r * vv))
    return 2 / r**0.5 * torch.asinh(torch.sqrt(q + TINY))


def group_midpoints(z: Tensor, groups: Tensor, count: int, r: Scalar) -> Tensor:
    """HypAvg, the Einstein midpoint of each group of points: (count, D).

    z: (B, D) points; groups: (B,) int64, every one of 0..count-1 in it.
    """
    lifted = lift(z, r)
    return lower(lifted.new_zeros(count, lifted.shape[-1]).index_add(0, groups, lifted), r).to(z.dtype)


def lift(z: Tensor, r: Scalar) -> Tensor:
    """(g k, g) of points (..., D), in float64: what an Einstein midpoint sums, (..., D + 1).

    In Klein coordinates k = 2z / (1 + r|z|^2), with Lorentz factor g = 1 / sqrt(1 - r|k|^2), the midpoint is
    sum(g k) / sum(g). In terms of z the factor is g = (1 + r|z|^2) / (1 - r|z|^2), so that g k = 2z / (1 - r|z|^2),
    with no root at all. 1 - r|k|^2 is the square of what is left to the rim: float32 has lost it.
    """
    z = z.double()
    rzz = r * z.square().sum(-1, keepdim=True)
    return torch.cat([2 * z, 1 + rzz], dim=-1) / (1 - rzz)


def lower(lifted: Tensor, r: Scalar) -> Tensor:
    """The Einstein midpoint (..., D) of points whose `lift` adds up to (..., D + 1), each times a weight if there are
    weights: k = sum(g k) / sum(g) taken back to z = k / (1 + sqrt(1 - r|k|^2)).
    """
    klein = lifted[..., :-1] / lifted[..., -1:]
    rkk = r * klein.square().sum(-1, keepdim=True)
    return klein / (1 + torch.sqrt(torch.clamp(1 - rkk, min=TINY)))
