"""The library on a device against the CPU in float64: on a GPU where there is one, and on the CPU
in float32 always.

Every comparison is a function of the device, so the tests themselves run without a GPU. Tolerances
leave a GPU at least ten times what the CPU's float32 differs by.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import distributed as dist, multiprocessing, nn
from torch.nn import functional as F

from hierclip import hyperbolic, models, training
from hierclip.attacks import ATTACKS, Budget, attack
from hierclip.config import FinetuneParams, load_params
from hierclip.data import ImageSet
from hierclip.data.tasks import Task
from hierclip.distributed import make_fabric, mean
from hierclip.evaluation import LevelMatrix
from hierclip.losses import make_head
from hierclip.models import Classifier, EuclideanHead
from hierclip.trees import Tree, tree_from_graph
from tests.conftest import LEAVES, ROOT, Stripes, finetune, tiny_graph

PARAMS = load_params(ROOT / "params.yaml")
TEMPLATE = "a picture of a {}"
BATCH = 8
EPS = 6 / 255  # at which attacks succeed on some images of the small classifier
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
each_device = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, no_gpu])]
)


@pytest.fixture(autouse=True)
def float32_without_tf32():
    settings = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [setting.allow_tf32 for setting in settings]
    for setting in settings:
        setting.allow_tf32 = False
    yield
    for setting, allowed in zip(settings, before, strict=True):
        setting.allow_tf32 = allowed


def tiny_tree() -> Tree:
    return tree_from_graph(tiny_graph(), "tiny", LEAVES)


def normal(*shape: int, seed: int) -> torch.Tensor:
    """Draw float32 normal numbers on the CPU: the same for every device and dtype."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return |found - expected| / |expected|, in float64 on the CPU."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm())


# The Poincare ball


CURVATURE = 1.3
GROUPS = torch.tensor([0, 1, 2, 0, 1, 2])


def place(v):
    return hyperbolic.expmap0(v, CURVATURE)


OPERATIONS = {
    "expmap0": lambda u, v: place(u),
    "pairwise_distance": lambda u, v: hyperbolic.pairwise_distance(place(u), place(v), CURVATURE),
    "einstein_midpoints": lambda u, v: hyperbolic.einstein_midpoints(
        hyperbolic.to_klein_sum(place(u), CURVATURE), GROUPS.to(u.device), 3
    ),
    "lift_tangents": lambda u, v: torch.cat(hyperbolic.lift_tangents(u, CURVATURE), dim=1),
    "to_klein_sum": lambda u, v: hyperbolic.to_klein_sum(place(u), CURVATURE),
    "from_klein_sum": lambda u, v: hyperbolic.from_klein_sum(
        hyperbolic.to_klein_sum(place(u), CURVATURE) + hyperbolic.to_klein_sum(place(v), CURVATURE),
        1.3,
    ),
}


