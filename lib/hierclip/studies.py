"""Sets of short runs, several at a time: the sweep that chooses settings, and the ablation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Memory, Parallel, delayed, parallel_config
from pydantic import BaseModel, ConfigDict
from scipy.stats import t as student
from torch import Tensor

from hierclip.attacks import budget_of
from hierclip.data import Dataset, ids_of, load_dataset, places_of
from hierclip.distributed import device_of, make_fabric
from hierclip.evaluate import LevelMatrix, figures
from hierclip.evaluate.records import ThreatModel, git_revision, threat_model, versions
from hierclip.evaluate.tasks import BASE, TREES
from hierclip.losses import make_head
from hierclip.model import READINGS, Model, load_model
from hierclip.params import SPLITS, AblationParams, MethodParams, NoneParams, Params, StudyParams
from hierclip.progress import cache_key, progress, quiet
from hierclip.train import Finetuning
from hierclip.trees import Tree, load_forest

STUDIES = "data/results/studies"
KEPT = "data/checkpoints/studies"
SETTINGS = ["lr", "logit_scale", "tau"]  # what a sweep chooses, if a method has it
# The key of an ablation's row that is not the method's: how many times the gradient evaluations
TIMES = "times"


@dataclass(frozen=True)
class Run:
    """One fine-tuning, and what to measure: only the leaves, or every level; on which pictures."""

    labels: Mapping[str, object]  # columns that tell it from the others
    method: str
    settings: MethodParams
    gradients: int
    seed: int
    part: str  # "val" or "test"
    leaves_only: bool
    # Every k-th fine-tuning class is left out of training, in place of the held-out ones
    left_out: int = 0


class StudyRecord(BaseModel):
    """What a study gave, and under which conditions. Accuracies are fractions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threat_model: ThreatModel
    gradients: int
    images: int  # of each split, at most
    part: str
    trees: dict[str, str]  # name to hash
    versions: dict[str, str]
    git: str
    rows: list[dict]

    @property
    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)


def variant(
    params: Params, study: AblationParams, changes: Mapping[str, Any]
) -> tuple[MethodParams, int]:
    """A row's settings and its gradient evaluations: the study's, `times` as many where the row
    says so.
    """
    own = {key: value for key, value in changes.items() if key != TIMES}
    return params.variant("a study's row", own), round(study.gradients * changes.get(TIMES, 1))


def variant_key(settings: MethodParams, gradients: int) -> str:
    return f"{gradients} {settings.model_dump_json(exclude={'label'})}"


def run_study(
    runs: Sequence[Run], params: Params, study: StudyParams, root: Path, what: str
) -> StudyRecord:
    """Fine-tune and measure every run, `study.workers` at a time in processes of one thread each.

    joblib keeps the result of a run under data/checkpoints/studies, so a study that was stopped
    resumes.
    """
    trees, dataset = load_forest(root / TREES, params.trees.names), load_dataset(params.data, root)
    base = load_model(root / BASE).backbone.clip.state_dict().values()
    sections = params.data, params.model, params.attack, params.finetune
    first = dataset.batch(torch.arange(len(dataset.leaves)), params.finetune.batch, 0, 0)
    measured = {
        part: dataset.pictures(part).fingerprint() for part in sorted({run.part for run in runs})
    }
    conditions = cache_key(
        sections, study.images, [tree.hash for tree in trees], measured, *first, *base
    )
    cached = Memory(root / KEPT, verbose=0).cache(
        _cached, ignore=["run", "params", "study", "root"]
    )
    rows = []
    with parallel_config("loky", inner_max_num_threads=1):
        jobs = [
            delayed(cached)(cache_key(conditions, run), run, params, study, root) for run in runs
        ]
        results = iter(Parallel(study.workers, return_as="generator")(jobs))
        for _ in progress(runs, what):
            rows += next(results)  # pyright: ignore[reportOperatorIssue]
    return StudyRecord(
        threat_model=threat_model(params.attack, params.model.template, params.data.size),
        gradients=study.gradients,
        images=study.images,
        part=runs[0].part,
        trees={tree.name: tree.hash for tree in trees},
        versions=versions(),
        git=git_revision(root),
        rows=rows,
    )


def _cached(key: str, run: Run, params: Params, study: StudyParams, root: Path) -> list[dict]:
    return measure(
        run, params, study, root
    )  # joblib forgets all results when this function's text changes


