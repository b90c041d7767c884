"""Sets of short runs: which there are, that they run and go on, and what is made of them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from hierclip import models, studies
from hierclip.config import load_params
from hierclip.data import ImageSet, class_indices, ids_of, load_dataset
from hierclip.errors import HierclipError
from hierclip.models import CosineHead, Model
from hierclip.studies import (
    KEPT,
    STUDIES,
    StudyRecord,
    ablation_table,
    best_points,
    run_study,
)
from hierclip.trees import save_tree
from tests.conftest import ONE_STYLE, notebook_functions
from tests.miniatures import folders
from tests.test_run import forest, knowing_model

__all__ = ["forest"]  # a fixture: WordNet's tree over the dataset, and one of first letters


ablation_runs = notebook_functions("80_ablate")["ablation_runs"]
sweep_runs = notebook_functions("35_sweep")["sweep_runs"]
load_studies = notebook_functions("70_report")["load_studies"]


@pytest.fixture
def content(root) -> dict:
    return yaml.safe_load((root / "params.yaml").read_text(encoding="utf8"))


def test_a_sweep_has_a_run_for_every_entry_and_for_every_other_value_of_a_key_of_it(
    params, content
):
    runs = sweep_runs(params)
    expected = []
    for method, grid in content["sweep"]["grid"].items():
        entry = {"method": method} | {key: content["method"][method][key] for key in grid}
        expected.append(entry)
        expected += [entry | {key: value} for key, values in grid.items() for value in values]
    assert [run.labels for run in runs] == expected
    assert len({str(labels) for labels in expected}) == len(expected)
    for run in runs:
        assert all(
            getattr(run.settings, key) == value
            for key, value in run.labels.items()
            if key != "method"
        )
        assert run.settings.label == content["method"][run.labels["method"]]["label"]
        # Choices are made by leaves.
        assert not run.levels
        assert (run.steps, run.seed) == (params.sweep.steps, params.sweep.seed)


def test_an_ablation_has_a_run_for_every_variant_and_seed_however_many_tables_it_stands_in(
    params, content
):
    runs = ablation_runs(params, params.ablation)
    rows = [
        changes for table in content["ablation"]["tables"].values() for changes in table.values()
    ]
    whole = [
        content["method"][row["method"]] | row | {"method": None, "label": None} for row in rows
    ]
    variants = {json.dumps(variant, sort_keys=True) for variant in whole}
    assert len(variants) < len(rows)  # the method as it is stands in every table
    assert len(runs) == len(variants) * len(params.ablation.seeds)
    assert len({(run.labels["variant"], run.seed) for run in runs}) == len(runs)
    for run in runs:
        assert run.levels
        assert run.labels["seed"] == run.seed
    for seed in params.ablation.seeds:
        assert sum(run.settings == params.method["hier"] and run.seed == seed for run in runs) == 1
    times = {row.get("steps_multiplier", 1) for row in rows}
    assert {run.steps for run in runs} == {max(1, round(params.ablation.steps * k)) for k in times}


@pytest.fixture
def small(params):
    """The project's parameters, cut down to what a test can pay: two steps of fine-tuning, one of
    the attack, runs one after the other in this process.
    """
    tecoa = params.method["tecoa"].model_copy(update={"lr": 1e-3})
    sections = {
        "method": params.method | {"tecoa": tecoa},
        "data": params.data.model_copy(update=ONE_STYLE),
        "trees": params.trees.model_copy(update={"names": ("wordnet", "letters")}),
        "finetune": params.finetune.model_copy(update={"batch": 4}),
        "attack": params.attack.model_copy(update={"steps": 1}),
        "sweep": params.sweep.model_copy(
            update={
                "steps": 2,
                "images": 20,
                "workers": 1,
                "holdout_style": None,
                "grid": {"tecoa": {"lr": (2e-3,)}},
            }
        ),
        "ablation": params.ablation.model_copy(
            update={
                "steps": 2,
                "images": 20,
                "workers": 1,
                "holdout_style": None,
                "seeds": (0,),
                "tables": {
                    "one": {
                        "flat": {"method": "tecoa"},
                        "trees": {"method": "hier", "trees": ["wordnet", "letters"]},
                    },
                    "other": {
                        "flat again": {"method": "tecoa"},
                        "dear": {"method": "tecoa", "steps_multiplier": 2},
                    },
                },
            }
        ),
    }
    return params.model_copy(update=sections)


@pytest.fixture
def project(emoji, forest, backbone, tmp_path) -> Path:
    """A project's folder with images, trees and a base model."""
    (tmp_path / "data").mkdir()
    for folder in ("source", "prepared"):
        (tmp_path / "data" / folder).symlink_to(emoji.prepared.parents[1] / folder)
    for tree in forest:
        save_tree(tree, tmp_path / f"data/trees/{tree.name}.json")
    models.save_model(Model(backbone, CosineHead(20.0), "clip"), tmp_path / "data/models/base")
    return tmp_path


