"""One fine-tuning step of every method beside TeCoA's, and what a large tree adds to a step of
ViT-B/32.
"""

from collections.abc import Callable
from functools import partial

import open_clip
import torch

from benchmarks.default import base_model
from benchmarks.measure import Row, interleaved, ratio, thread_counts, threads
from benchmarks.synthetic import make_forest, make_tree_loss
from hierclip.config import HierParams, MethodParams, NoneParams, Params, find_root, load_params
from hierclip.data import ids_of, load_dataset
from hierclip.data.tasks import Task
from hierclip.distributed import make_fabric
from hierclip.models import load_model
from hierclip.training import set_up
from hierclip.trees import load_forest

ROUNDS = 9
LARGE_LEAVES, LARGE_LEVELS = 5000, 6  # 9,923 nodes
BATCH, PIXELS, DIMENSIONS = 32, 224, 512  # of ViT-B/32
LIMITS = {"hier": 1.05, "forest": 1.15, "match": 1.15}  # times a step of TeCoA


def steps() -> list[Row]:
    """Time a step of every method; those of the ball take as many attack steps as TeCoA."""
    params, rows = load_params(), []
    attack = {"attack": params.method["tecoa"].attack}  # pyright: ignore
    methods = {
        name: method.model_copy(update=attack) if isinstance(method, HierParams) else method
        for name, method in params.method.items()
        if not isinstance(method, NoneParams)
    }
    ways = {name: make_step(params, method) for name, method in methods.items()}
    for count in thread_counts():
        with threads(count):
            times = interleaved(ways, ROUNDS, warm_up=2)
        for name in [name for name in ways if name != "tecoa"]:
            value, limit = ratio(times, name, "tecoa"), LIMITS.get(name)
            steps = methods[name].attack.steps
            note = f"batch {params.finetune.batch}, {steps} attack steps; {ROUNDS} rounds"
            rows.append(Row("step", f"{name} / tecoa", count, value, at_most=limit, note=note))
    return rows + large_tree(params)


def make_step(params: Params, method: MethodParams) -> Callable[[], None]:
    """Make ready to fine-tune the default's base model; give what takes one step."""
    root = find_root()
    dataset, fabric = load_dataset(params.data, root), make_fabric(params.model)
    forest = load_forest(root / "data/trees", params.trees_of(method))
    trees = [tree.restrict(ids_of(dataset, "seen")) for tree in forest]
    backbone = load_model(base_model()).backbone
    task = Task("seen", dataset, trees, params.model.template)
    work = set_up(fabric, method, params.finetune, backbone, task, 0)  # pyright: ignore
    place = 0

    def step() -> None:
        nonlocal place
        work.optimizer.zero_grad()
        loss, _ = work.step_loss(place)
        fabric.backward(loss)
        work.optimizer.step()
        place += 1

    return step


def large_tree(params: Params) -> list[Row]:
    """Time what a tree of 10,000 nodes adds to a step beside the passes of ViT-B/32's image encoder
    in it.
    """
    method = params.method["hier"]
    assert isinstance(method, HierParams)
    attack_steps = params.method["tecoa"].attack.steps  # pyright: ignore
    visual = open_clip.create_model("ViT-B-32", pretrained=None).visual.eval()
    images = torch.rand(BATCH, 3, PIXELS, PIXELS)
    loss = make_tree_loss(make_forest(LARGE_LEAVES, LARGE_LEVELS, 1), method, BATCH, DIMENSIONS)

    def encoder() -> None:
        visual.requires_grad_(False)
        for _ in range(attack_steps):
            x = images.clone().requires_grad_(True)
            torch.autograd.grad(visual(x).sum(), x)
        visual.requires_grad_(True)
        visual(images).sum().backward()
        visual.zero_grad()

    loss.step(1)
    times = interleaved(
        {"tree": partial(loss.step, attack_steps), "encoder": encoder}, rounds=2, warm_up=0
    )
    count = sum(len(nodes.parents) for nodes in loss.forest.nodes)
    what = f"a tree of {count:,} nodes / ViT-B/32"
    note = f"batch {BATCH}, {PIXELS} px, {attack_steps} attack steps; 2 rounds"
    return [
        Row(
            "step",
            what,
            torch.get_num_threads(),
            ratio(times, "tree", "encoder"),
            at_most=0.05,
            note=note,
        )
    ]
