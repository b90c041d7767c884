"""The commands and the code of README and docs: run where that takes seconds, else checked."""

import re
import shlex
import shutil
import subprocess
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from dvc.cli import parse_args
from typer import BadParameter
from typer.main import get_command

from hierclip import models
from hierclip.cli import app, main
from hierclip.progress import HEADLESS
from tests.conftest import ROOT
from tests.miniatures import folders, lines

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "data/source/maps/README.md", *DOCS]
CLASSES = ["lion", "tiger", "eagle", "car", "bus"]
(MissingParameter,) = BadParameter.__subclasses__()
QUICK = ["--steps", "1", "--checks", "1", "--queries", "2", "--limit", "1"]


def blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of code of a page in a language; "" for commands."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf8"), re.M | re.S)


def commands(page: Path) -> list[str]:
    """Return the commands of a page, from its blocks and from its sentences, without comments."""
    text = page.read_text(encoding="utf8")
    joined = "\n".join(blocks(page, "")).replace("\\\n", " ")
    shown = [line.removeprefix("$ ").partition("  #")[0].strip() for line in joined.splitlines()]
    inline = re.findall(
        r"`([^`\n]+(?:\n[^`\n]+)?)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    )
    programs = ("hierclip ", "make ", "dvc ", "python -m ")
    known = [" ".join(each.split()) for each in [*shown, *inline]]
    return [each.split(" | ")[0] for each in known if each.startswith(programs)]


EVERY = [(page.name, command) for page in PAGES for command in commands(page)]


def test_there_are_six_pages_and_each_has_commands_or_code():
    assert [page.name for page in DOCS] == [
        "attacks.md", "method.md", "own.md", "referee.md", "reproduce.md", "results.md"
    ]  # fmt: skip
    assert len(EVERY) > 40


@pytest.mark.parametrize(("page", "command"), EVERY)
def test_a_command_is_one_that_there_is(page, command):
    program, *arguments = shlex.split(command)
    if program == "hierclip":
        if len(arguments) > 1 and "COMMAND" not in arguments:
            group = get_command(app)
            group.make_context("hierclip", list(arguments), resilient_parsing=False).close()
            name, *rest = arguments
            if rest != ["--help"]:
                with suppress(MissingParameter):  # a sentence names some of the options alone
                    group.commands[name].make_context(name, rest)  # pyright: ignore
        else:
            assert arguments[0] in get_command(app).commands  # pyright: ignore
    elif program == "make":
        targets = [each for each in arguments if "=" not in each and each != "NAME"]
        makefile = (ROOT / "Makefile").read_text(encoding="utf8")
        assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
        for preset in (each.partition("=")[2] for each in arguments if each.startswith("PRESET=")):
            assert preset == "NAME" or (ROOT / "presets" / preset / "params.yaml").exists()
    elif program == "dvc":
        assert parse_args(arguments)
    else:
        assert find_spec(arguments[1])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_leads_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target
    for file, anchor in re.findall(r"\]\(([^)#\s]*)#([\w-]+)\)", text):
        other = ((page.parent / file) if file else page).read_text(encoding="utf8")
        titles = re.findall(r"^#+ (.+)$", other, re.M)
        assert anchor in [re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles]


@pytest.fixture(scope="module")
def desk(explored, tmp_path_factory):
    """A project with trained models, and a model, images and a tree of somebody's own beside it."""
    folder = tmp_path_factory.mktemp("desk") / "project"
    shutil.copytree(explored, folder, symlinks=True)
    (outline,) = blocks(ROOT / "docs/own.md", "yaml")[:1]
    (folder / "zoo.yaml").write_text(outline, encoding="utf8")
    folders(folder / "my-images", CLASSES)
    claims = ("model,images,claimed", "my-clip,my-images,51.1")
    lines(folder / "papers.csv", *claims)
    return folder


@pytest.fixture
def there(desk, backbone, monkeypatch):
    for name in ("my-clip", "other-clip"):
        if not (desk / name).exists():
            models.save(backbone, desk / name)
    monkeypatch.chdir(desk)
    monkeypatch.delenv("HIERCLIP_ROOT", raising=False)
    monkeypatch.setenv(HEADLESS, "yes")
    return desk


@pytest.mark.parametrize("page", ["own.md", "referee.md", "maps"])
def test_the_code_of_a_page_runs(page, there):
    path = ROOT / ("data/source/maps/README.md" if page == "maps" else f"docs/{page}")
    names: dict = {}
    for block in blocks(path, "python"):
        exec(compile(block, page, "exec"), names)
    assert names


def test_the_code_about_attacks_runs_after_that_which_loads_a_model(there):
    names: dict = {}
    own = [block for block in blocks(ROOT / "docs/own.md", "python") if "classify" in block]
    for block in [*own, *blocks(ROOT / "docs/attacks.md", "python")]:
        exec(compile(block, "attacks.md", "exec"), names)
    assert names["x_adv"].shape == (8, 3, 32, 32) and 0 <= names["robust"] <= 1


def test_the_attack_on_anything_is_twenty_lines():
    first, *_ = blocks(ROOT / "docs/attacks.md", "python")
    assert len(first.strip().splitlines()) <= 20


def run(monkeypatch, command: list[str]) -> int:
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.mark.parametrize("page", ["own.md", "referee.md"])
def test_the_commands_on_somebodys_own_model_run(page, there, monkeypatch):
    ours = [
        shlex.split(command)
        for command in commands(ROOT / "docs" / page)
        if command.startswith("hierclip")
        and (set(shlex.split(command)) & {"my-clip", "audits", "zoo.yaml"})
        and "ARCHITECTURE" not in command
        and "hier-0" not in command
    ]
    assert len(ours) >= 2
    for command in ours:
        quick = QUICK if command[1] == "audit" else []
        # 1: a check of the attack on so few images fails.
        assert run(monkeypatch, [*command, *quick]) in (0, 1), command


def test_docs_name_the_checks_that_there_are():
    from hierclip.evaluation.masking import ABOVE, CHECKS, FLAGS

    text = (ROOT / "docs/attacks.md").read_text(encoding="utf8")
    told = re.findall(r"^- `([\w -]+)`:(.*(?:\n  .*)*)", text, re.M)
    names = [name for name in CHECKS if not name.startswith("above: ")]
    assert {name for name, _ in told[: len(FLAGS)]} == set(FLAGS)
    assert sorted(name for name, _ in told) == sorted(names) and len(ABOVE) == 6
    for name, words in told[len(FLAGS) :]:
        (limit,) = re.findall(r"Limit\s+([\d.]*\d)", words)
        assert float(limit) == CHECKS[name][0], name


def test_the_container_and_the_workflow_call_what_there_is():
    assert "make .venv/ready" in (ROOT / "Dockerfile").read_text(encoding="utf8")
    assert "$(VENV)/ready" in (ROOT / "Makefile").read_text(encoding="utf8")
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf8")
    assert "bash .ci/run" in workflow and (ROOT / ".ci/run").exists()
    done = subprocess.run(["bash", "-n", ROOT / ".ci/run"], capture_output=True)
    assert not done.returncode
