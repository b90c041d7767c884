"""Gradient-masking checks: is the robustness real? Each check has a value, a limit and a verdict.

What to look for follows Athalye et al. (ICML 2018) and Carlini et al., On Evaluating Adversarial
Robustness (2019).
"""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

import torch
from scipy.stats import binomtest
from torch import Tensor
from torch.nn import functional as F

from hierclip.attacks import GOALS, GRADIENT, NORMS, AttackGoal, Budget, frozen, margin
from hierclip.data import Pictures
from hierclip.evaluate.matrix import attacked
from hierclip.evaluate.records import Audit, Check
from hierclip.hyperbolic import EPS
from hierclip.model import Classifier, CosineHead, EuclideanHead, PoincareHead
from hierclip.progress import progress

BUDGETS = (0, 1, 2, 4, 8, 16, 32, 64)  # of 255
FEW = 16  # images attacked again in float64

# By check: the most that its number may be, and what the number is.
CHECKS = {
    "large budget": (0.05, "leaf accuracy at 64/255"),
    "budget": (0.02, "most that leaf accuracy rises from one budget to the next larger"),
    "steps": (0.05, "share that four times the steps break and the record's attack does not"),
    "restarts": (0.05, "share that two more restarts break and the record's attack does not"),
    "suite": (
        0.05,
        "share that targeted APGD of twice the steps or Square breaks and the record's attack does "
        "not",
    ),
    "gradient-free": (0.02, "share that Square breaks and no gradient attack does"),
    "unclamped": (
        0.02,
        "share that a surrogate without clamps breaks and the native attacks do not",
    ),
    "cosine": (0.02, "share that a cosine surrogate breaks and the native attacks do not"),
    "float64": (
        0.07,
        "share, of 16 at most, that an attack in float64 breaks and the native attacks do not",
    ),
    "zero gradients": (
        0.02,
        "share of images whose margin the gradient moves by less than scores are rounded",
    ),
    "clamps": (
        0.02,
        "share of image (clean or attacked) and text points that a projection acts on",
    ),
}
ABOVE = (
    "large budget",
    "steps",
    "suite",
    "gradient-free",
    "cosine",
    "zero gradients",
)  # asked of a level above too
CHECKS |= {f"above: {k}": (CHECKS[k][0], CHECKS[k][1].replace("leaf", "its")) for k in ABOVE}


class Unclamped(PoincareHead):
    """The ball's head without clipping: points stay tangent vectors, distances are the
    hyperboloid's.

    d = (2 / sqrt r) arsinh(sqrt((x0 y0 - <x, y> - 1) / 2)), with x0 = cosh(2 sqrt(r) |v|), in
    float64.
    """

    def place(self, tangents: Tensor) -> Tensor:
        return tangents

    def pairwise_distance(self, u: Tensor, v: Tensor) -> Tensor:
        (x0, x), (y0, y) = self._hyperboloid(u), self._hyperboloid(v)
        inner = x0 @ y0.T - x @ y.T
        return 2 / self.curvature**0.5 * torch.asinh(((inner - 1).clamp(min=0) / 2 + EPS).sqrt())

    def _hyperboloid(self, tangents: Tensor) -> tuple[Tensor, Tensor]:
        v = tangents.double()
        length = v.square().sum(-1, keepdim=True).add(EPS).sqrt()
        angle = 2 * self.curvature**0.5 * length
        return torch.cosh(angle), torch.sinh(angle) * v / length

    def tangents_of(self, points: Tensor) -> Tensor:
        """Return the tangents that `expmap0` maps to these points: artanh(sqrt(r) |z|) z / (sqrt(r)
        |z|).
        """
        z = points.double()
        share = self.curvature**0.5 * z.square().sum(-1, keepdim=True).add(EPS).sqrt()
        return (torch.atanh(share.clamp(max=1 - 1e-12)) / share * z).to(points.dtype)


def unclamped(classifier: Classifier) -> Classifier | None:
    """Return the same model without clipping; None where it clips nothing."""
    head = classifier.head
    if not isinstance(head, PoincareHead) or isinstance(head, EuclideanHead | Unclamped):
        return None
    free = Unclamped(**vars(head))
    return Classifier(
        classifier.encoder, free, [free.tangents_of(texts) for texts in classifier.text_points]
    )


