"""The command, used as somebody does who has a model and a folder of images, and no project."""

import inspect
import io
import json
import runpy
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import hierclip
from hierclip import models
from hierclip.audits import attack_params, audit
from hierclip.cli import USAGE, app, main
from hierclip.cli.audit import audit as audit_command, folder_names
from hierclip.cli.export import head_words
from hierclip.config import ParamsError
from hierclip.data.sources import DataError
from hierclip.errors import HierclipError
from hierclip.evaluation.records import RECORDS, RecordError, parse_record
from hierclip.models import Model, ModelError
from hierclip.plots.words import audit_words, share
from hierclip.progress import HEADLESS
from hierclip.training import TrainingError
from hierclip.trees import TreeError, load_tree
from hierclip.trees.wordnet import EXCERPT, NAMES
from tests.conftest import LEAVES, ROOT
from tests.miniatures import folders
from tests.test_heads import HEADS
from tests.test_writing import held

mpl.use("agg")
ARCHITECTURE = "hierclip-tiny"
QUICK = ["--suite", "apgd_ce", "--steps", "2", "--checks", "2", "--eps", "2/255"]
TREE = {"animal": {"mammal": ["dog", "cat"], "bird": ["eagle"]}, "vehicle": ["car", "bus"]}


@pytest.fixture(scope="module")
def weights(params, tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "mine.safetensors"
    made = models.create(
        params.model.model_copy(update={"architecture": ARCHITECTURE}), seed=0, size=32
    )
    save_file({key: value.contiguous() for key, value in made.clip.state_dict().items()}, file)
    return file


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where there is no project: images of five classes, and a tree over them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HIERCLIP_ROOT", raising=False)
    monkeypatch.setattr("nltk.data.path", [])  # nor a full WordNet
    monkeypatch.setattr("hierclip.trees.wordnet.DEBIAN", tmp_path / "none")
    folders(tmp_path / "zoo", list(LEAVES))
    (tmp_path / "tree.json").write_text(json.dumps(TREE), encoding="utf8")
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    """The command: its exit code, and what it says on each stream."""

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["hierclip", *map(str, arguments)])
        monkeypatch.setenv(HEADLESS, "yes")  # so that what the command sets goes with the test
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return stop.value.code, said.out, said.err  # pyright: ignore

    return call


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf8"])
def test_letters_that_a_terminal_cannot_show_stand_by_number(place, monkeypatch, encoding):
    (place / "odd.yaml").write_text("animal: [猫, dog]\nplant: [rose, Kürbis]", encoding="utf8")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.argv", ["hierclip", "tree", "--tree", "odd.yaml"])
    with pytest.raises(SystemExit, match="0"):
        main()
    terminal.flush()
    lines = terminal.buffer.getvalue().decode(encoding).splitlines()  # pyright: ignore
    assert {"  dog", "  Kürbis", "  猫" if encoding == "utf8" else r"  \u732b"} < set(lines)


