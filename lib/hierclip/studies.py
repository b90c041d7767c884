"""Sets of short runs, several at a time: the sweep that chooses settings, and the ablation."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed, parallel_config
from scipy.stats import t as student
from torch import Tensor

from hierclip.attacks import budget_of
from hierclip.config import (
    AblationParams,
    EmojiParams,
    MethodParams,
    NoneParams,
    Params,
    Section,
    StudyParams,
)
from hierclip.data import Dataset, class_indices, ids_of, load_dataset
from hierclip.data.tasks import BASE, TREES, Task, check_inputs
from hierclip.distributed import device_of, make_fabric
from hierclip.evaluation import LevelMatrix, level_metrics
from hierclip.evaluation.records import ThreatModel, git_revision, threat_model, versions
from hierclip.losses import make_head
from hierclip.models import Model, load_model
from hierclip.progress import cache_key, exclusive, fingerprint, progress
from hierclip.training import fit, model_key, set_up
from hierclip.trees import Tree, load_forest

STUDIES = "data/results/studies"
KEPT = "data/checkpoints/studies.jsonl"  # a line for each finished run
LADDER = ("ladder", "knobs")  # tables of the ablation that `make ladder` runs apart
SETTINGS = ["lr", "logit_scale", "tau"]  # what a sweep chooses, if a method has it


@dataclass(frozen=True)
class Run:
    """One fine-tuning without some of the classes (and a style), which stand in for unseen ones.

    levels: whether all levels are attacked, or the leaves alone.
    """

    labels: Mapping[str, object]  # columns that tell it from the others
    settings: MethodParams
    steps: int
    seed: int
    levels: bool = False


class StudyRecord(Section):
    """The rows of a study, and its conditions. Accuracies are fractions."""

    threat_model: ThreatModel
    steps: int
    images: int  # of each subset, at most
    trees: dict[str, str]  # name to hash
    versions: dict[str, str]
    git: str
    rows: list[dict]  # "key": a hash of all that a run's rows depend on

    @property
    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows).drop(columns="key", errors="ignore")


def run_study(
    runs: Sequence[Run], params: Params, study: StudyParams, root: Path, what: str
) -> StudyRecord:
    """Fine-tune and measure every run, `study.workers` at a time in processes of one thread each.

    The rows of a finished run are kept at once. A run whose rows are kept, or are in a record of
    the project under the same conditions, is not run again.
    """
    check_inputs(root, params, "base")
    dataset = load_dataset(params.data, root)
    hashes = {tree.name: tree.hash for tree in load_forest(root / TREES, params.trees.names)}
    excluded = study.holdout_every, study.holdout_style
    sections = params.data, params.model, params.attack, params.finetune, study.images, excluded
    first = dataset.batch(torch.arange(len(dataset.leaves)), params.finetune.batch, 0, 0)
    measured = dataset.images("val").fingerprint()
    base = model_key(load_model(root / BASE).backbone)
    conditions = cache_key(sections, hashes, measured, *first, base)
    keys = [cache_key(conditions, run) for run in runs]
    rows = kept_rows(root)
    left = {key: run for key, run in zip(keys, runs, strict=True) if key not in rows}
    (root / KEPT).parent.mkdir(parents=True, exist_ok=True)
    with exclusive(root / KEPT), parallel_config("loky", inner_max_num_threads=1):
        jobs = [delayed(_keyed)(key, run, params, study, root) for key, run in left.items()]
        results = iter(Parallel(study.workers, return_as="generator_unordered")(jobs))
        for _ in progress(left, what):
            key, rows[key] = next(results)  # pyright: ignore[reportGeneralTypeIssues]
            with (root / KEPT).open("a", encoding="utf8") as file:
                file.write("\n" + json.dumps(rows[key]))  # after what a killed study left
    return StudyRecord(
        threat_model=threat_model(params.attack, params.model.template, params.data.size),
        steps=study.steps,
        images=study.images,
        trees=hashes,
        versions=versions(),
        git=git_revision(root),
        rows=[row for key in keys for row in rows[key]],
    )


def kept_rows(root: Path) -> dict[str, list[dict]]:
    """Return the rows of finished runs by key: from a project's records, and of stopped studies."""
    files = sorted((root / STUDIES).glob("*.json"))
    lists = [json.loads(file.read_text(encoding="utf8"))["rows"] for file in files]
    lines = (root / KEPT).read_text(encoding="utf8").splitlines() if (root / KEPT).exists() else []
    for line in lines:
        with suppress(ValueError):  # empty, or of a study that was killed while it wrote
            lists.append(json.loads(line))
    rows: dict[str, list[dict]] = {}
    for several in lists:  # the first that has a run counts
        grouped: dict[str, list[dict]] = {}
        for row in several:
            grouped.setdefault(row.get("key"), []).append(row)
        rows = grouped | rows
    return rows


