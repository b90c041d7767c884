"""The Makefile, with stand-ins for the commands of the environment: what it calls, and where."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hierclip.config import find_root
from hierclip.evaluation.records import COMMITTED, RECORDS
from tests.conftest import commit

ROOT = find_root()
# A stand-in notes its folder and its arguments; DVC's notes the setting that it is to keep too.
STAND_IN = """#!/bin/sh
printf '%s\\n' "$(pwd -P): ${0##*/} $*" >> "$LOG"
case "$*" in
  'config --local core.no_scm true') echo no_scm > .dvc/config.local ;;
  'config --local --unset core.no_scm') : > .dvc/config.local ;;
esac
"""
COMMANDS = ("dvc", "hierclip", "jupyter", "nbstripout", "papermill", "pytest", "ruff", "python")


def copy_project(folder: Path) -> Path:
    """Copy what make reads, and records; give the folder."""
    for name in ("Makefile", "dvc.yaml", "params.yaml", "pyproject.toml", "presets/smoke/dvc.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for name in ("requirements.lock", "requirements-peers.lock", "notebooks/a.ipynb"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    shutil.copy(ROOT / "presets/smoke/params.yaml", folder / "presets/smoke")
    for place in (folder, folder / "presets/smoke"):
        (place / RECORDS / "tecoa-0").mkdir(parents=True)
        (place / RECORDS / "tecoa-0/seen.json").write_text("as it came", encoding="utf8")
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".dvc").mkdir()
    for name in (*COMMANDS, "basedpyright"):
        (folder / ".venv/bin" / name).write_text(STAND_IN, encoding="utf8")
        (folder / ".venv/bin" / name).chmod(0o755)
    (folder / ".venv/ready").touch()
    return folder


def make(folder: Path, *arguments: str, code: int = 0) -> tuple[list[str], str]:
    """Call make; return what the stand-ins noted, with "." for the folder, and what was printed."""
    log = folder.parent / "log"
    log.write_text("", encoding="utf8")
    # Not what `make test` hands on to the commands it calls: it would be printed here too.
    environment = {key: text for key, text in os.environ.items() if not key.startswith("MAKE")}
    environment["LOG"] = str(log)
    done = subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, encoding="utf8"
    )
    assert done.returncode == code, done.stderr
    calls = log.read_text(encoding="utf8").replace(str(folder.resolve()), ".")
    return calls.splitlines(), done.stdout + done.stderr


@pytest.fixture
def project(tmp_path):
    return copy_project(tmp_path / "project")


ODD = ["a bü", "it's #b", "%d(b)&;c", " ~*[?!"]
TARGETS = "repro report test slow bench lint sweep ablate ladder lab verify PRESET=smoke".split()


def test_every_target_does_in_odd_folders_what_it_does_in_a_plain_one(tmp_path):
    plain = copy_project(tmp_path / "plain/project")
    expected, _ = make(plain, *TARGETS)
    assert len(expected) == 25 and "./presets/smoke: hierclip verify" in expected
    for name in ODD:
        odd = copy_project(tmp_path / name / "project")
        assert make(odd, *TARGETS)[0] == expected
        assert {file.name for file in odd.iterdir()} == {file.name for file in plain.iterdir()}


@pytest.mark.parametrize("name", ["a:b", "a{b}", 'say "a"', "a$b", "a`b", "a\\b", "a\nb"])
def test_a_path_that_an_environment_cannot_have_is_one_line_before_anything_is_installed(
    name, tmp_path
):
    folder = copy_project(tmp_path / name)
    shutil.rmtree(folder / ".venv")
    _, printed = make(folder, "repro", f"PYTHON={sys.executable}", code=2)
    line, stop = printed.splitlines()
    assert line.startswith("the path of this folder holds '") and stop.startswith("make: *** ")
    assert not (folder / ".venv").exists()


@pytest.mark.parametrize(
    ("version", "line"),
    [
        ("3, 10", "Python 3.11, 3.12 or 3.13 is needed; this is 3.10. Try make PYTHON=python3.11"),
        ("3, 11", ""),
        ("3, 13", ""),
        ("3, 14", "Python 3.14 is newer than 3.11 to 3.13, which are supported; should a package"),
    ],
)
def test_it_is_said_which_pythons_are_supported(version, line, project):
    """A stand-in for python3 runs make's check in this Python as if it were another version."""
    (project / ".venv/ready").unlink()
    python = project / "python3"
    lines = [f"#!{sys.executable}", "import sys", f"sys.version_info = ({version}, 0)"]
    python.write_text("\n".join([*lines, "exec(sys.argv[2])"]), encoding="utf8")
    python.chmod(0o755)
    old = version == "3, 10"
    calls, printed = make(project, ".venv/ready", "PYTHON=./python3", code=2 if old else 0)
    assert line in printed and ("Python 3" in printed) == bool(line)
    assert bool(calls) != old and (project / ".venv/ready").exists() != old


def test_a_pipeline_that_changed_is_copied_to_every_preset_and_one_that_did_not_is_left(project):
    (project / "presets/my own").mkdir()
    copies = [project / "presets" / name / "dvc.yaml" for name in ("smoke", "my own")]
    copies[1].write_text("older", encoding="utf8")
    before = copies[0].stat().st_mtime_ns
    make(project, "repro")
    assert copies[0].stat().st_mtime_ns == before
    assert copies[1].read_bytes() == (project / "dvc.yaml").read_bytes()


def test_without_git_dvc_is_told_and_the_records_are_kept_once(project):
    first, _ = make(project, "repro")
    assert first[0] == ".: dvc config --local core.no_scm true"
    kept = [
        place / COMMITTED / "tecoa-0/seen.json" for place in (project, project / "presets/smoke")
    ]
    (project / RECORDS / "tecoa-0/seen.json").write_text("made here", encoding="utf8")
    assert not any("config" in call for call in make(project, "repro")[0])
    assert [file.read_text(encoding="utf8") for file in kept] == ["as it came"] * 2


def test_records_that_were_made_here_are_not_kept_as_those_that_came(project):
    (project / "data/attacks").mkdir()
    make(project, "repro")
    assert not (project / COMMITTED).exists() and (project / "presets/smoke" / COMMITTED).exists()


def test_once_git_knows_the_folder_it_is_asked_again(project):
    make(project, "repro")
    commit(project)
    calls, _ = make(project, "repro")
    assert calls[0] == ".: dvc config --local --unset core.no_scm"
    assert not (project / COMMITTED).exists()
    assert make(project, "repro")[0] == [".: dvc repro", ".: hierclip readme"]


def test_another_projects_repository_is_no_git_for_this_one(project):
    (project.parent / ".gitignore").write_text("*\n", encoding="utf8")
    commit(project.parent)
    calls, _ = make(project, "repro")
    assert calls[0] == ".: dvc config --local core.no_scm true"
    assert (project / COMMITTED).exists()
