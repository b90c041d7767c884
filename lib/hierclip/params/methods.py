"""How each kind of method is set."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from hierclip.params.values import Section, Step, TreeName


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
    anchor: float = Field(default=0.0, ge=0)  # weight of how far embeddings turn from the original model's clean ones


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
