"""Other ways to the same model's gradient: to see whether its own hides something."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from hierclip.hyperbolic import EPS
from hierclip.model import Classifier, CosineHead, EuclideanHead, PoincareHead


class Unclamped(PoincareHead):
    """The ball's head with nothing kept from the rim: points stay tangent vectors, distances are the hyperboloid's.

    d = (2 / sqrt r) arsinh(sqrt((x0 y0 - <x, y> - 1) / 2)), with x0 = cosh(2 sqrt(r) |v|), in float64.
    """

    def place(self, tangents: Tensor) -> Tensor:
        return tangents

    def pairwise_distance(self, u: Tensor, v: Tensor) -> Tensor:
        (x0, x), (y0, y) = self._hyperboloid(u), self._hyperboloid(v)
        inner = x0 @ y0.T - x @ y.T
        return 2 / self.curvature**0.5 * torch.asinh(((inner - 1).clamp(min=0) / 2 + EPS).sqrt())

    def _hyperboloid(self, tangents: Tensor) -> tuple[Tensor, Tensor]:
        v = tangents.double()
        length = v.square().sum(-1, keepdim=True).add(EPS).sqrt()
        angle = 2 * self.curvature**0.5 * length
        return torch.cosh(angle), torch.sinh(angle) * v / length

    def tangents_of(self, points: Tensor) -> Tensor:
        """Where `expmap0` has them from: artanh(sqrt(r) |z|) z / (sqrt(r) |z|)."""
        z = points.double()
        share = self.curvature**0.5 * z.square().sum(-1, keepdim=True).add(EPS).sqrt()
        return (torch.atanh(share.clamp(max=1 - 1e-12)) / share * z).to(points.dtype)


def unclamped(classifier: Classifier) -> Classifier | None:
    """The same model without clamps; None where it has none to leave out."""
    head = classifier.head
    if not isinstance(head, PoincareHead) or isinstance(head, EuclideanHead | Unclamped):
        return None
    free = Unclamped(**vars(head))
    return Classifier(classifier.encoder, free, [free.tangents_of(texts) for texts in classifier.text_points])


def cosine(classifier: Classifier) -> Classifier | None:
    """The same encoder and the texts' directions, read by cosine; None where that is what the model does."""
    if isinstance(classifier.head, CosineHead):
        return None
    return Classifier(classifier.encoder, CosineHead(20.0), [F.normalize(t, dim=-1) for t in classifier.text_points])


SURROGATES: dict[str, Callable[[Classifier], Classifier | None]] = {"unclamped": unclamped, "cosine": cosine}
