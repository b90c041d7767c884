"""The registry of methods: the loss each one trains on and the one its attack climbs, and how it is read."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hierclip.losses import baselines
from hierclip.losses.context import Context, Perturbation
from hierclip.losses.hierarchical import hierarchical, hita
from hierclip.model import HEADS, CosineHead, Head
from hierclip.params import HierParams, MethodParams, TrainedParams

Loss = Callable[[Context, Perturbation, TrainedParams], Tensor]


@dataclass(frozen=True)
class Objective:
    """What training minimises, and what the attack that it learns from maximises."""

    loss: Loss
    attack: Loss
    passes: int = 1  # gradients in the weights that a step takes


OBJECTIVES: dict[str, Objective] = {
    "tecoa": Objective(baselines.tecoa, baselines.tecoa),
    "fare": Objective(baselines.fare, baselines.fare),
    "pmg_aft": Objective(baselines.pmg_aft, baselines.tecoa, passes=2),
    "tga_zsr": Objective(baselines.tga_zsr, baselines.tecoa, passes=2),  # pyright: ignore
    "agft": Objective(baselines.anchored_agft, baselines.agft),  # pyright: ignore
    "hier": Objective(hierarchical, hita),  # pyright: ignore
}


def make_head(params: MethodParams, scale: float, image_norm: float, text_norm: float) -> Head:
    """The head a method starts from. scale: the pre-trained model's own; norms: of its embeddings, typically."""
    if isinstance(params, HierParams):
        radii = params.image_radius, params.text_radius, params.top_radius
        return HEADS[params.geometry](params.curvature, *radii, params.tau, params.norms, image_norm, text_norm)
    return CosineHead(scale * params.logit_scale)


Levels = tuple[int, ...] | None  # None: all

# By name, for trees of so many levels above the leaves: each perturbation's levels in the attack and in training.
PERTURBATIONS: dict[str, Callable[[int], list[tuple[Levels, Levels]]]] = {
    "universal": lambda top: [(None, None)],
    "leaf": lambda top: [((0,), None)],
    "level": lambda top: [((level,), (level,)) for level in range(top + 1)],
}


def gradient_evaluations(params: TrainedParams, top: int) -> int:
    """How many gradients of a batch one training step takes, for its attack and for the weights."""
    objective, count = OBJECTIVES[params.loss], len(PERTURBATIONS[params.perturbation](top))
    return count * (params.attack.steps + objective.passes)
