"""The registry of attacks, and a suite of them: one after the other, each on what still stands."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from functools import partial

from torch import Tensor

from hierclip.attacks.apgd import apgd, apgd_dlr
from hierclip.attacks.draws import Draws, Seed
from hierclip.attacks.gradient import cw, pgd
from hierclip.attacks.norms import NORMS
from hierclip.attacks.siege import Budget, Score, Siege
from hierclip.attacks.square import square
from hierclip.params import AttackParams

ATTACKS: dict[str, Callable[[Siege, Draws], None]] = {
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
    """Images (N, 3, H, W) moved until the best score is not their own, or else as near to that as they came; and how
    near that is: the margins (N,), above 0 where the image has fallen. See `besiege`.
    """
    siege = besiege(score, images, own, budget, seed, names)
    return siege.best, siege.worst


def besiege(
    score: Score,
    images: Tensor,
    own: Sequence[Tensor],
    budget: Budget,
    seed: Seed,
    names: Iterable[int] | None = None,
    first: Tensor | None = None,
) -> Siege:
    """What a suite of attacks found.

    score: images to the logits (N, K) of one level or more, each image for itself; own: for each of them (N, K) bool,
    the scores that must not win. seed, names: of `Draws`; an image is named by its row where nothing is said. first:
    (N,), the images' margins as they are, where they are known.
    Every attack of the suite works on what the ones before it left standing, so what comes out is the worst over them,
    image by image; one that has fallen is attacked no further. Where the budget prunes, a gradient attack that follows
    another is given only what that one brought near (`Siege.prune`); Square, which needs no gradient, is given all.
    Raises ValueError for an attack that is not in ATTACKS and a norm that is not in NORMS.
    """
    siege = Siege(score, images, own, check_budget(budget), first)
    draws = Draws(seed, range(len(images)) if names is None else names)
    before = None
    for name in budget.suite:
        siege.far[:] = False
        if before in BY_GRADIENT and name in BY_GRADIENT:
            siege.prune()
        ATTACKS[name](siege, draws)
        before = name
    return siege


def check_budget(budget: Budget) -> Budget:
    """The budget itself. Raises ValueError as `attack` does."""
    for what, names, known in (("attack", budget.suite, ATTACKS), ("norm", (budget.norm,), NORMS)):
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"no {what} {', '.join(unknown)}; known are {', '.join(known)}")
    return budget
