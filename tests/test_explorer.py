"""The explorer without a browser: what it shows of an image, and what each control changes."""

import json
import math
import re
import shutil
from dataclasses import replace
from html import unescape

import nbformat
import numpy as np
import pytest
import torch
from ipywidgets import HBox

from hierclip.config import load_params
from hierclip.explorer import marks, node_angles, scene
from hierclip.hyperbolic import from_klein_sum, to_klein_sum
from hierclip.losses.levels import group_levels, roll_up
from hierclip.margins import level_bounds
from tests.conftest import ROOT, notebook_functions

explore = notebook_functions("90_explore")
image_state, open_model, open_task = (
    explore[k] for k in ("image_state", "open_model", "open_task")
)


def scene_of(view) -> dict:
    return scene(view.tree, view.classifier.text_points, view.model.head)


@pytest.fixture(scope="module")
def choices(explored):
    return load_params(explored / "params.yaml")


@pytest.fixture(scope="module")
def data(explored, choices):
    return open_task(explored, choices, "seen")


@pytest.fixture(scope="module")
def flat(explored, choices, data):
    return open_model(explored, choices, "tecoa-0", data, data.task.trees[0])


@pytest.fixture(scope="module")
def ball(explored, choices, data):
    return open_model(explored, choices, "hier-0", data, data.task.trees[0])


@pytest.fixture(params=["flat", "ball"])
def view(request):
    return request.getfixturevalue(request.param)


def run_notebook(folder) -> dict:
    """Run 90_explore on the project in a folder and return its names."""
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIERCLIP_ROOT", str(folder))
        for cell in nbformat.read(ROOT / "notebooks/90_explore.ipynb", as_version=4).cells:
            if cell.cell_type == "code":
                exec(cell.source, names)
    return names


@pytest.fixture(scope="module")
def notebook(explored):
    return run_notebook(explored)


def state_of(view, images, row):
    return image_state(view, images.floats()[row], int(images.labels[row]))


def columns(html):
    """Return a table's columns by their heads, cells without tags."""
    found = re.findall(r"<tr[^>]*>(.*?)</tr>", html, re.S)
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in found]
    plain = [[unescape(re.sub(r"<[^>]+>", "", cell)) for cell in row] for row in rows]
    return dict(zip(plain[0], zip(*plain[1:], strict=True), strict=True))


def known(view, images):
    """Return the first image whose leaf is right."""
    return next(row for row in range(len(images)) if state_of(view, images, row).margins[0] > 0)


def test_an_image_state_agrees_with_the_classifiers_logits_and_bounds(view, data, notebook):
    for row in (0, 7, 31):
        state = state_of(view, data.images, row)
        logits = [level.detach()[0] for level in view.classifier(data.images.floats()[[row]])]
        assert state.nodes.tolist() == [int(level.argmax()) for level in logits]
        confidence = [float(level.softmax(0).max()) for level in logits]
        np.testing.assert_allclose(state.confidence, confidence, rtol=1e-4)
        for level, (scores, node) in enumerate(zip(logits, view.paths[state.label], strict=True)):
            others = torch.cat([scores[:node], scores[node + 1 :]])
            margin = float(scores[node] - others.max())
            assert state.margins[level] == pytest.approx(margin, rel=1e-3, abs=1e-3)
        bounds = [level_bounds(view.classifier, level) for level in range(len(logits))]
        np.testing.assert_allclose(notebook["text_bounds"](view)[:, 1:], bounds)


def test_an_image_among_the_references_is_rolled_up_as_training_does(ball, data):
    leaf = 4
    state = state_of(ball, data.images, int(np.flatnonzero(data.images.labels == leaf)[0]))
    head = ball.model.head
    paths = ball.paths[data.references.labels]
    groups = group_levels(paths)
    nodes = [paths[:, 0], *(group.nodes for group in groups)]
    levels = roll_up(to_klein_sum(head.image_points(ball.references), head.curvature), groups)
    norms = [
        float(from_klein_sum(level, head.curvature)[of == node].norm())
        for level, of, node in zip(levels, nodes, ball.paths[leaf], strict=True)
    ]
    np.testing.assert_allclose(state.norms, norms, rtol=1e-4)


