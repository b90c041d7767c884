"""`params.yaml` as typed, frozen records: unknown keys and bad values are refused."""

import os
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    model_validator,
)

from hierclip.errors import HierclipError, no_such

FILE = "params.yaml"
SUBSETS = ("seen", "unseen")  # classes seen in fine-tuning, and the others


class ParamsError(HierclipError):
    """What is wrong in the parameter file, and at which key."""


# Values


def parse_budget(value: object) -> float:
    """Read a budget in pixel units of [0, 1] from "n/255". Raises ValueError for anything else."""
    numerator, slash, denominator = str(value).partition("/")
    try:
        n = float(numerator)
    except ValueError:
        n = -1.0
    if (slash, denominator.strip()) != ("/", "255") or not 0 <= n <= 255:
        raise ValueError(f"{value!r} is no budget; write n/255 with n from 0 to 255, such as 4/255")
    return float(Fraction(numerator) / 255)  # rounded once, so that `format_budget` is its inverse


def format_budget(eps: float) -> str:
    """Write a budget in pixel units of [0, 1] as "n/255", in the fewest digits that read so."""
    n = Decimal(eps) * 255
    texts = (f"{n:.{digits}g}/255" for digits in range(3, 40))
    short = next(text for text in texts if parse_budget(text) == eps)
    return f"{Decimal(short.removesuffix('/255')).normalize():f}/255"


Eps = Annotated[
    float, BeforeValidator(parse_budget), PlainSerializer(format_budget, when_used="json")
]
Step = Annotated[Eps, Field(gt=0)]
Style = Literal[  # of drawing, those of data/source/emoji/styles.csv
    "openmoji",
    "noto",
    "twemoji",
    "fluent-emoji-flat",
    "fluent-emoji",
    "noto-v1",
    "emojione",
    "emojione-v1",
    "fxemoji",
]
STYLES: tuple[Style, ...] = get_args(Style)
Seed = Annotated[int, Field(ge=0, lt=10**8)]
TreeName = Annotated[str, Field(pattern=r"^[\w-]+$")]  # "wordnet", or a file's in data/source/trees
Template = Annotated[str, Field(pattern=r"\{\}")]  # a prompt, with {} for the class's name


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, entries: Any) -> Any:
        unknown = [*entries.keys() - cls.model_fields] if isinstance(entries, dict) else []
        if unknown:
            raise ValueError(no_such("key", min(map(str, unknown)), cls.model_fields))
        return entries


# Data, trees and the model


class EmojiParams(Section):
    """Some of the 200 nouns of data/source/emoji in some drawing styles."""

    name: Literal["emoji"]
    size: PositiveInt  # pixels a side
    seed: Seed
    styles: tuple[Style, ...] = Field(min_length=1)
    subset: Literal["seen", "unseen"] | None  # of the nouns; null: all
    level: NonNegativeInt = 0  # of the first tree, whose nodes are the classes; of zero_shot
    val_per_drawing: PositiveInt  # a drawing is a noun in a style
    test_per_drawing: PositiveInt

    @property
    def pretraining(self) -> "EmojiParams":
        """Return the data that pre-training sees: every noun in every style."""
        return self.model_copy(update={"styles": STYLES, "subset": None})

    @property
    def subsets(self) -> tuple[str, ...]:
        return SUBSETS if self.subset is None else (self.subset,)


class PhotoParams(Section):
    name: Annotated[str, Field(pattern=r"^[\w-]+$")]  # a published set, or a folder under the root
    layout: Literal["published", "folder", "shards"]  # the last two: a folder of that name
    root: str  # where sets are, or are downloaded to; from the project's folder
    download: bool
    size: PositiveInt  # pixels a side
    train_per_class: NonNegativeInt | None  # the first by number; null: all that are left
    val_per_class: PositiveInt
    test_per_class: PositiveInt | None
    holdout_every: (
        PositiveInt | None
    )  # hold out every k-th class from fine-tuning; 1: all (of zero_shot); null: none
    stream: bool  # read training images when they are needed instead of keeping them
    strict: bool  # an image that cannot be read is an error, not a warning

    @property
    def pretraining(self) -> "PhotoParams":
        """Return the data that pre-training sees: the same."""
        return self

    @property
    def subsets(self) -> tuple[str, ...]:
        return SUBSETS[: 1 if self.holdout_every is None else 2]


KINDS = ("drawn", "photos")  # of datasets, which differ in their keys


def _kind(data: Any) -> str | None:
    if isinstance(data, dict) and "name" not in data:
        return None
    name = data.get("name") if isinstance(data, dict) else getattr(data, "name", None)
    return KINDS[name != "emoji"]


