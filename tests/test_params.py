import pytest
import yaml
from hypothesis import given, strategies as st

from hierclip.attacks import budget_of
from hierclip.config import (
    STYLES,
    ParamsError,
    find_root,
    format_budget,
    load_params,
    parse_budget,
)
from hierclip.evaluation.records import threat_model


@pytest.fixture
def content(root) -> dict:
    return yaml.safe_load((root / "params.yaml").read_text(encoding="utf8"))


def write(folder, content):
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf8")
    return path


def message(path) -> str:
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    return str(caught.value)


def test_the_projects_parameters_load_with_budgets_as_numbers(params, content):
    steps = [
        (params.method[name].attack.step, entries["attack"]["step"])
        for name, entries in content["method"].items()
        if "attack" in entries
    ]
    budgets = [
        (params.attack.eps, content["attack"]["eps"]),
        (params.finetune.eps, content["finetune"]["eps"]),
    ]
    for number, written in [*budgets, (params.attack.step, content["attack"]["step"]), *steps]:
        assert number == float(written.removesuffix("/255")) / 255
        assert format_budget(number) == written


def test_a_model_is_called_once_unless_the_parameters_say_otherwise(params):
    often = params.attack.model_copy(update={"eot": 20})
    for attack, calls in ((params.attack, 1), (often, 20)):
        assert budget_of(attack).eot == threat_model(attack, "a {}", 32).eot == calls


def test_parameters_are_frozen(params):
    with pytest.raises(ValueError, match="frozen"):
        params.attack.steps = 1


@given(st.integers(0, 255 * 4))
def test_a_budget_is_written_back_as_it_was(quarters):
    text = f"{quarters / 4:g}/255"
    assert format_budget(parse_budget(text)) == text


@given(st.floats(0, 1))
def test_every_budget_comes_back_as_it_was(eps):
    assert parse_budget(format_budget(eps)) == eps


@given(st.floats(1e-9, 1))
def test_a_step_is_the_one_asked_for_after_its_way_through_json(params, step):
    made = params.attack.model_copy(update={"step": step})
    assert type(made).model_validate_json(made.model_dump_json()).step == step


@pytest.mark.parametrize(
    "bad",
    [
        "4",
        "0.1",
        0.1,
        4,
        "300/255",
        "-1/255",
        "x/255",
        "/255",
        "4/256",
        "nan/255",
        "4/255/255",
        None,
    ],
)
def test_what_is_no_budget_is_refused(bad):
    with pytest.raises(ValueError, match="is no budget; write n/255"):
        parse_budget(bad)


def test_a_bad_budget_is_one_line_naming_file_and_key(tmp_path, content):
    content["attack"]["eps"] = 0.1
    path = write(tmp_path, content)
    assert message(path) == (
        f"{path}: attack.eps: 0.1 is no budget; "
        "write n/255 with n from 0 to 255, such as 4/255 (got 0.1)"
    )


def test_an_unknown_key_is_one_line_naming_file_and_key(tmp_path, content):
    content["finetune"]["temperature"] = 1
    path = write(tmp_path, content)
    known = "batch, accumulate, weight_decay, warmup, checkpoint_every, steps, eps"
    assert message(path) == f"{path}: finetune: no key 'temperature'; known are {known}"


@pytest.mark.parametrize(
    ("place", "key", "meant"),
    [
        ((), "atack", "no key 'atack'; did you mean attack"),
        (("attack",), "epsilon", "attack: no key 'epsilon'; did you mean eps"),
        (("data",), "stiles", "data: no key 'stiles'; did you mean styles"),
        (("method", "hier"), "curvatur", "method.hier: no key 'curvatur'; did you mean curvature?"),
        (("pretrain",), "Step", "pretrain: no key 'Step'; did you mean steps?"),
        (
            ("zero_shot", "noto-v1"),
            "widht",
            "zero_shot.noto-v1: no key 'widht'; did you mean widths",
        ),
    ],
)
def test_a_key_nearly_right_is_met_with_the_one_that_is_meant(tmp_path, content, place, key, meant):
    section = content
    for part in place:
        section = section[part]
    section[key] = 1
    assert message(write(tmp_path, content)).startswith(f"{tmp_path / 'params.yaml'}: {meant}")


