"""From a model to its records."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest

from hierclip.attacks import GOALS, AttackGoal, budget_of
from hierclip.data import Dataset, places_of
from hierclip.distributed import rank
from hierclip.evaluate.audit import audit
from hierclip.evaluate.matrix import fallen, level_matrix
from hierclip.evaluate.metrics import figures, intervals
from hierclip.evaluate.mistakes import mistakes
from hierclip.evaluate.outcomes import CLEAN, Outcomes, outcomes_path
from hierclip.evaluate.records import RECORDS, Record, git_revision, hardware, save_record, threat_model, versions
from hierclip.model import READINGS, Model
from hierclip.params import AttackParams
from hierclip.progress import fingerprint
from hierclip.trees import Tree, check_forest, forest_columns, forest_paths


@contextmanager
def _float32() -> Iterator[None]:
    """Convolve in float32 inside, on a GPU too: it is what the record says."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@_float32()
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
    """A model's record on some classes of a dataset, and the outcomes of their test pictures in the first tree.

    trees: a forest over these classes, which get their own prompts. The first tree is attacked on all test pictures,
    every tree on some. split: what the classes are called (`Params.tasks`). seed: that the model was trained with. The
    reading is chosen on validation pictures. Writes the record, and the outcomes of `PARTS` to
    data/attacks/METHOD-SEED; what is computed is kept under data/checkpoints until all of it is there.
    Raises TreeError where the trees have not the same leaves in the same order, ValueError for an unknown attack.
    """
    check_forest(trees)
    first = trees[0]
    test, val = (dataset.pictures(part).of(places_of(dataset, first.ids)) for part in ("test", "val"))
    classifier, forest = (model.classifier(over, template).to(device) for over in ([first], trees))
    some, few = test[test.spread(params.forest_images)], val[val.spread(params.reading_images)]
    budget, paths = budget_of(params), torch.from_numpy(first.paths)
    unstopped = {"budget": replace(budget, stop_margin=inf), "prune": False}
    parts = {
        "test": (classifier, test, {}),
        "val": (classifier, few, {}),
        "forest": (forest, some, {"more": superclass_aims(forest_paths(trees), first.top)}),
        "levels": (classifier, some, unstopped),
    }
    outcomes, kept = {}, {}
    for part, (seen, pictures, changes) in parts.items():
        kept[part] = root / "data/checkpoints" / f"attack-{model.method}-{seed}-{split}-{part}.npz"
        what = f"attack on {model.method}-{seed}, {split}, {part}"
        settings = {"budget": budget, "seed": params.seed, "batch": params.batch, "kept": kept[part]} | changes
        rows = torch.from_numpy(forest_paths(trees)) if part == "forest" else paths
        outcomes[part] = level_matrix(seen, pictures, rows, what=what, **settings)
        if rank() == 0:
            outcomes[part].save(outcomes_path(root, model.method, seed, split, part))
    record = Record.model_validate(
        {
            "dataset": dataset.name,
            "split": split,
            "method": model.method,
            "seed": seed,
            "images": len(test),
            "threat_model": threat_model(params, template, test.pixels.shape[-1]),
            "trees": {tree.name: tree.hash for tree in trees},
            "levels": first.sizes,
            **record_figures(outcomes, trees, params),
            "audit": audit(classifier, test, paths, budget, params.audit_images, params.batch, seed=params.seed),
            "settings": params.model_dump(mode="json"),
            "hashes": {
                "weights": fingerprint(*classifier.encoder.state_dict().values()),
                "pictures": test.fingerprint(),
            },
            "versions": versions(),
            "hardware": hardware(device),
            "git": git_revision(root),
        }
    )
    if rank() == 0:
        save_record(record, root / RECORDS)
        for file in kept.values():
            file.unlink()
    return record, outcomes["test"]


def record_figures(outcomes: Mapping[str, Outcomes], trees: Sequence[Tree], params: AttackParams) -> dict:
    """What a record says of outcomes, by part (`PARTS`); all but the audit. trees: of the split's leaves."""
    chosen = {reading: figures(outcomes["val"], reading) for reading in READINGS}
    forest, levels = outcomes["forest"], outcomes["levels"]
    stands = {aim.name: ~reached(aim, forest) for aim in superclass_aims(forest.paths, trees[0].top)}
    columns = forest_columns(trees)
    return {
        "reading": better_reading(chosen),
        **level_figures(outcomes["test"], params),
        "superclass": {name: share(values) for name, values in stands.items()},
        "levels_transfer": {reading: levels.by_attack(reading).mean(1).tolist() for reading in READINGS},
        "forest": {tree.name: tree_figures(tree, forest.take(columns[tree.name]), params) for tree in trees},
    }


def superclass_aims(paths: np.ndarray, top: int) -> list[AttackGoal]:
    """Beside both readings of every level: to stay inside each superclass up to level `top`, and all levels wrong."""
    rows = torch.from_numpy(paths)
    return [*(GOALS["stay"](rows, level) for level in range(1, top + 1)), GOALS["every"](rows, top)]


def reached(aim: AttackGoal, outcomes: Outcomes) -> np.ndarray:
    """(N,) bool: the attack on an aim reached it."""
    return fallen(aim, outcomes.nodes[outcomes.under(aim.name)], torch.from_numpy(outcomes.labels)).numpy()


def share(which: np.ndarray) -> tuple[float, float, float]:
    """The share of (N,) bool, with its exact 95 % interval."""
    found = binomtest(int(which.sum()), len(which)).proportion_ci()
    return float(which.mean()), float(found.low), float(found.high)


def level_figures(outcomes: Outcomes, params: AttackParams) -> dict:
    """What a record says of the outcomes in the first tree."""
    named = {"clean": CLEAN, "attacked": "direct-0"}
    seen = {key: mistakes(outcomes, c, params.bootstrap, params.seed) for key, c in named.items()}
    return _by_reading(outcomes, params) | {"mistakes": seen}


def tree_figures(tree: Tree, outcomes: Outcomes, params: AttackParams) -> dict:
    """What a record says of one tree of the forest."""
    found = _by_reading(outcomes, params)
    found["intervals"] = {reading: bounds["path_robust"] for reading, bounds in found["intervals"].items()}
    return {"images": len(outcomes.labels), "levels": tree.sizes, **found}


def _by_reading(outcomes: Outcomes, params: AttackParams) -> dict:
    values = {reading: figures(outcomes, reading) for reading in READINGS}
    bounds = {reading: intervals(outcomes, reading, params.bootstrap, params.seed) for reading in READINGS}
    return {name: {reading: values[reading][name] for reading in READINGS} for name in values["direct"]} | {
        "intervals": bounds
    }


def better_reading(figures: Mapping[str, dict]) -> str:
    """The reading of the higher path-robust accuracy; where they tie, of the higher worst level."""
    return max(figures, key=lambda reading: (figures[reading]["path_robust"], figures[reading]["worst_level"]))
