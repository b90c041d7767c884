"""Writes the tree of every set as JSON into the folder `trees` beside this file, as notebook 20
builds it, and all trees as CSV into `maps`: `python -m data.source.trees` in the project's folder.
"""

from pathlib import Path

import pandas as pd

from hierclip.config import find_root, load_params
from hierclip.data import load_dataset
from hierclip.data.sources import PUBLISHED, imagenet_names, published_names
from hierclip.trees import Tree, save_tree
from hierclip.trees.shipped import load, save_csv, shipped_trees
from hierclip.trees.wordnet import EXCERPT, WordNet
from tests.conftest import notebook_functions

SOURCE = Path(__file__).parent


def set_classes(root: Path) -> dict[str, dict[str, str]]:
    """Return the classes of every set, identifier to name."""
    tiny = pd.read_csv(root / "data/source/tiny-imagenet.csv", index_col="wnid")["name"]
    emoji = load_dataset(load_params(root / "params.yaml").data.pretraining, root).leaves
    named = {name: published_names(root, name) for name in PUBLISHED}
    return {
        "emoji": {leaf.id: leaf.name for leaf in emoji},
        "imagenet": imagenet_names(),
        "tiny-imagenet": tiny.to_dict(),
        **{
            name: {k: words for k, words in names.items() if words} for name, names in named.items()
        },
    }


def build_trees(root: Path) -> dict[str, Tree]:
    """Build the own tree of every set from the committed files alone."""
    set_tree = notebook_functions("20_trees")["set_tree"]
    most = {"emoji": load_params(root / "params.yaml").trees.widths}
    wordnet = WordNet(EXCERPT)
    return {
        name: set_tree(root, name, leaves, most.get(name), wordnet)
        for name, leaves in set_classes(root).items()
    }


if __name__ == "__main__":
    for name, tree in build_trees(find_root()).items():
        save_tree(tree, SOURCE / "trees" / name / f"{tree.name}.json")
    shipped_trees.cache_clear()
    for name, trees in shipped_trees().items():
        for tree in trees:
            save_csv(load(name, tree), SOURCE / "maps" / f"{name}-{tree}.csv")
