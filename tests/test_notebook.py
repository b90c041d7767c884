"""Notebooks as the pipeline runs them."""

import json

import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

RUN = {"engine_name": "clean", "kernel_name": "python3", "progress_bar": False}


def written(path, *sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    metadata = {"language_info": {"name": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    return path


def test_two_runs_give_the_same_copy_with_its_outputs(tmp_path):
    source = written(tmp_path / "in.ipynb", "n = 1", "print(n + 40)")
    for name in ("a.ipynb", "b.ipynb"):
        papermill.execute_notebook(source, tmp_path / name, {"n": 2}, **RUN)
    first, second = (
        (tmp_path / name).read_text(encoding="utf8") for name in ("a.ipynb", "b.ipynb")
    )
    assert first.replace("a.ipynb", "b.ipynb") == second
    copy = nbformat.reads(first, as_version=4)
    assert copy.cells[-1].outputs[0]["text"] == "42\n" and copy.cells[-1].execution_count == 3
    assert "papermill" not in first and "python_version" not in first


def test_a_cell_that_fails_is_reported_and_kept(tmp_path):
    source = written(tmp_path / "in.ipynb", "n = 1", "raise ValueError('no such tree')")
    with pytest.raises(PapermillExecutionError, match="no such tree"):
        papermill.execute_notebook(source, tmp_path / "out.ipynb", **RUN)
    assert "no such tree" in (tmp_path / "out.ipynb").read_text(encoding="utf8")


def test_what_a_stage_took_is_kept_beside_the_folder_of_executed_notebooks(tmp_path):
    source = written(tmp_path / "in.ipynb", "n = 1", "sum(range(10**6))")
    (tmp_path / "executed").mkdir()
    papermill.execute_notebook(source, tmp_path / "executed/10_data.ipynb", **RUN)
    spent = json.loads((tmp_path / "times/10_data.json").read_text(encoding="utf8"))
    assert spent["user"] > 0 and 0 < spent["wall"] < 120
    papermill.execute_notebook(source, tmp_path / "out.ipynb", **RUN)  # no stage
    assert [file.name for file in (tmp_path / "times").iterdir()] == ["10_data.json"]
