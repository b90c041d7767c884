"""What is made of a study's rows: the best points of a sweep, the tables of an ablation."""

import re

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from hierclip.studies import ablation_table, best_points
from tests.test_studies import ablation_runs, small

__all__ = ["small"]  # a fixture: the project's parameters, cut down


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
