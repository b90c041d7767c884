"""What is made of records: the README's table, words, comparisons, the command."""

import re

import numpy as np
import pandas as pd
import pytest
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from typer.testing import CliRunner

from hierclip.cli import DEFAULT, RESULTS, SUMMARY, app, main, write_readme
from hierclip.config import find_root, load_params
from hierclip.evaluation import RECORDS, Outcomes, load_records, outcomes_path
from hierclip.evaluation.records import ThreatModel
from hierclip.plots.words import attack_words, audit_words, check_frame, pipes, undecided
from hierclip.studies import LADDER, STUDIES, ablation_table, best_points
from tests.conftest import notebook_functions
from tests.test_evaluate import record

ROOT = find_root()
LABELS = {"clip": "CLIP", "tecoa": "TeCoA", "hier": "Hierarchical"}
REPORT = notebook_functions("70_report")
PRESETS = [".", "presets/emoji-full", "presets/tiny-imagenet"]  # with committed results
BAD = {"value": 0.5, "high": 0.9, "limit": 0.05, "passed": False}


def test_readme_shows_the_committed_records():
    readme = (ROOT / "README.md").read_text(encoding="utf8")
    tables = {name: text for _, name, text, _ in RESULTS.findall(readme)}
    assert DEFAULT in tables
    for name, text in tables.items():
        root = ROOT if name == DEFAULT else ROOT / "presets" / name
        assert text == (root / SUMMARY).read_text(encoding="utf8")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_committed_summary_is_of_the_committed_records(preset):
    params = load_params(ROOT / preset / "params.yaml")
    records = load_records(ROOT / preset / RECORDS)
    records.sort(key=lambda r: (params.methods.index(r.method), r.seed))
    text = REPORT["summary"](records, params.labels, params.tasks, list(params.zero_shot))
    assert text == (ROOT / preset / SUMMARY).read_text(encoding="utf8")


def test_readme_is_short():
    """200 lines and 1,200 words, what the command writes left out; tables of 12 rows by 7 columns
    at most.
    """
    readme = (ROOT / "README.md").read_text(encoding="utf8")
    assert len(readme.splitlines()) <= 200
    assert len(readme.split()) <= 1200
    for _, _, text, _ in RESULTS.findall(readme):
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert len(rows) - 2 <= 12 and rows[0].count("|") - 1 <= 7


def test_summary_has_a_row_for_each_split_and_method_and_the_mean_over_seeds():
    one = record(seed=0, clean={"direct": [0.5, 0.9, 0.9], "roll_up": [0.5, 0.9, 0.9]})
    two = record(seed=1, clean={"direct": [0.7, 0.9, 0.9], "roll_up": [0.7, 0.9, 0.9]})
    hier = record(method="hier", subset="unseen")
    text = REPORT["summary"]([two, hier, one], LABELS, ("seen", "unseen", "animals"))
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    assert [row[:2] for row in rows[2:]] == [["seen", "TeCoA"], ["unseen", "Hierarchical"]]
    low, high = one.intervals["direct"].clean[0]
    sides = [max(value - low, high - value) for value in (0.5, 0.7)]
    half = 12.706 * 20 / 2  # Student's t of one degree of freedom; 20 / 2: of means 50 and 70
    assert rows[2][2] == f"60.0 ± {100 * sum(sides) / 2:.1f} ± {half:.1f}"


def test_the_mean_of_sets_gives_each_the_same_weight_and_adds_variances():
    parts = [
        record(subset=name, clean={"direct": [clean, 0.9, 0.9], "roll_up": [clean, 0.9, 0.9]})
        for name, clean in (("one", 0.5), ("two", 0.7))
    ]
    frame = REPORT["metric_frame"](parts, LABELS, ("one", "two"))
    means = REPORT["mean_over"](frame, ["one", "two"], "both").set_index("metric")
    low, high = parts[0].intervals["direct"].clean[0]
    sides = [100 * max(value - low, high - value) for value in (0.5, 0.7)]
    assert means.loc["clean leaf", "value"] == pytest.approx(60)
    assert means.loc["clean leaf", "side"] == pytest.approx(
        (sides[0] ** 2 + sides[1] ** 2) ** 0.5 / 2
    )
    text = REPORT["summary"](parts, LABELS, ("one", "two"), ["one", "two"])
    assert "mean of 2 zero-shot sets" in text and "| one |" not in text
    assert "80 images of zero-shot sets" in text


