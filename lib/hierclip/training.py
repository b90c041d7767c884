"""Training on Lightning Fabric: one loop for all, and the steps of adversarial fine-tuning."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor

from hierclip.attacks import frozen, pgd
from hierclip.config import FinetuneParams, HierParams, OptimParams, TrainedParams
from hierclip.data import class_indices, step_seed
from hierclip.data.tasks import Task
from hierclip.distributed import mean, rank_slice, world
from hierclip.errors import HierclipError
from hierclip.losses import (
    OBJECTIVES,
    PERTURBATIONS,
    Context,
    Levels,
    Perturbation,
    make_head,
    make_nodes,
)
from hierclip.losses.levels import Nodes
from hierclip.models import Backbone, Head, Towers
from hierclip.models.checkpoint import not_finite
from hierclip.progress import (
    cache_key,
    exclusive,
    fingerprint,
    kept_under,
    progress,
    replacing,
)
from hierclip.trees import check_forest

StepLoss = Callable[[int], tuple[Tensor, dict[str, float]]]  # of a step: its loss, what it logs
History = list[dict[str, float]]  # by optimiser step: the loss, and what else was logged


class TrainingError(HierclipError, RuntimeError):
    """Training that cannot go on: where it stopped, and what to change."""


@dataclass(frozen=True)
class Training:
    """A module that is ready for optimiser steps."""

    fabric: Fabric
    module: _FabricModule
    optimizer: torch.optim.Optimizer
    params: OptimParams
    steps: int
    name: str  # in messages
    key: str  # hash of what a checkpoint depends on, beside the module


def fit(work: Training, step_loss: StepLoss, checkpoint: Path) -> History:
    """Take the optimiser steps of a training under `rate_share`; return what each of them logged.

    step_loss: a function of the step's number alone, so that a training that was stopped resumes
    from `checkpoint` to the bit; `accumulate` of these steps make an optimiser step. A checkpoint
    of another training is ignored; so is a damaged one, with a warning. The file is removed when
    training is complete; the module is then on the CPU, and needs no gradient.
    Raises TrainingError where a loss, what is logged of it, or a weight is not finite: weights are
    looked at before a checkpoint is written, and at the end; HierclipError where another process is
    at this training.
    """
    with exclusive(checkpoint):
        return _fit(work, step_loss, checkpoint)


def _fit(work: Training, step_loss: StepLoss, checkpoint: Path) -> History:
    fabric, module, optimizer, params = work.fabric, work.module, work.optimizer, work.params
    share = partial(rate_share, steps=work.steps, warmup=params.warmup)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    precision = fabric.strategy.precision.precision
    key = cache_key(work.key, precision, work.steps, *module.state_dict().values())
    state = {
        "module": module,
        "optimizer": optimizer,
        "schedule": schedule,
        "history": [],
        "key": key,
    }
    read = partial(torch.load, map_location="cpu", weights_only=True)
    resumed = fabric.is_global_zero and kept_under(key, checkpoint, read, "training") is not None
    if fabric.broadcast(resumed):
        fabric.load(checkpoint, state, weights_only=True)
    history: History = state["history"]
    left = range(len(history), work.steps)
    for step in progress(left, work.name, len(history), lambda: f"loss {history[-1]['loss']:.3f}"):
        optimizer.zero_grad()
        parts: History = []
        for part in range(params.accumulate):
            number = params.accumulate * step + part
            torch.manual_seed(number)  # of what a model draws itself, such as dropped patches
            with fabric.no_backward_sync(module, enabled=part < params.accumulate - 1):
                loss, logged = step_loss(number)
                fabric.backward(loss / params.accumulate)
            parts.append({"loss": mean(loss.detach()).item()} | logged)
        history.append({name: sum(p[name] for p in parts) / len(parts) for name in parts[0]})
        optimizer.step()
        last = step + 1 == work.steps
        due = last or (step + 1) % params.checkpoint_every == 0
        faulty = [name for name, value in history[-1].items() if not math.isfinite(value)]
        faulty = faulty or (not_finite(module) if due else [])
        if faulty:
            raise TrainingError(
                f"{work.name}: {', '.join(faulty[:3])} not finite at step {step}; "
                f"lower the learning rate (now {schedule.base_lrs[0]:g}), or remove {checkpoint} "
                "where training went on from there"
            )
        schedule.step()
        if due and not last:
            with replacing(checkpoint) as part:
                fabric.save(part, state)
    fabric.barrier()
    if fabric.is_global_zero:
        checkpoint.unlink(missing_ok=True)
    module.eval().requires_grad_(False).cpu()
    return history


def rate_share(step: int, steps: int, warmup: float) -> float:
    """Return the share of the learning rate at a step: a linear warm-up, then a cosine.

    warmup: the share of the steps in which the rate rises.
    """
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def loss_batch(params: OptimParams) -> int:
    """Return how many images a loss sees, over all processes.

    Raises TrainingError where an optimiser step's images cannot be divided evenly.
    """
    if params.batch % (params.accumulate * world()):
        raise TrainingError(
            f"a batch of {params.batch} cannot be shared out evenly among "
            f"{params.accumulate} parts and {world()} processes"
        )
    return params.batch // params.accumulate


def model_key(backbone: Backbone) -> str:
    """Hash a model: its configuration, its input's scale, and both towers' weights."""
    config = sorted(backbone.config.items(), key=lambda entry: entry[0])
    return fingerprint(config, backbone.mean, backbone.std, *backbone.clip.state_dict().values())


@dataclass(frozen=True)
class Finetuning(Training):
    """An adversarial fine-tuning, as `set_up` makes it ready."""

    params: FinetuneParams
    method: TrainedParams
    seed: int
    task: Task
    head: Head
    original: Towers  # the model as it was
    texts: Tensor  # of all prompts, (K, D)
    nodes: list[Nodes]  # by tree
    perturbations: list[tuple[Levels, Levels]]  # of a step: levels in the attack, and in the loss

    def batch(self, step: int) -> tuple[Context, torch.Generator]:
        """Return what a step's losses see, and the random numbers of its attack's start.

        Of several processes each has its share of the images.
        """
        dataset, trees, device = self.task.dataset, self.task.trees, self.fabric.device
        classes, size = class_indices(dataset, trees[0].ids), loss_batch(self.params)
        images, labels = dataset.batch(classes, size, self.seed, step, rank_slice(size))
        paths = [torch.from_numpy(tree.paths)[labels].to(device) for tree in trees]
        images = images.to(device)
        context = Context(images, paths, self.nodes, self.module, self.original, self.head)
        seed = step_seed(self.seed, step) + 1  # the dataset draws by the other
        return context, start_generator(device, seed)

    def perturb(
        self, context: Context, generator: torch.Generator, attack_levels: Levels
    ) -> tuple[Tensor, Tensor | None]:
        """Return adversarial images, and a perturbation of the texts or None.

        PGD raises the method's own attack objective at `attack_levels` (None: all), with the
        weights frozen.
        """
        attack = OBJECTIVES[self.method.loss].attack

        def attack_loss(x: Tensor, text_delta: Tensor | None) -> Tensor:
            return attack(context, Perturbation(x, text_delta, attack_levels), self.method)

        size = loss_batch(self.params)
        budget = {
            "eps": self.params.eps,
            **self.method.attack.model_dump(),
            "generator": generator,
            "whole": size,
            "rows": rank_slice(size),
        }
        if isinstance(self.method, HierParams):
            budget |= {"texts": self.texts, "text_eps": self.method.text_eps}
        with frozen(self.module):
            return pgd(attack_loss, context.images, **budget)

    def step_loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a step, and what it logs. Notebook 40 shows the same."""
        context, generator = self.batch(step)
        losses = []
        for attack_levels, train_levels in self.perturbations:
            x_adv, text_delta = self.perturb(context, generator, attack_levels)
            perturbation = Perturbation(x_adv, text_delta, train_levels)
            loss = OBJECTIVES[self.method.loss].loss(context, perturbation, self.method)
            losses.append(loss)
        return torch.stack(losses).sum(), context.counts


