"""What an audit leaves to look at: figures, the table, trees as files, a page."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from hierclip.audits.page import Picture, Section, Table, Text, write_page
from hierclip.evaluate import Record
from hierclip.model import READINGS
from hierclip.plots import STYLE, save
from hierclip.plots.figures import audit_figure, level_bars, matrices
from hierclip.plots.tree import sunburst
from hierclip.plots.words import READING, attack_words, audit_words, check_frame, pipes, share
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
    labels, palette = {record.method: record.method}, {record.method: COLOUR}
    bars = level_bars([record], labels, palette, 7.0)
    for axis in bars.axes:
        axis.set_xticks(range(len(record.levels)))  # not half levels, where there are few
    narrow = 1.2 + 0.4 * len(record.levels)
    return {
        "levels": bars,
        **{f"matrix_{reading}": matrices([record], reading, labels, narrow) for reading in READINGS},
        "checks": audit_figure([record], labels, palette, 7.0),
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
    checks = check_frame([record], {record.method: record.method})
    failed = [k for k, name in enumerate(checks["check"]) if name in record.audit.failed]
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


def level_frame(record: Record, tree: Tree) -> pd.DataFrame:
    """A row for each level: its nodes, the largest of them, and by reading the accuracy, clean and under the level's
    own attack, in percent with 95 % intervals. tree: the record's first.
    """
    rows = []
    for level, nodes in enumerate(record.levels):
        row: dict[str, object] = {"level": level, "nodes": nodes, "such as": _such_as(tree, level)}
        for reading in READINGS if level else READINGS[:1]:
            b, words = record.intervals[reading], f", {READING[reading]}"
            row[f"clean{words}"] = share(record.clean[reading][level], b.clean[level])
            row[f"robust{words}"] = share(record.robust[reading][level][level], b.robust[level][level])
        rows.append(row)
    return pd.DataFrame(rows).astype(object).fillna("as direct")


def tree_frame(record: Record) -> pd.DataFrame:
    """A row for each tree: path-robust accuracy by reading, on some of the pictures."""
    return pd.DataFrame(
        {
            "tree": name,
            "levels": ", ".join(map(str, tree.levels)),
            **{f"path-robust, {READING[r]}": share(tree.path_robust[r], tree.intervals[r]) for r in READINGS},
        }
        for name, tree in record.forest.items()
    )


def headline(record: Record) -> str:
    """The worst level and the path-robust accuracy, in both readings, in Markdown."""
    worst, paths = (
        ", ".join(f"{share(values[r], getattr(record.intervals[r], name))} ({READING[r]})" for r in READINGS)
        for name, values in (("worst_level", record.worst_level), ("path_robust", record.path_robust))
    )
    return f"**Path-robust accuracy** {paths}; **worst level** {worst}."


def level_table(record: Record, tree: Tree) -> str:
    """What an audit found, in Markdown: every level, the headline, other trees, the attack, and what its checks say."""
    parts = [pipes(level_frame(record, tree), even=True), headline(record)]
    few = next(iter(record.forest.values())).images
    others = [f"Every tree, on {few} of the pictures:", pipes(tree_frame(record), even=True)]
    parts += others if len(record.forest) > 1 else []
    return "\n\n".join([*parts, measured(record), checked(record)]) + "\n"


def measured(record: Record) -> str:
    """What the figures are, and the attack."""
    threat = record.threat_model
    return (
        f"Percent of {record.images} pictures, with 95 % bootstrap intervals. Robust: under the attack at that level. "
        "Path-robust: the whole path stays right, clean and under every attack. Direct: the nearest text of the level; "
        "roll-up: the superclass of the predicted leaf. "
        f'{attack_words(threat)}; {threat.resolution} px, {threat.precision}, prompt "{threat.prompt}".'
    )


def checked(record: Record) -> str:
    """What the checks of the attack say."""
    weak = " The model is weaker than the table says, or the attack is blind." if record.audit.failed else ""
    weak += (
        "" if record.robust["direct"][0][0] else " No leaf stood under the attack: a stronger one had none to break."
    )
    return audit_words([record], {record.method: record.method}) + weak


def _such_as(tree: Tree, level: int, count: int = 3) -> str:
    paths = tree.paths[:, level].tolist()
    largest: Sequence[int] = sorted(range(tree.sizes[level]), key=lambda k: -paths.count(k))[:count]
    return ", ".join(tree.levels[level][k].name for k in largest)
