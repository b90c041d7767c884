"""Audits: the command, its notebook and page; the function; models, trees, images of users."""

import ast
import inspect
import json
import os
import signal
import subprocess
import sys

import nbformat
import open_clip
import pytest
import torch
from papermill.exceptions import PapermillExecutionError
from safetensors.torch import save_file

import hierclip
from hierclip import models
from hierclip.audits import audit, image_folder, open_model, read_dataset
from hierclip.cli.audit import run_notebook
from hierclip.data import square
from hierclip.errors import HierclipError
from hierclip.evaluation import Outcomes
from hierclip.evaluation.records import parse_record
from hierclip.models import Model, ModelError
from hierclip.progress import HEADLESS
from hierclip.trees import TreeError, load_tree
from hierclip.trees.chosen import class_trees
from tests.conftest import LEAVES, ROOT
from tests.miniatures import COUNT, folders, put
from tests.test_cli import ARCHITECTURE, IN_PYTHON, QUICK, TREE, place, run, weights
from tests.test_heads import HEADS
from tests.test_report import Loaded

__all__ = ["place", "run", "weights"]  # fixtures
SETTINGS = {"suite": "apgd_ce", "steps": 2, "checks": 2, "eps": "2/255"}  # QUICK, for Python
NOTEBOOK = ROOT / "notebooks/95_audit.ipynb"


@pytest.fixture(scope="module")
def audited(weights, tmp_path_factory):
    """What the command wrote and said, run in a folder of its own: a folder, and the process.

    Its user has a home that nobody can make.
    """
    folder = tmp_path_factory.mktemp("audited")
    folders(folder / "zoo", list(LEAVES))
    (folder / "zoo/dog/notes.txt").write_text("none", encoding="utf8")
    (folder / "zoo/cat/0.jpg").write_text("none", encoding="utf8")
    (folder / "<i>kinds.json").write_text(json.dumps(TREE), encoding="utf8")
    (folder / "sizes.json").write_text(
        json.dumps({"big": ["bus", "car"], "small": ["eagle", "dog", "cat"]}), encoding="utf8"
    )
    given = ["--model", ARCHITECTURE, "--pretrained", weights, "--images", "zoo", *QUICK]
    trees = ["--tree", "<i>kinds.json", "--tree", "sizes.json"]
    command = [sys.executable, "-m", "hierclip", "audit", *given, *trees]
    home = os.environ | {"HOME": "/dev/null/home"}
    done = subprocess.run(command, cwd=folder, env=home, capture_output=True, encoding="utf8")
    return folder, done


def read_record(folder):
    return parse_record((folder / "record.json").read_text(encoding="utf8"), "record.json")


def test_an_audit_prints_a_table_and_what_it_does(audited):
    folder, done = audited
    made = folder / "hierclip-audit"
    record = read_record(made)
    assert done.returncode == (1 if record.audit.failed else 0)
    assert (record.dataset, record.images, record.levels) == ("zoo", 5 * COUNT, [5, 4, 2])
    threat = record.threat_model
    assert (threat.eps, threat.suite, threat.resolution) == ("2/255", ("apgd_ce",), 32)
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [[cell.strip() for cell in row[:2]] for row in rows[1:4]] == [
        ["0", "5"],
        ["1", "4"],
        ["2", "2"],
    ]
    assert [rows[2][2].strip()[:7], rows[3][2].strip()] == ["mammal,", "animal, vehicle"]
    assert f"{100 * record.robust['roll_up'][2][2]:.1f} [" in rows[3][-1]
    assert f"**Path-robust accuracy** {100 * record.path_robust['direct']:.1f} [" in done.stdout
    assert (made / "table.md").read_text(encoding="utf8") in done.stdout
    assert (
        "5 classes\ntree <i>kinds, levels of 5, 4, 2 nodes; tree sizes, levels of 5, 2 nodes\n"
        in done.stderr
    )
    left_out = "left out, as they cannot be read: zoo/cat/0.jpg (no image that Pillow knows)"
    assert "\nzoo: left out 1 .txt\n" in done.stderr and f"\n{left_out}\n" in done.stderr
    assert "zoo, test: 5/5" in done.stderr and "Kernel" not in done.stderr


