"""The kinds of value that parameters have, and what every section of them shares."""

from decimal import Decimal
from fractions import Fraction
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer


def parse_budget(value: object) -> float:
    """A budget in pixel units of [0, 1] from "n/255". Raises ValueError for anything else."""
    numerator, slash, denominator = str(value).partition("/")
    try:
        n = float(numerator)
    except ValueError:
        n = -1.0
    if (slash, denominator.strip()) != ("/", "255") or not 0 <= n <= 255:
        raise ValueError(f"{value!r} is no budget; write n/255 with n from 0 to 255, such as 4/255")
    return float(Fraction(numerator) / 255)  # rounded once: what `format_budget` writes comes back as it was


def format_budget(eps: float) -> str:
    """Write a budget in pixel units of [0, 1] as "n/255", of the fewest digits that `parse_budget` makes `eps` of."""
    n = Decimal(eps) * 255
    texts = (f"{n:.{digits}g}/255" for digits in range(3, 40))
    short = next(text for text in texts if parse_budget(text) == eps)
    return f"{Decimal(short.removesuffix('/255')).normalize():f}/255"


Eps = Annotated[float, BeforeValidator(parse_budget), PlainSerializer(format_budget, when_used="json")]
Step = Annotated[Eps, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=10**8)]
TreeName = Annotated[str, Field(pattern=r"^[\w-]+$")]  # "wordnet", or a file's in data/source/trees


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
