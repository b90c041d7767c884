"""Any model in the place of one of open_clip: a function, a module, a model of transformers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from hierclip.data import Cut
from hierclip.models.checkpoint import ModelError
from hierclip.models.classifier import Classifier, LogitClassifier, Texts, zero_shot
from hierclip.models.heads import CosineHead
from hierclip.trees import Tree, forest_paths

SCALE = 100.0  # of cosines, as CLIP ends its training
TRANSFORMERS = ("clip", "siglip", "siglip2")  # types of models that are wrapped whole


@dataclass(frozen=True)
class Wrapped:
    """Somebody's own model: images (N, 3, H, W) in [0, 1] to logits or to embeddings.

    classes: identifiers, in the order of the model's own columns. texts: None: `encoder` gives
    logits (N, K). `Texts`: it gives embeddings (N, D), and every level has its own texts. A tensor
    (K, D): embeddings, with texts of the classes alone.
    """

    encoder: nn.Module
    method: str
    classes: Sequence[str]
    texts: Texts | Tensor | None = None
    scale: float = SCALE
    surrogate: nn.Module | None = None  # what gives gradients in the place of `encoder` (BPDA)
    cut: Cut | None = None  # how it wants images; None: it does not say
    template: str | None = None
    notes: Sequence[str] = ()
    origin: Mapping[str, str] = field(default_factory=dict)
    size: tuple[int, int] | None = None  # height and width of the images; None: it does not say

    @property
    def reads_texts(self) -> bool:
        """Tell whether it has a prompt for every level."""
        return isinstance(self.texts, Texts)

    def classifier(self, trees: Tree | Sequence[Tree], template: str) -> Classifier:
        """Make a classifier of a tree, or of the levels of a forest."""
        trees = [trees] if isinstance(trees, Tree) else trees
        classifier = self._classifier(trees, template)
        classifier.opaque = True  # its attributes may hold what no weight shows
        if self.surrogate is not None:
            differentiable = replace(self, encoder=self.surrogate)
            classifier.surrogate = differentiable._classifier(trees, template)
        return classifier

    def _classifier(self, trees: Sequence[Tree], template: str) -> Classifier:
        head = CosineHead(self.scale)
        if isinstance(self.texts, Texts):
            return zero_shot(self.encoder, head, self.texts, trees, template)
        encoder = self.encoder
        if self.texts is not None:
            if len(self.texts) != len(self.classes):
                raise ModelError(
                    f"{len(self.texts)} text embeddings for {len(self.classes)} classes"
                )
            encoder = Leaves(Classifier(encoder, head, [head.text_points(self.texts, 0, 0)]))
        column = {identifier: k for k, identifier in enumerate(self.classes)}
        order = [column[leaf.id] for leaf in trees[0].leaves]
        return LogitClassifier(encoder, order, torch.from_numpy(forest_paths(trees))).eval()


class Function(nn.Module):
    """A function from images in the place of a module."""

    def __init__(self, function: Callable[[Tensor], Any]):
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


class Leaves(nn.Module):
    """A classifier's logits of the leaves alone."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images, [0])[0]


def wrap(
    model: Any,
    classes: Sequence[str],
    texts: Any = None,
    scale: float | None = None,
    surrogate: Any = None,
    processor: Any = None,
) -> Wrapped:
    """Wrap a function or module, as `Wrapped` has it, or a CLIP or SigLIP of transformers.

    texts: None, a tensor (K, D), or a function from n prompts to embeddings (n, D). surrogate: a
    function or module like the model, whose gradients stand for its own. processor: of
    transformers; None: the one that was saved with the model. Raises ModelError for what is none of
    these.
    """
    if hasattr(model, "get_text_features"):
        given = {"texts": texts, "scale": scale, "surrogate": surrogate}
        odd = [name for name, value in given.items() if value is not None]
        if odd or model.config.model_type not in TRANSFORMERS:
            raise ModelError(
                f"a {type(model).__name__}: CLIP and SigLIP of transformers have texts and a scale "
                "of their own; another model is given as a module to embeddings, with texts="
            )
        return wrap_transformers(model, classes, processor)
    if not callable(model):
        raise ModelError(
            f"a {type(model).__name__} is no model; give a name, a file, a folder, a module or a "
            "function from images (N, 3, H, W) in [0, 1] to logits (N, K)"
        )
    name = getattr(model, "__name__", type(model).__name__)
    if callable(texts):
        encode = texts
        texts = Texts(lambda prompts: torch.as_tensor(encode(prompts)))
    elif texts is not None:
        texts = torch.as_tensor(texts)
    gradients = None if surrogate is None else as_module(surrogate)
    scale = SCALE if scale is None else scale
    return Wrapped(as_module(model), name, classes, texts, scale, gradients)


def as_module(function: Any) -> nn.Module:
    """Return a function as a module, and a module as it is."""
    return function if isinstance(function, nn.Module) else Function(function)


class TransformersTower(nn.Module):
    """The image tower of a model of transformers, on images in [0, 1]."""

    def __init__(self, model: Any, processor: Any):
        super().__init__()
        self.model = model
        self.mean = nn.Buffer(torch.tensor(processor.image_mean).view(3, 1, 1), persistent=False)
        self.std = nn.Buffer(torch.tensor(processor.image_std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return embeddings_of(self.model.get_image_features((images - self.mean) / self.std))


def embeddings_of(output: Any) -> Tensor:
    """Return the embeddings in what a model of transformers gives, in its older form or newer."""
    return output if isinstance(output, Tensor) else output.pooler_output


def wrap_transformers(model: Any, classes: Sequence[str], processor: Any) -> Wrapped:
    """Wrap a CLIP or SigLIP of transformers with its processor, of which it takes all but the
    normalisation.
    """
    if processor is None:
        from transformers import AutoProcessor  # pyright: ignore[reportMissingImports]

        processor = AutoProcessor.from_pretrained(model.config.name_or_path)
    images, longest = processor.image_processor, model.config.text_config.max_position_embeddings

    def tokenize(prompts: list[str]) -> Tensor:
        padded = {"padding": "max_length", "truncation": True, "max_length": longest}
        return processor.tokenizer(prompts, **padded, return_tensors="pt")["input_ids"]

    def encode(prompts: list[str]) -> Tensor:
        return embeddings_of(model.get_text_features(tokenize(prompts).to(model.device)))

    def cut(image: Image.Image) -> Tensor:
        pixels = images(image.convert("RGB"), do_normalize=False, return_tensors="pt")
        return (255 * pixels["pixel_values"][0]).round().to(torch.uint8)

    scale = float(model.logit_scale.detach().exp())
    tower = TransformersTower(model, images)
    texts = Texts(encode, tokenize, [*model.text_model.parameters()])
    return Wrapped(tower, type(model).__name__, classes, texts, scale, cut=cut)
