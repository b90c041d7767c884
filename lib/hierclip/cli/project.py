"""Commands on a project's results: its README, its records compared with the committed ones."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hierclip.errors import HierclipError

if TYPE_CHECKING:  # importing torch is slow
    from hierclip.evaluation import Record

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
    from hierclip.config import find_root

    changed = write_readme(find_root())
    typer.echo(f"README.md: results {'written' if changed else 'are up to date'}")


def write_readme(root: Path) -> bool:
    """Write each preset's summary between its markers in the README.

    Returns whether that changed the file. Raises HierclipError where the README has no markers.
    """
    readme = root / "README.md"
    text = readme.read_text(encoding="utf8")
    if not RESULTS.search(text):
        markers = RESULTS.pattern
        raise HierclipError(f"{readme}: no lines like {markers!r} to put the results between")

    def filled(match: re.Match) -> str:
        preset = root if match[2] == DEFAULT else root / "presets" / match[2]
        return match[1] + preset_summary(preset) + match[4]

    new = RESULTS.sub(filled, text)
    if new != text:
        readme.write_text(new, encoding="utf8")
    return new != text


def preset_summary(root: Path) -> str:
    """Return the summary table of a preset's records, or a line that says that there are none."""
    from hierclip.config import load_params
    from hierclip.evaluation import RECORDS, load_records

    if not any((root / RECORDS).glob("*/*.json")):
        return "Not run yet.\n"
    params, records = load_params(root / "params.yaml"), load_records(root / RECORDS)
    return summary([r for r in records if r.subset in params.tasks], params.labels, params.tasks)


def summary(records: Sequence["Record"], labels: Mapping[str, str], tasks: Sequence[str]) -> str:
    """Return the README's table: a row for each task and method, with one ± for each metric.

    A cell is the mean over seeds, in percent; its ± is the larger side of the 95 % bootstrap
    interval over images, averaged alike. labels: of the methods. Both order the rows.
    """
    import pandas as pd

    from hierclip.plots.words import audit_words, pipes

    names = {task: {"seen": "seen", "unseen": "unseen"}.get(task, task) for task in tasks}
    records = sorted(records, key=lambda r: list(labels).index(r.method))
    rows, sizes = [], {}
    for record in sorted(records, key=lambda r: tasks.index(r.subset)):
        sizes[names[record.subset]] = record.images
        direct, roll_up = record.intervals["direct"], record.intervals["roll_up"]
        metrics = {
            "clean leaf": (record.clean["direct"][0], direct.clean[0]),
            "robust leaf": (record.robust["direct"][0][0], direct.robust[0][0]),
            "path-robust, direct": (record.path_robust["direct"], direct.path_robust),
            "path-robust, roll-up": (record.path_robust["roll_up"], roll_up.path_robust),
        }
        for metric, (value, (low, high)) in metrics.items():
            row = (names[record.subset], labels[record.method], metric)
            rows.append((*row, 100 * value, 100 * max(value - low, high - value)))
    keys = ["classes", "method", "metric"]
    frame = pd.DataFrame(rows, columns=[*keys, "value", "side"])
    means: pd.DataFrame = frame.groupby(keys, sort=False).mean()  # pyright: ignore
    cells = [f"{value:.1f} ± {side:.1f}" for value, side in means.to_numpy()]
    seeds, threat = len({record.seed for record in records}), records[0].threat_model
    images = ", ".join(f"{count} images {name}" for name, count in sizes.items())
    notes = f"Percent; {images}; {seeds} seed{'s' * (seeds > 1)}; "
    notes += f"±: 95 % interval over images. Attack: {threat.norm} {threat.eps}, "
    notes += f"{', '.join(threat.suite)}, {threat.steps} steps."
    table = pipes(pd.Series(cells, means.index).unstack(sort=False).reset_index())
    return "\n\n".join([table, notes, audit_words(records, labels)]) + "\n"


def verify() -> None:
    """Compare the records just made with the committed ones; exit 1 where a metric differs.

    \b
    Example:
      hierclip verify
    """
    from hierclip.config import find_root
    from hierclip.evaluation import verify as compare

    table = compare(find_root())
    for metric, new, old, allowed, agrees in table.itertuples():
        verdict = "agrees " if agrees else "DIFFERS"
        values = f"{new:.3f}, committed {old:.3f}, may differ by {allowed:.3f}"
        typer.echo(f"{verdict} {metric}: {values}")
    agreeing = len(table[table["agrees"]])
    typer.echo(f"{agreeing} metrics agree, {len(table) - agreeing} differ")
    raise typer.Exit(int(agreeing < len(table)))
