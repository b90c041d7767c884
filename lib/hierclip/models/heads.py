"""How embeddings become logits: by angle, or by distance in a ball or a flat space."""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hierclip import hyperbolic
from hierclip.errors import HierclipError
from hierclip.hyperbolic import Scalar


def at_least_float32(x: Tensor) -> Tensor:
    """Convert to at least float32: less is too coarse for the ball."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass(frozen=True)
class CosineHead:
    """CLIP's own head: logits are `scale` times the cosine."""

    scale: Scalar

    def image_points(self, embeddings: Tensor) -> Tensor:
        """Return the points (N, D) of image embeddings."""
        return F.normalize(at_least_float32(embeddings), dim=-1)

    def text_points(self, embeddings: Tensor, level: int, top: int) -> Tensor:
        """Return the points (K, D) of the text embeddings of a level of 0..top."""
        return F.normalize(at_least_float32(embeddings), dim=-1)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return (N, K) float32 from image points (N, D) and text points (K, D)."""
        return self.scale * images @ texts.T


class Flat:
    """The functions of `hyperbolic` in their limit as r goes to 0, where d(u, v) is 2 |u - v|."""

    @staticmethod
    def expmap0(v: Tensor, r: Scalar) -> Tensor:
        return v

    @staticmethod
    def is_clipped(v: Tensor, r: Scalar) -> Tensor:
        return torch.zeros_like(v[..., 0], dtype=torch.bool)

    points_are_clipped = is_clipped

    @staticmethod
    def pairwise_distance(u: Tensor, v: Tensor, r: Scalar) -> Tensor:
        left, right = Flat.left_factor(u, u[:, :1]), Flat.right_factor(v, v[:, :1])
        return Flat.distance_of_factors(left, right, r)

    @staticmethod
    def left_factor(x: Tensor, height: Tensor) -> Tensor:
        square = x.square().sum(-1, keepdim=True)
        return torch.cat([-2 * x, square, torch.ones_like(height)], dim=1)

    @staticmethod
    def right_factor(x: Tensor, height: Tensor) -> Tensor:
        square = x.square().sum(-1, keepdim=True)
        return torch.cat([x, torch.ones_like(height), square], dim=1)

    @staticmethod
    def distance_of_factors(left: Tensor, right: Tensor, r: Scalar) -> Tensor:
        return 2 * (left @ right.T).clamp(min=0).add(hyperbolic.EPS).sqrt()

    @staticmethod
    def lift_tangents(v: Tensor, r: Scalar) -> tuple[Tensor, Tensor]:
        return v, torch.zeros_like(v[..., :1])

    @staticmethod
    def lifted_norms(x: Tensor, height: Tensor, r: Scalar) -> Tensor:
        return x.norm(dim=-1)

    @staticmethod
    def einstein_midpoints(lifted: Tensor, groups: Tensor, count: int) -> Tensor:
        sums = lifted.new_zeros(count, lifted.shape[-1]).index_add(0, groups, lifted)
        return sums / sums[:, -1:]

    @staticmethod
    def to_klein_sum(z: Tensor, r: Scalar) -> Tensor:
        return torch.cat([z, torch.ones_like(z[..., :1])], dim=-1).double()

    @staticmethod
    def from_klein_sum(lifted: Tensor, r: Scalar) -> Tensor:
        return lifted[..., :-1] / lifted[..., -1:]


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

    space: ClassVar[Any] = hyperbolic  # the functions of its points and distances
    curvature: Scalar
    image_radius: Scalar
    text_radius: Scalar
    top_radius: Scalar
    tau: Scalar
    norms: Literal["fixed", "free"] = "fixed"
    image_norm: float = 1.0
    text_norm: float = 1.0

    def tangents(self, embeddings: Tensor, radius: Scalar, typical: float) -> Tensor:
        """Return tangent vectors (..., D) of length `radius`, or around it where norms are free."""
        embeddings = at_least_float32(embeddings)
        if self.norms == "fixed":
            return radius * F.normalize(embeddings, dim=-1)
        return 2 * radius * embeddings / (embeddings.norm(dim=-1, keepdim=True) + typical)

    def image_tangents(self, embeddings: Tensor) -> Tensor:
        return self.tangents(embeddings, self.image_radius, self.image_norm)

    def text_tangents(self, embeddings: Tensor, share: Scalar) -> Tensor:
        """Return the tangent vectors of texts (K, D).

        share: of the way from the leaves to the coarsest level, for all texts or for each, (K, 1).
        """
        radius = (1 - share) * self.text_radius + share * self.top_radius
        return self.tangents(embeddings, radius, self.text_norm)

    def image_points(self, embeddings: Tensor) -> Tensor:
        return self.space.expmap0(self.image_tangents(embeddings), self.curvature)

    def text_points(self, embeddings: Tensor, level: int, top: int) -> Tensor:
        tangents = self.text_tangents(embeddings, level / top if top else 0.0)
        return self.space.expmap0(tangents, self.curvature)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        return -self.tau * self.space.pairwise_distance(images, texts, self.curvature)


@dataclass(frozen=True)
class EuclideanHead(PoincareHead):
    """The limit of `PoincareHead` as r goes to 0, where d(u, v) is 2 |u - v|."""

    space: ClassVar[Any] = Flat


Head = CosineHead | PoincareHead
HEADS = {"cosine": CosineHead, "poincare": PoincareHead, "euclidean": EuclideanHead}


class LearnedHead(nn.Module):
    """A head with trained numbers, each through its logarithm, so that it stays positive."""

    def __init__(self, head: Head, learned: tuple[str, ...] = ()):
        super().__init__()
        self.start = head
        self.logs = nn.ParameterDict(
            {name: torch.tensor(float(getattr(head, name))).log() for name in learned}
        )

    def head(self) -> Head:
        """Return the head with its numbers as they are now, differentiable in the learned ones."""
        return replace(self.start, **{name: log.exp() for name, log in self.logs.items()})

    def fixed(self) -> Head:
        """Return the same head in plain numbers."""
        return replace(
            self.start, **{name: float(log.detach().exp()) for name, log in self.logs.items()}
        )


def head_to_dict(head: Head) -> dict:
    """Return a head as JSON can hold it."""
    kinds = {cls: kind for kind, cls in HEADS.items()}
    return {"kind": kinds[type(head)]} | vars(head)


def head_from_dict(entries: dict) -> Head:
    """Make the head of `head_to_dict`. Raises HierclipError for an unknown kind or number."""
    kind = entries.get("kind")
    if kind not in HEADS:
        raise HierclipError(f"no head {kind!r}; known are {', '.join(HEADS)}")
    numbers = {name: value for name, value in entries.items() if name != "kind"}
    unknown = sorted(set(numbers) - {field.name for field in fields(HEADS[kind])})
    if unknown:
        raise HierclipError(f"a {kind} head has no {', '.join(unknown)}")
    return HEADS[kind](**numbers)
