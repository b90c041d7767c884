"""How bad the mistakes are, whether the levels agree, and whether confidence means anything."""

import numpy as np

from hierclip.evaluate.metrics import resample
from hierclip.evaluate.outcomes import Outcomes
from hierclip.trees import lca_heights

BINS = 15
NEAREST = (1, 5, 20)
SHARES = ("consistent", "contradictions")


def mistakes(outcomes: Outcomes, condition: str, resamples: int, seed: int) -> dict[str, list[float] | None]:
    """Figures of one condition: [value, low, high] each, with 95 % bootstrap intervals over pictures.

    severity: the mean height at which a wrongly predicted leaf meets the right one, over the mistakes; None where
    there are none. hd_k: the mean height over the k nearest leaves (or all), right ones counting 0, over all pictures
    (Bertinetto et al., CVPR 2020, section 3). A height is a level, L + 1 where only the root joins two leaves.
    consistent: the share of pictures right at every level at once, read directly (hierarchical consistent accuracy,
    Wu et al., CVPR 2024). contradictions: the share whose nearest nodes are not all on one path.
    ece: expected calibration error of the leaves' softmax, in 15 bins of equal width (Guo et al., ICML 2017).
    """
    k, n = outcomes.under(condition), len(outcomes.labels)
    heights = lca_heights(outcomes.paths)[outcomes.labels[:, None], outcomes.ranked[k]]  # (N, ranked)
    wrong = (heights[:, 0] > 0).astype(float)
    right, nodes = 1 - wrong, outcomes.nodes[k]
    means = {f"hd_{count}": heights[:, :count].mean(1) for count in NEAREST}
    means["consistent"] = outcomes.right["direct"][k].all(1).astype(float)
    means["contradictions"] = (~_on_one_path(nodes, outcomes.paths)).astype(float)
    bins = np.minimum((outcomes.confidence[k][:, 0] * BINS).astype(int), BINS - 1)
    gaps = np.eye(BINS)[bins] * (outcomes.confidence[k][:, :1] - right[:, None])  # (N, BINS)

    def found(w: np.ndarray) -> dict[str, np.ndarray]:
        """w: (R, N), rows summing to N."""
        with np.errstate(invalid="ignore"):
            out = {"severity": w @ heights[:, 0] / (w @ wrong)}
        out |= {name: w @ values / n for name, values in means.items()}
        return out | {"ece": np.abs(w @ gaps).sum(1) / n}

    values, drawn = found(np.ones((1, n))), found(resample(n, resamples, seed))
    out: dict[str, list[float] | None] = {}
    for name, (value,) in values.items():
        low, high = np.nanquantile(drawn[name], [0.025, 0.975]) if np.isfinite(value) else (np.nan, np.nan)
        if name == "ece":  # resampling adds to a sum of absolute values: the basic bootstrap takes that off again
            low, high = max(0.0, min(value, 2 * value - high)), max(value, 2 * value - low)
        if name in SHARES:  # where every resample is the same, the rule of three
            low, high = (1 - min(1, 3 / n) if low == 1 else low), (min(1, 3 / n) if high == 0 else high)
        out[name] = [float(value), float(low), float(high)] if np.isfinite(value) else None
    return out


def _on_one_path(nodes: np.ndarray, paths: np.ndarray) -> np.ndarray:
    """(N,) bool. nodes: (N, L + 1)."""
    out = np.ones(len(nodes), dtype=bool)
    for level in range(paths.shape[1] - 1):
        parent = np.zeros(paths[:, level].max() + 1, dtype=int)
        parent[paths[:, level]] = paths[:, level + 1]
        out &= parent[nodes[:, level]] == nodes[:, level + 1]
    return out
