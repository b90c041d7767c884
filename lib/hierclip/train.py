"""Training on Lightning Fabric: one loop, for pre-training from captions and for adversarial fine-
tuning.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn
from torch.nn import functional as F

from hierclip.attacks import frozen, pgd
from hierclip.data import Dataset, places_of, step_seed
from hierclip.distributed import agreed, mean, own, rank, world
from hierclip.errors import HierclipError
from hierclip.losses import (
    OBJECTIVES,
    PERTURBATIONS,
    Context,
    Perturbation,
    gradient_evaluations,
    make_head,
    make_nodes,
)
from hierclip.model import Backbone, Head, LearnedHead, Towers, full
from hierclip.params import (
    FinetuneParams,
    HierParams,
    OptimParams,
    PretrainParams,
    TrainedParams,
)
from hierclip.progress import cache_key, fingerprint, kept_under, progress
from hierclip.trees import Tree, check_forest, forest_levels, forest_paths, level_prompts

History = list[dict[str, float]]  # by step: the loss, and what else was logged


class TrainingError(HierclipError, RuntimeError):
    """Training that cannot go on, where it stopped and what to change."""


class Trainee(nn.Module):
    """What fine-tuning trains: the towers, and the numbers of the head that are learned."""

    def __init__(self, towers: Towers, head: LearnedHead):
        super().__init__()
        self.towers, self.numbers = towers, head

    def forward(self, images: Tensor, local: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        return self.towers(images, local)


@dataclass(frozen=True)
class Batch:
    """A step's images in every tree, with what the attack on them draws. Of several processes each
    has its rows.
    """

    images: Tensor  # (B, 3, H, W) in [0, 1]
    context: Context
    generator: torch.Generator  # of the attack's start

    @property
    def logged(self) -> dict[str, float]:
        """What the last loss logged."""
        return self.context.counts


class Finetuning:
    """The adversarial fine-tuning of `backbone`, in place, on the leaves of `trees`.

    A step is `batch`, for each pair of `perturbations` a `perturb` and a `loss`, and an optimiser
    step on the sum; `step_loss` does all but the last. BatchNorm keeps its pre-trained statistics.
    Steps are as many as `params.gradients` pays for. Raises TreeError where the trees have not the
    same leaves in the same order.
    """

    def __init__(
        self,
        fabric: Fabric,
        method: TrainedParams,
        params: FinetuneParams,
        backbone: Backbone,
        dataset: Dataset,
        trees: Sequence[Tree],
        template: str,
        seed: int,
    ):
        check_forest(trees)
        self.fabric, self.method, self.params, self.seed = fabric, method, params, seed
        self.backbone, self.dataset = backbone, dataset
        self.classes = places_of(dataset, trees[0].ids)
        self.paths = [torch.from_numpy(tree.paths) for tree in trees]
        self.nodes = [make_nodes(tree.parents, tree.sizes[-1], fabric.device) for tree in trees]
        self.size = share_of(params)
        self.rows = own(self.size)
        original_weights = _told(backbone)
        original = Towers(copy.deepcopy(backbone), trees, template, fabric.autocast, fold=True)
        self.original = original.eval().requires_grad_(False).to(fabric.device)

        first_images, first_labels = dataset.batch(
            self.classes, self.size, seed, 0
        )  # of all processes
        with torch.no_grad():
            embeddings, _, self.texts = self.original(fabric.to_device(first_images[self.rows]))
        norms = [float(v.float().norm(dim=-1).mean()) for v in (embeddings, self.texts)]
        head = make_head(method, backbone.logit_scale, *norms)
        learned = method.learned if isinstance(method, HierParams) else ()
        self.trainee = Trainee(Towers(backbone, trees, template), LearnedHead(head, learned))
        optimizer = _optimizer(self.trainee, method, params.weight_decay)
        self.module, self.optimizer = fabric.setup(self.trainee.eval(), optimizer)

        top = max(tree.top for tree in trees)
        self.perturbations = PERTURBATIONS[method.perturbation](top)
        self.steps = params.gradients // gradient_evaluations(method, top)
        hashes = [tree.hash for tree in trees]
        first = dataset.name, first_images, first_labels
        self.key = cache_key(method, params, hashes, template, seed, *first, original_weights)

    def batch(self, step: int) -> Batch:
        """Return the images of a step, `accumulate` of which make an optimiser step."""
        images, labels = self.dataset.batch(self.classes, self.size, self.seed, step, self.rows)
        images = self.fabric.to_device(images)
        paths = [self.fabric.to_device(rows[labels]) for rows in self.paths]
        context = Context(
            images, paths, self.nodes, self.module, self.original, self.trainee.numbers.head
        )
        seed = step_seed(self.seed, step) + 1  # the dataset draws by the other
        return Batch(images, context, start_generator(self.fabric.device, seed))

    def perturb(
        self, batch: Batch, attack_levels: tuple[int, ...] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return adversarial images, and a perturbation of the texts or None: PGD on the method's
        own objective.

        attack_levels: whose losses the attack raises; None: all.
        """
        objective = OBJECTIVES[self.method.loss]

        def attack_loss(x: Tensor, text_delta: Tensor | None) -> Tensor:
            return objective.attack(
                batch.context, Perturbation(x, text_delta, attack_levels), self.method
            )

        budget = {
            "eps": self.params.eps,
            **self.method.attack.model_dump(),
            "generator": batch.generator,
        }
        if isinstance(self.method, HierParams):
            budget |= {"texts": self.texts, "text_eps": self.method.text_eps}
        with frozen(self.module):
            return pgd(attack_loss, batch.images, **budget, whole=self.size, own=self.rows)

    def loss(self, batch: Batch, perturbation: Perturbation) -> Tensor:
        """Return the loss that training minimises, on a batch as it is perturbed."""
        return OBJECTIVES[self.method.loss].loss(batch.context, perturbation, self.method)

    def step_loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a step under its perturbations, and what it logged. Notebook 40 shows
        the same.
        """
        batch = self.batch(step)
        losses = []
        for attack_levels, train_levels in self.perturbations:
            x_adv, text_delta = self.perturb(batch, attack_levels)
            losses.append(self.loss(batch, Perturbation(x_adv, text_delta, train_levels)))
        return torch.stack(losses).sum(), batch.logged

    def run(
        self, step_loss: Callable[[int], tuple[Tensor, dict[str, float]]], checkpoint: Path
    ) -> History:
        """Take all steps, from `checkpoint` on where there is one; return what every step
        logged.
        """
        what = f"fine-tuning {self.method.label}"
        work = self.fabric, self.module, self.optimizer, step_loss, self.steps, self.params
        history = fit(*work, checkpoint, self.key, what)
        self.backbone.clip.eval().requires_grad_(False).cpu()
        return history

    @property
    def head(self) -> Head:
        """The head as it is now."""
        return self.trainee.numbers.fixed()


def start_generator(device: torch.device, seed: int) -> torch.Generator:
    """Give the random numbers of an attack's start, drawn where the images are: another kind of
    device draws others.
    """
    return torch.Generator(device).manual_seed(seed)


def _optimizer(trainee: Trainee, method, weight_decay: float) -> torch.optim.Optimizer:
    """The image encoder at `lr`; at `text_lr`, where the method has one, the text projection and
    the head's numbers.
    """
    trainee.requires_grad_(True)
    text_lr = method.text_lr if isinstance(method, HierParams) else 0.0
    trainee.towers.projection.requires_grad_(text_lr > 0)
    groups = [{"params": list(trainee.towers.encoder.parameters()), "lr": method.lr}]
    groups += [{"params": [trainee.towers.projection], "lr": text_lr}] if text_lr else []
    numbers = list(trainee.numbers.parameters())
    groups += [{"params": numbers, "lr": text_lr, "weight_decay": 0.0}] if numbers else []
    return torch.optim.AdamW(groups, weight_decay=weight_decay)


def pretrain(
    fabric: Fabric,
    params: PretrainParams,
    backbone: Backbone,
    dataset: Dataset,
    trees: Sequence[Tree],
    template: str,
    checkpoint: Path,
) -> History:
    """Trains `backbone` in place on captions; gives the loss of every step.

    A picture's caption names its leaf, or one of its ancestors in one of the trees, the level drawn
    evenly among all of theirs, and the loss is taken over that level's nodes. Its expectation over
    the draw is what is minimised: every level's cross-entropy, weighted with how often it is drawn.
    Raises TreeError where the trees have not the same leaves in the same order.
    """
    start, clip = _told(backbone), backbone.clip.requires_grad_(True)
    prompts = [level_prompts(trees[k], template)[level] for k, level in forest_levels(trees)]
    unique = list(dict.fromkeys(prompt for level in prompts for prompt in level))
    tokens = fabric.to_device(backbone.tokenizer(unique))
    rows = [
        fabric.to_device(torch.tensor([unique.index(prompt) for prompt in level]))
        for level in prompts
    ]
    upper = len(prompts) - 1
    share = [params.leaf_captions] + [(1 - params.leaf_captions) / max(1, upper)] * upper
    weighted = list(zip(share, rows, strict=True))
    paths = torch.from_numpy(forest_paths(trees))
    places = places_of(dataset, trees[0].ids)
    mean, std = (
        fabric.to_device(torch.tensor(v).view(3, 1, 1)) for v in (backbone.mean, backbone.std)
    )
    optimizer = torch.optim.AdamW(_decay_groups(clip, params.weight_decay), lr=params.lr)
    if world() > 1 and any(isinstance(part, nn.BatchNorm2d) for part in clip.modules()):
        if fabric.device.type != "cuda":
            raise TrainingError(
                "pre-training: BatchNorm is not shared between CPU processes; "
                "set machine.devices: 1"
            )
        nn.SyncBatchNorm.convert_sync_batchnorm(clip)  # in place
    module, optimizer = fabric.setup(clip.train(), optimizer)
    size = share_of(params)
    mine = own(size)

    def loss_at(place: int) -> tuple[Tensor, dict[str, float]]:
        images, labels = dataset.batch(places, size, params.seed, place, mine)
        images, nodes = fabric.to_device(images), fabric.to_device(paths[labels[mine]])
        image, text, scale = (full(part) for part in module((images - mean) / std, tokens)[:3])
        logits = scale * image @ text.T
        terms = [
            w * F.cross_entropy(logits[:, row], nodes[:, l]) for l, (w, row) in enumerate(weighted)
        ]
        return torch.stack(terms).sum(), {}

    def keep_scale() -> None:
        with torch.no_grad():
            clip.logit_scale.clamp_(max=math.log(100))

    shown = dataset.batch(places, size, params.seed, 0)
    config = cache_key(params, [tree.hash for tree in trees], template, dataset.name, *shown, start)
    steps = params.steps
    history = fit(
        fabric,
        module,
        optimizer,
        loss_at,
        steps,
        params,
        checkpoint,
        config,
        "pre-training",
        keep_scale,
    )
    clip.eval().requires_grad_(False).cpu()
    return history


def _told(backbone: Backbone) -> str:
    """Tell a model from another: by how it is built, what its input is scaled with, and both
    towers' weights.
    """
    built = sorted(backbone.config.items(), key=lambda entry: entry[0])
    return fingerprint(built, backbone.mean, backbone.std, *backbone.clip.state_dict().values())


def _decay_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay on matrices and filters, none on gains and biases."""
    weights = [w for w in module.parameters() if w.ndim > 1]
    others = [w for w in module.parameters() if w.ndim <= 1]
    return [
        {"params": weights, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def fit(
    fabric: Fabric,
    module: _FabricModule,
    optimizer: torch.optim.Optimizer,
    loss_at: Callable[[int], tuple[Tensor, dict[str, float]]],
    steps: int,
    params: OptimParams,
    checkpoint: Path,
    config: str,
    what: str,
    after: Callable[[], None] = lambda: None,
) -> History:
    """Runs `steps` optimiser steps under `rate_share`; gives every step's loss and what was logged
    with it.

    loss_at: the loss on the pictures of a place, `accumulate` of which make a step, and figures to
    log: a function of the place alone, so that a run that was stopped goes on from `checkpoint` as
    if it had not been. A checkpoint of another `config` or of other starting weights is left
    unread, and so, with a warning, is one that is damaged. The file goes when training is through.
    Raises TrainingError where there is no step to take, and where a loss is no number.
    """
    if steps < 1:
        raise TrainingError(
            f"{what}: its gradients do not pay for one step; raise finetune.gradients"
        )
    rate = optimizer.param_groups[0]["lr"]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_share(step, steps, params.warmup)
    )
    precision = fabric.strategy.precision.precision
    key = cache_key(config, precision, steps, *module.state_dict().values())
    state = {
        "module": module,
        "optimizer": optimizer,
        "schedule": schedule,
        "history": [],
        "key": key,
    }
    read = partial(torch.load, map_location="cpu", weights_only=True)
    if agreed(rank() == 0 and kept_under(key, checkpoint, read, "training") is not None):
        fabric.load(checkpoint, state)
    history: History = state["history"]
    left = range(len(history), steps)
    for step in progress(
        left, what, done=len(history), note=lambda: f"loss {history[-1]['loss']:.3f}"
    ):
        optimizer.zero_grad()
        found = []
        for part in range(params.accumulate):
            torch.manual_seed(
                params.accumulate * step + part
            )  # what a model draws itself, such as dropped patches
            with fabric.no_backward_sync(module, enabled=part < params.accumulate - 1):
                loss, logged = loss_at(params.accumulate * step + part)
                fabric.backward(loss / params.accumulate)
                found.append({"loss": mean(loss.detach()).item()} | logged)
        history.append({key: sum(each[key] for each in found) / len(found) for key in found[0]})
        if not math.isfinite(history[-1]["loss"]):
            raise TrainingError(
                f"{what}: the loss is {history[-1]['loss']} at step {step}; "
                f"lower the learning rate (now {rate:g})"
            )
        optimizer.step()
        schedule.step()
        after()
        if (step + 1) % params.checkpoint_every == 0 and step + 1 < steps:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            fabric.save(checkpoint.with_suffix(".part"), state)
            if rank() == 0:
                checkpoint.with_suffix(".part").replace(checkpoint)
    fabric.barrier()
    if rank() == 0:
        checkpoint.unlink(missing_ok=True)
    return history


def share_of(params: OptimParams) -> int:
    """Pictures that a loss sees. Raises TrainingError where a step's cannot be parted and shared
    out evenly.
    """
    if params.batch % (params.accumulate * world()):
        among = f"{params.accumulate} parts and {world()} processes"
        raise TrainingError(f"a batch of {params.batch} cannot be shared out evenly among {among}")
    return params.batch // params.accumulate


def rate_share(step: int, steps: int, warmup: float) -> float:
    """The share of the learning rate at a step: up along a line for the first `warmup` of them,
    down along a cosine.
    """
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
