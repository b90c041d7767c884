"""The objectives that fine-tuning minimises and its attack maximises, and their registry."""

from collections.abc import Callable

from hierclip.config import HierParams, MethodParams
from hierclip.losses.baselines import (
    BASELINES as BASELINES,
)
from hierclip.losses.hierarchical import (
    hierarchical as hierarchical,
    hita as hita,
)
from hierclip.losses.levels import (
    Context as Context,
    Objective as Objective,
    Perturbation as Perturbation,
    make_nodes as make_nodes,
)
from hierclip.losses.matching import match as match
from hierclip.models import HEADS, CosineHead, Head

OBJECTIVES: dict[str, Objective] = BASELINES | {
    "match": Objective(match, match),  # pyright: ignore
    "hier": Objective(hierarchical, hita),  # pyright: ignore
}
Levels = tuple[int, ...] | None  # None: all

# By name: for trees of so many levels above the leaves, the levels of each perturbation in the
# attack and in training.
PERTURBATIONS: dict[str, Callable[[int], list[tuple[Levels, Levels]]]] = {
    "universal": lambda top: [(None, None)],
    "leaf": lambda top: [((0,), None)],
    "level": lambda top: [((level,), (level,)) for level in range(top + 1)],
}


def make_head(params: MethodParams, scale: float, image_norm: float, text_norm: float) -> Head:
    """Make the head that a method starts from.

    scale: the pre-trained model's own. image_norm, text_norm: typical norms of its embeddings.
    """
    if not isinstance(params, HierParams):
        return CosineHead(scale * params.logit_scale)
    return HEADS[params.geometry](
        curvature=params.curvature,
        image_radius=params.image_radius,
        text_radius=params.text_radius,
        top_radius=params.top_radius,
        tau=params.tau,
        norms=params.norms,
        image_norm=image_norm,
        text_norm=text_norm,
    )
