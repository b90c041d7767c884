"""Images to logits over the nodes of every level of a tree, and the two readings of a level."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hierclip.data import Cut
from hierclip.models.backbone import Backbone, ImageEncoder, encode_texts, save, tree_prompts
from hierclip.models.checkpoint import VISUAL, ModelError
from hierclip.models.heads import Head, at_least_float32, head_from_dict, head_to_dict
from hierclip.models.opening import AS_PUBLISHED, Overrides, load
from hierclip.progress import fingerprint
from hierclip.trees import Tree, forest_levels

HEAD = "hierclip.json"  # beside the weights: the head and the method's name
READINGS = ("direct", "roll_up")


class Classifier(nn.Module):
    """Read images (N, 3, H, W) as logits (N, K_l) for each of the given levels, by default all."""

    def __init__(self, encoder: nn.Module, head: Head | None, points: Sequence[Tensor]):
        """points: by level, leaves first, the text points (K_l, D)."""
        super().__init__()
        self.encoder = encoder
        self.head: Any = head  # None, where a model has logits of its own
        self.text_hash = ""  # of what the points were computed from, where that is known
        self.config: object = None  # of the layers, where it is known
        self.opaque: Any = False  # whether attributes that are no weights may matter
        self.count = len(points)
        for level, texts in enumerate(points):
            self.register_buffer(f"texts_{level}", texts, persistent=False)

    @property
    def device(self) -> torch.device:
        return next(self.buffers()).device

    @property
    def text_points(self) -> list[Tensor]:
        return [self.get_buffer(f"texts_{level}") for level in range(self.count)]

    def forward(self, images: Tensor, levels: Sequence[int] | None = None) -> list[Tensor]:
        return self.read(self.encoder(images), levels)

    def read(self, embeddings: Tensor, levels: Sequence[int] | None = None) -> list[Tensor]:
        """Return the same from the images' embeddings (N, D)."""
        need_tensor(embeddings)
        points = self.head.image_points(embeddings)
        texts = self.text_points
        if points.shape[1:] != texts[0].shape[1:]:
            raise ModelError(
                f"the model gives {tuple(embeddings.shape)}; embeddings (N, {texts[0].shape[1]}), "
                "as long as those of the texts, are needed"
            )
        return [
            self.head.logits(points, texts[level])
            for level in (range(self.count) if levels is None else levels)
        ]

    def hashes(self) -> dict[str, str]:
        """Hash all that its logits depend on, each by itself.

        weights, layers: of the image encoder. input: what else it holds, such as mean and std.
        texts: the text tower and the tokens of all prompts; where these are not known, the text
        points.
        """
        persistent = self.encoder.state_dict()
        others = [each for name, each in self.encoder.named_buffers() if name not in persistent]
        return {
            "weights": fingerprint(*persistent.values()),
            "layers": fingerprint(
                self.config, [type(layer).__name__ for layer in self.encoder.modules()]
            ),
            "input": fingerprint(*others),
            "texts": self.text_hash or fingerprint(*self.text_points),
            "head": fingerprint(self.head),
        }


class LogitClassifier(Classifier):
    """Read every level from the logits (N, leaves) of a model that knows the leaves alone.

    A superclass's logit is the log of the sum of its leaves' exponentials, so its share of the
    softmax is the sum of theirs.
    """

    def __init__(self, encoder: nn.Module, order: Sequence[int], paths: Tensor):
        """order: each leaf's column in the logits. paths: (leaves, levels), their ancestors."""
        super().__init__(encoder, None, [])
        self.order = nn.Buffer(torch.tensor(order), persistent=False)
        self.paths = nn.Buffer(paths, persistent=False)

    def read(self, embeddings: Tensor, levels: Sequence[int] | None = None) -> list[Tensor]:
        """Return the logits of levels from those of the leaves."""
        count = len(self.order)
        need_tensor(embeddings)
        if embeddings.ndim != 2 or embeddings.shape[1] != count:
            raise ModelError(
                f"the model gives {tuple(embeddings.shape)}; logits (N, {count}), a column for "
                "each class, are needed"
            )
        leaves = at_least_float32(embeddings)[:, self.order]
        chosen = range(self.paths.shape[1]) if levels is None else levels
        return [_masses(leaves, self.paths[:, level]) if level else leaves for level in chosen]