def test_what_two_seeds_say_in_the_text():
    one, two = record(seed=0), record(seed=1)
    text = REPORT["summary"](
        [one, two, record(method="hier", subset="unseen")], LABELS, ("seen", "unseen")
    )
    assert "2 seeds" in text and "40 images seen, 40 images unseen" in text


@pytest.mark.parametrize("preset", PRESETS)
def test_there_are_records_of_every_method_seed_and_task(preset):
    params = load_params(ROOT / preset / "params.yaml")
    wanted = {(m, s, task) for m in params.methods for s in params.seeds for task in params.tasks}
    records = load_records(ROOT / preset / RECORDS)
    assert {(r.method, r.seed, r.subset) for r in records} == wanted
    assert sum(r.images for r in records if (r.method, r.seed) == ("clip", 0)) >= 2000


def test_words_name_the_checks_that_failed():
    audit = record().audit.model_dump()
    audit["checks"]["clamps"]["high"] = 0.01
    sure = record(audit=audit)
    words = audit_words([sure], LABELS)
    assert words == "Gradient-masking checks on 4 images a record: 1 of 1 passed."
    audit["checks"]["steps"] = BAD
    words = audit_words([sure, record(method="hier", audit=audit)], LABELS)
    failed = "Failed: Hierarchical, seed 0, seen: steps (0.50, limit 0.05)."
    assert words.endswith(f"2 of 3 passed. {failed}")


def test_words_count_the_checks_that_too_few_images_decide():
    audit = record().audit.model_dump()
    audit["checks"]["steps"] = BAD | {"value": 0.0, "passed": True, "high": BAD["limit"]}
    few = record(audit=audit)
    assert few.audit.checks["clamps"].high > few.audit.checks["clamps"].limit
    assert undecided(few) == ["clamps"]
    words = audit_words([few], LABELS)
    assert words.endswith("2 of 2 passed, 1 of them on too few images to tell.")


def test_the_table_of_checks_has_a_column_for_each_record_and_rows_in_the_order_of_the_audit():
    audit = record().audit.model_dump()
    audit["checks"]["steps"] = BAD
    table = check_frame([record(), record(method="hier", audit=audit)], LABELS).set_index("check")
    assert list(table.index) == ["steps", "clamps"] and list(table["limit"]) == ["5 %", "2 %"]
    steps, clamps = table["Hierarchical, seed 0"]
    assert steps == "50.0 % (to 90.0 %), failed"
    assert clamps == f"0.0 % (to {100 * record().audit.checks['clamps'].high:.1f} %)"
    assert pd.isna(list(table["TeCoA, seed 0"])[0])


def test_a_table_in_markdown_is_padded_where_asked():
    frame = pd.DataFrame({"a": ["x", "longer"], "b": [1, 2]})
    assert pipes(frame) == "| a | b |\n|---|---|\n| x | 1 |\n| longer | 2 |"
    odd = pd.DataFrame({"A|B": ["x|y", "two\nlines"]})
    html = markdown2html_mistune(pipes(odd))
    assert "<th>A|B</th>" in html and "<td>x|y</td>" in html and "<td>two lines</td>" in html
    assert pipes(frame, even=True).splitlines()[1:3] == ["|--------|---|", "| x      | 1 |"]


def outcomes(nodes) -> Outcomes:
    """Two leaves under two nodes of their own: what is read of images of the first, leaf and
    superclass, attacked.
    """
    attacked = np.array(nodes)
    clean = np.zeros_like(attacked)
    conditions = np.array(["clean", "direct-0", "direct-1", "roll_up-1"])
    shown = np.stack([clean, attacked, attacked, attacked])
    paths, labels = np.array([[0, 0], [1, 1]]), np.zeros(len(nodes), dtype=int)
    return Outcomes(
        conditions, paths, labels, shown, np.ones(shown.shape), shown[..., :1], shown[..., 0]
    )


