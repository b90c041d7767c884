"""What `test_distributed` runs, alone and in several processes: `-m tests.together FOLDER PROCESSES CASE ...`."""

import pickle
import sys
from pathlib import Path
from unittest.mock import patch

import torch

from hierclip import model, train
from hierclip.distributed import make_fabric, rank
from hierclip.losses import gradient_evaluations
from hierclip.params import load_params
from hierclip.train import finetune
from hierclip.trees import tree_from_graph
from tests.conftest import LEAVES, ROOT, Stripes, sizes_graph, tiny_graph
from tests.test_run import judged, knowing_model

STEPS = 20


def tuned(case: str, processes: int, folder: Path) -> dict[str, object]:
    """The weights and losses of a fine-tuning. case: METHOD/PARTS OF A BATCH/OPTIMISER/PRECISION."""
    params, (name, parts, optimizer, dtype) = load_params(ROOT / "params.yaml"), case.split("/")
    torch.set_default_dtype(getattr(torch, dtype))
    method = params.method[name]
    if method.loss == "hier":
        method = method.model_copy(update={"learned": ("curvature", "tau"), "text_lr": 0.01})
    if optimizer == "sgd":  # whose steps are as long as gradients; AdamW hides a wrong scale
        method = method.model_copy(update={"lr": 2e-4})
    trees = [tree_from_graph(graph, k, LEAVES) for k, graph in {"a": tiny_graph(), "b": sizes_graph()}.items()]
    few = {"batch": 12, "checkpoint_every": 6, "accumulate": int(parts)}
    few["gradients"] = STEPS * gradient_evaluations(method, 2)
    settings, backbone = params.finetune.model_copy(update=few), model.create(params.model, seed=0, size=32)
    todo = method, settings, backbone, Stripes(), trees, "a picture of a {}", 0, folder / "kept.ckpt"
    fabric = make_fabric(params.model.model_copy(update={"devices": processes}))

    def plain(*arguments):
        return torch.optim.SGD(real(*arguments).param_groups)

    real = train._optimizer
    with patch.object(train, "_optimizer", plain if optimizer == "sgd" else real):
        head, history = finetune(fabric, *todo)
    torch.set_default_dtype(torch.float32)
    return {"losses": [step["loss"] for step in history], "tau": vars(head).get("tau"), **backbone.clip.state_dict()}


def measured(folder: Path, processes: int) -> None:
    """The outcomes and the record of an evaluation."""
    dataset, forest, params = pickle.loads((folder.parent / "inputs").read_bytes())
    make_fabric(params.model.model_copy(update={"devices": processes}))
    judged(knowing_model(dataset), dataset, forest, "held_out", params, folder)


if __name__ == "__main__":
    target, count, *cases = sys.argv[1:]
    measured(Path(target), int(count))
    made = {case: tuned(case, int(count), Path(target)) for case in cases}
    if rank() == 0:
        torch.save(made, Path(target) / "made.pt")
