"""The results table, out of the records."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from hierclip.evaluate import (
    Outcomes,
    Record,
    holm,
    mcnemar,
    outcomes_path,
    paired_difference,
    path_robust,
)
from hierclip.params import Params
from hierclip.plots.frames import in_order
from hierclip.plots.words import READING, attack_words, audit_words, pipes, share
from hierclip.studies import StudyRecord, ablation_table

WORDS = {  # of the splits
    "tuned": "Classes seen in fine-tuning",
    "held_out": "Classes held out of fine-tuning: known from pre-training, never seen under attack",
}

SHORT = {"tuned": "seen", "held_out": "unseen"}  # the splits in the README


def markdown(records: Sequence[Record], labels: Mapping[str, str]) -> str:
    """Return the results table: a part for each split and zero-shot set, a row for each method and
    seed.

    labels: what each method is called, in the order of the rows.
    """
    parts, ordered = [], in_order(records, labels)
    for split in splits(records):
        rows = [r for r in ordered if r.split == split]
        levels = ", ".join(map(str, rows[0].levels))
        counts = f"{rows[0].images} pictures, {rows[0].levels[0]} leaves; levels of {levels} nodes"
        parts += [f"**{split_words(split)}** ({counts})", pipes(results(rows, labels))]
    return "\n\n".join([*parts, results_words(ordered), audit_words(ordered, labels)]) + "\n"


def summary(records: Sequence[Record], labels: Mapping[str, str]) -> str:
    """Return the README's table: a row for each split and method, plain numbers in percent with one
    ± each.

    A cell is the mean over seeds; its ± is the larger side of the 95 % bootstrap interval over
    images, averaged alike. labels: what each method is called, in the order of the rows.
    """
    rows, sizes = [], []
    for split in splits(records):
        group = [record for record in in_order(records, labels) if record.split == split]
        sizes.append(f"{group[0].images} images {SHORT.get(split, split)}")
        for method in dict.fromkeys(record.method for record in group):
            metrics = [_headline(record) for record in group if record.method == method]
            cells = {}
            for name in metrics[0]:
                value, error = np.mean([headline[name] for headline in metrics], axis=0)
                cells[name] = f"{value:.1f} ± {error:.1f}"
            rows.append({"classes": SHORT.get(split, split), "method": labels[method], **cells})
    count = len({record.seed for record in records})
    notes = f"Percent; {', '.join(sizes)}; {count} seed{'s' * (count > 1)}; ±: 95 % interval over images. "
    threat = records[0].threat_model
    notes += f"Attack: {threat.norm} {threat.eps}, {', '.join(threat.suite)}, {threat.steps} steps."
    return "\n\n".join([pipes(pd.DataFrame(rows)), notes, audit_words(records, labels)]) + "\n"


def _headline(record: Record) -> dict[str, tuple[float, float]]:
    """Return a record's headline metrics in percent, each with the larger side of its interval."""
    leaf = record.intervals["direct"]
    metrics = {
        "clean leaf": (record.clean["direct"][0], leaf.clean[0]),
        "robust leaf": (record.robust["direct"][0][0], leaf.robust[0][0]),
    }
    for reading, word in READING.items():
        metrics[f"path-robust, {word}"] = (
            record.path_robust[reading],
            record.intervals[reading].path_robust,
        )
    return {
        name: (100 * value, 100 * max(value - low, high - value))
        for name, (value, (low, high)) in metrics.items()
    }


def split_words(split: str) -> str:
    """What a split or a zero-shot set is."""
    return WORDS.get(split, f"Zero-shot on {split}")


def results_words(records: Sequence[Record]) -> str:
    """What the cells of `results` are, the threat model and the hardware, in one paragraph for the
    tables of all.
    """
    record = next(r for r in records if r.split == splits(records)[0])
    threat, where = record.threat_model, "; ".join(sorted({r.hardware for r in records} - {""}))
    prompts = ", ".join(
        f'"{prompt}"' for prompt in sorted({r.threat_model.prompt for r in records})
    )
    return (
        "Percent, with 95 % bootstrap intervals over pictures. Path-robust: the whole path stays right under every "
        "attack; every level is attacked, in both readings. All but the last figure are for the first tree, "
        f"{next(iter(record.trees))}; the last is the path-robust accuracy in the tree where it is least, on "
        f"{next(iter(record.forest.values())).images} of the pictures, and its interval does not count "
        "the choosing. Worst level and worst tree are in the reading "
        "that serves the method better on validation pictures, the last column. "
        f"Threat model: {attack_words(threat)}; "
        f"{threat.resolution} px, {threat.precision}, prompt {prompts}."
        + (f" Attacked on: {where}." if where else "")
    )


def splits(records: Sequence[Record]) -> list[str]:
    """What the records are of: the splits, then the zero-shot sets."""
    found = {r.split for r in records}
    return [*(split for split in WORDS if split in found), *sorted(found - set(WORDS))]


