"""Records as tables, and the headline figures as DVC's metrics."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from hierclip.evaluate import CHECKS, Record


def in_order(records: Sequence[Record], labels: Mapping[str, str]) -> list[Record]:
    """By method, as `labels` lists them, and then by seed."""
    return sorted(records, key=lambda r: (list(labels).index(r.method), r.seed))


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """A row for each record, reading and level: accuracy clean and under the attack at that level,
    as fractions.
    """
    rows = [
        (
            r.method,
            r.seed,
            r.split,
            reading,
            level,
            r.clean[reading][level],
            r.robust[reading][level][level],
        )
        for r in records
        for reading in r.clean
        for level in range(len(r.levels))
    ]
    return pd.DataFrame(
        rows, columns=["method", "seed", "split", "reading", "level", "clean", "robust"]
    )


def save_metrics(r: Record, folder: Path) -> None:
    """Writes a record's headline figures, in percent, to SPLIT/METHOD-SEED.json, for `dvc
    metrics`.
    """
    found = {"clean leaf": r.clean["direct"][0], "robust leaf": r.robust["direct"][0][0]}
    found |= {f"path-robust {reading}": value for reading, value in r.path_robust.items()}
    path = folder / r.split / f"{r.method}-{r.seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({k: round(100 * v, 2) for k, v in found.items()}, indent=1) + "\n",
        encoding="utf8",
    )


def superclass_attacks(records: Sequence[Record], labels: Mapping[str, str]) -> pd.DataFrame:
    """What attacks on superclasses do, in percent: a row for each record and level above the
    leaves.

    direct, roll_up: accuracy at the level under its own attack, by reading, on all pictures. On the
    record's few (`few`), by attacks that do not stop where they succeed: leaves that stay right
    under the attack on the level's direct reading, on its roll-up, and on the leaves; and, by
    attacks that stop, pictures for which none was found that breaks the leaf inside the superclass.
    """
    rows = [
        {
            "split": r.split,
            "method": labels[r.method],
            "seed": r.seed,
            "level": level,
            "direct": 100 * r.robust["direct"][level][level],
            "roll_up": 100 * r.robust["roll_up"][level][level],
            "few": next(iter(r.forest.values())).images,
            "leaf after direct": 100 * r.levels_transfer["direct"][level][0],
            "leaf after roll_up": 100 * r.levels_transfer["roll_up"][level][0],
            "leaf after leaf": 100 * r.levels_transfer["direct"][0][0],
            "stay": 100 * r.superclass[f"stay-{level}"][0],
        }
        for r in in_order(records, labels)
        for level in range(1, len(r.levels))
    ]
    return pd.DataFrame(rows).set_index(["split", "method", "seed", "level"])


def mistakes_table(records: Sequence[Record], labels: Mapping[str, str]) -> pd.DataFrame:
    """How bad mistakes are, clean and under the attack on the leaves: the metrics of
    `evaluate.mistakes`.
    """
    rows = {
        (r.split, labels[r.method], r.seed, condition): {
            name: triple[0] if triple else float("nan") for name, triple in found.items()
        }
        for r in in_order(records, labels)
        for condition, found in r.mistakes.items()
    }
    return pd.DataFrame(rows).T.rename_axis(["split", "method", "seed", "condition"])


def check_frame(
    records: Sequence[Record], labels: Mapping[str, str]
) -> tuple[pd.DataFrame, list[int]]:
    """A row for each check of the audit, a column for each record, in percent; and which rows have
    a failure.
    """
    names = [name for name in CHECKS if any(name in r.audit.checks for r in records)]
    table = pd.DataFrame(
        {"check": names, "limit": [f"{100 * CHECKS[name][0]:.0f} %" for name in names]}
    )
    for r in records:
        checks = [r.audit.checks.get(name) for name in names]
        cells = [c and f"{100 * c.value:.1f} %{'' if c.passed else ', failed'}" for c in checks]
        table[f"{labels[r.method]}, seed {r.seed}"] = cells
    table["number"] = [CHECKS[name][1] for name in names]
    return table, [
        k for k, name in enumerate(names) if any(name in r.audit.failed for r in records)
    ]
