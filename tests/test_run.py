"""From a model to its record, and from records to the verdict of `hierclip verify`."""

import subprocess
from types import SimpleNamespace

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from hierclip.attacks import Budget
from hierclip.cli import app
from hierclip.data import SPLITS, ids_of, places_of
from hierclip.evaluate import RECORDS, RecordError, evaluate, level_matrix, outcomes_path, save_record, verify
from hierclip.evaluate.run import better_reading
from hierclip.model import Classifier, CosineHead, accuracy
from hierclip.trees import load_tree, save_tree, wordnet_tree
from tests.test_evaluate import PATHS, pictures, record


class Knowing(nn.Module):
    """Knows every picture of a dataset by heart: its embedding is the leaf's place."""

    def __init__(self, dataset):
        super().__init__()
        parts = [dataset.pictures(part) for part in ("val", "test")]
        self.known = torch.cat([part.floats().flatten(1) for part in parts])
        self.places = torch.cat([part.labels for part in parts])

    def forward(self, images):
        nearest = torch.cdist(images.flatten(1), self.known).argmin(1)
        return F.one_hot(self.places[nearest], 200).float() + 0 * images.sum((1, 2, 3))[:, None]


def knowing_model(dataset) -> SimpleNamespace:
    """A model whose texts for any tree over the dataset are the sums of their leaves' places."""

    def classifier(tree, template):
        leaves = F.one_hot(places_of(dataset, tree.ids), 200).float()
        paths = torch.from_numpy(tree.paths)
        texts = [leaves.new_zeros(size, 200).index_add(0, paths[:, l], leaves) for l, size in enumerate(tree.sizes)]
        return Classifier(Knowing(dataset), CosineHead(10.0), texts)

    return SimpleNamespace(method="tecoa", classifier=classifier)


@pytest.fixture(scope="session")
def forest(openmoji, params):
    return wordnet_tree("wordnet", {leaf.id: leaf.name for leaf in openmoji.leaves}, params.trees.widths)


@pytest.mark.parametrize("split", SPLITS)
def test_model_that_knows_every_picture_is_right_on_its_split(openmoji, forest, params, split, tmp_path):
    quick = params.attack.model_copy(update={"steps": 1, "bootstrap": 20, "audit_images": 20})
    found, outcomes = evaluate(
        knowing_model(openmoji), openmoji, forest, split, seed=3, params=quick, template="{}", root=tmp_path
    )
    assert found.images == 2 * found.levels[0] == 2 * len(ids_of(openmoji, split))
    assert found.clean["roll_up"] == pytest.approx([1.0] * 6)
    assert found.clean["direct"] == pytest.approx([1.0] * 6)
    assert found.path_robust == pytest.approx({"direct": 1.0, "roll_up": 1.0})
    assert found.audit.zero_gradients == 1
    assert (found.split, found.seed, found.threat_model.steps) == (split, 3, 1)
    assert outcomes.clean["direct"].shape == (found.images, 6)
    assert not list((tmp_path / "data/checkpoints").iterdir())


def test_accuracy_counts_right_nodes_of_every_level():
    encoder = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    turned = [torch.eye(3)[[1, 0, 2]], torch.tensor([[1.0, 1, 0], [0, 0, 1]])]  # mixes up leaves 0 and 1, one family
    found = accuracy(Classifier(encoder, CosineHead(1.0), turned), pictures(), PATHS)
    assert found["direct"] == pytest.approx([1 / 3, 1])
    assert found["roll_up"] == pytest.approx([1 / 3, 1])


def test_level_counts_as_broken_where_either_aim_breaks_it(tmp_path):
    """Superclass texts that see nothing but brightness cannot be moved apart; the leaves can."""
    encoder = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    texts = [torch.eye(3), torch.tensor([[1.0, 1, 1], [-1, -1, -1]])]
    classifier = Classifier(encoder, CosineHead(10.0), texts)
    shown = pictures(0.1, n=2)
    budget = Budget(eps=0.1, step=0.05, steps=4, restarts=1, losses=("margin",))
    out = level_matrix(classifier, shown, PATHS, budget, seed=0, batch=4, kept=tmp_path / "k.npz")
    assert out.robust["direct"][1, :, 1].all()
    assert not out.robust["roll_up"][1, :, 1].any()  # by the roll-up's own aim
    assert not out.robust["direct"][1, :, 0].any()  # which the direct reading of the leaves suffers too


def test_reading_is_that_of_the_higher_headline_and_then_of_the_higher_worst_level():
    figures = {"direct": {"path_robust": 0.0, "worst_level": 0.1}, "roll_up": {"path_robust": 0.0, "worst_level": 0.2}}
    assert better_reading(figures) == "roll_up"
    figures["direct"]["path_robust"] = 0.1
    assert better_reading(figures) == "direct"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one committed record, and its outcomes as if just made."""
    (tmp_path / "params.yaml").write_text("", encoding="utf8")
    save_record(record(), tmp_path / RECORDS)
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a", "commit", "-qm", "records"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    outcomes = outcomes_path(tmp_path, "tecoa", 0, "tuned")
    outcomes.parent.mkdir(parents=True)
    outcomes.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_verify_passes_records_that_are_the_committed_ones(project):
    result = CliRunner().invoke(app, ["verify"])
    assert result.exit_code == 0
    assert "28 figures agree within their intervals, 0 differ" in result.output


def test_verify_fails_where_a_figure_differs(project):
    made = record()
    bounds = {k: b.model_copy(update={"worst_level": (0.0, 0.0)}) for k, b in made.intervals.items()}
    save_record(made.model_copy(update={"intervals": bounds}), project / RECORDS)
    result = CliRunner().invoke(app, ["verify"])
    assert result.exit_code == 1
    assert "DIFFERS tecoa-0-tuned direct worst_level" in result.output


def test_verify_refuses_what_was_not_made_here(project):
    outcomes_path(project, "tecoa", 0, "tuned").unlink()
    with pytest.raises(RecordError, match="not made here: tecoa-0-tuned; run `make repro`"):
        verify(project)


def test_index_notebook_runs_where_the_results_are(root):
    notebook = nbformat.read(root / "notebooks/00_index.ipynb", as_version=4)
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(root / "notebooks")}}).execute()


def test_tree_of_the_pipeline_is_read_back(forest, tmp_path):
    save_tree(forest, tmp_path / "tree.json")
    assert load_tree(tmp_path / "tree.json") == forest
