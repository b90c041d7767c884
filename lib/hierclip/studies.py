"""Sets of short runs, several at a time: the sweep that chooses settings, and the ablation."""

import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict
from scipy.stats import t as student

from hierclip.attacks import Budget
from hierclip.data import Dataset, ids_of, load_dataset, places_of
from hierclip.evaluate import figures, git_revision, level_matrix, threat_model, versions
from hierclip.evaluate.records import ThreatModel
from hierclip.model import READINGS, Model, load_model
from hierclip.params import MethodParams, Params, StudyParams
from hierclip.progress import progress, silence, work_key
from hierclip.train import finetune, make_fabric
from hierclip.trees import Tree, load_forest

BASE, TREES, KEPT = "data/models/base", "data/trees", "data/checkpoints/studies"


@dataclass(frozen=True)
class Run:
    """One fine-tuning, and what to measure: only the leaves, or every level; on which pictures."""

    labels: Mapping[str, object]  # columns that tell it from the others
    method: str
    settings: MethodParams
    seed: int
    part: str  # "val" or "test"
    splits: tuple[str, ...]
    leaves_only: bool


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


def sweep_runs(params: Params) -> list[Run]:
    """Every point of every method's grid, measured by its leaves on validation pictures of the fine-tuning classes."""
    out = []
    for method, grid in params.sweep.grid.items():
        for values in itertools.product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            settings = params.variant(f"sweep.grid.{method}", {"method": method} | point)
            out.append(Run({"method": method, **point}, method, settings, params.sweep.seed, "val", ("tuned",), True))
    return out


def ablation_runs(params: Params) -> list[Run]:
    """Every row of every table for every seed, each variant once however many tables it stands in."""
    out: dict[str, Run] = {}
    for table, rows in params.ablation.tables.items():
        for row, changes in rows.items():
            settings, method = params.variant(f"ablation.tables.{table}.{row}", changes), str(changes["method"])
            for seed in params.ablation.seeds:
                key = f"{settings.model_dump_json()} {seed}"
                run = Run({"variant": key, "seed": seed}, method, settings, seed, "test", ("tuned", "held_out"), False)
                out.setdefault(key, run)
    return list(out.values())


def run_study(runs: Sequence[Run], params: Params, study: StudyParams, root: Path, what: str) -> StudyRecord:
    """Fine-tunes and measures every run, `study.workers` at a time in processes of one thread each.

    What a run gave is kept under data/checkpoints/studies, so that a study that was stopped goes on where it was.
    """
    trees, git = load_forest(root / TREES, params.trees.names), git_revision(root)
    base = load_model(root / BASE).backbone.clip.state_dict().values()
    world = work_key(params.data, params.model, params.attack, params.finetune, study.gradients, study.images, *base)
    keys = {work_key(world, run, *(tree.hash for tree in trees)): run for run in runs}
    kept = {key: root / KEPT / f"{key}.json" for key in keys}
    todo = [key for key in keys if not kept[key].exists()]
    context = get_context("spawn")
    with ProcessPoolExecutor(study.workers, context, _start) as pool:
        waiting = {pool.submit(_measured, keys[key], params, study, root): key for key in todo}
        try:
            for done in progress(_Ended(waiting), what, done=len(keys) - len(todo)):
                kept[waiting[done]].parent.mkdir(parents=True, exist_ok=True)
                kept[waiting[done]].write_text(json.dumps(done.result()), encoding="utf8")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    rows = [row for path in kept.values() for row in json.loads(path.read_text(encoding="utf8"))]
    return StudyRecord(
        threat_model=threat_model(params.attack, params.model.template, params.data.size),
        gradients=study.gradients,
        images=study.images,
        part=runs[0].part,
        trees={tree.name: tree.hash for tree in trees},
        versions=versions(),
        git=git,
        rows=rows,
    )


def _start() -> None:
    """A worker has one thread, and its own progress is not shown."""
    torch.set_num_threads(1)
    silence()


