"""How embeddings become logits: by angle, or by distance in a ball or a flat space."""

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from hierclip import hyperbolic
from hierclip.errors import HierclipError, no_such


def at_least_float32(x: Tensor) -> Tensor:
    """Convert to at least float32: less is too coarse for the ball."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass(frozen=True)
class CosineHead:
    """CLIP's own head: logits are `scale` times the cosine."""

    scale: float

    def image_points(self, embeddings: Tensor) -> Tensor:
        """Return the points (N, D) of image embeddings."""
        return F.normalize(at_least_float32(embeddings), dim=-1)

    def text_points(self, embeddings: Tensor, level: int, top: int) -> Tensor:
        """Return the points (K, D) of the text embeddings of a level of 0..top."""
        return F.normalize(at_least_float32(embeddings), dim=-1)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return (N, K) float32 from image points (N, D) and text points (K, D)."""
        return self.scale * images @ texts.T


@dataclass(frozen=True)
class PoincareHead:
    """Logits are -tau d in the Poincare ball of curvature -r.

    The tangent vector of an image has length `image_radius`; that of a text falls in even steps
    from `text_radius` at the leaves to `top_radius` at the coarsest level: the prescribed depth.
    Where `norms` is "fixed", embeddings give directions only. Where it is "free", the length is
    multiplied by 2n / (n + n0), n being the embedding's own norm and n0 the typical one before
    fine-tuning (`image_norm`, `text_norm`), so that depth is learned; the factor rises with n and
    stays below 2.
    """

    curvature: float
    image_radius: float
    text_radius: float
    top_radius: float
    tau: float
    norms: Literal["fixed", "free"] = "fixed"
    image_norm: float = 1.0
    text_norm: float = 1.0

    def tangents(self, embeddings: Tensor, radius: float | Tensor, typical: float) -> Tensor:
        """Return tangent vectors (..., D) of length `radius`, or around it where norms are free."""
        embeddings = at_least_float32(embeddings)
        if self.norms == "fixed":
            return radius * F.normalize(embeddings, dim=-1)
        return 2 * radius * embeddings / (embeddings.norm(dim=-1, keepdim=True) + typical)

    def image_tangents(self, embeddings: Tensor) -> Tensor:
        return self.tangents(embeddings, self.image_radius, self.image_norm)

    def text_tangents(self, embeddings: Tensor, share: float | Tensor) -> Tensor:
        """Return the tangent vectors of texts (K, D).

        share: of the way from the leaves to the coarsest level, for all texts or for each, (K, 1).
        """
        radius = (1 - share) * self.text_radius + share * self.top_radius
        return self.tangents(embeddings, radius, self.text_norm)

    def image_points(self, embeddings: Tensor) -> Tensor:
        return hyperbolic.expmap0(self.image_tangents(embeddings), self.curvature)

    def text_points(self, embeddings: Tensor, level: int, top: int) -> Tensor:
        tangents = self.text_tangents(embeddings, level / top if top else 0.0)
        return hyperbolic.expmap0(tangents, self.curvature)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        return -self.tau * hyperbolic.pairwise_distance(images, texts, self.curvature)


# At r = 1e-6 a distance between points of norm 2 is 2 |u - v| up to a share of 1e-6, the rounding
# of float32; a smaller r would lose small distances in `hyperbolic.EPS`.
FLAT_CURVATURE = 1e-6


@dataclass(frozen=True)
class EuclideanHead(PoincareHead):
    """The limit of `PoincareHead` as r goes to 0, where d(u, v) is 2 |u - v|.

    Whatever curvature it is given, it has FLAT_CURVATURE.
    """

    def __post_init__(self):
        object.__setattr__(self, "curvature", FLAT_CURVATURE)


Head = CosineHead | PoincareHead
HEADS = {"cosine": CosineHead, "poincare": PoincareHead, "euclidean": EuclideanHead}


def head_to_dict(head: Head) -> dict:
    """Return a head as JSON can hold it."""
    kinds = {cls: kind for kind, cls in HEADS.items()}
    return {"kind": kinds[type(head)]} | vars(head)


def head_from_dict(entries: dict) -> Head:
    """Make the head of `head_to_dict`. Raises HierclipError for an unknown kind or number."""
    kind = entries.get("kind")
    if kind not in HEADS:
        raise HierclipError(no_such("head", kind, HEADS))
    numbers = {name: value for name, value in entries.items() if name != "kind"}
    known = [field.name for field in fields(HEADS[kind])]
    odd = {
        name: value
        for name, value in numbers.items()
        if name not in known
        or (name != "norms" and not (isinstance(value, int | float) and 0 < value < float("inf")))
    }
    if odd:
        written = ", ".join(f"{name} {value!r}" for name, value in odd.items())
        raise HierclipError(
            f"a {kind} head has no {written}; it has {', '.join(known)}, numbers above 0"
        )
    return HEADS[kind](**numbers)
