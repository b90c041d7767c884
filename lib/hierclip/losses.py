"""The objectives that fine-tuning minimises and its attack maximises, and the registry of methods."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hierclip.model import CosineHead, Head, PoincareHead
from hierclip.params import FinetuneParams
from hierclip.poincare import group_midpoints

Loss = Callable[[Head, Tensor, Sequence[Tensor], Tensor], Tensor]


def leaf_cross_entropy(head: Head, embeddings: Tensor, texts: Sequence[Tensor], paths: Tensor) -> Tensor:
    """TeCoA's loss: cross-entropy of the images against the leaves' texts (Mao et al., ICLR 2023, eq. 3).

    embeddings: (B, D); texts: a level's text points (K_l, D), leaves first; paths: (B, L + 1), the node of
    each image at every level. A scalar, the mean over images.
    """
    return F.cross_entropy(head.logits(head.image_points(embeddings), texts[0]), paths[:, 0])


def level_weight(level: int, top: int) -> float:
    """w_l = 1 - l / (L + 1)."""
    return 1 - level / (top + 1)


def hita(head: PoincareHead, embeddings: Tensor, texts: Sequence[Tensor], paths: Tensor) -> Tensor:
    """Hierarchical image-text alignment: sum over l of w_l CE(softmax(-tau d(phi^l, texts of level l))).

    phi^0 are the images' points; a class's point at level l is the HypAvg of the batch's level-(l-1) points
    that share that ancestor. Arguments and value as in `leaf_cross_entropy`; each level's cross-entropy is
    the mean over its points. Source: Hierarchically Robust Zero-shot Vision-language Models (CVPR 2026).
    """
    points = head.image_points(embeddings)
    top = len(texts) - 1
    total = points.new_zeros(())
    for level in range(top + 1):
        if level:  # rows of `paths` that share an ancestor are equal from there on
            paths, groups = torch.unique(paths[:, 1:], dim=0, return_inverse=True)
            points = group_midpoints(points, groups, len(paths), head.curvature)
        loss = F.cross_entropy(head.logits(points, texts[level]), paths[:, 0])
        total = total + level_weight(level, top) * loss
    return total


@dataclass(frozen=True)
class Method:
    """What makes a method: the loss it trains and attacks, the head it is read through, what it may change."""

    label: str  # as figures and tables show it
    head: Callable[[FinetuneParams, float], Head]  # from the parameters and CLIP's own logit scale
    loss: Loss | None  # None: the model stays as it is
    rates: Callable[[FinetuneParams], tuple[float, float]] = lambda _: (0.0, 0.0)  # image encoder, text projection


def _poincare_head(params: FinetuneParams, scale: float) -> PoincareHead:
    hier = params.hier
    return PoincareHead(hier.curvature, hier.image_radius, hier.text_radius, hier.tau)


METHODS: dict[str, Method] = {
    "clip": Method("CLIP", lambda params, scale: CosineHead(scale), None),
    "tecoa": Method(
        "TeCoA",
        lambda params, scale: CosineHead(scale * params.tecoa.logit_scale),
        leaf_cross_entropy,
        lambda params: (params.tecoa.lr, 0.0),
    ),
    "hier": Method("HITA", _poincare_head, hita, lambda params: (params.hier.lr, params.hier.text_lr)),  # pyright: ignore
}


def find_method(name: str) -> Method:
    """Raises ValueError, listing the known methods, for an unknown one."""
    if name not in METHODS:
        raise ValueError(f"no method {name!r}; known are {', '.join(METHODS)}")
    return METHODS[name]
