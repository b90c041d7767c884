"""Measure the library on one GPU without a network: its tests, the speed of fine-tuning and
attacks, and what precision changes. From the project's folder:

    PYTHONPATH=lib python benchmarks/gpu.py  # on a card, at most 8 minutes
    PYTHONPATH=lib python benchmarks/gpu.py --device cpu --small --out small.json  # a trial

Prints one table and the kernels that an attack's time goes to, and writes both to
benchmarks/results/CARD-NAME.json. Exit code 1 where a part failed, 0 where there is no GPU.

What it imports, beside torch, torchvision, timm, lightning_fabric (which pytorch-lightning brings),
safetensors, numpy, scipy, pandas, networkx, pillow, pyyaml, regex, tqdm, huggingface-hub, pytest
and hypothesis: open_clip_torch, ftfy, wcwidth, pydantic, pydantic-core, annotated-types,
typing-inspection, nltk, defusedxml, and typing-extensions as new as pydantic asks for. A folder of
their unpacked wheels will do, as in PYTHONPATH=lib:wheels; hierclip needs no install.

Weights and images are random: speed depends on neither. A step of fine-tuning is the library's own
(`training.set_up`); beside it TeCoA's released way
(github.com/cvlab-columbia/ZSRobust4FoundationModel): float16 autocast, gradients of all weights in
every pass of the attack, prompts encoded in every pass. cudnn.benchmark is on for the released way,
as it is there, and off for ours, as the library leaves it. Times are medians over rounds in which
the ways take turns, after warm-up.
"""

import argparse
import copy
import gc
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from math import inf
from pathlib import Path
from time import monotonic, perf_counter

import torch
import yaml
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from hierclip import models, training
from hierclip.attacks import Budget, attack
from hierclip.config import Params, load_params
from hierclip.data import ImageSet, Leaf
from hierclip.data.sources import imagenet_names
from hierclip.data.tasks import Task
from hierclip.distributed import make_fabric
from hierclip.evaluation import LevelMatrix
from hierclip.evaluation.records import git_revision, hardware, versions
from hierclip.losses import make_head
from hierclip.models import Backbone, Classifier, Model
from hierclip.trees import Tree, level_prompts, open_wordnet, wordnet_tree

ROOT = Path(__file__).resolve().parents[1]
GOAL = 2.0  # times the images a second of TeCoA's released way
LR = 1e-7  # random weights must not diverge; speed does not depend on it
# Budgets to choose from: some random weights are easily fooled.
EPS = (1 / 16 / 255, 1 / 4 / 255, 1 / 255, 4 / 255)
RESERVE = 15  # seconds at the end, for a measurement that takes longer than expected


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    architectures: tuple[str, ...]
    pixels: int
    every_leaf: int  # every k-th leaf of ImageNet's 1,000
    batch: int
    attack_steps: int
    timed_steps: int  # of a way in a round
    rounds: int  # at most


FULL = Sizes(("ViT-B-32", "RN50"), 224, 1, batch=256, attack_steps=10, timed_steps=3, rounds=3)
SMALL = Sizes(("hierclip-tiny",), 32, 100, batch=8, attack_steps=2, timed_steps=1, rounds=1)


@dataclass(frozen=True)
class Case:
    """What every part is given."""

    device: torch.device
    sizes: Sizes
    params: Params
    tree: Tree
    end: float  # of the whole run, by `monotonic`

    @property
    def small(self) -> bool:
        return self.sizes is SMALL


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    part: str
    model: str
    what: str
    batch: int | None = None
    images_per_second: float | None = None
    ratio: float | None = None  # what of is in `note`
    peak_gib: float | None = None
    note: str = ""
    error: str = ""
    detail: dict = field(default_factory=dict)  # for the JSON alone


def skipped(part: str, model: str, what: str) -> Row:
    """Make the row of what there was no time for."""
    return Row(part, model, what, note="skipped: no time left")


@dataclass(frozen=True)
class Part:
    """A part of the run: its rows, made one after the other until a time, and the seconds that it
    may take.
    """

    rows: Callable[[Case, float], Iterator[Row]]
    seconds: float