def test_an_audit_in_two_trees_measures_both_on_the_same_images(audited):
    folder, done = audited
    made = folder / "hierclip-audit"
    record = read_record(made)
    assert {name: (tree.images, tree.levels) for name, tree in record.forest.items()} == {
        "<i>kinds": (2, [5, 4, 2]), "sizes": (2, [5, 2])
    }  # fmt: skip
    kept = [load_tree(made / f"trees/{name}.json") for name in record.trees]
    assert [tree.hash for tree in kept] == list(record.trees.values())
    assert kept[0].ids == kept[1].ids and set(kept[0].ids) == set(LEAVES)
    lines = (
        done.stdout.split("Every tree, on 2 of the images:\n\n")[1].split("\n\n")[0].splitlines()
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[:2] for row in rows[2:]] == [["<i>kinds", "5, 4, 2"], ["sizes", "5, 2"]]
    for row, tree in zip(rows[2:], record.forest.values(), strict=True):
        assert row[2].startswith(f"{100 * tree.path_robust['direct']:.1f} [")


def test_an_audit_leaves_record_outcomes_figures_and_a_page(audited):
    made = audited[0] / "hierclip-audit"
    names = ["checks", "levels", "matrix_direct", "matrix_roll_up", "tree_<i>kinds", "tree_sizes"]
    figures = sorted(file.name for file in (made / "figures").iterdir())
    assert figures == sorted(f"{name}.{kind}" for name in names for kind in ("pdf", "png"))
    clean = Outcomes.load(made / "outcomes/zoo.npz").clean["direct"].mean(0).tolist()
    assert clean == pytest.approx(read_record(made).clean["direct"], abs=1e-6)
    assert sorted(file.name for file in made.iterdir()) == [
        "figures", "outcomes", "record.json", "report.html", "table.md", "trees"
    ]  # fmt: skip
    assert not list(audited[0].glob("hierclip-*/images"))


def test_the_page_is_whole_loads_nothing_and_escapes_what_users_write(audited):
    page = (audited[0] / "hierclip-audit/report.html").read_text(encoding="utf8")
    found = Loaded(page)
    assert (
        not found.tags & {"script", "iframe", "object", "embed", "i"}
        and {"h1", "img", "table"} <= found.tags
    )
    assert all(address.startswith(("data:", "#")) for address in found.addresses)
    assert page.count("data:image/png;base64,") == 6
    for words in (
        "animal, vehicle",
        "Every tree, on 2 of the images",
        "cannot be read: zoo/cat/0.jpg",
        "torchvision",
    ):
        assert words in page
    assert (
        page.count("&lt;i&gt;kinds: coarsest superclasses inside") == 2
    )  # the caption, and for the blind
    assert "zoo, test: 5/5" not in page and "Traceback" not in page


def test_the_function_gives_the_same_and_reads_what_is_finished(audited, weights, monkeypatch):
    folder, _ = audited
    monkeypatch.chdir(folder)
    given = (ARCHITECTURE, "zoo")
    trees, settings = ["<i>kinds.json", "sizes.json"], SETTINGS | {"pretrained": str(weights)}
    made = read_record(folder / "hierclip-audit")
    found = hierclip.audit(*given, tree=trees, **settings | {"eps": 2 / 255, "out": "other"})
    assert found.record == made and [tree.name for tree in found.trees] == list(made.trees)
    monkeypatch.setattr("hierclip.audits.Evaluation.record", None)
    assert hierclip.audit(*given, tree=trees, **settings) == found
    with pytest.raises(
        HierclipError,
        match=r"hierclip-audit holds another audit \(threat_model, settings differ\); name",
    ):
        hierclip.audit(*given, tree=trees, **settings | {"eps": "3/255"})


