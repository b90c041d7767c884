"""What a budget means in each norm: size, projection, steepest step and random perturbation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-12


@dataclass(frozen=True)
class Norm:
    """A norm of perturbations (N, 3, H, W).

    size: of each perturbation, (N,). inside: the perturbation clipped or scaled to a size of at
    most eps. steepest: a gradient's direction, of size 1. noise: a perturbation of size at most 1
    from uniform numbers in [-1, 1].
    """

    size: Callable[[Tensor], Tensor]
    inside: Callable[[Tensor, float], Tensor]
    steepest: Callable[[Tensor], Tensor]
    noise: Callable[[Tensor], Tensor]

    def project(self, x: Tensor, images: Tensor, eps: float) -> Tensor:
        """Move x into the budget around `images`, then into [0, 1], which stays in the budget."""
        return (images + self.inside(x - images, eps)).clamp(0, 1)

    def start(self, images: Tensor, eps: float, uniform: Tensor) -> Tensor:
        """Return random points in the budget and [0, 1], from uniform numbers in [0, 1]."""
        return (images + eps * self.noise(2 * uniform - 1)).clamp(0, 1)


def per_image(values: Tensor) -> Tensor:
    """Reshape (N,) so that it broadcasts over images: (N, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


def l2_size(delta: Tensor) -> Tensor:
    """Return the L2 norm (N,) of perturbations (N, 3, H, W)."""
    return delta.flatten(1).norm(dim=1)


def _l2_unit(delta: Tensor) -> Tensor:
    # Scaled by the largest entry first: a confident model's gradients have squares below float32.
    largest = delta.flatten(1).abs().amax(1).clamp(min=torch.finfo(delta.dtype).tiny)
    delta = delta / per_image(largest)
    return delta / per_image(l2_size(delta).clamp(min=EPS))


NORMS: dict[str, Norm] = {
    "Linf": Norm(
        size=lambda delta: delta.flatten(1).abs().amax(1),
        inside=lambda delta, eps: delta.clamp(-eps, eps),
        steepest=torch.sign,
        noise=lambda uniform: uniform,
    ),
    "L2": Norm(
        size=l2_size,
        inside=lambda delta, eps: (
            delta * per_image((eps / l2_size(delta).clamp(min=EPS)).clamp(max=1))
        ),
        steepest=_l2_unit,
        noise=lambda uniform: _l2_unit(uniform.clamp(-1 + 1e-6, 1 - 1e-6).erfinv()),  # Gaussian
    ),
}
