"""What fine-tuning reads, made without notebooks where it is missing."""

from collections.abc import Callable
from pathlib import Path

from torch import distributed as dist

from hierclip.data import PREPARED, Dataset, load_dataset
from hierclip.model import HEAD
from hierclip.params import Params
from hierclip.stages import BASE, TREES
from hierclip.stages.pretrain import pretrain_stage
from hierclip.trees import find_tree, save_tree, set_tree


def make_ready(root: Path, params: Params, say: Callable[[str], None]) -> None:
    """Makes the prepared pictures, the trees and the base model as the pipeline's notebooks do, those that are missing.

    say: is told what. Of several processes, or machines, none does: they would write the same files at once.
    """
    if params.machine.nodes > 1 or dist.is_torchelastic_launched():
        return
    dataset, prepared = load_dataset(params.data, root), root / PREPARED / f"{params.data.name}.safetensors"
    if not prepared.exists():
        say(f"preparing the pictures: {prepared}")
        dataset.prepare()  # pyright: ignore[reportAttributeAccessIssue]
    if not all((root / TREES / f"{name}.json").exists() for name in params.trees.names):
        say(f"making the trees: {', '.join(params.trees.names)}")
        make_trees(root, params, dataset)
    if not (root / BASE / HEAD).exists():
        say(f"making the base model: {root / BASE}")
        pretrain_stage(root, params)


def make_trees(root: Path, params: Params, dataset: Dataset) -> None:
    """The trees of `params.trees` over the dataset's classes, all in the order of the first, as files in TREES."""
    first = set_tree(params.data.name, {leaf.id: leaf.name for leaf in dataset.leaves}, params.trees.widths)
    in_order = {leaf.id: leaf.name for leaf in first.leaves}
    source = root / "data/source/trees" / params.data.name
    for name in params.trees.names:
        tree = first if name == first.name else find_tree(source, name, in_order)
        save_tree(tree, root / TREES / f"{name}.json")
