"""The stage that fine-tunes."""

from pathlib import Path

import pandas as pd

from hierclip.data import ids_of, load_dataset
from hierclip.distributed import make_fabric, rank
from hierclip.model import Model, load_model, save_model
from hierclip.params import Params
from hierclip.stages import BASE, MODELS, TREES, keep_history, read_history
from hierclip.stages.spread import spread
from hierclip.train import finetune
from hierclip.trees import load_forest


def finetune_stage(root: Path, params: Params, method: str, seed: int) -> tuple[Model, pd.DataFrame]:
    """Fine-tunes the base model by an entry of `params.method` on the fine-tuning classes.

    Writes data/models/METHOD-SEED; gives what is there: the model, and for each step what was logged.
    """
    folder = root / MODELS / f"{method}-{seed}"
    if not spread(params, root, "finetune", method, str(seed)):
        settings, dataset = params.method[method], load_dataset(params.data, root)
        tuned = [t.restrict(ids_of(dataset, "tuned")) for t in load_forest(root / TREES, params.trees_of(settings))]
        backbone, checkpoint = load_model(root / BASE).backbone, root / "data/checkpoints" / f"{method}-{seed}.ckpt"
        todo = settings, params.finetune, backbone, dataset, tuned, params.model.template, seed, checkpoint
        head, history = finetune(fabric := make_fabric(params.model, params.machine), *todo)
        if rank() == 0:
            save_model(Model(backbone, head, method, params.model.template), folder)
            keep_history(history, folder)
        fabric.barrier()  # the others read it when it is whole
    return load_model(folder), read_history(folder)
