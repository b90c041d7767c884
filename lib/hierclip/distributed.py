"""Several processes at one job: each one's share, and what they exchange. No-ops in a single
process.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import Precision
from torch import Tensor, distributed as dist

from hierclip.config import FILE, MachineParams, ModelParams, Params, load_params
from hierclip.errors import HierclipError
from hierclip.progress import forget_output

T = TypeVar("T")


class _HalfTowers(Precision):
    """bfloat16 inside the towers, on pixels as they are.

    Fabric's own MixedPrecision rounds pixels too: near white, bfloat16 is as coarse as a budget of
    1/255. And it refuses the gradients that attacks take.
    """

    precision = "bf16-mixed"

    def __init__(self, device: str):
        self.device = device

    def forward_context(self) -> AbstractContextManager:
        return torch.autocast(self.device, dtype=torch.bfloat16)


def make_fabric(params: ModelParams, machine: MachineParams | None = None) -> Fabric:
    """Return a Fabric of the accelerator and precision of `params`.

    machine: that of the processes that torchrun started, of which this is one; None: alone.
    Raises HierclipError where there are not as many processes as it says.
    """
    place: dict[str, Any] = {"devices": 1}
    if machine and (count := int(os.environ.get("WORLD_SIZE", "1"))) != machine.processes:
        raise HierclipError(
            f"{count} processes; params.yaml's machine asks for {machine.processes}"
        )
    if machine and machine.processes > 1:
        place = {
            "devices": machine.devices,
            "num_nodes": machine.nodes,
            "strategy": machine.strategy,
        }
    if params.precision == "bf16-mixed":
        place["plugins"] = _HalfTowers(device_of(params).type)
    fabric = Fabric(accelerator=params.accelerator, **place)
    fabric.launch()
    return fabric


def join_processes(device: str) -> torch.device:
    """Join the processes that torchrun started, if it did, each with a device of its own.

    device: "auto", or as torch names it. Returns this process's.
    """
    kind = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = kind if device == "auto" else torch.device(device)
    if not dist.is_torchelastic_launched():
        return kind
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    nodes = int(os.environ["WORLD_SIZE"]) // here
    fabric = Fabric(accelerator=kind.type, devices=here, num_nodes=nodes, strategy="ddp")
    fabric.launch()
    return fabric.device


def device_of(params: ModelParams) -> torch.device:
    """Return the device that `params.accelerator` means here."""
    return Fabric(accelerator=params.accelerator, devices=1).device


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process."""
    return dist.get_rank() if world() > 1 else 0


def rank_slice(size: int) -> slice:
    """Return this process's rows of a batch of `size`, which the processes divide evenly."""
    each = size // world()
    return slice(rank() * each, (rank() + 1) * each)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, part: Tensor) -> Tensor:
        rows = part.contiguous()
        parts = [torch.empty_like(rows) for _ in range(world())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return world() * gradient.chunk(world())[rank()]


def all_gather(part: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of their ranks: (B / world, ...) to (B, ...).

    All processes compute the same from these rows, so backward needs no communication: it returns
    this process's rows of the gradient, times the number of processes, which undoes DDP's mean.
    """
    return _Gather.apply(part) if world() > 1 else part  # pyright: ignore[reportReturnType]


def merge_by_index(results: dict[int, T]) -> list[T]:
    """Return the results 0, 1, ... in their order, of which each process has some."""
    parts: list = [results] * world()
    if world() > 1:
        dist.all_gather_object(parts, results)
    everything = {k: value for part in parts for k, value in part.items()}
    return [everything[k] for k in sorted(everything)]


def broadcast(value: T) -> T:
    """Return the first process's value in all processes."""
    box = [value]
    if world() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def mean(value: Tensor) -> Tensor:
    """Return the mean of a tensor over processes."""
    if world() == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / world()


def run_in_processes(params: Params, root: Path, notebook: str, **parameters: object) -> bool:
    """Run a notebook of `root` in a process for each device; return whether it did.

    It does not where `params.machine` asks for one process, or this is one of several already. With
    several machines, which share the project's folder, run on each the command that is printed;
    they wait for one another.
    Raises HierclipError where a process fails, and where `params` are not those of the project's
    file, which the processes read.
    """
    machine = params.machine
    if machine.processes == 1 or dist.is_torchelastic_launched():
        return False
    if params != load_params(root / FILE):
        raise HierclipError(
            f"several processes read their parameters from {root / FILE}; change them there"
        )
    command = ["hierclip", "run", notebook]
    for name, value in parameters.items():
        command += ["-p", f"{name}={value}"]
    place = ["--standalone"]
    if machine.nodes > 1:
        print(
            f"waiting for {machine.nodes} machines; on each run: {shlex.join(command)}", flush=True
        )
        place = [
            "--nnodes",
            str(machine.nodes),
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            machine.address,
        ]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *place,
        "--nproc-per-node",
        str(machine.devices),
    ]
    threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // machine.devices))}
    run = subprocess.run([*torchrun, "-m", *command], cwd=root, env={**threads, **os.environ})
    if run.returncode:
        raise HierclipError(
            f"{shlex.join(command)} failed in one of {machine.processes} processes "
            f"(exit {run.returncode})"
        )
    forget_output()
    return True


def run_script(notebook: Path, parameters: Mapping[str, object]) -> None:
    """Run a notebook's code in this process, with these parameters.

    It ends after the cell tagged `processes`, which holds the work that processes share: the cells
    after it are for the notebook that started them.
    """
    import nbformat

    names: dict[str, object] = {"__name__": "__main__"}
    for cell in nbformat.read(notebook, as_version=4).cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code":
            exec(compile(cell.source, str(notebook), "exec"), names)
        if "parameters" in tags:
            names |= parameters
        if "processes" in tags:
            return