def kept_results(project) -> list[str]:
    return [line for line in (project / KEPT).read_text(encoding="utf8").splitlines() if line]


def untimed(rows):
    return [{key: row[key] for key in row if key not in ("seconds", "key")} for row in rows]


def test_an_ablation_runs_in_processes_and_gives_what_it_gives_in_this_one(small, project):
    *runs, dear = ablation_runs(small, small.ablation)
    assert [(run.settings.loss, run.steps) for run in (*runs, dear)] == [
        ("tecoa", 2),
        ("hier", 2),
        ("tecoa", 4),
    ]
    record = run_study(
        runs, small, small.ablation.model_copy(update={"workers": 2}), project, "ablation"
    )
    frame = record.frame
    assert list(frame["subset"]) == ["seen", "unseen"] * 2 and list(frame["seed"]) == [0] * 4
    assert list(frame["variant"]) == [run.labels["variant"] for run in runs for _ in range(2)]
    assert (frame["images"] == 20).all() and (frame["seconds"] > 0).all()
    assert (frame["steps"] == 2).all()
    for column in ("clean", "robust", "path_direct"):
        assert frame[column].between(0, 1).all()
    assert (frame["robust"] <= frame["clean"]).all() and (
        frame["path_direct"] <= frame["robust"]
    ).all()
    assert (frame["path_direct"] <= frame["robust_2"]).all()
    assert (frame["robust_2"] <= frame["clean_2"]).all()
    assert (record.steps, record.images, list(record.trees)) == (2, 20, ["wordnet", "letters"])
    table = ablation_table(frame, small, small.ablation, "one", True)
    assert list(table.index) == ["flat", "trees"]
    assert (
        ablation_table(frame, small, small.ablation, "other", True).loc["flat again", "clean"]
        == table.loc["flat", "clean"]
    )

    assert len(kept_results(project)) == 2
    (project / KEPT).unlink()
    again = run_study(runs, small, small.ablation, project, "ablation")
    assert untimed(again.rows) == untimed(record.rows)

    (project / STUDIES).mkdir(parents=True)
    text = record.model_dump_json(indent=1)
    (project / STUDIES / "ablation.json").write_text(text, encoding="utf8")
    assert load_studies(project / STUDIES) == {"ablation": record}
    assert len(kept_results(project)) == 2  # the same runs, with other seconds
    assert run_study(runs, small, small.ablation, project, "ablation").rows == record.rows


def test_a_sweep_measures_leaves_of_the_fine_tuning_classes_trained_on_and_left_out(small, project):
    record = run_study(sweep_runs(small), small, small.sweep, project, "sweep")
    columns = ["method", "lr", "subset", "images", "clean", "robust", "steps", "seconds"]
    assert list(record.frame.columns) == columns
    assert list(record.frame["subset"]) == ["seen", "unseen"] * 2
    assert (
        untimed(record.rows)[0].items()
        >= {"method": "tecoa", "lr": 1e-3, "subset": "seen", "images": 20}.items()
    )
    assert list(best_points(record.frame)["method"]) == ["tecoa"]


