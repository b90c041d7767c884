"""Small things that many tests share: two trees of five leaves, images of them, the project's
parameters.
"""

import ast
import shutil
import subprocess
from pathlib import Path

import networkx as nx
import pytest
import torch
from hypothesis import settings

from hierclip import models
from hierclip.config import Params, load_params
from hierclip.data import Dataset, Leaf, PreparedDataset, load_dataset
from hierclip.data.emoji import SOURCE
from hierclip.data.tasks import Task
from hierclip.models import Head
from hierclip.training import History, fit, set_up
from hierclip.trees import Tree, graph_tree, tree_from_graph, wordnet_tree

ROOT = Path(__file__).resolve().parents[1]
LEAVES = ("dog", "cat", "eagle", "car", "bus")
ONE_STYLE = {  # entries of `data`
    "styles": ("openmoji",),
    "subset": None,
    "val_per_drawing": 2,
    "test_per_drawing": 2,
}

torch.set_num_threads(1)
settings.register_profile("here", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("here")


def tiny_graph() -> nx.DiGraph:
    """Level 1: mammal, eagle, vehicle; level 2: animal, vehicle; so a leaf and a superclass stand
    twice.
    """
    graph = nx.DiGraph()
    for node, level in {
        "thing": 3,
        "animal": 2,
        "mammal": 1,
        "vehicle": 1,
        **dict.fromkeys(LEAVES, 0),
    }.items():
        graph.add_node(node, name=node, level=level)
    graph.add_edges_from(
        [("thing", "animal"), ("thing", "vehicle"), ("animal", "mammal"), ("animal", "eagle")]
    )
    graph.add_edges_from(
        [("mammal", "dog"), ("mammal", "cat"), ("vehicle", "car"), ("vehicle", "bus")]
    )
    return graph


def sizes_graph() -> nx.DiGraph:
    """Another tree over the same leaves, with one level above them: small, big."""
    graph = nx.DiGraph()
    for node, level in {"thing": 2, "small": 1, "big": 1, **dict.fromkeys(LEAVES, 0)}.items():
        graph.add_node(node, name=node, level=level)
    graph.add_edges_from(
        [
            ("thing", "small"),
            ("thing", "big"),
            ("small", "dog"),
            ("small", "cat"),
            ("small", "eagle"),
        ]
    )
    graph.add_edges_from([("big", "car"), ("big", "bus")])
    return graph


def distance(u: torch.Tensor, v: torch.Tensor, r: float) -> torch.Tensor:
    """The distance in the ball of curvature -r, (...), of points (..., D) that broadcast.

    d = (2 / sqrt(r)) arsinh(sqrt(q)) with q = r |u - v|^2 / ((1 - r|u|^2)(1 - r|v|^2)).
    """
    rims = (1 - r * u.square().sum(-1)) * (1 - r * v.square().sum(-1))
    q = r * (u - v).square().sum(-1) / rims + 1e-12  # a finite gradient where points coincide
    return 2 / r**0.5 * torch.asinh(q.sqrt())


def git(folder: Path, *command: str) -> str:
    """Return what a git command prints in a folder. Skips the test where git is not installed."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    line = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a", *command]
    return subprocess.run(line, check=True, capture_output=True, encoding="utf8").stdout.strip()


def commit(folder: Path) -> str:
    """Commit all that is in a folder, in a repository of its own; return the commit."""
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "all", "--allow-empty")
    return git(folder, "rev-parse", "HEAD")


DEFINES = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef


def is_constant(line: ast.stmt) -> bool:
    """Return whether a line of a notebook gives a name in capitals its value."""
    targets = line.targets if isinstance(line, ast.Assign) else []
    return bool(targets) and all(isinstance(t, ast.Name) and t.id.isupper() for t in targets)


def notebook_functions(name: str, **given) -> dict:
    """Return what a notebook imports and the functions, classes and constants that it defines,
    by name, without running the rest.

    given: names that the functions use.
    """
    import nbformat  # only here: benchmarks/gpu.py runs tests where there are no notebooks

    cells = nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4).cells
    tree = ast.parse("\n".join(cell.source for cell in cells if cell.cell_type == "code"))
    tree.body = [line for line in tree.body if isinstance(line, DEFINES) or is_constant(line)]
    names: dict = {**given}
    exec(compile(tree, name, "exec"), names)
    return names


def prepare(dataset: PreparedDataset) -> None:
    """Write a dataset's images as notebook 10 does."""
    notebook_functions("10_data")["prepare"](dataset)


def finetune(
    fabric, method, params, backbone, dataset, trees, template, seed, checkpoint
) -> tuple[Head, History]:
    """Fine-tune `backbone` in place; return the head, and what every step logged."""
    task = Task("seen", dataset, trees, template)
    work = set_up(fabric, method, params, backbone, task, seed)
    history = fit(work, work.step_loss, checkpoint)
    return work.head, history


class Stripes:
    """ImageSet of five leaves that a model can tell apart: a random pattern for each, and noise."""

    name = "stripes"
    credit = ""
    leaves = tuple(Leaf(leaf, leaf, "seen") for leaf in LEAVES)

    def batch(self, places, size, seed, step, rows=slice(None)):
        generator = torch.Generator().manual_seed(1000 * seed + step)
        patterns = torch.rand(len(LEAVES), 3, 32, 32, generator=torch.Generator().manual_seed(0))
        labels = torch.randint(len(places), (size,), generator=generator)
        noise = 0.1 * torch.randn(size, 3, 32, 32, generator=generator)
        return (patterns[places[labels]] + noise).clamp(0, 1)[rows], labels


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def params() -> Params:
    return load_params(ROOT / "params.yaml")


@pytest.fixture
def tree() -> Tree:
    return tree_from_graph(tiny_graph(), "tiny", LEAVES)


@pytest.fixture
def forest(tree) -> list[Tree]:
    """Two trees over the same leaves, of two levels and of one above them."""
    return [tree, tree_from_graph(sizes_graph(), "sizes", LEAVES)]


@pytest.fixture
def backbone(params) -> models.Backbone:
    return models.create(params.model, seed=0, size=32)


@pytest.fixture(scope="session")
def explored(tmp_path_factory) -> Path:
    """A small project as `make repro` leaves it; whoever takes something away puts it back."""
    from tests.explored import write_project

    root = tmp_path_factory.mktemp("explored")
    write_project(root)
    return root


@pytest.fixture(scope="session")
def emoji(params, tmp_path_factory) -> Dataset:
    """All nouns in one style, with few images, prepared in a folder of its own."""
    folder = tmp_path_factory.mktemp("emoji")
    (folder / SOURCE).parent.mkdir(parents=True)
    (folder / SOURCE).symlink_to(ROOT / SOURCE)
    dataset = load_dataset(params.data.model_copy(update=ONE_STYLE), folder)
    prepare(dataset)
    return dataset


@pytest.fixture(scope="session")
def emoji_forest(emoji, params):
    """WordNet's tree, and one that groups leaves by the first letter of their names."""
    names = {leaf.id: leaf.name for leaf in emoji.leaves}
    letters = nx.DiGraph((name[0].lower(), leaf) for leaf, name in names.items())
    return [
        wordnet_tree("wordnet", names, params.trees.widths),
        graph_tree(letters, "letters", names),
    ]
