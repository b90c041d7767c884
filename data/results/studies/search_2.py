"""How search_2.json was made: losses that lost, and so are not in the library.

It runs at the revision that the record names, in the default's folder after `make repro`, and uses
inner functions of the library as they were then:

    cp data/results/studies/search_2.py . && git checkout 2ed1d37
    OMP_NUM_THREADS=1 python search_2.py fit 2
    OMP_NUM_THREADS=1 python search_2.py evaluate 2

The number is that of processes. Weights and rows go to data/checkpoints/search_2; what is there is
not made again.
"""

import importlib
import json
import sys
import time

import torch
from joblib import Parallel, delayed
from torch.nn import functional as F

from hierclip import hyperbolic
from hierclip.config import find_root, load_params
from hierclip.data import step_seed
from hierclip.data.tasks import BASE, TREES, Task
from hierclip.distributed import make_fabric
from hierclip.losses import OBJECTIVES, Objective
from hierclip.losses.levels import level_weights
from hierclip.models import CosineHead, Model, load_model
from hierclip.studies import Run, _accuracies, divide
from hierclip.training import fit, set_up
from hierclip.trees import load_forest

# The package has a function of that name too.
H = importlib.import_module("hierclip.losses.hierarchical")
STEPS, SEED = 250, 0
OUT = find_root() / "data/checkpoints/search_2"
OUT.mkdir(parents=True, exist_ok=True)
STEP = [0]  # of the fine-tuning that runs
SCALE = [1.0]  # the logit scale of the base
ORIGINAL = dict(OBJECTIVES)


