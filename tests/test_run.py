"""From a model to its record, and from records to the verdict of `hierclip verify`."""

import re
import shutil
from types import SimpleNamespace

import nbformat
import networkx as nx
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from hierclip.attacks import Budget
from hierclip.cli import app
from hierclip.config import SUBSETS
from hierclip.data import class_indices, ids_of
from hierclip.data.tasks import Task
from hierclip.evaluation import (
    RECORDS,
    Evaluation,
    LevelMatrix,
    Outcomes,
    RecordError,
    outcomes_path,
    save_record,
    verify,
)
from hierclip.evaluation.records import (
    COMMITTED,
    MAIN,
    MEAN,
    NO_GIT,
    SOURCES,
    committed_records,
    compare,
    git_revision,
    parse_record,
)
from hierclip.models import READINGS, Classifier, CosineHead
from hierclip.trees import Tree, TreeError, forest_levels, graph_tree, load_forest, save_tree
from tests.conftest import commit, git
from tests.test_evaluate import PATHS, random_images, record


class Knowing(nn.Module):
    """Knows every picture of a dataset by heart: its embedding is the leaf's place. Some it takes
    for the next leaf.
    """

    def __init__(self, dataset, mistaken):
        super().__init__()
        parts = [dataset.images(part) for part in ("val", "test")]
        self.register_buffer("known", torch.cat([part.floats().flatten(1) for part in parts]))
        self.places = torch.cat([(part.labels + mistaken(part.labels)) % 200 for part in parts])

    def forward(self, images):
        nearest = torch.cdist(images.flatten(1), self.known).argmin(1)
        return F.one_hot(self.places[nearest], 200).to(images) + 0 * images.sum((1, 2, 3))[:, None]


def knowing_model(dataset, mistaken=torch.zeros_like, turned=()) -> SimpleNamespace:
    """A model whose texts for any tree over the dataset are the sums of their leaves' places.

    turned: names of trees whose superclasses it takes for one another.
    """

    def classifier(trees, template):
        trees = [trees] if isinstance(trees, Tree) else trees
        leaves = F.one_hot(class_indices(dataset, trees[0].ids), 200).float()
        texts = []
        for k, level in forest_levels(trees):
            paths, size = torch.from_numpy(trees[k].paths)[:, level], trees[k].sizes[level]
            sums = leaves.new_zeros(size, 200).index_add(0, paths, leaves)
            texts.append(sums.roll(1, 0) if level and trees[k].name in turned else sums)
        return Classifier(Knowing(dataset, mistaken), CosineHead(10.0), texts)

    return SimpleNamespace(method="tecoa", classifier=classifier)


@pytest.fixture(scope="session")
def forest(emoji_forest):
    return emoji_forest


def judged(model, emoji, forest, subset, params, root, thorough=True, **choices):
    quick = {"steps": 1, "queries": 2, "suite": ("pgd_margin",), "bootstrap": 20}
    quick |= {"audit_images": 4, "forest_images": 30}
    quick = params.attack.model_copy(update=quick | choices)
    own = [tree.restrict(ids_of(emoji, subset)) for tree in forest]
    task = Task(subset, emoji, own, "{}", thorough)
    record = Evaluation(model, task, 3, quick, root).record()
    return record, Outcomes.load(outcomes_path(root, "tecoa", 3, subset))


