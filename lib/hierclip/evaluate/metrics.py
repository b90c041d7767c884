"""Metrics from the outcome of every image, with their bootstrap intervals."""

from collections.abc import Mapping

import numpy as np
from scipy.stats import binomtest

from hierclip.evaluate.matrix import Outcomes
from hierclip.trees import lca_heights

BINS = 15
NEAREST = (1, 5, 20)
SHARES = ("consistent", "contradictions")


def figures(outcomes: Outcomes, reading: str) -> dict:
    """Return the metrics of a reading, as fractions.

    clean: by level. robust: A[a][e], accuracy at level e under the attack at level a. worst_level:
    the least of A[a][a]. path_robust: the share of images whose whole path stays right, clean and
    under every attack.
    """
    return _figures(outcomes, reading, None)


def intervals(outcomes: Outcomes, reading: str, resamples: int, seed: int) -> dict:
    """Return 95 % percentile bootstrap intervals of `figures` over images: [low, high] each.

    At 0 and at 1, where every resample is the same, the interval reaches 3/N inwards (the rule of
    three).
    """
    n = len(outcomes.labels)
    drawn = _figures(outcomes, reading, resample(n, resamples, seed))
    return {name: _bounds(values, min(1, 3 / n)) for name, values in drawn.items()}


def paired_difference(
    ours: np.ndarray, theirs: np.ndarray, resamples: int, seed: int
) -> tuple[float, float, float]:
    """Return the mean of ours - theirs over the same images, (N,) each, with its 95 % bootstrap
    interval.

    Raises ValueError where their lengths differ.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"{len(ours)} and {len(theirs)} images are no pairs")
    difference = ours.astype(float) - theirs
    low, high = np.quantile(
        resample(len(ours), resamples, seed) @ difference / len(ours), [0.025, 0.975]
    )
    return float(difference.mean()), float(low), float(high)


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the two-sided p-value of McNemar's exact test of paired outcomes, (N,) bool each."""
    wins, losses = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust p-values for the number of comparisons (Holm, 1979): each, from the least up, times
    the number of those not smaller, never below the one before it and at most 1."""
    out, least, left = {}, 0.0, len(p_values)
    for name in sorted(p_values, key=lambda name: p_values[name]):
        least = max(least, min(1.0, left * p_values[name]))
        out[name], left = least, left - 1
    return {name: out[name] for name in p_values}


def resample(n: int, resamples: int, seed: int) -> np.ndarray:
    """Draw bootstrap counts of n images: (resamples, n), rows summing to n."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)


def path_robust(outcomes: Outcomes, reading: str) -> np.ndarray:
    """Tell where the whole path is right, clean and under every attack: (N,) bool."""
    return np.asarray(outcomes.clean[reading].all(1) & outcomes.robust[reading].all((0, 2)))


def _figures(outcomes: Outcomes, reading: str, counts: np.ndarray | None) -> dict:
    """Compute `figures` of resampled images.

    counts: (R, N), rows summing to N; metrics get a leading axis of R. None: each image counts
    once.
    """
    clean, robust = outcomes.clean[reading], outcomes.robust[reading]
    n, levels = clean.shape
    w = np.ones((1, n), dtype=int) if counts is None else counts
    matrix = (w @ robust.transpose(1, 0, 2).reshape(n, -1).astype(int)).reshape(
        -1, levels, levels
    ) / n
    out = {
        "clean": w @ clean.astype(int) / n,
        "robust": matrix,
        "worst_level": matrix.diagonal(axis1=1, axis2=2).min(1),
        "path_robust": w @ path_robust(outcomes, reading).astype(int) / n,
    }
    return {k: v[0].tolist() for k, v in out.items()} if counts is None else out


def _bounds(values: np.ndarray, least: float) -> list:
    """Return low and high along the first axis as the last axis of nested lists: [..., 2]."""
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    return np.stack(
        [np.where(low == 1, 1 - least, low), np.where(high == 0, least, high)], axis=-1
    ).tolist()


def mistakes(
    outcomes: Outcomes, condition: str, resamples: int, seed: int
) -> dict[str, list[float] | None]:
    """Measure the mistakes of one condition: [value, low, high] each, 95 % bootstrap intervals over
    images.

    severity: the mean height at which a wrongly predicted leaf meets the right one, over the
    mistakes; None where there are none. hd_k: the mean height over the k nearest leaves (or all),
    right ones counting 0, over all pictures (Bertinetto et al., CVPR 2020, section 3). A height is
    a level, L + 1 where only the root joins two leaves. consistent: the share of pictures right at
    every level at once, read directly (hierarchical consistent accuracy, Wu et al., CVPR 2024).
    contradictions: the share whose nearest nodes are not all on one path. ece: expected calibration
    error of the leaves' softmax, in 15 bins of equal width (Guo et al., ICML 2017).
    """
    k, n = outcomes.under(condition), len(outcomes.labels)
    heights = lca_heights(outcomes.paths)[
        outcomes.labels[:, None], outcomes.ranked[k]
    ]  # (N, ranked)
    wrong = (heights[:, 0] > 0).astype(float)
    right, nodes = 1 - wrong, outcomes.nodes[k]
    means = {f"hd_{count}": heights[:, :count].mean(1) for count in NEAREST}
    means["consistent"] = outcomes.right["direct"][k].all(1).astype(float)
    means["contradictions"] = (~_on_one_path(nodes, outcomes.paths)).astype(float)
    bins = np.minimum((outcomes.confidence[k][:, 0] * BINS).astype(int), BINS - 1)
    gaps = np.eye(BINS)[bins] * (outcomes.confidence[k][:, :1] - right[:, None])  # (N, BINS)

    def found(w: np.ndarray) -> dict[str, np.ndarray]:
        """Compute all of them for image weights w (R, N), rows summing to N."""
        with np.errstate(invalid="ignore"):
            out = {"severity": w @ heights[:, 0] / (w @ wrong)}
        out |= {name: w @ values / n for name, values in means.items()}
        return out | {"ece": np.abs(w @ gaps).sum(1) / n}

    values, drawn = found(np.ones((1, n))), found(resample(n, resamples, seed))
    out: dict[str, list[float] | None] = {}
    for name, (value,) in values.items():
        low, high = (
            np.nanquantile(drawn[name], [0.025, 0.975]) if np.isfinite(value) else (np.nan, np.nan)
        )
        if (
            name == "ece"
        ):  # resampling adds to a sum of absolute values: the basic bootstrap takes that off again
            low, high = max(0.0, min(value, 2 * value - high)), max(value, 2 * value - low)
        if name in SHARES:  # where every resample is the same, the rule of three
            low, high = (
                (1 - min(1, 3 / n) if low == 1 else low),
                (min(1, 3 / n) if high == 0 else high),
            )
        out[name] = [float(value), float(low), float(high)] if np.isfinite(value) else None
    return out


def _on_one_path(nodes: np.ndarray, paths: np.ndarray) -> np.ndarray:
    """Tell which images' nodes (N, L + 1) are on one path: (N,) bool."""
    out = np.ones(len(nodes), dtype=bool)
    for level in range(paths.shape[1] - 1):
        parent = np.zeros(paths[:, level].max() + 1, dtype=int)
        parent[paths[:, level]] = paths[:, level + 1]
        out &= parent[nodes[:, level]] == nodes[:, level + 1]
    return out
