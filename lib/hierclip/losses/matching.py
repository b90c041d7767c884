"""Level matching: under attack, the original model's cosines with the texts of every level."""

import torch
from torch import Tensor
from torch.nn import functional as F

from hierclip.config import MatchParams
from hierclip.losses.levels import Context, Perturbation, level_weights


def match(context: Context, perturbation: Perturbation, params: MatchParams) -> Tensor:
    """Return the squared change of an image's cosines with all nodes' texts, mean over images.

    It is the sum over trees, levels and nodes of w_l (cos(adversarial, text) - cos(original clean,
    text))^2: FARE's term for unit embeddings, in the metric that the texts of a class tree span. No
    labels are used.
    """
    embeddings, _, texts = context.towers(perturbation.images)
    adversarial, original = (
        F.normalize(each.float(), dim=1) for each in (embeddings, context.original_clean[0])
    )
    losses = []
    for levels in context.original.by_tree(texts):
        weights = level_weights(len(levels) - 1, params.superclass_weight)
        for weight, nodes in zip(weights, levels, strict=True):
            changes = (adversarial - original) @ F.normalize(nodes.float(), dim=1).T
            losses.append(weight * changes.square().sum(1).mean())
    return torch.stack(losses).sum()