def test_a_flat_method_has_one_norm_and_rolls_nothing_up(flat, data):
    drawn = scene_of(flat)
    assert drawn["head"]["kind"] == "cosine"
    np.testing.assert_allclose([node["norm"] for node in drawn["nodes"]], 1, atol=1e-5)
    assert state_of(flat, data.images, 0).norms == pytest.approx([1])


def test_the_scene_has_every_node_with_its_parent_norm_and_leaves(ball):
    drawn, tree = scene_of(ball), ball.tree
    nodes = drawn["nodes"]
    levels = [level for level, size in enumerate(tree.sizes) for _ in range(size)]
    assert [node["level"] for node in nodes] == levels
    norms = torch.cat([points.norm(dim=-1) for points in ball.classifier.text_points])
    np.testing.assert_allclose([node["norm"] for node in nodes], norms)
    for path in tree.paths:
        places = np.cumsum([0, *tree.sizes[:-1]]) + path
        assert [nodes[place]["parent"] for place in places] == [*places[1:], -1]
        assert {nodes[place]["family"] for place in places} == {path[-1]}
    for node in nodes:
        leaves = [k for k, leaf in enumerate(nodes[: tree.sizes[0]]) if node is leaf]
        if not node["level"]:
            assert node["leaves"] == leaves and node["count"] == 1
    assert sum(node["count"] for node in nodes) == len(tree.leaves) * len(tree.levels)
    assert drawn["families"] == tree.sizes[-1] and drawn["head"]["kind"] == "poincare"


def angles_of(tree):
    return node_angles(tree)


def test_leaves_are_evenly_spaced_and_those_of_a_node_side_by_side(forest):
    for tree in forest:
        angles = angles_of(tree)[0]
        np.testing.assert_allclose(np.diff(np.sort(angles)), math.tau / len(angles))
        ranks = np.argsort(np.argsort(angles))
        for nodes in tree.paths.T:
            for node in set(nodes):
                below = ranks[nodes == node]
                assert np.ptp(below) == len(below) - 1


def test_a_node_lies_in_the_middle_of_its_leaves(tree):
    leaves, level = angles_of(tree)[:2]
    for node, angle in enumerate(level):
        below = leaves[tree.paths[:, 1] == node]
        assert angle == pytest.approx((below.min() + below.max()) / 2)


def test_the_angle_of_an_image_is_that_of_the_mean_vector_of_the_nodes(view, data):
    state = state_of(view, data.images, 3)
    weights = view.classifier(data.images.floats()[[3]])[0][0].softmax(0).detach().numpy()
    x = np.sum(weights * np.cos(view.angles[0]))
    y = np.sum(weights * np.sin(view.angles[0]))
    assert state.angles[0] == pytest.approx(math.atan2(y, x), abs=1e-4)
    assert len(state.angles) == len(state.norms)


def test_an_attack_moves_the_image_within_its_budget_and_a_larger_one_goes_further(
    ball, data, choices, notebook
):
    attack_image = notebook["attack_image"]
    clean = state_of(ball, data.images, known(ball, data.images))
    ways = []
    for eps in (0.5 / 255, 2 / 255, 16 / 255):
        moved, way = attack_image(ball, clean, "direct", 0, eps, choices.attack)
        assert 0 < float((moved - clean.image).abs().max()) <= eps + 1e-6
        assert (image_state(ball, moved, clean.label).margins[0] < 0) == (way > 1)
        ways.append(way)
    assert ways[0] < ways[1] and ways[2] > 1
    moved, way = attack_image(ball, clean, "direct", 0, 0.0, choices.attack)
    assert torch.equal(moved, clean.image) and way == 0


