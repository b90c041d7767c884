"""The audit for others: a model and a folder of pictures in, its robustness at every level of a class tree out."""

from hierclip.audits.attacks import SUITES, attack_params
from hierclip.audits.classes import audit_trees, class_trees, flat_tree, read_synsets, same_words
from hierclip.audits.folders import Folder, class_names, picture_source, read_folder
from hierclip.audits.models import known_as, open_model
from hierclip.audits.run import Audited, audit
