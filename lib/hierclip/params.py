"""`params.yaml`, read once: typed, frozen, every key known and every value checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
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


Eps = Annotated[float, BeforeValidator(parse_budget), PlainSerializer(format_budget, when_used="json")]
Step = Annotated[Eps, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=10**8)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataParams(Section):
    name: Literal["openmoji"]
    size: PositiveInt  # pixels a side
    seed: Seed
    val_per_class: PositiveInt
    test_per_class: PositiveInt


TreeName = Literal["wordnet", "emoji", "use", "place", "look"]


class TreesParams(Section):
    names: tuple[TreeName, ...] = Field(min_length=1)  # over the same leaves; the first is the one that is shown
    widths: tuple[PositiveInt, ...] = Field(min_length=1)  # most nodes at WordNet's levels 1..L


class ModelParams(Section):
    architecture: str  # an open_clip model name
    pretrained: str | None  # a tag that open_clip knows, a checkpoint file, or null: train from scratch
    template: Annotated[str, Field(pattern=r"\{\}")]  # a prompt, with {} for the class's name
    precision: Literal["32-true", "bf16-mixed"]
    accelerator: Literal["cpu", "gpu", "auto"]


class OptimParams(Section):
    batch: PositiveInt
    weight_decay: float = Field(ge=0)
    warmup: float = Field(gt=0, lt=1)  # share of the steps in which the learning rate rises
    checkpoint_every: PositiveInt  # steps


class PretrainParams(OptimParams):
    steps: PositiveInt
    lr: PositiveFloat
    seed: Seed
    leaf_captions: float = Field(gt=0, le=1)  # share of the captions that name the leaf itself


class FinetuneParams(OptimParams):
    """What all methods share. A method takes as many steps as its gradient evaluations allow."""

    gradients: PositiveInt  # of a batch: those of the attacks, and those in the weights
    eps: Eps


class TrainAttackParams(Section):
    step: Step
    steps: PositiveInt
    momentum: float = Field(default=0.0, ge=0, lt=1)


class NoneParams(Section):
    """The model as it is."""

    label: str
    loss: Literal["none"]
    logit_scale: PositiveFloat = 1.0


class FlatParams(Section):
    label: str  # as figures and tables show it
    loss: Literal["tecoa", "fare", "pmg_aft"]
    lr: PositiveFloat
    logit_scale: PositiveFloat  # times the pre-trained model's own
    attack: TrainAttackParams
    perturbation: Literal["universal"] = "universal"


class TgaZsrParams(FlatParams):
    loss: Literal["tga_zsr"]  # pyright: ignore[reportIncompatibleVariableOverride]
    alpha: float = Field(ge=0)  # weight of attention on the adversarial image
    beta: float = Field(ge=0)  # weight of attention on the clean image


class AgftParams(FlatParams):
    loss: Literal["agft"]  # pyright: ignore[reportIncompatibleVariableOverride]
    gamma: PositiveFloat  # the target's logit scale by the trained model's
    hard: float = Field(ge=0, le=1)  # share of the target that is one-hot


class HierParams(Section):
    label: str
    loss: Literal["hier"]
    trees: tuple[TreeName, ...] = Field(min_length=1)
    lr: PositiveFloat
    text_lr: PositiveFloat  # of the text projection and of what is learned of the geometry
    attack: TrainAttackParams
    perturbation: Literal["universal", "leaf", "level"]
    text_eps: float = Field(ge=0)  # of the texts' perturbation, an entry, for embeddings of length 1
    geometry: Literal["poincare", "euclidean"]
    curvature: PositiveFloat  # r; the ball's radius is 1 / sqrt(r)
    image_radius: PositiveFloat  # length of an image's tangent vector
    text_radius: PositiveFloat  # the same for leaf texts
    top_radius: PositiveFloat  # and for those of the coarsest level; levels between go in even steps
    tau: PositiveFloat
    norms: Literal["fixed", "free"]  # free: times the embedding's own norm over the typical one
    learned: tuple[Literal["curvature", "image_radius", "text_radius", "top_radius", "tau"], ...]
    upper_weight: float = Field(ge=0)  # of the levels above the leaves, times 1 - l / (L + 1)
    negatives: tuple[Literal["finer", "coarser"], ...]
    vic: float = Field(ge=0)  # lambda_1
    zeta_vic: float = Field(ge=0)  # a distance in the ball
    gap: float = Field(ge=0)  # lambda_2
    zeta_gap: float = Field(ge=0)  # a difference of norms in the ball


TrainedParams = FlatParams | TgaZsrParams | AgftParams | HierParams
MethodParams = Annotated[NoneParams | TrainedParams, Field(discriminator="loss")]


class AttackParams(Section):
    eps: Eps
    step: Step
    steps: PositiveInt
    restarts: PositiveInt
    losses: tuple[Literal["margin", "ce"], ...] = Field(min_length=1)
    batch: PositiveInt
    seed: Seed
    bootstrap: PositiveInt  # resamples behind an interval
    reading_images: PositiveInt  # validation pictures that choose the reading
    forest_images: PositiveInt  # test pictures on which trees after the first are attacked
    audit_images: PositiveInt


class MarginParams(Section):
    method: str  # read by distance in the ball; the bound is for those
    seed: Seed


class StudyParams(Section):
    """A set of short runs."""

    gradients: PositiveInt  # instead of finetune.gradients
    images: PositiveInt  # of each split, evenly spaced
    workers: PositiveInt  # processes, of one thread each


class SweepParams(StudyParams):
    seed: Seed
    grid: dict[str, dict[str, tuple[PositiveFloat, ...]]]  # by method: values of some of its keys


class AblationParams(StudyParams):
    seeds: tuple[Seed, ...] = Field(min_length=1)
    tables: dict[str, dict[str, dict[str, Any]]]  # table, row: a method, and keys of it to change


class PlotsParams(Section):
    palette: dict[str, str]  # by method
    dpi: PositiveInt
    width: PositiveFloat  # inches


class Params(Section):
    methods: tuple[str, ...]
    seeds: tuple[Seed, ...]
    data: DataParams
    trees: TreesParams
    model: ModelParams
    pretrain: PretrainParams
    finetune: FinetuneParams
    method: dict[str, MethodParams]
    attack: AttackParams
    margin: MarginParams
    sweep: SweepParams
    ablation: AblationParams
    plots: PlotsParams

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for key, values in (("methods", self.methods), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{key} must name at least one, and each once")
        named = {"methods": self.methods, "margin.method": [self.margin.method], "sweep.grid": self.sweep.grid}
        for key, names in named.items():
            if unknown := set(names) - set(self.method):
                raise ValueError(f"{key}: no method {', '.join(sorted(unknown))}; known are {', '.join(self.method)}")
        chosen = self.method[self.margin.method]
        if self.margin.method not in self.methods or self.margin.seed not in self.seeds:
            raise ValueError("margin.method and margin.seed must be among methods and seeds")
        if not isinstance(chosen, HierParams) or chosen.geometry != "poincare":
            raise ValueError("margin.method must be one that is read by distance in the Poincare ball")
        for name, method in self.method.items():
            if isinstance(method, HierParams) and (unknown := set(method.trees) - set(self.trees.names)):
                raise ValueError(f"method.{name}.trees: {', '.join(sorted(unknown))} is not among trees.names")
        if missing := set(self.methods) - set(self.plots.palette):
            raise ValueError(f"plots.palette lacks a colour for {', '.join(sorted(missing))}")
        for table, rows in self.ablation.tables.items():
            for row, changes in rows.items():
                self.variant(f"ablation.tables.{table}.{row}", changes)
        for name, grid in self.sweep.grid.items():
            self.variant(f"sweep.grid.{name}", {"method": name} | {key: values[0] for key, values in grid.items()})
        return self

    @property
    def labels(self) -> dict[str, str]:
        """What figures and tables call each of `methods`, in that order."""
        return {name: self.method[name].label for name in self.methods}

    def variant(self, where: str, changes: Mapping[str, object]) -> MethodParams:
        """The method that `changes` names under "method", with its other entries in place of that method's own.

        Raises ParamsError, naming `where`, for a method or a key that is not known and a value that is not allowed.
        """
        own = dict(changes)
        if (name := own.pop("method", None)) not in self.method:
            raise ParamsError(f"{where}: no method {name!r}; known are {', '.join(self.method)}")
        base = self.method[str(name)]
        try:
            return type(base).model_validate(base.model_dump(mode="json") | own)
        except ValidationError as error:
            raise ParamsError(f"{where}: {_line(error.errors()[0])}") from None


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
