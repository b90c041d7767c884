"""One method against others over all seeds, on the same pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from hierclip.evaluate import Outcomes, outcomes_path, paired_difference, path_robust
from hierclip.params import Params
from hierclip.plots.table import split_words
from hierclip.plots.words import pipes

MEASURES: dict[str, Callable[[Outcomes], np.ndarray]] = {  # (N,) bool: which pictures count
    "path-robust, direct": lambda seen: path_robust(seen, "direct"),
    "path-robust, roll-up": lambda seen: path_robust(seen, "roll_up"),
    "robust leaf": lambda seen: seen.robust["direct"][0, :, 0],
    "clean leaf": lambda seen: seen.clean["direct"][:, 0],
    "clean path, direct": lambda seen: seen.clean["direct"].min(1),
}


def versus(ours: str, others: Sequence[str], params: Params, root: Path) -> pd.DataFrame:
    """A row for each split, figure and other method, in percent: `ours` and `theirs`, means over the seeds; `points`,
    how much ours is above, with its 95 % interval (paired bootstrap over pictures, each weighed by the share of seeds
    in which it counts); `least` and `most`, the same of single seeds. After MEASURES, each level under its own attack.

    Reads the outcomes that the attack stage kept. Raises FileNotFoundError where they are missing.
    """
    rows = []
    for split in params.tasks:
        seen = {
            method: [Outcomes.load(outcomes_path(root, method, seed, split)) for seed in params.seeds]
            for method in (ours, *others)
        }
        levels = range(1, seen[ours][0].paths.shape[1])
        alone = {f"robust level {l}, direct": lambda seen, l=l: seen.robust["direct"][l, :, l] for l in levels}
        for name, measure in (MEASURES | alone).items():
            counted = {m: np.array([measure(each) for each in found], dtype=float) for m, found in seen.items()}
            for other in others:
                both = counted[ours].mean(0), counted[other].mean(0)
                found = paired_difference(*both, params.attack.bootstrap, params.attack.seed)
                apart = (counted[ours] - counted[other]).mean(1)
                values = [100 * v for v in (*(each.mean() for each in both), *found, apart.min(), apart.max())]
                rows.append((split, name, other, counted[ours].shape[1], *values))
    columns = ["split", "figure", "method", "pictures", "ours", "theirs", "points", "low", "high", "least", "most"]
    return pd.DataFrame(rows, columns=columns)


def versus_markdown(table: pd.DataFrame, ours: str, params: Params) -> str:
    """What `versus` gives, a table for each split: for each figure what a method has, and how much more ours has."""
    parts, seeds = [], len(params.seeds)
    row = "{:.1f}; {:+.1f} [{:+.1f}, {:+.1f}]" + (" ({:+.1f} to {:+.1f})" if seeds > 1 else "")
    for split, rows in table.groupby("split", sort=False):
        words = {"method": [params.labels[m] for m in (ours, *dict.fromkeys(rows["method"]))]}
        for name, found in rows.groupby("figure", sort=False):
            if name not in MEASURES:
                continue
            cells = (found[["theirs", "points", "low", "high", "least", "most"]].round(1) + 0.0).to_numpy()
            words[str(name)] = [f"{found['ours'].iloc[0]:.1f}", *(row.format(*cell) for cell in cells)]
        parts += [f"**{split_words(str(split))}** ({rows['pictures'].iloc[0]} pictures)", pipes(pd.DataFrame(words))]
    over = f", the mean over {seeds} seeds" if seeds > 1 else ""
    single = " The least and the most of single seeds in round brackets." if seeds > 1 else ""
    parts.append(
        f"What a method has, in percent{over}; and how many points more {params.labels[ours]} has, with the 95 % "
        "interval of a paired bootstrap over pictures, of the models as they were trained, not adjusted for the number "
        f"of comparisons.{single}"
    )
    return "\n\n".join(parts) + "\n"