# Precision, time and memory


@dataclass(frozen=True)
class Arithmetic:
    """How float32 products are computed, and Fabric's name for what the encoders compute in."""

    tf32: bool
    precision: str


ARITHMETIC = {
    "float32": Arithmetic(False, "32-true"),
    "TF32": Arithmetic(True, "32-true"),
    "bf16": Arithmetic(False, "bf16-mixed"),
}


@contextmanager
def computing(tf32: bool, benchmark: bool = False) -> Iterator[None]:
    """Allow TF32 or not, and set cudnn.benchmark, inside."""
    before = (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
    )
    set_backends(tf32, tf32, benchmark)
    try:
        yield
    finally:
        set_backends(*before)


def set_backends(matmul_tf32: bool, cudnn_tf32: bool, benchmark: bool) -> None:
    """Set the global switches of torch's backends."""
    torch.backends.cuda.matmul.allow_tf32 = matmul_tf32
    torch.backends.cudnn.allow_tf32 = cudnn_tf32
    torch.backends.cudnn.benchmark = benchmark


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_call(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a call takes, with all that it starts on the device."""
    synchronize(device)
    start = perf_counter()
    call()
    synchronize(device)
    return perf_counter() - start


def forget_peak(device: torch.device) -> None:
    """Free unused memory and start to measure the peak anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float | None:
    """Return the peak of allocated device memory, None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def one_line(error: BaseException) -> str:
    """Return an error's kind and text on one line of at most 200 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


# Models and images


def make_backbone(case: Case, architecture: str) -> Backbone:
    """Make an architecture with random weights on the device."""
    settings = case.params.model.model_copy(
        update={"architecture": architecture, "pretrained": None}
    )
    backbone = models.create(settings, seed=0, size=case.sizes.pixels)
    backbone.clip.to(case.device)
    return backbone


def random_images(case: Case, count: int) -> Tensor:
    """Draw images (count, 3, H, W) in [0, 1] on the device."""
    images = torch.rand(
        count, 3, case.sizes.pixels, case.sizes.pixels, generator=torch.Generator().manual_seed(0)
    )
    return images.to(case.device, memory_format=torch.channels_last)


def random_labels(case: Case, count: int) -> Tensor:
    """Draw leaves (count,) on the CPU."""
    return torch.randint(case.tree.sizes[0], (count,), generator=torch.Generator().manual_seed(1))


class RandomImages:
    """A dataset of one random batch, which is on the device already."""

    name = "random"
    credit = ""

    def __init__(self, case: Case, batch: int):
        self.leaves = tuple(Leaf(node.id, node.name, "seen") for node in case.tree.leaves)
        self.pixels, self.labels = random_images(case, batch), random_labels(case, batch)

    def batch(
        self, places: Tensor, size: int, seed: int, step: int, rows: slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        return self.pixels[rows], self.labels

    def images(self, split: str) -> ImageSet:
        raise NotImplementedError("only batches to train on")


class HalfEncoder(nn.Module):
    """An image encoder that computes in bfloat16; its embeddings come out in float32."""

    def __init__(self, encoder: nn.Module, device: torch.device):
        super().__init__()
        self.encoder, self.kind = encoder, device.type

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(self.kind, torch.bfloat16):
            embeddings = self.encoder(images)
        return embeddings.float()


def make_level_classifier(case: Case, backbone: Backbone) -> Classifier:
    """Make a classifier in the Poincare ball over all levels of the tree, its weights frozen."""
    method = case.params.method["hier"].model_copy(update={"norms": "fixed"})
    head = make_head(method, 1.0, 1.0, 1.0)
    classifier = Model(backbone, head, "").classifier(case.tree, case.params.model.template)
    return classifier.to(case.device).eval().requires_grad_(False)


def computing_in(classifier: Classifier, arithmetic: Arithmetic) -> Classifier:
    """Return the classifier with its encoder in an arithmetic's precision."""
    if arithmetic.precision == "32-true":
        return classifier
    encoder = HalfEncoder(classifier.encoder, classifier.device)
    return Classifier(encoder, classifier.head, classifier.text_points).eval()


# Part 1: tests


def run_tests(case: Case, until: float) -> Iterator[Row]:
    """Run the tests that need a GPU; on a CPU, in a trial, the quickest of their stand-ins."""
    chosen = (
        ["-m", "cuda"] if case.device.type == "cuda" else ["-m", "not cuda", "-k", "hyperbolic"]
    )
    # A package's deprecation must not cost a run on a card: warnings are no errors here.
    options = ["-W", "default", "-p", "no:cacheprovider", *chosen]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "lib"), os.environ.get("PYTHONPATH", "")])
    }
    command = [sys.executable, "-m", "pytest", *options, "tests/test_cuda.py"]
    limit = max(1.0, until - monotonic())
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, encoding="utf8", timeout=limit
    )
    yield tests_row(done.returncode, done.stdout, done.stderr)


