"""Images to logits over the nodes of every level of a tree, and the two readings of a level."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hierclip.models.backbone import Backbone, ImageEncoder, encode_texts, save, tree_prompts
from hierclip.models.checkpoint import ModelError
from hierclip.models.heads import Head, head_from_dict, head_to_dict
from hierclip.models.opening import AS_PUBLISHED, Overrides, load
from hierclip.trees import Tree, forest_levels

HEAD = "hierclip.json"  # beside the weights: the head and the method's name
READINGS = ("direct", "roll_up")


class Classifier(nn.Module):
    """Read images (N, 3, H, W) as logits (N, K_l) for each of the given levels, by default all."""

    def __init__(self, encoder: nn.Module, head: Head, points: Sequence[Tensor]):
        """points: by level, leaves first, the text points (K_l, D)."""
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.count = len(points)
        for level, texts in enumerate(points):
            self.register_buffer(f"texts_{level}", texts, persistent=False)

    @property
    def device(self) -> torch.device:
        return self.text_points[0].device

    @property
    def text_points(self) -> list[Tensor]:
        return [self.get_buffer(f"texts_{level}") for level in range(self.count)]

    def forward(self, images: Tensor, levels: Sequence[int] | None = None) -> list[Tensor]:
        return self.read(self.encoder(images), levels)

    def read(self, embeddings: Tensor, levels: Sequence[int] | None = None) -> list[Tensor]:
        """Return the same from the images' embeddings (N, D)."""
        points = self.head.image_points(embeddings)
        texts = self.text_points
        return [
            self.head.logits(points, texts[level])
            for level in (range(self.count) if levels is None else levels)
        ]


def read(logits: Sequence[Tensor], paths: Tensor) -> dict[str, Tensor]:
    """Return each reading's predictions, nodes (N, L + 1) by level.

    direct: the nearest node of the level. roll_up: the ancestor of the predicted leaf. paths:
    (leaves, L + 1), the tree's.
    """
    direct = torch.stack([level.argmax(1) for level in logits], dim=1)
    return {"direct": direct, "roll_up": paths[direct[:, 0]]}


@dataclass(frozen=True)
class Model:
    """A backbone and the head through which its method reads it."""

    backbone: Backbone
    head: Head
    method: str
    template: str | None = None  # the prompt of its training, where that is known

    @torch.no_grad()
    def classifier(self, trees: Tree | Sequence[Tree], template: str) -> Classifier:
        """Make a zero-shot classifier of a tree, or of the levels of a forest (`forest_levels`)."""
        trees = [trees] if isinstance(trees, Tree) else trees
        texts = []
        for tree in trees:
            prompts = tree_prompts(self.backbone, tree, template)
            encoded = encode_texts(self.backbone, [prompt for level in prompts for prompt in level])
            texts.append(encoded.split([len(level) for level in prompts]))
        points = [
            self.head.text_points(texts[tree][level], level, trees[tree].max_level)
            for tree, level in forest_levels(trees)
        ]
        return Classifier(ImageEncoder(self.backbone, fold=True), self.head, points).eval()


def save_model(model: Model, folder: Path) -> None:
    """Write a model in open_clip's layout, with its head and prompt beside it."""
    save(model.backbone, folder)
    entries = {"method": model.method, "head": head_to_dict(model.head)}
    if model.template:
        entries["template"] = model.template
    (folder / HEAD).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf8")


def load_model(folder: Path, overrides: Overrides = AS_PUBLISHED) -> Model:
    """Load the model that `save_model` wrote. Raises ModelError where there is none."""
    backbone = load(folder, overrides)
    if not (folder / HEAD).exists():
        raise ModelError(f"{folder} has no {HEAD}; it says how a method reads the model")
    entries = json.loads((folder / HEAD).read_text(encoding="utf8"))
    head = head_from_dict(entries["head"])
    return Model(backbone, head, entries["method"], entries.get("template"))
