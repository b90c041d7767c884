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

from hierclip.attacks import GOALS, GRADIENT, NORMS, AttackGoal, Budget, frozen, margin
from hierclip.data import Pictures
from hierclip.evaluate.matrix import attacked
from hierclip.evaluate.records import Audit, Check
from hierclip.evaluate.surrogates import SURROGATES
from hierclip.model import Classifier, EuclideanHead, PoincareHead
from hierclip.progress import progress

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
    "float64": (
        0.07,
        "share, of 16 at most, that an attack in float64 breaks and the native attacks do not",
    ),
    "zero gradients": (0.02, "share of images whose margin the gradient moves by less than scores are rounded"),
    "clamps": (0.02, "share of image (clean or attacked) and text points that a projection acts on"),
}
ABOVE = ("large budget", "steps", "suite", "gradient-free", "cosine", "zero gradients")  # asked of a level above too
CHECKS |= {f"above: {k}": (CHECKS[k][0], CHECKS[k][1].replace("leaf", "its")) for k in ABOVE}


def audit(
    classifier: Classifier, pictures: Pictures, paths: Tensor, budget: Budget, count: int, batch: int, *, seed: int
) -> Audit:
    """Accuracy of `count` pictures, evenly spaced over the set, under the record's attack and under others: of the
    leaves, and (the checks of ABOVE) of the direct reading of the level halfway up, or of the next below with a choice.

    batch: the most that are in the model at once. paths: (leaves, L + 1), the tree's. Attacks on surrogates count where
    they break the model itself. In L2 the budgets are as large as Linf ones that use every pixel.
    """
    some, top = pictures[pictures.spread(count)], paths.shape[1] - 1
    above = next((level for level in range((top + 1) // 2, 0, -1) if paths[:, level].any()), 0)
    with frozen(classifier):
        parts = []
        for level in dict.fromkeys((0, above)):
            broken = _Breaker(classifier, some.floats(), some.labels, GOALS["direct"](paths, level), seed, batch)
            parts.append(_attacked_otherwise(broken, budget, f"audit of {len(some)} pictures, level {level}"))
    (values, budgets, by_steps, by_restarts), *others = parts
    values |= {f"above: {name}": found[name] for found, *_ in others for name in ABOVE if name in found}
    few = min(FEW, len(some))
    checks = {k: _check(values[k], CHECKS[k][0], few if k == "float64" else len(some)) for k in CHECKS if k in values}
    return Audit(images=len(some), budgets=budgets, steps=by_steps, restarts=by_restarts, checks=checks)


def _attacked_otherwise(broken: "_Breaker", budget: Budget, what: str) -> tuple[dict[str, float], ...]:
    """The number of every check, and accuracies by budget, by steps and by restarts, for one aim."""
    steps, restarts = budget.steps, budget.restarts
    moved = broken.moved(budget)
    native = broken.margins(moved) < 0
    sizes = {n: float(NORMS[budget.norm].size(torch.full_like(broken.images[:1], n / 255))) for n in BUDGETS}
    asked = {("eps", n): {"eps": e, "step": 2.5 * e / steps} for n, e in sizes.items() if n}
    asked |= {("steps", k * steps): {"steps": k * steps} for k in (2, 4)}
    asked |= {("restarts", restarts + 2): {"restarts": restarts + 2}}
    fell = {key: broken(replace(budget, **asked[key])) for key in progress(asked, what)}
    budgets = {0: broken.margins(broken.images) < 0} | {n: fell["eps", n] for n in BUDGETS if n}
    by_steps = {steps: native} | {k * steps: fell["steps", k * steps] for k in (2, 4)}
    by_restarts = {restarts: native, restarts + 2: fell["restarts", restarts + 2]}
    found = native | by_steps[4 * steps] | by_restarts[restarts + 2]
    values = {
        "large budget": 1 - _share(budgets[64]),
        "budget": max(_share(a) - _share(b) for a, b in itertools.pairwise(budgets.values())),
        "steps": _share(by_steps[4 * steps] & ~native),
        "restarts": _share(by_restarts[restarts + 2] & ~native),
        **_by_other_attacks(broken, budget, native, found),
        "zero gradients": _without_gradient(broken, budget),
        **_clamped(broken.classifier, broken.batch, broken.images, moved),
    }
    curves = {f"{n}/255": fallen for n, fallen in budgets.items()}, by_steps, by_restarts
    return values, *({str(k): 1 - _share(fallen) for k, fallen in curve.items()} for curve in curves)


@dataclass(frozen=True)
class _Breaker:
    """Called with a budget: which of the images fall to an attack that sees the gradient of `through`."""

    classifier: Classifier
    images: Tensor
    labels: Tensor
    aim: AttackGoal
    seed: int
    batch: int

    def __call__(self, budget: Budget, through: Classifier | None = None, rows: slice = slice(None)) -> Tensor:
        budget = replace(budget, stop_margin=inf) if through else budget  # its boundary is not the model's
        return self.margins(self.moved(budget, through, rows).float(), rows) < 0

    def moved(self, budget: Budget, through: Classifier | None = None, rows: slice = slice(None)) -> Tensor:
        seen = through or self.classifier
        images = self.images[rows].to(seen.text_points[0].dtype)
        return attacked(seen, images, self.labels[rows], self.aim, budget, self.seed, self.batch)[0]

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        levels = list(self.aim.levels)
        parts = [self.classifier(x.to(self.classifier.device), levels)[0].cpu() for x in images.split(self.batch)]
        return torch.cat(parts)

    def margins(self, images: Tensor, rows: slice = slice(None)) -> Tensor:
        return margin(self.scores(images), self.aim.masks(self.labels[rows])[0])

    def gradient(self) -> Tensor:
        """Of the margins in the images, as they are."""
        found = []
        for x, y in zip(self.images.split(self.batch), self.labels.split(self.batch), strict=True):
            x = x.to(self.classifier.device).requires_grad_(True)
            (scores,) = self.classifier(x, list(self.aim.levels))
            total = margin(scores, self.aim.masks(y.to(scores.device))[0]).sum()
            found.append(torch.autograd.grad(total, x)[0].cpu())
        return torch.cat(found)


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


def _without_gradient(broken: _Breaker, budget: Budget) -> float:
    """A step of the whole budget moves the margin, to first order, by less than float32 can show."""
    gradient, scores = broken.gradient(), broken.scores(broken.images)
    rise = budget.eps * (gradient * NORMS[budget.norm].steepest(gradient)).flatten(1).sum(1)
    return _share(~(rise > scores.abs().amax(1) * torch.finfo(scores.dtype).eps))  # nor where it is no number


@torch.no_grad()
def _clamped(classifier: Classifier, batch: int, *images: Tensor) -> dict[str, float]:
    """The check "clamps", of a head that projects points: nothing is to be seen where a head has no projection."""
    head = classifier.head
    if not isinstance(head, PoincareHead) or isinstance(head, EuclideanHead):
        return {}
    texts = torch.cat([head.points_are_clipped(points) for points in classifier.text_points])
    parts = [[head.image_tangents(classifier.encoder(x.to(classifier.device))) for x in x.split(batch)] for x in images]
    return {"clamps": max(_share(texts), *(_share(head.is_clipped(torch.cat(points))) for points in parts))}
