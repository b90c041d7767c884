"""Training on Lightning Fabric: one loop, for pre-training from captions and for adversarial fine-tuning."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from hierclip.attacks import frozen, pgd
from hierclip.data import Dataset, places_of, step_seed
from hierclip.losses import Method
from hierclip.model import Backbone, Head, ImageEncoder, text_features
from hierclip.params import FinetuneParams, ModelParams, OptimParams, PretrainParams
from hierclip.progress import progress, work_key
from hierclip.trees import Tree, level_prompts


class TrainingError(RuntimeError):
    """Training that cannot go on, where it stopped and what to change."""


def make_fabric(params: ModelParams) -> Fabric:
    """One device, in the precision of the parameters."""
    fabric = Fabric(accelerator=params.accelerator, devices=1, precision=params.precision)
    fabric.launch()
    return fabric


class Towers(nn.Module):
    """Image encoder and text projection over frozen text features: images to embeddings of both.

    forward: (B, 3, H, W) in [0, 1] to image embeddings (B, D) and, for every level, text embeddings (K_l, D).
    """

    def __init__(self, backbone: Backbone, features: list[Tensor]):
        """features: a level's text features (K_l, width), from below the projection."""
        super().__init__()
        self.encoder = ImageEncoder(backbone)
        self.projection = backbone.text_projection
        self.features: Tensor
        self.sizes = [len(level) for level in features]
        self.register_buffer("features", torch.cat(features), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.encoder(images), (self.features @ self.projection).split(self.sizes)


def finetune(
    fabric: Fabric,
    method: Method,
    params: FinetuneParams,
    backbone: Backbone,
    dataset: Dataset,
    tree: Tree,
    template: str,
    seed: int,
    checkpoint: Path,
) -> tuple[Head, list[float]]:
    """Fine-tunes `backbone` in place on the tree's leaves; gives the head and the loss of every step.

    One universal perturbation an image, found by PGD on the method's own loss, is what each step learns from.
    BatchNorm keeps its pre-trained statistics.
    """
    head = method.head(params, float(backbone.clip.logit_scale.detach().exp()))
    if method.loss is None:
        return head, []
    with torch.no_grad():
        towers = Towers(backbone, [text_features(backbone, prompts) for prompts in level_prompts(tree, template)])
    image_lr, text_lr = method.rates(params)
    towers.requires_grad_(True)
    towers.projection.requires_grad_(text_lr > 0)
    groups = [{"params": list(towers.encoder.parameters()), "lr": image_lr}]
    groups += [{"params": [towers.projection], "lr": text_lr}] if text_lr else []
    optimizer = torch.optim.AdamW(groups, weight_decay=params.weight_decay)
    module, optimizer = fabric.setup(towers.eval(), optimizer)
    paths = torch.from_numpy(tree.paths)
    places = places_of(dataset, tree.ids)

    def loss_at(step: int) -> Tensor:
        images, labels = dataset.batch(places, params.batch, seed, step)
        images, rows = fabric.to_device(images), fabric.to_device(paths[labels])
        generator = torch.Generator().manual_seed(step_seed(seed, step) + 1)  # not the pictures' own

        def objective(x: Tensor) -> Tensor:
            embeddings, texts = module(x)
            points = [head.text_points(text, level, tree.top) for level, text in enumerate(texts)]
            return method.loss(head, embeddings, points, rows)  # pyright: ignore

        with frozen(module):
            budget = params.attack
            moved = pgd(objective, images, eps=budget.eps, step=budget.step, steps=budget.steps, generator=generator)
        return objective(moved)

    config = f"{method.label} {params.model_dump_json()} {tree.hash} {template} {seed}"
    losses = fit(fabric, module, optimizer, loss_at, params, checkpoint, config, f"fine-tuning {method.label}")
    backbone.clip.eval().requires_grad_(False).cpu()
    return head, losses


def pretrain(
    fabric: Fabric,
    params: PretrainParams,
    backbone: Backbone,
    dataset: Dataset,
    tree: Tree,
    template: str,
    checkpoint: Path,
) -> list[float]:
    """Trains `backbone` in place on captions; gives the loss of every step.

    A picture's caption names its leaf, or one of its ancestors with the level drawn evenly, and the loss is
    taken over that level's nodes. Its expectation over the draw is what is minimised: every level's
    cross-entropy, weighted with how often it is drawn.
    """
    clip = backbone.clip.requires_grad_(True)
    prompts = level_prompts(tree, template)
    unique = list(dict.fromkeys(prompt for level in prompts for prompt in level))
    tokens = fabric.to_device(backbone.tokenizer(unique))
    rows = [fabric.to_device(torch.tensor([unique.index(prompt) for prompt in level])) for level in prompts]
    share = [params.leaf_captions] + [(1 - params.leaf_captions) / tree.top] * tree.top
    weighted = list(zip(share, rows, strict=True))
    paths = torch.from_numpy(tree.paths)
    places = places_of(dataset, tree.ids)
    mean, std = (fabric.to_device(torch.tensor(v).view(3, 1, 1)) for v in (backbone.mean, backbone.std))
    optimizer = torch.optim.AdamW(_decay_groups(clip, params.weight_decay), lr=params.lr)
    module, optimizer = fabric.setup(clip.train(), optimizer)

    def loss_at(step: int) -> Tensor:
        images, labels = dataset.batch(places, params.batch, params.seed, step)
        images, nodes = fabric.to_device(images), fabric.to_device(paths[labels])
        image, text, scale = module((images - mean) / std, tokens)[:3]
        logits = scale * image @ text.T
        terms = [w * F.cross_entropy(logits[:, row], nodes[:, l]) for l, (w, row) in enumerate(weighted)]
        return torch.stack(terms).sum()

    def keep_scale() -> None:
        with torch.no_grad():
            clip.logit_scale.clamp_(max=math.log(100))

    config = f"pretrain {params.model_dump_json()} {tree.hash} {template}"
    losses = fit(fabric, module, optimizer, loss_at, params, checkpoint, config, "pre-training", keep_scale)
    clip.eval().requires_grad_(False).cpu()
    return losses


def _decay_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay on matrices and filters, none on gains and biases."""
    weights = [w for w in module.parameters() if w.ndim > 1]
    others = [w for w in module.parameters() if w.ndim <= 1]
    return [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def fit(
    fabric: Fabric,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_at: Callable[[int], Tensor],
    params: OptimParams,
    checkpoint: Path,
    config: str,
    what: str,
    after: Callable[[], None] = lambda: None,
) -> list[float]:
    """Runs `params.steps` optimiser steps under `rate_share`; gives every step's loss.

    loss_at: the loss of a step, a function of the step alone, so that a run that was stopped goes on from
    `checkpoint` as if it had not been. A checkpoint of another `config`, of other starting weights or of another
    version of this code is left unread. The file goes when training is through.
    Raises TrainingError where a loss is no number.
    """
    rate = optimizer.param_groups[0]["lr"]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_share(step, params.steps, params.warmup))
    key = work_key(config, *module.state_dict().values())
    state = {"module": module, "optimizer": optimizer, "schedule": schedule, "losses": [], "key": key}
    if checkpoint.exists() and torch.load(checkpoint, weights_only=True)["key"] == key:
        fabric.load(checkpoint, state)
    losses: list[float] = state["losses"]
    steps = range(len(losses), params.steps)
    for step in progress(steps, what, done=len(losses), note=lambda: f"loss {losses[-1]:.3f}"):
        loss = loss_at(step)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise TrainingError(
                f"{what}: the loss is {losses[-1]} at step {step}; lower the learning rate (now {rate:g})"
            )
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        schedule.step()
        after()
        if (step + 1) % params.checkpoint_every == 0 and step + 1 < params.steps:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            fabric.save(checkpoint.with_suffix(".part"), state)
            checkpoint.with_suffix(".part").replace(checkpoint)
    checkpoint.unlink(missing_ok=True)
    return losses


def rate_share(step: int, steps: int, warmup: float) -> float:
    """The share of the learning rate at a step: up along a line for the first `warmup` of them, down along a cosine."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
