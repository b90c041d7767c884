"""The attack that an audit asks for, in the words of a practitioner."""

from typing import Any

from pydantic import ValidationError

from hierclip.attacks import ATTACKS, STANDARD
from hierclip.errors import HierclipError
from hierclip.params import AttackParams, parse_budget

SUITES: dict[str, dict[str, Any]] = {  # what a suite's name stands for
    "standard": {"suite": STANDARD, "steps": 100, "queries": 5000},
    "quick": {"suite": ("apgd_ce", "apgd_margin"), "steps": 8, "queries": 300},
}
FEW = 32  # pictures that choose the reading


def attack_params(
    eps: str | float, suite: str, steps: int | None, queries: int | None, checks: int, **others
) -> AttackParams:
    """suite: one of SUITES, or names of ATTACKS with commas between them, with the steps of "standard".

    PGD's step is a 2.5th of the budget by the number of steps. checks: pictures that are attacked in further ways.
    Raises HierclipError for what is no budget, no attack and no number that is allowed.
    """
    chosen: dict[str, Any] = SUITES.get(suite) or SUITES["standard"] | {
        "suite": [name.strip() for name in suite.split(",")]
    }
    if unknown := [name for name in chosen["suite"] if name not in ATTACKS]:
        known = ", ".join((*SUITES, *ATTACKS))
        raise HierclipError(f"suite: no attack {unknown[0]!r}; known are {known}")
    n = 255 * _budget(eps)
    chosen = chosen | {key: value for key, value in (("steps", steps), ("queries", queries)) if value is not None}
    few = {"reading_images": FEW, "forest_images": checks, "audit_images": checks, "transfer_images": checks}
    entries = {
        "eps": f"{n}/255",
        "step": f"{2.5 * n / max(1, chosen['steps'])}/255",
        "bootstrap": 1000,
        "prune": 0.0,
        **few,
    }
    try:
        return AttackParams.model_validate(entries | chosen | others)
    except ValidationError as error:
        entry = error.errors()[0]
        said = entry["msg"].removeprefix("Value error, ")
        raise HierclipError(f"{'.'.join(map(str, entry['loc']))}: {said} (got {entry['input']!r})") from None


def _budget(eps: str | float) -> float:
    """Of a number written n/255, or in decimals as a share of a pixel's range."""
    try:
        value = parse_budget(eps) if "/" in str(eps) else float(eps)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise HierclipError(f"eps: {eps!r} is no budget; write n/255, such as 1/255, or a share of 1, such as 0.004")
    return value
