"""Commands on a project's results: its README, its records compared with the committed ones."""

import re
from pathlib import Path

import typer

from hierclip.errors import HierclipError

DEFAULT = "emoji"
SUMMARY = "data/results/summary.md"  # from notebook 70
RESULTS = re.compile(
    r"(<!-- results of ([\w-]+): made by `hierclip readme`, not by hand -->\n)(.*?)(<!-- end -->)",
    re.S,
)


def readme() -> None:
    """Write the report's summary between the README's markers.

    \b
    Example:
      hierclip readme
    """
    from hierclip.config import find_root

    typer.echo(f"README.md: results {'written' if write_readme(find_root()) else 'are up to date'}")


def write_readme(root: Path) -> bool:
    """Write each preset's summary between its markers in the README.

    Returns whether that changed the file. Raises HierclipError where the README has no markers.
    """
    readme = root / "README.md"
    text = readme.read_text(encoding="utf8")
    if not RESULTS.search(text):
        raise HierclipError(
            f"{readme}: no lines like {RESULTS.pattern!r} to put the results between"
        )

    def filled(match: re.Match) -> str:
        file = root / ("" if match[2] == DEFAULT else f"presets/{match[2]}") / SUMMARY
        text = file.read_text(encoding="utf8") if file.exists() else "Not run yet.\n"
        return match[1] + text + match[4]

    new = RESULTS.sub(filled, text)
    if new != text:
        readme.write_text(new, encoding="utf8")
    return new != text


def verify() -> None:
    """Compare the records just made with the committed ones; exit 1 where a metric differs.

    Lists metrics that differ and, of models trained anew, the main means over their sets.

    \b
    Example:
      hierclip verify
    """
    from hierclip.config import find_root
    from hierclip.evaluation.records import MEAN, verify as compare

    table = compare(find_root())
    for row in table.loc[(table["set"] == MEAN) | ~table["agrees"]].to_dict("records"):
        verdict = "agrees " if row["agrees"] else "DIFFERS"
        values = f"{row['new']:.3f}, committed {row['old']:.3f}, may differ by {row['allowed']:.3f}"
        typer.echo(f"{verdict} {row['model']}/{row['set']} {row['metric']}: {values}")
    agreeing, anew = (len(table[table[column]]) for column in ("agrees", "anew"))
    if anew:
        typer.echo(
            f"{anew} are of weights or images other than the committed ones, as "
            "another processor or a change gives; they may differ as two trainings do"
        )
    typer.echo(f"{agreeing} metrics agree, {len(table) - agreeing} differ")
    raise typer.Exit(int(agreeing < len(table)))


def photographs() -> None:
    """Write to data/photographs.txt what DVC watches: names, sizes and times of photographs.

    \b
    Example:
      hierclip photographs
    """
    from hierclip.config import PhotoParams, find_root, load_params
    from hierclip.data import load_dataset

    root, params = find_root(), load_params()
    sets = {"data": params.data} | {name: entry.data for name, entry in params.zero_shot.items()}
    lines = [
        f"{name} {load_dataset(data, root).inputs()}\n"
        for name, data in sets.items()
        if isinstance(data, PhotoParams)
    ]
    # DVC would warn of an empty file.
    (root / "data/photographs.txt").write_text("".join(lines) or "none\n", encoding="utf8")
