"""The stage that attacks."""

from pathlib import Path

from hierclip.distributed import make_fabric
from hierclip.evaluate import RECORDS, Record, evaluate
from hierclip.evaluate.records import parse_record
from hierclip.model import Model, load_model
from hierclip.params import Params
from hierclip.stages import MODELS
from hierclip.stages.spread import spread
from hierclip.stages.tasks import Task, load_task


def attack_stage(root: Path, params: Params, method: str, seed: int) -> list[Record]:
    """Attacks a fine-tuned model on every task; gives the records, which `evaluate` keeps."""
    if not spread(params, root, "attack", method, str(seed)):
        model = load_model(root / MODELS / f"{method}-{seed}")
        device = make_fabric(params.model, params.machine).device
        settings = {"seed": seed, "params": params.attack, "root": root, "device": device}
        return [evaluate_task(model, load_task(root, params, name), **settings) for name in params.tasks]
    files = [root / RECORDS / f"{method}-{seed}/{name}.json" for name in params.tasks]
    return [parse_record(file.read_text(encoding="utf8"), str(file)) for file in files]


def evaluate_task(model: Model, task: Task, **settings) -> Record:
    """`evaluate` on a task."""
    return evaluate(model, task.dataset, task.trees, task.name, template=task.template, **settings)[0]
