"""How an image embedding and the texts of a level become logits: by angle, or by distance in the ball."""

from dataclasses import asdict, dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import functional as F

from hierclip import poincare


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

    scale: float

    def image_points(self, embeddings: Tensor) -> Tensor:
        return F.normalize(embeddings.float(), dim=-1)

    def text_points(self, embeddings: Tensor, level: int, top: int) -> Tensor:
        return F.normalize(embeddings.float(), dim=-1)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        return self.scale * images @ texts.T


@dataclass(frozen=True)
class PoincareHead:
    """Logits are -tau d in the Poincare ball of curvature -r.

    Embeddings give directions only: an image's tangent vector has length `image_radius`, a text's at level l
    has text_radius (1 - l / 2L), so that superclasses stand nearer to the centre.
    """

    curvature: float
    image_radius: float
    text_radius: float
    tau: float

    def image_points(self, embeddings: Tensor) -> Tensor:
        return poincare.exp0(self.image_radius * F.normalize(embeddings.float(), dim=-1), self.curvature)

    def text_points(self, embeddings: Tensor, level: int, top: int) -> Tensor:
        radius = self.text_radius * (1 - level / (2 * top)) if top else self.text_radius
        return poincare.exp0(radius * F.normalize(embeddings.float(), dim=-1), self.curvature)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        return -self.tau * poincare.pairwise_distance(images, texts, self.curvature)


HEADS = {"cosine": CosineHead, "poincare": PoincareHead}


def head_to_dict(head: Head) -> dict:
    """A head as JSON can hold it."""
    (kind,) = (kind for kind, cls in HEADS.items() if isinstance(head, cls))
    return {"kind": kind, **asdict(head)}  # pyright: ignore


def head_from_dict(entries: dict) -> Head:
    """The head that `head_to_dict` wrote. Raises ValueError, listing the known kinds, for another."""
    entries = dict(entries)
    kind = entries.pop("kind", None)
    if kind not in HEADS:
        raise ValueError(f"no head {kind!r}; known are {', '.join(HEADS)}")
    return HEADS[kind](**entries)