@pytest.mark.parametrize("subset", SUBSETS)
def test_model_that_knows_every_picture_is_right_on_its_split(
    emoji, forest, params, subset, tmp_path
):
    found, outcomes = judged(knowing_model(emoji), emoji, forest, subset, params, tmp_path)
    assert found.images == 2 * found.levels[0] == 2 * len(ids_of(emoji, subset))
    levels = len(params.trees.widths) + 1
    assert found.clean["roll_up"] == pytest.approx([1.0] * levels)
    assert found.clean["direct"] == pytest.approx([1.0] * levels)
    assert found.path_robust == pytest.approx({"direct": 1.0, "roll_up": 1.0})
    assert found.audit.failed == [
        "large budget",
        "zero gradients",
        "above: large budget",
        "above: zero gradients",
    ]
    assert list(found.superclass) == [
        *(f"within_superclass-{l}" for l in range(1, levels)),
        f"all_levels-{levels - 1}",
    ]
    assert all(
        value == high == 1 and 0.8 < low < 1 for value, low, high in found.superclass.values()
    )
    for made in (found.mistakes["clean"], found.mistakes["attacked"]):
        assert (
            made["severity"] is None
            and made["hd_1"][0] == made["path_inconsistency"][0] == 0
            and made["consistent"][0] == 1
        )
    assert (found.subset, found.seed, found.threat_model.steps) == (subset, 3, 1)
    assert outcomes.clean["direct"].shape == (found.images, levels)
    assert not list((tmp_path / "data/checkpoints").iterdir())
    assert list(found.trees) == list(found.forest) == ["wordnet", "letters"]
    for tree in found.forest.values():
        assert tree.images == 30 and tree.path_robust == pytest.approx(
            {"direct": 1.0, "roll_up": 1.0}
        )
        assert tree.intervals["direct"] == pytest.approx((1 - 3 / 30, 1))


def test_every_tree_of_a_forest_is_judged_by_itself_on_the_same_pictures(
    emoji, forest, params, tmp_path
):
    own = [tree.restrict(ids_of(emoji, "unseen")) for tree in forest]
    places = class_indices(emoji, own[0].ids).tolist()

    def mistaken(labels):  # every third leaf of the subset, for the one after it in the subset
        steps = [
            places[(k + 1) % len(places)] - place if k % 3 == 0 else 0
            for k, place in enumerate(places)
        ]
        out = torch.zeros_like(labels)
        for place, step in zip(places, steps, strict=True):
            out[labels == place] = step
        return out

    model = knowing_model(emoji, mistaken, turned=["letters"])
    found, outcomes = judged(model, emoji, forest, "unseen", params, tmp_path)
    in_order = np.argsort(places)  # the dataset's: all leaves, twice
    leaf = np.tile(in_order % 3 > 0, 2)
    rows = np.linspace(0, 99, 30).astype(int)
    assert found.path_robust == pytest.approx({"direct": leaf.mean(), "roll_up": leaf.mean()})
    first, second = found.forest["wordnet"], found.forest["letters"]
    assert first.path_robust == pytest.approx(
        {"direct": leaf[rows].mean(), "roll_up": leaf[rows].mean()}
    )
    assert second.path_robust == pytest.approx({"direct": 0.0, "roll_up": leaf[rows].mean()})
    assert second.worst_level == pytest.approx({"direct": 0.0, "roll_up": leaf[rows].mean()})
    assert second.intervals["direct"] == pytest.approx((0, 3 / 30))
    assert (first.images, second.images) == (30, 30)
    assert (first.levels, second.levels) == (list(own[0].sizes), list(own[1].sizes))
    assert found.worst_tree("direct") == "letters"
    for reading in READINGS:  # and by the outcomes that come with the record
        whole = outcomes.clean[reading].all(1) & outcomes.robust[reading].all((0, 2))
        diagonal = [
            outcomes.robust[reading][l, :, l][rows].mean() for l in range(len(found.levels))
        ]
        assert first.path_robust[reading] == pytest.approx(whole[rows].mean())
        assert first.worst_level[reading] == pytest.approx(min(diagonal))


def test_one_tree_is_a_forest_too(emoji, forest, params, tmp_path):
    found, _ = judged(
        knowing_model(emoji),
        emoji,
        forest[:1],
        "unseen",
        params,
        tmp_path,
        forest_images=999,
    )
    assert list(found.forest) == ["wordnet"] and found.worst_tree("direct") == "wordnet"
    assert found.forest["wordnet"].images == found.images
    assert found.forest["wordnet"].path_robust == found.path_robust


def test_trees_with_their_leaves_in_another_order_are_not_evaluated(
    emoji, forest, params, tmp_path
):
    names = {leaf.id: leaf.name for leaf in reversed(emoji.leaves)}
    letters = graph_tree(
        nx.DiGraph((name[0].lower(), leaf) for leaf, name in names.items()), "letters", names
    )
    with pytest.raises(TreeError, match="same leaves in the same order"):
        judged(knowing_model(emoji), emoji, [forest[0], letters], "unseen", params, tmp_path)
    assert not (tmp_path / "data/checkpoints").exists()  # and nothing was attacked for it


