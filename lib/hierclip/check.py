"""Checks records: figures against the outcomes they came from, and outcomes against the model, attacked again."""

import tempfile
from pathlib import Path

import numpy as np

from hierclip.data import load_dataset
from hierclip.evaluate import RECORDS, Outcomes, Record, RecordError, evaluate, outcomes_path
from hierclip.evaluate.records import parse_record
from hierclip.evaluate.run import level_figures
from hierclip.model import device_of, load_model
from hierclip.params import Params, load_params
from hierclip.trees import load_forest


def check_record(root: Path, name: str, *, attack: bool = False) -> list[str]:
    """What of a record does not come out again, a line for each figure; none if all does.

    name: METHOD-SEED-SPLIT. Its figures are computed anew from the outcomes kept beside it; with `attack` the model is
    attacked anew first, under the record's conditions, which on the same machine gives the same to the last digit.
    Raises RecordError where the record or its outcomes are not there, or `params.yaml` asks for another attack.
    """
    path = root / RECORDS / f"{name}.json"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.json"))) or "none"
        raise RecordError(f"no record {name}; known are {known}")
    record, params = parse_record(path.read_text(encoding="utf8"), str(path)), load_params(root / "params.yaml")
    return _differences(record, _again(record, params, root) if attack else _from_outcomes(record, params, root))


def _from_outcomes(record: Record, params: Params, root: Path) -> dict:
    path = outcomes_path(root, record.method, record.seed, record.split)
    if not path.exists():
        raise RecordError(f"{record.name}: its outcomes are not in {path}; `make repro` makes them")
    return level_figures(Outcomes.load(path), params.attack)


def _again(record: Record, params: Params, root: Path) -> dict:
    settings = {"params": params.attack, "template": params.model.template, "seed": record.seed}
    model = load_model(root / "data/models" / f"{record.method}-{record.seed}")
    trees, dataset = load_forest(root / "data/trees", params.trees.names), load_dataset(params.data, root)
    with tempfile.TemporaryDirectory() as folder:
        device = device_of(params.model)
        made, _ = evaluate(model, dataset, trees, record.split, root=Path(folder), device=device, **settings)
    if made.threat_model != record.threat_model:
        raise RecordError(f"{record.name}: params.yaml asks for {made.threat_model}, the record has another attack")
    return made.model_dump(exclude={"git", "versions"})


def _differences(record: Record, made: dict, tolerance: float = 1e-5) -> list[str]:
    """Of all figures that were made anew, by their place in the record."""
    old, new = _flat(record.model_dump()), _flat(made)
    return [
        f"{record.name} {key}: recorded {old.get(key)}, now {value}"
        for key, value in new.items()
        if not (old.get(key) == value or _near(old.get(key), value, tolerance))
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