def with_gradients(operation, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return the values of an operation on two sets of tangent vectors (6, 5), and its gradients in
    both.
    """
    lengths = torch.tensor([1e-3, 0.1, 0.5, 1.0, 2.0, 3.0])[
        :, None
    ]  # from near the centre to near the rim
    tangents = [lengths * F.normalize(normal(6, 5, seed=seed), dim=1) for seed in (0, 1)]
    u, v = [tangent.to(device, dtype).requires_grad_(True) for tangent in tangents]
    values = operation(u, v)
    weights = normal(*values.shape, seed=2).to(values)
    gradients = torch.autograd.grad((weights * values).sum(), (u, v), allow_unused=True)
    return [values, *(gradient for gradient in gradients if gradient is not None)]


@each_device
@pytest.mark.parametrize("name", OPERATIONS)
def test_hyperbolic_operations_and_their_gradients_agree(name, device):
    expected = with_gradients(OPERATIONS[name], "cpu", torch.float64)
    found = with_gradients(OPERATIONS[name], device, torch.float32)
    assert all(part.device.type == device for part in found)
    assert max(relative_error(f, e) for f, e in zip(found, expected, strict=True)) < 4e-4


@each_device
def test_vectors_beyond_the_rim_stop_at_it(device):
    long = (torch.tensor([[1.0], [50.0]]) * F.normalize(normal(2, 5, seed=0), dim=1)).to(device)
    norms = CURVATURE**0.5 * place(long).norm(dim=1)
    assert hyperbolic.is_clipped(long, CURVATURE).tolist() == [False, True]
    assert norms[1].item() == pytest.approx(1 - hyperbolic.BALL_EPS[torch.float32], abs=1e-6)


# Heads


HIER = PARAMS.method["hier"]
HEADS = {
    "cosine": make_head(PARAMS.method["tecoa"], 10.0, 4.0, 4.0),
    "poincare, free norms": make_head(HIER, 10.0, 4.0, 4.0),
    "poincare, fixed norms": make_head(HIER.model_copy(update={"norms": "fixed"}), 10.0, 4.0, 4.0),
    "euclidean": EuclideanHead(1.0, 2.0, 2.0, 1.0, 7.0),
}


def logits_and_gradient(head, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return the logits (6, K_l) of every level from embeddings (6, 16), and the gradient of their
    squares' sum.
    """
    tree = tiny_tree()
    texts = [normal(size, 16, seed=size).to(device, dtype) for size in tree.sizes]
    points = [head.text_points(text, level, tree.max_level) for level, text in enumerate(texts)]
    classifier = Classifier(nn.Identity(), head, points).to(device)
    embeddings = normal(6, 16, seed=0).to(device, dtype).requires_grad_(True)
    logits = classifier(embeddings)
    (gradient,) = torch.autograd.grad(sum(level.square().sum() for level in logits), embeddings)
    return [*logits, gradient]


@each_device
@pytest.mark.parametrize("name", HEADS)
def test_logits_of_every_head_and_their_gradients_agree(name, device):
    expected = logits_and_gradient(HEADS[name], "cpu", torch.float64)
    found = logits_and_gradient(HEADS[name], device, torch.float32)
    assert max(relative_error(f, e) for f, e in zip(found, expected, strict=True)) < 4e-5


# Attacks of evaluation


def small_encoder() -> nn.Module:
    """Make a smooth convolutional encoder with random weights: (N, 3, 16, 16) to (N, 12)."""
    layers = (
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
    )
    encoder = nn.Sequential(*layers, nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 12))
    with torch.no_grad():
        for seed, weight in enumerate(encoder.parameters()):
            weight.copy_(normal(*weight.shape, seed=seed) / math.sqrt(max(1, weight[0].numel())))
    return encoder


def class_patterns() -> torch.Tensor:
    """Draw a image for each leaf: (5, 3, 16, 16) in [0, 1]."""
    return torch.rand(len(LEAVES), 3, 16, 16, generator=torch.Generator().manual_seed(0))


def noisy_pictures(count: int) -> ImageSet:
    """Make images of the leaves in turn: their patterns, and noise."""
    labels = torch.arange(count) % len(LEAVES)
    images = class_patterns()[labels] + 0.05 * normal(count, 3, 16, 16, seed=1)
    return ImageSet((255 * images.clamp(0, 1)).round().byte(), labels)


def small_classifier(device: str, dtype: torch.dtype) -> Classifier:
    """Make a classifier over the tiny tree's levels whose leaf texts are the embeddings of the
    leaves' patterns.
    """
    tree, head, encoder = tiny_tree(), HEADS["cosine"], small_encoder().double()
    with torch.no_grad():
        encoder[-1].bias -= encoder(class_patterns().double()).mean(
            0
        )  # or all embeddings have nearly one direction
        texts = encoder(class_patterns().double())
    points = []
    for level, size in enumerate(tree.sizes):
        nodes = torch.from_numpy(tree.paths[:, level])
        sums = texts.new_zeros(size, texts.shape[1]).index_add(0, nodes, texts)
        points.append(head.text_points(sums, level, tree.max_level).to(dtype))
    return Classifier(Cast(encoder.to(dtype), dtype), head, points).to(device).eval()


