"""Depth and margin: the largest margin that a depth allows, and the margins that a model has.

A margin is the logit of the right node less the best logit of the others of its level. With logits
-lambda d, texts no deeper than norm eta and any image z at all, the triangle inequality gives

    lambda (d(z, t-) - d(z, t+)) <= lambda d(t-, t+) <= lambda (d(t-, 0) + d(0, t+))
                                 <= (4 lambda / sqrt r) artanh(sqrt(r) eta),

attained by z = t+ and t- = -t+, and without bound as eta -> 1/sqrt(r). With inner products of vectors no longer
than eta the largest is 2 lambda eta^2. The proof is told in notebooks/60_margin_depth.ipynb.
"""

from math import atanh, sqrt

import pandas as pd
import torch
from torch import Tensor

from hierclip.attacks import aims, margin
from hierclip.data import Pictures
from hierclip.model import Classifier, CosineHead, PoincareHead


def hyperbolic_bound(eta: float, r: float, scale: float) -> float:
    """The largest margin between texts at norm `eta` of the ball of curvature -r, logits being -scale d.

    Raises ValueError for a norm outside [0, 1/sqrt(r)).
    """
    if not 0 <= eta < 1 / sqrt(r):
        raise ValueError(f"norm {eta} is outside the ball; it must lie in [0, {1 / sqrt(r):g})")
    return 4 * scale / sqrt(r) * atanh(sqrt(r) * eta)


def euclidean_bound(eta: float, scale: float) -> float:
    """The largest margin between vectors of norm `eta`, logits being scale times their inner product.

    Raises ValueError for a negative norm.
    """
    if eta < 0:
        raise ValueError(f"norm {eta} is negative")
    return 2 * scale * eta**2


def text_norm(classifier: Classifier, level: int) -> float:
    """The largest norm among the texts of a level."""
    return float(classifier.text_points[level].norm(dim=-1).max())


def level_bound(classifier: Classifier, level: int) -> float:
    """The bound at the depth of a level's texts, in the geometry of the classifier's head.

    Raises TypeError for a head whose geometry has none.
    """
    head, eta = classifier.head, text_norm(classifier, level)
    match head:
        case PoincareHead():
            return hyperbolic_bound(eta, head.curvature, head.tau)
        case CosineHead():
            return euclidean_bound(eta, head.scale)
        case _:
            raise TypeError(f"no bound is known for a {type(head).__name__}")


@torch.no_grad()
def measured_margins(classifier: Classifier, pictures: Pictures, paths: Tensor, batch: int) -> pd.DataFrame:
    """A row for each picture and level: columns `picture`, `level`, `norm` (of the level's texts), `bound`, `margin`.

    paths: (leaves, L + 1), the tree's; labels of the pictures are its rows.
    """
    parts = []
    for level in range(paths.shape[1]):
        own = aims(paths, level)[0].own[paths[pictures.labels, level]]
        scores = torch.cat([classifier.score(x, level) for x in pictures.floats().split(batch)])
        rows = {"level": level, "norm": text_norm(classifier, level), "bound": level_bound(classifier, level)}
        values = -margin(scores, own)
        parts.append(pd.DataFrame({"picture": range(len(values)), **rows, "margin": values.numpy()}))
    return pd.concat(parts, ignore_index=True)


def summary(margins: pd.DataFrame) -> pd.DataFrame:
    """By level: norm, bound, the margins' 5 %, 50 % and 95 % quantiles and maximum, and the share of the bound used."""
    by_level = margins.groupby("level")
    table = by_level[["norm", "bound"]].first()
    for q in (5, 50, 95):
        table[f"q{q:02d}"] = by_level["margin"].quantile(q / 100)
    table["largest"] = by_level["margin"].max()
    table["share"] = table["largest"] / table["bound"]
    return table.reset_index()
