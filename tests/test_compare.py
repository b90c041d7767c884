"""Several models and folders at once: every pair is audited, and all stand in one table."""

import json
import subprocess
import sys

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from hierclip.attacks import STANDARD
from hierclip.cli.audit import model_pairs
from hierclip.errors import HierclipError
from hierclip.evaluation.records import parse_record, save_record
from tests.conftest import LEAVES
from tests.miniatures import folders, lines
from tests.test_cli import ARCHITECTURE, QUICK, place, run, weights

__all__ = ["place", "run", "weights"]  # fixtures


@pytest.mark.parametrize(
    ("models", "weights", "pairs"),
    [
        (["a"], [], [("a", None)]),
        (["a", "b"], [], [("a", None), ("b", None)]),
        (["a"], ["x", "y"], [("a", "x"), ("a", "y")]),
        (["a", "b"], ["x"], [("a", "x"), ("b", "x")]),
        (["a", "b"], ["x", "y"], [("a", "x"), ("b", "y")]),
    ],
)
def test_models_and_weights_are_paired_in_turn(models, weights, pairs):
    assert model_pairs(models, weights) == pairs


def test_models_and_weights_that_make_no_pairs_are_refused():
    with pytest.raises(HierclipError, match="2 of --model and 3 of --pretrained; give one"):
        model_pairs(["a", "b"], ["x", "y", "z"])


@pytest.fixture
def compared(place, run, weights):
    """Two checkpoints and one that is none, on a folder of images."""
    state = load_file(weights)
    torch.save(state, place / "one.pt")
    torch.save({key: value * 1.01 for key, value in state.items()}, place / "two.pt")
    (place / "three.pt").write_bytes(b"")
    folders(place / "small", list(LEAVES)[:3])
    files = ["--pretrained", "one.pt", "--pretrained", "three.pt", "--pretrained", "two.pt"]
    given = ["--model", ARCHITECTURE, *files, "--images", "small", "--limit", 1, *QUICK]
    return place, run("audit", *given, "--out", "all")


def test_every_pair_is_audited_what_is_refused_is_said_and_the_others_are_compared(compared):
    folder, (code, out, err) = compared
    assert code == 2 and "three.pt is empty" in err
    made = sorted(file.parent.name for file in (folder / "all").rglob("record.json"))
    assert made == [f"{ARCHITECTURE}-one-small", f"{ARCHITECTURE}-two-small"]
    table = pd.read_csv(folder / "all/compare.csv")
    assert table["model"].tolist() == [f"{ARCHITECTURE}-one", f"{ARCHITECTURE}-two"]
    for row in table.itertuples():
        path = folder / f"all/{row.model}-small/record.json"
        record = parse_record(path.read_text(encoding="utf8"), "record.json")
        assert row.n == record.images == 3
        assert row.suite == pytest.approx(record.robust["direct"][0][0], abs=1e-6)
        assert [row.checks] == [
            f"{len(record.audit.checks) - len(record.audit.failed)} of {len(record.audit.checks)}"
        ]
        assert table["PGD-20"][row.Index] == pytest.approx(record.pgd_20[0], abs=1e-6)
    assert (folder / "all/compare.md").read_text(encoding="utf8") in out
    page = (folder / "all/compare.html").read_text(encoding="utf8")
    assert f"{ARCHITECTURE}-two" in page and "<script" not in page


def test_audits_of_several_folders_are_compared_in_the_first(compared, run):
    folder, _ = compared
    one, two = sorted(file.parent for file in (folder / "all").rglob("record.json"))
    code, out, _ = run("compare", two, one, one)
    table = pd.read_csv(two / "compare.csv")
    assert code == 0 and sorted(table["audit"]) == [one.name, two.name]
    assert f"| {one.name} " in out and f"<td>{one.name}</td>" in (two / "compare.html").read_text(
        "utf8"
    )
    record = parse_record((one / "record.json").read_text(encoding="utf8"), "record")
    row = table.set_index("audit").loc[one.name]
    for reading, words in {"direct": "direct", "roll_up": "roll-up"}.items():
        assert row[f"path-robust, {words}"] == pytest.approx(record.path_robust[reading], abs=1e-6)
        assert row[f"worst level, {words}"] == pytest.approx(record.worst_level[reading], abs=1e-6)


def test_claims_stand_beside_what_was_measured_or_are_refused(compared, run):
    folder, _ = compared
    lines(folder / "claims.csv", "model,images,claimed", f"{ARCHITECTURE}-one,small,44.1")
    code, out, _ = run("compare", "all", "--claims", "claims.csv")
    assert code == 0 and " 44.1 " in out
    table = pd.read_csv(folder / "all/compare.csv")
    assert table["claimed"].tolist()[0] == 44.1 and table["claimed"].isna().tolist()[1]
    for content, words in {
        ("model,claimed", "a,1"): "columns model, images and claimed are needed",
        ("model,images,claimed", "a,small,1"): "no audit of a, small in all",
        ("model,images,claimed", "a,b,1", "a,b,2"): "stands there twice",
    }.items():
        lines(folder / "claims.csv", *content)
        code, _, err = run("compare", "all", "--claims", "claims.csv")
        assert code == 2 and words in err.splitlines()[-1]


