"""What a budget means in each norm: its size, the way back into it, the steepest step, a point drawn from it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-12


@dataclass(frozen=True)
class Norm:
    """For perturbations (N, 3, H, W).

    size: to (N,). inside: scaled or cut to a size of at most eps. steepest: a gradient's direction, of size 1.
    noise: a perturbation of size at most 1 from uniform numbers in [-1, 1].
    """

    size: Callable[[Tensor], Tensor]
    inside: Callable[[Tensor, float], Tensor]
    steepest: Callable[[Tensor], Tensor]
    noise: Callable[[Tensor], Tensor]

    def project(self, x: Tensor, images: Tensor, eps: float) -> Tensor:
        """x back into the budget around `images` and into [0, 1]; the second undoes nothing of the first."""
        return (images + self.inside(x - images, eps)).clamp(0, 1)

    def start(self, images: Tensor, eps: float, uniform: Tensor) -> Tensor:
        """Images with noise inside the budget and [0, 1], made of as many uniform numbers in [0, 1]."""
        return (images + eps * self.noise(2 * uniform - 1)).clamp(0, 1)


def l2_size(delta: Tensor) -> Tensor:
    return delta.flatten(1).norm(dim=1)


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _l2_unit(delta: Tensor) -> Tensor:
    """Scaled to its largest entry first: squares of a confident model's gradients are too small for float32."""
    delta = delta / _per_image(delta.flatten(1).abs().amax(1).clamp(min=torch.finfo(delta.dtype).tiny))
    return delta / _per_image(l2_size(delta).clamp(min=EPS))


NORMS: dict[str, Norm] = {
    "Linf": Norm(
        size=lambda delta: delta.flatten(1).abs().amax(1),
        inside=lambda delta, eps: delta.clamp(-eps, eps),
        steepest=torch.sign,
        noise=lambda uniform: uniform,
    ),
    "L2": Norm(
        size=l2_size,
        inside=lambda delta, eps: delta * _per_image((eps / l2_size(delta).clamp(min=EPS)).clamp(max=1)),
        steepest=_l2_unit,
        noise=lambda uniform: _l2_unit(uniform.clamp(-1 + 1e-6, 1 - 1e-6).erfinv()),  # normal numbers
    ),
}