def tests_row(code: int, output: str, errors: str) -> Row:
    """Read what pytest printed: its counts, and the first failure."""
    lines = (output + errors).strip().splitlines() or ["pytest printed nothing"]
    counts = next(
        (line.strip("= ") for line in reversed(lines) if re.search(r"\d+ \w+.* in [\d.]+s", line)),
        lines[-1],
    )
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    passed = re.search(r"(\d+) passed", counts)
    error = "" if code == 0 and passed else f"exit code {code}: {(failed or [counts])[0]}"[:200]
    detail = {"failed": failed, "passed": int(passed[1]) if passed else 0}
    return Row("tests", "", "tests/test_cuda.py", note=counts, error=error, detail=detail)


# Part 2: fine-tuning


RELEASED, TEXTS_ONCE = "TeCoA, released way", "TeCoA, released way, texts encoded once"


@dataclass(frozen=True)
class Way:
    """A way to fine-tune: `make` takes a batch's size and gives a step."""

    name: str
    make: Callable[[int], Callable[[], object]]
    tf32: bool = False
    benchmark: bool = False


@dataclass(frozen=True)
class Timing:
    """The seconds of each timed step of a way."""

    batch: int
    seconds: list[float]
    peak_gib: float | None

    @property
    def images_per_second(self) -> float:
        return self.batch / statistics.median(self.seconds)


def library_step(
    case: Case, backbone: Backbone, name: str, precision: str, batch: int
) -> Callable[[], object]:
    """Set up a method's fine-tuning as the library does; return its step."""
    method = case.params.method[name]
    method = method.model_copy(
        update={key: LR for key in ("lr", "text_lr") if hasattr(method, key)}
    )
    accelerator = "gpu" if case.device.type == "cuda" else "cpu"
    fabric = make_fabric(
        case.params.model.model_copy(update={"precision": precision, "accelerator": accelerator})
    )
    settings = case.params.finetune.model_copy(update={"batch": batch})
    task = Task("seen", RandomImages(case, batch), [case.tree], case.params.model.template)
    work = training.set_up(fabric, method, settings, copy.deepcopy(backbone), task, 0)
    places = itertools.count()

    def step() -> None:
        work.optimizer.zero_grad()
        loss, _ = work.step_loss(next(places))
        fabric.backward(loss)
        work.optimizer.step()

    return step


