"""A small project as `make repro` leaves it: 29 of the nouns, five trees, a flat model and one in
the ball.
"""

import csv
import shutil
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from torch.nn import functional as F

from hierclip import models
from hierclip.config import Params, load_params
from hierclip.data import class_indices, load_dataset
from hierclip.data.emoji import GLYPH, SOURCE
from hierclip.data.tasks import MODELS, TREES
from hierclip.models import CosineHead, Model, PoincareHead
from hierclip.trees import Tree, level_prompts, read_tree, save_tree, wordnet_tree
from tests.conftest import ONE_STYLE, ROOT, prepare

STEPS = 50  # of training; enough to know most of the leaves
MODEL_NAMES = ("tecoa-0", "hier-0")


def write_project(folder: Path) -> Params:
    """Writes it to a folder, and gives its parameters."""
    entries = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf8"))
    entries |= {"methods": ["tecoa", "hier"], "margin": {"method": "hier", "seed": 0}}
    styles = list(ONE_STYLE["styles"])
    entries["data"] |= {"styles": styles, "subset": None}
    entries["data"] |= {"val_per_drawing": 6, "test_per_drawing": 3}
    entries["zero_shot"] = {}
    entries["attack"] |= {"eps": "4/255", "step": "1.5/255"}
    (folder / "params.yaml").write_text(yaml.safe_dump(entries), encoding="utf8")
    params = load_params(folder / "params.yaml")
    table = (ROOT / SOURCE / "classes.csv").read_text(encoding="utf8")
    rows = list(csv.DictReader(table.splitlines()))
    (folder / SOURCE).mkdir(parents=True)
    shutil.copy(ROOT / SOURCE / "styles.csv", folder / SOURCE)
    with (folder / SOURCE / "classes.csv").open("w", encoding="utf8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows[::7])
    sheet = np.array(Image.open(ROOT / SOURCE / f"{styles[0]}.png"))
    columns = sheet.shape[1] // GLYPH
    corners = [(k // columns * GLYPH, k % columns * GLYPH) for k in range(0, len(rows), 7)]
    glyphs = [sheet[y : y + GLYPH, x : x + GLYPH] for y, x in corners]
    Image.fromarray(np.concatenate(glyphs, axis=1)).save(folder / SOURCE / f"{styles[0]}.png")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    dataset = load_dataset(params.data, folder)
    prepare(dataset)
    first = wordnet_tree("wordnet", {leaf.id: leaf.name for leaf in dataset.leaves}, [14, 7, 3])
    everything = dict.fromkeys(first.ids, "") | {
        row["synset"]: row["name"] for row in rows
    }  # in the first's order
    outlines = ROOT / "data/source/trees/emoji"
    named = [read_tree(outlines / f"{name}.yaml", everything) for name in params.trees.names[1:]]
    trees = [first, *(tree.restrict(first.ids) for tree in named)]
    for tree in trees:
        save_tree(tree, folder / TREES / f"{tree.name}.json")
    backbone = _knowing(params, trees, dataset)
    for name, head in zip(
        MODEL_NAMES, _heads(backbone, dataset.images("val"), trees[0], params), strict=True
    ):
        models.save_model(Model(backbone, head, name.partition("-")[0]), folder / MODELS / name)
    return params


def _knowing(params: Params, trees: list[Tree], dataset) -> models.Backbone:
    """Some steps towards a direction for each leaf; each text is then fitted to the mean direction
    of its leaves.
    """
    backbone, places = (
        models.create(params.model, seed=0, size=32),
        class_indices(dataset, trees[0].ids),
    )
    encoder, visual = models.ImageEncoder(backbone), backbone.clip.visual.train()
    codes = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0][
        : len(places)
    ]
    optimizer = torch.optim.AdamW(visual.parameters(), lr=3e-3)
    for step in range(STEPS):
        images, labels = dataset.batch(places, 64, 0, step)
        loss = F.cross_entropy(10 * F.normalize(encoder(images)) @ codes.T, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    visual.eval()
    wanted = {}  # the first tree's, so that a linear map can fit them all
    for prompts, nodes in zip(
        level_prompts(trees[0], params.model.template), trees[0].paths.T, strict=True
    ):
        wanted |= {
            prompt: codes[nodes == k].mean(0)
            for k, prompt in enumerate(prompts)
            if prompt not in wanted
        }
    with torch.no_grad():
        texts = models.text_features(backbone, list(wanted))
        gram = texts.T @ texts + 1e-4 * torch.eye(texts.shape[1])
        fit = torch.linalg.solve(gram, texts.T @ torch.stack(list(wanted.values())))
        backbone.text_projection.copy_(fit)
    return backbone


@torch.no_grad()
def _heads(backbone, images, tree: Tree, params: Params):
    image = float(models.ImageEncoder(backbone)(images.floats()).norm(dim=-1).median())
    texts = models.encode_texts(backbone, level_prompts(tree, params.model.template)[0])
    typical = {"image_norm": image, "text_norm": float(texts.norm(dim=-1).median())}
    return CosineHead(20.0), PoincareHead(1.0, 2.0, 2.0, 1.0, 7.0, "free", **typical)
