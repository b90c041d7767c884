"""The depth-margin bounds of `hyperbolic` in the geometry of a model's head."""

from hierclip.hyperbolic import euclidean_bound, hyperbolic_bound
from hierclip.models import Classifier, CosineHead, EuclideanHead, Head, PoincareHead


def head_bounds(head: Head, eta: float, siblings: int) -> tuple[float, float]:
    """Return the bound of a pair of texts of norm at most `eta`, and that of `siblings` such texts.

    Raises TypeError for a head whose geometry has no bound, ValueError for fewer than two siblings
    or a norm outside the geometry.
    """
    match head:
        case PoincareHead():
            r = 0.0 if isinstance(head, EuclideanHead) else float(head.curvature)
            tau = float(head.tau)
            return hyperbolic_bound(eta, r, tau), hyperbolic_bound(eta, r, tau, siblings)
        case CosineHead():
            scale = float(head.scale)
            return euclidean_bound(eta, scale), euclidean_bound(eta, scale, siblings)
        case _:
            raise TypeError(f"no bound is known for a {type(head).__name__}")


def level_bounds(classifier: Classifier, level: int) -> tuple[float, float]:
    """Return the bound of a pair, and that of all of a level's texts as siblings.

    Both are taken at the largest norm among the level's texts, so they hold where norms differ.
    Raises as `head_bounds` does.
    """
    siblings = len(classifier.text_points[level])
    return head_bounds(classifier.head, text_norm(classifier, level), siblings)


def text_norm(classifier: Classifier, level: int) -> float:
    """Return the largest norm among the texts of a level."""
    return float(classifier.text_points[level].norm(dim=-1).max())
