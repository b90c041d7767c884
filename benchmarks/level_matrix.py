"""What the level matrix costs beside the naive way, a full run of the attack for every level and reading.

python benchmarks/level_matrix.py [METHOD [PICTURES]], after `make repro`; some minutes. Prints, from one run, ratios of
times and of gradients, and the figures of all three ways: ours; every aim on every picture, each stopped where it
has succeeded; and every aim on every picture for all of its steps, as one would write it without looking. Fails where
ours takes more than 0.6 of the last one's time, or path-robust accuracy or that of a level under its own attack differs
by more than half a point.
"""

import sys
from dataclasses import replace
from math import inf
from time import perf_counter

import numpy as np
import torch

from hierclip.attacks import Siege, budget_of
from hierclip.data import ids_of, load_dataset, places_of
from hierclip.evaluate import Outcomes, figures, level_matrix
from hierclip.model import READINGS, load_model
from hierclip.params import find_root, load_params
from hierclip.trees import load_forest

root, params = find_root(), load_params()
method = sys.argv[1] if len(sys.argv) > 1 else params.methods[1]
dataset, a = load_dataset(params.data, root), params.attack
tree = load_forest(root / "data/trees", params.trees.names)[0].restrict(ids_of(dataset, "tuned"))
pictures = dataset.pictures("test").of(places_of(dataset, tree.ids))
pictures = pictures[pictures.spread(int(sys.argv[2]) if len(sys.argv) > 2 else 500)]
paths, budget = torch.from_numpy(tree.paths), budget_of(a)
classifier = load_model(root / f"data/models/{method}-{params.seeds[0]}").classifier(tree, params.model.template)
calls = []  # gradients of single images
climb = Siege.climb


def counted(siege, rows, x, loss):
    calls.append(len(rows))
    return climb(siege, rows, x, loss)


def ours() -> Outcomes:
    return level_matrix(classifier, pictures, paths, budget, seed=a.seed, batch=a.batch)


def naive() -> Outcomes:
    return level_matrix(classifier, pictures, paths, budget, seed=a.seed, batch=a.batch, prune=False)


def full() -> Outcomes:
    unstopped = replace(budget, enough=inf)
    return level_matrix(classifier, pictures, paths, unstopped, seed=a.seed, batch=a.batch, prune=False)


Siege.climb = counted  # pyright: ignore
results = {}
level_matrix(classifier, pictures[torch.arange(20)], paths, budget, seed=0, batch=20)  # warm up
for name, way in (("ours", ours), ("each aim on every picture", naive), ("the same without stopping", full)):
    calls.clear()
    start = perf_counter()
    outcomes = way()
    results[name] = perf_counter() - start, sum(calls), {reading: figures(outcomes, reading) for reading in READINGS}
print(f"{method}, {len(pictures)} pictures, {tree.top + 1} levels, {' then '.join(budget.suite)}")
for name, (seconds, gradients, found) in results.items():
    ratio = results["ours"][0] / seconds, results["ours"][1] / gradients
    diagonal = {r: np.diag(f["robust"]).round(3).tolist() for r, f in found.items()}
    headline = {r: round(f["path_robust"], 4) for r, f in found.items()}
    print(
        f"{name}: ours takes {ratio[0]:.2f} of its time, {ratio[1]:.2f} of its gradients; "
        f"path-robust {headline}; {diagonal}"
    )
ours_found, full_found = results["ours"], results["the same without stopping"]
pairs = [(ours_found[2][r], full_found[2][r]) for r in READINGS]
path = max(abs(mine["path_robust"] - theirs["path_robust"]) for mine, theirs in pairs)
levels = max(np.abs(np.diag(mine["robust"]) - np.diag(theirs["robust"])).max() for mine, theirs in pairs)
print(
    f"ours takes {ours_found[0] / full_found[0]:.2f} of the naive way's time; path-robust accuracy differs by "
    f"{path:.4f} at most, that of a level under its own attack by {levels:.4f}"
)
assert ours_found[0] <= 0.6 * full_found[0] and max(path, levels) <= 0.005
