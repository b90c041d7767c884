"""From a model to its records."""

from collections.abc import Mapping
from pathlib import Path

import torch

from hierclip.attacks import Budget
from hierclip.data import PARTS, Dataset, ids_of, places_of
from hierclip.evaluate.audit import audit
from hierclip.evaluate.matrix import Outcomes, level_matrix
from hierclip.evaluate.metrics import figures, intervals
from hierclip.evaluate.records import Record, git_revision, threat_model, versions
from hierclip.model import READINGS, Model
from hierclip.params import AttackParams
from hierclip.trees import Tree


def evaluate(
    model: Model,
    dataset: Dataset,
    tree: Tree,
    split: str,
    *,
    seed: int,
    params: AttackParams,
    template: str,
    root: Path,
    device: torch.device | str = "cpu",
) -> tuple[Record, Outcomes]:
    """A model's record on one split of a dataset, and the outcomes of its test pictures.

    tree: over the whole dataset; the split's classes get their own part of it, and their own prompts. seed: that
    the model was trained with. The reading is chosen on validation pictures. What is computed is kept under
    data/checkpoints until all of it is there.
    """
    tree = tree.restrict(ids_of(dataset, split))
    places, paths = places_of(dataset, tree.ids), torch.from_numpy(tree.paths)
    classifier = model.classifier(tree, template).to(device)
    budget = Budget(params.eps, params.step, params.steps, params.restarts, params.losses)
    outcomes, files = {}, []
    for part in PARTS:
        what = f"attack on {model.method}-{seed}, {split}, {part}"
        files.append(root / "data/checkpoints" / f"attack-{model.method}-{seed}-{split}-{part}.npz")
        pictures = dataset.pictures(part).of(places)
        settings = {"seed": params.seed, "batch": params.batch, "kept": files[-1], "what": what}
        outcomes[part] = level_matrix(classifier, pictures, paths, budget, **settings)
    test, pictures = outcomes["test"], dataset.pictures("test").of(places)
    values = {reading: figures(test, reading) for reading in READINGS}
    bounds = {reading: intervals(test, reading, params.bootstrap, params.seed) for reading in READINGS}
    record = Record.model_validate(
        {
            "dataset": dataset.name,
            "split": split,
            "method": model.method,
            "seed": seed,
            "images": len(pictures),
            "reading": better_reading({reading: figures(outcomes["val"], reading) for reading in READINGS}),
            "threat_model": threat_model(params, template, pictures.images.shape[-1]),
            "trees": {tree.name: tree.hash},
            "levels": tree.sizes,
            **{name: {reading: values[reading][name] for reading in READINGS} for name in values["direct"]},
            "intervals": bounds,
            "audit": audit(classifier, pictures, paths, budget, count=params.audit_images, seed=params.seed),
            "versions": versions(),
            "git": git_revision(root),
        }
    )
    for file in files:
        file.unlink()
    return record, test


def better_reading(figures: Mapping[str, dict]) -> str:
    """The reading of the higher path-robust accuracy; where they tie, of the higher worst level."""
    return max(figures, key=lambda reading: (figures[reading]["path_robust"], figures[reading]["worst_level"]))