@dataclass(frozen=True)
class _Ended(Collection):
    """Futures in the order in which they end."""

    futures: Mapping

    def __len__(self) -> int:
        return len(self.futures)

    def __iter__(self) -> Iterator:
        return as_completed(self.futures)

    def __contains__(self, item: object) -> bool:
        return item in self.futures


def _measured(run: Run, params: Params, study: StudyParams, root: Path) -> list[dict]:
    """A row for each split of a run: its labels, accuracies, steps and seconds a step."""
    dataset, forest = load_dataset(params.data, root), load_forest(root / TREES, params.trees.names)
    wanted = params.trees_of(run.settings)
    tuned = [tree.restrict(ids_of(dataset, "tuned")) for tree in forest if tree.name in wanted]
    settings = params.finetune.model_copy(update={"gradients": study.gradients, "checkpoint_every": 10**9})
    backbone, fabric = load_model(root / BASE).backbone, make_fabric(params.model)
    start, never = perf_counter(), root / KEPT / "none.ckpt"
    head, history = finetune(
        fabric, run.settings, settings, backbone, dataset, tuned, params.model.template, run.seed, never
    )
    seconds = (perf_counter() - start) / max(1, len(history))
    model, first = Model(backbone, head, run.method), forest[0]
    costs = {"steps": len(history), "seconds": round(seconds, 4)}
    return [
        {**run.labels, "split": s} | _accuracies(model, dataset, first, run, s, params, study) | costs
        for s in run.splits
    ]


def _accuracies(
    model: Model, dataset: Dataset, tree: Tree, run: Run, split: str, params: Params, study: StudyParams
) -> dict:
    """Leaf accuracy, clean and attacked; and where every level is attacked, path-robust accuracy by reading."""
    tree = tree.restrict(ids_of(dataset, split))
    if run.leaves_only:
        tree = replace(tree, levels=tree.levels[:1], parents=())
    pictures = dataset.pictures(run.part).of(places_of(dataset, tree.ids))
    pictures, attack = pictures[pictures.spread(study.images)], params.attack
    budget = Budget(attack.eps, attack.step, attack.steps, attack.restarts, attack.losses)
    classifier, paths = model.classifier(tree, params.model.template), torch.from_numpy(tree.paths)
    outcomes = level_matrix(classifier, pictures, paths, budget, seed=attack.seed, batch=attack.batch)
    found = {reading: figures(outcomes, reading) for reading in READINGS}
    out = {"images": len(pictures), "clean": found["direct"]["clean"][0], "robust": found["direct"]["robust"][0][0]}
    paths_right = {f"path_{reading}": found[reading]["path_robust"] for reading in READINGS}
    return out if run.leaves_only else out | paths_right


def save_study(record: StudyRecord, path: Path) -> None:
    """Writes a study as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf8")


def load_study(path: Path) -> StudyRecord:
    """What `save_study` wrote. Raises FileNotFoundError where there is none."""
    return StudyRecord.model_validate_json(path.read_text(encoding="utf8"))


def best_points(sweep: pd.DataFrame) -> pd.DataFrame:
    """By method, the row of the highest robust leaf accuracy; where they tie, of the higher clean one."""
    ranked = sweep.sort_values(["robust", "clean"], ascending=False, kind="stable")
    return ranked.groupby("method", sort=False).head(1).sort_index()


def ablation_table(ablation: pd.DataFrame, params: Params, table: str, split: str) -> pd.DataFrame:
    """The rows of one table: for every figure the mean over seeds and half its 95 % interval (Student's t)."""
    figures_of = ["clean", "robust", "path_direct", "path_roll_up", "seconds"]
    rows = {}
    for row, changes in params.ablation.tables[table].items():
        settings = params.variant(row, changes).model_dump_json()
        wanted = [f"{settings} {seed}" for seed in params.ablation.seeds]
        found = ablation[ablation["variant"].isin(wanted) & (ablation["split"] == split)][figures_of]
        half = found.std() / np.sqrt(len(found)) * student(len(found) - 1).ppf(0.975)
        rows[row] = {"seeds": len(found), **found.mean(), **half.add_suffix("_half")}
    return pd.DataFrame(rows).T.rename_axis(table)
