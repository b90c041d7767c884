"""From a model to its records."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from hierclip.attacks import AIMS, Aim, budget_of
from hierclip.data import Dataset, Pictures, ids_of, places_of
from hierclip.evaluate.audit import audit
from hierclip.evaluate.matrix import fallen, level_matrix
from hierclip.evaluate.metrics import figures, intervals
from hierclip.evaluate.mistakes import mistakes
from hierclip.evaluate.outcomes import CLEAN, Outcomes
from hierclip.evaluate.records import Record, git_revision, threat_model, versions
from hierclip.model import READINGS, Classifier, Model
from hierclip.params import AttackParams
from hierclip.trees import Tree, check_forest, forest_columns, forest_paths


def evaluate(
    model: Model,
    dataset: Dataset,
    trees: Sequence[Tree],
    split: str,
    *,
    seed: int,
    params: AttackParams,
    template: str,
    root: Path,
    device: torch.device | str = "cpu",
) -> tuple[Record, Outcomes]:
    """A model's record on one split of a dataset, and the outcomes of its test pictures in the first tree.

    trees: a forest over the whole dataset; the split's classes get their own part of it, and their own prompts. The
    first tree is attacked on all test pictures, every tree on some. seed: that the model was trained with. The reading
    is chosen on validation pictures. What is computed is kept under data/checkpoints until all of it is there.
    Raises TreeError where the trees have not the same leaves in the same order, ValueError for an unknown attack.
    """
    check_forest(trees)
    trees = [tree.restrict(ids_of(dataset, split)) for tree in trees]
    first = trees[0]
    test, val = (dataset.pictures(part).of(places_of(dataset, first.ids)) for part in ("test", "val"))
    budget, files = budget_of(params), []

    def attacked(classifier: Classifier, forest: Sequence[Tree], pictures: Pictures, what: str, more=()) -> Outcomes:
        files.append(root / "data/checkpoints" / f"attack-{model.method}-{seed}-{split}-{what}.npz")
        paths, title = torch.from_numpy(forest_paths(forest)), f"attack on {model.method}-{seed}, {split}, {what}"
        settings = {"seed": params.seed, "batch": params.batch, "kept": files[-1], "more": more}
        return level_matrix(classifier, pictures, paths, budget, what=title, **settings)

    classifier = model.classifier(first, template).to(device)
    paths, some = torch.from_numpy(first.paths), test.spread(params.forest_images)
    chosen = attacked(classifier, [first], val[val.spread(params.reading_images)], "val")
    outcomes = attacked(classifier, [first], test, "test")
    every_tree, more = model.classifier(trees, template).to(device), superclass_aims(forest_paths(trees), first.top)
    forest = attacked(every_tree, trees, test[some], "forest", more)
    by_tree = {name: forest.take(levels) for name, levels in forest_columns(trees).items()}

    def reached(aim: Aim) -> torch.Tensor:
        return fallen(aim, forest.nodes[forest.under(aim.name)], test.labels[some])

    record = Record.model_validate(
        {
            "dataset": dataset.name,
            "split": split,
            "method": model.method,
            "seed": seed,
            "images": len(test),
            "reading": better_reading({reading: figures(chosen, reading) for reading in READINGS}),
            "threat_model": threat_model(params, template, test.images.shape[-1]),
            "trees": {tree.name: tree.hash for tree in trees},
            "levels": first.sizes,
            **level_figures(outcomes, params),
            "superclass": {aim.name: 1 - float(reached(aim).double().mean()) for aim in more},
            "forest": {tree.name: tree_figures(tree, by_tree[tree.name], params) for tree in trees},
            "audit": audit(classifier, test, paths, budget, count=params.audit_images, seed=params.seed),
            "versions": versions(),
            "git": git_revision(root),
        }
    )
    for file in files:
        file.unlink()
    return record, outcomes


def superclass_aims(paths: np.ndarray, top: int) -> list[Aim]:
    """Beside both readings of every level: to stay inside each superclass up to level `top`, and all levels wrong."""
    rows = torch.from_numpy(paths)
    return [*(AIMS["stay"](rows, level) for level in range(1, top + 1)), AIMS["every"](rows, top)]


def level_figures(outcomes: Outcomes, params: AttackParams) -> dict:
    """What a record says of the outcomes in the first tree."""
    values = {reading: figures(outcomes, reading) for reading in READINGS}
    bounds = {reading: intervals(outcomes, reading, params.bootstrap, params.seed) for reading in READINGS}
    named = {"clean": CLEAN, "attacked": "direct-0"}
    return {
        **{name: {reading: values[reading][name] for reading in READINGS} for name in values["direct"]},
        "intervals": bounds,
        "mistakes": {key: mistakes(outcomes, c, params.bootstrap, params.seed) for key, c in named.items()},
    }


def tree_figures(tree: Tree, outcomes: Outcomes, params: AttackParams) -> dict:
    """What a record says of one tree of the forest."""
    values = {reading: figures(outcomes, reading) for reading in READINGS}
    bounds = {reading: intervals(outcomes, reading, params.bootstrap, params.seed) for reading in READINGS}
    return {
        "images": len(outcomes.labels),
        "levels": tree.sizes,
        **{name: {reading: values[reading][name] for reading in READINGS} for name in values["direct"]},
        "intervals": {reading: bounds[reading]["path_robust"] for reading in READINGS},
    }


def better_reading(figures: Mapping[str, dict]) -> str:
    """The reading of the higher path-robust accuracy; where they tie, of the higher worst level."""
    return max(figures, key=lambda reading: (figures[reading]["path_robust"], figures[reading]["worst_level"]))
