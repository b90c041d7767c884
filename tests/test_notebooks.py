"""The form of the notebooks: stripped, with a story and one cell of parameters."""

import ast
import subprocess
import sys

import nbformat
import pytest

from hierclip.config import find_root

NOTEBOOKS = sorted((find_root() / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert [
        path.stem[:2] for path in NOTEBOOKS
    ] == "00 10 20 30 35 40 50 55 60 70 80 85 90 95 96".split()


def test_notebook_is_stripped(notebook):
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


def test_notebook_runs_on_the_kernel_that_every_environment_has(notebook):
    assert notebook.metadata.kernelspec.name == "python3"


def test_notebook_opens_with_its_story_and_has_one_cell_of_parameters(notebook):
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1


def test_notebook_ends_by_asserting_a_fact(notebook):
    assert isinstance(ast.parse(code(notebook)[-1]).body[-1], ast.Assert)


SETTINGS = """
import pkgutil, nltk, papermill, torch, matplotlib as mpl
from importlib import import_module

def settings():
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark
    return dict(mpl.rcParams), [*nltk.data.path], flags

before = settings()
import hierclip
for module in pkgutil.walk_packages(hierclip.__path__, "hierclip."):
    if module.name != "hierclip.__main__":
        import_module(module.name)
assert settings() == before
from hierclip.trees.wordnet import open_wordnet
assert open_wordnet().synset("dog.n.01").hypernyms() and settings() == before
"""


def test_importing_the_library_and_reading_wordnet_change_no_settings_of_others():
    subprocess.run([sys.executable, "-c", SETTINGS], check=True)
