"""How time and memory grow with leaves, levels and trees: of a training step's loss and of the
level matrix.
"""

from benchmarks.measure import Row, exponent, in_process

TIMES = (1, 2, 4, 8)
START = {"leaves": 500, "levels": 1, "trees": 1}
IMAGES, BATCH = 24, 64
POINT = """
import json, sys
from statistics import median
from time import perf_counter

import torch
from torch.nn import functional as F

from benchmarks.measure import peak_memory
from benchmarks.synthetic import make_forest, make_tree_loss
from hierclip.attacks import Budget
from hierclip.data import ImageSet
from hierclip.evaluation import LevelMatrix
from hierclip.models import Classifier, CosineHead, ImageEncoder, create
from hierclip.config import load_params

torch.set_num_threads(1)
params, (leaves, levels, trees, images, batch) = load_params(), map(int, sys.argv[1:])
backbone = create(params.model, seed=0, size=params.data.size)
before, seconds = peak_memory(), {}
forest = make_forest(leaves, levels, trees)
loss = make_tree_loss(forest, params.method["hier"], batch, 64)
loss.step(1)
steps = []
for _ in range(5):
    start = perf_counter()
    loss.step(1)
    steps.append(perf_counter() - start)
paths = forest.all_paths
texts = [F.normalize(torch.randn(int(column.max()) + 1, 64), dim=1) for column in paths.T]
encoder, head = ImageEncoder(backbone, fold=True), CosineHead(20.0)
classifier = Classifier(encoder, head, texts).eval()
leaf_classifier = Classifier(encoder, head, texts[:1]).eval()
pixels = torch.randint(256, (images, 3, 32, 32), dtype=torch.uint8)
shown = ImageSet(pixels, torch.randint(leaves, (images,)))
budget = Budget(0.01, 0.01, 2, 1, ("pgd_margin",), 1, stop_margin=float("inf"))
given = {"seed": 0, "batch": images, "prune": False}
LevelMatrix(leaf_classifier, shown, paths[:, :1], budget, **given).outcomes()
start = perf_counter()
LevelMatrix(classifier, shown, paths, budget, **given).outcomes()
matrix = perf_counter() - start
print(json.dumps({"step": median(steps), "matrix": matrix, "memory": peak_memory() - before}))
"""


def growth() -> list[Row]:
    """Fit an exponent to the cost at 1, 2, 4 and 8 times the leaves, the levels of a tree, and the
    trees.
    """
    rows = []
    for name, start in START.items():
        sizes = [start * times for times in TIMES]
        found = [
            in_process(POINT, *(START | {name: size}).values(), IMAGES, BATCH) for size in sizes
        ]
        for what, words in {
            "step": "a step's loss",
            "matrix": "the level matrix",
            "memory": "memory",
        }.items():
            costs = [each[what] for each in found]
            note = ", ".join(f"{size}: {cost:.3g}" for size, cost in zip(sizes, costs, strict=True))
            rows.append(
                Row("growth", f"{name}: {words}", 1, exponent(sizes, costs), "", 1.1, note=note)
            )
    return rows
