"""How the benchmarks measure; what they measure is `make bench`."""

import json
import time

import pytest
import torch

from benchmarks import __main__ as bench, growth, pipeline
from benchmarks.default import LevelLogits
from benchmarks.measure import Row, exponent, in_process, interleaved, peak_memory, ratio, threads
from benchmarks.synthetic import make_forest, make_tree_loss
from hierclip.losses.levels import rolled_up

close = torch.testing.assert_close


def test_ways_take_turns_and_warm_up_rounds_do_not_count():
    calls = []
    times = interleaved(
        {name: lambda name=name: calls.append(name) for name in "abc"}, rounds=2, warm_up=1
    )
    assert calls == [*"abc", *"bca", *"cab"]
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2, "c": 2}


def test_a_ratio_is_the_median_of_the_ratios_within_rounds():
    assert ratio({"a": [1.0, 20.0, 3.0], "b": [1.0, 10.0, 1.0]}, "a", "b") == 2.0


def test_a_slower_way_has_the_larger_ratio():
    times = interleaved(
        {"slow": lambda: time.sleep(0.03), "fast": lambda: time.sleep(0.001)}, rounds=3
    )
    assert ratio(times, "slow", "fast") > 3


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_exponent_of_a_power_is_that_power(power):
    assert exponent([1, 2, 4, 8], [3 * size**power for size in (1, 2, 4, 8)]) == pytest.approx(
        power, abs=1e-9
    )


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [
        ({"at_most": 1.03}, 1.03, True),
        ({"at_most": 1.03}, 1.031, False),
        ({"at_least": 200}, 199.0, False),
        ({"at_least": 200}, 200.0, True),
        ({"at_most": 1.0}, float("nan"), False),
        ({}, 5.0, None),
    ],
)
def test_a_row_says_whether_it_keeps_its_goal(goal, value, met):
    row = Row("part", "what", 1, value, **goal)
    assert row.met is met
    assert ("MISSED" in bench.format_line(bench.cells(row))) == (met is False)


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_a_process_of_its_own_gives_what_it_prints_and_its_peak_of_memory():
    code = (
        "import json; from benchmarks.measure import peak_memory; before = peak_memory();"
        "block = b'1' * (200 * 2**20); print(json.dumps({'peak': peak_memory() - before}))"
    )
    assert 190 <= in_process(code)["peak"] <= 260 and peak_memory() > 0
    with pytest.raises(RuntimeError, match="ValueError: no such thing"):
        in_process("raise ValueError('no such thing')")


def test_synthetic_trees_are_trees_of_the_asked_size():
    forest = make_forest(leaves=20, levels=3, trees=2)
    assert [nodes.sizes for nodes in forest.nodes] == [(20, 10, 5, 2)] * 2
    assert forest.all_paths.shape == (20, 7) and not torch.equal(forest.paths[0], forest.paths[1])
    for nodes, paths in zip(forest.nodes, forest.paths, strict=True):
        places = paths + nodes.starts  # in the row of all nodes
        assert torch.equal(nodes.parents[places[:, :-1]], places[:, 1:])
        assert len(rolled_up(nodes, paths, ("finer", "coarser")).nodes) == sum(nodes.sizes)


def test_the_synthetic_loss_is_the_objective_that_training_uses(params):
    loss = make_tree_loss(make_forest(20, 2, 2), params.method["hier"], batch=8, dimensions=16)
    loss.step(attack_steps=2)  # raises where a gradient would not reach what a step trains


def test_a_level_is_seen_by_other_packages_as_its_reading_has_it():
    paths = torch.tensor([[0, 0], [1, 1], [2, 0]])

    def classifier(images, levels):
        return [
            {0: torch.tensor([[1.0, 5.0, 3.0]]), 1: torch.tensor([[7.0, 2.0]])}[level]
            for level in levels
        ]

    close(LevelLogits(classifier, paths, 1, "roll_up")(None), torch.tensor([[3.0, 5.0]]))  # pyright: ignore
    close(LevelLogits(classifier, paths, 1, "direct")(None), torch.tensor([[7.0, 2.0]]))  # pyright: ignore


def test_the_table_has_a_line_for_each_row_and_the_file_says_the_machine(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        bench,
        "PARTS",
        {"one": lambda: [Row("one", "a / b", 2, 0.5, at_most=1.0, note="10 images")]},
    )
    bench.main(["one", "--out", str(tmp_path / "found.json")])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("one"))
    assert line.split() == ["one", "a", "/", "b", "2", "0.5", "x", "<=", "1", "met", "10", "images"]
    assert "| one | a / b | 2 | 0.5 x | <= 1 | met | 10 images |" in (
        tmp_path / "found.md"
    ).read_text(encoding="utf8")
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf8"))
    assert (
        found["rows"][0]["met"] is True
        and "cores" in found["hardware"]
        and found["versions"]["torch"]
    )


def test_an_unknown_part_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        bench.main(["pgd"])
    assert "no part pgd; known are start, distance, step, pgd-10" in capsys.readouterr().err


def test_an_audit_to_measure_has_a_model_a_tree_and_images(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "AUDITED", (10, 20))
    pipeline.write_audit_input(tmp_path)
    assert (tmp_path / "model/open_clip_config.json").exists() and (tmp_path / "tree.json").exists()
    assert len(list(tmp_path.glob("images/*/*.jpg"))) == 20


def test_the_cost_of_a_tree_of_one_size_is_measured():
    assert in_process(growth.POINT, 8, 2, 1, 4, 4).keys() == {"step", "matrix", "memory"}


def test_stages_show_what_was_run_here(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "find_root", lambda: tmp_path)
    (tmp_path / "data/times").mkdir(parents=True)
    for name, wall in {"10_data": 3.0, "30_pretrain": 9.0}.items():
        seconds = {"wall": wall, "user": 2 * wall, "system": 0.5}
        (tmp_path / f"data/times/{name}.json").write_text(json.dumps(seconds), encoding="utf8")
    rows = pipeline.stages()
    assert [(row.what, row.value) for row in rows] == [
        ("10_data", 3),
        ("30_pretrain", 9),
        ("all of these 2", 12),
    ]
    assert rows[1].note == "user 18.0 s, system 0.5 s, 75% of all"
