"""Metrics of outcomes, image by image, with their 95 % bootstrap intervals."""

from collections.abc import Sequence

import numpy as np

from hierclip.evaluation.matrix import Outcomes
from hierclip.trees import lca_heights, shared_nodes

BINS = 15
NEAREST = (1, 5, 20)
Levels = Sequence[int] | slice
ALL = slice(None)


def level_metrics(
    outcomes: Outcomes, reading: str, levels: Levels = ALL, weights: np.ndarray | None = None
) -> dict:
    """Return the metrics of a reading, as fractions.

    clean: by level. robust: A[a][e], accuracy at level e under the attack at level a. worst_level:
    the least of A[a][a]. path_robust: the share of images whose whole path stays right, clean and
    under every attack. levels: those that are attacked and read, the leaves first. weights: (R, N)
    rows that sum to N; the metrics are then arrays with a leading axis of R.
    """
    clean, robust = outcomes.clean[reading][:, levels], outcomes.robust[reading][levels]
    n, count = clean.shape
    w = np.ones((1, n), dtype=int) if weights is None else weights
    flat = robust[:, :, levels].transpose(1, 0, 2).reshape(n, -1)
    matrix = (w @ flat.astype(int)).reshape(-1, count, count) / n
    metrics = {
        "clean": w @ clean.astype(int) / n,
        "robust": matrix,
        "worst_level": matrix.diagonal(axis1=1, axis2=2).min(1),
        "path_robust": w @ path_robust(outcomes, reading, levels).astype(int) / n,
    }
    return metrics if weights is not None else {k: v[0].tolist() for k, v in metrics.items()}


def intervals(
    outcomes: Outcomes, reading: str, resamples: int, seed: int, levels: Levels = ALL
) -> dict:
    """Return the intervals of `level_metrics`, [low, high] each: images are drawn with
    replacement.
    """
    n = len(outcomes.labels)
    drawn = level_metrics(outcomes, reading, levels, resample(n, resamples, seed))
    return {name: _bounds(values, n).tolist() for name, values in drawn.items()}


def path_robust(outcomes: Outcomes, reading: str, levels: Levels = ALL) -> np.ndarray:
    """Return (N,) bool: whether the whole path is right, clean and under every attack."""
    clean = outcomes.clean[reading][:, levels].all(1)
    return np.asarray(clean & outcomes.robust[reading][levels][:, :, levels].all((0, 2)))


def resample(n: int, resamples: int, seed: int) -> np.ndarray:
    """Return (resamples, n): how often each image is drawn, rows that sum to n."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)


def _bounds(shares: np.ndarray, n: int) -> np.ndarray:
    """Return the percentile interval over the first axis of shares of n images, as a last axis.

    At 0 and 1, where all resamples are equal, it reaches 3/n inwards (the rule of three).
    """
    low, high = np.quantile(shares, [0.025, 0.975], axis=0)
    three = min(1, 3 / n)
    return np.stack([np.where(low == 1, 1 - three, low), np.where(high == 0, three, high)], axis=-1)


def mistakes(
    outcomes: Outcomes, condition: str, resamples: int, seed: int
) -> dict[str, list[float] | None]:
    """Return how bad the mistakes of one condition are: [value, low, high] each.

    severity: the mean height at which a wrongly predicted leaf meets the right one, over the
    mistakes; None where there are none. hd_k: the mean height over the k nearest leaves (or all),
    right ones counting 0, over all images (Bertinetto et al., CVPR 2020, section 3). A height is a
    level, L + 1 where only the root joins two leaves. lca_height: hd_1 / (L + 1).

    Of the sets of nodes on the paths of the predicted and the true leaf, the leaves among them and
    the root not, each node once (`shared_nodes`): h_precision, h_recall, h_f1, summed over images
    (Kiritchenko et al., Canadian AI 2006; Silla and Freitas, DMKD 2011); jaccard, their overlap by
    their union, and tree_induced_error, the edges between both leaves (Dekel et al., ICML 2004),
    means over images. top_down: the share of images whose `top_down` leaf is right.

    consistent: the share of images right at every level at once, read directly (hierarchical
    consistent accuracy, Wu et al., CVPR 2024). path_inconsistency: the share whose nearest nodes
    are not all on one path. ece: expected calibration error of the leaves' softmax, in 15 bins of
    equal width (Guo et al., ICML 2017).
    """
    row, labels, n = outcomes.under(condition), outcomes.labels, len(outcomes.labels)
    nodes, confidence = outcomes.nodes[row], outcomes.confidence[row][:, :1]
    heights = lca_heights(outcomes.paths)[labels[:, None], outcomes.ranked[row]]
    wrong = (heights[:, 0] > 0).astype(float)
    shared, leaf = shared_nodes(outcomes.paths), outcomes.ranked[row][:, 0]
    common, predicted, true = shared[leaf, labels], shared[leaf, leaf], shared[labels, labels]
    union = predicted + true - common
    distances = {f"hd_{k}": heights[:, :k].mean(1) for k in NEAREST}
    distances["tree_induced_error"] = union - common
    shares = {
        "h_precision": common,
        "h_recall": common,
        "h_f1": 2 * common,
        "jaccard": common / union,
        "lca_height": heights[:, 0] / outcomes.paths.shape[1],
        "top_down": outcomes.top_down[row] == labels,
        "consistent": outcomes.right["direct"][row].all(1),
        "path_inconsistency": (nodes != outcomes.paths[nodes[:, 0]]).any(1),
    }
    summed = {"severity": heights[:, 0], **distances, **shares}
    summed_below = {  # the images, where nothing else is named
        "severity": wrong,
        "h_precision": predicted,
        "h_recall": true,
        "h_f1": predicted + true,
    }
    bins = np.minimum((confidence[:, 0] * BINS).astype(int), BINS - 1)
    gaps = np.eye(BINS)[bins] * (confidence - (1 - wrong)[:, None])  # (N, BINS)

    def weighted(w: np.ndarray) -> dict[str, np.ndarray]:
        below = {name: w @ v for name, v in summed_below.items()}
        with np.errstate(invalid="ignore"):
            means = {k: w @ v.astype(float) / below.get(k, n) for k, v in summed.items()}
        return {**means, "ece": np.abs(w @ gaps).sum(1) / n}

    drawn = weighted(resample(n, resamples, seed))
    out: dict[str, list[float] | None] = {}
    for name, (value,) in weighted(np.ones((1, n))).items():
        if np.isnan(value):
            out[name] = None
            continue
        low, high = np.nanquantile(drawn[name], [0.025, 0.975])
        if name == "ece":  # resampling adds to a sum of absolute values; the basic bootstrap
            low, high = max(0.0, min(value, 2 * value - high)), max(value, 2 * value - low)
        if name in shares:
            low, high = _bounds(drawn[name], n)
        out[name] = [float(value), float(low), float(high)]
    return out