@pytest.fixture
def stoppable():
    """Let SIGINT reach the commands, where pytest itself runs in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_audit_that_is_stopped_says_so_and_goes_on(audited, weights, monkeypatch, stoppable):
    folder, _ = audited
    monkeypatch.chdir(folder)
    given = [
        "--model",
        ARCHITECTURE,
        "--pretrained",
        weights,
        "--images",
        "zoo",
        *QUICK,
        "--out",
        "again",
    ]
    command = [sys.executable, "-m", "hierclip", "audit", *given]
    lines = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf8") as process:
        for line in process.stderr:
            lines.append(line)
            if "5 classes" in line:
                process.send_signal(signal.SIGINT)
    assert (
        process.returncode == 130
        and lines[-1] == "hierclip: stopped; the same command goes on from there\n"
    )
    assert (
        not list(folder.glob("hierclip-*/images")) and not (folder / "again/report.html").exists()
    )
    assert (
        hierclip.audit(
            ARCHITECTURE, "zoo", pretrained=str(weights), **SETTINGS, out="again"
        ).record.images
        == 5 * COUNT
    )


class Lost:
    """An interrupt that comes in a destructor: Python prints it and goes on."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def turn_interrupt(*_, **__):
    """As a module that is being imported may do."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise ImportError("no numpy") from None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("command", [lambda *_, **__: Lost() and None, turn_interrupt])
def test_an_interrupt_that_is_lost_on_the_way_stops_the_command(
    run, monkeypatch, stoppable, command
):
    monkeypatch.setattr("hierclip.cli.app", command)
    assert run("audit") == (130, "", "hierclip: stopped; the same command goes on from there\n")


def written(folder, source):
    """Write a notebook of one cell."""
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / "one.ipynb")
    return folder / "one.ipynb"


def test_a_stopped_audit_of_another_model_is_not_thrown_away(place, weights):
    kept = place / "hierclip-audit/work/data/checkpoints/attack-other-0-zoo/test/left"
    kept.mkdir(parents=True)
    with pytest.raises(HierclipError, match=r"stopped audit in it \(attack-other-0-zoo\); go on"):
        audit(ARCHITECTURE, "zoo", pretrained=str(weights), limit=1, **SETTINGS)
    assert kept.exists()


def test_a_notebook_is_stopped_while_a_cell_runs(tmp_path, monkeypatch, stoppable):
    monkeypatch.setenv(HEADLESS, "yes")
    source = "import os, signal, time\nos.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        run_notebook(written(tmp_path, source), {})


@pytest.mark.parametrize(
    "source",
    [
        "from hierclip.errors import HierclipError\nraise HierclipError('no image; put one there')",
        "from hierclip.models import ModelError\nraise ModelError('no image; put one there')",
        "raise PermissionError('no image; put one there')",
    ],
)
def test_a_mistake_of_the_users_in_the_notebook_is_one_line(tmp_path, monkeypatch, source):
    monkeypatch.setenv(HEADLESS, "yes")
    with pytest.raises(HierclipError, match="^no image; put one there$"):
        run_notebook(written(tmp_path, source), {})


def test_a_bug_in_the_notebook_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv(HEADLESS, "yes")
    source = "def broken():\n    raise TypeError('not the user')\n\nbroken()"
    with pytest.raises(
        PapermillExecutionError, match=r"in broken\(\)(.|\n)*TypeError: not the user"
    ):
        run_notebook(written(tmp_path, source), {})


def test_a_class_without_a_readable_image_is_one_line(place, run, weights):
    for file in (place / "zoo/cat").iterdir():
        file.write_text("none", encoding="utf8")
    code, out, err = run(
        "audit", "--model", ARCHITECTURE, "--pretrained", weights, "--images", "zoo"
    )
    last = err.splitlines()[-1]
    assert code == 2 and out == "" and "Traceback" not in err
    assert last.startswith(
        "hierclip: zoo: no image of class cat can be read; mend or remove zoo/cat/1.jpg (no image that Pillow knows)"
    )
    assert not list(place.glob("hierclip-*"))


@pytest.mark.parametrize(
    ("name", "pretrained", "words"),
    [
        (
            "hierclip-tiny-64",
            None,
            "weights of another model: 1 of another shape, such as visual.attn",
        ),
        (
            ARCHITECTURE,
            "other.safetensors",
            "other.safetensors: weights of another model: .* missing, such as ",
        ),
        (ARCHITECTURE, "tree.json", "tree.json is text "),
    ],
)
def test_weights_that_do_not_fit_are_refused(place, weights, name, pretrained, words):
    save_file({"a": torch.zeros(2)}, place / "other.safetensors")
    with pytest.raises(ModelError, match=words):
        open_model(name, pretrained or str(weights))


def test_a_folder_without_a_model_is_refused(place):
    with pytest.raises(ModelError, match="no model in zoo"):
        open_model("zoo", None)


def test_the_notebooks_parameters_are_those_of_the_function():
    cell = next(
        c
        for c in nbformat.read(NOTEBOOK, as_version=4).cells
        if "parameters" in c.metadata.get("tags", [])
    )
    found = {
        node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body
    }
    function = inspect.signature(audit).parameters
    assert set(found) == set(function) - IN_PYTHON
    for name, value in found.items():
        default = function[name].default
        assert (value or None) == (default or None) or name in (
            "model",
            "pretrained",
            "images",
            "seed",
        ), name


@pytest.fixture
def hub(backbone, tmp_path, monkeypatch):
    """Hugging Face's hub, which keeps one model."""
    models.save(backbone, tmp_path / "hub")
    config = json.loads((tmp_path / "hub/open_clip_config.json").read_text(encoding="utf8"))
    weights = str(tmp_path / "hub/open_clip_model.safetensors")
    kept = {"_get_hf_config": config, "download_pretrained_from_hf": weights}
    for name, value in kept.items():
        monkeypatch.setattr(
            open_clip.factory,
            name,
            lambda model_id, *_, value=value, **__: {"me/clip": value}[model_id],
        )
    return backbone


