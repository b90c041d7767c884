"""Notebooks run without JupyterLab: by papermill, and as a script in several processes."""

import ast
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import nbformat
import torch
from nbformat import NotebookNode
from torch import distributed as dist

from hierclip.errors import HierclipError
from hierclip.params import FILE, Params, load_params
from hierclip.progress import HEADLESS, forget_output


class ProcessError(HierclipError, RuntimeError):
    """Several processes that cannot be started from here, or of which one failed."""


def run_notebook(notebook: Path, parameters: Mapping[str, object], executed: Path | None = None) -> NotebookNode:
    """Run a notebook in a kernel of its own; return it with its outputs, which go to `executed` too.

    What it prints goes to stderr while it runs. An error of the user's making is raised as a HierclipError, any other
    as papermill raises it, with its traceback.
    """
    import papermill  # slow, and only needed here
    from papermill.exceptions import PapermillExecutionError

    os.environ[HEADLESS] = "yes"
    settings = {"engine_name": "clean", "kernel_name": "python3", "progress_bar": False}
    settings |= {"stdout_file": sys.stderr, "stderr_file": sys.stderr}
    settings |= {"extra_arguments": ["--log-level=CRITICAL"]}  # the kernel's own messages
    if executed:
        executed.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in parameters.items()}
    try:
        return papermill.execute_notebook(notebook, executed, plain, **settings)
    except PapermillExecutionError as error:
        if error.ename in user_errors():
            raise HierclipError(error.evalue) from error
        raise


def user_errors() -> list[str]:
    """Return the names of the exceptions that are a user's mistake."""
    import hierclip.evaluate
    import hierclip.train  # noqa: F401 - with these all of them are known

    kinds: list[type] = [HierclipError, *OSError.__subclasses__()]
    for kind in kinds:
        kinds += [sub for sub in kind.__subclasses__() if issubclass(sub, HierclipError)]
    return [kind.__name__ for kind in kinds]


def run_script(notebook: Path, parameters: Mapping[str, object]) -> None:
    """Run the code of a notebook in this process, up to the cell tagged `processes`, with these parameters.

    That cell is the work that several processes share; the cells after it are run by the one that started them.
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
            assigned = [line for line in ast.parse(cell.source).body if isinstance(line, ast.Assign)]
            return [target.id for line in assigned for target in line.targets if isinstance(target, ast.Name)]
    return []


def run_in_processes(params: Params, root: Path, notebook: str, **parameters: object) -> bool:
    """Run a notebook of `root` in a process for each of this machine's devices; return whether it did.

    It does not where `params.machine` asks for one process, or where this is one of several already. With several
    machines, which share the project's folder, run the printed command on each; they wait for one another.
    Raises ProcessError where a process fails, and where `params` are not those of the project's file, which the
    processes read.
    """
    machine = params.machine
    if machine.processes == 1 or dist.is_torchelastic_launched():
        return False
    if params != load_params(root / FILE):
        raise ProcessError(f"several processes read their parameters from {root / FILE}; change them there")
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", machine.address]
    where = ["--nnodes", str(machine.nodes), *meet] if machine.nodes > 1 else ["--standalone"]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(machine.devices), *where]
    command = ["run", notebook]
    for name, value in parameters.items():
        command += ["-p", f"{name}={value}"]
    if machine.nodes > 1:
        print(f"waiting for {machine.nodes} machines; on each run: hierclip {shlex.join(command)}", flush=True)
    threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // machine.devices))}
    line = [sys.executable, *torchrun, "-m", "hierclip", *command]
    if code := subprocess.run(line, cwd=root, env={**threads, **os.environ}).returncode:
        raise ProcessError(f"{shlex.join(command)} failed in one of {machine.processes} processes (exit {code})")
    forget_output()
    return True