class Cast(nn.Module):
    """Compute an encoder in its own dtype, whatever the pixels' is."""

    def __init__(self, encoder: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.encoder, self.dtype = encoder, dtype

    def forward(self, images):
        return self.encoder(images.to(self.dtype))


def attacked(name: str, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Attack the leaves of twelve images: perturbed images (12, 3, 16, 16), and their margins
    (12,).
    """
    images, classifier = noisy_pictures(12), small_classifier(device, dtype)
    truth = F.one_hot(images.labels, len(LEAVES)).bool().to(device)
    eps = 4 * EPS if name == "square" else EPS  # random search needs more to succeed on some images
    budget = Budget(eps=eps, step=eps / 4, steps=8, restarts=1, suite=(name,), queries=60)
    images = images.floats().to(device, dtype)
    return attack(lambda x: classifier(x, [0]), images, [truth], budget, 0)


@each_device
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_agrees(name, device):
    expected_images, expected = attacked(name, "cpu", torch.float64)
    images, margins = attacked(name, device, torch.float32)
    assert margins.device.type == images.device.type == device
    assert 0 < int((expected > 0).sum()) < len(expected)  # some are misclassified, some are not
    assert relative_error(margins, expected) < 1e-3
    same_pixels = (images.cpu().double() - expected_images).abs() < 1e-5
    assert same_pixels.double().mean() > 0.99


# A step of fine-tuning


@contextmanager
def computing_in(dtype: torch.dtype) -> Iterator[None]:
    """Make a dtype the default inside, but draw random numbers in float32: the same ones for every
    dtype.
    """
    draws = {name: partial(getattr(torch, name), dtype=torch.float32) for name in ("rand", "randn")}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with patch.multiple(torch, **draws):
            yield
    finally:
        torch.set_default_dtype(before)


def fabric_on(device: str, precision: str = "32-true") -> Fabric:
    """Make a Fabric on one device."""
    changes = {"precision": precision, "accelerator": "gpu" if device == "cuda" else "cpu"}
    return make_fabric(PARAMS.model.model_copy(update=changes))


def two_steps() -> FinetuneParams:
    """Take the settings of fine-tuning for two steps of a small batch."""
    return PARAMS.finetune.model_copy(update={"batch": BATCH, "steps": 2})


def same_starts():
    """Draw an attack's random start on the CPU, because each kind of device draws other numbers."""
    return patch.object(
        training, "start_generator", lambda _, seed: torch.Generator().manual_seed(seed)
    )


def step_gradients(name: str, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Take the gradients of a step's loss on attacked images; this process's share of them where
    there are several.

    Gives the loss, and the image encoder's gradient as one vector.
    """
    method, backbone = PARAMS.method[name], models.create(PARAMS.model, seed=0, size=32)
    backbone.clip.to(dtype)
    with computing_in(dtype), same_starts():
        task = Task("seen", Stripes(), [tiny_tree()], TEMPLATE)
        fabric = fabric_on(device)
        work = training.set_up(fabric, method, two_steps(), backbone, task, 0)
        loss, _ = work.step_loss(0)
        fabric.backward(loss)
    weights = work.module.encoder.parameters()
    return {
        "loss": mean(loss.detach()),
        "encoder": torch.cat([mean(weight.grad).flatten() for weight in weights]),
    }


@each_device
@pytest.mark.parametrize("name", ["tecoa", "hier"])
def test_a_training_step_agrees(name, device):
    expected, found = (
        step_gradients(name, "cpu", torch.float64),
        step_gradients(name, device, torch.float32),
    )
    errors = {part: relative_error(found[part], expected[part]) for part in expected}
    assert errors["loss"] < 1e-4
    assert errors["encoder"] < 5e-3  # signs of tiny pixel gradients differ, so a few pixels do
    assert found["encoder"].dtype == torch.float32 and found["encoder"].device.type == device


WATCHED = ("lift_tangents", "einstein_midpoints", "distance_of_factors")


def finetuned(
    name: str, device: str, precision: str, folder: Path
) -> tuple[list[float], set[torch.dtype], set]:
    """Fine-tune for two steps through Fabric: the losses, and the dtypes of the first convolution's
    and ball's values.

    The ball's values are what WATCHED is given and gives. Every device starts its attacks where the
    CPU does.
    """
    stem, ball = set(), set()

    def watched(operation):
        def watch(*arguments):
            values = operation(*arguments)
            given = values if isinstance(values, tuple) else (values,)
            tensors = [part for part in (*arguments, *given) if isinstance(part, torch.Tensor)]
            ball.update(part.dtype for part in tensors if part.is_floating_point())
            return values

        return watch

    method = PARAMS.method[name]
    backbone = models.create(PARAMS.model, seed=0, size=32)
    backbone.clip.visual.conv1.register_forward_hook(lambda *seen: stem.add(seen[2].dtype))
    watches = {part: watched(getattr(hyperbolic, part)) for part in WATCHED}
    with patch.multiple(hyperbolic, **watches), same_starts():
        inputs = (
            two_steps(),
            backbone,
            Stripes(),
            [tiny_tree()],
            TEMPLATE,
            0,
            folder / "checkpoint.ckpt",
        )
        _, history = finetune(fabric_on(device, precision), method, *inputs)
    return [step["loss"] for step in history], stem, ball


@each_device
@pytest.mark.parametrize("name", ["tecoa", "hier"])
def test_bf16_encoders_leave_the_ball_in_float32(name, device, tmp_path):
    expected, _, _ = finetuned(name, "cpu", "32-true", tmp_path)
    losses, stem, ball = finetuned(name, device, "bf16-mixed", tmp_path)
    assert stem == {torch.bfloat16}
    assert ball == (
        {torch.float32, torch.float64} if name == "hier" else set()
    )  # midpoints are in float64
    assert np.isfinite(losses).all()
    assert losses[0] == pytest.approx(expected[0], rel=2e-2)


@each_device
@pytest.mark.parametrize("name", ["tecoa", "hier"])
def test_finetuning_agrees(name, device, tmp_path):
    """As the step does, through Fabric; the CPU's float32 is the reference, since Fabric computes
    in one dtype.
    """
    expected, _, _ = finetuned(name, "cpu", "32-true", tmp_path)
    losses, stem, ball = finetuned(name, device, "32-true", tmp_path)
    assert stem == {torch.float32} and ball <= {torch.float32, torch.float64}
    assert losses[0] == pytest.approx(expected[0], rel=1e-3)


# The level matrix


def matrix_outcomes(device: str, dtype: torch.dtype):
    """Attack every level of 30 images in the tiny tree."""
    budget = Budget(eps=EPS, step=EPS / 4, steps=5, restarts=1, suite=("apgd_ce",), queries=1)
    paths = torch.from_numpy(tiny_tree().paths)
    classifier, images = small_classifier(device, dtype), noisy_pictures(30)
    return LevelMatrix(classifier, images, paths, budget, seed=0, batch=10).outcomes()


@each_device
def test_the_level_matrix_agrees(device):
    expected, found = matrix_outcomes("cpu", torch.float64), matrix_outcomes(device, torch.float32)
    assert found.conditions.tolist() == expected.conditions.tolist()
    same = found.nodes == expected.nodes
    assert 0.2 < expected.robust["direct"].mean() < 0.98  # attacks succeed on some images
    assert same[0].all() and same.mean() > 0.98
    np.testing.assert_allclose(found.confidence[same], expected.confidence[same], atol=1e-3)


# Two processes on one device


def half_step(rank: int, device: str, folder: str) -> None:
    """Take half of a step's gradients in a process of its own; the first process saves what both
    agree on.
    """
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    if device == "cuda":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # a machine with a card may have no other network
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    gradients = step_gradients("hier", device, torch.float32)
    if rank == 0:
        torch.save(
            {part: values.cpu() for part, values in gradients.items()}, f"{folder}/gradients.pt"
        )
    dist.destroy_process_group()


@each_device
def test_two_processes_on_one_device_take_the_step_of_one(device, tmp_path):
    """Over gloo: NCCL refuses two processes on one GPU."""
    try:
        multiprocessing.spawn(half_step, (device, str(tmp_path)), nprocs=2)
    except multiprocessing.ProcessRaisedException as error:
        if "busy or unavailable" in str(error):
            pytest.skip("this GPU takes one process at a time")
        raise
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    expected = step_gradients("hier", "cpu", torch.float64)
    errors = {part: relative_error(found[part], expected[part]) for part in expected}
    assert errors["loss"] < 1e-4
    assert errors["encoder"] < 5e-3
