"""Depth and margin: the largest margin that a depth allows, and the margins that a model has.

A margin is the logit of the right node less the best logit of the others of its level. With logits
-lambda d the bounds of a pair of texts and of K siblings are Theorems 1 and 2 of
notebooks/60_margin_depth.ipynb, where they are proved. With inner products of vectors no longer
than eta that of a pair is 2 lambda eta^2. For siblings t_i of mean m the mean over pairs of lambda
<z_i, t_i - t_j> is lambda / (K - 1) sum <z_i, t_i - m> <= lambda eta / (K - 1) (K sum |t_i -
m|^2)^(1/2) <= lambda eta^2 K / (K - 1), attained by the simplex and z_i = t_i.
"""

from dataclasses import replace
from math import asinh, isfinite, nan, sqrt

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hierclip.attacks import aims, margin
from hierclip.data import Pictures
from hierclip.losses.levels import group_levels, roll_up
from hierclip.model import Classifier, CosineHead, EuclideanHead, Head, Model, PoincareHead
from hierclip.trees import Tree

SUMMED = ["q05", "q50", "q95", "largest", "share", "reached"]  # what `summary` makes of margins


def hyperbolic_bound(eta: float, r: float, scale: float) -> float:
    """The largest margin between texts of norm at most `eta` in the ball of curvature -r, logits
    being -scale d.

    Raises ValueError for a norm outside [0, 1/sqrt(r)).
    """
    return scale * sibling_distance(eta, r, 2)


def sibling_distance(eta: float, r: float, siblings: int) -> float:
    """The largest smallest (and mean) distance between `siblings` points of norm at most `eta`: the
    simplex's edge.

    (2 / sqrt(r)) arsinh(sqrt(2K / (K - 1)) sqrt(r) eta / (1 - r eta^2)), for two (4 / sqrt(r))
    artanh(sqrt(r) eta). r = 0 is the flat limit, d(u, v) = 2 |u - v|. Raises ValueError for fewer
    than two siblings and for a norm outside [0, 1/sqrt(r)).
    """
    if siblings < 2:
        raise ValueError(
            f"{siblings} siblings have no distance between them; there must be at least 2"
        )
    share, edge = sqrt(r) * eta, eta * sqrt(2 * siblings / (siblings - 1))
    if not (eta >= 0 and share < 1):
        raise ValueError(
            f"norm {eta} is outside the ball of curvature {-r:g}; it must be in [0, 1/sqrt({r:g}))"
        )
    return 2 / sqrt(r) * asinh(sqrt(r) * edge / ((1 - share) * (1 + share))) if r else 2 * edge


def sibling_bound(eta: float, r: float, scale: float, siblings: int) -> float:
    """The largest margin that each of `siblings` texts of norm at most `eta` can have at once,
    logits being -scale d.

    Neither the least nor the mean over the siblings of a margin against the best of the others is
    larger, for one image each, wherever it lies. Raises ValueError as `sibling_distance` does.
    """
    return scale * sibling_distance(eta, r, siblings)


def euclidean_bound(eta: float, scale: float) -> float:
    """The largest margin between vectors of norm `eta`, logits being scale times their inner
    product.

    Raises ValueError for a negative norm.
    """
    if eta < 0:
        raise ValueError(f"norm {eta} is negative")
    return 2 * scale * eta**2


def euclidean_sibling_bound(eta: float, scale: float, siblings: int) -> float:
    """As `sibling_bound`, logits being scale times the inner product of texts and images of norm at
    most `eta`.

    It is scale eta^2 K / (K - 1), half the square of the simplex's straight edge. Raises ValueError
    alike.
    """
    return scale * sibling_distance(eta, 0, siblings) ** 2 / 8


def text_norm(classifier: Classifier, level: int) -> float:
    """The largest norm among the texts of a level."""
    return float(classifier.text_points[level].norm(dim=-1).max())


