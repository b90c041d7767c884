"""`params.yaml`, read once: typed, frozen, every key known and every value checked."""

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

FILE = "params.yaml"


class ParamsError(ValueError):
    """What is wrong in the parameter file, and at which key."""


def parse_budget(value: object) -> float:
    """A budget in pixel units of [0, 1] from "n/255". Raises ValueError for anything else."""
    numerator, slash, denominator = str(value).partition("/")
    try:
        n = float(numerator)
    except ValueError:
        n = -1.0
    if (slash, denominator.strip()) != ("/", "255") or not 0 <= n <= 255:
        raise ValueError(f"{value!r} is no budget; write n/255 with n from 0 to 255, such as 4/255")
    return n / 255


def format_budget(eps: float) -> str:
    """ "n/255" from a budget in pixel units of [0, 1]."""
    return f"{round(255 * eps, 4):g}/255"


Eps = Annotated[float, BeforeValidator(parse_budget)]
Step = Annotated[Eps, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=10**8)]
MethodName = Literal["clip", "tecoa", "hier"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataParams(Section):
    name: Literal["openmoji"]
    size: PositiveInt  # pixels a side
    seed: Seed
    val_per_class: PositiveInt
    test_per_class: PositiveInt


class TreesParams(Section):
    name: Literal["wordnet"]
    widths: tuple[PositiveInt, ...] = Field(min_length=1)  # most nodes at levels 1..L


class ModelParams(Section):
    architecture: str  # an open_clip model name
    pretrained: str | None  # a tag that open_clip knows, a checkpoint file, or null: train from scratch
    template: Annotated[str, Field(pattern=r"\{\}")]  # a prompt, with {} for the class's name
    precision: Literal["32-true", "bf16-mixed"]
    accelerator: Literal["cpu", "gpu", "auto"]


class OptimParams(Section):
    steps: PositiveInt
    batch: PositiveInt
    weight_decay: float = Field(ge=0)
    warmup: float = Field(gt=0, lt=1)  # share of the steps in which the learning rate rises
    checkpoint_every: PositiveInt  # steps


class PretrainParams(OptimParams):
    lr: PositiveFloat
    seed: Seed
    leaf_captions: float = Field(gt=0, le=1)  # share of the captions that name the leaf itself


class TrainAttackParams(Section):
    eps: Eps
    step: Step
    steps: PositiveInt


class TecoaParams(Section):
    lr: PositiveFloat
    logit_scale: PositiveFloat  # times the pre-trained model's own


class HierParams(Section):
    lr: PositiveFloat
    text_lr: PositiveFloat
    curvature: PositiveFloat  # r; the ball's radius is 1 / sqrt(r)
    image_radius: PositiveFloat  # length of an image's tangent vector
    text_radius: PositiveFloat  # the same for leaf texts; level l has (1 - l / 2L) of it
    tau: PositiveFloat


class FinetuneParams(OptimParams):
    attack: TrainAttackParams
    tecoa: TecoaParams
    hier: HierParams


class AttackParams(Section):
    eps: Eps
    step: Step
    steps: PositiveInt
    restarts: PositiveInt
    losses: tuple[Literal["margin", "ce"], ...] = Field(min_length=1)
    batch: PositiveInt
    seed: Seed
    bootstrap: PositiveInt  # resamples behind an interval
    audit_images: PositiveInt


class MarginParams(Section):
    method: Literal["hier"]  # the ball's bound is for models read by distance in it
    seed: Seed


class PlotsParams(Section):
    palette: dict[MethodName, str]
    dpi: PositiveInt
    width: PositiveFloat  # inches


class Params(Section):
    methods: tuple[MethodName, ...]
    seeds: tuple[Seed, ...]
    data: DataParams
    trees: TreesParams
    model: ModelParams
    pretrain: PretrainParams
    finetune: FinetuneParams
    attack: AttackParams
    margin: MarginParams
    plots: PlotsParams

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for key, values in (("methods", self.methods), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{key} must name at least one, and each once")
        if self.margin.method not in self.methods or self.margin.seed not in self.seeds:
            raise ValueError("margin.method and margin.seed must be among methods and seeds")
        if missing := set(self.methods) - set(self.plots.palette):
            raise ValueError(f"plots.palette lacks a colour for {', '.join(sorted(missing))}")
        return self


def find_root(start: Path | None = None) -> Path:
    """The project's folder: the nearest one at or above `start` (here) that holds params.yaml.

    Raises ParamsError where there is none.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / FILE).exists():
            return folder
    raise ParamsError(f"no {FILE} in {start} or above it; run from inside the project")


def load_params(path: Path | None = None) -> Params:
    """The parameters of `path`, by default the project's. Raises ParamsError, a line for each bad key."""
    path = path or find_root() / FILE
    try:
        return Params.model_validate(yaml.safe_load(path.read_text(encoding="utf8")))
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise ParamsError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        entries = {entry["loc"]: _line(entry) for entry in error.errors()}
        inner = [loc for loc in entries if not any(loc == other[: len(loc)] for other in entries if other != loc)]
        raise ParamsError("\n".join(f"{path}: {entries[loc]}" for loc in inner)) from None


def _line(entry) -> str:
    key = ".".join(str(part) for part in entry["loc"]) or "the file"
    if entry["type"] == "extra_forbidden":
        return f"{key} is no known key"
    said = entry["msg"].removeprefix("Value error, ")
    return f"{key}: {said} (got {entry['input']!r})" if entry["loc"] else said
