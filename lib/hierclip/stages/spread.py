"""One command in several processes."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import torch
from torch import distributed as dist

from hierclip.errors import HierclipError
from hierclip.params import FILE, Params, load_params
from hierclip.progress import forget_output


class SpreadError(HierclipError, RuntimeError):
    """Several processes that cannot be started from here, or of which one failed."""


def spread(params: Params, root: Path, *command: str) -> bool:
    """Runs `hierclip COMMAND` in a process for each of this machine's devices, and says whether it did.

    It does not where one process is asked for, or this is one of several already. Of several machines, which share the
    project's folder, each is to run the command; they wait for one another.
    Raises SpreadError where one of the processes fails, and where `params` are not those of the project's file, which
    the others read.
    """
    machine = params.machine
    if machine.processes == 1 or dist.is_torchelastic_launched():
        return False
    if params != load_params(root / FILE):
        raise SpreadError(f"several processes read their parameters from {root / FILE}; change them there")
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", machine.address]
    where = ["--nnodes", str(machine.nodes), *meet] if machine.nodes > 1 else ["--standalone"]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(machine.devices), *where]
    threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // machine.devices))}
    line = [sys.executable, *torchrun, "-m", "hierclip", *command]
    if machine.nodes > 1:
        print(f"waiting for {machine.nodes} machines; on each run: hierclip {shlex.join(command)}", flush=True)
    if code := subprocess.run(line, cwd=root, env={**threads, **os.environ}).returncode:
        raise SpreadError(f"{shlex.join(command)} failed in one of {machine.processes} processes (exit {code})")
    forget_output()
    return True
