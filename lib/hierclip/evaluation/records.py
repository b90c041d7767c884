"""From a model to its record, and from records that were made here to the committed ones.

A record is a JSON file for each model, seed and task, with all that its metrics depend on.
"""

import json
import os
import platform
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from math import inf
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError
from scipy.stats import binomtest

from hierclip.attacks import GOALS, budget_of
from hierclip.config import AttackParams, Section, error_line
from hierclip.data import class_indices
from hierclip.data.tasks import Task
from hierclip.distributed import broadcast, rank
from hierclip.errors import HierclipError
from hierclip.evaluation.masking import MaskingChecks, gradient_masking_checks
from hierclip.evaluation.matrix import CLEAN, LevelMatrix, Outcomes, outcomes_path
from hierclip.evaluation.metrics import ALL, Levels, intervals, level_metrics, mistakes
from hierclip.models import READINGS, Model, Wrapped
from hierclip.progress import fingerprint, replacing
from hierclip.trees import Tree, check_forest, forest_columns, forest_paths

RECORDS = "data/results/records"
COMMITTED = "data/committed"  # where make keeps the records that came without git
SOURCES = ("lib", "data/source", "requirements.lock", "params.yaml")
NO_GIT = "no git"  # in place of a revision
PACKAGES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "lightning_fabric",
    "numpy",
    "nltk",
    "pillow",
)
FEW, SHARE = 2, 0.005  # images, or that share of them, that another machine's rounding may change
EXACT = 2e-6  # records keep six decimals
MEAN = "mean of its sets"  # in place of a set's name
MAIN = ("clean direct 0", "robust direct 0 0", "path_robust direct", "path_robust roll_up")

Pair = tuple[float, float]  # low, high
Triple = tuple[float, float, float]  # value, low, high


class RecordError(HierclipError):
    """What is wrong with a record, and in which file."""


class ThreatModel(Section):
    norm: Literal["Linf", "L2"]
    eps: str  # "n/255"
    suite: tuple[str, ...]  # attacks, in turn, each on images not yet misclassified
    step: str  # of PGD and CW
    steps: int
    restarts: int
    queries: int  # of Square
    prune: float = 0.0  # fraction of the way below which an image gets no second gradient attack
    eot: int = 1  # calls that logits and gradients are averaged over
    resolution: int  # pixels a side, at which the attack moves pixels
    prompt: str
    precision: str  # of the attack's arithmetic
    seed: int


class Intervals(Section):
    """95 % bootstrap intervals, shaped like the metrics they belong to."""

    clean: list[Pair]
    robust: list[list[Pair]]
    worst_level: Pair
    path_robust: Pair


class TreeMetrics(Section):
    """Metrics of one tree on some images; intervals are of the path-robust accuracy."""

    images: int
    levels: list[int]  # nodes at each level
    clean: dict[str, list[float]]  # by level
    robust: dict[str, list[list[float]]]  # [attack level][evaluated level]
    worst_level: dict[str, float]
    path_robust: dict[str, float]
    intervals: dict[str, Pair]


class Record(Section):
    """Accuracies are fractions; dicts are by reading, "direct" and "roll_up"."""

    dataset: str
    subset: str  # "seen", "unseen", or the name of a zero-shot set
    method: str
    seed: int
    images: int
    threat_model: ThreatModel
    trees: dict[str, str]  # name to hash
    levels: list[int]  # nodes at each level of the first tree, for which are, up to `intervals`:
    clean: dict[str, list[float]]  # by level
    robust: dict[str, list[list[float]]]  # [attack level][evaluated level]
    worst_level: dict[str, float]
    path_robust: dict[str, float]
    intervals: dict[str, Intervals]
    superclass: dict[
        str, Triple
    ] = {}  # share robust to the attack goals "within_superclass" and "all_levels"
    levels_transfer: dict[
        str, list[list[float]]
    ] = {}  # as robust, by attacks on one reading, never stopping
    mistakes: dict[str, dict[str, Triple | None]]  # "clean", and "attacked" at the leaves
    forest: dict[str, TreeMetrics]  # by tree, all of them on the same images
    pgd_20: Triple | None = None  # leaf accuracy under PGD-20, of an audit
    audit: MaskingChecks = MaskingChecks(images=0)  # no checks
    settings: dict[str, Any]  # the section `attack` of params.yaml
    hashes: dict[str, str]  # of the model's parts (`Classifier.hashes`) and of the test images
    outputs: list[float] = []  # of a few images, by a model whose weights do not show all
    origin: dict[str, str] = {}  # the file of the weights, its SHA-256, and how images are made
    versions: dict[str, str]
    hardware: str = ""  # that attacked
    git: str

    @property
    def name(self) -> str:
        return f"{self.method}-{self.seed}/{self.subset}"

    def worst_tree(self, reading: str) -> str:
        """Find the tree of the least path-robust accuracy in a reading."""
        return min(self.forest, key=lambda tree: self.forest[tree].path_robust[reading])