def results(rows: Sequence[Record], labels: Mapping[str, str]) -> pd.DataFrame:
    """The headline figures of one split's records, as they are shown: text, a row for each
    record.
    """
    return pd.DataFrame([_row(r, labels) for r in rows])


def _row(r: Record, labels: Mapping[str, str]) -> dict[str, str]:
    b, worst = r.intervals, r.forest[r.worst_tree]
    return {
        "method": labels[r.method],
        "seed": str(r.seed),
        "clean leaf": share(r.clean["direct"][0], b["direct"].clean[0]),
        "robust leaf": share(r.robust["direct"][0][0], b["direct"].robust[0][0]),
        "worst level": share(r.worst_level[r.reading], b[r.reading].worst_level),
        "path-robust, direct": share(r.path_robust["direct"], b["direct"].path_robust),
        "path-robust, roll-up": share(r.path_robust["roll_up"], b["roll_up"].path_robust),
        f"worst tree of {len(r.forest)} ({worst.images} pictures)": (
            f"{share(worst.path_robust[r.reading], worst.intervals[r.reading])} ({r.worst_tree})"
        ),
        "reading": READING[r.reading],
    }


def ablation_markdown(study: StudyRecord | None, params: Params, split: str) -> str:
    """The tables as `ablation_table` gives them, with the threat model they share; or else that
    none was run.
    """
    if study is None:
        return "No ablation was run here; `make ablate` runs it.\n"
    asked = params.ablation
    tables = {
        name: ablation_table(study.frame, params, asked, name, split) for name in asked.tables
    }
    columns = {"clean": "clean leaf", "robust": "robust leaf", "path_direct": "path-robust, direct"}
    columns |= {"path_roll_up": "path-robust, roll-up"}
    parts, absent = [], ["not run with these settings: `make ablate`", *[""] * len(columns)]
    for name, table in tables.items():
        rows = []
        for row, r in table.iterrows():
            cells = [f"{100 * r[c]:.1f} ± {100 * r[f'{c}_half']:.1f}" for c in columns]
            cells = [
                cell.replace(" ± nan", "")
                for cell in (*cells, f"{r['seconds']:.2f} ± {r['seconds_half']:.2f}")
            ]
            rows.append([row, *(cells if r["seeds"] else absent)])
        parts.append(pipes(pd.DataFrame(rows, columns=[name, *columns.values(), "seconds a step"])))
    steps = {}
    for table in tables.values():
        for row, count in table["steps"].dropna().items():
            steps[row] = float(count)  # pyright: ignore
    most = max(steps.values(), default=0)
    few = [f"{row} ({count:.0f} of {most:.0f})" for row, count in steps.items() if count < most / 2]
    threat, seeds = (
        study.threat_model,
        int(max(table["seeds"].to_numpy().max() for table in tables.values())),
    )
    several = f"mean over {seeds} fine-tunings with their 95 % interval (Student's t), each"
    parts.append(
        f"Percent; {several if seeds > 1 else 'one fine-tuning'} on {study.images} pictures at most, "
        f"{study.gradients} gradient evaluations unless the row says otherwise. "
        f"Seconds are taken with another run beside. {attack_words(threat)}."
        + (f" Far fewer steps than others, so not to be compared: {', '.join(few)}." if few else "")
    )
    return "\n\n".join(parts) + "\n"


def paired(
    records: Sequence[Record], labels: Mapping[str, str], root: Path, resamples: int
) -> pd.DataFrame:
    """How much one method's path-robust accuracy exceeds another's, on the same pictures, in
    points; every pair.

    Each method takes its own reading, chosen on validation pictures. Columns: the difference and
    its 95 % interval, the p-value of McNemar's exact test, and `holm`, that value adjusted for the
    number of pairs of its split and seed. Reads the outcomes that the attack stage kept. Raises
    FileNotFoundError where they are missing.
    """
    rows = []
    for split, seed in itertools.product(splits(records), sorted({r.seed for r in records})):
        group = [r for r in in_order(records, labels) if (r.split, r.seed) == (split, seed)]
        right = {
            r.method: path_robust(
                Outcomes.load(outcomes_path(root, r.method, seed, split)), r.reading
            )
            for r in group
        }
        pairs = {
            f"{labels[b]} - {labels[a]}": (right[b], right[a])
            for a, b in itertools.combinations(right, 2)
        }
        p_values = {pair: mcnemar(*both) for pair, both in pairs.items()}
        adjusted = holm(p_values)
        for pair, both in pairs.items():
            points = [100 * v for v in paired_difference(*both, resamples, seed)]
            rows.append((split, seed, pair, *points, p_values[pair], adjusted[pair]))
    return pd.DataFrame(
        rows, columns=["split", "seed", "pair", "points", "low", "high", "p", "holm"]
    )