def need_tensor(output: Any) -> None:
    """Raise ModelError where a model gives something else, such as several tensors."""
    if not isinstance(output, Tensor):
        raise ModelError(
            f"the model gives a {type(output).__name__}; a tensor of logits or embeddings is "
            "needed: wrap it in a function that takes it out"
        )


def _masses(leaves: Tensor, column: Tensor) -> Tensor:
    """Return the logits (N, K) of superclasses. column: (leaves,), the superclass of each leaf."""
    shape, index = (len(leaves), int(column.max()) + 1), column.expand_as(leaves)
    top = leaves.new_full(shape, -torch.inf).scatter_reduce(1, index, leaves.detach(), "amax")
    total = leaves.new_zeros(shape).scatter_add(1, index, (leaves - top.gather(1, index)).exp())
    return top + total.log()


@dataclass(frozen=True)
class Model:
    """A backbone and the head through which its method reads it."""

    backbone: Backbone
    head: Head
    method: str
    template: str | None = None  # the prompt of its training, where that is known

    reads_texts: ClassVar[bool] = True

    @property
    def size(self) -> tuple[int, int]:
        """Return the height and width of the images that it takes."""
        size = self.backbone.preprocess["size"]
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def cut(self) -> Cut:
        return self.backbone.cut

    @property
    def notes(self) -> Sequence[str]:
        return self.backbone.notes

    @property
    def origin(self) -> dict[str, str]:
        return self.backbone.origin

    def classifier(self, trees: Tree | Sequence[Tree], template: str) -> Classifier:
        """Make a zero-shot classifier of a tree, or of the levels of a forest (`forest_levels`)."""
        encoder = ImageEncoder(self.backbone, fold=True)
        texts = Texts(
            partial(encode_texts, self.backbone),
            self.backbone.tokenizer,
            [v for k, v in self.backbone.clip.state_dict().items() if not k.startswith(VISUAL)],
        )
        classifier = zero_shot(encoder, self.head, texts, trees, template)
        classifier.config = json.dumps(self.backbone.config, sort_keys=True)
        return classifier


@dataclass(frozen=True)
class Texts:
    """How prompts become embeddings."""

    encode: Callable[[list[str]], Tensor]  # n prompts to (n, D)
    tokenize: Callable[[list[str]], Tensor] | None = None  # to (n, ...); None: it is not known
    weights: Sequence[Tensor] = ()  # of the text tower


@torch.no_grad()
def zero_shot(
    encoder: nn.Module, head: Head, texts: Texts, trees: Tree | Sequence[Tree], template: str
) -> Classifier:
    """Make a classifier of a tree, or of a forest's levels, from the texts of their nodes."""
    trees = [trees] if isinstance(trees, Tree) else trees
    embeddings, tokens = [], []
    for tree in trees:
        by_level = tree_prompts(tree, template, texts.tokenize or texts.encode)
        prompts = [prompt for level in by_level for prompt in level]
        embeddings.append(texts.encode(prompts).split([len(level) for level in by_level]))
        tokens += [texts.tokenize(prompts)] if texts.tokenize else []
    points = [
        head.text_points(embeddings[tree][level], level, trees[tree].max_level)
        for tree, level in forest_levels(trees)
    ]
    classifier = Classifier(encoder, head, points).eval()
    if texts.tokenize:
        classifier.text_hash = fingerprint(*tokens, *texts.weights)
    return classifier


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
    try:
        entries = json.loads((folder / HEAD).read_text(encoding="utf8"))
        return Model(
            backbone, head_from_dict(entries["head"]), entries["method"], entries.get("template")
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{folder / HEAD}: no method and head with its numbers, as `save_model` writes them "
            f"({error})"
        ) from error
