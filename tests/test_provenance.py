"""What the parts of a project say they were made from, and that parts made from else are refused."""

import json
import os
import shutil

import pytest
import yaml
from typer.testing import CliRunner

from hierclip.cli import app
from hierclip.config import load_params
from hierclip.data.dataset import CONTENT
from hierclip.data.tasks import (
    BASE,
    MODELS,
    TREES,
    check_inputs,
    inputs_file,
    inputs_of,
    load_task,
    write_inputs,
)
from hierclip.errors import HierclipError
from hierclip.studies import run_study
from tests.conftest import ROOT
from tests.miniatures import folders
from tests.test_photos import ENTRIES
from tests.test_project import project

__all__ = ["project"]  # a fixture: a project as its first three stages leave it

PARTS = ("trees", "zero_shot", "base", "tecoa-0", "hier-1")
ALL = set(PARTS)
MODEL_PARTS = {"base", "tecoa-0", "hier-1"}
OUTLINE = "data/source/trees/emoji/use.yaml"


@pytest.fixture
def made(project):
    """The project with outlines, weights in a file, and a note of what each part was made from."""
    for name in ("trees", "sets", "wordnet"):
        shutil.copytree(ROOT / "data/source" / name, project / "data/source" / name)
    (project / "mine.pt").write_bytes(b"weights")
    change(project, "model", {"pretrained": "mine.pt"})
    params = load_params(project / "params.yaml")
    for part in PARTS:
        inputs_file(project, part).parent.mkdir(parents=True, exist_ok=True)
        write_inputs(inputs_file(project, part).parent, project, params, part)
    return project


def change(project, section, entries):
    file = project / "params.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf8"))
    for key, value in entries.items():
        nested = isinstance(value, dict)
        content[section][key] = content[section].get(key, {}) | value if nested else value
    file.write_text(yaml.safe_dump(content), encoding="utf8")


def refused(project) -> dict[str, str]:
    """Return what is said of every part that is refused."""
    said = {}
    for part in PARTS:
        try:
            check_inputs(project, load_params(project / "params.yaml"), part)
        except HierclipError as error:
            said[part] = str(error)
    return said


def test_parts_made_from_what_is_there_are_used(made):
    assert refused(made) == {}


def test_a_part_that_does_not_say_what_it_was_made_from_is_used(made):
    change(made, "trees", {"widths": [80, 40, 20, 10, 4]})
    for part in PARTS:
        inputs_file(made, part).unlink()
    assert refused(made) == {}


@pytest.mark.parametrize(
    ("section", "entries", "parts"),
    [
        ("trees", {"widths": [80, 40, 20, 10, 4]}, ALL),
        ("pretrain", {"lr": 1.0}, MODEL_PARTS),
        ("model", {"template": "a {}"}, MODEL_PARTS),
        ("model", {"pretrained": "not-there.pt"}, MODEL_PARTS),
        ("finetune", {"eps": "1/255"}, {"tecoa-0", "hier-1"}),
        ("method", {"tecoa": {"lr": 1.0}}, {"tecoa-0"}),
        ("model", {"accelerator": "auto"}, set()),  # where work is done
        ("machine", {"devices": 2}, set()),
        ("attack", {"steps": 9}, set()),
        ("plots", {"dpi": 9}, set()),
    ],
)
def test_other_choices_are_refused_by_the_parts_that_depend_on_them(made, section, entries, parts):
    change(made, section, entries)
    said = refused(made)
    assert set(said) == parts
    key = "method.tecoa" if section == "method" else section
    for part, line in said.items():
        folder = inputs_file(made, part).parent
        assert line.startswith(f"{folder} was made from another params.yaml: {key}; run the")
        assert "\n" not in line


@pytest.mark.parametrize(
    ("file", "parts"),
    [
        (OUTLINE, ALL),
        ("data/source/sets/widths.yaml", ALL),
        ("data/source/wordnet/names.yaml", ALL),
        ("data/source/trees/imagenet/use.yaml", set()),  # of another set
        ("mine.pt", MODEL_PARTS),
    ],
)
def test_other_files_are_refused_by_name(made, file, parts):
    (made / file).write_bytes((made / file).read_bytes() + b"\n")
    said = refused(made)
    assert set(said) == parts and all(f"from another {file};" in line for line in said.values())


def test_other_images_are_refused(made):
    task = load_task(made, load_params(made / "params.yaml"), "seen")
    content = task.dataset.provenance()[CONTENT]  # pyright: ignore[reportAttributeAccessIssue]
    for part in PARTS:
        file = inputs_file(made, part)
        entries = json.loads(file.read_text(encoding="utf8"))
        assert entries["emoji.safetensors"] == content
        file.write_text(json.dumps(entries | {"emoji.safetensors": "other"}), encoding="utf8")
    said = refused(made)
    assert set(said) == ALL and all("another emoji.safetensors" in line for line in said.values())


def test_what_a_part_is_made_from_names_no_folder_of_this_machine(made):
    names = inputs_of(made, load_params(made / "params.yaml"), "tecoa-0")
    assert OUTLINE in names and not any(name.startswith(("/", "..")) for name in names)


def test_tasks_and_studies_refuse_old_parts(made, params):
    change(made, "trees", {"widths": [80, 40, 20, 10, 4]})
    params = load_params(made / "params.yaml")
    with pytest.raises(HierclipError, match=f"{TREES} was made from another params.yaml: trees"):
        load_task(made, params, "seen")
    with pytest.raises(HierclipError, match=f"{BASE} was made from another params.yaml: trees"):
        run_study([], params, params.sweep, made, "sweep")
    assert (made / MODELS).exists()


def watched(project) -> str:
    done = CliRunner().invoke(app, ["photographs"], catch_exceptions=False)
    assert done.exit_code == 0
    return (project / "data/photographs.txt").read_text(encoding="utf8")


def test_dvc_sees_when_photographs_are_replaced_and_only_then(project):
    folders(project / "sets/zoo/test", ["cat", "dog"])
    data = ENTRIES | {"name": "zoo", "layout": "folder", "size": 32}
    change(project, "zero_shot", {"zoo": {"data": data, "widths": [1]}})
    first = watched(project)
    assert first.startswith("zoo ") and watched(project) == first
    image = next((project / "sets/zoo").rglob("*.jpg"))
    os.utime(image, ns=(1, 1))
    assert watched(project) != first


def test_a_project_of_drawings_has_no_photographs_to_watch(project):
    assert watched(project) == "none\n"
