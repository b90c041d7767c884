"""Records checked by recomputing them."""

import pytest
import yaml
from typer.testing import CliRunner

from hierclip import check
from hierclip.check import check_record
from hierclip.cli import app
from hierclip.data import ids_of
from hierclip.evaluate import RECORDS, RecordError, evaluate, load_records, outcomes_path, save_record
from hierclip.evaluate.outcomes import PARTS
from hierclip.params import load_params
from hierclip.stages import tasks
from tests.test_run import knowing_model

QUICK = {"suite": ["pgd_ce"], "steps": 1, "bootstrap": 20, "reading_images": 20, "audit_images": 8, "forest_images": 20}
NAME = "tecoa-0/held_out"


@pytest.fixture
def made(openmoji, openmoji_forest, root, tmp_path, monkeypatch):
    """A project with one record, and its outcomes, of a model that knows every picture."""
    entries = yaml.safe_load((root / "params.yaml").read_text(encoding="utf8"))
    entries["attack"] |= QUICK
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf8")
    params, model = load_params(tmp_path / "params.yaml"), knowing_model(openmoji)
    settings = {"seed": 0, "params": params.attack, "template": params.model.template, "root": tmp_path}
    own = [tree.restrict(ids_of(openmoji, "held_out")) for tree in openmoji_forest]
    record, _ = evaluate(model, openmoji, own, "held_out", **settings)
    monkeypatch.setattr(check, "load_model", lambda folder: model)
    monkeypatch.setattr(tasks, "load_dataset", lambda *_: openmoji)
    monkeypatch.setattr(tasks, "load_forest", lambda *_: openmoji_forest)
    monkeypatch.chdir(tmp_path)
    return record


def test_a_record_comes_out_of_its_outcomes_and_of_the_model_attacked_again(made, tmp_path):
    assert check_record(tmp_path, NAME) == []
    assert check_record(tmp_path, NAME, attack=True) == []
    result = CliRunner().invoke(app, ["check"])
    assert result.exit_code == 0 and f"{NAME}: every figure but the audit comes out again" in result.output


def test_a_figure_that_was_altered_is_named_with_both_values(made, tmp_path):
    save_record(made.model_copy(update={"path_robust": made.path_robust | {"direct": 0.123}}), tmp_path / RECORDS)
    (line,) = check_record(tmp_path, NAME)
    assert line == f"{NAME} path_robust.direct: recorded 0.123, now {made.path_robust['direct']}"
    assert CliRunner().invoke(app, ["check", NAME]).exit_code == 1


def test_a_figure_that_is_gone_is_named_too(made, tmp_path):
    less = {key: value for key, value in made.superclass.items() if key != "every-5"}
    save_record(made.model_copy(update={"superclass": less}), tmp_path / RECORDS)
    assert [line.split()[1:4] for line in check_record(tmp_path, NAME)] == [
        [f"superclass.every-5[{k}]:", "recorded", "None,"] for k in range(3)
    ]


def test_evaluate_writes_the_record_and_the_outcomes_of_every_part(made, tmp_path):
    (written,) = load_records(tmp_path / RECORDS)
    assert written.path_robust == pytest.approx(made.path_robust) and len(written.hashes["weights"]) == 64
    assert all(outcomes_path(tmp_path, "tecoa", 0, "held_out", part).exists() for part in PARTS)


def test_a_record_of_another_attack_is_not_compared(made, tmp_path):
    save_record(made.model_copy(update={"settings": made.settings | {"steps": 99}}), tmp_path / RECORDS)
    with pytest.raises(RecordError, match="made with another attack than params.yaml asks for; steps differ"):
        check_record(tmp_path, NAME, attack=True)


def test_what_is_missing_is_said(made, tmp_path):
    with pytest.raises(RecordError, match=f"no record nothing; known are {NAME}"):
        check_record(tmp_path, "nothing")
    outcomes_path(tmp_path, "tecoa", 0, "held_out").unlink()
    with pytest.raises(RecordError, match="`make repro` makes them"):
        check_record(tmp_path, NAME)