@pytest.mark.parametrize(
    ("row", "steps"), [({"method": "clip"}, 0), ({"method": "tecoa", "steps_multiplier": 0.5}, 1)]
)
def test_a_run_of_one_step_or_of_none_has_figures_all_the_same(small, project, row, steps):
    small = small.model_copy(
        update={"ablation": small.ablation.model_copy(update={"tables": {"one": {"it": row}}})}
    )
    record = run_study(
        ablation_runs(small, small.ablation), small, small.ablation, project, "ablation"
    )
    assert list(record.frame["steps"]) == [steps] * 2
    assert np.isfinite(record.frame.select_dtypes("number").to_numpy(dtype=float)).all()
    assert record.frame["seconds"].dtype == float and (record.frame["seconds"] >= 0).all()


@pytest.mark.parametrize("which", ["sweep", "ablation"])
def test_a_run_fine_tunes_on_its_own_trees_and_measures_the_pictures_of_its_part(
    small, project, emoji, forest, monkeypatch, which
):
    """With a model that takes every third leaf of each set of classes for the next one there."""
    study, off, all_seen = (
        getattr(small, which),
        torch.zeros(200, dtype=torch.long),
        ids_of(emoji, "seen"),
    )
    unseen = [i for k, i in enumerate(all_seen) if k % study.holdout_every == 0]
    classes = {"seen": [i for i in all_seen if i not in unseen], "unseen": unseen}
    for ids in classes.values():
        places = class_indices(emoji, tuple(ids))
        off[places[::3]] = (places.roll(-1) - places)[::3]
    trained = []

    class Untrained:
        """A fine-tuning of five steps that change nothing."""

        head = CosineHead(1.0)

        def step_loss(self, step):
            return torch.zeros(()), {}

    def set_up(fabric, method, params, backbone, task, seed):
        trees = [tree.name for tree in task.trees]
        trained.append((method, params.steps, trees, set(task.trees[0].ids), seed))
        return Untrained()

    def fit(work, step_loss, checkpoint):
        return [{"loss": float(step_loss(step)[0])} for step in range(5)]

    monkeypatch.setattr(studies, "set_up", set_up)
    monkeypatch.setattr(studies, "fit", fit)
    monkeypatch.setattr(
        studies, "Model", lambda *_: knowing_model(emoji, lambda labels: off[labels])
    )
    runs = sweep_runs(small) if which == "sweep" else ablation_runs(small, small.ablation)
    record = run_study(runs, small, study, project, which)
    flat, seen = (2, ["wordnet"]), set(classes["seen"])
    wanted = {
        "sweep": [flat, flat],
        "ablation": [flat, (2, ["wordnet", "letters"]), (4, ["wordnet"])],
    }[which]
    assert trained == [
        (run.settings, *own, seen, run.seed) for run, own in zip(runs, wanted, strict=True)
    ]
    assert [row["subset"] for row in record.rows] == list(classes) * len(runs)
    for row in record.rows:
        own = forest[0].restrict(classes[row["subset"]])
        labels = np.sort(class_indices(emoji, own.ids).numpy())
        labels = np.tile(labels, 2)  # two images of each, in the dataset's order
        shown = labels[np.linspace(0, len(labels) - 1, 20).astype(int)]
        share = np.mean(off.numpy()[shown] == 0)
        assert 0 < share < 1 and row["clean"] == row["robust"] == pytest.approx(share)
        assert (row["images"], row["steps"]) == (20, 5)
        if which == "ablation":
            assert row["path_direct"] <= share
            assert row["clean_5"] == row["robust_5"] >= share


@pytest.fixture
def measured(monkeypatch):
    """Stands in for fine-tuning and measuring; the second run that it is asked for is stopped."""
    asked = []

    def measure(run, params, study, root):
        asked.append(run.labels["lr"])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return [{**run.labels, "clean": len(asked)}]

    monkeypatch.setattr(studies, "measure", measure)
    return asked


def test_a_stopped_study_goes_on_and_computes_nothing_twice(small, project, measured):
    runs = sweep_runs(small)
    with pytest.raises(KeyboardInterrupt):
        run_study(runs, small, small.sweep, project, "sweep")
    assert measured == [1e-3, 2e-3] and len(kept_results(project)) == 1
    record = run_study(runs, small, small.sweep, project, "sweep")
    assert measured == [1e-3, 2e-3, 2e-3]
    assert [(row["lr"], row["clean"]) for row in record.rows] == [(1e-3, 1), (2e-3, 3)]
    assert (
        run_study(runs, small, small.sweep, project, "sweep").rows == record.rows
        and len(measured) == 3
    )


