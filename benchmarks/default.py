"""The default's models, trees and test images, as the benchmarks use them."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from hierclip.config import Params, find_root, load_params
from hierclip.data import ImageSet, class_indices, ids_of, load_dataset
from hierclip.models import Classifier, Model, load_model
from hierclip.trees import Tree, load_forest

METHOD = "tecoa-0"


@dataclass(frozen=True)
class Task:
    """A fine-tuned model, read over the classes it was fine-tuned on, and test images of these."""

    params: Params
    tree: Tree
    model: Model
    classifier: Classifier
    images: ImageSet

    @property
    def paths(self) -> Tensor:
        """(leaves, L + 1)."""
        return torch.from_numpy(self.tree.paths)


@cache
def load_task(count: int) -> Task:
    """Load the default's TeCoA and `count` test images, evenly spaced. Raises ModelError where it
    is not trained.
    """
    root, params = find_root(), load_params()
    dataset = load_dataset(params.data, root)
    tree = load_forest(root / "data/trees", params.trees.names)[0].restrict(ids_of(dataset, "seen"))
    model = load_model(root / "data/models" / METHOD)
    test = dataset.images("test").select_classes(class_indices(dataset, tree.ids))
    classifier = model.classifier(tree, params.model.template)
    return Task(params, tree, model, classifier, test[test.evenly_spaced(count)])


def base_model() -> Path:
    """Return the folder of the default's pre-trained model."""
    return find_root() / "data/models/base"


class LevelLogits(nn.Module):
    """A classifier as other packages see one: images to the logits (N, K) of one level in one
    reading.

    By roll-up a superclass's logit is the largest of its leaves', so that the best one is the
    predicted leaf's.
    """

    def __init__(
        self, classifier: Classifier, paths: Tensor, level: int = 0, reading: str = "direct"
    ):
        super().__init__()
        self.classifier, self.level, self.reading = classifier, level, reading
        self.of_leaf = paths[:, level]  # (leaves,)
        self.count = int(self.of_leaf.max()) + 1

    def forward(self, images: Tensor) -> Tensor:
        if self.reading == "direct":
            return self.classifier(images, [self.level])[0]
        leaves = self.classifier(images, [0])[0]  # (N, leaves)
        nodes = self.of_leaf.expand(len(leaves), -1)
        lowest = leaves.new_full((len(leaves), self.count), -torch.inf)
        return lowest.scatter_reduce(1, nodes, leaves, "amax")