def test_a_method_nearly_right_is_met_with_the_one_that_is_meant(tmp_path, content):
    content["methods"] = ["clip", "teoca"]
    said = "methods: no method 'teoca'; did you mean tecoa?"
    assert said in message(write(tmp_path, content))


@pytest.mark.parametrize(
    ("method", "key", "value", "said"),
    [
        ("tecoa", "gamma", 0.4, "method.tecoa: no key 'gamma'; known are "),  # AGFT's
        ("hier", "logit_scale", 1.0, "method.hier: no key 'logit_scale'"),
        (
            "tecoa",
            "loss",
            "trades",
            "method.tecoa.loss: no loss 'trades'; known are none, tecoa, fare",
        ),
        ("hier", "negatives", ["beside"], "'beside'"),
        ("agft", "hard_label_weight", 2, "(got 2)"),
        ("fare", "attack", {"steps": 1, "step": "0/255"}, "attack.step"),
    ],
)
def test_a_methods_settings_are_those_of_its_loss(tmp_path, content, method, key, value, said):
    content["method"][method][key] = value
    path = write(tmp_path, content)
    assert message(path).startswith(f"{path}: method.{method}") and said in message(path)
    assert "\n" not in message(path)


@pytest.mark.parametrize(
    ("section", "key", "bad"),
    [
        ("pretrain", "steps", 0),
        ("pretrain", "warmup", 1.0),
        ("pretrain", "leaf_caption_prob", 0),
        ("trees", "widths", []),
        ("trees", "names", ["no/oak"]),
        ("trees", "names", []),
        ("sweep", "workers", 0),
        ("ablation", "seeds", []),
        ("attack", "suite", ["hinge"]),
        ("attack", "suite", []),
        ("attack", "norm", "L1"),
        ("attack", "queries", 0),
        ("sweep", "holdout_every", 1),
        ("model", "precision", "8"),
    ],
)
def test_a_bad_value_is_one_line_naming_file_and_key(tmp_path, content, section, key, bad):
    content[section][key] = bad
    path = write(tmp_path, content)
    said = message(path)
    assert said.startswith(f"{path}: {section}.{key}") and "(got " in said and "\n" not in said


@pytest.mark.parametrize(
    "key", ["data", "data.size", "data.name", "method.tecoa.loss", "method.tecoa.attack"]
)
def test_a_missing_key_is_named_without_all_that_stands_around_it(tmp_path, content, key):
    *sections, last = key.split(".")
    section = content
    for name in sections:
        section = section[name]
    del section[last]
    path = write(tmp_path, content)
    assert message(path) == f"{path}: {key}: Field required"


@pytest.mark.parametrize("data", [None, 3, [], {"name": ""}, {"name": None}])
def test_data_that_is_no_section_or_has_no_name_is_refused_at_its_key(tmp_path, content, data):
    path = write(tmp_path, content | {"data": data})
    assert message(path).startswith(f"{path}: data") and "loss" not in message(path)


def test_every_bad_key_has_its_line(tmp_path, content):
    content["data"]["size"], content["plots"]["dpi"] = -1, "many"
    lines = message(write(tmp_path, content)).splitlines()
    assert ["data.size" in lines[0], "plots.dpi" in lines[1], len(lines)] == [True, True, 2]


@pytest.mark.parametrize("text", ["", "a: [", "- 1"])
def test_a_file_that_holds_no_parameters_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf8")
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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ["clip", "trades"]}, "methods: no method 'trades'; known are clip, tecoa"),
        ({"methods": ["hier", "hier"]}, "methods must name at least one, and each once"),
        (
            {"margin": {"method": "pmg_aft", "seed": 0}},
            "margin.method and margin.seed must be among",
        ),
        ({"margin": {"method": "hier", "seed": 9}}, "margin.method and margin.seed must be among"),
        (
            {"trees": {"names": ["wordnet"], "widths": [4]}},
            "method.forest.trees: emoji, look, place, use is not among trees.names",
        ),
    ],
)
def test_sections_that_do_not_fit_together_are_refused_in_one_line(
    tmp_path, content, changes, said
):
    path = write(tmp_path, content | changes)
    assert message(path).startswith(f"{path}: {said}") and "\n" not in message(path)


