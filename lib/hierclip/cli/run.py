"""Notebooks of a project, run without JupyterLab."""

from pathlib import Path
from typing import Annotated

import typer

from hierclip.errors import HierclipError

Given = Annotated[list[str], typer.Option("--parameter", "-p", help="NAME=VALUE of the notebook's parameters")]


def run(
    notebook: Annotated[str, typer.Argument(help="its name, such as 40_finetune")],
    parameters: Given = [],  # noqa: B006 - typer reads it
) -> None:
    """Run a notebook of this project, or of the preset whose folder this is; under torchrun as a script.

    The executed copy goes to data/executed. A training or an attack that was stopped resumes. `make repro` runs all of
    them in order.

    \b
    Examples:
      hierclip run 40_finetune -p method=tecoa
      hierclip run 50_attack -p method=hier -p seed=1
    """
    import yaml
    from torch import distributed as dist

    from hierclip.params import find_root
    from hierclip.processes import parameters_of, run_notebook, run_script

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
            raise HierclipError(f"-p {text}: write NAME=VALUE with a parameter of {path.name}: {known}")
        values[name] = yaml.safe_load(value)
    if dist.is_torchelastic_launched():
        run_script(path, values)
        return
    executed = root / "data/executed" / ("-".join([path.stem, *map(str, values.values())]) + ".ipynb")
    run_notebook(path, values, executed)
    typer.echo(f"executed: {executed.relative_to(Path.cwd()) if executed.is_relative_to(Path.cwd()) else executed}")