def test_pairs_are_compared_on_the_same_pictures_in_each_reading(tmp_path):
    """The leaf is read rightly where the superclass is not, and the other way round."""
    read = {
        "tecoa": [[0, 0], [0, 0], [0, 1], [0, 1]],  # direct: two stand; by roll-up: all
        "hier": [[0, 1], [0, 1], [0, 1], [1, 0]],  # direct: none; by roll-up: three
    }
    for method, nodes in read.items():
        outcomes(nodes).save(outcomes_path(tmp_path, method, 0, "seen"))
    rows = REPORT["paired"]([record(method=method) for method in read], LABELS, tmp_path, 100)
    for row, reading, points in zip(rows, ("direct", "roll_up"), (-50, -25), strict=True):
        assert row[:5] == ("seen", 0, reading, "Hierarchical - TeCoA", points)
        low, high, p, holm = row[5:]
        assert low <= points <= high and p == holm == {"direct": 0.5, "roll_up": 1.0}[reading]


def marked(name: str, text: str) -> str:
    return (
        f"<!-- results of {name}: made by `hierclip readme`, not by hand -->\n{text}<!-- end -->\n"
    )


def test_readme_is_written_between_its_markers_once(tmp_path):
    for preset, text in ((".", "one\n"), ("presets/tiny-b", "two\n")):
        (tmp_path / preset / SUMMARY).parent.mkdir(parents=True)
        (tmp_path / preset / SUMMARY).write_text(text, encoding="utf8")
    readme = tmp_path / "README.md"
    readme.write_text(
        "a\n" + marked(DEFAULT, "old\n") + "b\n" + marked("tiny-b", ""), encoding="utf8"
    )
    assert write_readme(tmp_path)
    assert readme.read_text(encoding="utf8") == "a\n" + marked(DEFAULT, "one\n") + "b\n" + marked(
        "tiny-b", "two\n"
    )
    assert not write_readme(tmp_path)


def test_the_readme_says_which_preset_has_no_summary(tmp_path):
    (tmp_path / "README.md").write_text(marked("tiny-b", ""), encoding="utf8")
    assert write_readme(tmp_path)
    readme = (tmp_path / "README.md").read_text(encoding="utf8")
    assert readme == marked("tiny-b", "Not run yet.\n")


def test_readme_without_markers_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("nothing", encoding="utf8")
    with pytest.raises(ValueError, match="to put the results between"):
        write_readme(tmp_path)


def test_command_lists_what_it_can_do():
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert all(word in result.output for word in ("readme", "verify"))


def test_error_of_the_users_making_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hierclip", "readme"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("hierclip: no params.yaml in")
    assert len(said.splitlines()) == 1


STUDY_RECORDS = REPORT["load_studies"](ROOT / STUDIES)


def test_every_method_has_what_the_sweep_chose_for_it():
    params = load_params(ROOT / "params.yaml")
    best = best_points(STUDY_RECORDS["sweep"].frame)
    assert set(best["method"]) == set(params.sweep.grid)
    for point in best.to_dict("records"):
        settings = params.method[point["method"]]
        for key in params.sweep.grid[point["method"]]:
            assert getattr(settings, key) == point[key], (point["method"], key)


def test_every_committed_study_has_the_runs_that_the_parameters_ask_for():
    """Of a sweep every method has as many points; a row of an ablation has every seed, or none yet."""
    params = load_params(ROOT / "params.yaml")
    assert "sweep" in STUDY_RECORDS
    ablation = [table for table in params.ablation.tables if table not in LADDER]
    tables = {"ablation": ablation, "ladder": LADDER}
    for name, study in STUDY_RECORDS.items():
        if name == "sweep":
            points = study.frame.groupby(["method", "subset"]).size()
            assert points.nunique() == 1 and study.steps == params.sweep.steps
        for table in tables.get(name, []):
            made = ablation_table(study.frame, params, params.ablation, table, True)
            assert made["seeds"].isin([0, len(params.ablation.seeds)]).all()
            assert (made["seeds"] > 0).any()


def cells_of(page: str, header: str) -> list[list[str]]:
    """Return the cells of the Markdown table whose first line begins with `header`."""
    table = (header + page.partition(header)[2]).partition("\n\n")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def left_out_cells(frame: pd.DataFrame, row: str) -> list[list[str]]:
    """Return, by row, accuracies in the mean of what was left out, with half Student's interval of three seeds."""
    means = frame[frame["subset"] != "seen"].groupby([row, "seed"], sort=False)
    means = 100 * means[["clean", "robust", "path_direct"]].mean()
    cells = []
    for _, seeds in means.groupby(row, sort=False):
        half = 4.30265 * seeds.std() / 3**0.5  # of 2 degrees of freedom
        cells.append([f"{m:.1f} ± {h:.1f}" for m, h in zip(seeds.mean(), half, strict=True)])
    return cells


