"""What `make repro` left: models, trees and pictures, each read once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hierclip.data import Pictures, places_of
from hierclip.distributed import device_of
from hierclip.model import ImageEncoder, Model, ModelError, encode_texts, load_model
from hierclip.model.classifier import HEAD
from hierclip.params import Params
from hierclip.stages import MODELS
from hierclip.stages.tasks import Task, load_task
from hierclip.trees import level_prompts
from hierclip.widgets.look import Crowd, Lens, make_lens

MISSING = (ValueError, OSError)  # those of data, models and trees among them


@dataclass(frozen=True)
class Shelf:
    """A task with its test pictures; first: (leaves with pictures,) the row of the first picture of each."""

    task: Task
    pictures: Pictures
    first: Tensor


class Store:
    """The project's products, by name. What cannot be opened raises one of MISSING."""

    def __init__(self, root: Path, params: Params):
        self.root, self.params = root, params
        self.shelf, self.lens, self._eyes = cache(self._shelf), cache(self._lens), cache(self._open)

    @cached_property
    def models(self) -> dict[str, str]:
        """What is called how: folders of data/models, those of the parameters first, in their order."""
        found = sorted(file.parent.name for file in (self.root / MODELS).glob(f"*/{HEAD}"))
        if not found:
            raise ModelError(f"no model in {self.root / MODELS}")
        names = {name: label for name, label in self._wanted.items() if name in found}
        return names | {name: name for name in found if name not in names}

    @property
    def untrained(self) -> list[str]:
        """Models that the parameters name and that are not there."""
        return [name for name in self._wanted if name not in self.models]

    @property
    def _wanted(self) -> dict[str, str]:
        labels, seeds = self.params.labels.items(), self.params.seeds
        return {f"{method}-{seed}": f"{label}, seed {seed}" for method, label in labels for seed in seeds}

    @property
    def command(self) -> str:
        """What makes everything that is missing."""
        preset = f" PRESET={self.root.name}" if self.root.parent.name == "presets" else ""
        return f"`make repro{preset}`"

    def _shelf(self, task: str) -> Shelf:
        loaded = load_task(self.root, self.params, task)
        test = loaded.dataset.pictures("test").of(places_of(loaded.dataset, loaded.trees[0].ids))
        return Shelf(loaded, test, torch.from_numpy(np.unique(test.labels.numpy(), return_index=True)[1]))

    def _lens(self, model: str, task: str, tree: str) -> Lens:
        encoder, loaded, text, crowd = self._eyes(model, task)
        (chosen,) = (t for t in self.shelf(task).task.trees if t.name == tree)
        texts = [text(prompts) for prompts in level_prompts(chosen, self.shelf(task).task.template)]
        return make_lens(encoder, loaded.head, chosen, texts, crowd)

    @torch.no_grad()
    def _open(self, model: str, task: str) -> tuple[ImageEncoder, Model, Callable[[list[str]], Tensor], Crowd]:
        """A model's eyes for a task: texts of all its trees are encoded at once, so that another tree costs nothing."""
        shelf, device = self.shelf(task), device_of(self.params.model)
        loaded = load_model(self.root / MODELS / model)
        encoder = ImageEncoder(loaded.backbone, fold=True).eval().to(device)
        levels = [level for tree in shelf.task.trees for level in level_prompts(tree, shelf.task.template)]
        rows = {prompt: k for k, prompt in enumerate(dict.fromkeys(prompt for level in levels for prompt in level))}
        known = encode_texts(loaded.backbone, list(rows)).to(device)
        some = shelf.pictures[shelf.first]
        seen = [encoder(x.to(device)) for x in some.floats().split(self.params.attack.batch)]
        crowd = Crowd(torch.cat(seen), some.labels)
        return encoder, loaded, lambda prompts: known[[rows[prompt] for prompt in prompts]], crowd
