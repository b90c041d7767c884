"""Images to logits over the nodes of every level of a tree, and the two readings of a level."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hierclip.data import Pictures
from hierclip.model.backbone import Backbone, ImageEncoder, ModelError, encode_texts, load, save
from hierclip.model.heads import Head, RecallHead, head_from_dict, head_to_dict
from hierclip.model.memory import Memory, make_memory
from hierclip.trees import Tree, forest_levels, level_prompts, load_tree, save_tree

HEAD = "hierclip.json"  # beside the weights: the head and the method's name
REMEMBERED = "trees"  # and the trees that it remembers
READINGS = ("direct", "roll_up")


class Classifier(nn.Module):
    """Images (N, 3, H, W) in [0, 1] to a list of logits, (N, K_l) for each of the levels asked for, by default all."""

    def __init__(self, encoder: nn.Module, head: Head, points: Sequence[Tensor], memory: Memory | None = None):
        """points: a level's text points (K_l, D), leaves first. memory: for a `RecallHead`."""
        super().__init__()
        self.encoder, self.head, self.memory, self.count = encoder, head, memory, len(points)
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
        levels, texts = range(self.count) if levels is None else levels, self.text_points
        return [self.head.at(l).logits(self.image_points(embeddings, l), texts[l]) for l in levels]

    def image_points(self, embeddings: Tensor, level: int) -> Tensor:
        """Where images stand when a level is read: (N, D)."""
        points = self.head.image_points(embeddings)
        return self.memory(points, level) if self.memory and level else points


@torch.no_grad()
def make_classifier(
    backbone: Backbone,
    head: Head,
    trees: Tree | Sequence[Tree],
    template: str,
    remembered: Sequence[Tree] = (),
) -> Classifier:
    """Zero-shot over the levels of a tree, or of a forest as `forest_levels` lists them: prompts are encoded once.

    remembered: the trees of fine-tuning over its leaves, for a `RecallHead`; where there are none it recalls the leaves
    that it is asked about.
    """
    trees = [trees] if isinstance(trees, Tree) else trees

    def encode(tree: Tree) -> list[Tensor]:
        prompts = level_prompts(tree, template)
        texts = encode_texts(backbone, [prompt for level in prompts for prompt in level])
        return list(texts.split([len(level) for level in prompts]))

    texts = [encode(tree) for tree in trees]
    points = [head.text_points(texts[k][level], level, trees[k].top) for k, level in forest_levels(trees)]
    memory = make_memory(head, remembered, trees, encode) if isinstance(head, RecallHead) else None
    return Classifier(ImageEncoder(backbone, fold=True), head, points, memory).eval()


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
    remembered: tuple[Tree, ...] = ()  # the trees of fine-tuning, where the head reads through them
    template: str | None = None  # the prompt that it was trained with, where that is known

    def classifier(self, trees: Tree | Sequence[Tree], template: str) -> Classifier:
        return make_classifier(self.backbone, self.head, trees, template, self.remembered)


def save_model(model: Model, folder: Path) -> None:
    """open_clip's layout, and the head beside it, with the trees that it remembers and the prompt."""
    save(model.backbone, folder)
    names = [tree.name for tree in model.remembered]
    for tree in model.remembered:
        save_tree(tree, folder / REMEMBERED / f"{tree.name}.json")
    entries = {"method": model.method, "head": head_to_dict(model.head)} | ({"remembered": names} if names else {})
    entries |= {"template": model.template} if model.template else {}
    (folder / HEAD).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf8")


def load_model(folder: Path) -> Model:
    """What `save_model` wrote. Raises ModelError where there is none."""
    backbone = load(folder)
    if not (folder / HEAD).exists():
        raise ModelError(f"{folder} has no {HEAD}; it says how a method reads the model")
    entries = json.loads((folder / HEAD).read_text(encoding="utf8"))
    remembered = [load_tree(folder / REMEMBERED / f"{name}.json") for name in entries.get("remembered", ())]
    head, template = head_from_dict(entries["head"]), entries.get("template")
    return Model(backbone, head, entries["method"], tuple(remembered), template)