def head_bounds(head: Head, eta: float, siblings: int) -> tuple[float, float]:
    """The bound of a pair of texts of norm at most `eta` and that of so many siblings, in the
    geometry of a head.

    Raises TypeError for a head whose geometry has none, ValueError for fewer than two siblings or a
    norm outside it.
    """
    match head:
        case PoincareHead():
            r = 0.0 if isinstance(head, EuclideanHead) else float(head.curvature)
            return hyperbolic_bound(eta, r, float(head.tau)), sibling_bound(
                eta, r, float(head.tau), siblings
            )
        case CosineHead():
            scale = float(head.scale)
            return euclidean_bound(eta, scale), euclidean_sibling_bound(eta, scale, siblings)
        case _:
            raise TypeError(f"no bound is known for a {type(head).__name__}")


def level_bounds(classifier: Classifier, level: int) -> tuple[float, float]:
    """The bound of a pair and that of all of a level's texts as siblings, in the geometry of the
    classifier's head.

    Both are taken at the largest norm among the texts, so they hold where norms differ. Raises as
    `head_bounds` does.
    """
    return head_bounds(
        classifier.head, text_norm(classifier, level), len(classifier.text_points[level])
    )


@torch.no_grad()
def measured_margins(
    classifier: Classifier, pictures: Pictures, paths: Tensor, batch: int
) -> pd.DataFrame:
    """A row for each picture and level, its prediction being right where `margin` is positive.

    Columns `picture`, `level`, `norm` (the largest of the level's texts), `siblings` (their
    number), `bound`, `sibling_bound`, `node` (the right one), `margin`. paths: (leaves, L + 1), the
    tree's; labels of the pictures are its rows. Raises as `level_bounds` does.
    """
    parts = []
    for level in range(paths.shape[1]):
        nodes = paths[pictures.labels, level]
        scores = torch.cat(
            [classifier(x, [level])[0].cpu() for x in pictures.batches(batch, classifier.device)]
        )
        pair, siblings = level_bounds(classifier, level)
        rows = {"level": level, "norm": text_norm(classifier, level), "siblings": scores.shape[1]}
        rows |= {"bound": pair, "sibling_bound": siblings, "node": nodes.numpy()}
        values = margin(scores, aims(paths, level)[0].masks(pictures.labels)[0])
        parts.append(
            pd.DataFrame({"picture": range(len(values)), **rows, "margin": values.numpy()})
        )
    return pd.concat(parts, ignore_index=True)


def no_margins() -> tuple[pd.DataFrame, pd.DataFrame]:
    """What `measured_margins` and `summary` of some trees give for a model that is not measured:
    their columns.
    """
    shared = ["level", "norm", "siblings", "bound", "sibling_bound"]
    each = ["picture", *shared, "node", "margin", "tree", "curvature", "tau"]
    return pd.DataFrame(columns=each), pd.DataFrame(columns=["tree", *shared, *SUMMED])  # pyright: ignore


def summary(margins: pd.DataFrame) -> pd.DataFrame:
    """By level, within each `tree` where there is that column: what the bounds are and how much of
    them is used.

    norm, siblings and both bounds; the margins' 5 %, 50 % and 95 % quantiles and `largest`, and its
    `share` of the bound; `reached`, the mean over nodes of the node's largest margin, which
    `sibling_bound` bounds where every node has pictures.
    """
    by = ["tree", "level"] if "tree" in margins else ["level"]
    groups = margins.groupby(by, sort=False)
    table = groups[["norm", "siblings", "bound", "sibling_bound"]].first()
    for q in (5, 50, 95):
        table[f"q{q:02d}"] = groups["margin"].quantile(q / 100)
    table["largest"] = groups["margin"].max()
    table["share"] = table["largest"] / table["bound"]
    highest = margins.pivot_table("margin", [*by, "node"], aggfunc="max", sort=False)
    table["reached"] = highest.groupby(level=by)["margin"].mean()
    return table.reset_index()


