"""Run what the project does outside its notebooks, and an audit for those who have no project."""

import errno
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from hierclip.cli.audit import audit, compare
from hierclip.cli.export import export
from hierclip.cli.project import (
    DEFAULT,
    RESULTS,
    SUMMARY,
    photographs,
    readme,
    verify,
    write_readme,
)
from hierclip.cli.run import run
from hierclip.cli.tree import tree
from hierclip.errors import HierclipError

PAGES = ("papermill", "nbconvert", "matplotlib", "seaborn")  # of the extra `pages`
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk
USAGE: type[Exception] = typer.BadParameter.__bases__[0]  # raised for a wrong command line

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
for command in (audit, compare, tree, run, export, verify, readme):
    app.command()(command)
app.command(hidden=True)(photographs)  # a stage of dvc.yaml


@app.callback(help=__doc__)
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="show where in the program an error arose")
    ] = False,
) -> None:
    """Accept --debug before the command; `main` acts on it."""


def main() -> None:
    """Run the command. A user's mistake is one line and exit code 2; a bug keeps its traceback.

    A user's mistakes are a HierclipError, a wrong command line, and a file that the system refuses.
    After --debug they keep their tracebacks too. A command that is stopped by SIGINT says so in one
    line, exit code 130.
    """
    os.environ.setdefault("MPLBACKEND", "agg")  # figures are written to files
    sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore  # as on stderr
    with noted_interrupts() as signals:
        try:
            code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        except Exception as error:
            if not signals:  # else it may be what an interrupt was turned into
                refuse(error)
        if signals:
            code = 130  # as shells have it
    if code == 130:
        typer.echo("hierclip: stopped; the same command goes on from there", err=True)
    raise SystemExit(code or 0)


@contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """Note every SIGINT in the list that this gives, and raise KeyboardInterrupt.

    KeyboardInterrupt alone can get lost: in a destructor, in the callback of a weak reference, and
    in an import that makes an ImportError of it. A SIGINT that is ignored, as in the background of
    a script, stays so.
    """
    signals: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        signals.append(number)
        # The tasks that a notebook's run leaves behind would report that their kernel died.
        logging.getLogger("asyncio").disabled = True
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, before if before is signal.SIG_IGN else interrupt)
    try:
        yield signals
    finally:
        signal.signal(signal.SIGINT, before)


def refuse(error: Exception) -> None:
    """End with a user's mistake as one line; raise any other error as it is."""
    missing = isinstance(error, ModuleNotFoundError) and error.name in PAGES
    known = missing or isinstance(error, (USAGE, HierclipError, OSError))
    unnamed = isinstance(error, OSError) and not error.filename and error.errno not in FULL
    if not known or unnamed or sys.argv[1:2] == ["--debug"]:
        raise error
    message = str(error)
    if isinstance(error, USAGE):
        mistake = error.format_message().rstrip(".")  # pyright: ignore
        message = f"{mistake}; `hierclip COMMAND --help` says more"
    if missing:
        message = (
            f"{message}; it comes with the extra `pages`: in the clone, pip install '.[pages]'"
        )
    typer.echo(f"hierclip: {message}", err=True)
    raise SystemExit(2) from None
