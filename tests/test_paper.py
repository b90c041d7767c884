"""The paper's setting at the smallest scale that is still its own: minutes and gigabytes, so `make
slow`.
"""

import os
import resource
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
import yaml
from safetensors.torch import save_file

from hierclip.config import Params, load_params
from hierclip.data import load_dataset
from hierclip.data.sources import imagenet_names
from hierclip.data.tasks import MODELS, TREES
from hierclip.evaluation import RECORDS, load_records
from hierclip.models.backbone import WEIGHTS
from hierclip.trees import load_forest, open_wordnet, read_tree, save_tree, wordnet_tree
from tests.conftest import ROOT, prepare

SAMPLE = (
    ROOT / "data/source/imagenet-sample"
)  # a photograph for each class, in folders named by WordNet id
LIMIT = 12 * 2**30  # bytes
METHODS = ("tecoa", "hier", "forest")
CHANGES = {
    "methods": METHODS,
    "data": {"name": "imagenet-sample", "layout": "folder", "root": "sets", "val_per_class": 1, "stream": False},
    "zero_shot": {},
    "model": {"pretrained": "weights.safetensors", "accelerator": "cpu", "precision": "32-true"},
    "finetune": {"steps": 2, "batch": 32, "accumulate": 2},
    "attack": {"suite": ["apgd_margin"], "steps": 2, "queries": 2, "batch": 32, "bootstrap": 20, "audit_images": 4,
               "forest_images": 8},
}  # fmt: skip


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project with the preset's parameters, made small; images, weights and the five trees
    over 1,000 leaves are there.
    """
    if not SAMPLE.exists():
        pytest.skip(f"needs {SAMPLE}")
    entries = yaml.safe_load((ROOT / "presets/paper/params.yaml").read_text(encoding="utf8"))
    for key, value in CHANGES.items():
        entries[key] = entries[key] | value if isinstance(value, dict) and value else value
    entries["methods"] = list(METHODS)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(entries), encoding="utf8")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/source").symlink_to(ROOT / "data/source")
    for folder in SAMPLE.iterdir():  # each photograph to train on, to choose on and to test on
        (image,) = folder.iterdir()
        for part, name in (("train", "1"), ("train", "2"), ("test", "1")):
            link = tmp_path / "sets/imagenet-sample" / part / folder.name / f"{name}{image.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(image)
    torch.manual_seed(0)
    save_file(
        open_clip.create_model("ViT-B-32-quickgelu").state_dict(), tmp_path / "weights.safetensors"
    )
    monkeypatch.chdir(tmp_path)
    params = load_params(tmp_path / "params.yaml")
    dataset = load_dataset(params.data, tmp_path)
    prepare(dataset)
    save_trees(tmp_path, params, {leaf.id: leaf.name for leaf in dataset.leaves})
    return tmp_path


def save_trees(root: Path, params: Params, names: dict[str, str]) -> None:
    """Write the trees of the parameters over `names` (identifier to name), as notebook 20 does."""
    first = wordnet_tree("wordnet", names, params.trees.widths, open_wordnet())
    in_order = {leaf.id: leaf.name for leaf in first.leaves}
    outlines = root / "data/source/trees/imagenet"
    others = [read_tree(outlines / f"{name}.yaml", in_order) for name in params.trees.names[1:]]
    for tree in (first, *others):
        save_tree(tree, root / TREES / f"{tree.name}.json")


def test_the_five_trees_of_the_preset_are_a_forest_over_a_thousand_leaves(tmp_path):
    params = load_params(ROOT / "presets/paper/params.yaml")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/source").symlink_to(ROOT / "data/source")
    save_trees(tmp_path, params, imagenet_names())
    forest = load_forest(tmp_path / TREES, params.trees_of(params.method["forest"]))
    assert [tree.name for tree in forest] == ["wordnet", "use", "place", "look", "origin"]
    assert {tree.sizes[0] for tree in forest} == {1000}
    assert [tree.max_level for tree in forest] == [5, 3, 3, 3, 3]


@pytest.mark.slow
def test_a_vit_is_fine_seen_and_attacked_at_every_level_of_a_thousand_leaves(project):
    """Three methods are fine-tuned; the matrix of one says what another's would, in every tree."""
    commands = [["run", "30_pretrain"]]
    commands += [["run", "40_finetune", "-p", f"method={method}"] for method in METHODS]
    commands += [["run", "50_attack", "-p", "method=hier"]]
    for command in commands:
        subprocess.run(
            [sys.executable, "-m", "hierclip", *command],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "2"},
        )
    (record,) = load_records(project / RECORDS)
    assert record.name == "hier-0/seen"
    assert record.images == record.levels[0] == 1000 and len(record.levels) == 6
    assert record.threat_model.resolution == 224 and record.threat_model.eps == "1/255"
    for reading, clean in record.clean.items():
        diagonal = [record.robust[reading][level][level] for level in range(6)]
        assert (
            all(robust <= free for robust, free in zip(diagonal, clean, strict=True))
            and clean[5] > 1 / 1000
        )
    assert list(record.forest) == ["wordnet", "use", "place", "look", "origin"]
    assert {tree.images for tree in record.forest.values()} == {8}
    names = ["base", *(f"{method}-0" for method in METHODS)]
    weights = [(project / MODELS / name / WEIGHTS).read_bytes() for name in names]
    assert len(set(weights)) == 4
    peak = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"\npeak memory {peak / 2**30:.1f} GiB")
    assert peak <= LIMIT
