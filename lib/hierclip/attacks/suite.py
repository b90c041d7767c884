"""The registry of attacks, and suites: one attack after the other, each on images not yet misclassified."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from functools import partial

from torch import Tensor

from hierclip.attacks.apgd import apgd, apgd_dlr
from hierclip.attacks.gradient import cw, pgd
from hierclip.attacks.norms import NORMS
from hierclip.attacks.rng import PerSampleRNG, Seed
from hierclip.attacks.square import square
from hierclip.attacks.state import AttackState, Budget, Score
from hierclip.params import AttackParams

ATTACKS: dict[str, Callable[[AttackState, PerSampleRNG], None]] = {
    "pgd_ce": partial(pgd, loss="ce"),
    "pgd_margin": partial(pgd, loss="margin"),
    "apgd_ce": partial(apgd, loss="ce"),
    "apgd_margin": partial(apgd, loss="margin"),
    "apgd_dlr": apgd_dlr,
    "cw": cw,
    "square": square,
}
BY_GRADIENT = frozenset(ATTACKS) - {"square"}
GRADIENT = ("apgd_ce", "apgd_dlr")
STANDARD = (*GRADIENT, "square")  # with 100 steps and 5000 queries, AutoAttack's but for FAB


def budget_of(params: AttackParams) -> Budget:
    """The budget that `params.yaml` asks for."""
    return Budget(
        **{field.name: getattr(params, field.name) for field in fields(Budget) if hasattr(params, field.name)}
    )


def attack(
    score: Score, images: Tensor, own: Sequence[Tensor], budget: Budget, seed: Seed, names: Iterable[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Return adversarial images (N, 3, H, W) and their margins (N,), positive where the image is misclassified.

    See `run_attacks`.
    """
    state = run_attacks(score, images, own, budget, seed, names)
    return state.x_adv, state.best_margin


def run_attacks(
    score: Score,
    images: Tensor,
    own: Sequence[Tensor],
    budget: Budget,
    seed: Seed,
    names: Iterable[int] | None = None,
    clean_margin: Tensor | None = None,
) -> AttackState:
    """Run a suite of attacks and return its state.

    score: images to the logits (N, K) of one or more levels, each image on its own. own: for each level (N, K) bool,
    the true class's logits, which must not win. seed, names: of `PerSampleRNG`; None names an image by its row.
    clean_margin: (N,), the margins of the clean images, where they are known.
    Every attack works on the images that are not misclassified yet, so the result is the worst case over the suite,
    image by image. Where the budget prunes, a gradient attack that follows another skips the images that stayed far
    from the boundary (`AttackState.skip_distant`); Square needs no gradient and skips none.
    Raises ValueError for an attack that is not in ATTACKS and a norm that is not in NORMS.
    """
    state = AttackState(score, images, own, check_budget(budget), clean_margin)
    rng = PerSampleRNG(seed, range(len(images)) if names is None else names)
    before = None
    for name in budget.suite:
        state.skipped[:] = False
        if before in BY_GRADIENT and name in BY_GRADIENT:
            state.skip_distant()
        ATTACKS[name](state, rng)
        before = name
    return state


def check_budget(budget: Budget) -> Budget:
    """The budget itself. Raises ValueError as `attack` does."""
    for what, names, known in (("attack", budget.suite, ATTACKS), ("norm", (budget.norm,), NORMS)):
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"no {what} {', '.join(unknown)}; known are {', '.join(known)}")
    return budget
