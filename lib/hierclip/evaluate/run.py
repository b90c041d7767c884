"""From a model to its record."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from hierclip.attacks import GOALS, AttackGoal, budget_of
from hierclip.data import Dataset, places_of
from hierclip.distributed import rank
from hierclip.evaluate.masking import gradient_masking_checks
from hierclip.evaluate.matrix import CLEAN, LevelMatrix, Outcomes
from hierclip.evaluate.metrics import figures, intervals, mistakes
from hierclip.evaluate.records import (
    PARTS,
    RECORDS,
    Record,
    git_revision,
    hardware,
    outcomes_path,
    save_record,
    threat_model,
    versions,
)
from hierclip.model import READINGS, Model
from hierclip.params import AttackParams
from hierclip.progress import fingerprint, progress
from hierclip.trees import Tree, check_forest, forest_columns, forest_paths


@contextmanager
def _float32() -> Iterator[None]:
    """Convolve in float32 inside, on a GPU too: the record says so."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


class Evaluation:
    """A model's evaluation on some classes of a dataset, attacked in the first of several trees.

    `matrices` holds a level matrix for each part of a record: "test", all test images; "val", the
    validation images that choose the reading; "forest", some test images in every tree; "levels",
    the same images under attacks that do not stop where they succeed. Attack all goals of all
    matrices, then ask for the record. What is computed is kept under data/checkpoints until then.
    """

    @_float32()
    def __init__(
        self,
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
    ):
        """Read the clean images of every part.

        trees: a forest over these classes, which get their own prompts. split: what the classes are
        called (`Params.tasks`). seed: that the model was trained with. Raises TreeError where the
        trees have not the same leaves in the same order, ValueError for an unknown attack.
        """
        check_forest(trees)
        self.trees, self.params, self.root, self.device = trees, params, root, device
        self.method, self.dataset, self.split, self.seed = model.method, dataset.name, split, seed
        self.template, self.budget = template, budget_of(params)
        first = trees[0]
        self.paths = torch.from_numpy(first.paths)
        classes = places_of(dataset, first.ids)
        test, val = (dataset.pictures(part).of(classes) for part in ("test", "val"))
        some, few = test[test.spread(params.forest_images)], val[val.spread(params.reading_images)]
        self.classifier = model.classifier([first], template).to(device)
        forest = model.classifier(trees, template).to(device)
        forest_rows = torch.from_numpy(forest_paths(trees))
        beside = superclass_goals(forest_paths(trees), first.top)
        unstopped = replace(self.budget, stop_margin=inf)
        settings: dict[str, Any] = {"seed": params.seed, "batch": params.batch}

        def kept(part: str) -> Path:
            name = f"attack-{self.method}-{seed}-{split}-{part}.npz"
            return root / "data/checkpoints" / name

        one, budget = self.classifier, self.budget
        self.matrices = {
            "test": LevelMatrix(one, test, self.paths, budget, kept=kept("test"), **settings),
            "val": LevelMatrix(one, few, self.paths, budget, kept=kept("val"), **settings),
            "forest": LevelMatrix(
                forest, some, forest_rows, budget, kept=kept("forest"), more=beside, **settings
            ),
            "levels": LevelMatrix(
                one, some, self.paths, unstopped, kept=kept("levels"), prune=False, **settings
            ),
        }
        assert tuple(self.matrices) == PARTS

    @_float32()
    def attack(self, part: str, goal: AttackGoal) -> None:
        """Attack a part's images for one of its matrix' goals, or read what is kept of that."""
        self.matrices[part].attack(goal)

    @_float32()
    def record(self) -> tuple[Record, Outcomes]:
        """Return the record, and the test images' outcomes; write the record and all outcomes.

        The reading is chosen on validation images. The gradient-masking checks run here.
        """
        outcomes = {part: matrix.outcomes() for part, matrix in self.matrices.items()}
        test, params = self.matrices["test"].images, self.params
        checks = gradient_masking_checks(
            self.classifier,
            test,
            self.paths,
            self.budget,
            params.audit_images,
            params.batch,
            seed=params.seed,
        )
        weights = fingerprint(*self.classifier.encoder.state_dict().values())
        record = Record.model_validate(
            {
                "dataset": self.dataset,
                "split": self.split,
                "method": self.method,
                "seed": self.seed,
                "images": len(test),
                "threat_model": threat_model(params, self.template, test.pixels.shape[-1]),
                "trees": {tree.name: tree.hash for tree in self.trees},
                "levels": self.trees[0].sizes,
                **record_figures(outcomes, self.trees, params),
                "audit": checks,
                "settings": params.model_dump(mode="json"),
                "hashes": {"weights": weights, "pictures": test.fingerprint()},
                "versions": versions(),
                "hardware": hardware(self.device),
                "git": git_revision(self.root),
            }
        )
        if rank() == 0:
            for part, found in outcomes.items():
                found.save(outcomes_path(self.root, self.method, self.seed, self.split, part))
            save_record(record, self.root / RECORDS)
            for matrix in self.matrices.values():
                if matrix.path:
                    matrix.path.unlink()
        return record, outcomes["test"]


