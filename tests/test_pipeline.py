"""dvc.yaml declares what its stages use: notebooks, modules, parameter sections."""

import ast
import re
import tokenize
from functools import cache
from pathlib import Path

import nbformat
import pytest
import yaml

from hierclip.config import Params, find_root

ROOT = find_root()
STATEMENTS = 6219  # of the library
READERS = {  # what reads sections of the parameters for its caller
    "params.labels": {"methods", "method"},
    "params.subsets": {"data"},
    "params.tasks": {"data", "zero_shot"},
    "params.variant": {"method"},
    "trees_of": {"trees"},
}
# Names of our own that the field's words replaced: none of them comes back.
REPLACED = set(
    """
    Siege besiege siege own standing stands fallen fell won NEAR enough climb climbed rises learnt
    think look Draws Aim aim aims AIMS stay harm Moved moved way needs held_out tuned PARTS Pictures
    pictures picture places_of places spread exp0 group_midpoints on_rim at_rim clamped TINY RIM
    work_key work_hash hard anchor upper_weight left_out leaf_captions gathered merged agreed figures
    contradictions Store Shelf Lens Look look_again Crowd bent strike says said found seen shown made
    wanted some few mine broken poincare params_of
    """.split()
)
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf8"))["stages"]


@pytest.fixture(params=[name for name in STAGES if name != "photographs"])
def stage(request):
    return STAGES[request.param]


def notebook_of(stage) -> Path:
    return next(ROOT / dep for dep in stage["deps"] if dep.startswith("notebooks/"))


def source_of(stage) -> str:
    return code_of(notebook_of(stage))


def code_of(notebook: Path) -> str:
    cells = nbformat.read(notebook, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def file_of(module: str) -> Path | None:
    path = ROOT / "lib" / module.replace(".", "/")
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.exists()), None)


@cache
def imports(source: str) -> frozenset[Path]:
    """The files of hierclip that a source imports, packages' own __init__ among them."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    parts = {".".join(name.split(".")[:k]) for name in names for k in range(1, name.count(".") + 2)}
    return frozenset(
        file for part in parts if part.split(".")[0] == "hierclip" and (file := file_of(part))
    )


def closure(source: str) -> set[Path]:
    done, todo = set(), set(imports(source))
    while todo:
        file = todo.pop()
        done.add(file)
        todo |= imports(file.read_text(encoding="utf8")) - done
    return done - {ROOT / "lib/hierclip/__init__.py"}


def test_stage_declares_every_module_that_it_uses_and_no_other(stage):
    declared = [ROOT / dep for dep in stage["deps"] if dep.startswith("lib/")]
    used = closure(source_of(stage))
    undeclared = {
        file for file in used if not any(file == d or d in file.parents for d in declared)
    }
    assert not undeclared
    idle = {d for d in declared if not any(file == d or d in file.parents for file in used)}
    assert not idle


def test_stage_declares_every_parameter_section_that_it_uses_and_no_other(stage):
    source = source_of(stage)
    used = set(re.findall(r"\bparams\.(\w+)", source))
    for reader, sections in READERS.items():
        used |= sections if re.search(rf"\b{reader}\b", source) else set()
    used -= {"machine"}  # where work is done; what comes out does not depend on it
    assert used & set(Params.model_fields) == {entry.split(".")[0] for entry in stage["params"]}


def test_every_dependency_is_there_or_made(stage):
    made = [
        out if isinstance(out, str) else next(iter(out))
        for s in STAGES.values()
        for out in s["outs"]
    ]
    for dep in stage["deps"]:
        if "${" not in dep:
            assert (ROOT / dep).exists() or any(
                out == dep or out.startswith(dep + "/") for out in made
            ), dep


def test_imports_go_one_way():
    rooms = (
        "config progress distributed hyperbolic trees data models losses attacks training "
        "evaluation margins"
    )
    order = ["errors", *rooms.split(), "studies", "plots", "explorer", "audits", "cli", "__main__"]
    for file in (ROOT / "lib/hierclip").rglob("*.py"):
        room = file.relative_to(ROOT / "lib/hierclip").parts[0].removesuffix(".py")
        if room != "__init__":
            for other in imports(file.read_text(encoding="utf8")):
                target = other.relative_to(ROOT / "lib/hierclip").parts[0].removesuffix(".py")
                assert target == "__init__" or order.index(target) <= order.index(room), (
                    f"{file} imports {other}"
                )


def test_the_library_has_no_more_statements_than_its_cap():
    """The cap only falls: what is added takes the place of something, or waits."""
    trees = [
        ast.parse(file.read_text(encoding="utf8")) for file in (ROOT / "lib/hierclip").rglob("*.py")
    ]
    assert (
        sum(isinstance(node, ast.stmt) for tree in trees for node in ast.walk(tree)) <= STATEMENTS
    )


def calls(source: str) -> dict[str, list[set[str]]]:
    """Return by function, as it is written, the keywords of each call, as they are written."""
    found: dict[str, list[set[str]]] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            keywords = {ast.unparse(keyword) for keyword in node.keywords}
            found.setdefault(ast.unparse(node.func), []).append(keywords)
            for argument in node.args:  # of partial(torch.load, ...)
                found.setdefault(ast.unparse(argument), []).append(keywords)
    return found


def test_no_pickle_of_a_users_is_run():
    """joblib reads its own cache alone, which a study of the project wrote."""
    files = [*(ROOT / "lib").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    sources = [file.read_text(encoding="utf8") for file in files]
    sources += [code_of(path) for path in (ROOT / "notebooks").glob("*.ipynb")]
    loads = 0
    for source in sources:
        by_function = calls(source)
        for name in ("torch.load", "fabric.load"):
            loads += len(by_function.get(name, []))
            assert all("weights_only=True" in keywords for keywords in by_function.get(name, []))
        for name in by_function:
            assert not re.search(
                r"(pickle|dill|joblib|pd)\.(load|loads|read_pickle|Unpickler)$", name
            )
            assert not any("allow_pickle=True" in keywords for keywords in by_function[name])
    assert loads >= 3


def test_the_names_that_were_replaced_do_not_come_back():
    for file in (ROOT / "lib/hierclip").rglob("*.py"):
        with tokenize.open(file) as source:
            names = {
                token.string
                for token in tokenize.generate_tokens(source.readline)
                if token.type == tokenize.NAME
            }
        assert not names & REPLACED, file


def leaves_the_encoding_to_the_machine(call: ast.Call) -> bool:
    """Return whether a call reads or writes text in whatever encoding the locale has."""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if {"encoding", None} & set(given):
        return False
    if name in ("read_text", "write_text"):
        return len(call.args) <= (name == "write_text")
    if name != "open":  # subprocess: text=True
        return "text" in given and name in ("run", "Popen", "check_output")
    modes = call.args[isinstance(function, ast.Name) :] or [given.get("mode", ast.Constant("r"))]
    return isinstance(modes[0], ast.Constant) and set(str(modes[0].value)) <= set("rwax+t")


@pytest.mark.parametrize("folder", ["lib", "notebooks", "benchmarks", "tests"])
def test_text_is_read_and_written_in_an_encoding_that_is_named(folder):
    for file in [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).glob("*.ipynb")]:
        source = file.read_text(encoding="utf8")
        if file.suffix == ".ipynb":
            cells = nbformat.reads(source, as_version=4).cells
            source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call):
                assert not leaves_the_encoding_to_the_machine(node), (file, ast.unparse(node))


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-peers.lock"])
def test_lock_file_pins_plainly(lock):
    for line in (ROOT / lock).read_text(encoding="utf8").splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[^\s;]+( ; .+)?", line), line