def test_a_project_needs_no_method_of_the_ball(tmp_path, content):
    content |= {"methods": ["clip", "tecoa"], "margin": {"method": "tecoa", "seed": 0}}
    assert load_params(write(tmp_path, content)).margin.method == "tecoa"


@pytest.mark.parametrize(
    ("section", "entries", "key"),
    [
        ("sweep", {"grid": {}}, "grid"),
        ("sweep", {"grid": {"tecoa": {}}}, "grid.tecoa"),
        ("ablation", {"tables": {}}, "tables"),
        ("ablation", {"tables": {"one": {}}}, "tables.one"),
    ],
)
def test_an_empty_study_is_refused_in_one_line(tmp_path, content, section, entries, key):
    content[section] |= entries
    path = write(tmp_path, content)
    refused = "Dictionary should have at least 1 item after validation, not 0"
    assert message(path) == f"{path}: {section}.{key}: {refused}"


def test_a_sweep_over_an_unknown_method_is_refused_beside_the_known(tmp_path, content):
    content["sweep"]["grid"]["trades"] = {"lr": [1.0]}
    path = write(tmp_path, content)
    assert message(path).startswith(
        f"{path}: sweep.grid.trades: no method 'trades'; known are clip, "
    )


def test_a_sweep_over_an_unknown_key_is_one_line_naming_it(tmp_path, content):
    content["sweep"]["grid"]["tecoa"] = {"tau": [1.0]}
    path = write(tmp_path, content)
    assert message(path).startswith(f"{path}: sweep.grid.tecoa: no key 'tau'; known are label, ")


def test_a_sweep_over_no_values_is_refused(tmp_path, content):
    content["sweep"]["grid"]["tecoa"] = {"lr": []}
    path = write(tmp_path, content)
    assert message(path).startswith(f"{path}: sweep.grid.tecoa.lr: ") and "\n" not in message(path)


def test_every_value_of_a_sweep_is_checked(tmp_path, content):
    content["sweep"]["grid"]["agft"] = {"hard_label_weight": [0.5, 2.0]}
    path = write(tmp_path, content)
    assert message(path).startswith(
        f"{path}: sweep.grid.agft: hard_label_weight: "
    ) and "(got 2.0)" in message(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "trades"}, "no method 'trades'; known are clip, tecoa"),
        ({"vic": 0}, "no method None; known are clip, tecoa"),
        ({"method": "tecoa", "vic": 0}, "no key 'vic'; known are label, "),
        ({"method": "hier", "perturbation": "twice"}, "perturbation: "),
        ({"method": "hier", "loss": "tecoa"}, "loss: "),
    ],
)
def test_a_row_of_an_ablation_that_is_no_variant_is_one_line_naming_table_and_row(
    tmp_path, content, changes, said
):
    content["ablation"]["tables"]["trees"]["6"] = changes
    path = write(tmp_path, content)
    assert message(path).startswith(
        f"{path}: ablation.tables.trees.6: {said}"
    ) and "\n" not in message(path)


@pytest.mark.parametrize("times", [0, -1, "six", None])
def test_a_row_of_an_ablation_costs_a_number_of_times_above_nothing(tmp_path, content, times):
    content["ablation"]["tables"]["trees"]["6"] = {"method": "hier", "steps_multiplier": times}
    path = write(tmp_path, content)
    assert (
        message(path)
        == f"{path}: ablation.tables.trees.6.steps_multiplier is {times!r}; it must be a number above 0"
    )


def test_a_row_of_an_ablation_may_use_only_trees_that_there_are(tmp_path, content):
    content["ablation"]["tables"]["trees"]["6"] = {"method": "hier", "trees": ["wordnet", "oak"]}
    path = write(tmp_path, content)
    assert message(path).startswith(f"{path}: ablation.tables.trees.6") and "oak" in message(path)