DataParams = Annotated[
    Annotated[EmojiParams, Tag(KINDS[0])] | Annotated[PhotoParams, Tag(KINDS[1])],
    Discriminator(_kind),
]


def _identity(data: DataParams) -> object:
    """Return what tells a set of images from another: photographs' name, drawings' choices."""
    return data.name if isinstance(data, PhotoParams) else data


class ZeroShotParams(Section):
    """A set of images that no stage trains on."""

    data: DataParams
    template: Template | None = None  # null: model.template
    thorough: bool = False  # gradient-masking checks too, and more attacks, on some of the images
    widths: tuple[PositiveInt, ...] | None = (
        None  # of its WordNet tree; null: those of data/source/sets/widths.yaml
    )


class TreesParams(Section):
    names: tuple[TreeName, ...] = Field(
        min_length=1
    )  # over the same leaves; the first is the one that is shown
    widths: tuple[PositiveInt, ...] = Field(min_length=1)  # most nodes at WordNet's levels 1..L


class ModelParams(Section):
    architecture: str  # an open_clip model name, hf-hub:NAME or local-dir:FOLDER
    pretrained: (
        str | None
    )  # a tag that open_clip knows, a checkpoint file, or null: train from scratch
    template: Template
    precision: Literal["32-true", "bf16-mixed"]  # of the towers in training; all else is float32
    accelerator: Literal["cpu", "gpu", "auto"]

    @property
    def scratch(self) -> bool:
        """Tell whether the model has no weights yet: a name with a colon brings its own."""
        return self.pretrained is None and ":" not in self.architecture


class MachineParams(Section):
    """Where work is done; results do not depend on it."""

    devices: PositiveInt  # of each machine, one process each
    nodes: PositiveInt  # machines, which share the project's folder
    strategy: Literal["auto", "ddp"]  # Fabric's
    address: str  # HOST:PORT at which several machines meet

    @property
    def processes(self) -> int:
        return self.devices * self.nodes


# Training


class OptimParams(Section):
    batch: PositiveInt  # images of a step, over all processes
    accumulate: PositiveInt = (
        1  # parts in which a step's images go through the model; a loss sees one of them
    )
    weight_decay: NonNegativeFloat
    warmup: float = Field(gt=0, lt=1)  # share of the steps in which the learning rate rises
    checkpoint_every: PositiveInt  # steps


class PretrainParams(OptimParams):
    steps: PositiveInt
    lr: PositiveFloat
    seed: Seed
    leaf_caption_prob: float = Field(gt=0, le=1)  # share of the captions that name the leaf itself
    min_accuracy: float = Field(
        ge=0, lt=1
    )  # leaf accuracy that every set must have, and nearly so its superclasses, or the stage fails


class FinetuneParams(OptimParams):
    """What all methods share."""

    steps: PositiveInt  # of the optimiser
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
    alpha: NonNegativeFloat  # weight of attention on the adversarial image
    beta: NonNegativeFloat  # weight of attention on the clean image


class AgftParams(FlatParams):
    loss: Literal["agft"]  # pyright: ignore[reportIncompatibleVariableOverride]
    gamma: PositiveFloat  # the target's logit scale by the trained model's
    hard_label_weight: float = Field(ge=0, le=1)  # share of the target that is one-hot
    anchor_weight: NonNegativeFloat = (
        0.0  # weight of the angle between embeddings and the original model's clean ones
    )


class MatchParams(FlatParams):
    loss: Literal["match"]  # pyright: ignore[reportIncompatibleVariableOverride]
    trees: tuple[TreeName, ...] = Field(min_length=1)
    superclass_weight: NonNegativeFloat  # of the levels above the leaves, times 1 - l / (L + 1)


class HierParams(Section):
    label: str
    loss: Literal["hier"]
    trees: tuple[TreeName, ...] = Field(min_length=1)
    lr: PositiveFloat
    text_lr: PositiveFloat  # of the text projection
    attack: TrainAttackParams
    perturbation: Literal["universal", "leaf", "level"]
    text_eps: NonNegativeFloat  # of the texts' perturbation, an entry, for embeddings of length 1
    geometry: Literal["poincare", "euclidean"]
    curvature: PositiveFloat  # r; the ball's radius is 1 / sqrt(r)
    image_radius: PositiveFloat  # length of an image's tangent vector
    text_radius: PositiveFloat  # the same for leaf texts
    top_radius: (
        PositiveFloat  # and for texts of the coarsest level; levels between go in even steps
    )
    tau: PositiveFloat
    norms: Literal["fixed", "free"]  # free: times 2n / (n + typical n)
    superclass_weight: NonNegativeFloat  # of the levels above the leaves, times 1 - l / (L + 1)
    negatives: tuple[Literal["finer", "coarser"], ...]
    vic: NonNegativeFloat  # lambda_1
    zeta_vic: NonNegativeFloat  # a distance in the ball
    gap: NonNegativeFloat  # lambda_2
    zeta_gap: NonNegativeFloat  # a difference of norms in the ball
    # What the points above the leaves are: losses.levels.roll_up.
    roll_up: Literal["midpoint", "single"] = "midpoint"


