"""Images to logits over the nodes of every level of a tree, and the two readings of a level."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hierclip.data import Pictures
from hierclip.model.backbone import Backbone, ImageEncoder, ModelError, encode_texts, load, save
from hierclip.model.heads import Head, head_from_dict, head_to_dict
from hierclip.trees import Tree, forest_levels, level_prompts

HEAD = "hierclip.json"  # beside the weights: the head and the method's name
READINGS = ("direct", "roll_up")


class Classifier(nn.Module):
    """Images (N, 3, H, W) in [0, 1] to a list of logits, (N, K_l) for each of the levels asked for, by default all."""

    def __init__(self, encoder: nn.Module, head: Head, points: Sequence[Tensor]):
        """points: a level's text points (K_l, D), leaves first."""
        super().__init__()
        self.encoder, self.head, self.count = encoder, head, len(points)
        for level, texts in enumerate(points):
            self.register_buffer(f"texts_{level}", texts, persistent=False)

    @property
    def device(self) -> torch.device:
        return self.text_points[0].device

    @property
    def text_points(self) -> list[Tensor]:
        return [getattr(self, f"texts_{level}") for level in range(self.count)]

    def forward(self, images: Tensor, levels: Sequence[int] | None = None) -> list[Tensor]:
        return self.read(self.encoder(images), levels)

    def read(self, embeddings: Tensor, levels: Sequence[int] | None = None) -> list[Tensor]:
        """The same from the images' embeddings (N, D)."""
        points, texts = self.head.image_points(embeddings), self.text_points
        return [self.head.logits(points, texts[l]) for l in (range(self.count) if levels is None else levels)]


@torch.no_grad()
def make_classifier(backbone: Backbone, head: Head, trees: Tree | Sequence[Tree], template: str) -> Classifier:
    """Zero-shot over the levels of a tree, or of a forest as `forest_levels` lists them: prompts are encoded once."""
    trees = [trees] if isinstance(trees, Tree) else trees

    def encode(tree: Tree) -> list[Tensor]:
        prompts = level_prompts(tree, template)
        texts = encode_texts(backbone, [prompt for level in prompts for prompt in level])
        return list(texts.split([len(level) for level in prompts]))

    texts = [encode(tree) for tree in trees]
    points = [head.text_points(texts[k][level], level, trees[k].top) for k, level in forest_levels(trees)]
    return Classifier(ImageEncoder(backbone, fold=True), head, points).eval()


def read(logits: Sequence[Tensor], paths: Tensor) -> dict[str, Tensor]:
    """Each reading's predictions, (N, L + 1) node places: the nearest node of a level (direct), the ancestor
    of the predicted leaf (roll_up). paths: (leaves, L + 1), the tree's.
    """
    direct = torch.stack([level.argmax(1) for level in logits], dim=1)
    return {"direct": direct, "roll_up": paths[direct[:, 0]]}


@torch.no_grad()
def accuracy(classifier: Classifier, pictures: Pictures, paths: Tensor, batch: int = 500) -> dict[str, list[float]]:
    """By reading, the accuracy at every level. paths: the tree's; labels of the pictures are its rows."""
    logits = [[level.cpu() for level in classifier(x)] for x in pictures.batches(batch, classifier.device)]
    readings = read([torch.cat(level) for level in zip(*logits, strict=True)], paths)
    nodes = paths[pictures.labels]
    return {reading: (nodes == found).float().mean(0).tolist() for reading, found in readings.items()}


@dataclass(frozen=True)
class Model:
    """A backbone with the head that its method reads it through."""

    backbone: Backbone
    head: Head
    method: str
    template: str | None = None  # the prompt that it was trained with, where that is known

    def classifier(self, trees: Tree | Sequence[Tree], template: str) -> Classifier:
        return make_classifier(self.backbone, self.head, trees, template)


def save_model(model: Model, folder: Path) -> None:
    """open_clip's layout, and the head beside it, with the prompt."""
    save(model.backbone, folder)
    entries = {"method": model.method, "head": head_to_dict(model.head)}
    entries |= {"template": model.template} if model.template else {}
    (folder / HEAD).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf8")


def load_model(folder: Path) -> Model:
    """What `save_model` wrote. Raises ModelError where there is none."""
    backbone = load(folder)
    if not (folder / HEAD).exists():
        raise ModelError(f"{folder} has no {HEAD}; it says how a method reads the model")
    entries = json.loads((folder / HEAD).read_text(encoding="utf8"))
    return Model(backbone, head_from_dict(entries["head"]), entries["method"], entries.get("template"))