def test_level_counts_as_broken_where_either_aim_breaks_it(tmp_path):
    """Superclass texts that see nothing but brightness cannot be moved apart; the leaves can."""
    encoder = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    texts = [torch.eye(3), torch.tensor([[1.0, 1, 1], [-1, -1, -1]])]
    classifier = Classifier(encoder, CosineHead(10.0), texts)
    shown = random_images(0.1, n=2)
    budget = Budget(eps=0.1, step=0.05, steps=4, restarts=1, suite=("pgd_margin",), queries=20)
    out = LevelMatrix(
        classifier, shown, PATHS, budget, seed=0, batch=4, kept=tmp_path / "k"
    ).outcomes()
    assert out.robust["direct"][1, :, 1].all()
    assert not out.robust["roll_up"][1, :, 1].any()  # by the roll-up's own goal
    assert not out.robust["direct"][
        1, :, 0
    ].any()  # which the direct reading of the leaves suffers too


@pytest.mark.parametrize("prune", [0.0, 0.5])
def test_no_goal_is_skipped_where_nothing_is_to_be_pruned(prune, emoji, forest, params, tmp_path):
    trees = [tree.restrict(ids_of(emoji, "unseen")) for tree in forest]
    attack = params.attack.model_copy(update={"prune": prune})
    task = Task("unseen", emoji, trees, "{}")
    matrices = Evaluation(knowing_model(emoji), task, 3, attack, tmp_path).matrices
    pruned = {part: matrix.prune for part, matrix in matrices.items()}
    assert pruned == dict.fromkeys(("test", "forest"), prune > 0) | {"levels": False}


def test_a_task_that_is_not_thorough_has_the_same_record_without_what_is_left_out(
    emoji, forest, params, tmp_path
):
    """It has no checks, no goals beside the readings, no unstopped attacks, and one tree."""
    model = knowing_model(emoji, lambda labels: (labels % 3 == 0).long())
    whole, _ = judged(model, emoji, forest[:1], "unseen", params, tmp_path / "whole")
    brief, _ = judged(
        model, emoji, forest[:1], "unseen", params, tmp_path / "brief", thorough=False
    )
    assert (brief.superclass, brief.levels_transfer, brief.audit.checks) == ({}, {}, {})
    assert brief.audit.images == 0 and not brief.audit.failed
    assert whole.superclass and whole.levels_transfer and whole.audit.checks
    left = {"superclass", "levels_transfer", "audit", "forest"}
    assert brief.model_dump(exclude=left) == whole.model_dump(exclude=left)
    (tree,) = brief.forest.values()  # of all test images
    assert tree.images == brief.images and tree.path_robust == brief.path_robust
    parts = {path.stem for path in (tmp_path / "brief/data/attacks/tecoa-3").glob("*.npz")}
    assert parts == {"unseen"}


def test_a_brief_record_is_read_back_and_compared(emoji, forest, params, tmp_path):
    model = knowing_model(emoji)
    brief, _ = judged(model, emoji, forest, "unseen", params, tmp_path, thorough=False)
    file = tmp_path / RECORDS / "tecoa-3/unseen.json"
    read = parse_record(file.read_text(encoding="utf8"), file.name)
    assert read.audit == brief.audit and read.superclass == {}
    table = compare(read, brief)
    assert table["agrees"].all() and len(table) > 20
    other = brief.model_copy(update={"path_robust": {"direct": 0.5, "roll_up": 0.5}})
    wrong = compare(other, brief)
    assert wrong["metric"][~wrong["agrees"]].tolist() == [f"path_robust {k}" for k in READINGS]


def test_attacks_on_one_reading_give_what_they_give_among_those_on_both():
    """The goals that are left have random numbers of their own."""
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 3))
    texts = [torch.eye(3), torch.tensor([[1.0, 1, 0], [0, 0, 1]])]
    classifier = Classifier(encoder, CosineHead(10.0), texts)
    shown = random_images(0.05, n=30)
    budget = Budget(eps=0.05, step=0.02, steps=4, restarts=1, suite=("pgd_margin",), queries=20)
    both = LevelMatrix(classifier, shown, PATHS, budget, seed=0, batch=4).outcomes()
    matrix = LevelMatrix(classifier, shown, PATHS, budget, seed=0, batch=4, readings=("direct",))
    direct = matrix.outcomes()
    assert list(direct.conditions) == ["clean", "direct-0", "direct-1"]
    rows = [both.under(condition) for condition in direct.conditions]
    assert np.array_equal(direct.nodes, both.nodes[rows])
    for reading in READINGS:
        assert np.array_equal(direct.clean[reading], both.clean[reading])
        assert np.array_equal(direct.robust[reading], both.robust_to(["direct"])[reading])


