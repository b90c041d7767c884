"""Notebooks of a project, run without JupyterLab."""

import builtins
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hierclip.errors import HierclipError, no_such

if TYPE_CHECKING:
    from nbformat import NotebookNode


def run(
    notebook: Annotated[str, typer.Argument(help="its name, such as 40_finetune")],
    parameters: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", help="NAME=VALUE of the notebook's parameters"),
    ] = None,
) -> None:
    """Run a notebook of this project, or of the preset whose folder this is.

    The executed copy goes to data/executed. A training or an attack that was stopped resumes.
    `make repro` runs all of them in order. Under torchrun a notebook runs as a script.

    \b
    Examples:
      hierclip run 40_finetune -p method=tecoa
      hierclip run 50_attack -p method=hier -p seed=1
    """
    import papermill
    import yaml
    from torch import distributed as dist

    from hierclip.config import find_root
    from hierclip.distributed import run_script

    root = find_root()
    path = root / "notebooks" / f"{notebook.removesuffix('.ipynb')}.ipynb"
    if not path.exists():
        known = sorted(file.stem for file in path.parent.glob("*.ipynb"))
        raise HierclipError(no_such("notebook", notebook, known))
    known = papermill.inspect_notebook(path)
    values: dict[str, object] = {}
    for text in parameters or []:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise HierclipError(
                f"-p {text}: write NAME=VALUE; {path.name}: "
                + (no_such("parameter", name, known) if name not in known else "no value is given")
            )
        values[name] = yaml.safe_load(value)
    if dist.is_torchelastic_launched():
        run_script(path, values)
        return
    name = "-".join([path.stem, *map(str, values.values())])
    executed = root / f"data/executed/{name}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    run_notebook(path, values, executed)
    typer.echo(f"executed: {os.path.relpath(executed)}")


def run_notebook(
    notebook: Path, parameters: Mapping[str, object], executed: Path | None = None
) -> "NotebookNode":
    """Run a notebook in a kernel of its own; return it with its outputs, kept in `executed` too.

    What it prints goes to stderr while it runs. A user's mistake is raised as a HierclipError, any
    other error as papermill raises it, with its traceback.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    from hierclip.progress import HEADLESS

    os.environ[HEADLESS] = "yes"
    plain = {k: str(value) if isinstance(value, Path) else value for k, value in parameters.items()}
    try:
        return papermill.execute_notebook(
            notebook,
            executed,
            plain,
            engine_name="clean",
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stderr,
            stderr_file=sys.stderr,
            extra_arguments=["--log-level=CRITICAL"],  # the kernel's own messages
        )
    except PapermillExecutionError as error:
        refused = issubclass(getattr(builtins, error.ename, object), OSError)
        if refused or error.traceback == [f"hierclip: {error.evalue}"]:
            raise HierclipError(error.evalue) from error
        raise
