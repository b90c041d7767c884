"""What a model sees in a picture: where it stands in a tree, what it is called by level, and what an attack does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf

import numpy as np
import torch
from torch import Tensor, nn

from hierclip.attacks import GOALS, Budget, frozen, margin
from hierclip.evaluate.matrix import attacked
from hierclip.losses.levels import group_levels, roll_up
from hierclip.margins import level_bounds
from hierclip.model import Classifier, EuclideanHead, Head, PoincareHead
from hierclip.model.classifier import read
from hierclip.trees import Tree
from hierclip.widgets.disk import ball_radius, mean_angle, node_angles

FLAT = 0.8  # where the one norm of a head by angle is drawn


@dataclass(frozen=True)
class Crowd:
    """A picture of each leaf, with which another one is rolled up. embeddings: (C, D); labels: (C,) leaves."""

    embeddings: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Lens:
    """A model over a tree. texts: by level, leaves first, the embeddings (K_l, D) that `classifier` places."""

    classifier: Classifier
    tree: Tree
    texts: Sequence[Tensor]
    crowd: Crowd

    @property
    def head(self) -> Head:
        """In its space all is drawn."""
        return self.classifier.head

    @cached_property
    def paths(self) -> Tensor:
        return torch.from_numpy(self.tree.paths)

    @cached_property
    def angles(self) -> list[np.ndarray]:
        return node_angles(self.tree)

    @cached_property
    def norms(self) -> list[np.ndarray]:
        """By level, (K_l,): those of the texts."""
        points = [self.head.text_points(texts, level, self.tree.top) for level, texts in enumerate(self.texts)]
        return [texts.norm(dim=-1).cpu().numpy() for texts in points]

    @property
    def rim(self) -> float:
        """The norm that no point reaches: 1 / sqrt(r), or infinite outside a ball."""
        return float(self.head.curvature) ** -0.5 if in_ball(self.head) else inf  # pyright: ignore

    @property
    def deep(self) -> bool:
        """Whether points have norms of their own: not where they are read by angle."""
        return isinstance(self.head, PoincareHead)

    def bounds(self) -> list[tuple[float, float, float]]:
        """By level: the largest norm among the texts, and the bounds of a pair and of all siblings at it; infinite, as
        its margins are, for a level of one text.
        """
        levels = [(float(norms.max()), level) for level, norms in enumerate(self.norms)]
        return [
            (eta, *(level_bounds(self.classifier, l) if self.tree.sizes[l] > 1 else (inf, inf))) for eta, l in levels
        ]

    def bent(self, curvature: float) -> "Lens":
        """The same tangent vectors at the centre, placed anew in the ball of another curvature -r; nothing is trained.

        Raises TypeError for a head that is not in a ball.
        """
        if not in_ball(self.head):
            raise TypeError(f"a {type(self.head).__name__} has no curvature")
        head = replace(self.head, curvature=curvature)  # pyright: ignore
        return make_lens(self.classifier.encoder, head, self.tree, self.texts, self.crowd)


@torch.no_grad()
def make_lens(encoder: nn.Module, head: Head, tree: Tree, texts: Sequence[Tensor], crowd: Crowd) -> Lens:
    """Texts are placed by the head; for the rest see `Lens`."""
    points = [head.text_points(embeddings, level, tree.top) for level, embeddings in enumerate(texts)]
    return Lens(Classifier(encoder, head, points).eval(), tree, texts, crowd)


def in_ball(head: Head) -> bool:
    return isinstance(head, PoincareHead) and not isinstance(head, EuclideanHead)


def drawn_radius(head: Head, norms: np.ndarray | float, stretch: float) -> np.ndarray:
    """Where points of these norms are drawn in the disk: as `ball_radius` has it; in a flat space in proportion, the
    rim being twice the longest radius asked for, which norms stay below; all on one circle by angle.
    """
    norms = np.asarray(norms)
    if in_ball(head):
        return ball_radius(float(head.curvature) ** 0.5 * norms, stretch)  # pyright: ignore
    if isinstance(head, EuclideanHead):
        return norms / (2 * max(float(head.image_radius), float(head.text_radius), float(head.top_radius)))
    return FLAT * norms


@dataclass(frozen=True)
class Look:
    """One picture: each array by level, leaves first, of L + 1 entries.

    embedding: (1, D). nodes: nearest by level (direct); upward: the ancestors of the predicted leaf (roll-up).
    confidence: the softmax's share of `nodes`. margins: of the right node, as `measured_margins` has them. norms,
    angles: of the picture's own point and, above it, of what it is rolled up to with the crowd by its true path, the
    angle being that of the mean over the level's nodes by the softmax; only its own where a head rolls nothing up.
    """

    embedding: Tensor
    nodes: np.ndarray
    upward: np.ndarray
    confidence: np.ndarray
    margins: np.ndarray
    norms: np.ndarray
    angles: np.ndarray


@torch.no_grad()
def look(lens: Lens, image: Tensor, label: int) -> Look:
    """A picture (3, H, W) in [0, 1] of the leaf `label`."""
    return look_again(lens, lens.classifier.encoder(image[None].to(lens.classifier.device)), label)


@torch.no_grad()
def look_again(lens: Lens, embedding: Tensor, label: int) -> Look:
    """The same from the picture's embedding (1, D)."""
    head, texts = lens.classifier.head, lens.classifier.text_points
    scores = [level.cpu() for level in lens.classifier.read(embedding)]
    own = [GOALS["direct"](lens.paths, level).masks(torch.tensor([label]))[0] for level in range(len(texts))]
    readings = read(scores, lens.paths)
    points = _rolled_up(lens, embedding, label)
    shares = [head.logits(p[None], t)[0].softmax(0).cpu().numpy() for p, t in zip(points, texts, strict=False)]
    return Look(
        embedding=embedding,
        nodes=readings["direct"][0].numpy(),
        upward=readings["roll_up"][0].numpy(),
        confidence=np.array([float(s.softmax(1).max()) for s in scores]),
        margins=np.array([-float(margin(s, right)) for s, right in zip(scores, own, strict=True)]),
        norms=np.array([float(p.norm()) for p in points]),
        angles=np.array([mean_angle(w, a) for w, a in zip(shares, lens.angles, strict=False)]),
    )