TrainedParams = FlatParams | TgaZsrParams | AgftParams | MatchParams | HierParams
MethodParams = Annotated[NoneParams | TrainedParams, Field(discriminator="loss")]


# Evaluation and studies


class AttackParams(Section):
    norm: Literal["Linf", "L2"]
    eps: Step
    suite: tuple[
        Literal[
            "pgd_ce", "pgd_margin", "apgd_ce", "apgd_margin", "apgd_t", "fab_t", "cw", "square"
        ],
        ...,
    ] = Field(min_length=1)
    step: Step  # of PGD and CW
    steps: PositiveInt  # gradients that a run of a gradient attack takes
    restarts: PositiveInt
    queries: PositiveInt  # of images, by Square
    prune: float = Field(
        ge=0, lt=1
    )  # no second gradient attack below this fraction of the way to the boundary
    eot: PositiveInt = 1  # calls of a randomised model that logits and gradients are averaged over
    batch: PositiveInt
    seed: Seed
    bootstrap: PositiveInt  # resamples behind an interval
    forest_images: PositiveInt  # test images on which every tree is attacked
    audit_images: PositiveInt
    transfer_images: PositiveInt  # shown to every model


class MarginParams(Section):
    method: str  # measured where it is read by distance in the ball
    seed: Seed


class StudyParams(Section):
    """A set of short runs."""

    steps: PositiveInt  # of the optimiser, instead of finetune.steps
    images: PositiveInt  # validation images of each subset, evenly spaced
    workers: PositiveInt  # processes, of one thread each
    holdout_every: int = Field(
        ge=2
    )  # every k-th fine-tuning class is not trained on, and measured apart
    holdout_style: Style | None = None  # of drawings, likewise


Values = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
Rows = Annotated[
    dict[str, dict[str, Any]], Field(min_length=1)
]  # by name: a method, and keys of it to change


class SweepParams(StudyParams):
    seed: Seed
    grid: dict[str, Annotated[dict[str, Values], Field(min_length=1)]] = Field(
        min_length=1
    )  # by method, by key


class AblationParams(StudyParams):
    """A study in tables, each row of which is a variant of a method."""

    seeds: tuple[Seed, ...] = Field(min_length=1)
    tables: dict[str, Rows] = Field(min_length=1)


class PlotsParams(Section):
    palette: dict[str, str]  # by method
    dpi: PositiveInt
    width: PositiveFloat  # inches


# The file