IN_PYTHON = {"labels", "classes", "texts", "scale", "surrogate", "processor", "size"}  # objects
BAD = {  # what is given instead, and what the line has to say
    "architecture": (
        {"--model": "ViT-Z-99"},
        "no model of open_clip 'ViT-Z-99'; did you mean ViT-",
    ),
    "architecture as the paper writes it": (
        {"--model": "vit-b/32"},
        "no model of open_clip 'vit-b/32'; did you mean ViT-B-32",
    ),
    "architecture as transformers has it": (
        {"--model": "openai/clip-vit-large-patch14-336"},
        "is so called in transformers; open_clip has ViT-L-14-336, weights openai",
    ),
    "file of weights as the model": (
        {"--model": "tree.json"},
        "tree.json is a file; give it as weights of an architecture",
    ),
    "folder as weights": ({"--pretrained": "zoo"}, "zoo is a folder; give the file in it"),
    "folder that is none": (
        {"--model": "local-dir:none", "--pretrained": None},
        "no folder 'none'",
    ),
    "tag": (
        {"--model": "ViT-B-32", "--pretrained": "open-ai"},
        "no published weights 'open-ai'; did you mean openai",
    ),
    "path of a model": (
        {"--model": "models/hier-0", "--pretrained": None},
        "no folder 'models/hier-0' with a model in",
    ),
    "which weights": (
        {"--pretrained": None},
        "hierclip-tiny: which weights? published are none; a checkpoint file will do",
    ),
    "which tag": (
        {"--model": "ViT-B-32", "--pretrained": None},
        "ViT-B-32: which weights? published are openai, ",
    ),
    "weights": (
        {"--pretrained": "none.pt"},
        "no file 'none.pt', and no published weights 'none.pt'; known are none",
    ),
    "folder and weights": ({"--model": "zoo"}, "zoo has weights of its own; leave out"),
    "images": ({"--images": "nowhere"}, "nowhere: no such folder"),
    "a file for images": ({"--images": "tree.json"}, "tree.json: no such folder"),
    "images without classes": (
        {"--images": "zoo/dog"},
        "zoo/dog: no class folders; put the images of each",
    ),
    "empty class": ({"--images": "empty"}, "empty: no images in class nothing, words"),
    "one class": ({"--images": "one"}, "one: one class only (dog); there must be two"),
    "classes of one name": (
        {"--images": "twins"},
        "twins: big cat, big_cat have one name; give each its own",
    ),
    "tree": ({"--tree": "none.yaml"}, "none.yaml: no such file"),
    "kind of tree": ({"--tree": "zoo"}, "no set of trees 'zoo'; known are aircraft"),
    "tree that lacks a class": ({"--tree": "lacks.yaml"}, "lacks.yaml: leaf bus (bus) is missing"),
    "tree with another class": (
        {"--tree": "extra.yaml"},
        "extra.yaml: unknown leaf 'tram' under vehicle",
    ),
    "class without synset": (
        {"--tree": "wordnet"},
        "no synset chosen for bus, car; to look names up takes",
    ),
    "synset": (
        {"--tree": "wordnet", "--synsets": "wrong.yaml"},
        "WordNet has no synset 'dog.n.99'",
    ),
    "synsets": (
        {"--tree": "wordnet", "--synsets": "tree.txt"},
        "tree.txt: no lines `class: synset`, nor a CSV",
    ),
    "widths": (
        {"--widths": "3,x"},
        "--widths 3,x: write numbers like 24,12,5",
    ),
    "widths that rise": (
        {"--widths": "2,3"},
        "level 2 keeps 2 nodes; its width 3 must be reachable and falling",
    ),
    "budget": ({"--eps": "abc"}, "eps: 'abc' is no budget; write n/255, such as 1/255"),
    "budget that may be a level": (
        {"--eps": "1"},
        "(for Linf at most 0.5, for 1 may be meant as 1/255)",
    ),
    "budget of a comma": ({"--eps": "0,5"}, "eps: '0,5' is no budget"),
    "budget of other levels": ({"--eps": "4/256"}, "eps: '4/256' is no budget"),
    "budget that is no number": ({"--eps": "nan"}, "eps: 'nan' is no budget"),
    "budget below 0": ({"--eps": "-1/255"}, "eps: '-1/255' is no budget"),
    "budget of L2": (
        {"--eps": "3", "--norm": "L2"},
        "eps: '3' is no budget; write n/255, such as 1/255, or a share of 1",
    ),
    "checks": ({"--checks": "0"}, "'--checks'"),
    "budget beyond pixels": ({"--eps": "300/255"}, "eps: '300/255' is no budget"),
    "budget in the wrong unit": ({"--eps": "4"}, "eps: '4' is no budget"),
    "no budget": ({"--eps": "0"}, "eps: '0' is no budget"),
    "suite": (
        {"--suite": "apgd_ce,strong"},
        "suite: no attack 'strong'; known are standard, quick, pgd_ce",
    ),
    "suite nearly": (
        {"--suite": "apdg_ce"},
        "no attack 'apdg_ce'; did you mean apgd_ce",
    ),
    "norm": ({"--norm": "L1"}, "norm: Input should be 'Linf' or 'L2' (got 'L1')"),
    "template": ({"--template": "a photo"}, "template 'a photo' has no {}"),
    "device": ({"--device": "toaster"}, "no device 'toaster'; known are auto, cpu"),
    "batch": ({"--batch": "0"}, "'--batch'"),
    "limit": ({"--limit": "x"}, "'--limit'"),
    "out": ({"--out": "tree.json/deep"}, "tree.json/deep is a file, or in one"),
    "no images": ({"--images": None}, "Missing option '--images'"),
    "option": ({"--colour": "red"}, "No such option: --colour"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_input_is_one_line_that_says_so(place, run, weights, case):
    changes, words = BAD[case]
    for name, classes in {
        "one": ["dog"],
        "twins": ["big cat", "big_cat"],
        "empty": ["dog"],
    }.items():
        folders(place / name, classes)
    (place / "empty/nothing").mkdir()
    (place / "empty/words").mkdir()
    (place / "empty/words/words.txt").write_text("no image", encoding="utf8")
    (place / "lacks.yaml").write_text(
        "animal: [dog, cat, eagle]\nvehicle: [car]\n", encoding="utf8"
    )
    (place / "extra.yaml").write_text(
        "animal: [dog, cat, eagle]\nvehicle: [car, bus, tram]\n", encoding="utf8"
    )
    chosen = {
        "dog": "dog.n.99",
        "cat": "cat.n.01",
        "eagle": "eagle.n.01",
        "car": "car.n.01",
        "bus": "bus.n.01",
    }
    (place / "wrong.yaml").write_text(json.dumps(chosen), encoding="utf8")
    (place / "tree.txt").write_text("- dog\n", encoding="utf8")
    given = {
        "--model": ARCHITECTURE,
        "--pretrained": str(weights),
        "--images": "zoo",
        "--tree": "tree.json",
    } | changes
    code, out, err = run(
        "audit", *(part for pair in given.items() if pair[1] is not None for part in pair)
    )
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and words in err
    assert not (place / "hierclip-audit").exists()


@pytest.mark.parametrize("bug", [TypeError, ValueError, RuntimeError, OSError, KeyError])
def test_a_bug_keeps_its_traceback(place, monkeypatch, bug):
    def broken(*_) -> None:
        raise bug("not the user's")

    monkeypatch.setattr("sys.argv", ["hierclip", "tree", "--tree", "tree.json"])
    monkeypatch.setattr("hierclip.trees.chosen.class_trees", broken)
    with pytest.raises(bug, match="not the user's") as found:
        main()
    assert found.traceback[-1].name == "broken"


def test_a_full_disk_is_one_line(place, run):
    (place / "full.json").symlink_to("/dev/full")
    code, _, err = run("tree", "--tree", "tree.json", "--out", "full.json")
    assert code == 2 and err == "hierclip: [Errno 28] No space left on device\n"


def test_an_audit_into_a_folder_that_another_one_is_at_work_on_is_refused(place, run, weights):
    given = ("--model", ARCHITECTURE, "--pretrained", str(weights), "--images", "zoo")
    with held(place / "mine"):
        code, out, err = run("audit", *given, "--tree", "tree.json", "--out", "mine")
    assert (code, out) == (2, "") and err.startswith("hierclip: mine: another process is at work")
    assert not (place / "mine").exists()


def test_a_file_that_the_system_refuses_is_one_line(place, run):
    code, _, err = run("tree", "--tree", "tree.json", "--out", "tree.json/t.json")
    assert (
        code == 2
        and err.startswith("hierclip: ")
        and len(err.splitlines()) == 1
        and "tree.json" in err
    )


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--tree", "none.yaml"], TreeError),
        (["--widths", "x"], HierclipError),
        (["--colour"], USAGE),
    ],
)
def test_a_mistake_of_the_users_is_one_line_and_with_debug_a_traceback(
    place, run, monkeypatch, arguments, error
):
    code, _, err = run("tree", *arguments)
    assert code == 2 and err.startswith("hierclip: ") and len(err.splitlines()) == 1
    monkeypatch.setattr("sys.argv", ["hierclip", "--debug", "tree", *arguments])
    with pytest.raises(error):
        main()


