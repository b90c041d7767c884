"""What is made of a study's rows: the best points of a sweep, the tables of an ablation."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from hierclip.studies import ablation_table, best_points, variant
from tests.conftest import notebook_functions
from tests.test_studies import ablation_runs, small

__all__ = ["small"]  # a fixture: the project's parameters, cut down

report = notebook_functions("70_report")


def test_best_points_have_the_highest_sum_of_clean_and_robust_accuracy():
    rows = [
        ("a", 1, 0.3, 0.9),
        ("a", 2, 0.4, 0.5),
        ("a", 4, 0.4, 0.6),
        ("b", 1, 0.1, 0.2),
        ("b", 2, 0.1, 0.2),
    ]
    sweep = pd.DataFrame(rows, columns=["method", "lr", "robust", "clean"])
    best = best_points(sweep)
    assert list(zip(best["method"], best["lr"], strict=True)) == [
        ("a", 1),
        ("b", 1),
    ]  # the first of equals


def test_best_points_weigh_the_classes_trained_on_and_those_left_out_alike():
    rows = [
        ("a", 1, "seen", 0.8),
        ("a", 1, "unseen", 0.1),
        ("a", 2, "seen", 0.5),
        ("a", 2, "unseen", 0.5),
    ]
    sweep = pd.DataFrame(rows, columns=["method", "lr", "subset", "robust"]).assign(clean=0.9)
    (best,) = best_points(sweep).to_dict("records")
    assert best == pytest.approx({"method": "a", "lr": 2, "clean": 0.9, "robust": 0.5, "sum": 1.4})


FIGURES = ["clean", "robust", "path_direct", "seconds", "steps"]


@pytest.mark.parametrize("seeds", [(0, 1), (0, 1, 2), tuple(range(12))])
def test_a_table_gives_means_over_seeds_and_half_their_students_interval(small, seeds):
    small = small.model_copy(
        update={"ablation": small.ablation.model_copy(update={"seeds": seeds})}
    )
    rng, rows = np.random.default_rng(0), []
    for run in ablation_runs(small, small.ablation):
        for subset in ("seen", "unseen"):
            rows.append(
                {
                    **run.labels,
                    "subset": subset,
                    **dict(zip(FIGURES, rng.random(len(FIGURES)), strict=True)),
                }
            )
    frame = pd.DataFrame(rows).sample(frac=1, random_state=0)
    for subset in ("seen", "unseen"):
        table = ablation_table(frame, small, small.ablation, "one", subset == "seen")
        assert list(table.index) == ["flat", "trees"] and (table["seeds"] == len(seeds)).all()
        for row, method in (("flat", "tecoa"), ("trees", "hier")):
            own = [
                r
                for r in rows
                if r["subset"] == subset and re.match(f'2 .*"loss":"{method}"', r["variant"])
            ]
            assert len(own) == len(seeds)
            for figure in FIGURES:
                values = np.array([r[figure] for r in own])
                low, high = scipy.stats.t.interval(
                    0.95, len(seeds) - 1, values.mean(), scipy.stats.sem(values)
                )
                assert table.loc[row, figure] == pytest.approx(values.mean())
                assert table.loc[row, f"{figure}_half"] == pytest.approx((high - low) / 2, rel=1e-3)


def test_half_an_interval_of_three_seeds_by_hand(small):
    small = small.model_copy(
        update={"ablation": small.ablation.model_copy(update={"seeds": (0, 1, 2)})}
    )
    runs = [
        run
        for run in ablation_runs(small, small.ablation)
        if run.settings.loss == "tecoa" and run.steps == 2
    ]
    rows = [
        {**run.labels, "subset": "seen"} | dict.fromkeys(FIGURES, value)
        for run, value in zip(runs, (1, 2, 3), strict=True)
    ]
    table = ablation_table(pd.DataFrame(rows), small, small.ablation, "other", True)
    assert table.loc["flat again", "clean"] == 2
    assert table.loc["flat again", "clean_half"] == pytest.approx(4.3027 / np.sqrt(3), rel=1e-4)


def test_what_was_left_out_is_averaged_over_its_subsets_before_seeds(small):
    small = small.model_copy(
        update={"ablation": small.ablation.model_copy(update={"seeds": (0, 1)})}
    )
    runs = [run for run in ablation_runs(small, small.ablation) if run.settings.loss == "tecoa"]
    values = {"seen": 9.0, "unseen style": 1.0, "unseen noun": 3.0, "both unseen": 5.0}
    rows = [
        {**run.labels, "subset": subset} | dict.fromkeys(FIGURES, value + run.seed)
        for run in runs
        for subset, value in values.items()
    ]
    table = ablation_table(pd.DataFrame(rows), small, small.ablation, "other", False)
    assert table.loc["flat again", "clean"] == pytest.approx(3.5)
    assert table.loc["flat again", "clean_half"] == pytest.approx(12.7062 * 0.5, rel=1e-4)


@pytest.mark.parametrize(
    "claimed, mean, half, said",
    [
        (2.0, 1.0, 0.5, "as in the paper"),
        (-0.2, -1.0, 0.5, "as in the paper"),
        (float("nan"), 1.0, 0.5, "as in the paper"),
        (2.0, -1.0, 0.5, "otherwise"),
        (float("nan"), -1.0, 0.5, "otherwise"),
        (-0.2, 1.0, 0.5, "otherwise"),
        (2.0, 0.5, 0.5, "not to be told"),
        (2.0, -0.4, 0.5, "not to be told"),
        (2.0, 3.0, float("nan"), "not to be told"),  # one seed
    ],
)
def test_a_change_comes_out_as_its_interval_and_the_papers_sign_say(claimed, mean, half, said):
    assert report["verdict"](claimed, mean, half) == said


def claimed_study(small, tables, values):
    """Return parameters with some tables, and a study whose rows have these accuracies by seed.

    values: by row, the robust accuracies; clean accuracy is one half more.
    """
    seeds = tuple(range(len(next(iter(values.values())))))
    small = small.model_copy(
        update={"ablation": small.ablation.model_copy(update={"seeds": seeds, "tables": tables})}
    )
    rows = []
    for table in tables.values():
        for row, changes in table.items():
            name = variant(small, small.ablation, changes)[2]
            for seed, robust in enumerate(values[row]):
                figures = {"variant": name, "seed": seed, "clean": robust + 0.5, "robust": robust}
                # what was trained on has no say, and the subsets that were left out weigh the same
                rows.append(figures | {"subset": "seen", "robust": 1 - robust})
                rows.append(figures | {"subset": "unseen noun", "robust": robust + 0.1})
                rows.append(figures | {"subset": "unseen style", "robust": robust - 0.1})
    return SimpleNamespace(frame=pd.DataFrame(rows)), small


def test_changes_beside_the_papers_are_paired_by_seed_with_students_interval(small):
    tables = {"parts": {"a": {"method": "tecoa"}, "b": {"method": "hier"}}}
    study, params = claimed_study(small, tables, {"a": [0.1, 0.2, 0.3], "b": [0.12, 0.23, 0.34]})
    claims = [("parts", ["a"], ["b"], None, 1.0), ("parts", ["a"], ["c"], 1.0, 1.0)]
    claims.append(("other", ["a"], ["b"], 1.0, 1.0))
    (row,) = report["against_paper"](study, params, claims).to_dict("records")
    half = 4.3027 * 1 / np.sqrt(3)  # of 2, 3 and 4 points
    assert row == {
        "change": "a → b",
        "accuracy": "robust",
        "paper": "+1.0",
        "here": f"+3.0 ± {half:.1f}",
        "comes out": "as in the paper",
    }


def test_of_several_rows_the_one_with_the_best_sum_is_beside_the_papers(small):
    tau = {f"tau {tau}": {"method": "hier", "tau": tau} for tau in (1, 2, 3)}
    tables = {"geometry": {"flat": {"method": "tecoa"}} | tau}
    values = {"flat": [0.4, 0.5], "tau 1": [0.1, 0.2], "tau 2": [0.3, 0.4], "tau 3": [0.2, 0.3]}
    study, params = claimed_study(small, tables, values)
    claims = [("geometry", ["flat"], list(tau), np.nan, None)]
    (row,) = report["against_paper"](study, params, claims).to_dict("records")
    assert row["change"] == "flat → tau 2" and row["paper"] == "better"
    assert row["here"].startswith("-10.0 ± ") and row["comes out"] == "otherwise"


def test_rows_that_the_paper_has_are_rows_of_the_default(params):
    for table, before, after, *_ in report["PAPER"]:
        assert {*before, *after} <= set(params.ablation.tables[table])
