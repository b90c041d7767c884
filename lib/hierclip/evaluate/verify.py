"""Holds records just made against the committed ones, figure by figure."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hierclip.evaluate.outcomes import outcomes_path
from hierclip.evaluate.records import RECORDS, Record, RecordError, git, load_records, parse_record
from hierclip.model import READINGS


@dataclass(frozen=True)
class Agreement:
    """A figure in two records; it agrees where its 95 % intervals overlap."""

    figure: str
    new: float
    old: float
    new_interval: tuple[float, float]
    old_interval: tuple[float, float]

    @property
    def agrees(self) -> bool:
        return self.new_interval[0] <= self.old_interval[1] and self.old_interval[0] <= self.new_interval[1]

    def __str__(self) -> str:
        sign, (low, high) = ("agrees " if self.agrees else "DIFFERS"), self.old_interval
        return f"{sign} {self.figure}: {self.new:.3f}, committed {self.old:.3f} [{low:.3f}, {high:.3f}]"


def compare(new: Record, old: Record) -> Iterator[Agreement]:
    """Every figure of two records. Raises RecordError where they were not made under the same conditions."""
    for field in ("dataset", "split", "method", "seed", "images", "threat_model", "trees"):
        if getattr(new, field) != getattr(old, field):
            raise RecordError(f"{new.name}: {field} is {getattr(new, field)}, committed {getattr(old, field)}")
    for reading in READINGS:
        a, b = _flat(new, reading), _flat(old, reading)
        for key, (value, interval) in a.items():
            yield Agreement(f"{new.name} {reading} {key}", value, b[key][0], interval, b[key][1])


def _flat(record: Record, reading: str) -> dict[str, tuple[float, tuple[float, float]]]:
    bounds = record.intervals[reading]
    out = {f"clean[{e}]": (v, bounds.clean[e]) for e, v in enumerate(record.clean[reading])}
    for a, row in enumerate(record.robust[reading]):
        out |= {f"robust[{a}][{e}]": (v, bounds.robust[a][e]) for e, v in enumerate(row)}
    out["worst_level"] = record.worst_level[reading], bounds.worst_level
    out["path_robust"] = record.path_robust[reading], bounds.path_robust
    out |= {name: (triple[0], triple[1:]) for name, triple in record.superclass.items() if reading == "direct"}
    for condition, mistakes in record.mistakes.items() if reading == "direct" else ():
        out |= {f"{condition} {name}": (triple[0], triple[1:]) for name, triple in mistakes if triple}
    out |= {f"tree {k}": (tree.path_robust[reading], tree.intervals[reading]) for k, tree in record.forest.items()}
    return out


def committed_records(root: Path) -> dict[str, Record]:
    """The records at git's HEAD, by name. Raises RecordError where git or HEAD has none."""
    listed = git(root, "ls-tree", "-r", "--name-only", "HEAD", RECORDS + "/").split()
    texts = {path: git(root, "show", f"HEAD:./{path}") for path in listed}
    if not texts:
        raise RecordError(f"no record is committed under {RECORDS}; nothing to hold the new ones against")
    records = [parse_record(text, f"HEAD:{path}") for path, text in texts.items()]
    return {record.name: record for record in records}


def verify(root: Path) -> list[Agreement]:
    """Every figure of every committed record against the one in the working tree.

    Raises RecordError where a committed record has no counterpart or other conditions.
    """
    new, old = {r.name: r for r in load_records(root / RECORDS)}, committed_records(root)
    made = {
        name for name, record in new.items() if outcomes_path(root, record.method, record.seed, record.split).exists()
    }
    if missing := sorted(set(old) - made):
        raise RecordError(f"not made here: {', '.join(missing)}; run `make repro`")
    return [agreement for key in sorted(old) for agreement in compare(new[key], old[key])]