def set_up(
    fabric: Fabric,
    method: TrainedParams,
    params: FinetuneParams,
    backbone: Backbone,
    task: Task,
    seed: int,
) -> Finetuning:
    """Make the fine-tuning of `backbone`, in place, on the classes of a task.

    BatchNorm keeps its pre-trained statistics. Raises TreeError where the trees have not the same
    leaves in the same order.
    """
    dataset, trees, template = task.dataset, task.trees, task.template
    check_forest(trees)
    start = model_key(backbone)
    original = Towers(copy.deepcopy(backbone), trees, template, fabric.autocast, fold=True)
    original = original.eval().requires_grad_(False).to(fabric.device)
    size = loss_batch(params)
    images, labels = dataset.batch(class_indices(dataset, trees[0].ids), size, seed, 0)
    with torch.no_grad():
        embeddings, _, texts = original(images[rank_slice(size)].to(fabric.device))
    norms = [float(v.float().norm(dim=-1).mean()) for v in (embeddings, texts)]
    head = make_head(method, backbone.logit_scale, *norms)
    backbone.clip.requires_grad_(False)
    towers = Towers(backbone, trees, template)
    optimizer = _optimizer(towers, method, params.weight_decay)
    module, optimizer = fabric.setup(towers.eval(), optimizer)
    max_level = max(tree.max_level for tree in trees)
    return Finetuning(
        fabric=fabric,
        module=module,
        optimizer=optimizer,
        params=params,
        steps=params.steps,
        name=f"fine-tuning {method.label}",
        key=cache_key(
            method,
            params,
            [tree.hash for tree in trees],
            template,
            seed,
            dataset.name,
            images,
            labels,
            start,
        ),
        method=method,
        seed=seed,
        task=task,
        head=head,
        original=original,
        texts=texts,
        nodes=[make_nodes(tree.parents, tree.sizes[-1], fabric.device) for tree in trees],
        perturbations=PERTURBATIONS[method.perturbation](max_level),
    )


def start_generator(device: torch.device, seed: int) -> torch.Generator:
    """Return the random numbers of an attack's start, drawn where the images are.

    Another kind of device draws other numbers.
    """
    return torch.Generator(device).manual_seed(seed)


def _optimizer(towers: Towers, method: TrainedParams, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW over the image encoder at `lr` and, with a `text_lr`, the text projection."""
    text_lr = method.text_lr if isinstance(method, HierParams) else 0.0
    towers.encoder.requires_grad_(True)
    groups = [{"params": list(towers.encoder.parameters()), "lr": method.lr}]
    if text_lr:
        towers.projection.requires_grad_(True)
        groups.append({"params": [towers.projection], "lr": text_lr})
    return torch.optim.AdamW(groups, weight_decay=weight_decay)
