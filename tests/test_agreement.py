"""Our suite against pyautoattack's standard one: minutes, so `make slow`."""

import pytest
import torch
from torch import nn

from hierclip.attacks import STANDARD, Budget, frozen, level_goals
from hierclip.config import find_root, load_params
from hierclip.data import class_indices, ids_of, load_dataset
from hierclip.evaluation.matrix import attacked
from hierclip.models import load_model
from hierclip.trees import load_forest

COUNT = 500


class Leaves(nn.Module):
    """A classifier as other packages see one: images to leaf logits."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, images):
        return self.classifier(images, [0])[0]


@pytest.mark.slow
def test_the_suite_leaves_as_many_leaves_standing_as_autoattack_does():
    autoattack = pytest.importorskip("pyautoattack", reason='needs pip install -e ".[peers]"')
    root, params = find_root(), load_params()
    if not (root / "data/models/tecoa-0").exists():
        pytest.skip("needs data/models/tecoa-0, which `make repro` trains")
    dataset = load_dataset(params.data, root)
    tree = load_forest(root / "data/trees", params.trees.names)[0].restrict(ids_of(dataset, "seen"))
    test = dataset.images("test").select_classes(class_indices(dataset, tree.ids))
    images, labels = (values[test.evenly_spaced(COUNT)] for values in (test.floats(), test.labels))
    classifier = load_model(root / "data/models/tecoa-0").classifier(tree, params.model.template)
    eps, goal = params.attack.eps, level_goals(torch.from_numpy(tree.paths), 0)[0]
    budget = Budget(eps=eps, step=eps, steps=100, restarts=1, suite=STANDARD, queries=5000)
    torch.set_num_threads(2)

    def accuracy(moved) -> float:
        return float(
            (torch.cat([classifier(x, [0])[0].argmax(1) for x in moved.split(100)]) == labels)
            .float()
            .mean()
        )

    with frozen(classifier):
        ours = accuracy(attacked(classifier, images, labels, goal, budget, 0, 250)[0])
        judge = autoattack.AutoAttack(
            Leaves(classifier), norm="Linf", eps=eps, seed=0, version="standard"
        )
        theirs = accuracy(
            judge.run_standard_evaluation(images.contiguous(), labels, batch_size=250)[0]
        )
    print(
        f"\nleaf accuracy of {COUNT} images at {255 * eps:g}/255: ours {ours:.4f}, AutoAttack {theirs:.4f}"
    )
    assert abs(ours - theirs) <= 0.005
