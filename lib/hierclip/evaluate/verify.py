"""Holds records just made against the committed ones, figure by figure."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from math import hypot
from pathlib import Path

import numpy as np

from hierclip.evaluate.metrics import paired_difference, path_robust
from hierclip.evaluate.outcomes import Outcomes, outcomes_path
from hierclip.evaluate.records import RECORDS, Record, RecordError, git, load_records, parse_record
from hierclip.model import READINGS

FEW, SHARE = 2, 0.005  # images, or that share of them, of which another machine's rounding may change the outcome
EXACT = 2e-6  # records keep six decimals
Figure = tuple[float, tuple[float, float], int, float]  # with its interval, images, and what one of them can change


@dataclass(frozen=True)
class Agreement:
    """A figure in two records, whether they agree, and by which rule."""

    figure: str
    new: float
    old: float
    agrees: bool
    rule: str

    def __str__(self) -> str:
        said = f"{self.figure}: {self.new:.3f}, committed {self.old:.3f} ({self.rule})"
        return f"{'agrees ' if self.agrees else 'DIFFERS'} {said}"


def compare(new: Record, old: Record, outcomes: tuple[Outcomes, Outcomes] | None = None) -> Iterator[Agreement]:
    """Every figure that both records have. outcomes: those on the test pictures, the new record's first.

    Of the same pictures a figure agrees where it is no further off than FEW images, or SHARE of them, can move it;
    with outcomes, where so few images differ, or the 95 % interval of the paired difference holds 0. Of other
    pictures it agrees where the 95 % interval of the difference of two independent figures holds 0.
    Raises RecordError where they were not made under the same conditions.
    """
    for field in ("dataset", "split", "method", "seed", "images", "threat_model", "trees"):
        if getattr(new, field) != getattr(old, field):
            raise RecordError(f"{new.name}: {field} is {getattr(new, field)}, committed {getattr(old, field)}")
    known = new.hashes.get("pictures")
    same = known is not None and known == old.hashes.get("pictures")
    other = ", by other weights" if new.hashes.get("weights") != old.hashes.get("weights") else ""
    for reading in READINGS:
        a, b = _flat(new, reading), _flat(old, reading)
        both = [_by_image(one, reading) for one in outcomes] if outcomes and same else [{}, {}]
        for key in (key for key in a if key in b):
            if same and key in both[0]:
                agrees, rule = _paired(both[0][key], both[1][key])
            else:
                agrees, rule = _few(a[key], b[key]) if same else _independent(a[key], b[key])
            yield Agreement(f"{new.name} {reading} {key}", a[key][0], b[key][0], agrees, rule + other)


def _most(images: int) -> int:
    return max(FEW, int(SHARE * images))


def _paired(ours: np.ndarray, theirs: np.ndarray) -> tuple[bool, str]:
    changed, (_, low, high) = int((ours != theirs).sum()), paired_difference(ours, theirs, 1000, 0)
    said = f"image by image: {changed} of {len(ours)} differ, difference [{low:.3f}, {high:.3f}]"
    return changed <= _most(len(ours)) or low <= 0 <= high, said


def _few(new: Figure, old: Figure) -> tuple[bool, str]:
    images, most = old[2], _most(old[2]) * max(new[3], old[3])
    return abs(new[0] - old[0]) <= most + EXACT, f"same pictures: {_most(images)} of {images} may differ, {most:.3f}"


def _independent(new: Figure, old: Figure) -> tuple[bool, str]:
    low, high = sorted((new, old), key=lambda figure: figure[0])
    most = hypot(low[1][1] - low[0], high[0] - high[1][0])  # MOVER: the interval of a difference from those of the two
    return high[0] - low[0] <= most + EXACT, f"other pictures: the interval of a difference reaches {most:.3f}"


def _by_image(outcomes: Outcomes, reading: str) -> dict[str, np.ndarray]:
    """By figure that is a share of the test pictures, which of them count: (N,) bool."""
    clean, robust = outcomes.clean[reading], outcomes.robust[reading]
    out = {f"clean[{e}]": clean[:, e] for e in range(clean.shape[1])}
    out |= {f"robust[{a}][{e}]": robust[a][:, e] for a in range(len(robust)) for e in range(clean.shape[1])}
    return out | {"path_robust": path_robust(outcomes, reading)}


def _flat(record: Record, reading: str) -> dict[str, Figure]:
    bounds, n, height = record.intervals[reading], record.images, len(record.levels)
    shares = {f"clean[{e}]": (v, bounds.clean[e]) for e, v in enumerate(record.clean[reading])}
    for a, row in enumerate(record.robust[reading]):
        shares |= {f"robust[{a}][{e}]": (v, bounds.robust[a][e]) for e, v in enumerate(row)}
    shares["worst_level"] = record.worst_level[reading], bounds.worst_level
    shares["path_robust"] = record.path_robust[reading], bounds.path_robust
    out: dict[str, Figure] = {key: (*figure, n, 1 / n) for key, figure in shares.items()}
    some = next(iter(record.forest.values())).images
    if reading == "direct":
        out |= {name: (triple[0], triple[1:], some, 1 / some) for name, triple in record.superclass.items()}
        for condition, found in record.mistakes.items():
            # The mean height of the nearest leaf is severity by the share of mistakes, so that gives their number.
            wrong = n * found.hd_1[0] / found.severity[0] if found.severity else 0.0
            scale = {"consistent": 1.0, "contradictions": 1.0, "ece": 2.0}
            scale["severity"] = height * n / max(1.0, wrong - _most(n))
            for name, triple in found:
                if triple:
                    out[f"{condition} {name}"] = triple[0], triple[1:], n, scale.get(name, height) / n
    for k, tree in record.forest.items():
        out[f"tree {k}"] = tree.path_robust[reading], tree.intervals[reading], tree.images, 1 / tree.images
    return out


def _outcomes(root: Path, record: Record) -> tuple[Outcomes, Outcomes] | None:
    """The outcomes made here and the committed ones, where git has these: mostly it has not."""
    path = outcomes_path(root, record.method, record.seed, record.split)
    place = f"HEAD:./{path.relative_to(root).as_posix()}"
    found = subprocess.run(["git", "-C", str(root), "show", place], capture_output=True)
    return None if found.returncode else (Outcomes.load(path), Outcomes.load(BytesIO(found.stdout)))


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
    return [agreement for key in sorted(old) for agreement in compare(new[key], old[key], _outcomes(root, new[key]))]