def released_step(
    case: Case, backbone: Backbone, texts_once: bool, batch: int
) -> Callable[[], object]:
    """Set up TeCoA's released way; return its step.

    texts_once: prompts are encoded before the first step; as released they are encoded in every
    pass, with a gradient.
    """
    clip = copy.deepcopy(backbone.clip).requires_grad_(True)
    settings = case.params.method["tecoa"].attack
    eps = case.params.finetune.eps
    images = random_images(case, batch)
    labels = random_labels(case, batch).to(case.device)
    tokens = backbone.tokenizer(level_prompts(case.tree, case.params.model.template)[0]).to(
        case.device
    )
    mean, std = (
        torch.tensor(values, device=case.device).view(3, 1, 1)
        for values in (backbone.mean, backbone.std)
    )
    optimizer = torch.optim.SGD(clip.visual.parameters(), lr=LR, momentum=0.9)
    scaler = torch.amp.GradScaler(case.device.type, enabled=case.device.type == "cuda")
    half = torch.float16 if case.device.type == "cuda" else torch.bfloat16
    with torch.no_grad():
        known = clip.encode_text(tokens, normalize=True) if texts_once else None

    def loss_at(x: Tensor) -> Tensor:
        embeddings = clip.encode_image((x - mean) / std, normalize=True)
        texts = clip.encode_text(tokens, normalize=True) if known is None else known
        return F.cross_entropy(clip.logit_scale.exp() * embeddings @ texts.T, labels)

    def step() -> None:
        delta = torch.empty_like(images).uniform_(-eps, eps).requires_grad_(True)
        with torch.autocast(case.device.type, half):
            for _ in range(settings.steps):
                loss_at((images + delta).clamp(0, 1)).backward()
                moved = delta.detach() + settings.step * delta.grad.sign()
                delta = moved.clamp(-eps, eps).requires_grad_(True)
            loss = loss_at((images + delta.detach()).clamp(0, 1))
        optimizer.zero_grad()  # of what the attack left in the image encoder's weights
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def ways_of(case: Case, backbone: Backbone) -> list[Way]:
    """List the ways to fine-tune: TeCoA's released one, then ours."""
    ways = [
        Way(RELEASED, partial(released_step, case, backbone, False), tf32=True, benchmark=True),
        Way(TEXTS_ONCE, partial(released_step, case, backbone, True), tf32=True, benchmark=True),
    ]
    for method in ("tecoa", "hier"):
        for name, arithmetic in ARITHMETIC.items():
            make = partial(library_step, case, backbone, method, arithmetic.precision)
            ways.append(Way(f"{case.params.method[method].label}, {name}", make, arithmetic.tf32))
    return ways


def time_way(way: Way, case: Case) -> Timing:
    """Time a way's steps after two of warm-up, with half the batch for as long as memory does not
    suffice.
    """
    batch = case.sizes.batch
    while True:
        timing = try_way(way, case, batch)
        if timing is not None:
            return timing
        batch //= 2
        if not batch:
            raise MemoryError(f"{way.name}: not even one image fits")


def try_way(way: Way, case: Case, batch: int) -> Timing | None:
    """Time a way's steps; None where memory does not suffice."""
    forget_peak(case.device)
    try:
        with computing(way.tf32, way.benchmark):
            step = way.make(batch)
            for _ in range(2):
                step()
            seconds = [time_call(step, case.device) for _ in range(case.sizes.timed_steps)]
        return Timing(batch, seconds, peak_gib(case.device))
    except torch.OutOfMemoryError:
        return None


def measure_finetuning(case: Case, until: float) -> Iterator[Row]:
    """Time a step of every way to fine-tune, on each architecture, and the random start that every
    step of ours has.
    """
    yield time_random_start(case)
    for k, architecture in enumerate(case.sizes.architectures):
        share = (until - monotonic()) / (len(case.sizes.architectures) - k)
        yield from finetuning_rows(case, architecture, monotonic() + share)


def time_random_start(case: Case) -> Row:
    """Time the random start of an attack, as training draws it."""
    shape, device = (case.sizes.batch, 3, case.sizes.pixels, case.sizes.pixels), case.device
    generator = training.start_generator(device, 0)
    draw = partial(torch.rand, shape, generator=generator, device=device)
    seconds = [time_call(draw, device) for _ in range(4)][1:]
    speed = shape[0] / statistics.median(seconds)
    note = "part of every step of ours"
    return Row("fine-tuning", "", "an attack's random start alone", shape[0], speed, note=note)


def finetuning_rows(case: Case, architecture: str, until: float) -> Iterator[Row]:
    """Time every way once, and again in turn while there is time."""
    ways = ways_of(case, make_backbone(case, architecture))
    timings: dict[str, list[Timing]] = {way.name: [] for way in ways}
    errors: dict[str, str] = {}
    for _ in range(case.sizes.rounds):
        for way in ways:
            late = monotonic() > (until if timings[way.name] else case.end)
            if late or way.name in errors:
                continue
            try:
                timings[way.name].append(time_way(way, case))
            except Exception as error:  # the other ways are still worth their time
                errors[way.name] = one_line(error)
    for way in ways:
        yield finetuning_row(case, architecture, way, timings, errors.get(way.name, ""))