def test_another_curvature_keeps_a_pairs_bound_and_moves_norms_and_siblings(ball, notebook):
    curved = notebook["with_curvature"](ball, 0.25)
    for before, after in zip(
        ball.classifier.text_points, curved.classifier.text_points, strict=True
    ):
        tangents = np.arctanh(0.5 * after.norm(dim=-1).numpy()) / 0.5
        np.testing.assert_allclose(np.arctanh(before.norm(dim=-1).numpy()), tangents, rtol=1e-3)
    (eta, pair, siblings), (trained, same, others) = (
        notebook["text_bounds"](curved)[0],
        notebook["text_bounds"](ball)[0],
    )
    longest = np.arctanh(trained)  # the tangent vectors' lengths, r being 1
    assert eta == pytest.approx(math.tanh(0.5 * longest) / 0.5, rel=1e-4)
    assert pair == pytest.approx(4 * 7.0 * longest, rel=1e-4) == pytest.approx(same, rel=1e-4)
    for norm, r, bound in ((eta, 0.25, siblings), (trained, 1.0, others)):
        k, share = ball.tree.sizes[0], math.sqrt(r) * norm
        edge = math.asinh(math.sqrt(2 * k / (k - 1)) * share / (1 - share**2))
        assert bound == pytest.approx(7.0 * 2 / math.sqrt(r) * edge, rel=1e-4)
    assert eta > 1.2 * trained and siblings < others - 0.5


def test_gaps_add_up_from_the_coarsest_level_downwards(ball, notebook):
    norms = notebook["ordered_norms"](ball, 0.1)
    coarsest, top = notebook["text_bounds"](ball)[-1, 0], ball.tree.max_level
    assert norms == pytest.approx([coarsest + 0.1 * (top - level) for level in range(top + 1)])


def test_the_chart_draws_the_bound_and_only_norms_inside_the_ball(ball, data, notebook):
    states = [state_of(ball, data.images, 0)]
    chart = notebook["bound_chart"]
    wide, far = (chart(ball, states, zeta, ball).axes[0] for zeta in (0.01, 0.5))
    (curve,) = (line for line in wide.lines if line.get_gid() == "bound")
    x, y = curve.get_data()
    np.testing.assert_allclose(y, 4 * 7.0 * np.arctanh(x))
    (least,) = (line.get_xydata() for line in wide.lines if line.get_gid() == "least")
    np.testing.assert_allclose(least[:, 0], notebook["ordered_norms"](ball, 0.01))
    np.testing.assert_allclose(least[:, 1], 28 * np.arctanh(least[:, 0]))
    (few,) = (line.get_xdata() for line in far.lines if line.get_gid() == "least")
    assert len(few) == 1
    assert notebook["svg"](chart(ball, states, 0.01, ball)).startswith("<svg")


def test_marks_are_the_true_path_and_the_nearest_nodes_of_each_state(ball, data):
    states = [state_of(ball, data.images, 0), state_of(ball, data.images, 5)]
    drawn, nodes = marks(ball.tree, states), scene_of(ball)["nodes"]
    path = [ball.tree.levels[l][k].name for l, k in enumerate(ball.tree.paths[0])]
    assert [nodes[k]["name"] for k in drawn["path"]] == path
    nearest = [nodes[k] for k in drawn["states"][1]["nodes"]]
    names = [ball.tree.levels[l][k].name for l, k in enumerate(states[1].nodes)]
    assert [node["name"] for node in nearest] == names
    assert [node["level"] for node in nearest] == list(range(ball.tree.max_level + 1))
    assert drawn["states"][1]["norms"] == states[1].norms.tolist()
    json.dumps(drawn)  # plain numbers


def known_leaf(page):
    """Return a leaf whose first image the page's first model calls right."""
    references = page.open_task("seen").references
    return int(references.labels[known(page.panels[0].view, references)])


