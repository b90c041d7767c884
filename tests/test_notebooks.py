"""The form of the notebooks: stripped, with a story and one cell of parameters."""

import ast

import nbformat
import pytest

from hierclip.params import find_root

NOTEBOOKS = sorted((find_root() / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert [path.stem[:2] for path in NOTEBOOKS] == "00 10 20 30 35 40 50 55 60 70 80 90 91".split()


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
