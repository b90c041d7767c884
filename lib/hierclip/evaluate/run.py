"""From a model to its records."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from hierclip.attacks import Budget
from hierclip.data import Dataset, Pictures, ids_of, places_of
from hierclip.evaluate.audit import audit
from hierclip.evaluate.matrix import Outcomes, level_matrix
from hierclip.evaluate.metrics import figures, intervals
from hierclip.evaluate.records import Record, git_revision, threat_model, versions
from hierclip.model import READINGS, Model
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
    first tree is attacked on all test pictures, the others on some. seed: that the model was trained with. The reading
    is chosen on validation pictures. What is computed is kept under data/checkpoints until all of it is there.
    Raises TreeError where the trees have not the same leaves in the same order.
    """
    check_forest(trees)
    trees = [tree.restrict(ids_of(dataset, split)) for tree in trees]
    first, places = trees[0], places_of(dataset, trees[0].ids)
    test, val = (dataset.pictures(part).of(places) for part in ("test", "val"))
    budget, files = Budget(params.eps, params.step, params.steps, params.restarts, params.losses), []

    def attacked(what: str, forest: Sequence[Tree], pictures: Pictures) -> Outcomes:
        files.append(root / "data/checkpoints" / f"attack-{model.method}-{seed}-{split}-{what}.npz")
        classifier = model.classifier(forest, template).to(device)
        paths = torch.from_numpy(forest_paths(forest))
        settings = {"seed": params.seed, "batch": params.batch, "kept": files[-1]}
        title = f"attack on {model.method}-{seed}, {split}, {what}"
        return level_matrix(classifier, pictures, paths, budget, what=title, **settings)

    chosen = attacked("val", [first], val[val.spread(params.reading_images)])
    outcomes, some = attacked("test", [first], test), test.spread(params.forest_images)
    forest = {first.name: outcomes.take(some.numpy(), slice(None))}
    if trees[1:]:
        others = attacked("forest", trees[1:], test[some])
        forest |= {name: others.take(slice(None), levels) for name, levels in forest_columns(trees[1:]).items()}
    values = {reading: figures(outcomes, reading) for reading in READINGS}
    bounds = {reading: intervals(outcomes, reading, params.bootstrap, params.seed) for reading in READINGS}
    classifier, paths = model.classifier(first, template).to(device), torch.from_numpy(first.paths)
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
            **{name: {reading: values[reading][name] for reading in READINGS} for name in values["direct"]},
            "intervals": bounds,
            "forest": {tree.name: tree_figures(tree, forest[tree.name], params) for tree in trees},
            "audit": audit(classifier, test, paths, budget, count=params.audit_images, seed=params.seed),
            "versions": versions(),
            "git": git_revision(root),
        }
    )
    for file in files:
        file.unlink()
    return record, outcomes


def tree_figures(tree: Tree, outcomes: Outcomes, params: AttackParams) -> dict:
    """What a record says of one tree of the forest."""
    values = {reading: figures(outcomes, reading) for reading in READINGS}
    bounds = {reading: intervals(outcomes, reading, params.bootstrap, params.seed) for reading in READINGS}
    return {
        "images": len(outcomes.clean[READINGS[0]]),
        "levels": tree.sizes,
        "worst_level": {reading: values[reading]["worst_level"] for reading in READINGS},
        "path_robust": {reading: values[reading]["path_robust"] for reading in READINGS},
        "intervals": {reading: bounds[reading]["path_robust"] for reading in READINGS},
    }


def better_reading(figures: Mapping[str, dict]) -> str:
    """The reading of the higher path-robust accuracy; where they tie, of the higher worst level."""
    return max(figures, key=lambda reading: (figures[reading]["path_robust"], figures[reading]["worst_level"]))
