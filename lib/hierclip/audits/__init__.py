"""The audit for others: a model and a folder of pictures in, its robustness at every level of a class tree out."""

from hierclip.audits.classes import class_trees, same_words
from hierclip.audits.folders import class_names, read_folder
from hierclip.audits.models import open_model
from hierclip.audits.run import audit