@torch.no_grad()
def level_norms(
    classifier: Classifier, pictures: Pictures, paths: Tensor, batch: int
) -> pd.DataFrame:
    """By level: the mean norm of the texts and of the images rolled up by their true nodes, and the
    share of the edges to the level below on which the parent is nearer to the centre than the
    child. Arguments as in `measured_margins`.

    Raises TypeError for a head that is no ball's.
    """
    head, texts = classifier.head, [points.cpu() for points in classifier.text_points]
    if not isinstance(head, PoincareHead):
        raise TypeError(f"a {type(head).__name__} places nothing by depth")
    points = torch.cat(
        [
            head.image_points(classifier.encoder(x)).cpu()
            for x in pictures.batches(batch, classifier.device)
        ]
    )
    groups, rows = group_levels(paths[pictures.labels]), []
    images = [
        head.from_klein_sum(lifted).float()
        for lifted in roll_up(head, head.to_klein_sum(points), groups)
    ]
    for level, (nodes, rolled) in enumerate(zip(texts, images, strict=True)):
        row = {"level": level, "texts": float(nodes.norm(dim=-1).mean())}
        row["images"] = float(rolled.norm(dim=-1).mean())
        if level:
            child, parent = torch.unique(paths[:, level - 1 : level + 1], dim=0).T
            row["text_edges"] = _nearer(nodes[parent], texts[level - 1][child])
            row["image_edges"] = _nearer(rolled[groups[level - 1].members], images[level - 1])
        rows.append(row)
    return pd.DataFrame(rows)


def _nearer(parents: Tensor, children: Tensor) -> float:
    return float((parents.norm(dim=-1) < children.norm(dim=-1)).float().mean())


@torch.no_grad()
def ask_depth(
    model: Model,
    radius: float,
    tree: Tree,
    template: str,
    pictures: Pictures,
    batch: int,
    device: str = "cpu",
) -> pd.DataFrame:
    """The trained model with its leaf texts asked to stand at tangent length `radius`, other radii
    in proportion.

    By level: norm and bound, the margins' median, `reached` as in `summary`, direct accuracy, and
    the share of images that are taken back from the rim, whose depth is then not the one asked for.
    Raises TypeError as `level_norms` does.
    """
    if not isinstance(head := model.head, PoincareHead):
        raise TypeError(f"a {type(head).__name__} has no depth to ask for")
    names = ("image_radius", "text_radius", "top_radius")
    radii = {name: getattr(head, name) * radius / head.text_radius for name in names}
    asked = replace(head, **radii)
    classifier = replace(model, head=asked).classifier(tree, template).to(device)
    tangents = torch.cat(
        [asked.image_tangents(classifier.encoder(x)) for x in pictures.batches(batch, device)]
    )
    margins = measured_margins(classifier, pictures, torch.from_numpy(tree.paths), batch)
    right = margins.assign(accuracy=margins["margin"] > 0).groupby("level")[["accuracy"]].mean()
    table = summary(margins).set_index("level")[["norm", "bound", "q50", "reached"]]
    rim = float(asked.is_clipped(tangents).float().mean())
    return table.assign(accuracy=right["accuracy"], at_rim=rim)  # pyright: ignore


def rank_correlation(
    margins: np.ndarray, broken: np.ndarray, resamples: int, seed: int
) -> tuple[float, float, float]:
    """Spearman's rho of images' margins (N,) with whether an attack broke them (N,) bool, and its
    95 % interval.

    The interval is the percentile bootstrap's over images; resamples in which all broke, or none,
    say nothing and are left out. All nan where the margins or the outcomes are constant. Raises
    ValueError for unequal lengths.
    """
    if margins.shape != broken.shape:
        raise ValueError(f"{len(margins)} margins and {len(broken)} outcomes are no pairs")
    rng, n = np.random.default_rng(seed), len(margins)
    draws = (rng.integers(n, size=n) for _ in range(resamples))
    rho = _spearman(margins, broken)
    drawn = pd.Series([_spearman(margins[i], broken[i]) for i in draws] if isfinite(rho) else [nan])
    return rho, float(drawn.quantile(0.025)), float(drawn.quantile(0.975))


def _spearman(margins: np.ndarray, broken: np.ndarray) -> float:
    """Of ranks with outcomes as they are: the ranks of two values are a line through them."""
    ranks = pd.Series(margins).rank().to_numpy()
    constant = not len(ranks) or np.ptp(ranks) == 0 or broken.all() or not broken.any()
    return nan if constant else float(np.corrcoef(ranks, broken)[0, 1])


def separation(margins: np.ndarray, broken: np.ndarray) -> float:
    """The area under the ROC curve: how often an image that stood has a larger margin than one that
    broke.

    margins: (N,); broken: (N,) bool. Ties count half; nan where all broke or none did.
    """
    ranks = pd.Series(margins).rank()
    return float((ranks[broken == 0].mean() - ranks[broken == 1].mean()) / len(ranks) + 0.5)