def images_per_second(timings: Sequence[Timing]) -> float | None:
    """Return the median over rounds, None where there are none."""
    return statistics.median(timing.images_per_second for timing in timings) if timings else None


def finetuning_row(
    case: Case, architecture: str, way: Way, timings: Mapping[str, Sequence[Timing]], error: str
) -> Row:
    """Make the row of a way: its speed, and its ratio to the released way's beside the goal.
    timings: of all ways.
    """
    own = timings[way.name]
    if not own:
        return Row("fine-tuning", architecture, way.name, error=error, note="skipped: no time left")
    speed, released, texts_once = (
        images_per_second(timings[name]) for name in (way.name, RELEASED, TEXTS_ONCE)
    )
    ratio, notes = speed / released if released else None, []
    if own[-1].batch < case.sizes.batch:
        notes.append("batch halved: out of memory")
    if ratio and way.name not in (RELEASED, TEXTS_ONCE):
        notes.append("of the released way's speed")
        if not case.small:
            notes.append(f"goal {GOAL:g}: {'met' if ratio >= GOAL else 'not met'}")
        if texts_once:
            notes.append(f"{speed / texts_once:.2f} of it with texts encoded once")
    detail = {
        "seconds": [timing.seconds for timing in own],
        "tf32": way.tf32,
        "cudnn_benchmark": way.benchmark,
    }
    batch, peak, note = own[-1].batch, own[-1].peak_gib, "; ".join(notes)
    return Row(
        "fine-tuning", architecture, way.name, batch, speed, ratio, peak, note, error, detail
    )


# Part 3: attacks


def attack_budget(eps: float, steps: int) -> Budget:
    """Make PGD's budget. No image is left alone once it is misclassified, so every image takes
    every step.
    """
    return Budget(
        eps=eps,
        step=eps / 4,
        steps=steps,
        restarts=1,
        suite=("pgd_ce",),
        queries=1,
        stop_margin=inf,
    )