def test_debug_changes_nothing_else(place, run):
    assert run("--debug", "tree", "--tree", "tree.json") == run("tree", "--tree", "tree.json")


@pytest.mark.parametrize(
    "kind", [ParamsError, DataError, TreeError, ModelError, TrainingError, RecordError]
)
def test_the_projects_own_errors_have_one_base(kind):
    assert issubclass(kind, HierclipError) and issubclass(kind, ValueError)
    assert issubclass(kind, RuntimeError) == (kind is TrainingError)


def test_the_defaults_that_help_shows_are_those_of_the_function():
    function, command = (inspect.signature(f).parameters for f in (audit, audit_command))
    for name, parameter in command.items():
        default, shown = function[name].default, parameter.default
        assert (str(default) == str(shown)) or name in ("model", "images", "tree"), name
    assert set(function) - set(command) == IN_PYTHON


def test_the_front_door_is_light_until_it_is_used():
    code = "import sys, hierclip; assert 'torch' not in sys.modules; hierclip.audit"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'audits_of'"):
        _ = hierclip.audits_of


@pytest.mark.parametrize("command", [c.callback.__name__ for c in app.registered_commands])  # pyright: ignore
def test_every_command_has_help_with_examples(command):
    shown = CliRunner().invoke(app, [command, "--help"])
    assert (
        shown.exit_code == 0 and "Example" in shown.output and f"hierclip {command}" in shown.output
    )


