"""The report: everything on one page, numbers that are the records', and what to run where something is missing."""

import re
import shutil
from html import unescape
from types import SimpleNamespace

import pandas as pd
import pytest

from hierclip.evaluate import RECORDS, RecordError, load_records, save_record
from hierclip.evaluate.records import parse_record
from hierclip.margins import no_margins
from hierclip.params import load_params
from hierclip.plots.frames import save_metrics
from hierclip.plots.table import split_words
from hierclip.report import captions, sections
from hierclip.report.page import Table, Text
from hierclip.report.results import Results, load_results
from hierclip.report.sections import FIELDS, SECTIONS, all_sections, audits, threats
from hierclip.report.write import write_report
from tests.conftest import ROOT
from tests.test_evaluate import record

LABELS = {"tecoa": "TeCoA", "hier": "Hierarchical"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The committed results, and a strip for one method."""
    root = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "params.yaml", root)
    shutil.copytree(ROOT / "data/results", root / "data/results")
    strip = root / "data/attacks/hier-0/strip.png"
    strip.parent.mkdir(parents=True)
    shutil.copy(root / "data/results/figures/levels_tuned.png", strip)
    return root


def tables(page) -> dict[str, pd.DataFrame]:
    """By caption, what stands in a page's tables."""
    found = {}
    for table in re.findall(r"<table>(.*?)</table>", page, re.S):
        lines = re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.S)
        heads, *rows = [[unescape(c) for c in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line)] for line in lines]
        caption = re.search(r"<caption>(.*?)</caption>", table)
        found[unescape(caption[1]) if caption else ""] = pd.DataFrame(rows, columns=heads)
    return found


def text_of(sections) -> str:
    parts = [part for section in sections for part in section.parts]
    return "\n".join(part.markdown if isinstance(part, Text) else part.caption for part in parts)


def test_the_page_holds_every_part_and_names_what_is_missing_with_the_command(project):
    path, missing = write_report(project)
    page = path.read_text(encoding="utf8")
    assert path == project / "data/results/report.html" and all(f"{title}</h2>" in page for title in SECTIONS)
    assert len(missing) == 4 and all(
        "strip.png; make repro makes it, where an attack" in line for line in missing
    )  # of five methods
    assert page.count("data:image/png;base64,") == len(list((project / "data/results/figures").glob("*.png"))) + 1
    before = path.read_bytes()
    assert write_report(project)[0].read_bytes() == before


def test_the_pages_tables_hold_the_figures_of_the_records_in_their_rows_and_columns(project):
    shown, labels = tables(write_report(project)[0].read_text(encoding="utf8")), load_results(project).params.labels
    for r in load_records(project / RECORDS):
        results = shown[f"{split_words(r.split)}: {r.images} pictures."].set_index(["method", "seed"])
        row, direct = results.loc[(labels[r.method], str(r.seed))], r.intervals["direct"]
        for column, value, (low, high) in (
            ("clean leaf", r.clean["direct"][0], direct.clean[0]),
            ("robust leaf", r.robust["direct"][0][0], direct.robust[0][0]),
            ("worst level", r.worst_level[r.reading], r.intervals[r.reading].worst_level),
            ("path-robust, direct", r.path_robust["direct"], direct.path_robust),
            ("path-robust, roll-up", r.path_robust["roll_up"], r.intervals["roll_up"].path_robust),
        ):
            assert row[column] == f"{100 * value:.1f} [{100 * low:.1f},\N{NO-BREAK SPACE}{100 * high:.1f}]", column
        checks = shown[f"Every check of the audit. {split_words(r.split)}."].set_index("check")
        found = checks[f"{labels[r.method]}, seed {r.seed}"]
        for name, check in r.audit.checks.items():
            assert found[name] == f"{100 * check.value:.1f} %" + ("" if check.passed else ", failed")
        threat = next(table for caption, table in shown.items() if f"{r.name} ({r.images} pictures)" in caption)
        assert threat.set_index("what").loc["eps", "value"] == r.threat_model.eps


def test_a_preset_says_its_own_command(project):
    found = load_results(project)
    there = Results(ROOT / "presets/smoke", found.params, found.records)
    assert found.make("repro") == "make repro" and there.make("ablate") == "make ablate PRESET=smoke"
    said = text_of(all_sections(there))
    for what in ("paired.csv", "margins.csv", "levels_tuned.png", "the ablation", "the sweep"):
        assert what in said


def test_a_report_on_few_pictures_says_that_it_is_a_trial(project, tmp_path):
    assert "A trial run" not in write_report(project)[0].read_text(encoding="utf8")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    save_record(record(), tmp_path / RECORDS)
    assert "A trial run:</strong> 40 pictures" in write_report(tmp_path)[0].read_text(encoding="utf8")


def test_a_flat_method_has_no_trees_and_no_choice_of_perturbation(project):
    page = tables(write_report(project)[0].read_text(encoding="utf8"))
    methods = page["Methods, as params.yaml has them."].set_index("method")
    assert methods.loc["TeCoA", "trees"] == "leaves alone" and "perturbation" not in methods.loc["TeCoA", "settings"]
    assert methods.loc["Hierarchical", "trees"] == "wordnet"
    assert "perturbation: universal" in methods.loc["Hierarchical", "settings"]