def measure(run: Run, params: Params, study: StudyParams, root: Path) -> list[dict]:
    """Fine-tune by a run; return a row for each class subset: labels, accuracies, steps and seconds
    a step.
    """
    dataset, forest = load_dataset(params.data, root), load_forest(root / TREES, params.trees.names)
    subsets = _subsets(dataset, run.left_out)
    wanted = params.trees_of(run.settings)
    trees = [
        tree.restrict(subsets["tuned"]) for name in wanted for tree in forest if tree.name == name
    ]
    finetune = params.finetune.model_copy(
        update={"gradients": run.gradients, "checkpoint_every": 10**9}
    )
    backbone, fabric = load_model(root / BASE).backbone, make_fabric(params.model)
    starts: list[float] = []
    if isinstance(run.settings, NoneParams):
        head, history = make_head(run.settings, backbone.logit_scale, 1.0, 1.0), []
    else:
        template = params.model.template
        work = Finetuning(
            fabric, run.settings, finetune, backbone, dataset, trees, template, run.seed
        )

        def timed_loss(step: int) -> tuple[Tensor, dict[str, float]]:
            starts.append(perf_counter())
            return work.step_loss(step)

        with quiet():
            history = work.run(timed_loss, root / KEPT / "none.ckpt")
        head = work.head
    seconds = np.diff(
        [*starts[:: finetune.accumulate], perf_counter()]
    )  # the last step ends with the training
    costs = {
        "steps": len(history),
        "seconds": round(float(np.median(seconds)), 4) if len(seconds) else 0.0,
    }
    model, rows = Model(backbone, head, run.method), []
    for subset, ids in subsets.items():
        accuracies = _accuracies(model, dataset, forest[0].restrict(ids), run, params, study)
        rows.append({**run.labels, "split": subset} | accuracies | costs)
    return rows


def _subsets(dataset: Dataset, left_out: int) -> dict[str, list[str]]:
    """Return the classes that are trained on, and those measured beside them: held out, or left out
    of training.
    """
    tuned = ids_of(dataset, "tuned")
    if not left_out:
        return {split: ids for split in SPLITS if (ids := ids_of(dataset, split))}
    return {
        "tuned": [i for k, i in enumerate(tuned) if k % left_out],
        "left_out": tuned[::left_out],
    }


def _accuracies(
    model: Model, dataset: Dataset, tree: Tree, run: Run, params: Params, study: StudyParams
) -> dict:
    """Leaf accuracy, clean and attacked; and where every level is attacked, path-robust accuracy by
    reading.
    """
    if run.leaves_only:
        tree = replace(tree, levels=tree.levels[:1], parents=())
    pictures = dataset.pictures(run.part).of(places_of(dataset, tree.ids))
    pictures, attack = pictures[pictures.spread(study.images)], params.attack
    classifier, paths = model.classifier(tree, params.model.template), torch.from_numpy(tree.paths)
    classifier = classifier.to(device_of(params.model))
    matrix = LevelMatrix(
        classifier, pictures, paths, budget_of(attack), seed=attack.seed, batch=attack.batch
    )
    outcomes = matrix.outcomes()
    found = {reading: figures(outcomes, reading) for reading in READINGS}
    out = {
        "images": len(pictures),
        "clean": found["direct"]["clean"][0],
        "robust": found["direct"]["robust"][0][0],
    }
    paths_right = {f"path_{reading}": found[reading]["path_robust"] for reading in READINGS}
    return out if run.leaves_only else out | paths_right


def save_study(record: StudyRecord, path: Path) -> None:
    """Writes a study as JSON, for instance to STUDIES/sweep.json of the project."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf8")


def load_studies(folder: Path) -> dict[str, StudyRecord]:
    """What `save_study` wrote to a folder, by the name of the file; nothing where no study was
    run.
    """
    paths = sorted(folder.glob("*.json"))
    return {
        path.stem: StudyRecord.model_validate_json(path.read_text(encoding="utf8"))
        for path in paths
    }


def best_points(sweep: pd.DataFrame) -> pd.DataFrame:
    """By method, its point of the highest robust leaf accuracy; where they tie, of the higher clean
    one.

    Accuracies are means of the two kinds of classes: those trained on and those left out.
    """
    point = ["method", *(key for key in SETTINGS if key in sweep)]
    means = sweep.groupby(point, sort=False, dropna=False, as_index=False).agg(
        {"clean": "mean", "robust": "mean"}
    )
    ranked = means.sort_values(["robust", "clean"], ascending=False, kind="stable")
    return ranked.groupby("method", sort=False).head(1).sort_index()


def ablation_table(
    frame: pd.DataFrame, params: Params, study: AblationParams, table: str, split: str
) -> pd.DataFrame:
    """The rows of one table: for every figure the mean over seeds and half its 95 % interval
    (Student's t).
    """
    figures_of = ["clean", "robust", "path_direct", "path_roll_up", "seconds"]
    rows = {}
    for row, changes in study.tables[table].items():
        key = variant_key(*variant(params, study, changes))
        chosen = (frame["variant"] == key) & (frame["split"] == split)
        chosen &= frame["seed"].isin(study.seeds)
        found = frame[chosen][figures_of]
        half = found.std() / np.sqrt(len(found)) * student(len(found) - 1).ppf(0.975)
        rows[row] = {"seeds": len(found), **found.mean(), **half.add_suffix("_half")}
        rows[row]["steps"] = frame["steps"][chosen].mean() if "steps" in frame else np.nan
    return pd.DataFrame(rows).T.rename_axis(table)
