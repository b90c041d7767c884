"""The sections of the parameter file, but for the methods."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, NonNegativeInt, PositiveFloat, PositiveInt, Tag

from hierclip.params.values import Eps, Section, Seed, Step, TreeName

Template = Annotated[str, Field(pattern=r"\{\}")]  # a prompt, with {} for the class's name


class OpenMojiParams(Section):
    name: Literal["openmoji"]
    size: PositiveInt  # pixels a side
    seed: Seed
    val_per_class: PositiveInt
    test_per_class: PositiveInt


class PhotoParams(Section):
    name: Annotated[str, Field(pattern=r"^[\w-]+$")]  # a published set, or a folder under the root
    layout: Literal["published", "folder", "shards"]  # the last two for a folder of one's own, of that name
    root: str  # where sets lie, or are downloaded to; from the project's folder
    download: bool
    size: PositiveInt  # pixels a side
    train_per_class: NonNegativeInt | None  # the first by number; null: all that are left
    val_per_class: PositiveInt
    test_per_class: PositiveInt | None
    held_out_every: PositiveInt | None  # so manieth class is held out of fine-tuning; 1: all (of zero_shot); null: none
    stream: bool  # pictures to train on are read when they are needed, not kept
    strict: bool  # a picture that cannot be read is an error, not a warning


KINDS = ("drawn", "photos")  # of datasets; they differ in their keys


def _kind(data: Any) -> str:
    name = data.get("name") if isinstance(data, dict) else getattr(data, "name", None)
    return KINDS[name != "openmoji"]


DataParams = Annotated[
    Annotated[OpenMojiParams, Tag(KINDS[0])] | Annotated[PhotoParams, Tag(KINDS[1])], Discriminator(_kind)
]


class ZeroShotParams(Section):
    """A set of pictures that no stage trains on."""

    data: PhotoParams
    template: Template | None = None  # null: model.template
    widths: tuple[PositiveInt, ...] | None = None  # of its WordNet tree; null: those of data/source/sets/widths.yaml


class TreesParams(Section):
    names: tuple[TreeName, ...] = Field(min_length=1)  # over the same leaves; the first is the one that is shown
    widths: tuple[PositiveInt, ...] = Field(min_length=1)  # most nodes at WordNet's levels 1..L


class ModelParams(Section):
    architecture: str  # an open_clip model name, hf-hub:NAME or local-dir:FOLDER
    pretrained: str | None  # a tag that open_clip knows, a checkpoint file, or null: train from scratch
    template: Template
    precision: Literal["32-true", "bf16-mixed"]  # of the towers in training; all else is float32
    accelerator: Literal["cpu", "gpu", "auto"]

    @property
    def scratch(self) -> bool:
        """Whether the model comes without weights. A name with a colon, as `local-dir:FOLDER`, brings its own."""
        return self.pretrained is None and ":" not in self.architecture


class MachineParams(Section):
    """Where work is done; what comes out does not depend on it."""

    devices: PositiveInt  # of each machine, a process each
    nodes: PositiveInt  # machines, which share the project's folder
    strategy: Literal["auto", "ddp"]  # Fabric's
    address: str  # HOST:PORT at which several machines meet

    @property
    def processes(self) -> int:
        return self.devices * self.nodes


class OptimParams(Section):
    batch: PositiveInt  # pictures of a step, over all processes
    accumulate: PositiveInt = 1  # parts that a step's pictures go through the model in; a loss sees one of them
    weight_decay: float = Field(ge=0)
    warmup: float = Field(gt=0, lt=1)  # share of the steps in which the learning rate rises
    checkpoint_every: PositiveInt  # steps


class PretrainParams(OptimParams):
    steps: PositiveInt
    lr: PositiveFloat
    seed: Seed
    leaf_captions: float = Field(gt=0, le=1)  # share of the captions that name the leaf itself
    least: float = Field(ge=0, lt=1)  # accuracy that every level must have, read directly, or the stage fails


class FinetuneParams(OptimParams):
    """What all methods share. A method takes as many steps as its gradient evaluations allow."""

    gradients: PositiveInt  # of a batch: those of the attacks, and those in the weights
    eps: Eps


class AttackParams(Section):
    norm: Literal["Linf", "L2"]
    eps: Eps
    suite: tuple[Literal["pgd_ce", "pgd_margin", "apgd_ce", "apgd_margin", "apgd_dlr", "cw", "square"], ...] = Field(
        min_length=1
    )
    step: Step  # of PGD and CW
    steps: PositiveInt  # gradients that a run of a gradient attack takes
    restarts: PositiveInt
    queries: PositiveInt  # images that Square may ask for
    prune: float = Field(ge=0, lt=1)  # share of its way to the boundary short of which an image gets no second one
    batch: PositiveInt
    seed: Seed
    bootstrap: PositiveInt  # resamples behind an interval
    reading_images: PositiveInt  # validation pictures that choose the reading
    forest_images: PositiveInt  # test pictures on which every tree is attacked
    audit_images: PositiveInt
    transfer_images: PositiveInt  # shown to every model


class MarginParams(Section):
    method: str  # of one that is not read by distance in the ball nothing is measured
    seed: Seed


class StudyParams(Section):
    """A set of short runs."""

    gradients: PositiveInt  # instead of finetune.gradients
    images: PositiveInt  # of each split, evenly spaced
    workers: PositiveInt  # processes, of one thread each


class SweepParams(StudyParams):
    seed: Seed
    left_out: Annotated[int, Field(ge=2)]  # every so manieth fine-tuning class is not trained on, and measured apart
    grid: dict[str, dict[str, Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]]]  # by method: values of keys


class AblationParams(StudyParams):
    """A study in tables, each row of which is a variant of a method."""

    seeds: tuple[Seed, ...] = Field(min_length=1)
    tables: dict[str, dict[str, dict[str, Any]]]  # table, row: a method, and keys of it to change


class PlotsParams(Section):
    palette: dict[str, str]  # by method
    dpi: PositiveInt
    width: PositiveFloat  # inches
