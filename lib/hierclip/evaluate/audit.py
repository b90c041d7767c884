"""Whether robustness is real: one call, a verdict for each check with the number behind it.

What to look for follows Athalye et al. (ICML 2018) and Carlini et al., On Evaluating Adversarial Robustness (2019).
"""

import copy
import itertools
from dataclasses import dataclass, replace
from math import inf

import torch
from scipy.stats import binomtest
from torch import Tensor

from hierclip.attacks import GRADIENT, NORMS, Budget, attack, frozen, margin
from hierclip.attacks.aims import direct
from hierclip.data import Pictures
from hierclip.evaluate.records import Audit, Check
from hierclip.evaluate.surrogates import SURROGATES
from hierclip.model import Classifier, PoincareHead

BUDGETS = (0, 1, 2, 4, 8, 16, 32, 64)  # of 255
FEW = 16  # pictures attacked again in float64

# By check: the most that its number may be, and what the number is.
CHECKS = {
    "large budget": (0.05, "leaf accuracy at 64/255"),
    "budget": (0.02, "most that leaf accuracy rises from one budget to the next larger"),
    "steps": (0.05, "share that four times the steps break and the record's attack does not"),
    "restarts": (0.05, "share that two more restarts break and the record's attack does not"),
    "suite": (0.05, "share that targeted APGD of twice the steps or Square breaks and the record's attack does not"),
    "gradient-free": (0.02, "share that Square breaks and no gradient attack does"),
    "unclamped": (0.02, "share that a surrogate without clamps breaks and the native attacks do not"),
    "cosine": (0.02, "share that a cosine surrogate breaks and the native attacks do not"),
    "float64": (0.07, "share of 16 that an attack in float64 breaks and the native attacks do not"),
    "zero gradients": (0.02, "share of images whose loss has no gradient at all at the start"),
    "clamps": (0.02, "share of image and text points that a projection acts on"),
}


def audit(classifier: Classifier, pictures: Pictures, paths: Tensor, budget: Budget, *, count: int, seed: int) -> Audit:
    """Leaf accuracy of `count` pictures, evenly spaced over the set, under the record's attack and under others.

    paths: (leaves, L + 1), the tree's. Attacks on surrogates count where they break the model itself. In L2 the budgets
    are as large as Linf ones that use every pixel.
    """
    some = pictures[pictures.spread(count)]
    images, own = some.floats().to(classifier.device), direct(paths, 0).own[0][some.labels].to(classifier.device)
    broken = _Breaker(classifier, images, own, seed)
    steps, restarts = budget.steps, budget.restarts
    with frozen(classifier):
        native = broken(budget)
        sizes = {n: float(NORMS[budget.norm].size(torch.full_like(images[:1], n / 255))) for n in BUDGETS}
        budgets = {n: broken(replace(budget, eps=e, step=2.5 * e / steps)) for n, e in sizes.items()}
        by_steps = {steps: native} | {k * steps: broken(replace(budget, steps=k * steps)) for k in (2, 4)}
        by_restarts = {restarts: native, restarts + 2: broken(replace(budget, restarts=restarts + 2))}
        found = native | by_steps[4 * steps] | by_restarts[restarts + 2]
        values = {
            "large budget": 1 - _share(budgets[64]),
            "budget": max(_share(a) - _share(b) for a, b in itertools.pairwise(budgets.values())),
            "steps": _share(by_steps[4 * steps] & ~native),
            "restarts": _share(by_restarts[restarts + 2] & ~native),
            **_by_other_attacks(broken, budget, native, found),
            "zero gradients": _without_gradient(classifier, images, own),
            "clamps": _clamped(classifier, images),
        }
    limits = {name: limit for name, (limit, _) in CHECKS.items() if name in values}
    return Audit(
        images=len(some),
        budgets={f"{n}/255": 1 - _share(fallen) for n, fallen in budgets.items()},
        steps={str(k): 1 - _share(fallen) for k, fallen in by_steps.items()},
        restarts={str(k): 1 - _share(fallen) for k, fallen in by_restarts.items()},
        checks={
            k: _check(values[k], limit, min(FEW, len(some)) if k == "float64" else len(some))
            for k, limit in limits.items()
        },
    )


@dataclass(frozen=True)
class _Breaker:
    """Called with a budget: which of the images fall to an attack that sees the gradient of `through`."""

    classifier: Classifier
    images: Tensor
    own: Tensor
    seed: int

    def __call__(self, budget: Budget, through: Classifier | None = None, rows: slice = slice(None)) -> Tensor:
        seen = through or self.classifier
        budget = replace(budget, enough=inf) if through else budget  # its boundary is not the model's
        images, own = self.images[rows].to(seen.text_points[0].dtype), self.own[rows]
        moved, worst = attack(lambda x: seen(x, [0]), images, [own], budget, torch.Generator().manual_seed(self.seed))
        return worst > 0 if through is None else _wrong(self.classifier, moved.float(), own)


def _by_other_attacks(broken: _Breaker, budget: Budget, native: Tensor, found: Tensor) -> dict[str, float]:
    """The checks that ask for another attack, or for the gradient of another model; `found` by the attack's own kin."""
    suite = broken(replace(budget, suite=GRADIENT, steps=2 * budget.steps, restarts=1))
    square, found = broken(replace(budget, suite=("square",))), found | suite
    values = {"suite": _share((suite | square) & ~native), "gradient-free": _share(square & ~found)}
    for name, surrogate in SURROGATES.items():
        if other := surrogate(broken.classifier):
            values[name] = _share(broken(budget, other) & ~found)
    double = copy.deepcopy(broken.classifier).double()
    return values | {"float64": _share(broken(budget, double, slice(FEW)) & ~found[:FEW])}


def _check(value: float, limit: float, count: int) -> Check:
    found = binomtest(round(max(0.0, value) * count), count).proportion_ci()
    return Check(value=value, high=round(found.high, 6), limit=limit, passed=value <= limit)


def _share(which: Tensor) -> float:
    return round(float(which.double().mean()), 6)


@torch.no_grad()
def _wrong(classifier: Classifier, images: Tensor, own: Tensor) -> Tensor:
    return margin(classifier(images, [0])[0], own) > 0


def _without_gradient(classifier: Classifier, images: Tensor, own: Tensor) -> float:
    x = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(margin(classifier(x, [0])[0], own).sum(), x)
    return _share(~(gradient.flatten(1).abs().amax(1) > 0))  # nor where it is no number


@torch.no_grad()
def _clamped(classifier: Classifier, images: Tensor) -> float:
    head = classifier.head
    if not isinstance(head, PoincareHead):
        return 0.0
    texts = torch.cat([head.on_rim(points) for points in classifier.text_points])
    return max(_share(head.clamped(head.image_tangents(classifier.encoder(images)))), _share(texts))
