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
    "robust leaf": lambda seen: seen.robust["direct"][0, :, 0],
    "clean leaf": lambda seen: seen.clean["direct"][:, 0],
}


def versus(ours: str, others: Sequence[str], params: Params, root: Path) -> pd.DataFrame:
    """A row for each split, figure of MEASURES and other method, in percent: `ours` and `theirs`, means over the seeds;
    `points`, how much ours is above, with its 95 % interval (paired bootstrap over pictures, each weighed by the share
    of seeds in which it counts); `least` and `most`, the same of single seeds.

    Reads the outcomes that the attack stage kept. Raises FileNotFoundError where they are missing.
    """
    rows = []
    for split in params.tasks:
        seen = {
            method: [Outcomes.load(outcomes_path(root, method, seed, split)) for seed in params.seeds]
            for method in (ours, *others)
        }
        for name, measure in MEASURES.items():
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
    """What `versus` gives, a table for each split: for each figure what the method has, and what ours has more."""
    parts = []
    for split, rows in table.groupby("split", sort=False):
        figures, words = rows.groupby("figure", sort=False), {}
        words["method"] = [params.labels[m] for m in (ours, *dict.fromkeys(rows["method"]))]
        for name, found in figures:
            apart = [
                f"{p:+.1f} [{low:+.1f}, {high:+.1f}]" for p, low, high in found[["points", "low", "high"]].to_numpy()
            ]
            words[name] = [f"{v:.1f}" for v in (found["ours"].iloc[0], *found["theirs"])]
            words[f"{params.labels[ours]} less it, {name}"] = ["–", *apart]
        parts += [f"**{split_words(str(split))}** ({rows['pictures'].iloc[0]} pictures)", pipes(pd.DataFrame(words))]
    seeds = len(params.seeds)
    return "\n\n".join(parts) + (
        f"\n\nPercent and points; means over {seeds} seed{'s' * (seeds != 1)}. In brackets the 95 % interval of a "
        "paired bootstrap over pictures.\n"
    )
