"""What fine-tuning reads, made without notebooks where it is missing."""

from collections.abc import Callable
from pathlib import Path

from torch import distributed as dist

from hierclip.data import PREPARED, load_dataset
from hierclip.model.classifier import HEAD
from hierclip.params import Params
from hierclip.stages import BASE, TREES
from hierclip.stages.pretrain import pretrain_stage
from hierclip.trees import save_tree, set_forest


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
        leaves = {leaf.id: leaf.name for leaf in dataset.leaves}
        for tree in set_forest(root, params.data.name, leaves, params.trees.names, params.trees.widths):
            save_tree(tree, root / TREES / f"{tree.name}.json")
    if not (root / BASE / HEAD).exists():
        say(f"making the base model: {root / BASE}")
        pretrain_stage(root, params)
