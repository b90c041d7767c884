"""What `pip install` brings to somebody who has no clone."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile

import pytest

from hierclip import models
from hierclip.evaluation.records import parse_record
from tests.conftest import ROOT
from tests.miniatures import folders


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel of a copy of the project."""
    project = tmp_path_factory.mktemp("wheel")
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    unneeded = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("lib", "notebooks", "data/source"):
        shutil.copytree(ROOT / name, project / name, symlinks=True, ignore=unneeded)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    subprocess.run([sys.executable, "-c", code, project], cwd=project, check=True)
    (made,) = project.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """Make an environment with the wheel in it and, instead of downloads, the packages installed
    here; our own, which is installed here from the checkout, is not seen. Return its Python.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"), encoding="utf8")
    return folder / "bin/python"


def run_there(python, folder, *arguments, codes=(0,)):
    """Run Python outside any clone; return what it prints. It ends with one of these exit codes."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HIERCLIP", "PYTHON"))
    }
    more = {"JUPYTER_PATH": f"{sys.prefix}/share/jupyter", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, *arguments], cwd=folder, env=kept | more, capture_output=True, encoding="utf8"
    )
    assert done.returncode in codes, done.stderr[-3000:]
    return done.stdout


BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in %r:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
"""
EXTRAS = ("IPython", "anywidget", "dvc", "h5py", "ipykernel", "ipywidgets", "jupyterlab")
EXTRAS += ("matplotlib", "nbconvert", "nbformat", "nbstripout", "papermill", "seaborn", "pytest")
FROM_PYTHON = """
import torch
from hierclip import audit
from hierclip.explorer import disk
from hierclip.models import load_model

images, labels, names = torch.rand(6, 3, 32, 32), torch.arange(6) % 3, ["cat", "dog", "ship"]
weight = torch.randn(3 * 32 * 32, 3) / 50
given = {"classes": names, "tree": "cifar10", "suite": "quick", "steps": 1, "checks": 1, "queries": 2}
found = audit(lambda x: x.flatten(1) @ weight, images, labels, **given)
print(found.record.levels)
"""


def not_in_pages() -> list[str]:
    """List the packages of extras that somebody lacks who installed the core and `pages`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
    extras = project["optional-dependencies"]
    there = {*project["dependencies"], *extras["pages"]}
    others = {
        extra: names for extra, names in extras.items() if extra != "dev"
    }  # which torch seeks
    every = {name.replace("-", "_") for names in others.values() for name in names}
    return sorted(name for name in every - there if "[" not in name)


def test_a_wheel_has_what_an_audit_needs_and_no_stage_of_the_pipeline(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for file in (
        "notebooks/95_audit.ipynb",
        "notebooks/96_compare.ipynb",
        "notebooks/nbconvert_config.py",
        "notebooks/page/conf.json",
        "notebooks/page/index.html.j2",
        "models/hierclip-tiny.json",
        "source/trees/imagenet/wordnet.json",
        "source/trees/imagenet/use.yaml",
        "source/wordnet/data.noun",
        "source/wordnet/LICENSE",
    ):
        assert f"hierclip/{file}" in names
    assert "hierclip/notebooks/70_report.ipynb" not in names
    assert not [name for name in names if "emoji/" in name and name.endswith(".png")]


def test_it_is_the_wheel_that_is_run(environment, tmp_path):
    code = "import hierclip; print(hierclip.__file__)"
    assert run_there(environment, tmp_path, "-c", code).startswith(str(environment.parents[1]))


def test_trees_come_with_it(environment, tmp_path):
    code = (
        "from hierclip.trees import load, wordnet_tree;"
        "print(load('imagenet').sizes[0], load('cifar100').max_level);"
        "zoo = {'cat.n.01': 'cat', 'dog.n.01': 'dog', 'car.n.01': 'car'};"
        "print(wordnet_tree('zoo', zoo, [2]).sizes)"
    )
    assert run_there(environment, tmp_path, "-c", code).split("\n")[:2] == ["1000 4", "(3, 2)"]


def test_a_folder_is_audited_with_it(environment, backbone, tmp_path):
    folders(tmp_path / "zoo", ["cat", "dog", "truck", "ship"])
    models.save(backbone, tmp_path / "clip")
    given = (
        "--images zoo --model clip --tree cifar10 --suite apgd_ce --steps 1 --checks 1 --queries 2"
    )
    command = f"sys.argv[1:] = {['audit', *given.split()]}; from hierclip.cli import main; main()"
    shown = run_there(
        environment, tmp_path, "-c", BLOCK % (not_in_pages(),) + command, codes=(0, 1)
    )
    assert "| level | nodes |" in " ".join(shown.split())
    record = (tmp_path / "hierclip-audit/record.json").read_text(encoding="utf8")
    assert parse_record(record, "record").levels == [4, 3, 2]
    assert (tmp_path / "hierclip-audit/report.html").stat().st_size > 100_000


def test_the_core_audits_from_python_without_any_extra(environment, tmp_path):
    shown = run_there(environment, tmp_path, "-c", BLOCK % (EXTRAS,) + FROM_PYTHON)
    assert shown.endswith("[3, 2, 2]\n")


def test_a_command_that_makes_pages_says_which_extra_it_needs(environment, tmp_path):
    code = "sys.argv[1:] = ['compare', '.']; from hierclip.cli import main; main()"
    done = subprocess.run(
        [environment, "-c", BLOCK % (("nbconvert",),) + code],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf8",
    )
    assert done.returncode == 2 and done.stderr == (
        "hierclip: No module named 'nbconvert'; it comes with the extra `pages`: in the clone, "
        "pip install '.[pages]'\n"
    )


def test_the_version_is_written_once_and_the_citation_agrees(wheel):
    version = wheel.name.split("-")[1]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf8")
    assert f"\nversion: {version}\n" in citation
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf8")
    assert f"version = {{{version}}}" in (ROOT / "docs/reproduce.md").read_text(encoding="utf8")
    names = zipfile.ZipFile(wheel).namelist()
    assert "hierclip/py.typed" in names
