"""What is done with a project's results: its README, its records held against others."""

import re
from pathlib import Path

import typer

DEFAULT, TABLE = "openmoji", "data/results/table.md"
RESULTS = re.compile(
    r"(<!-- results of ([\w-]+): made by `hierclip readme`, not by hand -->\n)(.*?)(<!-- end -->)", re.S
)


def readme() -> None:
    """Put the tables that the report makes out of records between the README's markers.

    \b
    Example:
      hierclip readme
    """
    from hierclip.params import find_root

    typer.echo("README.md: results " + ("written" if write_readme(find_root()) else "are up to date"))


def write_readme(root: Path) -> bool:
    """Puts each preset's tables between their markers in the README; gives whether that changed it.

    Raises ValueError where the README has no markers.
    """
    readme = root / "README.md"
    text = readme.read_text(encoding="utf8")
    if not RESULTS.search(text):
        raise ValueError(f"{readme}: no lines like {RESULTS.pattern!r} to put the results between")

    def filled(found: re.Match) -> str:
        table = root / ("" if found[2] == DEFAULT else f"presets/{found[2]}") / TABLE
        return found[1] + (table.read_text(encoding="utf8") if table.exists() else "Not run yet.\n") + found[4]

    new = RESULTS.sub(filled, text)
    if new != text:
        readme.write_text(new, encoding="utf8")
    return new != text


def verify() -> None:
    """Hold the records just made against the committed ones; exit 1 where a figure differs.

    \b
    Example:
      hierclip verify
    """
    from hierclip.evaluate import verify as compare
    from hierclip.params import find_root

    agreements = compare(find_root())
    differing = [agreement for agreement in agreements if not agreement.agrees]
    for agreement in agreements:
        typer.echo(str(agreement))
    typer.echo(f"{len(agreements) - len(differing)} figures agree within their intervals, {len(differing)} differ")
    raise typer.Exit(1 if differing else 0)