def attack_leaf(classifier: Classifier, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
    """Attack the leaf level; return the perturbed images."""
    truth = F.one_hot(labels, classifier.text_points[0].shape[0]).bool().to(images.device)
    return attack(lambda x: classifier(x, [0]), images, [truth], budget, 0)[0]


def encoder_passes(encoder: nn.Module, images: Tensor, steps: int) -> None:
    """Run what an attack of so many steps needs of the bare encoder: as many forward and backward
    passes, and two forward passes.
    """
    with torch.no_grad():
        for _ in range(2):
            encoder(images)
    for _ in range(steps):
        x = images.clone().requires_grad_(True)
        torch.autograd.grad(encoder(x).sum(), x)


def measure_attacks(case: Case, until: float) -> Iterator[Row]:
    """Time PGD at the leaf and the level matrix, and find where the time goes."""
    for architecture in case.sizes.architectures:
        classifier = make_level_classifier(case, make_backbone(case, architecture))
        images, labels = (
            random_images(case, case.sizes.batch),
            random_labels(case, case.sizes.batch),
        )
        for name, arithmetic in ARITHMETIC.items():
            if monotonic() > until:
                yield skipped("attacks", architecture, f"PGD at the leaf, {name}")
                continue
            yield time_leaf_attack(case, architecture, classifier, name, arithmetic, images, labels)
        if monotonic() > until:
            yield skipped("attacks", architecture, "profile")
            continue
        yield profile_attack(case, architecture, classifier, images, labels)
        yield time_level_matrix(case, architecture, until)


def time_leaf_attack(
    case: Case,
    architecture: str,
    classifier: Classifier,
    name: str,
    arithmetic: Arithmetic,
    images: Tensor,
    labels: Tensor,
) -> Row:
    """Time PGD at the leaf in turn with the encoder passes that it needs."""
    steps = case.sizes.attack_steps
    attacks: list[float] = []
    passes: list[float] = []
    seen = computing_in(classifier, arithmetic)
    run_attack = partial(attack_leaf, seen, images, labels, attack_budget(1 / 255, steps))
    run_passes = partial(encoder_passes, seen.encoder, images, steps)
    with computing(arithmetic.tf32):
        run_attack()
        run_passes()
        forget_peak(case.device)
        for _ in range(case.sizes.rounds):
            attacks.append(time_call(run_attack, case.device))
            peak = peak_gib(case.device)
            passes.append(time_call(run_passes, case.device))
    seconds, share = (
        statistics.median(attacks),
        statistics.median(passes) / statistics.median(attacks),
    )
    note = "of the time is the bare encoder's forward and backward passes"
    what, speed, detail = (
        f"PGD-{steps} at the leaf, {name}",
        len(images) / seconds,
        {"attack": attacks, "passes": passes},
    )
    return Row("attacks", architecture, what, len(images), speed, share, peak, note, detail=detail)


def profile_attack(
    case: Case, architecture: str, classifier: Classifier, images: Tensor, labels: Tensor
) -> Row:
    """Find the ten kernels (on a CPU: operations) that most of a float32 attack's device time goes
    to.
    """
    on_card = case.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]
    with computing(tf32=False), profile(activities=activities) as profiler:
        run = partial(
            attack_leaf, classifier, images, labels, attack_budget(1 / 255, case.sizes.attack_steps)
        )
        wall = time_call(run, case.device)
    kind = DeviceType.CUDA if on_card else DeviceType.CPU
    times = []
    for event in profiler.key_averages():
        if event.device_type == kind and not getattr(event, "is_user_annotation", False):
            microseconds = event.self_device_time_total if on_card else event.self_cpu_time_total
            times.append(
                {"name": event.key[:100], "calls": event.count, "seconds": microseconds / 1e6}
            )
    busy = sum(each["seconds"] for each in times)
    longest = sorted(times, key=lambda each: -each["seconds"])[:10]
    top = [each | {"share": each["seconds"] / max(busy, 1e-9)} for each in longest]
    note = "of the wall time the device is busy (profiled)"
    what = f"PGD-{case.sizes.attack_steps} at the leaf, profile"
    return Row(
        "attacks",
        architecture,
        what,
        len(images),
        ratio=busy / wall,
        note=note,
        detail={"top": top},
    )


def time_level_matrix(case: Case, architecture: str, until: float) -> Row:
    """Time the level matrix in float32, every goal on every image; not where it would not fit into
    the time left.
    """
    classifier = make_level_classifier(case, make_backbone(case, architecture))
    steps, count = case.sizes.attack_steps, case.sizes.batch
    pixels = random_images(case, count)
    images = ImageSet((255 * pixels.cpu()).byte(), random_labels(case, count))
    paths, goals = torch.from_numpy(case.tree.paths), 2 * case.tree.max_level + 1
    what = f"level matrix, PGD-{steps}, {goals} goals, float32"
    budget = attack_budget(1 / 255, steps)
    matrix = LevelMatrix(classifier, images, paths, budget, seed=0, batch=count, prune=False)
    passes = partial(encoder_passes, classifier.encoder, pixels, steps)
    with computing(tf32=False):
        passes()
        bare = goals * time_call(passes, case.device)
        left = min(until, case.end) - monotonic()
        if 1.2 * bare > left:
            return Row(
                "attacks",
                architecture,
                what,
                note=f"skipped: takes about {bare:.0f} s, {max(left, 0):.0f} s left",
            )
        forget_peak(case.device)
        seconds = time_call(matrix.outcomes, case.device)
    note, peak = (
        "of the time is the bare encoder's forward and backward passes",
        peak_gib(case.device),
    )
    return Row(
        "attacks", architecture, what, count, len(images) / seconds, bare / seconds, peak, note
    )


# Part 4: outcomes by precision


