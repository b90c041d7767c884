"""From a model to its records."""

from pathlib import Path

import torch

from hierclip.attacks import Budget
from hierclip.data import Dataset
from hierclip.data.dataset import places_of
from hierclip.evaluate.audit import audit
from hierclip.evaluate.matrix import Outcomes, level_matrix
from hierclip.evaluate.metrics import figures, intervals, path_robust
from hierclip.evaluate.records import Record, git_revision, threat_model, versions
from hierclip.model import READINGS, Model
from hierclip.params import AttackParams, ModelParams
from hierclip.trees import Tree


def evaluate(
    model: Model,
    dataset: Dataset,
    tree: Tree,
    split: str,
    seed: int,
    attack: AttackParams,
    settings: ModelParams,
    root: Path,
    partial: Path,
) -> tuple[Record, Outcomes]:
    """A model's record on one split of a dataset, and the outcomes of its test pictures.

    tree: over the whole dataset; the split's classes get their own part of it, and their own prompts.
    The reading is chosen on validation pictures. What is computed is kept in files named after `partial` until
    all of it is there.
    """
    tree = tree.restrict([leaf.id for leaf in dataset.leaves if leaf.split == split])
    places = places_of(dataset, tuple(leaf.id for leaf in tree.leaves))
    paths = torch.from_numpy(tree.paths)
    classifier = model.classifier(tree, settings.template)
    budget = Budget(attack.eps, attack.step, attack.steps, attack.restarts, attack.losses)
    sets = {part: dataset.pictures(part).of(places) for part in ("val", "test")}
    kept = {part: partial.with_name(f"{partial.name}-{split}-{part}.npz") for part in sets}
    outcomes = {
        part: level_matrix(
            classifier,
            pictures,
            paths,
            budget,
            seed=attack.seed,
            batch=attack.batch,
            partial=kept[part],
            what=f"attack on {model.method}, {split}, {part}",
        )
        for part, pictures in sets.items()
    }
    test = outcomes["test"]
    values = {reading: figures(test, reading) for reading in READINGS}
    record = Record(
        dataset=dataset.name,
        split=split,  # pyright: ignore
        method=model.method,
        seed=seed,
        images=len(sets["test"]),
        reading=max(READINGS, key=lambda reading: path_robust(outcomes["val"], reading).mean()),  # pyright: ignore
        threat_model=threat_model(attack, settings, sets["test"].images.shape[-1]),
        trees={tree.name: tree.hash},
        levels=list(tree.sizes),
        clean={reading: values[reading]["clean"] for reading in READINGS},
        robust={reading: values[reading]["robust"] for reading in READINGS},
        worst_level={reading: values[reading]["worst_level"] for reading in READINGS},
        path_robust={reading: values[reading]["path_robust"] for reading in READINGS},
        intervals={reading: intervals(test, reading, attack.bootstrap, attack.seed) for reading in READINGS},  # pyright: ignore
        audit=audit(classifier, sets["test"], paths, budget, count=attack.audit_images, seed=attack.seed),
        versions=versions(),
        git=git_revision(root),
    )
    for file in kept.values():
        file.unlink()
    return record, test
