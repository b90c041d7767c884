"""Several processes at one job: which one this is, what its share is, what the others have. Alone
nothing happens.
"""

import os
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import Precision
from torch import Tensor
from torch import distributed as dist

from hierclip.errors import HierclipError
from hierclip.params import MachineParams, ModelParams

T = TypeVar("T")


class _HalfTowers(Precision):
    """bfloat16 inside the towers. Fabric's own kind rounds pixels to it too, whose spacing near
    white is a budget of 1/255, and lets no attack take a gradient."""

    precision = "bf16-mixed"

    def __init__(self, device: str):
        self.device = device

    def forward_context(self) -> AbstractContextManager:
        return torch.autocast(self.device, dtype=torch.bfloat16)


def make_fabric(params: ModelParams, machine: MachineParams | None = None) -> Fabric:
    """The accelerator and precision of `params`; in each of the processes of `machine` that
    torchrun started, or alone.

    Raises HierclipError where there are not as many processes as `machine` says.
    """
    place: dict[str, Any] = {"devices": 1}
    if machine and (found := int(os.environ.get("WORLD_SIZE", "1"))) != machine.processes:
        raise HierclipError(
            f"{found} processes; params.yaml's machine asks for {machine.processes}"
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


def device_of(params: ModelParams) -> torch.device:
    """The device that `params.accelerator` means here."""
    return Fabric(accelerator=params.accelerator, devices=1).device


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is."""
    return dist.get_rank() if world() > 1 else 0


def own(size: int) -> slice:
    """Give the rows of a batch of `size` that are this process's. Raises HierclipError where they
    come out uneven.
    """
    if size % world():
        raise HierclipError(
            f"a batch of {size} cannot be shared out evenly among {world()} processes"
        )
    each = size // world()
    return slice(rank() * each, (rank() + 1) * each)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, part: Tensor) -> Tensor:
        parts = [
            torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(world())
        ]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return world() * gradient.chunk(world())[rank()]


def gathered(part: Tensor) -> Tensor:
    """All processes' rows, in the order of their ranks: (B / world, ...) to (B, ...).

    What every process then computes of them is the same, so the gradient comes back without talk: a
    process's own rows of it, times the number of processes, because the mean over processes is what
    steps the weights.
    """
    return _Gather.apply(part) if world() > 1 else part  # pyright: ignore[reportReturnType]


def merged(found: dict[int, T]) -> list[T]:
    """What all processes found, each for some of the places 0, 1, ..., in the order of the
    places.
    """
    parts: list = [found] * world()
    if world() > 1:
        dist.all_gather_object(parts, found)
    everything = {k: value for part in parts for k, value in part.items()}
    return [everything[k] for k in sorted(everything)]


def agreed(value: T) -> T:
    """The first process's value, everywhere."""
    box = [value]
    if world() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over processes."""
    if world() == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / world()