def test_every_control_changes_what_it_is_for_and_to_what_it_says(notebook):
    page = notebook["page"]
    (panel,) = page.panels
    chart, numbers = notebook["chart"], notebook["numbers"]
    tree = panel.view.tree
    page.leaf.value = known_leaf(page)
    before = panel.disk.scene, chart.value, panel.strip.value
    page.level.value = 2
    page.stretch.value = 0.8
    assert panel.disk.level == 2 and panel.disk.stretch == 0.8
    assert (panel.disk.scene, chart.value, panel.strip.value) == before
    assert re.findall(r'<tr class="marked"><th scope="row">(\d)', panel.path.value) == ["2"]

    lengths = np.arctanh(notebook["text_bounds"](panel.view)[:, 0])
    notebook["curvature"].value = 0.5
    table = columns(numbers.value)
    curved = np.tanh(math.sqrt(0.5) * lengths) / math.sqrt(0.5)
    assert table["norm"] == tuple(f"{norm:.3f}" for norm in curved)
    assert [float(b) for b in table["bound, pair"]] == pytest.approx(28 * lengths, abs=0.06)
    assert chart.value != before[1] and panel.disk.scene == before[0]

    notebook["zeta"].value = 0.05
    least = [
        f"{curved[-1] + 0.05 * (tree.max_level - level):.3f}" for level in range(tree.max_level + 1)
    ]
    cells = columns(numbers.value)["by zeta_gap: norm, bound"]
    assert [cell.split(",")[0] for cell in cells] == least

    page.budget.value = 16.0
    clean, attacked = panel.states
    assert 12 / 255 < float((attacked.image - clean.image).abs().max()) <= 16 / 255 + 1e-6
    assert "the change, 8 times" in panel.strip.value
    assert "16/255: the image <b>is misclassified</b>" in panel.verdict.value
    assert panel.disk.marks == marks(panel.view.tree, panel.states)
    names = [level[k].name for level, k in zip(tree.levels, attacked.nodes, strict=True)]
    cells = columns(panel.path.value)["attacked"]
    assert all(name in cell for name, cell in zip(names, cells, strict=True))
    page.budget.value = 0.0
    assert len(panel.states) == 1 and "attacked" not in columns(panel.path.value)
    assert "is not moved" in panel.verdict.value

    page.tree.value = "use"
    names = [node.name for level in panel.view.tree.levels for node in level]
    assert [node["name"] for node in panel.disk.scene["nodes"]] == names
    assert page.level.max == page.attacked.max == panel.view.tree.max_level
    panel.method.value = "tecoa-0"
    assert panel.disk.scene["head"]["kind"] == "cosine"
    assert notebook["curvature"].disabled and notebook["zeta"].disabled
    panel.method.value = "hier-0"
    assert notebook["curvature"].value == 1.0 and notebook["zeta"].value == 0.01
    assert not notebook["curvature"].disabled
    page.task.value = "unseen"
    leaves = page.open_task("unseen").task.trees[0].leaves
    assert dict(page.leaf.options) == {leaf.name: k for k, leaf in enumerate(leaves)}
    page.task.value = "seen"


def test_sliders_answer_when_they_are_let_go(notebook):
    widgets = [*vars(notebook["page"]).values(), notebook["curvature"], notebook["zeta"]]
    sliders = [widget for widget in widgets if hasattr(widget, "continuous_update")]
    assert len(sliders) == 7 and not any(widget.continuous_update for widget in sliders)


def test_the_slider_of_the_gap_goes_as_far_as_the_parameters_ask(notebook, choices):
    deep = choices.method["hier"].model_copy(update={"zeta_gap": 0.3})
    params = choices.model_copy(update={"method": {**choices.method, "hier": deep}})
    notebook["params"] = params
    notebook["reset_bounds"]()
    zeta = notebook["zeta"]
    assert zeta.value == 0.3 <= zeta.max
    notebook["params"] = choices
    notebook["reset_bounds"]()


def test_what_cannot_be_opened_leaves_no_image_under_its_name_but_the_reason(explored, notebook):
    page, chart = notebook["page"], notebook["chart"]
    (panel,) = page.panels
    broken = explored / "data/models/broken-0"
    shutil.copytree(explored / "data/models/hier-0", broken)
    entries = {"method": "hier", "head": {"kind": "odd"}}
    (broken / "hierclip.json").write_text(json.dumps(entries), encoding="utf8")
    panel.method.options = [*panel.method.options, ("broken-0", "broken-0")]
    try:
        panel.method.value = "broken-0"
    finally:
        shutil.rmtree(broken)
    assert "no head &#x27;odd&#x27;" in page.status.value and panel.states == []
    shown = [panel.strip, panel.path, panel.verdict, chart, notebook["numbers"]]
    for change in ({}, {"leaf": 3}, {"budget": 1.0}, {"level": 1}, {"stretch": 0.5}):
        for name, value in change.items():  # nor does a control bring it back
            getattr(page, name).value = value
        assert panel.disk.scene == panel.disk.marks == {}
        assert not any(widget.value for widget in shown)
    panel.method.value = "hier-0"
    assert panel.states[0].label == 3 and panel.disk.scene["nodes"] and not page.missing
    assert all(widget.value for widget in shown)


