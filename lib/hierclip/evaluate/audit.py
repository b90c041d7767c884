"""A first look at whether robustness is real: a stronger attack, a large budget, gradients that vanish."""

from dataclasses import replace

import torch
from torch import Tensor

from hierclip.attacks import Budget, aims, attack, frozen, margin
from hierclip.data import Pictures
from hierclip.evaluate.records import Audit
from hierclip.model import Classifier, PoincareHead

LARGE = 64 / 255


def audit(classifier: Classifier, pictures: Pictures, paths: Tensor, budget: Budget, *, count: int, seed: int) -> Audit:
    """Leaf accuracy of `count` pictures, evenly spaced over the set, under the record's attack and under others."""
    some = pictures[pictures.spread(count)]
    images, own = some.floats().to(classifier.device), aims(paths, 0)[0].own[some.labels].to(classifier.device)

    def score(x: Tensor) -> Tensor:
        return classifier.score(x, 0)

    def standing(other: Budget) -> Tensor:
        moved = attack(score, images, own, other, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            return margin(score(moved), own) <= 0

    with frozen(classifier):
        x = images.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(margin(score(x), own).sum(), x)
        same = standing(budget)
        harder = standing(replace(budget, steps=2 * budget.steps, restarts=2, losses=("margin", "ce")))
        large = standing(replace(budget, eps=LARGE, step=2.5 * LARGE / budget.steps))
        return Audit(
            images=len(some),
            same_attack=_share(same),
            stronger=_share(same & harder),
            large_budget=_share(large),
            zero_gradients=_share(gradient.flatten(1).abs().amax(1) == 0),
            at_rim=_at_rim(classifier, images),
        )


def _share(which: Tensor) -> float:
    return float(which.float().mean())


@torch.no_grad()
def _at_rim(classifier: Classifier, images: Tensor) -> float:
    head = classifier.head
    if not isinstance(head, PoincareHead):
        return 0.0
    return _share(head.clamped(head.image_tangents(classifier.encoder(images))))
