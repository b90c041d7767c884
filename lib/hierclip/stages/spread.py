"""One command in several processes."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import torch
from torch import distributed as dist

from hierclip.params import ModelParams


class SpreadError(RuntimeError):
    """Several processes that cannot be started from here, or of which one failed."""


def spread(params: ModelParams, root: Path, *command: str) -> bool:
    """Runs `hierclip COMMAND` in a process for each of the machine's devices, and says whether it did.

    It does not where one process is asked for, or this is one of several already.
    Raises SpreadError where one of them fails, and where several machines are asked for: torchrun is to be started on
    each by hand, with the same command.
    """
    if params.devices * params.nodes == 1 or dist.is_torchelastic_launched():
        return False
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(params.devices)]
    if params.nodes > 1:
        way = ["--nnodes", str(params.nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", "HOST:29500"]
        line = shlex.join(["python", *torchrun, *way, "-m", "hierclip", *command])
        raise SpreadError(f"model.nodes is {params.nodes}: on each of the machines run `{line}`")
    threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // params.devices))}
    line = [sys.executable, *torchrun, "--standalone", "-m", "hierclip", *command]
    if code := subprocess.run(line, cwd=root, env={**threads, **os.environ}).returncode:
        raise SpreadError(f"{shlex.join(command)} failed in one of {params.devices} processes (exit {code})")
    return True