def test_the_command_alone_shows_what_it_can_do(run):
    code, out, _ = run()
    assert code == 0 and all(word in out for word in ("audit", "tree", "export", "run"))


def test_a_tree_is_printed_level_by_level_kept_and_drawn(place, run):
    code, out, _ = run(
        "tree", "--images", "zoo", "--tree", "tree.json", "--out", "kept/t.json", "--draw", "t.png"
    )
    lines = out.splitlines()
    assert code == 0 and lines[0] in ("animal (2)", "vehicle (2)") and set(lines[:9]) == {
        "animal (2)", "  mammal (1)", "    dog", "    cat", "  bird (1)", "    eagle", "vehicle (2)", "  car", "  bus"
    }  # fmt: skip
    assert lines[10] == "tree tree: levels of 5, 4, 2 nodes, leaves first; (n): level n"
    assert lines[12].startswith('level 1: "a photo of a ')
    assert (
        load_tree(place / "kept/t.json").sizes == (5, 4, 2)
        and (place / "t.png").stat().st_size > 10_000
    )
    assert set(run("tree", "--tree", "kept/t.json")[1].splitlines()[:9]) == set(lines[:9])


def test_nodes_that_no_prompt_tells_apart_fail(place, run):
    outline = {
        "animal": {"big": ["dog"], "small": ["cat"]},
        "vehicle": {"big": ["bus"], "small": ["car"]},
    }
    (place / "alike.json").write_text(json.dumps(outline), encoding="utf8")
    code, out, _ = run("tree", "--tree", "alike.json")
    said = out.splitlines()[-1]
    assert code == 1 and said.startswith("FAILED: no prompt tells apart ")
    assert "big (level 1)" in said and "small (level 1)" in said


@pytest.fixture
def full_wordnet(tmp_path, monkeypatch):
    """WordNet as NLTK installs it, if a small one: the excerpt without its words for synsets."""
    folder = tmp_path / "nltk/corpora/wordnet"
    shutil.copytree(EXCERPT, folder)
    (folder / NAMES).unlink()
    monkeypatch.setattr("nltk.data.path", [str(tmp_path / "nltk")])


def test_names_of_one_sense_need_no_more_and_others_are_listed_with_their_senses(
    place, run, full_wordnet
):
    code, _, err = run("tree", "--classes", "tennis_ball,soccer_ball,crane")
    head, *senses = err.splitlines()
    assert (
        code == 2
        and "1 of 3 class names need a synset" in head
        and "by --synsets FILE, of lines `dog: dog.n.01`" in head
    )
    assert (
        len(senses) == 1
        and senses[0].startswith("  crane: crane.n.")
        and senses[0].count(".n.") > 1
    )
    (place / "which.yaml").write_text("crane: crane.n.05\n", encoding="utf8")
    (place / "which.csv").write_text(
        "class,synset,under\ncrane,,wading_bird.n.01\n", encoding="utf8"
    )
    for file in ("which.yaml", "which.csv"):
        code, out, _ = run("tree", "--classes", "tennis_ball,soccer_ball,crane", "--synsets", file)
        assert code == 0 and "ball (1)" in out, out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no classes; give --classes, --images or --tree FILE"),
        (["--classes", "a,b", "--images", "zoo"], "both --classes and --images"),
        (["--classes", "dog"], "--classes dog: 1 names; two or more are needed, each once"),
        (["--classes", "dog,cat,dog"], "3 names; two or more are needed, each once"),
        (["--tree", "tree.json", "--out", "t.yaml"], "--out t.yaml: its name has to end in .json"),
        (
            ["--tree", "tree.json", "--draw", "t.xyz"],
            "--draw t.xyz: its name has to end in .png or .pdf or .svg",
        ),
        (
            ["--classes", "dog,zebu,seal"],
            "no synset chosen for zebu, seal; to look names up takes a full WordNet 3.0: nltk",
        ),
    ],
)
def test_a_tree_that_cannot_be_had_is_one_line(place, run, arguments, words):
    code, _, err = run("tree", *arguments)
    assert code == 2 and words in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("head", HEADS)
