"""The command `hierclip`: what the project does outside its notebooks, and for those who have no project."""

import os
import sys

import typer

from hierclip.cli.audit import audit
from hierclip.cli.export import export
from hierclip.cli.project import DEFAULT, RESULTS, TABLE, readme, verify, write_readme
from hierclip.cli.stages import attack, finetune, pretrain
from hierclip.cli.tree import tree

USAGE: type[Exception] = typer.BadParameter.__bases__[0]  # what a command line that is none raises
STOPPED = 130  # as shells say it

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False, rich_markup_mode=None)
for command in (audit, tree, finetune, attack, pretrain, export, verify, readme):
    app.command()(command)


def main() -> None:
    """Runs the command; an error of the user's making is one line, without a traceback, and exit code 2."""
    os.environ.setdefault("MPLBACKEND", "agg")  # figures are files here
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except USAGE as error:
        said = error.format_message().rstrip(".")  # pyright: ignore[reportAttributeAccessIssue]
        _refuse(f"{said}; `hierclip COMMAND --help` says more")
    except (ValueError, OSError, RuntimeError) as error:
        _refuse(str(error))
    else:
        if code == STOPPED:
            typer.echo("hierclip: stopped; the same command goes on from there", err=True)
        raise SystemExit(code or 0)


def _refuse(said: str) -> None:
    typer.echo(f"hierclip: {said}", err=True)
    raise SystemExit(2) from None
