"""The stage that makes the base model."""

from pathlib import Path

import pandas as pd
from torch import nn

from hierclip.data import load_dataset
from hierclip.distributed import device_of, make_fabric, rank
from hierclip.model import CosineHead, Model, create, load_model, save_model
from hierclip.params import Params
from hierclip.stages import BASE, TREES, keep_history, read_history
from hierclip.stages.spread import spread
from hierclip.train import pretrain
from hierclip.trees import load_forest


def pretrain_stage(root: Path, params: Params) -> tuple[Model, pd.DataFrame]:
    """The model that `params.model` names, trained from scratch on all classes where it names no weights.

    A model with BatchNorm is trained in one process where there is no GPU: its statistics are a batch's.
    Writes data/models/base; gives what is there: the model, and each step's loss.
    """
    folder, machine = root / BASE, params.machine
    backbone = create(params.model, params.pretrain.seed, params.data.size)
    if device_of(params.model).type != "cuda" and any(isinstance(m, nn.BatchNorm2d) for m in backbone.clip.modules()):
        machine = None
    scratch = params.model.scratch
    if not (scratch and machine and spread(params, root, "pretrain")):
        history = []
        if scratch:
            dataset, trees = load_dataset(params.data, root), load_forest(root / TREES, params.trees.names)
            checkpoint = root / "data/checkpoints/base.ckpt"
            todo = params.pretrain, backbone, dataset, trees, params.model.template, checkpoint
            history = pretrain(fabric := make_fabric(params.model, machine), *todo)
        if rank() == 0:
            scale = float(backbone.clip.logit_scale.detach().exp())
            save_model(Model(backbone, CosineHead(scale), "base", template=params.model.template), folder)
            keep_history(history, folder)
        if scratch:
            fabric.barrier()  # the others read it when it is whole
    return load_model(folder), read_history(folder)