def test_an_exported_model_is_loaded_by_the_lines_that_are_printed(place, run, backbone, head):
    models.save_model(Model(backbone, head, "mine"), place / "data/models/mine-0")
    (place / "params.yaml").write_text("", encoding="utf8")
    code, out, _ = run("export", "mine-0", "clip")
    lines, words = out.split("\n\n")
    (place / "lines.py").write_text(lines, encoding="utf8")
    with warnings.catch_warnings(action="ignore"):  # what open_clip warns of
        made = runpy.run_path(str(place / "lines.py"))
    expected, found = backbone.clip.state_dict(), made["model"].state_dict()
    assert code == 0 and all(torch.equal(found[key], expected[key]) for key in expected)
    assert words.strip() == head_words(head)
    card = (place / "clip/README.md").read_text(encoding="utf8")
    assert "local-dir:FOLDER" in card and head_words(head) in card and "Not measured yet" in card
    assert load_file(place / "clip/open_clip_model.safetensors").keys() == expected.keys()
    code, _, err = run("export", "mine-0", "clip")
    assert code == 2 and "clip is a file, or not empty; name a folder that is new" in err
    code, _, err = run("export", "none-0", "new")
    assert code == 2 and err.endswith(
        "known are mine-0; a project's `hierclip run 40_finetune` makes one\n"
    )


def test_the_card_of_a_model_says_what_its_records_and_parameters_say(
    place, run, backbone, monkeypatch
):
    project = place / "project"
    for name in ("tecoa-0", "fare-9"):  # the other has no records
        models.save_model(Model(backbone, HEADS[0], "tecoa"), project / "data/models" / name)
    shutil.copytree(ROOT / "data/results", project / "data/results")
    shutil.copy(ROOT / "params.yaml", project)
    monkeypatch.chdir(project)
    code, out, _ = run("export", "tecoa-0", "clip")
    card = (project / "clip/README.md").read_text(encoding="utf8")
    files = sorted((project / RECORDS / "tecoa-0").glob("*.json"))
    records = [parse_record(file.read_text(encoding="utf8"), str(file)) for file in files]
    rows = [line.split(" | ") for line in card.splitlines() if line.startswith("| ")]
    assert code == 0 and {row[0][2:] for row in rows[1:]} == {each.subset for each in records}
    seen = next(each for each in records if each.subset == "seen")
    clean = share(seen.clean["direct"][0], seen.intervals["direct"].clean[0])
    assert ["| seen", str(seen.images), clean] in [row[:3] for row in rows]
    assert audit_words(records, {"tecoa": "tecoa"}) in card and "2/255" in card
    assert str(project) in out and str(project) not in card  # a card is for others to read
    settings = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf8"))
    assert settings["method"] == params["method"]["tecoa"] and settings["data"] == params["data"]
    copied = project / "clip/records/seen.json"
    assert copied.read_bytes() == (ROOT / RECORDS / "tecoa-0/seen.json").read_bytes()
    assert run("export", "fare-9", "other")[0] == 0
    card = (project / "other/README.md").read_text(encoding="utf8")
    assert "Not measured yet" in card and "| seen |" not in card
    models.save_model(Model(backbone, HEADS[0], "lone"), place / "lone-0")
    monkeypatch.chdir(place)
    assert run("export", "lone-0", "copy")[0] == 0
    assert "```yaml\nunknown\n```" in (place / "copy/README.md").read_text(encoding="utf8")


@pytest.mark.parametrize("head", HEADS)
def test_what_is_said_of_a_head_is_true(backbone, tree, head):
    """Where open_clip is said to predict the same, the text of the largest cosine is the nearest of
    every level.
    """
    images = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    own, plain = (
        models.Model(backbone, h, "").classifier(tree, "{}")(images) for h in (head, HEADS[0])
    )
    same = all(torch.equal(a.argmax(1), b.argmax(1)) for a, b in zip(own, plain, strict=True))
    assert same or "may predict otherwise" in head_words(head)
    assert ("cosine, as open_clip does" in head_words(head)) == isinstance(head, type(HEADS[0]))


@pytest.mark.parametrize(("eps", "norm"), [("0.5", "Linf"), ("1", "L2"), ("255/255", "Linf")])
def test_a_budget_is_a_share_of_the_range_or_levels_of_255(eps, norm):
    defaults = {name: each.default for name, each in inspect.signature(audit).parameters.items()}
    given = defaults | {"eps": eps, "norm": norm, "suite": "quick"}
    assert attack_params(given).eps == (0.5 if eps == "0.5" else 1)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("..", "unnamed"),
        ("../../etc/passwd", "etc-passwd"),
        ("<script>alert|1</script>", "script-alert-1-script"),
        ("größe 3.2", "größe-3.2"),
        (200 * "long", 20 * "long"),
    ],
)
def test_folders_of_audits_have_legible_names_in_the_folder_that_is_asked_for(name, folder):
    assert folder_names([((name, None), Path("/"))]) == [folder]
