"""Attacks: PGD for training, a suite for evaluation, and what an attack may want misclassified."""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from math import inf

from torch import Tensor

from hierclip.attacks.goals import (
    GOALS as GOALS,
    LOSSES as LOSSES,
    AttackGoal as AttackGoal,
    cross_entropy as cross_entropy,
    level_goals as level_goals,
    margin as margin,
    margin_loss as margin_loss,
)
from hierclip.attacks.gradient import (
    BY_GRADIENT as BY_GRADIENT,
    frozen as frozen,
    pgd as pgd,
)
from hierclip.attacks.square import (
    square as square,
)
from hierclip.attacks.state import (
    NORMS as NORMS,
    AttackState as AttackState,
    Budget as Budget,
    PerSampleRNG as PerSampleRNG,
    Score as Score,
    Seed as Seed,
    largest_margin as largest_margin,
    mean_of_calls as mean_of_calls,
    over_levels as over_levels,
)
from hierclip.errors import HierclipError, no_such, refuse

ATTACKS = BY_GRADIENT | {"square": square}
GRADIENT = ("apgd_ce", "apgd_t")
STANDARD = (*GRADIENT, "fab_t", "square")  # with 100 steps and 5000 queries, AutoAttack's


def budget_of(params: object) -> Budget:
    """Return the budget made of the fields that `params` has under the same names."""
    names = [field.name for field in fields(Budget) if hasattr(params, field.name)]
    return Budget(**{name: getattr(params, name) for name in names})


def attack(
    score: Score,
    images: Tensor,
    true_class_masks: Sequence[Tensor],
    budget: Budget,
    seed: Seed,
    sample_ids: Iterable[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return adversarial images (N, 3, H, W) and their margins (N,): up to 0, misclassified.

    See `run_attacks`.
    """
    state = run_attacks(score, images, true_class_masks, budget, seed, sample_ids)
    return state.x_adv, state.best_margin


def run_attacks(
    score: Score,
    images: Tensor,
    true_class_masks: Sequence[Tensor],
    budget: Budget,
    seed: Seed,
    sample_ids: Iterable[int] | None = None,
    clean_margin: Tensor | None = None,
    grad_score: Score | None = None,
) -> AttackState:
    """Run a suite of attacks and return its state.

    score: images to the logits (N, K) of one or more levels, each image independent of the others.
    true_class_masks: for each level (N, K) bool, the true class's logits, which must not win. seed,
    sample_ids: of `PerSampleRNG`; None names an image by its row. clean_margin: (N,), the margins
    of the clean images, where they are known. grad_score: a differentiable surrogate of `score`,
    through which gradients are taken. Every attack works on the images that are not yet
    misclassified, so the result is the worst case over the suite, image by image. Where the budget
    prunes, a gradient attack that follows another skips the images that stayed far from the
    boundary (`AttackState.skip_distant`); Square needs no gradient and skips none. With EOT an
    attack never stops: just past the boundary, the next call may be right again. Raises
    HierclipError for an attack that is not in ATTACKS and a norm that is not in NORMS.
    """
    unknown = [name for name in budget.suite if name not in ATTACKS]
    refuse(
        {
            no_such("attack", "".join(unknown[:1]), ATTACKS): unknown,
            no_such("norm", budget.norm, NORMS): budget.norm not in NORMS,
        }
    )
    if len(images) and not 0 <= images.min() <= images.max() <= 1:  # nor where one is no number
        raise HierclipError(
            f"images: values from {float(images.min()):g} to {float(images.max()):g}; pixels in "
            "[0, 1] are attacked, before the model normalises them"
        )
    if budget.eot > 1:
        budget = replace(budget, stop_margin=inf)
    state = AttackState(score, images, true_class_masks, budget, clean_margin, grad_score)
    rng = PerSampleRNG(seed, range(len(images)) if sample_ids is None else sample_ids)
    for previous, name in pairwise(["", *budget.suite]):
        state.skipped[:] = False
        if {previous, name} <= BY_GRADIENT.keys():
            state.skip_distant()
        ATTACKS[name](state, rng)
    return state
