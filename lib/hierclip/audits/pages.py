"""What an audit leaves to look at: figures, the table, trees as files, a page."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from hierclip.audits.page import Picture, Section, Table, Text, write_page
from hierclip.evaluate import Record
from hierclip.model import READINGS
from hierclip.params import NoneParams, Params, PlotsParams
from hierclip.plots import STYLE, save
from hierclip.plots.audit import audit_figure
from hierclip.plots.frames import check_frame
from hierclip.plots.levels import checked, headline, level_frame, measured, tree_frame
from hierclip.plots.results import level_bars, matrices
from hierclip.plots.tree import sunburst
from hierclip.trees import Tree, save_tree

DPI, COLOUR = 150, "#0072b2"
CAPTIONS = {
    "levels": "Accuracy at every level: clean pale, under the attack at that level full, with 95 % intervals.",
    "matrix_direct": "Attacks at a level (rows) and what they do to every level (columns), by the nearest text of the "
    "level. An attack stops where its own level is wrong.",
    "matrix_roll_up": "The same by roll-up: the superclass of the predicted leaf.",
    "checks": "Accuracy of the leaves by budget, steps and restarts, and every check's number by its limit.",
}


@mpl.rc_context(STYLE)  # pyright: ignore
def audit_figures(record: Record, trees: Sequence[Tree]) -> dict[str, Figure]:
    """By name of CAPTIONS, and tree_NAME for every tree with superclasses."""
    look = Params.model_construct(  # of the parameters, what figures look at
        methods=(record.method,),
        seeds=(record.seed,),
        method={record.method: NoneParams(label=record.method, loss="none")},
        plots=PlotsParams(palette={record.method: COLOUR}, dpi=DPI, width=7.0),
    )
    narrow = look.model_copy(update={"plots": look.plots.model_copy(update={"width": 1.2 + 0.4 * len(record.levels)})})
    bars = level_bars([record], record.split, look)
    for axis in bars.axes:
        axis.set_xticks(range(len(record.levels)))  # not half levels, where there are few
    return {
        "levels": bars,
        **{f"matrix_{reading}": matrices([record], reading, narrow) for reading in READINGS},
        "checks": audit_figure([record], record.split, look),
        **{f"tree_{tree.name}": sunburst(tree) for tree in trees if tree.top},
    }


def write_results(record: Record, trees: Sequence[Tree], table: str, notes: Sequence[str], out: Path) -> None:
    """table.md, trees/NAME.json, figures/*.png and *.pdf, report.html."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(table, encoding="utf8")
    for tree in trees:
        save_tree(tree, out / "trees" / f"{tree.name}.json")
    for name, figure in audit_figures(record, trees).items():
        save(figure, out / "figures" / name, DPI)
        plt.close(figure)
    write_page(out / "report.html", f"Audit of {record.method}", _lead(record), _sections(record, trees, notes, out))


def _lead(record: Record) -> str:
    threat = record.threat_model
    return (
        f"How robust {record.method} is at every level of a class tree: {record.images} pictures of {record.dataset}, "
        f"{threat.norm} {threat.eps}. {headline(record)}"
    )


def _sections(record: Record, trees: Sequence[Tree], notes: Sequence[str], out: Path) -> list[Section]:
    def shown(name: str, caption: str) -> Picture:
        return Picture(out / "figures" / f"{name}.png", caption, caption)

    levels = Table(level_frame(record, trees[0]), f"Tree {trees[0].name}, percent")
    others = (
        [Table(tree_frame(record), f"Every tree, on {record.forest[trees[0].name].images} of the pictures")]
        if trees[1:]
        else []
    )
    checks, failed = check_frame([record], {record.method: record.method})
    drawn = [tree.name for tree in trees if tree.top]
    rings = [shown(f"tree_{name}", f"{name}: coarsest superclasses inside, leaves on the rim.") for name in drawn]
    packages = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    made = f"Packages: {packages}.{f' hierclip at {record.git}.' if record.git else ''}"
    files = "What the figures rest on is in `record.json`, and what every picture was taken for in `outcomes/`."
    audit = [Text(checked(record)), Table(checks, "Every check of the attack", failed)]
    audit.append(shown("checks", CAPTIONS["checks"]))
    passing = [shown(name, CAPTIONS[name]) for name in ("matrix_direct", "matrix_roll_up")]
    return [
        Section("Every level", [levels, shown("levels", CAPTIONS["levels"]), *others, Text(measured(record))]),
        Section("What an attack does to other levels", passing),
        Section("Is it robustness?", audit),
        Section("The classes", [Text("\n".join(f"- {note}" for note in notes)), *rings]),
        Section("How it was made", [Text(made), Text(files)]),
    ]
