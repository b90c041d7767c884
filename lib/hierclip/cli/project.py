"""What is done with a project's results: its README, its records held against others."""

import re
from pathlib import Path

import typer

from hierclip.errors import HierclipError

DEFAULT = "openmoji"
RESULTS = re.compile(
    r"(<!-- results of ([\w-]+): made by `hierclip readme`, not by hand -->\n)(.*?)(<!-- end -->)",
    re.S,
)


def readme() -> None:
    """Write the summary of the records between the README's markers.

    \b
    Example:
      hierclip readme
    """
    from hierclip.params import find_root

    typer.echo(
        "README.md: results " + ("written" if write_readme(find_root()) else "are up to date")
    )


def write_readme(root: Path) -> bool:
    """Write each preset's summary between its markers in the README; return whether that changed
    the file.

    Raises HierclipError where the README has no markers.
    """
    readme = root / "README.md"
    text = readme.read_text(encoding="utf8")
    if not RESULTS.search(text):
        raise HierclipError(
            f"{readme}: no lines like {RESULTS.pattern!r} to put the results between"
        )

    def filled(match: re.Match) -> str:
        preset = root if match[2] == DEFAULT else root / "presets" / match[2]
        return match[1] + preset_summary(preset) + match[4]

    new = RESULTS.sub(filled, text)
    if new != text:
        readme.write_text(new, encoding="utf8")
    return new != text


def preset_summary(root: Path) -> str:
    """Return the summary table of a preset's records, or a line that says that there are none."""
    from hierclip.evaluate import RECORDS, load_records
    from hierclip.params import load_params
    from hierclip.plots.table import summary

    if not any((root / RECORDS).glob("*/*.json")):
        return "Not run yet.\n"
    return summary(load_records(root / RECORDS), load_params(root / "params.yaml").labels)


def verify() -> None:
    """Compare the records just made with the committed ones; exit 1 where a metric differs.

    \b
    Example:
      hierclip verify
    """
    from hierclip.evaluate import verify as compare
    from hierclip.params import find_root

    table = compare(find_root())
    for row in table.itertuples():
        verdict = "agrees " if row.agrees else "DIFFERS"
        values = f"{row.new:.3f}, committed {row.old:.3f}, may differ by {row.allowed:.3f}"
        typer.echo(f"{verdict} {row.Index}: {values}")
    typer.echo(f"{table['agrees'].sum()} metrics agree, {(~table['agrees']).sum()} differ")
    raise typer.Exit(int(not table["agrees"].all()))
