"""Attacks: PGD for training, a suite for evaluation, and what an attack may want wrong."""

from hierclip.attacks.aims import AIMS, LOSSES, Aim, aims, cross_entropy, margin
from hierclip.attacks.draws import Draws
from hierclip.attacks.norms import NORMS
from hierclip.attacks.siege import Budget, Siege
from hierclip.attacks.suite import ATTACKS, GRADIENT, STANDARD, attack, besiege, budget_of
from hierclip.attacks.training import frozen, pgd