class Params(Section):
    methods: tuple[str, ...]
    seeds: tuple[Seed, ...]
    data: DataParams
    zero_shot: dict[str, ZeroShotParams]  # by name of a set, whose tree it gets; only attacked
    trees: TreesParams
    model: ModelParams
    machine: MachineParams
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
        for name in self.method:
            self.variant(f"method.{name}", {"method": name})
        for name in self.methods:
            self.variant("methods", {"method": name})
            if name not in self.plots.palette:
                raise ValueError(f"plots.palette lacks a colour for {name}")
        if self.margin.method not in self.methods or self.margin.seed not in self.seeds:
            raise ValueError("margin.method and margin.seed must be among methods and seeds")
        if getattr(self.data, "level", 0):
            raise ValueError("data.level is for zero_shot alone; write 0")
        if getattr(self.data, "holdout_every", None) == 1:
            raise ValueError(
                "data.holdout_every is 1, which leaves no class to fine-tune on; "
                "write 2, more or null"
            )
        sets = [_identity(self.data)]
        for name, entry in self.zero_shot.items():
            identity = _identity(entry.data)
            if name in SUBSETS or identity in sets or entry.data.size != self.data.size:
                raise ValueError(
                    f"zero_shot.{name} has {entry.data.name} at {entry.data.size} pixels; it must "
                    f"be a set of its own, at data.size ({self.data.size}), and no subset's name"
                )
            if entry.data.name == "emoji" and self.data.name != "emoji":
                raise ValueError(
                    f"zero_shot.{name} has emoji, whose tree is a part of that of data.name: emoji"
                )
            top = len(self.trees.widths)
            if getattr(entry.data, "level", 0) >= top:
                raise ValueError(f"zero_shot.{name}.data.level must be below {top}, the coarsest")
            sets.append(identity)
        for name, grid in self.sweep.grid.items():
            for key, values in grid.items():
                for value in values:
                    self.variant(f"sweep.grid.{name}", {"method": name, key: value})
        for table, rows in self.ablation.tables.items():
            for row, changes in rows.items():
                where = f"ablation.tables.{table}.{row}"
                multiplier = changes.get("steps_multiplier", 1)
                if not isinstance(multiplier, int | float) or not 0 < multiplier < inf:
                    raise ValueError(
                        f"{where}.steps_multiplier is {multiplier!r}; it must be a number above 0"
                    )
                self.variant(
                    where,
                    {key: value for key, value in changes.items() if key != "steps_multiplier"},
                )
        return self

    @property
    def subsets(self) -> tuple[str, ...]:
        """Return the class subsets of `data`: seen in fine-tuning, and unseen where any are."""
        return self.data.subsets

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return what every model is attacked on: the subsets and the zero-shot sets."""
        return *self.subsets, *self.zero_shot

    @property
    def labels(self) -> dict[str, str]:
        """Return the names of `methods` in figures and tables, in that order."""
        return {name: self.method[name].label for name in self.methods}

    def trees_of(self, method: MethodParams) -> tuple[str, ...]:
        """Return the trees that a method trains on; a flat method sees the leaves of the first."""
        has_trees = isinstance(method, MatchParams | HierParams)
        return method.trees if has_trees else self.trees.names[:1]

    def variant(self, where: str, changes: Mapping[str, object]) -> MethodParams:
        """Return the method that `changes` names under "method", with its other entries changed.

        Raises ParamsError, naming `where`, for an unknown method or key or a bad value.
        """
        name = changes.get("method")
        if not isinstance(name, str) or name not in self.method:
            raise ParamsError(f"{where}: {no_such('method', name, self.method)}")
        base = self.method[name]
        entries = base.model_dump(mode="json") | dict(changes)
        del entries["method"]
        try:
            method = type(base).model_validate(entries)
        except ValidationError as error:
            raise ParamsError(f"{where}: {error_line(error.errors()[0])}") from None
        unknown = sorted(set(self.trees_of(method)) - set(self.trees.names))
        if unknown:
            raise ParamsError(f"{where}.trees: {', '.join(unknown)} is not among trees.names")
        return method


def find_root(start: Path | None = None) -> Path:
    """Return the project's folder: the nearest one at or above `start` that holds params.yaml.

    start: by default the folder that the environment variable HIERCLIP_ROOT names, such as a
    preset's, or else the working directory. Raises ParamsError where there is none.
    """
    start = (start or Path(os.environ.get("HIERCLIP_ROOT", "."))).resolve()
    for folder in (start, *start.parents):
        if (folder / FILE).exists():
            return folder
    raise ParamsError(f"no {FILE} in {start} or above it; run from inside the project")


def load_params(path: Path | None = None) -> Params:
    """Read the parameters of `path`, by default the project's.

    Raises ParamsError with a line for each bad key.
    """
    path = path or find_root() / FILE
    try:
        return Params.model_validate(yaml.safe_load(path.read_text(encoding="utf8")))
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        entries = {entry["loc"]: f"{path}: {error_line(entry)}" for entry in error.errors()}
        # A bad item also makes its tuple too short: say the innermost errors only.
        inner = [a for a in entries if not any(a == b[: len(a)] for b in entries if a != b)]
        raise ParamsError("\n".join(entries[place] for place in inner)) from None


def error_line(entry) -> str:
    """Write an error of pydantic as key, message and value."""
    parts = entry["loc"][:2] + entry["loc"][3:] if entry["loc"][:1] == ("method",) else entry["loc"]
    key = ".".join(str(part) for part in parts if part not in KINDS) or "the file"
    if entry["type"] == "union_tag_invalid":  # a method's loss is pydantic's tag of the union
        known = entry["ctx"]["expected_tags"].replace("'", "").split(", ")
        return f"{key}.loss: {no_such('loss', entry['ctx']['tag'], known)}"
    if entry["type"] == "union_tag_not_found":
        named = "loss" if entry["ctx"]["discriminator"] == "'loss'" else "name"
        return f"{key}.{named}: Field required"
    message = entry["msg"].removeprefix("Value error, ")
    got = "" if isinstance(entry["input"], dict) else f" (got {entry['input']!r})"
    return f"{key}: {message}{got}" if entry["loc"] else message
