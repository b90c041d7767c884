"""What a model sees in a picture: its point, its nearest nodes and margins by level, and what an attack changes."""

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


@dataclass(frozen=True)
class ModelView:
    """A model over a tree. texts: by level, leaves first, the embeddings (K_l, D) that `classifier` places.

    reference_images: embeddings (C, D) and leaves (C,) of one picture per leaf, rolled up together with a picture.
    """

    classifier: Classifier
    tree: Tree
    texts: Sequence[Tensor]
    reference_images: tuple[Tensor, Tensor]

    @property
    def head(self) -> Head:
        return self.classifier.head

    @cached_property
    def paths(self) -> Tensor:
        return torch.from_numpy(self.tree.paths)

    @cached_property
    def norms(self) -> list[np.ndarray]:
        """Computes the norms of the texts' points, by level (K_l,)."""
        points = [self.head.text_points(texts, level, self.tree.top) for level, texts in enumerate(self.texts)]
        return [level.norm(dim=-1).cpu().numpy() for level in points]

    @property
    def rim(self) -> float:
        """Gives the norm that no point reaches: 1 / sqrt(r), or infinity outside a ball."""
        if isinstance(self.head, PoincareHead) and not isinstance(self.head, EuclideanHead):
            return float(self.head.curvature) ** -0.5
        return inf

    @property
    def has_depth(self) -> bool:
        """Tells whether points have norms of their own, which a head that reads by angle does not give them."""
        return isinstance(self.head, PoincareHead)

    def bounds(self) -> list[tuple[float, float, float]]:
        """Computes by level the largest norm among the texts and, in logits, the bounds of a pair and of all siblings
        at it; both are infinite, as the margins are, for a level of one text.
        """
        pairs = [level_bounds(self.classifier, l) if k > 1 else (inf, inf) for l, k in enumerate(self.tree.sizes)]
        return [(float(norms.max()), *bounds) for norms, bounds in zip(self.norms, pairs, strict=True)]

    def with_curvature(self, curvature: float) -> "ModelView":
        """Places the same tangent vectors at the centre in the ball of curvature -r, without training.

        Raises TypeError for a head without curvature.
        """
        head = replace(self.head, curvature=curvature)  # pyright: ignore
        return make_model_view(self.classifier.encoder, head, self.tree, self.texts, self.reference_images)


@torch.no_grad()
def make_model_view(
    encoder: nn.Module, head: Head, tree: Tree, texts: Sequence[Tensor], reference_images: tuple[Tensor, Tensor]
) -> ModelView:
    """Places the texts with the head; arguments as the fields of `ModelView`."""
    points = [head.text_points(embeddings, level, tree.top) for level, embeddings in enumerate(texts)]
    return ModelView(Classifier(encoder, head, points).eval(), tree, texts, reference_images)


@dataclass(frozen=True)
class ImageState:
    """One picture's readings; each array has one entry per level, leaves first.

    image: (3, H, W) in [0, 1]. label: its leaf. embedding: (1, D). nodes: nearest by level (direct); upward: the
    ancestors of the predicted leaf (roll-up). confidence: the softmax's share of `nodes`. margins: of the right node,
    in logits, as `measured_margins` has them. norms: of the picture's point and, above it, of the points it is rolled
    up to with the reference images by its true path; only its own where a head rolls nothing up. shares: by level, the
    softmax (K_l,) of that point over the nodes.
    """

    image: Tensor
    label: int
    embedding: Tensor
    nodes: np.ndarray
    upward: np.ndarray
    confidence: np.ndarray
    margins: np.ndarray
    norms: np.ndarray
    shares: list[np.ndarray]


@torch.no_grad()
def image_state(model_view: ModelView, image: Tensor, label: int, known: Tensor | None = None) -> ImageState:
    """Reads a picture (3, H, W) in [0, 1] of the leaf `label`, from its known embedding (1, D) if there is one."""
    classifier, head, paths = model_view.classifier, model_view.head, model_view.paths
    embedding = classifier.encoder(image[None].to(classifier.device)) if known is None else known
    texts, logits = classifier.text_points, [level.cpu() for level in classifier.read(embedding)]
    masks = [GOALS["direct"](paths, level).masks(torch.tensor([label]))[0] for level in range(len(texts))]
    readings = read(logits, paths)
    points = rolled_up_points(model_view, embedding, label)
    return ImageState(
        image=image,
        label=label,
        embedding=embedding,
        nodes=readings["direct"][0].numpy(),
        upward=readings["roll_up"][0].numpy(),
        confidence=np.array([float(level.softmax(1).max()) for level in logits]),
        margins=np.array([float(margin(level, mask)) for level, mask in zip(logits, masks, strict=True)]),
        norms=np.array([float(point.norm()) for point in points]),
        shares=[head.logits(p[None], t)[0].softmax(0).cpu().numpy() for p, t in zip(points, texts, strict=False)],
    )


def rolled_up_points(model_view: ModelView, embedding: Tensor, label: int) -> list[Tensor]:
    """Computes the picture's point and, level by level, the one it is rolled up to, (D,) each.

    The picture takes the place of its own leaf's reference image.
    """
    head, (reference, labels) = model_view.head, model_view.reference_images
    if not isinstance(head, PoincareHead):
        return [head.image_points(embedding)[0]]
    embeddings = torch.cat([embedding, reference[labels != label]])
    paths = model_view.paths[torch.cat([torch.tensor([label]), labels[labels != label]])]
    groups = group_levels(paths.to(embedding.device))
    levels = roll_up(head, head.to_klein_sum(head.image_points(embeddings)), groups)
    row, points = 0, [levels[0][0]]
    for level, group in zip(levels[1:], groups, strict=True):
        row = int(group.members[row])
        points.append(level[row])
    return [head.from_klein_sum(point).float() for point in points]


def attack_image(
    model_view: ModelView, image: Tensor, label: int, aim: str, level: int, eps: float, budget: Budget, seed: int
) -> tuple[Tensor, float]:
    """Attacks a picture for an aim of GOALS at a level; gives the attacked picture and the share of the way to the
    decision boundary that it covered, above 1 where the picture fell.

    budget: of the attack, whose step is scaled from its own eps to `eps`.
    """
    if not eps:
        return image.clone(), 0.0
    budget = replace(budget, eps=eps, step=budget.step * eps / budget.eps if budget.eps else budget.step)
    goal, classifier = GOALS[aim](model_view.paths, level), model_view.classifier
    with frozen(classifier):
        images, shares = attacked(classifier, image[None], torch.tensor([label]), goal, budget, seed, 1)
    return images[0], float(shares)
