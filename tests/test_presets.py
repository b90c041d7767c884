"""Presets: folders with parameters of their own, in which the same pipeline works."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hierclip.config import ParamsError, find_root, load_params
from hierclip.data import DATASETS
from hierclip.evaluation import RECORDS, load_records
from tests.conftest import git

ROOT = find_root()
PRESETS = sorted((ROOT / "presets").iterdir())
SHARED = {"lib", "notebooks", "requirements.lock", "data/source"}
each_preset = pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)


def sections(folder: Path) -> dict:
    return yaml.safe_load((folder / "params.yaml").read_text(encoding="utf8"))


def test_the_presets_are_those_that_the_readme_lists():
    readme = (ROOT / "README.md").read_text(encoding="utf8")
    assert [path.name for path in PRESETS] == [
        "emoji-full",
        "paper",
        "smoke",
        "tiny-imagenet",
    ]
    assert all(f"`{path.name}`" in readme for path in PRESETS)


@each_preset
def test_a_preset_is_complete_and_shares_all_but_its_choices_and_results(preset):
    params = load_params(preset / "params.yaml")
    assert set(sections(preset)) == set(sections(ROOT))
    links = {
        path.relative_to(preset).as_posix(): path for path in preset.rglob("*") if path.is_symlink()
    }
    assert set(links) == SHARED and all(links[name].resolve() == ROOT / name for name in SHARED)
    assert params.plots == load_params(ROOT / "params.yaml").plots
    assert params.data.name in DATASETS and all(
        e.data.name in DATASETS or e.data.layout == "folder" for e in params.zero_shot.values()
    )
    assert params.trees.names[0] == "wordnet"
    for name in params.trees.names[1:]:
        assert (ROOT / "data/source/trees" / params.data.name / f"{name}.yaml").exists()


@each_preset
def test_a_preset_has_the_pipeline_as_a_copy_since_dvc_follows_no_link_in_a_commit(preset):
    assert not (preset / "dvc.yaml").is_symlink()
    assert (preset / "dvc.yaml").read_bytes() == (ROOT / "dvc.yaml").read_bytes(), (
        "make repro copies it anew"
    )


@each_preset
def test_dvc_knows_the_stages_of_a_preset(preset):
    lines = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list", "--name-only"],
        cwd=preset,
        capture_output=True,
        encoding="utf8",
        check=True,
    )
    params = load_params(preset / "params.yaml")
    stages = {
        f"{stage}@{m}-{s}"
        for stage in ("finetune", "attack")
        for m in params.methods
        for s in params.seeds
    }
    assert set(lines.stdout.split()) == stages | {
        "photographs",
        "data",
        "trees",
        "pretrain",
        "transfer",
        "margin_depth",
        "report",
    }


@each_preset
def test_git_ignores_no_lock_file_which_dvc_refuses(preset):
    with pytest.raises(subprocess.CalledProcessError):  # or there is no git here
        git(ROOT, "check-ignore", str(preset / "dvc.lock"))


def test_the_paper_has_its_fifteen_sets_each_with_a_tree():
    params = load_params(ROOT / "presets/paper/params.yaml")
    assert len(params.zero_shot) == 15 and params.tasks == ("seen", *params.zero_shot)
    known = yaml.safe_load((ROOT / "data/source/sets/widths.yaml").read_text(encoding="utf8"))
    assert all(
        name in known or (ROOT / f"data/source/sets/{name}.yaml").exists()
        for name in params.zero_shot
    )


def test_the_full_preset_differs_from_the_default_in_methods_and_seeds_alone():
    default, full = sections(ROOT), sections(ROOT / "presets/emoji-full")
    assert set(default["methods"]) < set(full["methods"]) == set(full["method"])
    assert {k for k in default if default[k] != full[k]} == {"methods", "seeds"}


@pytest.mark.slow
def test_a_preset_runs_from_the_pictures_to_the_report():
    subprocess.run(["make", "repro", "PRESET=smoke"], cwd=ROOT, check=True)
    params, smoke = load_params(ROOT / "presets/smoke/params.yaml"), ROOT / "presets/smoke"
    records = load_records(smoke / RECORDS)
    assert {(r.method, r.subset) for r in records} == {
        (m, s) for m in params.methods for s in params.tasks
    }
    assert (smoke / "data/results/table.md").exists() and list(
        (smoke / "data/results/figures").glob("levels_*")
    )


def test_a_preset_that_is_not_there_is_refused_beside_the_known():
    said = subprocess.run(
        ["make", "repro", "PRESET=papers"], cwd=ROOT, capture_output=True, encoding="utf8"
    )
    assert said.returncode == 2
    assert "no preset papers; known are emoji emoji-full paper smoke tiny-imagenet" in said.stderr


def test_the_root_may_be_named_in_the_environment(monkeypatch):
    monkeypatch.setenv("HIERCLIP_ROOT", str(ROOT / "presets/smoke"))
    assert find_root() == ROOT / "presets/smoke" and load_params() == load_params(
        ROOT / "presets/smoke/params.yaml"
    )


def test_a_set_stands_once_among_the_zero_shot_ones(tmp_path):
    entries = sections(ROOT / "presets/tiny-imagenet")
    entries["zero_shot"]["again"] = entries["zero_shot"]["cifar10"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf8")
    with pytest.raises(
        ParamsError, match="zero_shot.again has cifar10-images at .*; it must be a set of its own"
    ):
        load_params(tmp_path / "params.yaml")


def test_not_all_classes_are_unseen_of_what_is_fine_seen_on(tmp_path):
    entries = sections(ROOT / "presets/tiny-imagenet")
    assert any(entry["data"]["holdout_every"] == 1 for entry in entries["zero_shot"].values())
    entries["data"]["holdout_every"] = 1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf8")
    with pytest.raises(
        ParamsError,
        match="yaml: data.holdout_every is 1, which leaves no class to fine-tune on; .*$",
    ):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 16}, "zero_shot.cifar10 has .*; it must be a set of its own, at data.size "),
        (
            {"name": "tiny-imagenet"},
            "zero_shot.cifar10 has .*; it must be a set of its own, at data.size ",
        ),
        ({"val_per_class": 0}, "val_per_class"),
    ],
)
def test_a_zero_shot_set_that_does_not_fit_is_refused(change, message, tmp_path):
    entries = sections(ROOT / "presets/tiny-imagenet")
    entries["zero_shot"]["cifar10"]["data"] |= change
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf8")
    with pytest.raises(ParamsError, match=message):
        load_params(tmp_path / "params.yaml")
