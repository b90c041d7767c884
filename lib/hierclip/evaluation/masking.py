"""Whether robustness is real: checks for gradient masking, each with the number behind it.

What to look for follows Athalye et al. (ICML 2018), Carlini et al., On Evaluating Adversarial
Robustness (2019), and for FLAGS AutoAttack's own (Croce and Hein, ICML 2020).
"""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import inf

import torch
from scipy.stats import binomtest
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.backends import cudnn
from torch.nn import functional as F

from hierclip.attacks import (
    BY_GRADIENT,
    GOALS,
    GRADIENT,
    NORMS,
    AttackGoal,
    AttackState,
    Budget,
    frozen,
    margin,
    margin_loss,
    mean_of_calls,
    over_levels,
)
from hierclip.config import Section
from hierclip.evaluation.matrix import LevelMatrix, attacked, surrogate_score
from hierclip.hyperbolic import EPS, is_clipped, points_are_clipped
from hierclip.models import Classifier, CosineHead, PoincareHead
from hierclip.progress import fingerprint, progress

BUDGETS = (0, 1, 2, 4, 8, 16, 32, 64)  # of 255
FEW = 16  # images attacked again in float64, and on which FLAGS are measured

# By check: the most that its number may be, and what the number is. FLAGS are measured before
# anything is attacked, and say what to do; a change of logits is a share of their range.
FLAGS = {
    "random": (0.01, "change of logits between two calls; attack a randomised model with --eot 20"),
    "batch size": (0.01, "change of logits of images read one by one; attack with --batch 1"),
    "order": (0.01, "change of logits with the order of a batch; attack with --batch 1"),
    "precision": (0.01, "change of logits from float32 to float64; attack the model in float32"),
    "softmax": (0.05, "share of images with probabilities, which saturate; return logits instead"),
    "optimisation": (
        0.0,
        "1 where a forward pass trains, changes weights or differentiates; attack a surrogate too",
    ),
    "none right": (
        0.0,
        "1 where no image is right without an attack, so that nothing is checked; more --checks",
    ),
    "no gradient": (0.0, "1 where logits carry no gradient to the image; give a surrogate (BPDA)"),
}
CHECKS = FLAGS | {
    "large budget": (0.05, "leaf accuracy at 64/255"),
    "budget": (0.02, "most that leaf accuracy rises from one budget to the next larger"),
    "steps": (0.05, "share that four times the steps break and the record's attack does not"),
    "restarts": (0.05, "share that two more restarts break and the record's attack does not"),
    "suite": (
        0.05,
        "share that APGD-CE and targeted APGD of twice the steps, or Square, break and the "
        "record's attack does not",
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
# Also checked at a level above the leaves.
ABOVE = ("large budget", "steps", "suite", "gradient-free", "cosine", "zero gradients")
CHECKS |= {
    f"above: {k}": (
        CHECKS[k][0],
        CHECKS[k][1].replace("leaf accuracy", "accuracy halfway up the tree"),
    )
    for k in ABOVE
}


class Check(Section):
    """The number that CHECKS describes, measured."""

    value: float
    high: float  # of a share of images the exact 95 % upper bound: how little a few images prove
    limit: float
    passed: bool


class MaskingChecks(Section):
    """Leaf accuracy of some images under other attacks than the record's own, and its checks."""

    images: int
    budgets: dict[str, float] = {}  # "n/255" to accuracy
    steps: dict[str, float] = {}
    restarts: dict[str, float] = {}
    checks: dict[str, Check] = {}

    @property
    def failed(self) -> list[str]:
        return [name for name, check in self.checks.items() if not check.passed]


def gradient_masking_checks(matrix: LevelMatrix, count: int) -> MaskingChecks:
    """Check the attacks of a level matrix on `count` of its images, evenly spaced.

    They are checked on the leaves and, for ABOVE, on the direct reading of the level halfway up, or
    of the next finer level that has a choice. Attacks on surrogates count where they break the
    model itself. In L2 the budgets are as large as Linf ones that use every pixel. A randomised
    model fails the check "random" and passes the others where the budget's `eot` is large enough.
    """
    paths = matrix.paths
    subset = replace(matrix, images=matrix.images[matrix.images.evenly_spaced(count)])
    above = [level for level in range(1, paths.shape[1] // 2 + 1) if paths[:, level].any()]
    sample = subset.images[torch.arange(min(FEW, len(subset.images)))]
    with frozen(matrix.classifier), cudnn.flags(enabled=True, allow_tf32=False):
        flags = model_flags(matrix.classifier, sample.floats(), [0, *above[-1:]])
        values, curves = _check_goal(subset, GOALS["direct"](paths, 0))
        values |= flags
        values["none right"] = float(not curves["budgets"]["0/255"])
        if above:
            others, _ = _check_goal(subset, GOALS["direct"](paths, above[-1]))
            values |= {f"above: {name}": others[name] for name in ABOVE if name in others}
    images = len(subset.images)
    checks = {name: _check(name, values[name], images) for name in CHECKS if name in values}
    return MaskingChecks(images=images, **curves, checks=checks)


def _check(name: str, value: float, images: int) -> Check:
    limit, _ = CHECKS[name]
    high = value
    if name not in FLAGS:
        counted = min(FEW, images) if name == "float64" else images
        high = binomtest(round(max(0.0, value) * counted), counted).proportion_ci().high
    return Check(value=value, high=round(high, 6), limit=limit, passed=value <= limit)


@torch.no_grad()
def model_flags(classifier: Classifier, images: Tensor, levels: Sequence[int]) -> dict[str, float]:
    """Measure FLAGS of a frozen classifier on images (N, 3, H, W), at levels that have a choice.

    A randomised model's logits change in any case, so other changes of them are left out.
    """
    images = images.to(classifier.device)
    before = fingerprint(*classifier.parameters(), *classifier.buffers())
    used_by_backward = []

    def note(saved: Tensor) -> Tensor:
        used_by_backward.append(True)
        return saved

    with saved_tensors_hooks(lambda saved: saved, note):
        logits = classifier(images, levels)
    after = fingerprint(*classifier.parameters(), *classifier.buffers())
    in_training = any(module.training for module in classifier.modules())
    with torch.enable_grad():
        score = getattr(classifier, "surrogate", None) or classifier
        tracked = score(images.clone().requires_grad_(True), levels)
    flags = {
        "random": _largest_change(logits, classifier(images, levels)),
        "softmax": max(_share(_is_softmax(level)) for level in logits),
        "optimisation": float(after != before or in_training or bool(used_by_backward)),
        "no gradient": float(not all(level.requires_grad for level in tracked)),
    }
    if flags["random"] > FLAGS["random"][0]:
        return flags
    one_by_one = zip(*(classifier(image, levels) for image in images.split(1)), strict=True)
    shifted = classifier(images.roll(1, 0), levels)
    flags["batch size"] = _largest_change(logits, [torch.cat(level) for level in one_by_one])
    flags["order"] = _largest_change(logits, [level.roll(-1, 0) for level in shifted])
    double = _in_float64(classifier, images[:1])
    if double is not None:
        flags["precision"] = _largest_change(logits, double(images.double(), levels))
    return flags


def _largest_change(logits: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Return the largest difference of logits (N, K) of some levels as a share, 0 to 1, of their
    level's range: the largest difference between two nodes for one image. It is rounded, so that
    runs that add up in another order give the same.
    """
    changes = []
    for level, other in zip(logits, others, strict=True):
        logit_range = (level.amax(1) - level.amin(1)).amax()
        change = (level - other).abs().amax() / logit_range.clamp(min=EPS)
        changes.append(change.nan_to_num(0.0).clamp(max=1))
    return round(float(torch.stack(changes).amax()), 4)


def _is_softmax(logits: Tensor) -> Tensor:
    return (logits >= 0).all(1) & ((logits.sum(1) - 1).abs() < 1e-4)


@torch.no_grad()
def _in_float64(classifier: Classifier, images: Tensor) -> Classifier | None:
    """Return a copy in float64; None without parameters, or where it cannot read images so."""
    if next(classifier.parameters(), None) is None:
        return None
    x = images.to(classifier.device).double()
    try:
        double = copy.deepcopy(classifier).double()
        for model in (double, getattr(double, "surrogate", None) or double):
            model(x, [0])
    except (RuntimeError, TypeError):
        return None
    return double


def _check_goal(
    matrix: LevelMatrix, goal: AttackGoal
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return the number of every check, and accuracies by budget, by steps and by restarts."""
    budget, classifier, images = matrix.budget, matrix.classifier, matrix.images.floats()
    steps, restarts = budget.steps, budget.restarts
    attacks: dict[object, Budget] = {
        "suite": replace(budget, suite=GRADIENT, steps=2 * steps, restarts=1),
        "square": replace(budget, suite=("square",)),
        ("restarts", restarts + 2): replace(budget, restarts=restarts + 2),
        ("steps", 2 * steps): replace(budget, steps=2 * steps),
        ("steps", 4 * steps): replace(budget, steps=4 * steps),
    }
    gradient_suite = tuple(name for name in budget.suite if name in BY_GRADIENT)
    if (
        gradient_suite != budget.suite
    ):  # Square in the record's own suite must not hide what it finds
        attacks["by gradient"] = replace(budget, suite=gradient_suite or GRADIENT, steps=4 * steps)
    for n in BUDGETS[1:]:
        eps = float(NORMS[budget.norm].size(torch.full_like(images[:1], n / 255)))
        attacks["eps", n] = replace(budget, eps=eps, step=2.5 * eps / steps)
    x_adv = _moved(matrix, goal, budget)
    native = _breaks(matrix, goal, x_adv)
    misclassified: dict[object, Tensor] = {
        ("steps", steps): native,
        ("restarts", restarts): native,
        ("eps", 0): _breaks(matrix, goal, images),
    }
    for key in progress(attacks, f"checks on {len(images)} images, level {goal.level}"):
        misclassified[key] = _breaks(matrix, goal, _moved(matrix, goal, attacks[key]))
    shares = {key: _share(which) for key, which in misclassified.items()}
    most_steps = misclassified["steps", 4 * steps]
    most_restarts = misclassified["restarts", restarts + 2]
    by_stronger = native | most_steps | most_restarts | misclassified["suite"]
    by_gradient = misclassified.get("by gradient", by_stronger) | misclassified["suite"]
    by_budget = [shares["eps", n] for n in BUDGETS]
    values = {
        "large budget": 1 - by_budget[-1],
        "budget": max(weak - strong for weak, strong in itertools.pairwise(by_budget)),
        "steps": _share(most_steps & ~native),
        "restarts": _share(most_restarts & ~native),
        "suite": _share((misclassified["suite"] | misclassified["square"]) & ~native),
        "gradient-free": _share(misclassified["square"] & ~by_gradient),
        "zero gradients": _share(_has_no_gradient(matrix, goal)),
    }
    if type(classifier.head) is PoincareHead:
        values["clamps"] = _clipped(classifier.head, classifier, matrix.batch, images, x_adv)
    for name, surrogate in surrogates(classifier).items():
        through = _moved(matrix, goal, budget, surrogate)
        values[name] = _share(_breaks(matrix, goal, through) & ~by_stronger)
    subset = replace(matrix, images=matrix.images[torch.arange(min(FEW, len(images)))])
    double = _in_float64(classifier, images[:1])
    if double is not None:
        through = _moved(subset, goal, budget, double, torch.float64).float()
        values["float64"] = _share(_breaks(subset, goal, through) & ~by_stronger[:FEW])
    return values, {
        "budgets": {f"{n}/255": 1 - shares["eps", n] for n in BUDGETS},
        "steps": {str(n): 1 - shares["steps", n] for n in (steps, 2 * steps, 4 * steps)},
        "restarts": {str(n): 1 - shares["restarts", n] for n in (restarts, restarts + 2)},
    }


def _moved(
    matrix: LevelMatrix,
    goal: AttackGoal,
    budget: Budget,
    through: Classifier | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the images moved by an attack that sees the gradient of the classifier, or `through`.

    Another classifier's boundary is not the model's: an attack through it never stops.
    """
    x_adv, _ = attacked(
        through or matrix.classifier,
        matrix.images.floats().to(dtype),
        matrix.images.labels,
        goal,
        replace(budget, stop_margin=inf) if through else budget,
        matrix.seed,
        matrix.batch,
    )
    return x_adv


@torch.no_grad()
def _breaks(matrix: LevelMatrix, goal: AttackGoal, images: Tensor) -> Tensor:
    """Return (N,) bool: whether the classifier misclassifies these images in place of its own."""
    classifier, scores = matrix.classifier, []
    for x in images.split(matrix.batch):
        read = partial(classifier, x.to(classifier.device), list(goal.levels))
        scores.append(mean_of_calls(read, matrix.budget.eot)[0].cpu())
    return margin(torch.cat(scores), goal.masks(matrix.images.labels)[0]) <= 0


def _has_no_gradient(matrix: LevelMatrix, goal: AttackGoal) -> Tensor:
    """Return (N,) bool: where a step of the whole budget moves the margin, to first order, by less
    than float32 can show, or by what is no number."""
    budget, classifier = matrix.budget, matrix.classifier
    without_gradient = []
    for rows in torch.arange(len(matrix.images)).split(matrix.batch):
        images = matrix.images[rows]
        x = images.floats().to(classifier.device)
        masks = goal.masks(images.labels.to(classifier.device))
        score = partial(classifier, levels=goal.levels)
        state = AttackState(score, x, masks, budget, grad_score=surrogate_score(classifier, goal))
        _, _, gradient = state.loss_and_grad(
            torch.arange(len(x)), x, over_levels(state, margin_loss)
        )
        rise = budget.eps * (gradient * NORMS[budget.norm].steepest(gradient)).flatten(1).sum(1)
        scores = state.clean_logits[0]
        rounding = scores.abs().amax(1) * torch.finfo(scores.dtype).eps
        without_gradient.append(~(rise > rounding).cpu())
    return torch.cat(without_gradient)


@torch.no_grad()
def _clipped(head: PoincareHead, classifier: Classifier, batch: int, *images: Tensor) -> float:
    """Return the largest share of points that the head's projection acts on: texts, and images."""
    texts = [points_are_clipped(x, head.curvature) for x in classifier.text_points]
    shares = [_share(torch.cat(texts))]
    for each in images:
        parts = [classifier.encoder(x.to(classifier.device)) for x in each.split(batch)]
        tangents = head.image_tangents(torch.cat(parts))
        shares.append(_share(is_clipped(tangents, head.curvature)))
    return max(shares)


def _share(which: Tensor) -> float:
    return round(float(which.double().mean()), 6)


class Unclamped(PoincareHead):
    """The ball's head with nothing kept from the rim: points are tangent vectors, and distances are
    the hyperboloid's, in float64.

    d = (2 / sqrt r) arsinh(sqrt((x0 y0 - <x, y> - 1) / 2)), with x0 = cosh(2 sqrt(r) |v|).
    """

    def image_points(self, embeddings: Tensor) -> Tensor:
        return self.image_tangents(embeddings)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        (x0, x), (y0, y) = self._hyperboloid(images), self._hyperboloid(texts)
        inner = x0 @ y0.T - x @ y.T
        root = ((inner - 1).clamp(min=0) / 2 + EPS).sqrt()
        return -self.tau * (2 / self.curvature**0.5 * torch.asinh(root))

    def _hyperboloid(self, tangents: Tensor) -> tuple[Tensor, Tensor]:
        v = tangents.double()
        length = v.square().sum(-1, keepdim=True).add(EPS).sqrt()
        angle = 2 * self.curvature**0.5 * length
        return torch.cosh(angle), torch.sinh(angle) * v / length

    def tangents_of(self, points: Tensor) -> Tensor:
        """Return what `expmap0` maps to points: artanh(sqrt(r) |z|) z / (sqrt(r) |z|)."""
        z = points.double()
        norm = self.curvature**0.5 * z.square().sum(-1, keepdim=True).add(EPS).sqrt()
        return (torch.atanh(norm.clamp(max=1 - 1e-12)) / norm * z).to(points.dtype)


def surrogates(classifier: Classifier) -> dict[str, Classifier]:
    """Return other ways to the model's gradient, which show whether its own hides something.

    unclamped: the same model without clamps, if it has any. cosine: the same encoder and the texts'
    directions, read by cosine, if the model is not read so itself. A model without a head has none.
    """
    head, texts = classifier.head, classifier.text_points
    out = {}
    if type(head) is PoincareHead:
        free = Unclamped(**vars(head))
        tangents = [free.tangents_of(points) for points in texts]
        out["unclamped"] = Classifier(classifier.encoder, free, tangents)
    if head is not None and not isinstance(head, CosineHead):
        directions = [F.normalize(points, dim=-1) for points in texts]
        out["cosine"] = Classifier(classifier.encoder, CosineHead(20.0), directions)
    return out
