"""The command `hierclip`: what the project does outside its notebooks, and for those who have no
project.
"""

import os
import sys
from typing import Annotated

import typer

from hierclip.cli.audit import audit
from hierclip.cli.export import export
from hierclip.cli.project import DEFAULT, RESULTS, preset_summary, readme, verify, write_readme
from hierclip.cli.run import run
from hierclip.cli.tree import tree
from hierclip.errors import HierclipError

USAGE: type[Exception] = typer.BadParameter.__bases__[0]  # what a command line that is none raises
DEBUG = "--debug"
STOPPED = 130  # as shells say it

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
for command in (audit, tree, run, export, verify, readme):
    app.command()(command)


@app.callback(help=__doc__)
def options(
    debug: Annotated[
        bool, typer.Option(DEBUG, help="show where in the program an error arose")
    ] = False,
):
    """Take what stands before the command; `main` reads it, which is there where no command is."""


def main() -> None:
    """Run the command; an error of the user's making is one line and exit code 2, any other keeps
    its traceback.

    Of the user's making are a HierclipError, a command line that is none, and a file that the
    system refuses. After --debug these keep their tracebacks too.
    """
    os.environ.setdefault("MPLBACKEND", "agg")  # figures are files here
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except (USAGE, HierclipError, OSError) as error:
        if sys.argv[1:2] == [DEBUG] or (isinstance(error, OSError) and error.filename is None):
            raise
        said = str(error)
        if isinstance(error, USAGE):
            said = error.format_message().rstrip(".")  # pyright: ignore[reportAttributeAccessIssue]
            said += "; `hierclip COMMAND --help` says more"
        typer.echo(f"hierclip: {said}", err=True)
        raise SystemExit(2) from None
    else:
        if code == STOPPED:
            typer.echo("hierclip: stopped; the same command goes on from there", err=True)
        raise SystemExit(code or 0)
