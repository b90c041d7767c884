"""What models are attacked on: classes to tell apart, their pictures and trees."""

from dataclasses import dataclass
from pathlib import Path

from hierclip.data import Dataset, ids_of, load_dataset
from hierclip.errors import HierclipError
from hierclip.params import Params
from hierclip.stages import TREES, ZERO_SHOT
from hierclip.trees import Tree, load_forest, load_tree


@dataclass(frozen=True)
class Task:
    """name: one of `Params.tasks`. trees: over its classes."""

    name: str
    dataset: Dataset
    trees: list[Tree]
    template: str


def load_task(root: Path, params: Params, name: str) -> Task:
    """Raises HierclipError for a name that is not among `params.tasks`."""
    if name not in params.tasks:
        raise HierclipError(f"no task {name!r}; known are {', '.join(params.tasks)}")
    if name in params.splits:
        dataset, trees = load_dataset(params.data, root), load_forest(root / TREES, params.trees.names)
        return Task(name, dataset, [tree.restrict(ids_of(dataset, name)) for tree in trees], params.model.template)
    entry = params.zero_shot[name]
    dataset, tree = load_dataset(entry.data, root, f"{ZERO_SHOT}/pictures"), root / ZERO_SHOT / f"trees/{name}.json"
    return Task(name, dataset, [load_tree(tree)], entry.template or params.model.template)
