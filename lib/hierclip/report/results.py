"""What the pipeline left, as the report's sections see it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hierclip.evaluate import RECORDS, Record, RecordError, load_records
from hierclip.params import FILE, Params, load_params
from hierclip.plots.frames import in_order
from hierclip.report.page import Picture, Text

RESULTS, MISSING = "data/results", "**Missing:**"


@dataclass(frozen=True)
class Results:
    root: Path
    params: Params
    records: Sequence[Record]  # of the methods and seeds in the parameters, in their order

    @property
    def preset(self) -> str:
        """The preset's name; nothing for the default."""
        return self.root.name if self.root.parent.name == "presets" else ""

    def make(self, target: str) -> str:
        """The command that makes a target of the Makefile here."""
        return f"make {target}" + (f" PRESET={self.preset}" if self.preset else "")

    def missing(self, what: str, target: str = "repro") -> Text:
        return Text(f"{MISSING} {what}; `{self.make(target)}` makes it.")

    def frame(self, name: str) -> pd.DataFrame | None:
        """A table in data/results, if it is there."""
        path = self.root / RESULTS / f"{name}.csv"
        return pd.read_csv(path) if path.exists() else None

    def picture(self, path: Path, caption: str, alt: str) -> Picture | Text:
        if path.exists():
            return Picture(path, caption, alt)
        return self.missing(f"the figure `{path.relative_to(self.root)}`")

    def figure(self, name: str, caption: str, alt: str) -> Picture | Text:
        return self.picture(self.root / RESULTS / "figures" / f"{name}.png", caption, alt)


def load_results(root: Path) -> Results:
    """Raises RecordError where there are no records of what the parameters name, or a bad one."""
    params = load_params(root / FILE)
    wanted = {(method, seed) for method in params.methods for seed in params.seeds}
    records = [r for r in load_records(root / RECORDS) if (r.method, r.seed) in wanted]
    if not records:
        raise RecordError(f"no records of the methods and seeds in {root / FILE}; `make repro` makes them")
    return Results(root, params, in_order(records, params.labels))
