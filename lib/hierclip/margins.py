"""The depth-margin bounds of `hyperbolic` in the geometry of a model's head."""

from hierclip.hyperbolic import euclidean_bound, hyperbolic_bound
from hierclip.models import Classifier, CosineHead, Head


def head_bounds(head: Head, eta: float, siblings: int) -> tuple[float, float]:
    """Return the bound of a pair of texts of norm at most `eta`, and that of `siblings` such texts.

    Raises ValueError for fewer than two siblings or a norm outside the geometry.
    """
    if isinstance(head, CosineHead):
        scale = float(head.scale)
        return euclidean_bound(eta, scale), euclidean_bound(eta, scale, siblings)
    r, tau = float(head.curvature), float(head.tau)
    return hyperbolic_bound(eta, r, tau), hyperbolic_bound(eta, r, tau, siblings)


def level_bounds(classifier: Classifier, level: int) -> tuple[float, float]:
    """Return the bound of a pair, and that of all of a level's texts as siblings.

    Both are taken at the largest norm among the level's texts, so they hold where norms differ.
    Raises as `head_bounds` does.
    """
    points = classifier.text_points[level]
    return head_bounds(classifier.head, float(points.norm(dim=-1).max()), len(points))