def test_a_model_of_the_hub_brings_its_weights_and_is_called_by_its_name(hub):
    found = open_model("hf-hub:me/clip", None)
    expected = hub.clip.state_dict()
    assert found.method == "clip"
    assert all(
        value.equal(expected[key]) for key, value in found.backbone.clip.state_dict().items()
    )
    with pytest.raises(
        HierclipError, match="hf-hub:me/clip has weights of its own; leave out 'openai'"
    ):
        audit("hf-hub:me/clip", "zoo", pretrained="openai")
    with pytest.raises(ModelError, match="cannot load hf-hub:me/other"):
        open_model("hf-hub:me/other", None)


def test_a_model_of_the_project_is_audited_as_it_is_read(place, backbone):
    models.save_model(
        Model(backbone, HEADS[-1], "hier", template="a drawing of {}"), place / "hier-0"
    )
    settings = SETTINGS | {"images": "zoo", "tree": "tree.json", "limit": 1}
    record = audit("hier-0", **settings).record
    assert record.method == "hier-0" and record.images == 5
    assert record.threat_model.prompt == "a drawing of {}"  # its own
    assert (
        audit("hier-0", **settings, template="a {}", out="other").record.threat_model.prompt
        == "a {}"
    )
    assert "cosine" in record.audit.checks  # a check of models that are read otherwise


def test_a_tree_over_some_of_the_classes_or_others_is_refused_by_name(tree):
    classes = {leaf: leaf for leaf in LEAVES}
    assert class_trees(classes, [tree]) == [tree]
    with pytest.raises(
        TreeError,
        match="^tree tiny: leaf bus, eagle is missing from the tree, or above other nodes$",
    ):
        class_trees(classes, [tree.restrict(["dog", "cat", "car"])])
    with pytest.raises(
        TreeError, match="^tree tiny: leaf yak is missing from the tree, or above other nodes$"
    ):
        class_trees({"cat": "cat", "eagle": "eagle", "bus": "bus", "yak": "yak"}, [tree])
    with pytest.raises(TreeError, match="^tree tiny: leaf car, dog is unknown to the dataset$"):
        class_trees({"cat": "cat", "eagle": "eagle", "bus": "bus"}, [tree])


def test_the_first_images_of_a_class_are_audited(place):
    some = read_dataset(image_folder(place / "zoo"), square(16), 2, place / "some")
    every = read_dataset(image_folder(place / "zoo"), square(16), None, place / "every")
    images = every.images("test").read()
    assert images.shape == (5 * COUNT, 3, 16, 16) and images.dtype == torch.uint8
    assert torch.equal(
        some.images("test").read(), images[[k for k in range(5 * COUNT) if k % COUNT < 2]]
    )
    assert some.images("test").labels.tolist() == [k for k in range(5) for _ in range(2)]


def test_the_next_image_of_a_class_stands_in_for_one_that_cannot_be_read(place):
    images = (
        read_dataset(image_folder(place / "zoo"), square(16), None, place / "whole")
        .images("test")
        .read()
    )
    (place / "zoo/cat/1.jpg").write_text("none", encoding="utf8")
    some = read_dataset(image_folder(place / "zoo"), square(16), 1, place / "some")
    firsts = [k * COUNT + (sorted(LEAVES)[k] == "cat") for k in range(5)]
    assert some.images("test").labels.tolist() == list(range(5)) and some.unreadable == [
        f"{place / 'zoo/cat/1.jpg'} (no image that Pillow knows)"
    ]
    assert torch.equal(some.images("test").read(), images[firsts])


def test_notes_are_printed_and_one_image_of_a_class_is_enough(place, weights, capsys):
    for leaf in LEAVES:
        put(place / f"few/{leaf}/1.png", 0)
    found = audit(ARCHITECTURE, "few", pretrained=str(weights), **SETTINGS)
    assert len(found.notes) > 1 and "\n".join(found.notes) in capsys.readouterr().out
