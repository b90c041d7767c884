"""The flat baselines: losses on the leaves alone, each as in its paper."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from hierclip.config import AgftParams, TgaZsrParams, TrainedParams
from hierclip.losses.levels import Context, Objective, Perturbation

EPS = 1e-6  # least range of an attention map that is stretched to [0, 1]


def tecoa(context: Context, perturbation: Perturbation, params: TrainedParams) -> Tensor:
    """Return the cross-entropy of the adversarial images against the leaves' texts.

    Source: Mao et al., ICLR 2023, eq. 3.
    """
    embeddings, _, texts = context.towers(perturbation.images)
    return F.cross_entropy(context.leaf_logits(embeddings, texts), context.labels)


def fare(context: Context, perturbation: Perturbation, params: TrainedParams) -> Tensor:
    """Return the squared distance of the adversarial embedding from the original clean one.

    Neither is normalised; summed over dimensions, mean over images. Source: Schlarmann et al., ICML
    2024, eq. 3.
    """
    embeddings, _, _ = context.towers(perturbation.images)
    return (embeddings.float() - context.original_clean[0].float()).square().sum(-1).mean()


def pmg_aft(context: Context, perturbation: Perturbation, params: TrainedParams) -> Tensor:
    """Return the cross-entropy and two divergences of the adversarial prediction.

    They are from the original model's prediction on the same images and from the trained model's on
    clean images (Wang et al., CVPR 2024, eq. 8), KL(other || adversarial) as in the released code,
    with a gradient through both sides of the second.
    """
    embeddings, _, texts = context.towers(perturbation.images)
    logits = context.leaf_logits(embeddings, texts)
    with torch.no_grad():
        original = context.leaf_logits(*context.original(perturbation.images)[::2])
    clean = context.leaf_logits(context.towers(context.images)[0], texts)
    loss = F.cross_entropy(logits, context.labels)
    return loss + divergence(logits, original) + divergence(logits, clean)


def divergence(logits: Tensor, other: Tensor) -> Tensor:
    """Return KL(softmax(other) || softmax(logits)) of (B, K) each, mean over images."""
    prediction = logits.log_softmax(1)
    return F.kl_div(prediction, other.log_softmax(1), reduction="batchmean", log_target=True)


def tga_zsr(context: Context, perturbation: Perturbation, params: TgaZsrParams) -> Tensor:
    """Return the cross-entropy and two distances from the original model's attention.

    Text-guided attention on the adversarial image (alpha) and on the clean image (beta) is compared
    with the original model's on the clean image. Source: Yu et al., NeurIPS 2024, eqs. 6 to 8.
    """
    side = context.images.shape[-1]
    embeddings, local, texts = context.towers(perturbation.images, local=True)
    clean_local = context.towers(context.images, local=True)[1]
    with torch.no_grad():
        original_local = context.original(context.images, local=True)[1]
    truth = context.original.by_tree(texts)[0][0][context.labels]
    adversarial = attention(local, truth, side)
    clean = attention(clean_local, truth, side)
    original = attention(original_local, truth, side)
    loss = F.cross_entropy(context.leaf_logits(embeddings, texts), context.labels)
    loss = loss + params.alpha * (adversarial - original).norm(dim=1).mean()
    return loss + params.beta * (clean - original).norm(dim=1).mean()


def attention(local: Tensor, texts: Tensor, side: int) -> Tensor:
    """Return text-guided attention, drawn at the image's size: (B, side * side).

    It is the cosine of local features (B, D, h, w) with each image's text (B, D), stretched to
    [0, 1] over the positions.
    """
    local = F.normalize(local.float(), dim=1)
    maps = torch.einsum("bdhw,bd->bhw", local, F.normalize(texts.float(), dim=1))
    low = maps.amin((1, 2), keepdim=True)
    high = maps.amax((1, 2), keepdim=True)
    maps = (maps - low) / (high - low).clamp(min=EPS)
    drawn = F.interpolate(maps[:, None], (side, side), mode="bilinear", align_corners=False)
    return drawn.flatten(1)


def agft(
    context: Context, perturbation: Perturbation, params: AgftParams, anchored: bool = True
) -> Tensor:
    """Return the cross-entropy against the original model's softmax on the clean image.

    The softmax is taken at `gamma` times the logit scale (AGFT, arXiv 2603.29410). A share
    `hard_label_weight` of the target is one-hot and, where `anchored`, `anchor_weight` weighs 1 -
    cosine of the adversarial embedding with the original model's clean one; the paper has neither.
    """
    embeddings, _, texts = context.towers(perturbation.images)
    logits = context.leaf_logits(embeddings, texts)
    with torch.no_grad():
        soft = (params.gamma * context.leaf_logits(*context.original_clean)).softmax(1)
    one_hot = F.one_hot(context.labels, logits.shape[1])
    loss = F.cross_entropy(
        logits, (1 - params.hard_label_weight) * soft + params.hard_label_weight * one_hot
    )
    if anchored and params.anchor_weight:
        cosine = F.cosine_similarity(embeddings, context.original_clean[0])
        loss = loss + params.anchor_weight * (1 - cosine).mean()
    return loss


BASELINES = {
    "tecoa": Objective(tecoa, tecoa),
    "fare": Objective(fare, fare),
    "pmg_aft": Objective(pmg_aft, tecoa),
    "tga_zsr": Objective(tga_zsr, tecoa),  # pyright: ignore
    "agft": Objective(agft, partial(agft, anchored=False)),  # pyright: ignore
}