def cosine(classifier: Classifier) -> Classifier | None:
    """Return the same model read by cosine; None where it is read so already."""
    if isinstance(classifier.head, CosineHead):
        return None
    return Classifier(
        classifier.encoder,
        CosineHead(20.0),
        [F.normalize(t, dim=-1) for t in classifier.text_points],
    )


SURROGATES: dict[str, Callable[[Classifier], Classifier | None]] = {
    "unclamped": unclamped,
    "cosine": cosine,
}


def gradient_masking_checks(
    classifier: Classifier,
    images: Pictures,
    paths: Tensor,
    budget: Budget,
    count: int,
    batch: int,
    *,
    seed: int,
) -> Audit:
    """Check `count` images, evenly spaced over the set, under the record's attack and under others.

    Checks are of leaf accuracy, and those of ABOVE also of the direct reading of the level halfway
    up, or of the next below with a choice. batch: the most images in the model at once. paths:
    (leaves, L + 1), the tree's. Attacks on surrogates count where they break the model itself. In
    L2 the budgets are as large as Linf ones that use every pixel.
    """
    some, top = images[images.spread(count)], paths.shape[1] - 1
    above = next((level for level in range((top + 1) // 2, 0, -1) if paths[:, level].any()), 0)
    parts = []
    with frozen(classifier):
        for level in dict.fromkeys((0, above)):
            goal = GOALS["direct"](paths, level)
            target = _Target(classifier, some.floats(), some.labels, goal, seed, batch)
            what = f"audit of {len(some)} pictures, level {level}"
            parts.append(_measure(target, budget, what))
    (values, budgets, by_steps, by_restarts), *others = parts
    for other, *_ in others:
        values |= {f"above: {name}": other[name] for name in ABOVE if name in other}
    checks = {}
    for name in (name for name in CHECKS if name in values):
        seen = min(FEW, len(some)) if name == "float64" else len(some)
        checks[name] = _check(values[name], CHECKS[name][0], seen)
    return Audit(
        images=len(some), budgets=budgets, steps=by_steps, restarts=by_restarts, checks=checks
    )


@dataclass(frozen=True)
class _Target:
    """A goal on some images of a model. Attacks may use the gradient of another model,
    `through`.
    """

    classifier: Classifier
    images: Tensor
    labels: Tensor
    goal: AttackGoal
    seed: int
    batch: int

    def broken(
        self, budget: Budget, through: Classifier | None = None, rows: slice = slice(None)
    ) -> Tensor:
        """Tell which images an attack makes wrong: (N,) bool."""
        if through:
            budget = replace(budget, stop_margin=inf)  # its boundary is not the model's
        return self.margins(self.attack(budget, through, rows).float(), rows) < 0

    def attack(
        self, budget: Budget, through: Classifier | None = None, rows: slice = slice(None)
    ) -> Tensor:
        """Return adversarial images."""
        source = through or self.classifier
        images = self.images[rows].to(source.text_points[0].dtype)
        labels = self.labels[rows]
        return attacked(source, images, labels, self.goal, budget, self.seed, self.batch)[0]

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return the logits (N, K) of the goal's level."""
        levels, device = list(self.goal.levels), self.classifier.device
        parts = [self.classifier(x.to(device), levels)[0].cpu() for x in images.split(self.batch)]
        return torch.cat(parts)

    def margins(self, images: Tensor, rows: slice = slice(None)) -> Tensor:
        """Return the goal's margins (N,), below 0 where it is reached."""
        return margin(self.logits(images), self.goal.masks(self.labels[rows])[0])

    def gradient(self) -> Tensor:
        """Return the gradient of the margins in the clean images."""
        parts, device = [], self.classifier.device
        for rows in torch.arange(len(self.images)).split(self.batch):
            x = self.images[rows].to(device).requires_grad_(True)
            (logits,) = self.classifier(x, list(self.goal.levels))
            masks = self.goal.masks(self.labels[rows].to(logits.device))[0]
            (gradient,) = torch.autograd.grad(margin(logits, masks).sum(), x)
            parts.append(gradient.cpu())
        return torch.cat(parts)


def _measure(target: _Target, budget: Budget, what: str) -> tuple[dict[str, float], ...]:
    """Return the value of every check, and accuracies by budget, by steps and by restarts."""
    steps, restarts = budget.steps, budget.restarts
    x_adv = target.attack(budget)
    native = target.margins(x_adv) < 0
    pixels = torch.full_like(target.images[:1], 1.0)
    variants = {}
    for n in BUDGETS[1:]:
        eps = float(NORMS[budget.norm].size(n / 255 * pixels))
        variants["eps", n] = replace(budget, eps=eps, step=2.5 * eps / steps)
    for k in (2, 4):
        variants["steps", k * steps] = replace(budget, steps=k * steps)
    variants["restarts", restarts + 2] = replace(budget, restarts=restarts + 2)
    broken = {key: target.broken(variants[key]) for key in progress(variants, what)}
    by_budget = {0: target.margins(target.images) < 0}
    by_budget |= {n: broken["eps", n] for n in BUDGETS[1:]}
    by_steps = {steps: native} | {k * steps: broken["steps", k * steps] for k in (2, 4)}
    by_restarts = {restarts: native, restarts + 2: broken["restarts", restarts + 2]}
    found = native | by_steps[4 * steps] | by_restarts[restarts + 2]
    values = {
        "large budget": 1 - _share(by_budget[64]),
        "budget": max(_share(a) - _share(b) for a, b in itertools.pairwise(by_budget.values())),
        "steps": _share(by_steps[4 * steps] & ~native),
        "restarts": _share(by_restarts[restarts + 2] & ~native),
        **_by_other_attacks(target, budget, native, found),
        "zero gradients": _without_gradient(target, budget),
        **_clamped(target.classifier, target.batch, target.images, x_adv),
    }
    curves = [{f"{n}/255": wrong for n, wrong in by_budget.items()}, by_steps, by_restarts]
    return values, *({str(k): 1 - _share(wrong) for k, wrong in c.items()} for c in curves)


def _by_other_attacks(
    target: _Target, budget: Budget, native: Tensor, found: Tensor
) -> dict[str, float]:
    """Return the checks by another attack or another model's gradient.

    native: broken by the record's attack; found: by that with more steps and restarts too.
    """
    suite = target.broken(replace(budget, suite=GRADIENT, steps=2 * budget.steps, restarts=1))
    square = target.broken(replace(budget, suite=("square",)))
    found = found | suite
    values = {
        "suite": _share((suite | square) & ~native),
        "gradient-free": _share(square & ~found),
    }
    for name, surrogate in SURROGATES.items():
        if other := surrogate(target.classifier):
            values[name] = _share(target.broken(budget, other) & ~found)
    double = copy.deepcopy(target.classifier).double()
    values["float64"] = _share(target.broken(budget, double, slice(FEW)) & ~found[:FEW])
    return values


def _check(value: float, limit: float, count: int) -> Check:
    interval = binomtest(round(max(0.0, value) * count), count).proportion_ci()
    return Check(value=value, high=round(interval.high, 6), limit=limit, passed=value <= limit)


def _share(which: Tensor) -> float:
    return round(float(which.double().mean()), 6)


def _without_gradient(target: _Target, budget: Budget) -> float:
    """Return the share of images whose margin a whole budget along the gradient moves, to first
    order, by less than float32 can show. A gradient that is not a number counts too.
    """
    gradient, logits = target.gradient(), target.logits(target.images)
    direction = NORMS[budget.norm].steepest(gradient)
    rise = budget.eps * (gradient * direction).flatten(1).sum(1)
    return _share(~(rise > logits.abs().amax(1) * torch.finfo(logits.dtype).eps))


@torch.no_grad()
def _clamped(classifier: Classifier, batch: int, *images: Tensor) -> dict[str, float]:
    """Return the check "clamps"; nothing for a head that projects no points."""
    head, device = classifier.head, classifier.device
    if not isinstance(head, PoincareHead) or isinstance(head, EuclideanHead):
        return {}
    shares = [_share(torch.cat([head.points_are_clipped(p) for p in classifier.text_points]))]
    for batches in (x.split(batch) for x in images):
        tangents = [head.image_tangents(classifier.encoder(x.to(device))) for x in batches]
        shares.append(_share(head.is_clipped(torch.cat(tangents))))
    return {"clamps": max(shares)}
