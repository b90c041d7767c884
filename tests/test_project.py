"""Notebooks of a project, run as scripts, in one process and in several."""

import shutil
import subprocess

import pandas as pd
import pytest
import torch
import yaml
from typer.testing import CliRunner

from hierclip import models
from hierclip.cli import app, main
from hierclip.config import load_params
from hierclip.data import PREPARED, load_dataset
from hierclip.data.emoji import SOURCE
from hierclip.data.tasks import BASE, MODELS, TREES, ZERO_SHOT, load_task, zero_shot_file
from hierclip.distributed import make_fabric, run_in_processes, run_script
from hierclip.errors import HierclipError
from hierclip.evaluation import RECORDS, Record, load_records
from hierclip.models import CosineHead, Model, load_model
from hierclip.progress import HEADLESS
from hierclip.training import set_up
from hierclip.trees import save_tree, wordnet_tree
from tests.conftest import ONE_STYLE, ROOT, notebook_functions, prepare
from tests.miniatures import folders

QUICK = {"steps": 2, "batch": 8, "checkpoint_every": 50}
ATTACK = {
    "steps": 1,
    "suite": ["pgd_margin"],
    "bootstrap": 10,
    "audit_images": 2,
    "forest_images": 8,
    "queries": 2,
}


@pytest.fixture
def project(emoji, emoji_forest, backbone, tmp_path, monkeypatch):
    """A project as its first three stages leave it, with short settings and one tree."""
    entries = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf8"))
    entries["finetune"] |= QUICK
    entries["attack"] |= ATTACK
    entries["data"] |= ONE_STYLE | {"styles": list(ONE_STYLE["styles"])}
    entries["zero_shot"] = {}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(entries), encoding="utf8")
    for path, there in (
        (SOURCE, ROOT / SOURCE),
        (f"{PREPARED}/emoji.safetensors", emoji.prepared),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).symlink_to(there)
    for name in entries["trees"]["names"]:
        save_tree(emoji_forest[0], tmp_path / TREES / f"{name}.json")
    models.save_model(Model(backbone, CosineHead(14.0), "base"), tmp_path / BASE)
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HIERCLIP_ROOT", str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv(HEADLESS, "yes")  # so that what a command sets goes with the test
    return tmp_path


def records_of(project) -> dict[str, Record]:
    return {record.name: record for record in load_records(project / RECORDS)}


def settings(project, **changes):
    """The project's parameters with another machine, or other ones of the model, written to its
    file too.
    """
    file = project / "params.yaml"
    entries = yaml.safe_load(file.read_text(encoding="utf8"))
    for key, value in changes.items():
        entries["machine" if key in entries["machine"] else "model"][key] = value
    file.write_text(yaml.safe_dump(entries), encoding="utf8")
    return load_params(file)


def finetuned(project, method: str, seed: int) -> tuple[Model, pd.DataFrame]:
    """Run notebook 40 in this process; return what it wrote."""
    run_script(ROOT / "notebooks/40_finetune.ipynb", {"method": method, "seed": seed})
    folder = project / MODELS / f"{method}-{seed}"
    return load_model(folder), pd.read_csv(folder / "history.csv")


def attacked(method: str) -> None:
    """Run notebook 50 in this process, as far as the records."""
    run_script(ROOT / "notebooks/50_attack.ipynb", {"method": method})


def test_notebook_40_writes_the_model_and_what_each_step_logged(project):
    settings(project)
    model, history = finetuned(project, "hier", 3)
    assert (
        model.method == "hier"
        and {"loss", "rim_images", "vic_active"} <= set(history)
        and len(history) == 2
    )
    model, history = finetuned(project, "clip", 0)
    assert model.method == "clip" and not len(history) and list(history) == ["loss"]


@pytest.mark.parametrize("method", ["tecoa", "hier"])
def test_notebook_40_shows_the_step_that_worker_processes_take(project, method):
    params = settings(project)
    task = load_task(project, params, "seen")
    backbone, settings_of = load_model(project / BASE).backbone, params.method[method]
    work = set_up(make_fabric(params.model), settings_of, params.finetune, backbone, task, seed=0)
    step_loss = notebook_functions("40_finetune", work=work, settings=settings_of)["step_loss"]
    (shown, shown_log), (loss, log) = step_loss(1), work.step_loss(1)
    assert torch.equal(shown, loss) and shown_log == log


def test_the_base_model_is_made_or_taken(project):
    file = project / "params.yaml"
    entries = yaml.safe_load(file.read_text(encoding="utf8"))
    entries["pretrain"] |= {"steps": 2, "batch": 8}
    file.write_text(yaml.safe_dump(entries), encoding="utf8")
    weights, history = (
        project / BASE / "open_clip_model.safetensors",
        project / BASE / "history.csv",
    )
    settings(project, devices=2)  # BatchNorm: one process all the same
    run_script(ROOT / "notebooks/30_pretrain.ipynb", {})
    made = load_model(project / BASE)
    assert made.method == "base" and len(pd.read_csv(history)) == 2
    settings(project, pretrained=str(weights), devices=2)
    run_script(ROOT / "notebooks/30_pretrain.ipynb", {})
    taken = load_model(project / BASE).backbone.clip.state_dict().values()
    pairs = zip(taken, made.backbone.clip.state_dict().values(), strict=True)
    assert not len(pd.read_csv(history)) and all(a.equal(b) for a, b in pairs)