def test_a_variant_is_its_method_with_other_entries_in_place_of_its_own(params):
    hier = params.method["hier"]
    assert params.variant("here", {"method": "hier"}) == hier
    changed = params.variant(
        "here", {"method": "hier", "vic": 0, "attack": {"steps": 1, "step": "2/255"}}
    )
    assert (changed.vic, changed.attack.steps, changed.attack.step) == (0, 1, 2 / 255)
    assert changed.model_copy(update={"vic": hier.vic, "attack": hier.attack}) == hier


def test_labels_are_those_of_the_methods_in_their_order(params, content):
    assert list(params.labels.items()) == [
        (name, content["method"][name]["label"]) for name in content["methods"]
    ]


def test_a_hierarchical_method_trains_on_its_trees_and_a_flat_one_sees_the_leaves_of_the_first(
    params,
):
    assert params.trees_of(params.method["forest"]) == params.method["forest"].trees
    assert (
        params.trees_of(params.method["tecoa"])
        == params.trees.names[:1]
        == params.trees_of(params.method["clip"])
    )


def test_pretraining_sees_every_drawing_and_of_photographs_the_same_ones(params, root):
    seen = params.data.pretraining
    assert (seen.styles, seen.subset) == (STYLES, None)
    assert seen.model_copy(update={"styles": params.data.styles, "subset": "seen"}) == params.data
    photos = load_params(root / "presets/tiny-imagenet/params.yaml").data
    assert photos.pretraining is photos


def test_subsets_are_those_of_the_data(params, root):
    photos = load_params(root / "presets/tiny-imagenet/params.yaml").data
    whole = photos.model_copy(update={"holdout_every": None})
    drawn = [params.data.model_copy(update={"subset": part}) for part in (None, "seen")]
    assert photos.subsets == drawn[0].subsets == ("seen", "unseen")
    assert whole.subsets == drawn[1].subsets == ("seen",)


def test_a_level_of_the_data_that_is_fine_tuned_on_is_refused(tmp_path, content):
    content["data"]["level"] = 1
    path = write(tmp_path, content)
    assert message(path) == f"{path}: data.level is for zero_shot alone; write 0"


def test_superclasses_need_a_level_above_them(tmp_path, content):
    content["zero_shot"]["superclasses"]["data"]["level"] = 4
    write(tmp_path, content)
    assert load_params(tmp_path / "params.yaml").zero_shot["superclasses"].data.level == 4
    content["zero_shot"]["superclasses"]["data"]["level"] = 5
    path = write(tmp_path, content)
    assert (
        message(path) == f"{path}: zero_shot.superclasses.data.level must be below 5, the coarsest"
    )


@pytest.mark.parametrize("source", ["data", "fxemoji"])
def test_a_drawn_set_is_there_once(tmp_path, content, source):
    """Whether it is the one of fine-tuning or another zero-shot set."""
    same = content["data"] if source == "data" else content["zero_shot"][source]["data"]
    content["zero_shot"]["again"] = {"data": same}
    path = write(tmp_path, content)
    assert message(path).startswith(
        f"{path}: zero_shot.again has emoji at 32 pixels; it must be a set of its own"
    )


def test_drawn_sets_beside_photographs_are_refused(tmp_path, content, root):
    photos = yaml.safe_load((root / "presets/tiny-imagenet/params.yaml").read_text(encoding="utf8"))
    drawn = content["zero_shot"]["fxemoji"]
    photos["zero_shot"]["fxemoji"] = {"data": drawn["data"] | {"size": photos["data"]["size"]}}
    path = write(tmp_path, photos)
    assert message(path).startswith(
        f"{path}: zero_shot.fxemoji has emoji, whose tree is a part of that of data.name: emoji"
    )


@pytest.mark.parametrize("styles", [[], ["crayon"]])
def test_styles_are_some_of_the_known(tmp_path, content, styles):
    content["data"]["styles"] = styles
    path = write(tmp_path, content)
    said = message(path)
    assert said.startswith(f"{path}: data.") and "styles" in said and "\n" not in said