def test_audits_are_written_in_the_shapes_of_other_tools(compared, run):
    folder, _ = compared
    code, _, err = run("compare", "all", "--format", "robustbench")
    assert code == 2 and "autoattack_acc is by AutoAttack: audit with --suite standard" in err
    code, _, err = run("compare", "all", "--format", "csv")
    assert code == 2 and "no format 'csv'" in err
    code, _, _ = run("compare", "all", "--format", "clip_benchmark")
    table = pd.read_csv(folder / "all/clip_benchmark.csv")
    assert code == 0 and len(table) == 4 and table["acc5"].isna().all()  # of three classes
    file = folder / f"all/{ARCHITECTURE}-one-small/record.json"
    record = parse_record(file.read_text(encoding="utf8"), "record.json")
    clean, attacked = table[table["model"] == record.method].to_dict("records")
    assert clean["acc1"] == pytest.approx(record.clean["direct"][0], abs=1e-6)
    assert attacked["acc1"] == pytest.approx(record.robust["direct"][0][0], abs=1e-6)
    assert attacked["task"] == "zeroshot_classification, Linf 2/255"
    assert clean["mean_per_class_recall"] == clean["acc1"]  # of one image a class
    assert clean["pretrained"] == "one.pt"


def test_what_is_written_has_robustbenchs_entries_and_its_files_are_read_as_claims(compared, run):
    folder, _ = compared
    standard = {"suite": STANDARD, "steps": 100, "queries": 5000}
    for file in (folder / "all").rglob("record.json"):
        record = parse_record(file.read_text(encoding="utf8"), "record.json")
        threat = record.threat_model.model_copy(update=standard)
        save_record(record.model_copy(update={"threat_model": threat}), folder / "as").replace(file)
    claims = folder / "claims"
    claims.mkdir()
    said = {"dataset": "small", "autoattack_acc": "44.10", "clean_acc": "60.00", "eps": "2/255"}
    (claims / f"{ARCHITECTURE}-one.json").write_text(json.dumps(said), encoding="utf8")
    code, out, _ = run("compare", "all", "--format", "robustbench", "--claims", "claims")
    assert code == 0 and " 44.1 " in out
    written = json.loads(
        (folder / f"all/robustbench/small/{ARCHITECTURE}-one.json").read_text("utf8")
    )
    record = parse_record(
        (folder / f"all/{ARCHITECTURE}-one-small/record.json").read_text(encoding="utf8"), "record"
    )
    assert written["autoattack_acc"] == f"{100 * record.robust['direct'][0][0]:.2f}"
    assert written["clean_acc"] == f"{100 * record.clean['direct'][0]:.2f}"
    assert written["eps"] == "2/255" and written["dataset"] == "small"
    assert written["reported"] == "44.10"
    assert written["unreliable"] == bool(record.audit.failed)
    code, out, _ = run("compare", "all", "--claims", "all/robustbench/small")
    assert code == 0 and f" {float(written['autoattack_acc']):.1f} " in out
    said["eps"] = "8/255"
    (claims / f"{ARCHITECTURE}-one.json").write_text(json.dumps(said), encoding="utf8")
    code, _, err = run("compare", "all", "--claims", "claims")
    assert code == 2 and "is claimed at 8/255, and audited at 2/255" in err
    (claims / f"{ARCHITECTURE}-one.json").write_text("{", encoding="utf8")
    code, _, err = run("compare", "all", "--claims", "claims")
    assert code == 2 and "claims: no claims can be read (" in err


def test_a_folder_without_an_audit_has_nothing_to_compare(place, run):
    code, _, err = run("compare", "zoo")
    assert code == 2 and "zoo: no record.json in it; `hierclip audit` writes one" in err


def test_processes_share_the_images_of_an_audit_and_find_the_same(place, weights):
    given = ["--model", ARCHITECTURE, "--pretrained", weights, "--images", "zoo", "--tree"]
    given = [*map(str, given), "tree.json", *map(str, QUICK), "--device", "cpu", "--out"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    records = []
    for name, start in {"alone": [], "two": torchrun}.items():
        command = [sys.executable, *start, "-m", "hierclip", "audit", *given, name]
        done = subprocess.run(command, cwd=place, capture_output=True, encoding="utf8")
        assert done.returncode in (0, 1), done.stderr[-2000:]
        text = (place / name / "record.json").read_text(encoding="utf8")
        records.append(parse_record(text, name))
        assert (place / name / "report.html").exists()
    alone, two = records
    assert two.robust == alone.robust and two.pgd_20 == alone.pgd_20
    assert two.hashes == alone.hashes and two.audit.checks.keys() == alone.audit.checks.keys()
    for name, check in two.audit.checks.items():  # of which some are as small as rounding
        assert check.value == pytest.approx(alone.audit.checks[name].value, abs=1e-5), name