def test_in_two_processes_it_gives_the_same_as_in_one(project):
    settings(project)
    _, once = finetuned(project, "tecoa", 0)
    shutil.rmtree(project / MODELS / "tecoa-0")
    settings(project, devices=2)
    _, twice = finetuned(project, "tecoa", 0)
    assert twice["loss"].to_numpy() == pytest.approx(once["loss"].to_numpy(), rel=1e-4)
    assert not list((project / "data/checkpoints").glob("*.ckpt"))


def test_a_notebook_is_run_by_its_name_and_keeps_an_executed_copy(project):
    said = CliRunner().invoke(app, ["run", "40_finetune", "-p", "method=tecoa", "-p", "seed=1"])
    assert (
        said.exit_code == 0 and "executed: data/executed/40_finetune-tecoa-1.ipynb" in said.output
    )
    assert load_model(project / MODELS / "tecoa-1").method == "tecoa"
    assert (project / "data/executed/40_finetune-tecoa-1.ipynb").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["41"], "no notebook '41'; known are 00_index, 10_data, "),
        (
            ["40_finetune", "-p", "lr=2"],
            "-p lr=2: write NAME=VALUE; 40_finetune.ipynb: no parameter 'lr'; known are method, ",
        ),
        (
            ["40_finetune", "-p", "seed"],
            "-p seed: write NAME=VALUE; 40_finetune.ipynb: no value is given",
        ),
        (
            ["40_finetune", "-p", "sede=1"],
            "-p sede=1: write NAME=VALUE; 40_finetune.ipynb: no parameter 'sede'; did you mean seed?",
        ),
        (["40_finetune", "-p", "method=none"], "method: no method 'none'; known are agft, "),
    ],
)
def test_a_wrong_argument_is_one_line(project, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr("sys.argv", ["hierclip", "run", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"hierclip: {message}")


def test_one_device_needs_no_other_process(project, monkeypatch):
    assert not run_in_processes(settings(project), project, "40_finetune", method="tecoa")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")  # one of torchrun's own
    assert not run_in_processes(
        settings(project, devices=2), project, "40_finetune", method="tecoa"
    )


def test_as_many_processes_as_asked_for_are_there_or_it_is_said(project, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setenv("WORLD_SIZE", "3")
    for devices in (1, 2):
        settings(project, devices=devices)
        with pytest.raises(
            ValueError, match=f"^3 processes; params.yaml's machine asks for {devices}$"
        ):
            finetuned(project, "clip", 0)


def test_other_processes_read_the_file(project):
    params = settings(project, devices=2)
    changed = params.model_copy(update={"seeds": (5,)})
    with pytest.raises(
        HierclipError, match=r"read their parameters from .*params\.yaml; change them there$"
    ):
        run_in_processes(changed, project, "40_finetune", method="tecoa")


def test_several_machines_meet(project, monkeypatch, capsys):
    lines = []
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda line, **_: lines.append(line) or subprocess.CompletedProcess([], 0),
    )
    params = settings(project, devices=8, nodes=2, address="one:29500")
    assert run_in_processes(params, project, "40_finetune", method="tecoa")
    meeting = "--nnodes 2 --rdzv-backend c10d --rdzv-endpoint one:29500 --nproc-per-node 8"
    assert f" {meeting} -m hierclip run 40_finetune " in " ".join(lines[0])
    command = "hierclip run 40_finetune -p method=tecoa"
    assert f"waiting for 2 machines; on each run: {command}" in capsys.readouterr().out


def test_a_process_that_fails_is_said(project, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 7))
    message = r"^hierclip run 40_finetune -p seed=0 failed in one of 2 processes \(exit 7\)$"
    with pytest.raises(HierclipError, match=message):
        run_in_processes(settings(project, devices=2), project, "40_finetune", seed=0)


def test_a_zero_shot_set_is_attacked_beside_the_splits_and_checked_like_them(project, root):
    classes = ["cat.n.01", "dog.n.01", "car.n.01", "truck.n.01"]
    folders(project / "sets/animals", classes, seed=0)
    data = {
        "name": "animals",
        "layout": "folder",
        "root": "sets",
        "download": False,
        "size": 32,
        "train_per_class": 0,
    }
    data |= {
        "val_per_class": 1,
        "test_per_class": 2,
        "holdout_every": 1,
        "stream": False,
        "strict": False,
    }
    entries = yaml.safe_load((project / "params.yaml").read_text(encoding="utf8"))
    entries["zero_shot"] = {"animals": {"data": data, "template": "a photo of a {}", "widths": [2]}}
    (project / "params.yaml").write_text(yaml.safe_dump(entries), encoding="utf8")
    params = load_params(project / "params.yaml")
    dataset = load_dataset(params.zero_shot["animals"].data, project, zero_shot_file("animals"))
    prepare(dataset)
    names = {leaf.id: leaf.name for leaf in dataset.leaves}
    (project / "data/source/wordnet").symlink_to(root / "data/source/wordnet")
    made = wordnet_tree("wordnet", names, params.zero_shot["animals"].widths)
    save_tree(made, project / ZERO_SHOT / "trees/animals.json")

    finetuned(project, "clip", 0)
    attacked("clip")
    records = [records_of(project)[f"clip-0/{name}"] for name in params.tasks]
    assert [(r.subset, r.dataset) for r in records] == [
        ("seen", "emoji"), ("unseen", "emoji"), ("animals", "animals")
    ]  # fmt: skip
    assert (
        records[2].levels == [4, 2]
        and records[2].images == 8
        and list(records[2].forest) == ["wordnet"]
    )
    assert records[2].threat_model.prompt == "a photo of a {}"
    with pytest.raises(ValueError, match="no task 'plants'; known are seen, unseen, animals"):
        load_task(project, params, "plants")