def threat_model(attack: AttackParams, prompt: str, resolution: int) -> ThreatModel:
    """Describe an attack through a prompt on images of `resolution` pixels a side."""
    return ThreatModel(
        **attack.model_dump(mode="json", include=set(ThreatModel.model_fields)),
        resolution=resolution,
        prompt=prompt,
        precision="float32",
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and of those PACKAGES that are installed."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):  # some serve one dataset only
            installed[package] = version(package)
    return installed


def hardware(device: torch.device | str) -> str:
    """Return the name of a device, and the number of cores where it is the CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    names, info = [platform.processor() or platform.machine()], Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf8").splitlines() if info.exists() else []
    names += [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[-1]}, {os.cpu_count()} cores"


def git(root: Path, *command: str) -> str:
    """Return what a git command prints in a folder. Raises RecordError where it fails."""
    # A hook's variables name its own repository, which may be another one.
    clean = ["/usr/bin/env", "-u", "GIT_DIR", "-u", "GIT_WORK_TREE", "-u", "GIT_INDEX_FILE"]
    done = subprocess.run(
        [*clean, "git", "-C", root, *command], capture_output=True, encoding="utf8"
    )
    if done.returncode:
        raise RecordError(
            f"{root}: git does not show what is committed ({done.stderr.partition(os.linesep)[0]})"
        )
    return done.stdout


def git_revision(root: Path) -> str:
    """Return the last commit that touched what results depend on, with a "+" after later changes.

    NO_GIT where git does not have these files. A preset's may be links to the project's.
    """
    sources = [str((root / name).resolve()) for name in SOURCES]
    with suppress(RecordError):
        head = git(root, "log", "-1", "--format=%H", "--", *sources).strip()
        if head:
            changes = git(root, "status", "--porcelain", "-unormal", "--", *sources)
            return head + ("+" if changes else "")
    return NO_GIT


def save_record(record: Record, folder: Path) -> Path:
    """Write METHOD-SEED/SUBSET.json; return its path."""
    path = folder / f"{record.name}.json"
    rounded = json.loads(record.model_dump_json(), parse_float=lambda text: round(float(text), 6))
    with replacing(path) as part:
        part.write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf8")
    return path


def parse_record(text: str, where: str) -> Record:
    """Parse a record. Raises RecordError, naming `where`, for anything else."""
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        raise RecordError(f"{where}: {error_line(error.errors()[0])}") from None


def load_records(folder: Path) -> list[Record]:
    """Read all records of a folder, by file name. Raises RecordError for a bad one, or for none."""
    paths = sorted(folder.glob("*/*.json"))
    if not paths:
        raise RecordError(f"no records in {folder}; `make repro` makes them")
    return [parse_record(path.read_text(encoding="utf8"), str(path)) for path in paths]


@dataclass(frozen=True)
class Evaluation:
    """Attack a model on the classes of a task: its level matrices, and the record made of them.

    seed: that the model was trained with. Records, outcomes and what a stopped evaluation resumes
    from are under `root`/data.
    """

    model: Model | Wrapped
    task: Task
    seed: int
    params: AttackParams
    root: Path
    device: torch.device | str = "cpu"

    @cached_property
    def matrices(self) -> dict[str, LevelMatrix]:
        """Set up the level matrices that the record is made of, by part.

        test: all test images, the first tree. Of a thorough task also forest: evenly spaced test
        images, all trees, and the goals "within_superclass" and "all_levels"; and levels: the same
        images and the first tree, by attacks that do not stop at their goal. Raises TreeError where
        the trees have not the same leaves in the same order.
        """
        trees, params, budget = self.task.trees, self.params, budget_of(self.params)
        check_forest(trees)
        classes = class_indices(self.task.dataset, trees[0].ids)
        test = self.task.dataset.images("test").select_classes(classes)
        paths = torch.from_numpy(trees[0].paths)
        classifier = self.model.classifier(trees[0], self.task.template).to(self.device)
        build = partial(LevelMatrix, seed=params.seed, batch=params.batch, prune=params.prune > 0)
        matrices = {"test": build(classifier, test, paths, budget)}
        if self.task.thorough:
            forest_test = test[test.evenly_spaced(params.forest_images)]
            forest, top = torch.from_numpy(forest_paths(trees)), trees[0].max_level
            goals = [GOALS["within_superclass"](forest, level) for level in range(1, top + 1)]
            goals.append(GOALS["all_levels"](forest, top))
            over_forest = self.model.classifier(trees, self.task.template).to(self.device)
            unstopped = replace(budget, stop_margin=inf)
            matrices["forest"] = build(over_forest, forest_test, forest, budget, more=goals)
            matrices["levels"] = build(classifier, forest_test, paths, unstopped, prune=False)
        what = f"attack on {self.model.method}-{self.seed}, {self.task.name}"
        return {
            part: replace(matrix, kept=self.kept / part, what=f"{what}, {part}")
            for part, matrix in matrices.items()
        }

    @property
    def kept(self) -> Path:
        """Return the folder that a stopped evaluation resumes from."""
        name = f"attack-{self.model.method}-{self.seed}-{self.task.name}"
        return self.root / "data/checkpoints" / name

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Return those entries of the record that say what is measured, before it is."""
        test = self.matrices["test"]
        resolution = test.images.pixels.shape[-1]
        hashes = self.matrices.get("forest", test).classifier.hashes()
        hashes["images"] = test.images.fingerprint()
        hashes["labels"] = fingerprint(test.images.labels)
        return {
            "method": self.model.method,
            "threat_model": threat_model(self.params, self.task.template, resolution),
            "trees": {tree.name: tree.hash for tree in self.task.trees},
            "settings": self.params.model_dump(mode="json"),
            "hashes": hashes,
            "outputs": test.sample_outputs(),
        }

    def record(self) -> Record:
        """Attack what is left to attack; write the outcomes and the record, and return it."""
        outcomes = {part: matrix.outcomes() for part, matrix in self.matrices.items()}
        test, params, trees = self.matrices["test"], self.params, self.task.trees
        entries = {
            **self.identity,
            "dataset": self.task.dataset.name,
            "subset": self.task.name,
            "seed": self.seed,
            "images": len(test.images),
            "levels": list(trees[0].sizes),
            **_metrics(outcomes["test"], params),
            "mistakes": {
                "clean": mistakes(outcomes["test"], CLEAN, params.bootstrap, params.seed),
                "attacked": mistakes(outcomes["test"], "direct-0", params.bootstrap, params.seed),
            },
            **self._thorough(outcomes),
            "origin": getattr(self.model, "origin", {}),
            "versions": versions(),
            "hardware": hardware(self.device),
            "git": git_revision(self.root),
        }
        record = Record.model_validate(entries)
        if rank() == 0:
            for part, each in outcomes.items():
                each.save(outcomes_path(self.root, record.method, self.seed, record.subset, part))
            save_record(record, self.root / RECORDS)
            shutil.rmtree(self.kept)
        return broadcast(record)  # the other processes wait until all is written

    def pgd_20(self) -> Triple:
        """Return the leaf accuracy under PGD of 20 steps, the attack that most papers report."""
        test = self.matrices["test"]
        budget = replace(
            test.budget,
            suite=("pgd_ce",),
            steps=20,
            step=2.5 * test.budget.eps / 20,
            restarts=1,
        )
        matrix = replace(test, budget=budget, kept=None, what="PGD-20")
        nodes = matrix.attack(matrix.goals[0])["nodes"][:, 0]
        right = int((nodes == test.images.labels.numpy()).sum())
        interval = binomtest(right, len(nodes)).proportion_ci()
        return right / len(nodes), interval.low, interval.high

    def _thorough(self, outcomes: dict[str, Outcomes]) -> dict[str, Any]:
        """Return the entries of a record that only a thorough task fills."""
        every_tree = outcomes.get("forest", outcomes["test"])
        trees = self.task.trees if self.task.thorough else self.task.trees[:1]
        forest = {tree.name: self._tree_metrics(tree, every_tree) for tree in trees}
        if not self.task.thorough:
            return {"forest": forest}
        unstopped = {k: outcomes["levels"].robust_to([k])[k].mean(1).tolist() for k in READINGS}
        return {
            "forest": forest,
            "superclass": self._superclass_metrics(),
            "levels_transfer": unstopped,
            "audit": gradient_masking_checks(self.matrices["test"], self.params.audit_images),
        }

    def _superclass_metrics(self) -> dict[str, Triple]:
        """Return for each goal beside the readings the share of images on which it failed."""
        matrix, metrics = self.matrices["forest"], {}
        for goal in matrix.more:
            nodes = torch.from_numpy(matrix.attack(goal)["nodes"]).long()
            robust = ~goal.is_reached(nodes, matrix.images.labels).numpy()
            interval = binomtest(int(robust.sum()), len(robust)).proportion_ci()
            metrics[goal.name] = robust.mean(), interval.low, interval.high
        return metrics

    def _tree_metrics(self, tree: Tree, outcomes: Outcomes) -> TreeMetrics:
        levels = forest_columns(self.task.trees)[tree.name]
        metrics = _metrics(outcomes, self.params, levels)
        for reading, bounds in metrics["intervals"].items():
            metrics["intervals"][reading] = bounds["path_robust"]
        return TreeMetrics(images=len(outcomes.labels), levels=list(tree.sizes), **metrics)


def _metrics(outcomes: Outcomes, params: AttackParams, levels: Levels = ALL) -> dict[str, Any]:
    """Return `level_metrics` and their `intervals`, by name and then by reading."""
    by_reading = {}
    for reading in READINGS:
        bounds = intervals(outcomes, reading, params.bootstrap, params.seed, levels)
        by_reading[reading] = level_metrics(outcomes, reading, levels) | {"intervals": bounds}
    return pd.DataFrame(by_reading).T.to_dict()


def verify(root: Path) -> pd.DataFrame:
    """Compare every committed record with the one that was made here, as `compare` does.

    Where weights or images are others, each model's means over its sets are compared too. Raises
    RecordError where one was not made here.
    """
    old = committed_records(root)
    new = {record.name: record for record in load_records(root / RECORDS)}
    missing = [
        r.name
        for r in old
        if r.name not in new or not outcomes_path(root, r.method, r.seed, r.subset).exists()
    ]
    if missing:
        raise RecordError(f"not made here: {', '.join(missing)}; run `make repro`")
    table = pd.concat([compare(new[record.name], record) for record in old])
    return pd.concat([table, _means(table.loc[table["anew"] & table["metric"].isin(MAIN)])])


def _means(table: pd.DataFrame) -> pd.DataFrame:
    """Compare means over each model's sets, whose images are independent of each other's."""
    means = table.groupby(["model", "metric"], sort=False, as_index=False).agg(
        new=("new", "mean"),
        old=("old", "mean"),
        allowed=("allowed", lambda each: (each**2).sum() ** 0.5 / len(each)),
        sets=("set", "size"),
    )
    return means[means.pop("sets") > 1].assign(set=MEAN, agrees=_agree, anew=True)


def committed_records(root: Path) -> list[Record]:
    """Read the records that came with the project: of git's HEAD, or kept in COMMITTED.

    Raises RecordError where there are neither.
    """
    if (root / COMMITTED).exists():
        return load_records(root / COMMITTED)
    paths = git(root, "ls-tree", "-rz", "--name-only", "HEAD", RECORDS + "/").split("\0")[:-1]
    if not paths:
        raise RecordError(f"no record is committed under {RECORDS}; nothing to compare with")
    return [parse_record(git(root, "show", f"HEAD:./{path}"), f"HEAD:{path}") for path in paths]


def compare(new: Record, old: Record) -> pd.DataFrame:
    """Compare the metrics of two records, one a row.

    Columns: model, set, metric, new, old, allowed, agrees, anew. A metric agrees where its
    difference is no larger than FEW images, or SHARE of them, can cause: another machine's rounding
    may change as many. Where it gave other weights in training, or other images (their rendering is
    rounded as well), a metric agrees within the 99.9 % interval of a difference of independent
    shares: thousands are compared. `anew` tells so.
    Raises RecordError where the records were not made under the same conditions.
    """
    for name in ("dataset", "subset", "method", "seed", "images", "threat_model", "trees"):
        if getattr(new, name) != getattr(old, name):
            raise RecordError(
                f"{new.name}: {name} is {getattr(new, name)}, committed {getattr(old, name)}"
            )
    table = pd.DataFrame({"new": _compared(new), "old": _compared(old)}).dropna()
    on_forest = next(iter(new.forest.values())).images
    images = np.where(table.index.str.match("superclass|forest"), on_forest, new.images)
    anew = any(new.hashes.get(part) != old.hashes.get(part) for part in ("weights", "images"))
    most = max(2, len(new.levels))  # that one image adds to a sum of heights; to that of ece, 2
    scale = np.where(table.index.str.contains("hd_" if anew else "hd_|ece| h_"), most, 1)
    scale = np.where(table.index.str.contains("tree_induced"), 2 * len(new.levels), scale)  # edges
    allowed = np.maximum(FEW, SHARE * images) / images
    if anew:  # the variance of what lies in [0, 1] is at most m (1 - m), m being its mean
        mean = np.clip(table.mean(axis=1).to_numpy(float) / scale, 0, 1)
        allowed = np.maximum(allowed, 3.29 * np.sqrt(2 * mean * (1 - mean) / images))
    table = table.rename_axis("metric").reset_index()
    table = table.assign(model=f"{new.method}-{new.seed}", set=new.subset, anew=anew)
    return table.assign(allowed=scale * allowed + EXACT, agrees=_agree)


def _agree(table: pd.DataFrame) -> np.ndarray:
    new, old, allowed = table[["new", "old", "allowed"]].to_numpy(float).T
    return np.abs(new - old) <= allowed


def _compared(record: Record) -> pd.Series:
    """Return the metrics that are compared, by name; levels are numbers in it.

    Severity is not among them: it is hd_1 by the share of mistakes, which are.
    """
    metrics: dict[str, Any] = {
        "clean": {reading: _by_level(values) for reading, values in record.clean.items()},
        "robust": {reading: _by_level(values) for reading, values in record.robust.items()},
        "worst_level": record.worst_level,
        "path_robust": record.path_robust,
        "forest": {name: tree.path_robust for name, tree in record.forest.items()},
        "superclass": {name: triple[0] for name, triple in record.superclass.items()},
    }
    for condition, triples in record.mistakes.items():
        metrics[f"mistakes {condition}"] = {
            name: triple[0] for name, triple in triples.items() if triple and name != "severity"
        }
    return pd.json_normalize(metrics, sep=" ").iloc[0]


def _by_level(values: Any) -> Any:
    """Return values in nested lists as dictionaries by level."""
    return {k: _by_level(v) for k, v in enumerate(values)} if isinstance(values, list) else values