def test_runs_in_a_record_are_not_run_again_and_those_that_it_lacks_are(small, project, measured):
    """Such as the record that a clone brings, of which a part was made elsewhere."""
    measured.extend([None] * 2)
    runs = sweep_runs(small)
    first = run_study(runs[:1], small, small.sweep, project, "sweep")
    (project / STUDIES).mkdir(parents=True)
    (project / STUDIES / "sweep.json").write_text(first.model_dump_json(), encoding="utf8")
    (project / KEPT).unlink()
    whole = run_study(runs, small, small.sweep, project, "sweep")
    assert measured == [None, None, 1e-3, 2e-3] and whole.rows[:1] == first.rows
    assert "key" not in whole.frame


def test_a_line_that_was_cut_off_costs_its_own_run_alone(small, project, measured):
    measured.extend([None] * 2)
    record = run_study(sweep_runs(small), small, small.sweep, project, "sweep")
    text = (project / KEPT).read_text(encoding="utf8")
    (project / KEPT).write_text(text[:-9], encoding="utf8")
    for _ in range(2):  # nor does it cost the one that is written after it
        again = run_study(sweep_runs(small), small, small.sweep, project, "sweep")
        assert measured[2:] == [1e-3, 2e-3, 2e-3] and again.rows[:1] == record.rows[:1]


@pytest.mark.parametrize(
    "change",
    [
        lambda p: {"sweep": p.sweep.model_copy(update={"steps": 5})},
        lambda p: {"sweep": p.sweep.model_copy(update={"images": 10})},
        lambda p: {"sweep": p.sweep.model_copy(update={"seed": 7})},
        lambda p: {"attack": p.attack.model_copy(update={"eps": 1 / 255})},
        lambda p: {
            "method": p.method
            | {"tecoa": p.method["tecoa"].model_copy(update={"logit_scale": 9.0})}
        },
    ],
    ids=["steps", "images", "seed", "attack", "method"],
)
def test_what_was_kept_under_other_conditions_is_not_used(small, project, measured, change):
    measured.extend([None] * 2)  # past the one that stops
    run_study(sweep_runs(small), small, small.sweep, project, "sweep")
    other = small.model_copy(update=change(small))
    run_study(sweep_runs(other), other, other.sweep, project, "sweep")
    assert len(measured) == 2 + 4


def test_what_was_kept_for_another_base_model_is_not_used(small, project, measured, params):
    measured.extend([None] * 2)
    run_study(sweep_runs(small), small, small.sweep, project, "sweep")
    other = Model(models.create(params.model, seed=1, size=32), CosineHead(20.0), "clip")
    models.save_model(other, project / "data/models/base")
    run_study(sweep_runs(small), small, small.sweep, project, "sweep")
    assert len(measured) == 2 + 4


@pytest.mark.parametrize("part", ["train", "val"])
def test_what_was_kept_for_other_pictures_is_not_used(small, project, measured, monkeypatch, part):
    measured.extend([None] * 2)
    run_study(sweep_runs(small), small, small.sweep, project, "sweep")
    dataset = load_dataset(small.data, project)
    own, batch = dataset.images, dataset.batch
    if part == "val":
        turned = own("val")
        other = ImageSet(turned.read().flip(-1), turned.labels)
        monkeypatch.setattr(dataset, "images", lambda name: other if name == "val" else own(name))
    else:
        monkeypatch.setattr(
            dataset, "batch", lambda *asked: (batch(*asked)[0] / 2, batch(*asked)[1])
        )
    monkeypatch.setattr(studies, "load_dataset", lambda *_: dataset)
    run_study(sweep_runs(small), small, small.sweep, project, "sweep")
    assert len(measured) == 2 + 4


def test_a_study_that_was_not_run_is_not_there(tmp_path):
    assert load_studies(tmp_path) == {}