def test_without_records_it_says_what_makes_them(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    with pytest.raises(RecordError, match="make repro"):
        write_report(tmp_path)


def test_records_of_other_methods_alone_are_refused(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    save_record(record(method="fare"), tmp_path / RECORDS)
    with pytest.raises(RecordError, match="methods and seeds"):
        write_report(tmp_path)


def test_records_that_the_parameters_ask_for_and_that_are_not_there_are_named(project, tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    made = record(method="hier")
    save_record(made, tmp_path / RECORDS)
    said = text_of(all_sections(load_results(tmp_path)))
    assert "the record tecoa-0/tuned" in said and "the record hier-0/held_out" in said
    assert "the record hier-0/tuned" not in said


def failing(**changes):
    audit = record().audit.model_dump()
    audit["checks"]["steps"] = {"value": 0.25, "high": 0.9, "limit": 0.05, "passed": False}
    return record(audit=audit, **changes)


def results(*records) -> Results:
    return Results(ROOT, load_params(ROOT / "params.yaml"), records)


def test_a_failed_check_is_marked_said_and_explained():
    parts = list(audits(results(failing())))
    table = next(part for part in parts if isinstance(part, Table))
    rows = dict(zip(table.frame["check"], table.frame["TeCoA, seed 0"], strict=True))
    assert rows == {"steps": "25.0 %, failed", "clamps": "0.0 %"}
    assert [table.frame["check"][k] for k in table.marked] == ["steps"]
    assert isinstance(parts[0], Text) and "too high for that model" in parts[0].markdown
    assert "TeCoA, steps" in captions.audit([failing()], LABELS)
    assert captions.audit([record()], LABELS).count("nothing.") == 1


def test_threat_models_are_given_in_full_once_each():
    other = record().threat_model.model_copy(update={"eps": "8/255"})
    parts = threats(results(record(), failing(method="hier"), record(threat_model=other)))
    shown = [part for part in parts if isinstance(part, Table)]
    assert len(shown) == 2 and "tecoa-0/tuned" in shown[0].caption and "hier-0/tuned" in shown[0].caption
    for table in shown:
        assert set(table.frame["what"]) == set(FIELDS) == set(type(other).model_fields)
    assert dict(zip(shown[1].frame["what"], shown[1].frame["value"], strict=True))["eps"] == "8/255"


def test_captions_say_the_numbers_of_the_best():
    worse = record(worst_level={"direct": 0.1, "roll_up": 0.2})
    better = record(method="hier", worst_level={"direct": 0.345, "roll_up": 0.15})
    said = captions.levels([worse, better], LABELS)
    assert "Hierarchical, 34.5 % at the worst level" in said and "TeCoA, 20.0 % at the worst level" in said
    tied = captions.levels([worse, record(method="hier", worst_level={"direct": 0.1, "roll_up": 0.0})], LABELS)
    assert "it is TeCoA and Hierarchical, 10.0 % at the worst level" in tied
    fallen = [record(method=method, worst_level={"direct": 0.0, "roll_up": 0.0}) for method in ("tecoa", "hier")]
    assert "it is none; read from the predicted leaf (right) none." in captions.levels(fallen, LABELS)
    spread = captions.trees([record()], LABELS)
    figures = {name: f"{100 * tree.path_robust['direct']:.1f} % in {name}" for name, tree in record().forest.items()}
    assert all(words in spread for words in figures.values())


def test_the_caption_of_margins_says_how_much_of_the_bound_is_used():
    rows = [("a", 0, 5.0, 0.25), ("a", 1, 2.0, 0.375)]
    summary = pd.DataFrame(rows, columns=["tree", "level", "q50", "share"])
    said = captions.margin(summary, "Forest")
    assert "37.5 %, in the tree a at level 1" in said and "5.0 logits" in said


@pytest.mark.parametrize("root", [ROOT, *sorted((ROOT / "presets").iterdir())], ids=lambda path: path.name)
def test_committed_metrics_are_those_of_the_committed_records(root, tmp_path):
    for file in (root / RECORDS).glob("*/*.json"):
        save_metrics(parse_record(file.read_text(encoding="utf8"), file.name), tmp_path)
    made = {path.relative_to(tmp_path): path.read_text(encoding="utf8") for path in tmp_path.rglob("*.json")}
    kept = root / "data/results/metrics"
    assert made == {path.relative_to(kept): path.read_text(encoding="utf8") for path in kept.rglob("*.json")}


def test_metrics_are_flat_and_in_percent(tmp_path):
    save_metrics(record(), tmp_path)
    made, found = record(), pd.read_json(tmp_path / "tuned/tecoa-0.json", typ="series")
    assert found["robust leaf"] == pytest.approx(100 * made.robust["direct"][0][0], abs=0.005)
    assert found["path-robust roll_up"] == pytest.approx(100 * made.path_robust["roll_up"], abs=0.005)


def test_margins_that_were_not_measured_are_said_to_be_none(params):
    frames = {"margins": no_margins()[1], "correlation": pd.DataFrame(columns=["level"])}
    (said,) = sections.depth(SimpleNamespace(frame=frames.get, params=params))  # pyright: ignore
    assert "not read by distance in the Poincare ball" in said.markdown