def test_the_page_on_results_says_of_removed_knobs_what_their_record_has():
    page, record = (ROOT / "docs/results.md").read_text(encoding="utf8"), STUDY_RECORDS["removed"]
    assert record.git.startswith("b949bf0") and "b949bf0" in page
    rows = cells_of(page, "| change of `hier` |")
    assert [row[1:] for row in rows] == left_out_cells(record.frame, "row")


def test_the_page_of_the_search_says_what_its_records_have():
    page = (ROOT / "data/results/search.md").read_text(encoding="utf8")
    searches = [STUDY_RECORDS[name] for name in ("search", "search_2")]
    for search, revision in zip(searches, ("af53662", "2ed1d37"), strict=True):
        assert search.git.startswith(revision) and search.git in page
    frame = pd.concat([search.frame for search in searches])
    means = frame.groupby(["row", frame["subset"] == "seen"])
    means = means[["clean", "robust", "path_direct"]].mean() * 100
    expected = [
        [f"{seen:.1f} / {out:.1f}" for out, seen in means.loc[row].to_numpy().T]
        for row in frame["row"].unique()
    ]
    assert sorted(row[2:] for row in cells_of(page, "| round | change |")) == sorted(expected)


def test_the_page_of_the_search_says_what_a_wrong_tree_did():
    page = (ROOT / "data/results/search.md").read_text(encoding="utf8")
    rows = cells_of(page, "| method, tree |")
    assert [row[1:] for row in rows] == left_out_cells(STUDY_RECORDS["wrong_tree"].frame, "variant")


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "docs/method.md"])
def test_every_difference_that_a_page_tells_is_a_committed_one(page):
    files = [
        ROOT / f"presets/{p}/data/results/mean_differences.csv"
        for p in ("emoji-full", "tiny-imagenet")
    ]
    table = pd.concat(map(pd.read_csv, files))
    known = {tuple(row.round(1)) for row in table[["points", "low", "high"]].to_numpy() + 0.0}
    known |= {(-value, -high, -low) for value, low, high in known}
    text = " ".join((ROOT / page).read_text(encoding="utf8").split())
    number = r"(-?\d+\.\d)"
    told = re.findall(rf"{number} \[{number}, {number}\]", text)
    assert len(told) >= 2
    assert [each for each in told if tuple(map(float, each)) not in known] == []


def test_the_page_says_how_the_base_reads_superclasses():
    records = load_records(ROOT / "presets/emoji-full" / RECORDS)  # `make repro` leaves these alone
    base = [record for record in records if record.name.startswith("clip-0/")]
    below = {r.subset: r.clean["direct"][0] - min(r.clean["direct"]) for r in base}
    far = {name: round(100 * points) for name, points in below.items() if points > 0.1}
    assert far == {"openmoji-unseen": 12, "emojione-v1-unseen": 12} and len(base) == 16
    assert min(r.clean["direct"][0] for r in base) >= 0.81
    page = " ".join((ROOT / "docs/results.md").read_text(encoding="utf8").split())
    assert "at least 81 %" in page and "on 14 of 16 sets; on openmoji-unseen and emojione" in page


def test_the_attack_says_what_it_prunes_and_averages():
    threat = ThreatModel(
        norm="Linf",
        eps="4/255",
        suite=("apgd_ce", "apgd_margin"),
        step="1/255",
        steps=8,
        restarts=1,
        # Fmt: skip
        queries=9,
        resolution=32,
        prompt="a {}",
        precision="float32",
        seed=0,
    )
    assert "%" not in attack_words(threat)  # records made before there was pruning
    pruned = attack_words(threat.model_copy(update={"prune": 0.5}))
    assert pruned.endswith("the next on images that the one before moved 50 % of the way at least")
    averaged = attack_words(threat.model_copy(update={"eot": 20}))
    assert averaged == attack_words(threat) + ", means over 20 calls of the model (EOT)"