def test_a_table_gives_intervals_where_several_runs_gave_a_figure(small, project):
    for seeds, shown in (((0, 1), "mean over 2 fine-tunings"), ((0,), "one fine-tuning on")):
        study = small.ablation.model_copy(update={"seeds": seeds})
        asked = small.model_copy(update={"ablation": study})
        made = run_study(ablation_runs(asked, study), asked, study, project, "ablation")
        text = notebook_functions("70_report")["ablation_markdown"](
            made, asked, list(study.tables), True
        )
        assert shown in text and "nan" not in text and ("±" in text) == (len(seeds) > 1)


def test_tables_that_a_preset_does_not_have_are_refused_by_name(small):
    with pytest.raises(HierclipError, match=r"ablation.tables has no ladder; it has one, other$"):
        ablation_runs(small, small.ablation, ["one", "ladder"])


def test_a_study_record_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="no key 'colour'"):
        StudyRecord.model_validate({"colour": "red"})


@pytest.fixture
def styled(params, emoji, tmp_path):
    """The parameters of two styles of which a study leaves one out, and a project without images."""
    (tmp_path / "data/source").mkdir(parents=True)
    (tmp_path / "data/source/emoji").symlink_to(emoji.project / "data/source/emoji")
    data = params.data.model_copy(update={"styles": ("openmoji", "fxemoji"), "subset": "seen"})
    sweep = params.sweep.model_copy(update={"holdout_every": 3, "holdout_style": "fxemoji"})
    return params.model_copy(update={"data": data, "sweep": sweep}), tmp_path


def test_a_study_of_drawings_leaves_out_nouns_and_a_style_and_measures_them_apart(styled):
    params, folder = styled
    parts = studies.divide(params, params.sweep, folder)
    table = pd.read_csv(folder / "data/source/emoji/classes.csv")
    nouns = list(table["synset"][table["subset"] == "seen"])
    trained = [noun for k, noun in enumerate(nouns) if k % 3]
    assert {part: dataset.params.styles for part, (dataset, _) in parts.items()} == {
        "seen": ("openmoji",),
        "unseen style": ("fxemoji",),
        "unseen noun": ("openmoji",),
        "both unseen": ("fxemoji",),
    }
    assert parts["seen"][1] == trained and parts["unseen noun"][1] == nouns[::3]
    drawn = {leaf.id for leaf in parts["unseen style"][0].leaves}
    assert parts["unseen style"][1] == [noun for noun in trained if noun in drawn]
    assert parts["both unseen"][1] == [noun for noun in nouns[::3] if noun in drawn]
    assert 0 < len(parts["both unseen"][1]) < len(nouns[::3])  # fxemoji lacks some


def test_a_study_without_a_style_to_leave_out_leaves_out_nouns_alone(styled):
    params, folder = styled
    study = params.sweep.model_copy(update={"holdout_style": None})
    parts = studies.divide(params, study, folder)
    assert {part: dataset.params.styles for part, (dataset, _) in parts.items()} == {
        "seen": ("openmoji", "fxemoji"),
        "unseen": ("openmoji", "fxemoji"),
    }
    assert [len(ids) for _, ids in parts.values()] == [100, 50]


def test_a_study_of_photographs_leaves_out_classes(params, root, tmp_path):
    """Of those that are fine-tuned on, whatever style it names."""
    names = [f"class{k}" for k in range(8)]
    folders(tmp_path / "sets/mine", names, seed=0)
    photos = load_params(root / "presets/tiny-imagenet/params.yaml").data
    changes = {"name": "mine", "layout": "folder", "root": "sets", "holdout_every": 4}
    params = params.model_copy(update={"data": photos.model_copy(update=changes)})
    study = params.sweep.model_copy(update={"holdout_every": 3, "holdout_style": "noto"})
    parts = studies.divide(params, study, tmp_path)
    seen = ids_of(load_dataset(params.data, tmp_path), "seen")
    assert len(seen) == 6
    assert {part: ids for part, (_, ids) in parts.items()} == {
        "seen": [seen[1], seen[2], seen[4], seen[5]],
        "unseen": [seen[0], seen[3]],
    }
