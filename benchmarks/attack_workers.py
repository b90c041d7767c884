"""How much faster a level is attacked by one thread a batch than by all threads on one batch after the other.

python benchmarks/attack_workers.py, after `make repro`; half a minute. Prints a ratio of two times in one run.
"""

from time import perf_counter

import torch

from hierclip.attacks import aims, attack, budget_of, frozen
from hierclip.data import ids_of, load_dataset, places_of
from hierclip.evaluate.matrix import attacked
from hierclip.model import load_model
from hierclip.params import find_root, load_params
from hierclip.trees import load_forest

root, params = find_root(), load_params()
dataset, a = load_dataset(params.data, root), params.attack
tree = load_forest(root / "data/trees", params.trees.names)[0].restrict(ids_of(dataset, "tuned"))
pictures = dataset.pictures("test").of(places_of(dataset, tree.ids))
images, labels = pictures.floats(), pictures.labels
classifier = load_model(root / "data/models" / f"{params.methods[1]}-{params.seeds[0]}").classifier(
    tree, params.model.template
)
budget, aim = budget_of(a), aims(torch.from_numpy(tree.paths), 0)[0]


def after_another() -> None:
    for x, y in zip(images.split(a.batch), labels.split(a.batch), strict=True):
        attack(lambda z: classifier(z, [0]), x, [aim.own[0][y]], budget, 0)


def seconds(work) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


with frozen(classifier):
    attacked(classifier, images[: a.batch], labels[: a.batch], aim, budget, 0, a.batch)  # warm up
    pool = min(seconds(lambda: attacked(classifier, images, labels, aim, budget, 0, a.batch)) for _ in range(2))
    plain = min(seconds(after_another) for _ in range(2))
print(f"{torch.get_num_threads()} threads, {len(images)} images: a thread a batch takes {pool / plain:.2f} of the time")