def compare_outcomes(case: Case, until: float) -> Iterator[Row]:
    """Attack the same images in every arithmetic; compare the outcomes with float32's."""
    for architecture in case.sizes.architectures:
        if monotonic() > until:
            yield skipped("outcomes", architecture, "all")
            continue
        classifier = make_level_classifier(case, make_backbone(case, architecture))
        yield from outcome_rows(
            case, architecture, classifier, random_images(case, case.sizes.batch)
        )


def outcome_rows(
    case: Case, architecture: str, classifier: Classifier, images: Tensor
) -> Iterator[Row]:
    """Compare outcomes at the smallest of the budgets at which float32 fools half of the images, or
    at the largest.

    An image's label is the float32 model's prediction for it. "float32 again" shows what chance
    alone changes.
    """
    labels, steps = predict(classifier, images), case.sizes.attack_steps
    for eps in EPS:
        expected = is_fooled(
            classifier, images, labels, ARITHMETIC["float32"], attack_budget(eps, steps)
        )
        if expected.float().mean() >= 0.5:
            break
    for name, arithmetic in {"float32 again": ARITHMETIC["float32"], **ARITHMETIC}.items():
        if name == "float32":
            continue
        found = is_fooled(classifier, images, labels, arithmetic, attack_budget(eps, steps))
        differs = float((found != expected).float().mean())
        shares = f"misclassified {found.float().mean():.1%}, float32 {expected.float().mean():.1%}"
        note = f"of outcomes differ from float32's at {255 * eps:g}/255; {shares}"
        yield Row(
            "outcomes",
            architecture,
            f"PGD-{steps} in {name}",
            len(images),
            ratio=differs,
            note=note,
        )


@torch.no_grad()
def predict(classifier: Classifier, images: Tensor) -> Tensor:
    """Return the nearest leaf of each image in float32: (N,) on the CPU."""
    with computing(tf32=False):
        return classifier(images, [0])[0].argmax(1).cpu()


def is_fooled(
    classifier: Classifier, images: Tensor, labels: Tensor, arithmetic: Arithmetic, budget: Budget
) -> Tensor:
    """Return which images the attack in an arithmetic makes the float32 model misclassify: (N,)
    bool.
    """
    with computing(arithmetic.tf32):
        moved = attack_leaf(computing_in(classifier, arithmetic), images, labels, budget)
    return predict(classifier, moved) != labels


PARTS: dict[str, Part] = {
    "tests": Part(run_tests, 110),
    "fine-tuning": Part(measure_finetuning, 190),
    "attacks": Part(measure_attacks, 110),
    "outcomes": Part(compare_outcomes, 50),
}


# The run


def run_parts(case: Case, names: Sequence[str]) -> list[Row]:
    """Run the parts in turn. One that fails becomes a row with its error; one that there is no time
    for is skipped.
    """
    rows: list[Row] = []
    for name in names:
        now = monotonic()
        if now >= case.end:
            rows.append(skipped(name, "", "all"))
            continue
        try:
            for row in PARTS[name].rows(case, min(case.end, now + PARTS[name].seconds)):
                rows.append(row)
                print(
                    f"{monotonic() - now:5.0f} s  {row.part}: {row.model} {row.what}",
                    file=sys.stderr,
                    flush=True,
                )
        except Exception as error:  # the other parts are still worth their time
            rows.append(Row(name, "", "stopped", error=one_line(error)))
    return rows


def format_table(rows: Sequence[Row]) -> str:
    """Lay the rows out as one table."""
    lines = [("part", "model", "what", "batch", "images/s", "ratio", "GiB", "note")]
    for row in rows:
        numbers = [
            format_number(value) for value in (row.images_per_second, row.ratio, row.peak_gib)
        ]
        note = f"ERROR {row.error}" if row.error else row.note
        lines.append((row.part, row.model, row.what, str(row.batch or ""), *numbers, note))
    widths = [max(len(line[column]) for line in lines) for column in range(7)]
    return "\n".join(format_line(line, widths) for line in lines)


