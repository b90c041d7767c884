"""Checks records: figures against the outcomes they came from, and outcomes against the model, attacked again."""

import tempfile
from pathlib import Path

import numpy as np

from hierclip.distributed import device_of
from hierclip.evaluate import RECORDS, Outcomes, Record, RecordError, load_records, outcomes_path
from hierclip.evaluate.outcomes import PARTS
from hierclip.evaluate.records import parse_record
from hierclip.evaluate.run import record_figures
from hierclip.model import load_model
from hierclip.params import Params, load_params
from hierclip.stages import MODELS
from hierclip.stages.attack import evaluate_task
from hierclip.stages.tasks import load_task


def check_record(root: Path, name: str, *, attack: bool = False) -> list[str]:
    """What of a record does not come out again, a line for each figure; none if all does.

    name: METHOD-SEED/SPLIT. All figures but the audit's are computed anew from the outcomes kept beside it; with
    `attack` the model is attacked and audited anew, which on the same machine gives the same to the last digit.
    Raises RecordError where the record or its outcomes are not there, or `params.yaml` asks for another attack.
    """
    path = root / RECORDS / f"{name}.json"
    if not path.exists():
        known = ", ".join(record.name for record in load_records(root / RECORDS))
        raise RecordError(f"no record {name}; known are {known}")
    record, params = parse_record(path.read_text(encoding="utf8"), str(path)), load_params(root / "params.yaml")
    if record.settings != (asked := params.attack.model_dump(mode="json")):
        keys = ", ".join(key for key in asked if record.settings.get(key) != asked[key])
        raise RecordError(f"{name}: made with another attack than params.yaml asks for; {keys} differ")
    return _differences(record, (_again if attack else _from_outcomes)(record, params, root))


def _from_outcomes(record: Record, params: Params, root: Path) -> dict:
    paths = {part: outcomes_path(root, record.method, record.seed, record.split, part) for part in PARTS}
    if missing := [str(path) for path in paths.values() if not path.exists()]:
        raise RecordError(f"{record.name}: no outcomes in {', '.join(missing)}; `make repro` makes them")
    outcomes = {part: Outcomes.load(path) for part, path in paths.items()}
    return record_figures(outcomes, load_task(root, params, record.split).trees, params.attack)


def _again(record: Record, params: Params, root: Path) -> dict:
    model, task = load_model(root / MODELS / f"{record.method}-{record.seed}"), load_task(root, params, record.split)
    settings = {"params": params.attack, "seed": record.seed, "device": device_of(params.model)}
    with tempfile.TemporaryDirectory() as folder:
        made = evaluate_task(model, task, root=Path(folder), **settings)
    return made.model_dump(exclude={"git", "hardware", "versions"})


def _differences(record: Record, made: dict, tolerance: float = 1e-5) -> list[str]:
    """Of all figures that were made anew, by their place in the record."""
    old, new = _flat(record.model_dump(include=set(made))), _flat(made)
    return [
        f"{record.name} {key}: recorded {old.get(key)}, now {new.get(key)}"
        for key in sorted(set(old) | set(new))
        if not (key in old and key in new and (old[key] == new[key] or _near(old[key], new[key], tolerance)))
    ]


def _near(a: object, b: object, tolerance: float) -> bool:
    numbers = isinstance(a, int | float) and isinstance(b, int | float)
    return numbers and bool(np.isclose(float(a), float(b), rtol=0, atol=tolerance))  # pyright: ignore


def _flat(entries: object, where: str = "") -> dict[str, object]:
    if hasattr(entries, "model_dump"):
        entries = entries.model_dump()  # pyright: ignore
    if isinstance(entries, dict):
        return {k: v for key, value in entries.items() for k, v in _flat(value, f"{where}.{key}".strip(".")).items()}
    if isinstance(entries, list | tuple):
        return {k: v for i, value in enumerate(entries) for k, v in _flat(value, f"{where}[{i}]").items()}
    return {where: entries}
