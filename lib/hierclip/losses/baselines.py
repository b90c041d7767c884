"""The flat baselines: losses on the leaves alone, each as its paper has it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from hierclip.losses.context import Context, Perturbation
from hierclip.params import AgftParams, TgaZsrParams, TrainedParams

EPS = 1e-6  # least range of an attention map that is stretched to [0, 1]


def tecoa(context: Context, perturbation: Perturbation, params: TrainedParams) -> Tensor:
    """Cross-entropy of the adversarial images against the leaves' texts (Mao et al., ICLR 2023, eq. 3)."""
    embeddings, _, texts = context.towers(perturbation.images)
    return F.cross_entropy(context.leaf_logits(embeddings, texts), context.labels)


def fare(context: Context, perturbation: Perturbation, params: TrainedParams) -> Tensor:
    """Squared distance of the adversarial embedding from the original model's clean one, neither normalised, summed
    over dimensions, mean over images (Schlarmann et al., ICML 2024, eq. 3).
    """
    embeddings, _, _ = context.towers(perturbation.images)
    return (embeddings.float() - context.original_clean[0].float()).square().sum(-1).mean()


def pmg_aft(context: Context, perturbation: Perturbation, params: TrainedParams) -> Tensor:
    """Cross-entropy, and the divergence of the adversarial prediction from the original model's on the same images
    and from its own on clean ones (Wang et al., CVPR 2024, eq. 8). The divergence is the one of the released code,
    KL(other || adversarial), with a gradient through both sides of the second.
    """
    embeddings, _, texts = context.towers(perturbation.images)
    logits = context.leaf_logits(embeddings, texts)
    with torch.no_grad():
        original = context.leaf_logits(*context.original(perturbation.images)[::2])
    clean = context.leaf_logits(context.towers(context.images)[0], texts)
    return F.cross_entropy(logits, context.labels) + divergence(logits, original) + divergence(logits, clean)


def divergence(logits: Tensor, other: Tensor) -> Tensor:
    """KL(softmax(other) || softmax(logits)) of (B, K) each, mean over images."""
    return F.kl_div(logits.log_softmax(1), other.log_softmax(1), reduction="batchmean", log_target=True)


def tga_zsr(context: Context, perturbation: Perturbation, params: TgaZsrParams) -> Tensor:
    """Cross-entropy, and how far text-guided attention on the adversarial image, and its own on the clean image, lie
    from the original model's on the clean one (Yu et al., NeurIPS 2024, eqs. 6 to 8; alpha and beta).
    """
    side = context.images.shape[-1]
    embeddings, local, texts = context.towers(perturbation.images, local=True)
    clean_attention = context.towers(context.images, local=True)[1]
    with torch.no_grad():
        clean = context.original(context.images, local=True)[1]
    truth = context.original.by_tree(texts)[0][0][context.labels]
    adversarial, clean_attention, clean = (
        attention(features, truth, side) for features in (local, clean_attention, clean)
    )
    loss = F.cross_entropy(context.leaf_logits(embeddings, texts), context.labels)
    refined, constrained = (adversarial - clean).norm(dim=1).mean(), (clean_attention - clean).norm(dim=1).mean()
    return loss + params.alpha * refined + params.beta * constrained


def attention(local: Tensor, texts: Tensor, side: int) -> Tensor:
    """Text-guided attention: the cosine of local features (B, D, h, w) with each image's text (B, D), stretched to
    [0, 1] over the places, drawn at the image's size: (B, side * side).
    """
    maps = torch.einsum("bdhw,bd->bhw", F.normalize(local.float(), dim=1), F.normalize(texts.float(), dim=1))
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    maps = (maps - low) / (high - low).clamp(min=EPS)
    return F.interpolate(maps[:, None], (side, side), mode="bilinear", align_corners=False).flatten(1)


def agft(context: Context, perturbation: Perturbation, params: AgftParams) -> Tensor:
    """Cross-entropy against the original model's softmax on the clean image at `gamma` times the logit scale
    (AGFT, arXiv 2603.29410). A share `hard` of the target is one-hot; the paper has none.
    """
    return _agft(context, perturbation, params)[0]


def anchored_agft(context: Context, perturbation: Perturbation, params: AgftParams) -> Tensor:
    """`agft`, and `anchor` times 1 - cosine of the adversarial embedding with the original model's clean one."""
    loss, embeddings = _agft(context, perturbation, params)
    return loss + params.anchor * (1 - F.cosine_similarity(embeddings, context.original_clean[0])).mean()


def _agft(context: Context, perturbation: Perturbation, params: AgftParams) -> tuple[Tensor, Tensor]:
    """The loss, and the embeddings of the images (B, D)."""
    embeddings, _, texts = context.towers(perturbation.images)
    logits = context.leaf_logits(embeddings, texts)
    with torch.no_grad():
        soft = (params.gamma * context.leaf_logits(*context.original_clean)).softmax(1)
    target = (1 - params.hard) * soft + params.hard * F.one_hot(context.labels, logits.shape[1])
    return F.cross_entropy(logits, target), embeddings