def _keyed(
    key: str, run: Run, params: Params, study: StudyParams, root: Path
) -> tuple[str, list[dict]]:
    return key, [{"key": key} | row for row in measure(run, params, study, root)]


def measure(run: Run, params: Params, study: StudyParams, root: Path) -> list[dict]:
    """Fine-tune by a run; return a row for each subset of images, of accuracies and of costs."""
    backbone = load_model(root / BASE).backbone
    subsets = divide(params, study, root)
    dataset, trained = subsets["seen"]
    forest = load_forest(root / TREES, params.trees_of(run.settings))
    trees = [tree.restrict(trained) for tree in forest]
    finetune = params.finetune.model_copy(update={"steps": run.steps, "checkpoint_every": 10**9})
    starts: list[float] = []
    if isinstance(run.settings, NoneParams):
        head, history = make_head(run.settings, backbone.logit_scale, 1.0, 1.0), []
    else:
        fabric = make_fabric(params.model)
        task = Task("seen", dataset, trees, params.model.template)
        work = set_up(fabric, run.settings, finetune, backbone, task, run.seed)

        def timed_loss(step: int) -> tuple[Tensor, dict[str, float]]:
            starts.append(perf_counter())
            return work.step_loss(step)

        checkpoint = (root / KEPT).with_name(f"{fingerprint(run.labels)}.ckpt")
        history = fit(work, timed_loss, checkpoint)
        head = work.head
    seconds = np.diff([*starts[:: finetune.accumulate], perf_counter()])  # of every optimiser step
    median = round(float(np.median(seconds)), 4) if history else 0.0
    model, rows = Model(backbone, head, run.settings.label), []
    (first,) = load_forest(root / TREES, params.trees.names[:1])
    for subset, (part, ids) in subsets.items():
        row = {**run.labels, "subset": subset}
        row |= _accuracies(model, part, first.restrict(ids), run, params, study)
        rows.append(row | {"steps": len(history), "seconds": median})
    return rows


def divide(params: Params, study: StudyParams, root: Path) -> dict[str, tuple[Dataset, list[str]]]:
    """Return the data and classes that a study's runs train on ("seen") and are measured on.

    Every `holdout_every`-th fine-tuning class is left out and, of drawings, the `holdout_style`.
    """
    dataset = load_dataset(params.data, root)
    classes = ids_of(dataset, "seen")
    trained = [leaf for k, leaf in enumerate(classes) if k % study.holdout_every]
    excluded = classes[:: study.holdout_every]
    if study.holdout_style is None or not isinstance(params.data, EmojiParams):
        return {"seen": (dataset, trained), "unseen": (dataset, excluded)}
    styles = [style for style in params.data.styles if style != study.holdout_style]
    others, excluded_style = (
        load_dataset(params.data.model_copy(update={"styles": tuple(each)}), root)
        for each in (styles, [study.holdout_style])
    )
    drawn = {leaf.id for leaf in excluded_style.leaves}
    return {
        "seen": (others, trained),
        "unseen style": (excluded_style, [leaf for leaf in trained if leaf in drawn]),
        "unseen noun": (others, excluded),
        "both unseen": (excluded_style, [leaf for leaf in excluded if leaf in drawn]),
    }


