"""What `make repro` left: models, trees and pictures, each read once."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hierclip.data import Pictures, places_of
from hierclip.data.tasks import MODELS, Task, load_task
from hierclip.distributed import device_of
from hierclip.explorer.view import ModelView, make_model_view
from hierclip.model import ImageEncoder, Model, ModelError, encode_texts, load_model
from hierclip.model.classifier import HEAD
from hierclip.params import Params
from hierclip.trees import level_prompts


@dataclass(frozen=True)
class TaskData:
    """A task with its test pictures; references: the first picture of each leaf that has one."""

    task: Task
    pictures: Pictures
    references: Pictures


class Artifacts:
    """The project's products, by name. What cannot be opened raises ValueError or OSError.

    command: what makes everything that is missing.
    """

    def __init__(self, root: Path, params: Params):
        self.root, self.params = root, params
        self.task_data, self.model_view = cache(self._task_data), cache(self._model_view)
        self._opened = cache(self._open)
        preset = f" PRESET={root.name}" if root.parent.name == "presets" else ""
        self.command = f"`make repro{preset}`"

    def models(self) -> tuple[dict[str, str], list[str]]:
        """Lists the folders of data/models with their labels, those that the parameters name first, and which of these
        are not there.
        """
        names = sorted(file.parent.name for file in (self.root / MODELS).glob(f"*/{HEAD}"))
        if not names:
            raise ModelError(f"no model in {self.root / MODELS}")
        methods, seeds = self.params.labels.items(), self.params.seeds
        labels = {f"{method}-{seed}": f"{label}, seed {seed}" for method, label in methods for seed in seeds}
        present = {name: label for name, label in labels.items() if name in names}
        return present | {name: name for name in names if name not in labels}, [
            name for name in labels if name not in present
        ]

    def _task_data(self, name: str) -> TaskData:
        task = load_task(self.root, self.params, name)
        test = task.dataset.pictures("test").of(places_of(task.dataset, task.trees[0].ids))
        return TaskData(task, test, test[torch.from_numpy(np.unique(test.labels.numpy(), return_index=True)[1])])

    @torch.no_grad()
    def _model_view(self, model: str, task: str, tree: str) -> ModelView:
        encoder, loaded, reference_images = self._opened(model, task)
        (chosen,) = (t for t in self.task_data(task).task.trees if t.name == tree)
        levels = level_prompts(chosen, self.task_data(task).task.template)
        texts = [encode_texts(loaded.backbone, prompts).to(device_of(self.params.model)) for prompts in levels]
        return make_model_view(encoder, loaded.head, chosen, texts, reference_images)

    @torch.no_grad()
    def _open(self, model: str, task: str) -> tuple[ImageEncoder, Model, tuple[Tensor, Tensor]]:
        """Loads a model and encodes one picture of each leaf of a task."""
        data, device = self.task_data(task), device_of(self.params.model)
        loaded = load_model(self.root / MODELS / model)
        encoder = ImageEncoder(loaded.backbone, fold=True).eval().to(device)
        embeddings = [encoder(x.to(device)) for x in data.references.floats().split(self.params.attack.batch)]
        return encoder, loaded, (torch.cat(embeddings), data.references.labels)
