"""Attacks: PGD for training, a suite for evaluation, and what an attack may want wrong."""

from hierclip.attacks.goals import GOALS, LOSSES, AttackGoal, aims, cross_entropy, margin
from hierclip.attacks.norms import NORMS
from hierclip.attacks.rng import PerSampleRNG
from hierclip.attacks.state import AttackState, Budget
from hierclip.attacks.suite import ATTACKS, GRADIENT, STANDARD, attack, budget_of, run_attacks
from hierclip.attacks.training import frozen, pgd
