"""How an image embedding and the texts of a level become logits: by angle, or by distance in a ball or a flat space."""

from dataclasses import dataclass, fields, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hierclip import hyperbolic
from hierclip.errors import HierclipError
from hierclip.hyperbolic import Scalar


def full(x: Tensor) -> Tensor:
    """At least float32: the ball has no room for less."""
    return x if x.dtype == torch.float64 else x.float()


class Head(Protocol):
    def image_points(self, embeddings: Tensor) -> Tensor:
        """Where images stand: (N, D)."""
        ...

    def text_points(self, embeddings: Tensor, level: int, top: int) -> Tensor:
        """Where the texts of a level of 0..top stand: (K, D)."""
        ...

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """(N, K) float32 from image points (N, D) and text points (K, D)."""
        ...


@dataclass(frozen=True)
class CosineHead:
    """CLIP's own: logits are `scale` times the cosine."""

    scale: Scalar

    def image_points(self, embeddings: Tensor) -> Tensor:
        return F.normalize(full(embeddings), dim=-1)

    def text_points(self, embeddings: Tensor, level: int, top: int) -> Tensor:
        return F.normalize(full(embeddings), dim=-1)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        return self.scale * images @ texts.T


@dataclass(frozen=True)
class PoincareHead:
    """Logits are -tau d in the Poincare ball of curvature -r.

    A tangent vector has length `image_radius` for an image, and for a text a length that falls in even steps from
    `text_radius` at the leaves to `top_radius` at the coarsest level: the depth that is asked for. Where `norms` is
    "fixed" that is all, and embeddings give directions only. Where it is "free" the length is multiplied by
    2n / (n + n0), n being the embedding's own norm and n0 the typical one before fine-tuning (`image_norm`,
    `text_norm`), so that depth is learned; the factor rises with n and stays below 2, short of the rim.
    """

    curvature: Scalar
    image_radius: Scalar
    text_radius: Scalar
    top_radius: Scalar
    tau: Scalar
    norms: Literal["fixed", "free"] = "fixed"
    image_norm: float = 1.0
    text_norm: float = 1.0

    def tangents(self, embeddings: Tensor, radius: Scalar, typical: float) -> Tensor:
        """Tangent vectors at the centre, (..., D): of length `radius`, or around it where norms are free."""
        embeddings = full(embeddings)
        if self.norms == "fixed":
            return radius * F.normalize(embeddings, dim=-1)
        return 2 * radius * embeddings / (embeddings.norm(dim=-1, keepdim=True) + typical)

    def image_tangents(self, embeddings: Tensor) -> Tensor:
        return self.tangents(embeddings, self.image_radius, self.image_norm)

    def text_tangents(self, embeddings: Tensor, level: int, top: int) -> Tensor:
        return self.text_tangents_at(embeddings, level / top if top else 0.0)

    def text_tangents_at(self, embeddings: Tensor, share: Scalar) -> Tensor:
        """Give the tangent vectors of texts (K, D) at a share of the way from the leaves to the coarsest level, or at
        one of its own for each (K, 1).
        """
        return self.tangents(embeddings, (1 - share) * self.text_radius + share * self.top_radius, self.text_norm)

    def image_points(self, embeddings: Tensor) -> Tensor:
        return self.place(self.image_tangents(embeddings))

    def text_points(self, embeddings: Tensor, level: int, top: int) -> Tensor:
        return self.place(self.text_tangents(embeddings, level, top))

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        return -self.tau * self.pairwise_distance(images, texts)

    def place(self, tangents: Tensor) -> Tensor:
        """expmap0: the points that tangent vectors at the centre lead to."""
        return hyperbolic.expmap0(tangents, self.curvature)

    def pairwise_distance(self, u: Tensor, v: Tensor) -> Tensor:
        return hyperbolic.pairwise_distance(u, v, self.curvature)

    def lift_tangents(self, tangents: Tensor) -> tuple[Tensor, Tensor]:
        """Give what `lift` makes of the points that tangent vectors lead to: (..., D), and the last entry less 1."""
        return hyperbolic.lift_tangents(tangents, self.curvature)

    def factors(self, x: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
        """Give what distances are made of, for points that are the one or the other: (N, D + 2) each."""
        return hyperbolic.left_factor(x, height), hyperbolic.right_factor(x, height)

    def distance_of_factors(self, left: Tensor, right: Tensor) -> Tensor:
        """Give the distances (N, K) of the points of which these are the factors."""
        return hyperbolic.distance_of_factors(left, right, self.curvature)

    def norms_of(self, x: Tensor, height: Tensor) -> Tensor:
        """Give the norms (N,) of the points that were lifted."""
        return hyperbolic.norm_at_height(height, self.curvature)[:, 0]

    def midpoints(self, lifted: Tensor, groups: Tensor, count: int) -> Tensor:
        """HypAvg of each group of lifted points: (count, D + 1), lifted too."""
        return hyperbolic.einstein_midpoints(lifted, groups, count)

    def to_klein_sum(self, points: Tensor) -> Tensor:
        """What the weighted sums go over whose `lower` is a midpoint: (..., D) to (..., D + 1)."""
        return hyperbolic.to_klein_sum(points, self.curvature)

    def from_klein_sum(self, lifted: Tensor) -> Tensor:
        """The midpoint (..., D) of weighted sums (..., D + 1)."""
        return hyperbolic.from_klein_sum(lifted, self.curvature)

    def is_clipped(self, tangents: Tensor) -> Tensor:
        """Which tangent vectors `place` has to shorten: (...) bool."""
        return hyperbolic.is_clipped(tangents, self.curvature)

    def points_are_clipped(self, points: Tensor) -> Tensor:
        """Which points stand where `place` puts what it shortens: (...) bool."""
        return self.curvature**0.5 * points.norm(dim=-1) > 1 - 1.01 * hyperbolic.BALL_EPS[torch.float32]


@dataclass(frozen=True)
class EuclideanHead(PoincareHead):
    """The same without curvature: what `PoincareHead` tends to as r goes to 0, where d(u, v) is 2 |u - v|."""

    def place(self, tangents: Tensor) -> Tensor:
        return tangents

    def pairwise_distance(self, u: Tensor, v: Tensor) -> Tensor:
        return self.distance_of_factors(self.factors(u, u[:, :1])[0], self.factors(v, v[:, :1])[1])

    def lift_tangents(self, tangents: Tensor) -> tuple[Tensor, Tensor]:
        return tangents, torch.zeros_like(tangents[..., :1])

    def factors(self, x: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
        square, one = x.square().sum(-1, keepdim=True), torch.ones_like(height)
        return torch.cat([-2 * x, square, one], dim=1), torch.cat([x, one, square], dim=1)

    def distance_of_factors(self, left: Tensor, right: Tensor) -> Tensor:
        return 2 * (left @ right.T).clamp(min=0).add(hyperbolic.EPS).sqrt()

    def norms_of(self, x: Tensor, height: Tensor) -> Tensor:
        return x.norm(dim=-1)

    def midpoints(self, lifted: Tensor, groups: Tensor, count: int) -> Tensor:
        sums = lifted.new_zeros(count, lifted.shape[-1]).index_add(0, groups, lifted)
        return sums / sums[:, -1:]

    def to_klein_sum(self, points: Tensor) -> Tensor:
        return torch.cat([points, torch.ones_like(points[..., :1])], dim=-1).double()

    def from_klein_sum(self, lifted: Tensor) -> Tensor:
        return lifted[..., :-1] / lifted[..., -1:]

    def is_clipped(self, tangents: Tensor) -> Tensor:
        return torch.zeros_like(tangents[..., 0], dtype=torch.bool)

    def points_are_clipped(self, points: Tensor) -> Tensor:
        return self.is_clipped(points)


HEADS = {"cosine": CosineHead, "poincare": PoincareHead, "euclidean": EuclideanHead}


class LearnedHead(nn.Module):
    """A head some of whose numbers are trained, each through its logarithm, so that it stays positive. Float32."""

    def __init__(self, head: Head, learned: tuple[str, ...] = ()):
        super().__init__()
        self.start = head
        self.logs = nn.ParameterDict({name: torch.tensor(float(getattr(head, name))).log() for name in learned})

    def head(self) -> Head:
        """The head with the numbers as they are now, differentiable in those that are learned."""
        return replace(self.start, **{name: log.exp() for name, log in self.logs.items()})  # pyright: ignore

    def fixed(self) -> Head:
        """The same in plain numbers."""
        return replace(self.start, **{name: float(log.detach().exp()) for name, log in self.logs.items()})  # pyright: ignore


def head_to_dict(head: Head) -> dict:
    """A head as JSON can hold it."""
    (kind,) = (kind for kind, cls in HEADS.items() if type(head) is cls)
    return {"kind": kind} | vars(head)


def head_from_dict(entries: dict) -> Head:
    """The head that `head_to_dict` wrote. Raises HierclipError, listing the known kinds, for another."""
    entries = dict(entries)
    kind = entries.pop("kind", None)
    if kind not in HEADS:
        raise HierclipError(f"no head {kind!r}; known are {', '.join(HEADS)}")
    if unknown := set(entries) - {field.name for field in fields(HEADS[kind])}:
        raise HierclipError(f"a {kind} head has no {', '.join(sorted(unknown))}")
    return HEADS[kind](**entries)
