"""Notebooks of a project, run without JupyterLab."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hierclip.errors import HierclipError

if TYPE_CHECKING:
    from nbformat import NotebookNode

Given = Annotated[
    list[str], typer.Option("--parameter", "-p", help="NAME=VALUE of the notebook's parameters")
]


def run(
    notebook: Annotated[str, typer.Argument(help="its name, such as 40_finetune")],
    parameters: Given = [],  # noqa: B006 - typer reads it
) -> None:
    """Run a notebook of this project, or of the preset whose folder this is; under torchrun as a
    script.

    The executed copy goes to data/executed. A training or an attack that was stopped resumes. `make
    repro` runs all of them in order.

    \b
    Examples:
      hierclip run 40_finetune -p method=tecoa
      hierclip run 50_attack -p method=hier -p seed=1
    """
    import yaml
    from torch import distributed as dist

    from hierclip.params import find_root
    from hierclip.processes import parameters_of, run_script

    root = find_root()
    path = root / "notebooks" / f"{notebook.removesuffix('.ipynb')}.ipynb"
    if not path.exists():
        known = sorted(file.stem for file in path.parent.glob("*.ipynb"))
        raise HierclipError(f"no notebook {notebook!r}; known are {', '.join(known)}")
    values: dict[str, object] = {}
    for text in parameters:
        name, equals, value = text.partition("=")
        if not equals or name not in parameters_of(path):
            known = ", ".join(parameters_of(path))
            raise HierclipError(
                f"-p {text}: write NAME=VALUE with a parameter of {path.name}: {known}"
            )
        values[name] = yaml.safe_load(value)
    if dist.is_torchelastic_launched():
        run_script(path, values)
        return
    executed = (
        root / "data/executed" / ("-".join([path.stem, *map(str, values.values())]) + ".ipynb")
    )
    run_notebook(path, values, executed)
    near = executed.is_relative_to(Path.cwd())
    typer.echo(f"executed: {executed.relative_to(Path.cwd()) if near else executed}")


def run_notebook(
    notebook: Path, parameters: Mapping[str, object], executed: Path | None = None
) -> "NotebookNode":
    """Run a notebook in a kernel of its own; return it with its outputs, which go to `executed`
    too.

    What it prints goes to stderr while it runs. An error of the user's making is raised as a
    HierclipError, any other as papermill raises it, with its traceback.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    from hierclip.progress import HEADLESS

    os.environ[HEADLESS] = "yes"
    settings = {"engine_name": "clean", "kernel_name": "python3", "progress_bar": False}
    settings |= {"stdout_file": sys.stderr, "stderr_file": sys.stderr}
    settings |= {"extra_arguments": ["--log-level=CRITICAL"]}  # the kernel's own messages
    if executed:
        executed.parent.mkdir(parents=True, exist_ok=True)
    plain = {
        name: str(value) if isinstance(value, Path) else value for name, value in parameters.items()
    }
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
