import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hierclip.params import ParamsError, find_root, format_budget, load_params, parse_budget


@pytest.fixture
def content(root) -> dict:
    return yaml.safe_load((root / "params.yaml").read_text())


def write(folder, content):
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def message(path) -> str:
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    return str(caught.value)


def test_the_projects_parameters_load_with_budgets_as_numbers(params, content):
    for section, written in (
        (params.attack, content["attack"]),
        (params.finetune.attack, content["finetune"]["attack"]),
    ):
        assert section.eps == float(written["eps"].removesuffix("/255")) / 255
        assert [format_budget(section.eps), format_budget(section.step)] == [written["eps"], written["step"]]


def test_parameters_are_frozen(params):
    with pytest.raises(ValueError, match="frozen"):
        params.attack.steps = 1


@given(st.integers(0, 255 * 4))
def test_a_budget_is_written_back_as_it_was(quarters):
    text = f"{quarters / 4:g}/255"
    assert format_budget(parse_budget(text)) == text


@pytest.mark.parametrize(
    "bad", ["4", "0.1", 0.1, 4, "300/255", "-1/255", "x/255", "/255", "4/256", "nan/255", "4/255/255", None]
)
def test_what_is_no_budget_is_refused(bad):
    with pytest.raises(ValueError, match="is no budget; write n/255"):
        parse_budget(bad)


def test_a_bad_budget_is_one_line_naming_file_and_key(tmp_path, content):
    content["attack"]["eps"] = 0.1
    path = write(tmp_path, content)
    assert message(path) == (
        f"{path}: attack.eps: 0.1 is no budget; write n/255 with n from 0 to 255, such as 4/255 (got 0.1)"
    )


def test_an_unknown_key_is_one_line_naming_file_and_key(tmp_path, content):
    content["finetune"]["tecoa"]["temperature"] = 1
    path = write(tmp_path, content)
    assert message(path) == f"{path}: finetune.tecoa.temperature is no known key"


@pytest.mark.parametrize(
    ("section", "key", "bad"),
    [
        ("pretrain", "steps", 0),
        ("pretrain", "warmup", 1.0),
        ("pretrain", "leaf_captions", 0),
        ("trees", "widths", []),
        ("trees", "name", "oak"),
        ("attack", "losses", ["hinge"]),
        ("model", "precision", "8"),
    ],
)
def test_a_bad_value_is_one_line_naming_file_and_key(tmp_path, content, section, key, bad):
    content[section][key] = bad
    path = write(tmp_path, content)
    said = message(path)
    assert said.startswith(f"{path}: {section}.{key}") and "(got " in said and "\n" not in said


def test_a_missing_key_is_named(tmp_path, content):
    del content["data"]["size"]
    assert "data.size: Field required" in message(write(tmp_path, content))


def test_every_bad_key_has_its_line(tmp_path, content):
    content["data"]["size"], content["plots"]["dpi"] = -1, "many"
    lines = message(write(tmp_path, content)).splitlines()
    assert ["data.size" in lines[0], "plots.dpi" in lines[1], len(lines)] == [True, True, 2]


@pytest.mark.parametrize("text", ["", "a: [", "- 1"])
def test_a_file_that_holds_no_parameters_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    assert message(path).startswith(f"{path}: ") and "\n" not in message(path)


def test_the_root_is_the_nearest_folder_above_with_parameters(tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "params.yaml").touch()
    assert find_root(inner) == find_root(tmp_path) == tmp_path.resolve()
    (tmp_path / "a" / "params.yaml").touch()
    assert find_root(inner) == tmp_path.resolve() / "a"


def test_no_root_is_said_so(tmp_path):
    with pytest.raises(ParamsError, match=r"^no params.yaml in .* run from inside the project$"):
        find_root(tmp_path)
