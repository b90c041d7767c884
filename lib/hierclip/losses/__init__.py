"""The objectives that fine-tuning minimises and its attack maximises, and the registry of methods."""

from hierclip.losses.context import Context, Perturbation
from hierclip.losses.levels import make_nodes
from hierclip.losses.methods import OBJECTIVES, PERTURBATIONS, Objective, gradient_evaluations, make_head
