"""benchmarks/gpu.py without a GPU: its parts at toy size, and what it does where something is
amiss.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest
import torch

from benchmarks import gpu
from tests.conftest import ROOT

TRIAL = ["--device", "cpu", "--small"]
UNNEEDED = (
    "IPython",
    "babel",
    "matplotlib",
    "seaborn",
    "jinja2",
    "joblib",
)


@pytest.fixture(scope="module")
def case() -> gpu.Case:
    return gpu.make_case(gpu.parse_arguments(TRIAL), monotonic())


def by_what(file: Path, part: str) -> dict[str, dict]:
    """Read the rows of a part by what they measure."""
    rows = json.loads(file.read_text(encoding="utf8"))["rows"]
    return {row["what"]: row for row in rows if row["part"] == part}


def test_without_a_gpu_it_says_so_in_one_line_and_ends_well(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 0
    assert capsys.readouterr().out == (
        "no GPU here, so nothing is measured; a trial on the CPU: --device cpu --small\n"
    )


def test_a_trial_measures_every_way_to_finetune(tmp_path, capsys):
    file = tmp_path / "trial.json"
    assert gpu.main([*TRIAL, "--parts", "fine-tuning", "--out", str(file)]) == 0
    rows = by_what(file, "fine-tuning")
    assert rows.pop("an attack's random start alone")["images_per_second"] > 0
    assert list(rows)[:2] == [gpu.RELEASED, gpu.TEXTS_ONCE]
    assert list(rows)[2:] == [
        f"{m}, {a}" for m in ("TeCoA", "Hierarchical") for a in ("float32", "TF32", "bf16")
    ]
    assert all(
        row["images_per_second"] > 0 and row["batch"] == 8 and not row["error"]
        for row in rows.values()
    )
    released = rows[gpu.RELEASED]["images_per_second"]
    assert all(
        row["ratio"] == pytest.approx(row["images_per_second"] / released) for row in rows.values()
    )
    result = json.loads(file.read_text(encoding="utf8"))
    assert result["small"] is True and result["device"] == "cpu" and result["versions"]["torch"]
    assert "TOY SIZES" in capsys.readouterr().out and "goal" not in str(rows)


def test_a_trial_measures_attacks_and_compares_outcomes(tmp_path, capsys):
    file = tmp_path / "trial.json"
    assert gpu.main([*TRIAL, "--parts", "attacks", "outcomes", "--out", str(file)]) == 0
    attacks, outcomes = by_what(file, "attacks"), by_what(file, "outcomes")
    assert list(attacks)[:3] == [f"PGD-2 at the leaf, {name}" for name in gpu.ARITHMETIC]
    assert attacks["level matrix, PGD-2, 13 goals, float32"]["images_per_second"] > 0
    top = attacks["PGD-2 at the leaf, profile"]["detail"]["top"]
    assert len(top) == 10 and 0 < sum(each["share"] for each in top) <= 1
    assert (
        "conv" in " ".join(each["name"] for each in top)
        and top[0]["name"] in capsys.readouterr().out
    )
    assert list(outcomes) == ["PGD-2 in float32 again", "PGD-2 in TF32", "PGD-2 in bf16"]
    assert outcomes["PGD-2 in float32 again"]["ratio"] == 0


def test_only_a_card_at_full_size_has_a_file_by_default(monkeypatch):
    monkeypatch.setattr(gpu, "hardware", lambda device: "NVIDIA Card (80 GB)")
    assert gpu.result_file(gpu.parse_arguments(TRIAL)) is None
    assert gpu.result_file(gpu.parse_arguments(["--small"])) is None
    assert (
        gpu.result_file(gpu.parse_arguments([]))
        == ROOT / "benchmarks/results/NVIDIA-Card-80-GB.json"
    )


def test_a_cpu_at_full_size_is_refused(capsys):
    with pytest.raises(SystemExit):
        gpu.parse_arguments(["--device", "cpu"])
    assert "--device cpu takes hours at full size; add --small" in capsys.readouterr().err


def test_a_part_that_fails_is_a_row_and_the_others_still_run(monkeypatch, capsys):
    def fail(case, until):
        yield gpu.Row("attacks", "", "first")
        raise RuntimeError("two\nlines")

    monkeypatch.setitem(gpu.PARTS, "attacks", gpu.Part(fail, 1))
    monkeypatch.setitem(
        gpu.PARTS,
        "outcomes",
        gpu.Part(lambda case, until: iter([gpu.Row("outcomes", "", "other")]), 1),
    )
    assert gpu.main([*TRIAL, "--parts", "attacks", "outcomes"]) == 1
    out = capsys.readouterr().out
    assert (
        "ERROR RuntimeError: two lines" in out
        and "first" in out
        and "other" in out
        and "written to" not in out
    )


def test_a_part_that_there_is_no_time_for_is_skipped(capsys):
    assert gpu.main([*TRIAL, "--minutes", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "skipped: no time left" in line] == list(gpu.PARTS)


def test_out_of_memory_halves_the_batch(case):
    tried = []

    def make(batch):
        tried.append(batch)
        if batch > 2:
            raise torch.OutOfMemoryError
        return lambda: None

    way = gpu.Way("ours", make)
    timing = gpu.time_way(way, case)
    assert tried == [8, 4, 2] and timing.batch == 2
    row = gpu.finetuning_row(
        case, "", way, {"ours": [timing], gpu.RELEASED: [], gpu.TEXTS_ONCE: []}, ""
    )
    assert row.note == "batch halved: out of memory" and row.ratio is None
    with pytest.raises(MemoryError, match="^ours: not even one image fits$"):
        gpu.time_way(replace(way, make=lambda batch: make(9)), case)


@pytest.mark.parametrize(("speed", "verdict"), [(200.0, "goal 2: met"), (199.0, "goal 2: not met")])
def test_a_ratio_on_a_card_is_held_against_the_goal(case, speed, verdict):
    full = replace(case, sizes=gpu.FULL)
    timings = {
        "ours": [gpu.Timing(256, [256 / speed], 1.0)],
        gpu.RELEASED: [gpu.Timing(256, [2.56], 1.0)],
    }
    row = gpu.finetuning_row(
        full, "", gpu.Way("ours", lambda batch: lambda: None), timings | {gpu.TEXTS_ONCE: []}, ""
    )
    assert row.ratio == pytest.approx(speed / 100) and verdict in row.note.split("; ")


def test_the_tests_row_counts_and_names_the_first_failure():
    passed = gpu.tests_row(0, "....\n28 passed, 28 deselected in 40.12s\n", "")
    assert passed.note == "28 passed, 28 deselected in 40.12s" and not passed.error
    failed = gpu.tests_row(1, "FAILED tests/a.py::b - no\n1 failed, 2 passed in 1.00s\n", "")
    assert failed.error == "exit code 1: FAILED tests/a.py::b - no"
    assert gpu.tests_row(0, "28 skipped in 1.00s\n", "").error  # on a card nothing should be
    assert gpu.tests_row(4, "", "no such file").error == "exit code 4: no such file"


def test_its_backends_are_as_they_were_after_it():
    def switches():
        backends = torch.backends
        return backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, backends.cudnn.benchmark

    before = switches()
    with gpu.computing(tf32=True, benchmark=True):
        assert switches() == (True, True, True)
    with gpu.computing(tf32=False):
        assert switches() == (False, False, False)
    assert switches() == before


def test_bf16_is_for_the_encoder_alone(case):
    classifier = gpu.make_level_classifier(case, gpu.make_backbone(case, "hierclip-tiny"))
    half = gpu.computing_in(classifier, gpu.ARITHMETIC["bf16"])
    stem = []
    classifier.encoder.visual.conv1.register_forward_hook(lambda *seen: stem.append(seen[2].dtype))
    logits = half(gpu.random_images(case, 2))
    assert set(stem) == {torch.bfloat16} and {level.dtype for level in logits} == {torch.float32}


def test_packages_that_only_show_or_draw_are_not_needed():
    code = f"import sys; sys.modules.update(dict.fromkeys({UNNEEDED})); import benchmarks.gpu, tests.test_cuda"
    environment = {"PYTHONPATH": f"{ROOT / 'lib'}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        encoding="utf8",
    )
    assert done.returncode == 0, done.stderr[-1000:]
