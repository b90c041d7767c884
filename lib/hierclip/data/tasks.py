"""What models are trained and attacked on: classes, their images and their trees."""

from dataclasses import dataclass
from pathlib import Path

from hierclip.config import Params
from hierclip.data import Dataset, ids_of, load_dataset
from hierclip.errors import HierclipError
from hierclip.trees import Tree, load_forest, load_tree

BASE, MODELS, TREES = "data/models/base", "data/models", "data/trees"  # in a project's folder
ZERO_SHOT = "data/zero_shot"  # images and trees of the sets that no stage trains on


@dataclass(frozen=True)
class Task:
    """Classes to tell apart. trees: over these classes; template: of their prompts."""

    name: str
    dataset: Dataset
    trees: list[Tree]
    template: str


def load_task(root: Path, params: Params, name: str) -> Task:
    """Load a task of a project. Raises HierclipError for a name that is not in `params.tasks`."""
    if name not in params.tasks:
        raise HierclipError(f"no task {name!r}; known are {', '.join(params.tasks)}")
    if name in params.subsets:
        dataset = load_dataset(params.data, root)
        forest = load_forest(root / TREES, params.trees.names)
        trees = [tree.restrict(ids_of(dataset, name)) for tree in forest]
        return Task(name, dataset, trees, params.model.template)
    entry = params.zero_shot[name]
    dataset = load_dataset(entry.data, root, f"{ZERO_SHOT}/images")
    tree = load_tree(root / ZERO_SHOT / f"trees/{name}.json")
    return Task(name, dataset, [tree], entry.template or params.model.template)
