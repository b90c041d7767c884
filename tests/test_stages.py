"""Stages, in one process and in several."""

import shutil
import subprocess

import pytest
import yaml
from typer.testing import CliRunner

from hierclip import model
from hierclip.cli import app, main
from hierclip.data import PREPARED, load_dataset
from hierclip.data.openmoji import SOURCE
from hierclip.model import CosineHead, Model, load_model
from hierclip.params import load_params
from hierclip.stages import BASE, MODELS, TREES, ZERO_SHOT
from hierclip.stages.attack import attack_stage
from hierclip.stages.finetune import finetune_stage
from hierclip.stages.pretrain import pretrain_stage
from hierclip.stages.spread import SpreadError, spread
from hierclip.stages.tasks import load_task
from hierclip.trees import load_forest, save_tree, wordnet_tree
from tests.conftest import ROOT
from tests.miniatures import folders

QUICK = {"gradients": 8, "batch": 8, "checkpoint_every": 50}
ATTACK = {"steps": 1, "suite": ["pgd_margin"], "bootstrap": 10, "audit_images": 2, "forest_images": 8, "queries": 2}


@pytest.fixture
def project(openmoji, openmoji_forest, backbone, tmp_path, monkeypatch):
    """A project as its first three stages leave it, with short settings and one tree."""
    entries = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf8"))
    entries["finetune"] |= QUICK
    entries["attack"] |= ATTACK
    entries["data"] |= {"val_per_class": 2, "test_per_class": 2}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(entries), encoding="utf8")
    for file, there in ((SOURCE, ROOT / SOURCE), (f"{PREPARED}/openmoji.safetensors", openmoji.prepared)):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(there.read_bytes())
    for name in entries["trees"]["names"]:
        save_tree(openmoji_forest[0], tmp_path / TREES / f"{name}.json")
    model.save_model(Model(backbone, CosineHead(14.0), "base"), tmp_path / BASE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(project, **changes):
    """The project's parameters with another machine, or other ones of the model, written to its file too."""
    file = project / "params.yaml"
    entries = yaml.safe_load(file.read_text(encoding="utf8"))
    for key, value in changes.items():
        entries["machine" if key in entries["machine"] else "model"][key] = value
    file.write_text(yaml.safe_dump(entries), encoding="utf8")
    return load_params(file)


def test_a_stage_gives_what_it_wrote(project):
    made, history = finetune_stage(project, settings(project), "hier", 3)
    assert made.method == "hier" and made.head == load_model(project / MODELS / "hier-3").head
    assert list(history.index) == [0, 1] and {"loss", "rim_images", "vic_active"} <= set(history)
    made, history = finetune_stage(project, settings(project), "clip", 0)
    assert made.method == "clip" and not len(history) and history["loss"].dtype == float


def test_the_base_model_is_made_or_taken(project):
    file = project / "params.yaml"
    entries = yaml.safe_load(file.read_text(encoding="utf8"))
    entries["pretrain"] |= {"steps": 2, "batch": 8}
    file.write_text(yaml.safe_dump(entries), encoding="utf8")
    made, history = pretrain_stage(project, settings(project, devices=2))  # BatchNorm: one process all the same
    assert made.method == "base" and len(history) == 2
    weights = str(project / BASE / "open_clip_model.safetensors")
    taken, history = pretrain_stage(project, settings(project, pretrained=weights, devices=2))
    pairs = zip(taken.backbone.clip.state_dict().values(), made.backbone.clip.state_dict().values(), strict=True)
    assert not len(history) and all(a.equal(b) for a, b in pairs)


def test_in_two_processes_it_gives_the_same_as_in_one(project):
    _, once = finetune_stage(project, settings(project), "tecoa", 0)
    shutil.rmtree(project / MODELS / "tecoa-0")
    _, twice = finetune_stage(project, settings(project, devices=2), "tecoa", 0)
    assert twice["loss"].to_numpy() == pytest.approx(once["loss"].to_numpy(), rel=1e-4)
    assert not list((project / "data/checkpoints").glob("*.ckpt"))


def test_commands_do_what_the_notebooks_do_and_what_others_wrote_is_read(project, monkeypatch):
    assert CliRunner().invoke(app, ["finetune", "tecoa"]).exit_code == 0
    assert CliRunner().invoke(app, ["attack", "tecoa"]).exit_code == 0
    found = sorted(file.name for file in (project / "data/results/records/tecoa-0").iterdir())
    assert found == ["held_out.json", "tuned.json"]
    monkeypatch.setattr("hierclip.stages.attack.spread", lambda *_: True)
    records = attack_stage(project, load_params(project / "params.yaml"), "tecoa", 0)
    assert [record.name for record in records] == ["tecoa-0/tuned", "tecoa-0/held_out"]


def test_fine_tuning_makes_what_it_needs_first(project, root):
    entries = yaml.safe_load((project / "params.yaml").read_text(encoding="utf8"))
    entries["pretrain"] |= {"steps": 2, "batch": 8}
    (project / "params.yaml").write_text(yaml.safe_dump(entries), encoding="utf8")
    for folder in (PREPARED, TREES, BASE):
        shutil.rmtree(project / folder)
    for folder in ("wordnet", "sets", "trees"):
        (project / "data/source" / folder).symlink_to(root / "data/source" / folder)
    said = CliRunner().invoke(app, ["finetune", "tecoa", "1"])
    assert said.exit_code == 0, said.output
    words = ("preparing the pictures: ", "making the trees: wordnet, ", "making the base model: ", "the model: ")
    assert all(word in said.output for word in words) and "hierclip export tecoa-1 FOLDER" in said.output
    assert load_model(project / MODELS / "tecoa-1").method == "tecoa"
    assert [tree.name for tree in load_forest(project / TREES, entries["trees"]["names"])] == entries["trees"]["names"]
    again = CliRunner().invoke(app, ["finetune", "tecoa", "1"])
    assert again.exit_code == 0 and "making" not in again.output and "preparing" not in again.output


def test_an_unknown_method_is_one_line(project, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["hierclip", "finetune", "none"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err.startswith("hierclip: no method 'none'; known are agft, agft_mixed, clip, ")


def test_one_device_needs_no_other_process(project, monkeypatch):
    assert not spread(settings(project), project, "finetune", "tecoa", "0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")  # one of torchrun's own
    assert not spread(settings(project, devices=2), project, "finetune", "tecoa", "0")


def test_as_many_processes_as_asked_for_are_there_or_it_is_said(project, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setenv("WORLD_SIZE", "3")
    for devices in (1, 2):
        with pytest.raises(ValueError, match=f"^3 processes; params.yaml's machine asks for {devices}$"):
            finetune_stage(project, settings(project, devices=devices), "clip", 0)


def test_other_processes_read_the_file(project):
    params = settings(project, devices=2)
    changed = params.model_copy(update={"seeds": (5,)})
    with pytest.raises(SpreadError, match=r"read their parameters from .*params\.yaml; change them there$"):
        spread(changed, project, "finetune", "tecoa", "0")


def test_several_machines_meet(project, monkeypatch, capsys):
    lines = []
    monkeypatch.setattr(subprocess, "run", lambda line, **_: lines.append(line) or subprocess.CompletedProcess([], 0))
    assert spread(settings(project, devices=8, nodes=2, address="one:29500"), project, "finetune", "tecoa", "0")
    assert " --nproc-per-node 8 --nnodes 2 --rdzv-backend c10d --rdzv-endpoint one:29500 -m " in " ".join(lines[0])
    assert "waiting for 2 machines; on each run: hierclip finetune tecoa 0" in capsys.readouterr().out


def test_a_process_that_fails_is_said(project, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 7))
    with pytest.raises(SpreadError, match=r"^finetune tecoa 0 failed in one of 2 processes \(exit 7\)$"):
        spread(settings(project, devices=2), project, "finetune", "tecoa", "0")


def test_a_zero_shot_set_is_attacked_beside_the_splits_and_checked_like_them(project, root):
    classes = ["cat.n.01", "dog.n.01", "car.n.01", "truck.n.01"]
    folders(project / "sets/animals", classes, seed=0)
    data = {"name": "animals", "layout": "folder", "root": "sets", "download": False, "size": 32, "train_per_class": 0}
    data |= {"val_per_class": 1, "test_per_class": 2, "held_out_every": 1, "stream": False, "strict": False}
    entries = yaml.safe_load((project / "params.yaml").read_text(encoding="utf8"))
    entries["zero_shot"] = {"animals": {"data": data, "template": "a photo of a {}", "widths": [2]}}
    (project / "params.yaml").write_text(yaml.safe_dump(entries), encoding="utf8")
    params = load_params(project / "params.yaml")
    dataset = load_dataset(params.zero_shot["animals"].data, project, f"{ZERO_SHOT}/pictures")
    dataset.prepare()
    names = {leaf.id: leaf.name for leaf in dataset.leaves}
    (project / "data/source/wordnet").symlink_to(root / "data/source/wordnet")
    made = wordnet_tree("wordnet", names, params.zero_shot["animals"].widths)
    save_tree(made, project / ZERO_SHOT / "trees/animals.json")

    finetune_stage(project, params, "clip", 0)
    records = attack_stage(project, params, "clip", 0)
    assert [(r.split, r.dataset) for r in records] == [
        ("tuned", "openmoji"), ("held_out", "openmoji"), ("animals", "animals")
    ]  # fmt: skip
    assert records[2].levels == [4, 2] and records[2].images == 8 and list(records[2].forest) == ["wordnet"]
    assert records[2].threat_model.prompt == "a photo of a {}"
    with pytest.raises(ValueError, match="no task 'plants'; known are tuned, held_out, animals"):
        load_task(project, params, "plants")
