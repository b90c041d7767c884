"""The stage that attacks."""

from pathlib import Path

from hierclip.data import SPLITS, load_dataset
from hierclip.distributed import make_fabric
from hierclip.evaluate import RECORDS, Record, evaluate
from hierclip.evaluate.records import parse_record
from hierclip.model import load_model
from hierclip.params import Params
from hierclip.stages import MODELS, TREES
from hierclip.stages.spread import spread
from hierclip.trees import load_forest


def attack_stage(root: Path, params: Params, method: str, seed: int) -> list[Record]:
    """Attacks a fine-tuned model on both splits' classes; gives their records, which `evaluate` keeps."""
    if not spread(params, root, "attack", method, str(seed)):
        model, dataset = load_model(root / MODELS / f"{method}-{seed}"), load_dataset(params.data, root)
        trees, device = load_forest(root / TREES, params.trees.names), make_fabric(params.model, params.machine).device
        settings = {"params": params.attack, "template": params.model.template, "root": root, "device": device}
        return [evaluate(model, dataset, trees, split, seed=seed, **settings)[0] for split in SPLITS]
    files = [root / RECORDS / f"{method}-{seed}-{split}.json" for split in SPLITS]
    return [parse_record(file.read_text(encoding="utf8"), str(file)) for file in files]