def evaluate(*arguments, **settings) -> tuple[Record, Outcomes]:
    """Run a whole `Evaluation`, which takes the same arguments, and show how far it is."""
    evaluation = Evaluation(*arguments, **settings)
    model = f"{evaluation.method}-{evaluation.seed}, {evaluation.split}"
    for part, matrix in evaluation.matrices.items():
        for goal in progress(matrix.goals, f"attack on {model}, {part}"):
            evaluation.attack(part, goal)
    return evaluation.record()


def record_figures(
    outcomes: Mapping[str, Outcomes], trees: Sequence[Tree], params: AttackParams
) -> dict:
    """Return what a record says of outcomes, by part (PARTS); all but the masking checks."""
    validation = {reading: figures(outcomes["val"], reading) for reading in READINGS}
    forest, levels = outcomes["forest"], outcomes["levels"]
    superclass = {}
    for goal in superclass_goals(forest.paths, trees[0].top):
        superclass[goal.name] = share(~reached(goal, forest))
    columns = forest_columns(trees)
    by_tree = {}
    for tree in trees:
        by_tree[tree.name] = tree_figures(tree, forest.take(columns[tree.name]), params)
    return {
        "reading": better_reading(validation),
        **level_figures(outcomes["test"], params),
        "superclass": superclass,
        "levels_transfer": {key: levels.by_attack(key).mean(1).tolist() for key in READINGS},
        "forest": by_tree,
    }


def superclass_goals(paths: np.ndarray, top: int) -> list[AttackGoal]:
    """Return the goals beside the levels' own: a wrong leaf within each superclass up to level
    `top`, and all levels wrong. paths: (leaves, L + 1).
    """
    rows = torch.from_numpy(paths)
    return [*(GOALS["stay"](rows, level) for level in range(1, top + 1)), GOALS["every"](rows, top)]


def reached(goal: AttackGoal, outcomes: Outcomes) -> np.ndarray:
    """Tell for which images the attack on a goal reached it: (N,) bool."""
    nodes = torch.from_numpy(outcomes.nodes[outcomes.under(goal.name)]).long()
    return goal.is_reached(nodes, torch.from_numpy(outcomes.labels)).numpy()


def share(which: np.ndarray) -> tuple[float, float, float]:
    """Return the share of (N,) bool, with its exact 95 % interval."""
    interval = binomtest(int(which.sum()), len(which)).proportion_ci()
    return float(which.mean()), float(interval.low), float(interval.high)


def level_figures(outcomes: Outcomes, params: AttackParams) -> dict:
    """Return what a record says of the outcomes in the first tree."""
    conditions = {"clean": CLEAN, "attacked": "direct-0"}
    resampling = params.bootstrap, params.seed
    wrong = {key: mistakes(outcomes, name, *resampling) for key, name in conditions.items()}
    return _by_reading(outcomes, params) | {"mistakes": wrong}


def tree_figures(tree: Tree, outcomes: Outcomes, params: AttackParams) -> dict:
    """Return what a record says of one tree of the forest."""
    entry = _by_reading(outcomes, params)
    entry["intervals"] = {key: bounds["path_robust"] for key, bounds in entry["intervals"].items()}
    return {"images": len(outcomes.labels), "levels": tree.sizes, **entry}


def _by_reading(outcomes: Outcomes, params: AttackParams) -> dict:
    values = {reading: figures(outcomes, reading) for reading in READINGS}
    entry = {name: {key: values[key][name] for key in READINGS} for name in values["direct"]}
    resampling = params.bootstrap, params.seed
    return entry | {"intervals": {key: intervals(outcomes, key, *resampling) for key in READINGS}}


def better_reading(metrics: Mapping[str, dict]) -> str:
    """Return the reading of the higher path-robust accuracy; of the higher worst level at a tie."""
    return max(metrics, key=lambda key: (metrics[key]["path_robust"], metrics[key]["worst_level"]))