def archive(folder):
    """Write what an archive of a project holds: sources, one record, a preset; give the folder."""
    for name in (*SOURCES, "presets/smoke/params.yaml"):
        file = folder / name if "." in name else folder / name / "file"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("", encoding="utf8")
    for name in ("lib", "requirements.lock"):
        (folder / "presets/smoke" / name).symlink_to(f"../../{name}")
    save_record(record(), folder / RECORDS)
    return folder


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one committed record, and its outcomes as if just made."""
    commit(archive(tmp_path / "project"))
    outcomes = outcomes_path(tmp_path / "project", "tecoa", 0, "seen")
    outcomes.parent.mkdir(parents=True)
    outcomes.touch()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def test_verify_passes_records_that_are_the_committed_ones(project):
    result = CliRunner().invoke(app, ["verify"])
    assert result.exit_code == 0
    assert "61 metrics agree, 0 differ" in result.output


def test_verify_fails_where_a_figure_differs(project):
    made = record()
    bounds = made.intervals | {
        "direct": made.intervals["direct"].model_copy(update={"worst_level": (0.0, 0.0)})
    }
    changes = {"worst_level": made.worst_level | {"direct": 0.0}, "intervals": bounds}
    save_record(made.model_copy(update=changes), project / RECORDS)
    result = CliRunner().invoke(app, ["verify"])
    assert result.exit_code == 1
    assert "DIFFERS tecoa-0/seen worst_level direct" in result.output


def test_verify_tells_the_means_over_the_sets_of_a_model_that_was_trained_anew(project):
    for subset in ("seen", "unseen"):
        outcomes_path(project, "tecoa", 0, subset).touch()
        save_record(record(subset=subset, hashes={"weights": "a"}), project / COMMITTED)
        save_record(record(subset=subset, hashes={"weights": "b"}), project / RECORDS)
    table = verify(project)
    means = table[table["set"] == MEAN]
    assert set(means["metric"]) == set(MAIN) and set(means["model"]) == {"tecoa-0"}
    for row in means.itertuples():
        sets = table["allowed"][(table["metric"] == row.metric) & (table["set"] != MEAN)]
        assert len(sets) == 2 and row.allowed == pytest.approx((sets**2).sum() ** 0.5 / 2)
        assert row.agrees and row.new == row.old
    output = CliRunner().invoke(app, ["verify"]).output
    assert output.count(f"agrees  tecoa-0/{MEAN} ") == len(MAIN) and "0 differ" in output


def test_verify_refuses_what_was_not_made_here(project):
    outcomes_path(project, "tecoa", 0, "seen").unlink()
    with pytest.raises(RecordError, match="not made here: tecoa-0/seen; run `make repro`"):
        verify(project)


def test_verify_refuses_a_record_that_was_taken_away(project):
    save_record(record(seed=1), project / RECORDS)
    (project / RECORDS / "tecoa-0/seen.json").unlink()
    with pytest.raises(RecordError, match="not made here: tecoa-0/seen; run `make repro`"):
        verify(project)


def test_a_record_whose_name_git_would_quote_is_compared(tmp_path):
    save_record(record(subset="Grüße 1"), archive(tmp_path) / RECORDS)
    commit(tmp_path)
    assert {r.subset for r in committed_records(tmp_path)} == {"seen", "Grüße 1"}


def test_without_git_records_are_compared_with_those_that_were_kept(project, monkeypatch):
    shutil.rmtree(project / ".git")
    with pytest.raises(RecordError, match=r"project: git does not show .* \(fatal: not a git rep"):
        verify(project)
    shutil.copytree(project / RECORDS, project / COMMITTED)
    assert verify(project)["agrees"].all()
    save_record(record().model_copy(update={"worst_level": {"direct": 0.0}}), project / RECORDS)
    assert not verify(project)["agrees"].all()


def test_a_revision_is_the_last_commit_that_touched_what_results_depend_on(tmp_path):
    first = commit(archive(tmp_path))
    (tmp_path / "README.md").touch()
    commit(tmp_path)
    assert git_revision(tmp_path) == git_revision(tmp_path / "presets/smoke") == first
    (tmp_path / "lib/new.py").touch()
    git(tmp_path, "config", "status.showUntrackedFiles", "no")
    assert git_revision(tmp_path) == git_revision(tmp_path / "presets/smoke") == first + "+"


def test_a_shallow_clone_names_the_oldest_commit_that_it_has(project):
    (project / "README.md").touch()
    head = commit(project)
    git(project, "clone", "-q", "--depth", "1", f"file://{project}", project / "clone")
    assert git_revision(project / "clone") == head  # whose sources are the same
    assert committed_records(project / "clone") == committed_records(project)


def in_an_archive(folder, monkeypatch):
    archive(folder)


def inside_another_repository(folder, monkeypatch):
    """As with files in $HOME, some of which are called as ours are."""
    (folder.parent / "lib").mkdir()
    (folder.parent / "lib/file").touch()
    commit(folder.parent)
    archive(folder)


def in_a_hook_of_another_repository(folder, monkeypatch):
    commit(archive(folder.parent / "other"))
    monkeypatch.setenv("GIT_DIR", str(folder.parent / "other/.git"))
    archive(folder)


def without_a_commit(folder, monkeypatch):
    git(archive(folder), "init", "-q")


def with_git_not_installed(folder, monkeypatch):
    commit(archive(folder))
    monkeypatch.setenv("PATH", str(folder))


def in_somebody_elses_folder(folder, monkeypatch):
    commit(archive(folder))
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (in_an_archive, "fatal: not a git repository"),
        (inside_another_repository, None),
        (in_a_hook_of_another_repository, "fatal: not a git repository"),
        (without_a_commit, "fatal: Not a valid object name HEAD"),
        (with_git_not_installed, "env: .git.: No such file"),
        (in_somebody_elses_folder, "fatal: detected dubious ownership"),
    ],
)
def test_where_git_does_not_know_the_folder_there_is_no_revision_and_the_reason_is_said(
    machine, reason, tmp_path, monkeypatch
):
    machine(tmp_path / "project", monkeypatch)
    assert git_revision(tmp_path / "project") == NO_GIT
    with pytest.raises(RecordError) as caught:
        committed_records(tmp_path / "project")
    assert re.search(reason or "no record is committed under data/results", str(caught.value))
    assert "\n" not in str(caught.value)


def test_in_a_hook_the_project_is_compared_with_its_own_commit(project, monkeypatch):
    expected = git_revision(project)
    monkeypatch.setenv("GIT_DIR", str(project.parent / "none"))
    assert git_revision(project) == expected != NO_GIT and len(committed_records(project)) == 1


def test_index_notebook_runs_where_the_results_are(root):
    notebook = nbformat.read(root / "notebooks/00_index.ipynb", as_version=4)
    NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": str(root / "notebooks")}}
    ).execute()


def test_trees_are_read_back_as_they_were(forest, tmp_path):
    for tree in forest:
        save_tree(tree, tmp_path / f"{tree.name}.json")
    assert load_forest(tmp_path, ["wordnet", "letters"]) == forest


def test_an_attack_is_in_float32_and_leaves_the_setting_as_it_was(monkeypatch):
    seen = []

    class Spy(nn.Flatten):
        def forward(self, images):
            seen.append(torch.backends.cudnn.allow_tf32)
            return super().forward(images.mean((2, 3)))

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    budget = Budget(eps=0.1, step=0.05, steps=1, restarts=1, suite=("pgd_margin",), queries=20)
    model = Classifier(Spy(), CosineHead(10.0), [torch.eye(3), torch.eye(3)[:2]])
    LevelMatrix(model, random_images(n=2), PATHS, budget, seed=0, batch=4).outcomes()
    assert seen and not any(seen) and torch.backends.cudnn.allow_tf32