def test_a_level_of_one_text_has_nothing_to_be_taken_for_and_no_bound(
    explored, choices, data, notebook
):
    """As the last cell of 90_explore compares margins with bounds."""
    tree = data.task.trees[0]
    paths = zip(tree.ids, tree.paths, strict=True)
    small = tree.restrict([leaf for leaf, path in paths if not path[-1]])
    places = torch.tensor([tree.ids.index(leaf) for leaf in small.ids])
    task = replace(data.task, trees=[small])
    part = replace(data, task=task, references=data.references.select_classes(places))
    view = open_model(explored, choices, "hier-0", part, small)
    state = image_state(view, data.images.floats()[0], 0)
    bounds = notebook["text_bounds"](view)[:, 1]
    assert small.sizes[-1] == 1 and state.margins[-1] == bounds[-1] == math.inf
    assert (state.margins <= bounds).all() and np.isfinite(state.margins[0])
    chart = notebook["bound_chart"](view, [state], 0.01, view)
    assert notebook["svg"](chart).startswith("<svg")


def test_a_click_on_a_node_takes_an_image_of_it(explored, choices, notebook):
    page = notebook["Explorer"](explored, choices, ["hier-0"], "wordnet", "seen")
    page.panels[0].disk._handle_custom_msg({"leaf": 6}, [])
    assert page.leaf.value == 6 == page.panels[0].states[0].label


def test_two_methods_are_shown_on_the_same_image_each_under_its_name(explored, choices, notebook):
    page = notebook["Explorer"](explored, choices, ("tecoa-0", "hier-0"))
    heads = [type(panel.view.model.head).__name__ for panel in page.panels]
    assert heads == ["CosineHead", "PoincareHead"]
    first, second = page.panels
    torch.testing.assert_close(first.states[0].image, second.states[0].image)
    assert first.disk.scene != second.disk.scene
    labels = [choices.labels[method] + ", seed 0" for method in ("tecoa", "hier")]
    assert [panel.method.label for panel in page.panels] == labels
    beside = [box for box in page.children if isinstance(box, HBox)][-1]
    assert list(beside.children) == page.panels
    first.method.value = "hier-0"
    assert first.method.label == second.method.label
    assert first.disk.scene == second.disk.scene


def test_what_is_shown_in_place_of_what_is_not_there_is_said(explored, choices, notebook):
    page = notebook["Explorer"](explored, choices, ("fare-0", "hier-0"), "none", "seen")
    notes = [child.value for child in page.children[:2]]
    label = page.panels[0].method.label
    assert f"There is no method fare-0 here: {label} is shown instead." in notes[0]
    assert "There is no tree none here: wordnet is shown instead." in notes[1]
    assert label == choices.labels["tecoa"] + ", seed 0"
    assert notebook["Explorer"](explored, choices, ("", "")).notes == []


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("data/models", "no model in .*; `make repro` makes what is missing"),
        ("data/trees", "wordnet.json: cannot be read .*; `make repro` makes what is missing"),
        ("data/prepared", "run notebooks/10_data.ipynb or `dvc repro data`"),
    ],
)
def test_a_page_says_what_to_run_where_something_is_missing(
    explored, choices, notebook, gone, said, tmp_path
):
    (explored / gone).rename(tmp_path / "elsewhere")
    try:
        page = notebook["Explorer"](explored, choices)
    finally:
        (tmp_path / "elsewhere").rename(explored / gone)
    assert re.search(said, page.missing) and "Nothing to show" in page.children[0].value


def test_the_notebook_says_what_to_run_where_there_is_nothing(explored, tmp_path):
    (tmp_path / "params.yaml").write_bytes((explored / "params.yaml").read_bytes())
    names = run_notebook(tmp_path)
    assert names["page"].missing and names["pair"].missing
