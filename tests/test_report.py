"""The report: notebook 70 as one page that loads nothing, and says what is missing; metrics that
are the records'.
"""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pandas as pd
import papermill
import pytest

from hierclip.evaluation import RECORDS, save_record
from hierclip.evaluation.records import parse_record
from hierclip.plots.words import share
from tests.conftest import ROOT, notebook_functions
from tests.test_evaluate import record

CONFIG = ROOT / "notebooks/nbconvert_config.py"


def write_page(root, monkeypatch) -> str:
    """Do what `make report` does, in another root; give the page."""
    shutil.copy(ROOT / "params.yaml", root)
    monkeypatch.setenv("HIERCLIP_ROOT", str(root))
    run = {"engine_name": "clean", "kernel_name": "python3", "progress_bar": False}
    papermill.execute_notebook(
        ROOT / "notebooks/70_report.ipynb", root / "page.ipynb", {"page": True}, **run
    )
    convert = [
        sys.executable,
        "-m",
        "nbconvert",
        "--config",
        CONFIG,
        "--output",
        "report.html",
        root / "page.ipynb",
    ]
    subprocess.run(convert, cwd=root, check=True, capture_output=True)
    return (root / "report.html").read_text(encoding="utf8")


class Loaded(HTMLParser):
    """Collect the tags of a page, and the addresses that its attributes give."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [
            value for name, value in attrs if name in {"src", "href", "srcset", "data", "poster"}
        ]


def test_the_page_is_whole_and_has_the_headline_table(tmp_path, monkeypatch):
    made = record()
    save_record(made, tmp_path / RECORDS)
    page = write_page(tmp_path, monkeypatch)
    found = Loaded(page)
    assert (
        not found.tags & {"script", "iframe", "object", "embed"}
        and {"h1", "img", "table"} <= found.tags
    )
    assert all(address.startswith(("data:", "#")) for address in found.addresses)
    assert not re.search(r"@import|url\((?!data:)", page)
    assert page.count("data:image/png;base64,") == 4  # levels, matrix, trees, audit
    robust = share(made.robust["direct"][0][0], made.intervals["direct"].robust[0][0])
    assert f"<td>{robust}</td>" in page and "<th>path-robust, roll-up</th>" in page
    assert "<th>worst of 2 trees (8 images), roll-up</th>" in page
    assert "<td>30.0 [17.5, 42.5] (wordnet)</td>" in page
    f1, error = (made.mistakes["attacked"][name][0] for name in ("h_f1", "tree_induced_error"))
    assert "<th>hF1</th>" in page and "<th>h_f1</th>" not in page
    assert all(re.search(f"<td>{round(value, 3)}0*</td>", page) for value in (f1, error))
    assert "A trial run:</strong> 40 images" in page and "Traceback" not in page
    for what in (
        "the record hier-0/seen",
        "paired.csv",
        "strip.png",
        "margin_depth.png",
        "the ablation",
        "the sweep",
    ):
        assert re.search(f"Missing:</strong>[^\\n]*{what}", page), what
    assert not (tmp_path / "data/results/table.md").exists()


def test_without_records_the_page_says_what_makes_them(tmp_path, monkeypatch):
    page = write_page(tmp_path, monkeypatch)
    assert re.search("Missing:</strong> the record tecoa-0/seen; <code>make repro</code>", page)


@pytest.mark.parametrize(
    "root", [ROOT, *sorted((ROOT / "presets").iterdir())], ids=lambda path: path.name
)
def test_committed_metrics_are_those_of_the_committed_records(root, tmp_path):
    save_metrics = notebook_functions("70_report")["save_metrics"]
    for file in (root / RECORDS).glob("*/*.json"):
        save_metrics(parse_record(file.read_text(encoding="utf8"), file.name), tmp_path)
    made = {
        path.relative_to(tmp_path): path.read_text(encoding="utf8")
        for path in tmp_path.rglob("*.json")
    }
    kept = root / "data/results/metrics"
    assert made == {
        path.relative_to(kept): path.read_text(encoding="utf8") for path in kept.rglob("*.json")
    }


def test_metrics_are_flat_and_in_percent(tmp_path):
    notebook_functions("70_report")["save_metrics"](record(), tmp_path)
    made, found = record(), pd.read_json(tmp_path / "seen/tecoa-0.json", typ="series")
    assert found["robust leaf"] == pytest.approx(100 * made.robust["direct"][0][0], abs=0.005)
    assert found["path-robust roll_up"] == pytest.approx(
        100 * made.path_robust["roll_up"], abs=0.005
    )


def test_accuracies_have_a_row_for_each_level_and_reading_and_superclasses_one_for_each_above():
    notebook = SimpleNamespace(**notebook_functions("70_report"))
    records = [record(), record(subset="unseen")]
    rows = notebook.accuracy_table(records)
    assert len(rows) == 2 * 2 * 3 and rows["robust"].between(0, 1).all()
    assert rows["subset"].iloc[0] == "seen"
    table = notebook.superclass_table(records, {"tecoa": "TeCoA"})
    assert table.index.tolist() == [(s, "TeCoA", 0, l) for s in ("seen", "unseen") for l in (1, 2)]
    assert table.loc[("seen", "TeCoA", 0, 1), "within_superclass"] == pytest.approx(80)
