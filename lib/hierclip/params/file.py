"""`params.yaml`, read once: every key known, every value checked, and whether they fit together."""

import os
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Self

import yaml
from pydantic import ValidationError, model_validator

from hierclip.errors import HierclipError
from hierclip.params import sections
from hierclip.params.methods import HierParams, MethodParams
from hierclip.params.values import Section, Seed

FILE = "params.yaml"
SPLITS = ("tuned", "held_out")  # classes seen in fine-tuning, and the others


class ParamsError(HierclipError):
    """What is wrong in the parameter file, and at which key."""


class Params(Section):
    methods: tuple[str, ...]
    seeds: tuple[Seed, ...]
    data: sections.DataParams
    zero_shot: dict[str, sections.ZeroShotParams]  # by name of a set, whose tree it gets; only attacked
    trees: sections.TreesParams
    model: sections.ModelParams
    machine: sections.MachineParams
    pretrain: sections.PretrainParams
    finetune: sections.FinetuneParams
    method: dict[str, MethodParams]
    attack: sections.AttackParams
    margin: sections.MarginParams
    sweep: sections.SweepParams
    ablation: sections.AblationParams
    plots: sections.PlotsParams

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for key, values in (("methods", self.methods), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{key} must name at least one, and each once")
        named = {"methods": self.methods, "margin.method": [self.margin.method], "sweep.grid": self.sweep.grid}
        for key, names in named.items():
            if unknown := set(names) - set(self.method):
                raise ValueError(f"{key}: no method {', '.join(sorted(unknown))}; known are {', '.join(self.method)}")
        if self.margin.method not in self.methods or self.margin.seed not in self.seeds:
            raise ValueError("margin.method and margin.seed must be among methods and seeds")
        if getattr(self.data, "held_out_every", None) == 1:
            raise ValueError("data.held_out_every is 1, which leaves no class to fine-tune on; write 2, more or null")
        for key, runs in (("sweep.grid", self.sweep.grid), ("ablation.tables", self.ablation.tables)):
            if not runs or not all(runs.values()):
                raise ValueError(f"{key} is empty, or an entry of it; a study needs a run at least")
        for name, entry in self.zero_shot.items():
            if name in SPLITS or entry.data.name == self.data.name or entry.data.size != self.data.size:
                raise ValueError(f"zero_shot.{name} must be another set than data, at its size, and no split")
        sets = [entry.data.name for entry in self.zero_shot.values()]
        if twice := {name for name in sets if sets.count(name) > 1}:
            raise ValueError(f"zero_shot has {', '.join(sorted(twice))} twice; a set's pictures are kept by its name")
        for name in self.method:
            self.variant(f"method.{name}", {"method": name})
        if missing := set(self.methods) - set(self.plots.palette):
            raise ValueError(f"plots.palette lacks a colour for {', '.join(sorted(missing))}")
        tables = self.ablation.tables
        for table, row in ((table, row) for table, rows in tables.items() for row in rows):
            where, changes = f"ablation.tables.{table}.{row}", dict(tables[table][row])
            times = changes.pop("times", 1)
            if not isinstance(times, int | float) or not 0 < times < inf:
                raise ParamsError(f"{where}.times is {times!r}; it must be a number above 0")
            self.variant(where, changes)
        for name, grid in self.sweep.grid.items():
            for key, value in ((key, value) for key, values in grid.items() for value in values):
                self.variant(f"sweep.grid.{name}", {"method": name, key: value})
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """The parts of the classes of `data`: those that are fine-tuned on, and those held out, if any are."""
        return SPLITS if getattr(self.data, "held_out_every", 0) is not None else SPLITS[:1]

    @property
    def tasks(self) -> tuple[str, ...]:
        """What every model is attacked on: the splits, and the zero-shot sets."""
        return *self.splits, *self.zero_shot

    @property
    def labels(self) -> dict[str, str]:
        """What figures and tables call each of `methods`, in that order."""
        return {name: self.method[name].label for name in self.methods}

    def trees_of(self, method: MethodParams) -> tuple[str, ...]:
        """The trees that a method trains on; a flat one sees the leaves of the first."""
        return method.trees if isinstance(method, HierParams) else self.trees.names[:1]

    def variant(self, where: str, changes: Mapping[str, object]) -> MethodParams:
        """The method that `changes` names under "method", with its other entries in place of that method's own.

        Raises ParamsError, naming `where`, for a method or a key that is not known and a value that is not allowed.
        """
        own = dict(changes)
        if not isinstance(name := own.pop("method", None), str) or name not in self.method:
            raise ParamsError(f"{where}: no method {name!r}; known are {', '.join(self.method)}")
        base = self.method[name]
        try:
            made = type(base).model_validate(base.model_dump(mode="json") | own)
        except ValidationError as error:
            raise ParamsError(f"{where}: {_line(error.errors()[0])}") from None
        if unknown := set(self.trees_of(made)) - set(self.trees.names):
            raise ParamsError(f"{where}.trees: {', '.join(sorted(unknown))} is not among trees.names")
        return made


def find_root(start: Path | None = None) -> Path:
    """The project's folder: the nearest one at or above `start` that holds params.yaml.

    start: by default what the environment variable HIERCLIP_ROOT names, such as a preset's folder, or else here.
    Raises ParamsError where there is none.
    """
    start = (start or Path(os.environ.get("HIERCLIP_ROOT", "."))).resolve()
    for folder in (start, *start.parents):
        if (folder / FILE).exists():
            return folder
    raise ParamsError(f"no {FILE} in {start} or above it; run from inside the project")


def load_params(path: Path | None = None) -> Params:
    """The parameters of `path`, by default the project's. Raises ParamsError, a line for each bad key."""
    path = path or find_root() / FILE
    try:
        return Params.model_validate(yaml.safe_load(path.read_text(encoding="utf8")))
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise ParamsError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        entries = {entry["loc"]: _line(entry) for entry in error.errors()}
        inner = [loc for loc in entries if not any(loc == other[: len(loc)] for other in entries if other != loc)]
        raise ParamsError("\n".join(f"{path}: {entries[loc]}" for loc in inner)) from None


def _line(entry) -> str:
    key = ".".join(str(part) for part in entry["loc"] if part not in sections.KINDS) or "the file"
    if entry["type"] == "extra_forbidden":
        return f"{key} is no known key"
    said = entry["msg"].removeprefix("Value error, ")
    return f"{key}: {said} (got {entry['input']!r})" if entry["loc"] else said