def _rolled_up(lens: Lens, embedding: Tensor, label: int) -> list[Tensor]:
    """The picture's point and what it goes into, level by level, (D,) each; in the crowd it stands for its own leaf."""
    head = lens.classifier.head
    if not isinstance(head, PoincareHead):
        return [head.image_points(embedding)[0]]
    others = lens.crowd.labels != label
    embeddings = torch.cat([embedding, lens.crowd.embeddings[others]])
    paths = lens.paths[torch.cat([torch.tensor([label]), lens.crowd.labels[others]])]
    groups = group_levels(paths.to(embedding.device))
    levels = roll_up(head, head.to_klein_sum(head.image_points(embeddings)), groups)
    place, points = 0, [levels[0][0]]
    for level, group in zip(levels[1:], groups, strict=True):
        place = int(group.members[place])
        points.append(level[place])
    return [head.from_klein_sum(point).float() for point in points]


def strike(
    lens: Lens, image: Tensor, label: int, aim: str, level: int, eps: float, budget: Budget, seed: int
) -> tuple[Tensor, float]:
    """A picture moved by the attack on a goal of GOALS at a level, and its fraction to the boundary: above 1 where it
    is misclassified. budget: the attack at another eps, by which its step goes.
    """
    if not eps:
        return image.clone(), 0.0
    budget = replace(budget, eps=eps, step=budget.step * eps / budget.eps if budget.eps else budget.step)
    aimed = GOALS[aim](lens.paths, level)
    with frozen(lens.classifier):
        moved, way = attacked(lens.classifier, image[None], torch.tensor([label]), aimed, budget, seed, 1)
    return moved[0], float(way)


def ordered_norms(coarsest: float, zeta: float, top: int) -> list[float]:
    """By level, leaves first: the least norms that an order with gaps of `zeta` from parent to child allows, where the
    coarsest level stands at `coarsest`.
    """
    return [coarsest + (top - level) * zeta for level in range(top + 1)]