def format_line(line: Sequence[str], widths: Sequence[int]) -> str:
    """Align a line's cells, words to the left and numbers to the right; the note has no width."""
    words = [cell.ljust(width) for cell, width in zip(line[:3], widths[:3], strict=True)]
    numbers = [cell.rjust(width) for cell, width in zip(line[3:7], widths[3:], strict=True)]
    return "  ".join([*words, *numbers, line[7]]).rstrip()


def format_number(value: float | None) -> str:
    """Write a number in three digits or more, nothing for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def format_profiles(rows: Sequence[Row]) -> str:
    """List the kernels of every profile."""
    lines = []
    for row in rows:
        if "top" in row.detail:
            lines.append(f"\n{row.model}, {row.what}: share of the device's time")
            lines += [
                f"{each['share']:7.1%}  {each['calls']:6d} x  {each['name']}"
                for each in row.detail["top"]
            ]
    return "\n".join(lines)


def driver_version() -> str:
    """Return the NVIDIA driver's version, "" where it is unknown."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return (
            subprocess.run(command, capture_output=True, encoding="utf8", check=True)
            .stdout.split("\n")[0]
            .strip()
        )
    except (OSError, subprocess.CalledProcessError):
        return ""


def describe(case: Case, rows: Sequence[Row], minutes: float) -> dict:
    """Return what the JSON file says."""
    return {
        "card": hardware(case.device),
        "device": case.device.type,
        "small": case.small,
        "driver": driver_version() if case.device.type == "cuda" else "",
        "cuda": torch.version.cuda or "",
        "cudnn": torch.backends.cudnn.version(),
        "torch": torch.__version__,
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_revision(ROOT),
        "minutes": minutes,
        "sizes": asdict(case.sizes),
        "tree": list(case.tree.sizes),
        "goal": GOAL,
        "rows": [asdict(row) for row in rows],
    }


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure the library on a GPU.")
    parser.add_argument("--minutes", type=float, default=8.0, help="for the whole run")
    parser.add_argument(
        "--out", type=Path, help="the JSON file; by default benchmarks/results/CARD-NAME.json"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="a trial at toy size")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    chosen = parser.parse_args(arguments)
    if chosen.device == "cpu" and not chosen.small:
        parser.error("--device cpu takes hours at full size; add --small")
    return chosen


def result_file(chosen: argparse.Namespace) -> Path | None:
    """Return where the JSON goes: by default a file of the card's name, and nowhere for a trial."""
    if chosen.out or chosen.small or chosen.device != "cuda":
        return chosen.out
    name = re.sub(r"[^\w.]+", "-", hardware("cuda")).strip("-")
    return ROOT / "benchmarks/results" / f"{name}.json"


def make_case(chosen: argparse.Namespace, start: float) -> Case:
    """Make what every part is given, over WordNet's tree of ImageNet's classes."""
    sizes = SMALL if chosen.small else FULL
    widths = yaml.safe_load((ROOT / "data/source/sets/widths.yaml").read_text(encoding="utf8"))
    tree = wordnet_tree("wordnet", imagenet_names(), widths["imagenet"], open_wordnet())
    if sizes.every_leaf > 1:
        tree = tree.restrict(tree.ids[:: sizes.every_leaf])
    end = start + 60 * chosen.minutes - RESERVE
    return Case(torch.device(chosen.device), sizes, load_params(ROOT / "params.yaml"), tree, end)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; return the exit code."""
    start, chosen = monotonic(), parse_arguments(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here, so nothing is measured; a trial on the CPU: --device cpu --small")
        return 0
    case = make_case(chosen, start)
    rows = run_parts(case, chosen.parts)
    result = describe(case, rows, chosen.minutes)
    print(
        f"{result['card']}, torch {result['torch']}, CUDA {result['cuda']}, git {result['git'][:8]}"
    )
    toy = "; TOY SIZES" if case.small else ""
    print(f"cudnn.benchmark: on for the released way, off elsewhere{toy}")
    print(format_table(rows) + "\n" + format_profiles(rows))
    file = result_file(chosen)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")
        print(f"\nwritten to {file}")
    return int(any(row.error for row in rows))


if __name__ == "__main__":
    sys.exit(main())
