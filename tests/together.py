"""What `test_distributed` runs, alone and in several processes: `-m tests.together FOLDER PROCESSES
CASE ...`.
"""

import pickle
import sys
from pathlib import Path
from unittest.mock import patch

import open_clip
import torch

from hierclip import models, training
from hierclip.config import MachineParams, load_params
from hierclip.data.tasks import Task
from hierclip.distributed import all_gather, make_fabric, mean, rank, rank_slice
from hierclip.trees import tree_from_graph
from tests.conftest import (
    LEAVES,
    ROOT,
    Stripes,
    finetune,
    notebook_functions,
    sizes_graph,
    tiny_graph,
)
from tests.test_run import judged, knowing_model

STEPS = 20
open_clip.add_model_config(Path(__file__).with_name("hierclip-vit.json"))


class Stopping(Stripes):
    """Stops the training at a step."""

    def batch(self, places, size, seed, step, rows=slice(None)):
        if step == 13:
            raise KeyboardInterrupt
        return super().batch(places, size, seed, step, rows)


def trained(case: str, processes: int, folder: Path) -> dict[str, object]:
    """What came of METHOD/SPLITS OF A BATCH/OPTIMISER/PRECISION, "stopped/" before one or not, or
    of another case.
    """
    fabric = make_fabric(load_params(ROOT / "params.yaml").model, machine(processes))
    try:
        if case == "gather":
            return gradient()
        if case == "pretrain/float64":
            return captioned(fabric, folder)
        stopped, case = case.startswith("stopped/"), case.removeprefix("stopped/")
        if stopped:
            try:
                seen(fabric, case, folder, Stopping())
            except KeyboardInterrupt:
                assert (folder / "kept.ckpt").exists()
        return seen(fabric, case, folder, Stripes())
    finally:
        torch.set_default_dtype(torch.float32)


def machine(processes: int) -> MachineParams:
    return MachineParams(devices=processes, nodes=1, strategy="auto", address="")


def gradient() -> dict[str, object]:
    """Of a weight through all_gather places (B, D, h, w), meaned over processes as DDP does."""
    images = torch.arange(24.0).view(4, 2, 1, 3)[rank_slice(4)]
    weight = torch.ones(2, 1, 1, requires_grad=True)
    all_gather(images * weight).square().prod(1).sum().backward()
    return {"gradient": mean(weight.grad)}


def seen(fabric, case: str, folder: Path, dataset) -> dict[str, object]:
    """The weights and losses of a fine-tuning."""
    params, (name, parts, optimizer, dtype) = load_params(ROOT / "params.yaml"), case.split("/")
    torch.set_default_dtype(getattr(torch, dtype))
    method = params.method[name]
    if method.loss == "hier":
        method = method.model_copy(update={"text_lr": 0.01})
    if optimizer == "sgd":  # whose steps are as long as gradients; AdamW hides a wrong scale
        method = method.model_copy(update={"lr": 2e-4})
    trees = [
        tree_from_graph(graph, k, LEAVES)
        for k, graph in {"a": tiny_graph(), "b": sizes_graph()}.items()
    ]
    few = {"batch": 12, "checkpoint_every": 6, "accumulate": int(parts), "steps": STEPS}
    settings, backbone = (
        params.finetune.model_copy(update=few),
        models.create(params.model, seed=0, size=32),
    )
    todo = method, settings, backbone, dataset, trees, "a picture of a {}", 0, folder / "kept.ckpt"

    def plain(*arguments):
        return torch.optim.SGD(real(*arguments).param_groups)

    real = training._optimizer
    with patch.object(training, "_optimizer", plain if optimizer == "sgd" else real):
        head, history = finetune(fabric, *todo)
    return {
        "losses": [step["loss"] for step in history],
        "tau": vars(head).get("tau"),
        **backbone.clip.state_dict(),
    }


def captioned(fabric, folder: Path) -> dict[str, object]:
    """The weights and losses of a ViT's pre-training."""
    params = load_params(ROOT / "params.yaml")
    torch.set_default_dtype(torch.float64)
    backbone = models.create(
        params.model.model_copy(update={"architecture": "hierclip-vit"}), seed=0, size=32
    )
    few = params.pretrain.model_copy(
        update={"steps": STEPS, "batch": 12, "lr": 1e-4, "accumulate": 2}
    )
    tree = tree_from_graph(tiny_graph(), "tiny", LEAVES)
    task = Task("all", Stripes(), [tree], "a picture of a {}")
    history = notebook_functions("30_pretrain")["pretrain"](
        fabric, few, backbone, task, folder / "kept.ckpt"
    )
    return {"losses": [step["loss"] for step in history], **backbone.clip.state_dict()}


def measured(folder: Path, processes: int) -> None:
    """The outcomes and the record of an evaluation."""
    dataset, forest, params = pickle.loads((folder.parent / "inputs").read_bytes())
    make_fabric(params.model, machine(processes))
    judged(knowing_model(dataset), dataset, forest, "unseen", params, folder)


if __name__ == "__main__":
    target, count, *cases = sys.argv[1:]
    measured(Path(target), int(count))
    made = {case: trained(case, int(count), Path(target)) for case in cases}
    if rank() == 0:
        torch.save(made, Path(target) / "made.pt")
