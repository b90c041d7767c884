"""A notebook run as a script in several processes."""

import ast
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import nbformat
import torch
from torch import distributed as dist

from hierclip.errors import HierclipError
from hierclip.params import FILE, Params, load_params
from hierclip.progress import forget_output


class ProcessError(HierclipError, RuntimeError):
    """Several processes that cannot be started from here, or of which one failed."""


def run_script(notebook: Path, parameters: Mapping[str, object]) -> None:
    """Run the code of a notebook in this process, up to the cell tagged `processes`, with these
    parameters.

    That cell is the work that several processes share; the cells after it are run by the one that
    started them.
    """
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in nbformat.read(notebook, as_version=4).cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code":
            exec(compile(cell.source, str(notebook), "exec"), names)
        if "parameters" in tags:
            names |= parameters
        if "processes" in tags:
            return


def parameters_of(notebook: Path) -> list[str]:
    """Return the names that a notebook's cell of parameters sets."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        if "parameters" in cell.metadata.get("tags", []):
            assigned = [
                line for line in ast.parse(cell.source).body if isinstance(line, ast.Assign)
            ]
            return [
                target.id
                for line in assigned
                for target in line.targets
                if isinstance(target, ast.Name)
            ]
    return []


def run_in_processes(params: Params, root: Path, notebook: str, **parameters: object) -> bool:
    """Run a notebook of `root` in a process for each of this machine's devices; return whether it
    did.

    It does not where `params.machine` asks for one process, or where this is one of several
    already. With several machines, which share the project's folder, run the printed command on
    each; they wait for one another. Raises ProcessError where a process fails, and where `params`
    are not those of the project's file, which the processes read.
    """
    machine = params.machine
    if machine.processes == 1 or dist.is_torchelastic_launched():
        return False
    if params != load_params(root / FILE):
        raise ProcessError(
            f"several processes read their parameters from {root / FILE}; change them there"
        )
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", machine.address]
    where = ["--nnodes", str(machine.nodes), *meet] if machine.nodes > 1 else ["--standalone"]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(machine.devices), *where]
    command = ["run", notebook]
    for name, value in parameters.items():
        command += ["-p", f"{name}={value}"]
    if machine.nodes > 1:
        print(
            f"waiting for {machine.nodes} machines; on each run: hierclip {shlex.join(command)}",
            flush=True,
        )
    threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // machine.devices))}
    line = [sys.executable, *torchrun, "-m", "hierclip", *command]
    if code := subprocess.run(line, cwd=root, env={**threads, **os.environ}).returncode:
        raise ProcessError(
            f"{shlex.join(command)} failed in one of {machine.processes} processes (exit {code})"
        )
    forget_output()
    return True
