"""The command `hierclip`: what the project does outside its notebooks."""

from pathlib import Path
from typing import Annotated

import typer

from hierclip.params import find_root

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.command()
def readme() -> None:
    """Put the results table, out of the records, between the README's markers."""
    from hierclip.evaluate import RECORDS, load_records
    from hierclip.plots.table import markdown, write_readme

    root = find_root()
    changed = write_readme(root / "README.md", markdown(load_records(root / RECORDS)))
    typer.echo("README.md: results " + ("written" if changed else "are up to date"))


@app.command()
def verify() -> None:
    """Hold the records just made against the committed ones; exit 1 where a figure differs."""
    from hierclip.evaluate import verify as compare

    agreements = compare(find_root())
    differing = [agreement for agreement in agreements if not agreement.agrees]
    for agreement in agreements:
        typer.echo(str(agreement))
    typer.echo(f"{len(agreements) - len(differing)} figures agree within their intervals, {len(differing)} differ")
    raise typer.Exit(1 if differing else 0)


@app.command()
def excerpt(
    wordnet: Annotated[
        Path | None, typer.Option(help="a full WordNet 3.0; default: where NLTK or Debian put it")
    ] = None,
) -> None:
    """Cut data/source/wordnet anew out of a full WordNet 3.0."""
    from hierclip.data import load_dataset
    from hierclip.params import load_params
    from hierclip.trees import full_folder, write_excerpt
    from hierclip.trees.wordnet import EXCERPT

    full, root = wordnet or full_folder(), find_root()
    if full is None:
        raise FileNotFoundError('no full WordNet found; nltk.download("wordnet"), or Debian\'s wordnet-base')
    leaves = [leaf.id for leaf in load_dataset(load_params().data, root).leaves]
    typer.echo(f"{write_excerpt(full, root / EXCERPT, leaves)} synsets from {full} to {root / EXCERPT}")


def main() -> None:
    """Runs the command; an error of the user's making is one line, without a traceback."""
    try:
        app()
    except (ValueError, OSError) as error:
        typer.echo(f"hierclip: {error}", err=True)
        raise SystemExit(2) from None
