"""What a model sees in an image, and what an attack changes: read from what `make repro` made."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hierclip.attacks import margin
from hierclip.config import Params
from hierclip.data import ImageSet, class_indices
from hierclip.data.tasks import MODELS, Task, check_inputs, load_task
from hierclip.distributed import device_of
from hierclip.hyperbolic import from_klein_sum, to_klein_sum
from hierclip.losses.levels import group_levels, roll_up
from hierclip.models import Classifier, Model, PoincareHead, load_model
from hierclip.trees import Tree


@dataclass(frozen=True, eq=False)
class TaskData:
    """A task and its test images; references: the first image of each leaf that has one."""

    task: Task
    images: ImageSet
    references: ImageSet


def open_task(root: Path, params: Params, name: str) -> TaskData:
    """Read a task of the parameters. Raises ValueError or OSError where something is missing."""
    task = load_task(root, params, name)
    images = task.dataset.images("test").select_classes(
        class_indices(task.dataset, task.trees[0].ids)
    )
    _, firsts = np.unique(images.labels.numpy(), return_index=True)
    return TaskData(task, images, images[torch.from_numpy(firsts)])


@dataclass(frozen=True, eq=False)
class ModelView:
    """A model over a tree of a task; classifier: over all levels, leaves first.

    references: embeddings (C, D) of the task's reference images.
    """

    model: Model
    classifier: Classifier
    data: TaskData
    tree: Tree
    references: Tensor

    @cached_property
    def paths(self) -> Tensor:
        return torch.from_numpy(self.tree.paths)

    @cached_property
    def angles(self) -> list[np.ndarray]:
        """Return by level (K_l,) radians: leaves evenly spaced, nodes in the middle of theirs."""
        ranks = np.argsort(np.lexsort(self.tree.paths.T))  # the last column, the coarsest, first
        angles = 2 * np.pi * (ranks + 0.5) / len(ranks)
        return [np.bincount(nodes, angles) / np.bincount(nodes) for nodes in self.tree.paths.T]


@torch.no_grad()
def open_model(root: Path, params: Params, name: str, data: TaskData, tree: Tree) -> ModelView:
    """Load a folder of data/models over a tree of the task, and encode the reference images.

    Raises ValueError or OSError where it cannot be opened.
    """
    check_inputs(root, params, name)
    model = load_model(root / MODELS / name)
    device = device_of(params.model)
    classifier = model.classifier(tree, data.task.template).requires_grad_(False).to(device)
    batches = data.references.batches(params.attack.batch, device)
    references = torch.cat([classifier.encoder(batch) for batch in batches])
    return ModelView(model, classifier, data, tree, references)


@dataclass(frozen=True, eq=False)
class ImageState:
    """What a model makes of one image; arrays have one entry per level, leaves first.

    image: (3, H, W) in [0, 1]. label: its leaf. nodes: the nearest ones.
    confidence: their softmax probability. margins: of the right node, in logits, as in
    notebook 60. norms, angles: of the image's point and of the points that it is rolled up
    to, as in `rolled_up_points`; an angle is the mean of the nodes' angles by the softmax.
    """

    image: Tensor
    label: int
    nodes: np.ndarray
    confidence: np.ndarray
    margins: np.ndarray
    norms: np.ndarray
    angles: np.ndarray


@torch.no_grad()
def image_state(view: ModelView, image: Tensor, label: int) -> ImageState:
    """Read an image (3, H, W) in [0, 1] of the leaf `label`."""
    classifier = view.classifier
    embedding = classifier.encoder(image[None].to(classifier.device))
    logits = [level.cpu() for level in classifier.read(embedding)]
    masks = [
        F.one_hot(node, size).bool()
        for node, size in zip(view.paths[label], view.tree.sizes, strict=True)
    ]
    points = rolled_up_points(view, embedding, label)
    angles = []
    for point, texts, nodes in zip(points, classifier.text_points, view.angles, strict=False):
        weights = classifier.head.logits(point, texts)[0].softmax(0).cpu().numpy()
        angles.append(np.angle(np.sum(weights * np.exp(1j * nodes))))
    return ImageState(
        image=image,
        label=label,
        nodes=np.array([int(scores.argmax()) for scores in logits]),
        confidence=np.array([float(scores.softmax(1).max()) for scores in logits]),
        margins=np.array([float(margin(*pair)) for pair in zip(logits, masks, strict=True)]),
        norms=np.array([float(point.norm()) for point in points]),
        angles=np.array(angles),
    )


def rolled_up_points(view: ModelView, embedding: Tensor, label: int) -> list[Tensor]:
    """Return the image's point and, level by level, the one it is rolled up to, (1, D) each.

    The image takes the place of its own leaf's reference image. A flat method rolls nothing up.
    """
    head = view.classifier.head
    if not isinstance(head, PoincareHead):
        return [head.image_points(embedding)]
    leaves = view.data.references.labels
    others = leaves != label
    embeddings = torch.cat([embedding, view.references[others]])
    paths = view.paths[[label, *leaves[others].tolist()]].to(embedding.device)
    groups = group_levels(paths)
    lifted = to_klein_sum(head.image_points(embeddings), head.curvature)
    levels = roll_up(lifted, groups)
    coarser = zip(levels[1:], groups, paths[0, 1:], strict=True)
    path = [levels[0][:1], *(points[group.nodes == node] for points, group, node in coarser)]
    return [from_klein_sum(point, head.curvature).float() for point in path]
