"""Our suite against pyautoattack's standard one: half an hour a model, so `make slow`."""

import pytest
import torch
from torch import nn

from hierclip.attacks import STANDARD, Budget, attack, frozen
from hierclip.config import find_root, load_params
from hierclip.data import class_indices, ids_of, load_dataset
from hierclip.models import load_model
from hierclip.trees import load_forest

COUNT = 200
ALIVE = {"vertebrate", "invertebrate", "vascular plant"}  # of WordNet's coarsest level


class Groups(nn.Module):
    """A classifier as other packages see one: images to the best leaf logit of every group."""

    def __init__(self, classifier, of_leaf):
        super().__init__()
        self.classifier = classifier
        self.members = [torch.nonzero(of_leaf == k)[:, 0] for k in range(int(of_leaf.max()) + 1)]

    def forward(self, images):
        leaves = self.classifier(images, [0])[0]
        return torch.stack([leaves[:, members].amax(1) for members in self.members], dim=1)


def groups(classes, forest):
    """Group 150 leaves into leaves, uses, or what lives and what does not, (leaves,)."""
    trees = {tree.name: tree for tree in forest}
    if classes == 8:
        return torch.from_numpy(trees["use"].paths[:, -1])
    paths, top = torch.from_numpy(trees["wordnet"].paths), trees["wordnet"].levels[-1]
    alive = torch.tensor([node.name in ALIVE for node in top])
    return paths[:, 0] if classes == 150 else alive[paths[:, -1]].long()


def standard_judge(autoattack, model, classes, eps, seed):
    """Return pyautoattack's standard suite, with no more targets than there are other classes.

    It has no targeted APGD for fewer than four classes, which DLR needs.
    """
    judge = autoattack.AutoAttack(model, norm="Linf", eps=eps, seed=seed, version="standard")
    judge.fab.n_target_classes = judge.apgd_targeted.n_target_classes = min(9, classes - 1)
    if classes < 4:
        judge.attacks_to_run.remove("apgd-t")
    return judge


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "eps", "seeds"), [(2, 8 / 255, 3), (8, 8 / 255, 1), (150, 4 / 255, 1)]
)
def test_the_suite_leaves_as_many_images_robust_as_autoattack_does(classes, eps, seeds):
    """Compare means over seeds: with 2 classes, random starts alone change 2 % of the outcomes."""
    autoattack = pytest.importorskip("pyautoattack", reason='needs pip install -e ".[peers]"')
    root, params = find_root(), load_params()
    if not (root / "data/models/tecoa-0").exists():
        pytest.skip("needs data/models/tecoa-0, which `make repro` trains")
    dataset = load_dataset(params.data, root)
    forest = [
        tree.restrict(ids_of(dataset, "seen"))
        for tree in load_forest(root / "data/trees", params.trees.names)
    ]
    test = dataset.images("test").select_classes(class_indices(dataset, forest[0].ids))
    images, leaves = (values[test.evenly_spaced(COUNT)] for values in (test.floats(), test.labels))
    classifier = load_model(root / "data/models/tecoa-0").classifier(
        forest[0], params.model.template
    )
    of_leaf = groups(classes, forest)
    model, labels = Groups(classifier, of_leaf), of_leaf[leaves]
    budget = Budget(eps=eps, step=eps, steps=100, restarts=1, suite=STANDARD, queries=5000)

    @torch.no_grad()
    def count_right(x) -> int:
        return int((model(x).argmax(1) == labels).sum())

    with frozen(classifier):
        mask = labels[:, None] == torch.arange(classes)
        ours = theirs = 0.0
        for seed in range(seeds):
            ours += count_right(attack(lambda x: [model(x)], images, [mask], budget, seed)[0])
            judge = standard_judge(autoattack, model, classes, eps, seed)
            x_adv, _ = judge.run_standard_evaluation(images.contiguous(), labels, batch_size=COUNT)
            theirs += count_right(x_adv)
        ours, theirs = ours / seeds, theirs / seeds
        clean = count_right(images)
    print(
        f"\n{classes} classes, {COUNT} images at {255 * eps:g}/255: right without attack {clean}, "
        f"under ours {ours:.1f}, under AutoAttack {theirs:.1f}"
    )
    assert 0.05 * COUNT < ours < clean - 0.05 * COUNT  # or agreement would show nothing
    assert abs(ours - theirs) <= 0.005 * COUNT