class FewClasses:
    """A dataset whose batches have images of a few classes only."""

    def __init__(self, base, share):
        self.base, self.share = base, share

    def __getattr__(self, name):
        return getattr(self.base, name)

    def batch(self, classes, size, seed, step, rows=slice(None)):
        g = torch.Generator().manual_seed(step_seed(seed, step) + 7)
        chosen = torch.randperm(len(classes), generator=g)[: size // self.share]
        images, labels = self.base.batch(classes[chosen], size, seed, step, rows)
        return images, chosen[labels]


def ext_violation(texts, points):
    """Return exterior angle - aperture of entailment cones (Ganea et al. 2018), K = 0.1, (M,).

    texts, points: (M, D) in the unit ball.
    """
    K = 0.1
    x, y = texts.double(), points.double()
    nx, ny = x.norm(dim=1).clamp(min=1e-6), y.norm(dim=1)
    xy = (x * y).sum(1)
    d = (x - y).norm(dim=1).clamp(min=1e-6)
    num = xy * (1 + nx**2) - nx**2 * (1 + ny**2)
    den = nx * d * (1 + nx**2 * ny**2 - 2 * xy).clamp(min=1e-9).sqrt()
    ext = torch.acos((num / den).clamp(-1 + 1e-6, 1 - 1e-6))
    aperture = torch.asin((K * (1 - nx**2) / nx).clamp(-1 + 1e-6, 1 - 1e-6))
    return (ext - aperture).float()


def cone_pairs(context, embeddings, texts, params):
    """Violations by level (B, K_l): of every image with every text of a level."""
    head = context.head
    images = hyperbolic_points(head.image_tangents(embeddings))
    t = hyperbolic_points(head.text_tangents(texts, H._level_shares(context)))
    out = []
    nodes, paths = context.nodes[0], context.paths[0]
    for l, (start, size) in enumerate(zip(nodes.starts.tolist(), nodes.sizes, strict=True)):
        level = t[start : start + size]
        B = len(images)
        v = ext_violation(level.repeat(B, 1), images.repeat_interleave(size, 0)).view(B, size)
        out.append((v, paths[:, l]))
    return out


def hyperbolic_points(tangents):
    return hyperbolic.expmap0(tangents, 1.0)


def cone_loss(context, perturbation, params, margin=0.3):
    embeddings, texts = H._encode(context, perturbation)
    total = 0.0
    pairs = cone_pairs(context, embeddings, texts, params)
    for w, (v, true) in zip(level_weights_of(context, params), pairs, strict=True):
        positive = v.gather(1, true[:, None])
        mask = torch.ones_like(v).scatter(1, true[:, None], 0)
        negative = (F.relu(margin - v) * mask).sum(1) / mask.sum(1).clamp(min=1)
        total = total + w * (F.relu(positive).mean() + negative.mean())
    return total


def level_weights_of(context, params):
    return level_weights(context.nodes[0].max_level, params.superclass_weight)


def with_cones(context, perturbation, params):
    return H.hierarchical(context, perturbation, params) + cone_loss(context, perturbation, params)


def one_tree(context, perturbation, params):
    embeddings, texts = H._encode(context, perturbation)
    k = STEP[0] % len(context.nodes)
    return H.alignment(H._place(context, embeddings, texts, params)[k], params, perturbation.levels)


def one_tree_match(context, perturbation, params):
    embeddings, _, texts = context.towers(perturbation.images)
    a, o = (F.normalize(e.float(), dim=1) for e in (embeddings, context.original_clean[0]))
    flat = context.original.by_tree(texts)
    levels = flat[STEP[0] % len(flat)]
    loss = 0.0
    for w, nodes in zip(
        level_weights(len(levels) - 1, params.superclass_weight), levels, strict=True
    ):
        loss = loss + w * ((a - o) @ F.normalize(nodes.float(), dim=1).T).square().sum(1).mean()
    return loss


def product(context, perturbation, params):
    """Leaves flat (the control's loss), superclasses in the ball."""
    embeddings, texts = H._encode(context, perturbation)
    scale = 0.125 * SCALE[0]
    leaves = context.original.by_tree(texts)[0][0]
    logits = scale * F.normalize(embeddings.float(), dim=1) @ F.normalize(leaves.float(), dim=1).T
    with torch.no_grad():
        oe, ot = context.original_clean
        ol = context.original.by_tree(ot)[0][0]
        soft = (
            0.4 * scale * F.normalize(oe.float(), dim=1) @ F.normalize(ol.float(), dim=1).T
        ).softmax(1)
    target = 0.5 * soft + 0.5 * F.one_hot(context.labels, logits.shape[1])
    flat = F.cross_entropy(logits, target)
    (placed, *_) = H._place(context, embeddings, texts, params)
    upper = H.alignment(placed, params, tuple(range(1, placed.nodes.max_level + 1)))
    return flat + upper


def product_anchored(context, perturbation, params):
    embeddings, _ = H._encode(context, perturbation)
    cosine = F.cosine_similarity(embeddings, context.original_clean[0])
    return product(context, perturbation, params) + 4 * (1 - cosine).mean()


def warm_up(context, perturbation, params):
    if STEP[0] < STEPS // 2:
        params = params.model_copy(update={"superclass_weight": 0.0})
    return H.hierarchical(context, perturbation, params)


def warm_up_attack(context, perturbation, params):
    if STEP[0] < STEPS // 2:
        params = params.model_copy(update={"superclass_weight": 0.0})
    return H.hita(context, perturbation, params)


# name: (method, changes, objective or None, P x K share, cosine head for evaluation)
FITS = {
    "FARE": ("fare", {}, None, 0, False),
    "control": ("agft_anchor", {}, None, 0, False),
    "level matching": ("match", {}, None, 0, False),
    "leaf matching": ("match_leaf", {}, None, 0, False),
    "HITA published": ("hier", {}, None, 0, False),
    "HITA tuned": ("hier_tuned", {}, None, 0, False),
    "HITA tuned, 5 trees at once": ("hier_tuned", {"trees": "all"}, None, 0, False),
    "HITA tuned, one of 5 trees a step": (
        "hier_tuned",
        {"trees": "all"},
        Objective(one_tree, one_tree),
        0,
        False,
    ),
    "level matching, one of 5 trees a step": (
        "match",
        {"trees": "all"},
        Objective(one_tree_match, one_tree_match),
        0,
        False,
    ),
    "HITA published, 32 classes a batch": ("hier", {}, None, 4, False),
    "HITA published, 16 classes a batch": ("hier", {}, None, 8, False),
    "HITA tuned, cones": ("hier_tuned", {}, Objective(with_cones, H.hita), 0, False),
    "HITA tuned, cones, attacked too": (
        "hier_tuned",
        {},
        Objective(with_cones, with_cones),
        0,
        False,
    ),
    "product": ("hier_tuned", {}, Objective(product, product), 0, True),
    "product, anchored": ("hier_tuned", {}, Objective(product_anchored, product), 0, True),
    "leaf warm-up": ("hier_tuned", {}, Objective(warm_up, warm_up_attack), 0, False),
}


def fit_one(name):
    file = OUT / f"{name}.pt"
    if file.exists():
        return
    torch.set_num_threads(1)
    root, params = find_root(), load_params()
    method, changes, objective, share, _ = FITS[name]
    if changes.get("trees") == "all":
        changes = changes | {"trees": list(params.trees.names)}
    settings = params.variant("road", {"method": method} | changes)
    OBJECTIVES.update(ORIGINAL)
    if objective:
        OBJECTIVES[settings.loss] = objective
    backbone = load_model(root / BASE).backbone
    SCALE[0] = float(backbone.logit_scale)
    subsets = divide(params, params.sweep, root)
    dataset, trained = subsets["seen"]
    if share:
        dataset = FewClasses(dataset, share)
    trees = [t.restrict(trained) for t in load_forest(root / TREES, params.trees_of(settings))]
    finetune = params.finetune.model_copy(update={"steps": STEPS, "checkpoint_every": 10**9})
    task = Task("seen", dataset, trees, params.model.template)
    work = set_up(make_fabric(params.model), settings, finetune, backbone, task, SEED)
    starts = []

    def step_loss(step):
        STEP[0] = step
        starts.append(time.perf_counter())
        return work.step_loss(step)

    fit(work, step_loss, OUT / f"{name}.ckpt")
    seconds = float(torch.tensor(starts).diff().median())
    torch.save(
        {
            "state": backbone.clip.state_dict(),
            "head": work.head,
            "seconds": seconds,
            "method": method,
        },
        file,
    )


def evaluate(name, state, head, midpoints=False):
    torch.set_num_threads(1)
    root, params = find_root(), load_params()
    backbone = load_model(root / BASE).backbone
    if state is not None:
        backbone.clip.load_state_dict(state)
    model = Model(backbone, head, name)
    if midpoints:
        model = Midpoints(backbone, head, name)
    (first,) = load_forest(root / TREES, params.trees.names[:1])
    run = Run({}, None, STEPS, SEED, levels=True)
    rows = []
    for subset, (part, ids) in divide(params, params.sweep, root).items():
        row = _accuracies(model, part, first.restrict(ids), run, params, params.sweep)
        rows.append({"name": name, "subset": subset, **row})
    return rows


class Midpoints(Model):
    """Superclass texts: the mean direction of the leaves' texts, and the node's own prompt."""

    def classifier(self, trees, template):
        c = super().classifier(trees, template)
        tree = trees
        leaves = c.text_points[0]
        paths = torch.from_numpy(tree.paths)
        for l in range(1, c.count):
            own = c.text_points[l]
            total = torch.zeros_like(own).index_add(0, paths[:, l], F.normalize(leaves, dim=1))
            mixed = F.normalize(
                F.normalize(total, dim=1) + F.normalize(own, dim=1), dim=1
            ) * own.norm(dim=1, keepdim=True)
            c.register_buffer(f"texts_{l}", mixed, persistent=False)
        return c


def average(states, weights):
    return {
        k: sum(w * s[k].float() for s, w in zip(states, weights, strict=True)).to(
            states[0][k].dtype
        )
        if states[0][k].is_floating_point()
        else states[0][k]
        for k in states[0]
    }


def jobs():
    base = load_model(find_root() / BASE)
    b = base.backbone.clip.state_dict()
    clip_head = CosineHead(float(base.backbone.logit_scale))
    kept = {
        n: torch.load(OUT / f"{n}.pt", weights_only=False)
        for n in FITS
        if (OUT / f"{n}.pt").exists()
    }
    heads = {n: clip_head if FITS[n][4] else k["head"] for n, k in kept.items()}
    out = [("CLIP", None, clip_head, False), ("CLIP, midpoint texts", None, clip_head, True)]
    for n, k in kept.items():
        out.append((n, k["state"], heads[n], False))
    for n in ("FARE", "control", "level matching", "HITA published", "HITA tuned"):
        out.append((f"{n}, midpoint texts", kept[n]["state"], heads[n], True))
    for n in ("FARE", "control", "level matching", "HITA published", "HITA tuned"):
        for w in (0.5, 0.75):
            out.append(
                (f"{n}, {w} with CLIP", average([kept[n]["state"], b], [w, 1 - w]), heads[n], False)
            )
    for one, other, head in [
        ("FARE", "HITA tuned", clip_head),
        ("FARE", "control", clip_head),
        ("level matching", "control", clip_head),
        ("level matching", "HITA tuned", clip_head),
        ("control", "HITA tuned", clip_head),
    ]:
        out.append(
            (
                f"mean of {one} and {other}",
                average([kept[one]["state"], kept[other]["state"]], [0.5, 0.5]),
                head,
                False,
            )
        )
    return out


def main(what, workers):
    if what == "fit":
        names = [n for n in FITS if not (OUT / f"{n}.pt").exists()]
        Parallel(workers)(delayed(fit_one)(n) for n in names)
    else:
        done = {}
        file = OUT / "rows.json"
        if file.exists():
            done = json.loads(file.read_text())
        left = [j for j in jobs() if j[0] not in done]
        made = Parallel(workers, return_as="generator")(delayed(evaluate)(*j) for j in left)
        for (name, *_), rows in zip(left, made, strict=True):
            done[name] = rows
            file.write_text(json.dumps(done))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