def _accuracies(
    model: Model, dataset: Dataset, tree: Tree, run: Run, params: Params, study: StudyParams
) -> dict[str, float]:
    """Return leaf accuracy, clean and attacked, on validation images.

    Of all levels also that by prompts of every level l (clean_l, robust_l) and the path-robust
    accuracy by prompts; roll-ups are not attacked.
    """
    if not run.levels:
        tree = replace(tree, levels=tree.levels[:1], parents=())
    images = dataset.images("val").select_classes(class_indices(dataset, tree.ids))
    images, attack = images[images.evenly_spaced(study.images)], params.attack
    classifier = model.classifier(tree, params.model.template).to(device_of(params.model))
    matrix = LevelMatrix(
        classifier,
        images,
        torch.from_numpy(tree.paths),
        budget_of(attack),
        attack.seed,
        attack.batch,
        readings=("direct",),
    )
    direct = level_metrics(matrix.outcomes(), "direct")
    row = {"images": len(images), "clean": direct["clean"][0], "robust": direct["robust"][0][0]}
    if run.levels:
        for level in range(1, tree.max_level + 1):
            row |= {f"clean_{level}": direct["clean"][level]}
            row |= {f"robust_{level}": direct["robust"][level][level]}
        row |= {"path_direct": direct["path_robust"]}
    return row


def best_points(sweep: pd.DataFrame) -> pd.DataFrame:
    """Return each method's point of the highest sum of clean and robust leaf accuracy.

    Accuracies are means over the subsets: what was trained on, and what was left out.
    """
    point = ["method", *(key for key in SETTINGS if key in sweep)]
    groups = sweep.groupby(point, sort=False, dropna=False, as_index=False)
    means = groups.agg({"clean": "mean", "robust": "mean"})
    means["sum"] = means["clean"] + means["robust"]
    ranked = means.sort_values("sum", ascending=False, kind="stable")
    return ranked.groupby("method", sort=False).head(1).sort_index()


def variant(
    params: Params, study: AblationParams, changes: Mapping[str, Any]
) -> tuple[MethodParams, int, str]:
    """Return a table row's settings, its optimiser steps, and what names both in a study.

    `steps_multiplier` in a row: how many times the steps of the other rows it takes.
    """
    settings_changed = {key: value for key, value in changes.items() if key != "steps_multiplier"}
    settings = params.variant("a study's row", settings_changed)
    steps = max(1, round(study.steps * changes.get("steps_multiplier", 1)))
    return settings, steps, f"{steps} {settings.model_dump_json(exclude={'label'})}"


def ablation_table(
    frame: pd.DataFrame, params: Params, study: AblationParams, table: str, trained: bool
) -> pd.DataFrame:
    """Return a table: each metric's mean over seeds, and half its 95 % interval (Student's t).

    trained: on what was trained on, or in the mean of what was left out.
    """
    metrics = ["clean", "robust", "path_direct", "seconds", "steps"]
    numbers = dict.fromkeys(metrics, float)  # of a record without times they would be objects
    subsets = frame.loc[(frame["subset"] == "seen") == trained].astype(numbers)
    means = subsets.groupby(["variant", "seed"])[metrics].mean().reset_index()
    rows = {}
    for row, changes in study.tables[table].items():
        chosen = means["variant"] == variant(params, study, changes)[2]
        values = means[chosen & means["seed"].isin(study.seeds)][metrics]
        half = values.std() / np.sqrt(len(values)) * student(len(values) - 1).ppf(0.975)
        rows[row] = {"seeds": len(values), **values.mean(), **half.add_suffix("_half")}
    return pd.DataFrame(rows).T.rename_axis(table)
