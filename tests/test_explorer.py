"""The explorer without a browser: what it shows of a picture, and what each control changes."""

import json
import math
import re
import shutil
from html import unescape

import nbformat
import numpy as np
import pytest
import torch
from ipywidgets import HBox, VBox

from hierclip.attacks import budget_of
from hierclip.explorer import Explorer, compare
from hierclip.explorer.disk import drawn_radius, marks, scene
from hierclip.explorer.panels import bound_chart, ordered_norms, svg
from hierclip.explorer.task import Artifacts
from hierclip.explorer.view import attack_image, image_state, make_model_view
from hierclip.losses.levels import group_levels, roll_up
from hierclip.model import EuclideanHead
from hierclip.params import load_params
from tests.conftest import notebook_functions


@pytest.fixture(scope="module")
def choices(explored):
    return load_params(explored / "params.yaml")


@pytest.fixture(scope="module")
def artifacts(explored, choices):
    return Artifacts(explored, choices)


@pytest.fixture(scope="module")
def pictures(artifacts):
    return artifacts.task_data("tuned").pictures


@pytest.fixture(scope="module", params=["tecoa-0", "hier-0"])
def model_view(request, artifacts):
    return artifacts.model_view(request.param, "tuned", "wordnet")


@pytest.fixture(scope="module")
def ball(artifacts):
    return artifacts.model_view("hier-0", "tuned", "wordnet")


def state_of(model_view, pictures, row):
    return image_state(model_view, pictures.floats()[row], int(pictures.labels[row]))


def columns(html):
    """A table's columns by their heads, cells without tags."""
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr[^>]*>(.*?)</tr>", html)]
    plain = [[unescape(re.sub(r"<[^>]+>", "", cell)) for cell in row] for row in rows]
    return dict(zip(plain[0], zip(*plain[1:], strict=True), strict=True))


def known(model_view, pictures, level=0):
    """The first picture that is right at a level."""
    return next(row for row in range(len(pictures)) if state_of(model_view, pictures, row).margins[level] > 0)


def test_an_image_state_agrees_with_the_classifier_and_the_measured_margins(model_view, pictures):
    measured_margins = notebook_functions("60_margin_depth").measured_margins
    measured = measured_margins(model_view.classifier, pictures, model_view.paths, 50)
    measured = measured.set_index(["picture", "level"])
    for row in (0, 7, 31):
        found = state_of(model_view, pictures, row)
        logits = [level.detach() for level in model_view.classifier(pictures.floats()[[row]])]
        assert found.nodes.tolist() == [int(level.argmax()) for level in logits]
        assert found.upward.tolist() == model_view.tree.paths[found.nodes[0]].tolist()
        np.testing.assert_allclose(found.confidence, [float(level.softmax(1).max()) for level in logits], rtol=1e-4)
        np.testing.assert_allclose(found.margins, measured.loc[row]["margin"], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose([b for _, b, _ in model_view.bounds()], measured.loc[row]["bound"], rtol=1e-6)


def test_a_picture_among_the_reference_images_is_rolled_up_as_training_does(ball, artifacts, pictures):
    leaf = 4
    found = state_of(ball, pictures, int(np.flatnonzero(pictures.labels == leaf)[0]))
    points = ball.head.image_points(ball.reference_images[0])
    paths = ball.paths[ball.reference_images[1]]
    groups = group_levels(paths)
    nodes = [paths[:, 0], *(group.nodes for group in groups)]
    levels = zip(
        [ball.head.from_klein_sum(z) for z in roll_up(ball.head, ball.head.to_klein_sum(points), groups)],
        nodes,
        ball.paths[leaf],
        strict=True,
    )
    own = [level[of == node] for level, of, node in levels]
    np.testing.assert_allclose(found.norms, [float(p.norm()) for p in own], rtol=1e-4)


def test_a_flat_head_has_one_norm_rolls_nothing_up_and_says_so(artifacts, pictures):
    model_view = artifacts.model_view("tecoa-0", "tuned", "wordnet")
    drawn, found = scene(model_view, 0.5), state_of(model_view, pictures, 0)
    radii = [math.hypot(node["x"], node["y"]) for node in drawn["nodes"]]
    np.testing.assert_allclose(radii, 0.8, atol=1e-3)
    assert "none has a depth" in drawn["note"] and not drawn["rim"]
    assert len(found.norms) == 1 and found.norms[0] == pytest.approx(1)
    with pytest.raises(TypeError, match="curvature"):
        model_view.with_curvature(2.0)


def test_the_scene_has_every_node_with_an_edge_to_its_parent(ball):
    drawn, tree = scene(ball, 1.0), ball.tree
    nodes, edges = drawn["nodes"], drawn["edges"]
    assert [node["level"] for node in nodes] == [l for l, size in enumerate(tree.sizes) for _ in range(size)]
    starts = np.cumsum([0, *tree.sizes])
    for level, parents in enumerate(tree.parents):
        for k, parent in enumerate(parents):
            above = nodes[starts[level + 1] + parent]
            assert edges[starts[level] + k][2:4] == [above["x"], above["y"]]
    assert all(edge[2:4] == [0, 0] for edge in edges[starts[tree.top] :])
    for stretch in (1.0, 0.5):  # artanh is half the distance from the centre in the ball of curvature -1
        nodes = scene(ball, stretch)["nodes"]
        found = [math.hypot(node["x"], node["y"]) for node in nodes]
        wanted = [math.tanh(stretch * math.atanh(float(n))) for level in ball.norms for n in level]
        np.testing.assert_allclose(found, wanted, atol=2e-4)
        np.testing.assert_allclose([node["norm"] for node in nodes], np.concatenate(ball.norms), atol=1e-4)


def test_edges_run_from_a_node_to_its_parent_on_circles_that_meet_the_rim_at_right_angles(ball):
    drawn = scene(ball, 0.5)
    curved = [(node, edge) for node, edge in zip(drawn["nodes"], drawn["edges"], strict=True) if edge[4]]
    assert len(curved) > len(drawn["nodes"]) / 4
    for node, (x, y, u, v, radius, _) in curved:
        assert (x, y) == (node["x"], node["y"])
        half, middle = np.array([u - x, v - y]) / 2, np.array([u + x, v + y]) / 2
        away = np.array([-half[1], half[0]]) / np.hypot(*half) * math.sqrt(max(0, radius**2 - half @ half))
        powers = [(c @ c - radius**2) for c in (middle + away, middle - away)]
        assert min(abs(power - 1) for power in powers) < 2e-3 * (1 + radius) ** 2  # four digits are drawn


def test_a_flat_space_is_drawn_in_proportion_with_straight_edges(ball):
    fields = {name: getattr(ball.head, name) for name in type(ball.head).__dataclass_fields__}
    flat = make_model_view(
        ball.classifier.encoder, EuclideanHead(**fields), ball.tree, ball.texts, ball.reference_images
    )
    assert all(edge[4] == 0 for edge in scene(flat, 0.5)["edges"])
    assert float(drawn_radius(flat, 2.0, 0.5)) == pytest.approx(0.5)


def test_an_attack_moves_the_picture_within_its_budget_and_a_larger_one_goes_further(ball, pictures, choices):
    row, ways = known(ball, pictures), []
    image, label = pictures.floats()[row], int(pictures.labels[row])
    for eps in (0.5 / 255, 2 / 255, 16 / 255):
        moved, way = attack_image(ball, image, label, "direct", 0, eps, budget_of(choices.attack), 0)
        assert 0 < float((moved - image).abs().max()) <= eps + 1e-6
        assert (image_state(ball, moved, label).margins[0] < 0) == (way > 1)
        ways.append(way)
    assert ways[0] < ways[1] and ways[2] > 1
    moved, way = attack_image(ball, image, label, "direct", 0, 0.0, budget_of(choices.attack), 0)
    assert torch.equal(moved, image) and way == 0


def test_another_curvature_keeps_tangent_vectors_and_a_pairs_bound_and_moves_norms_and_siblings(ball):
    curved = ball.with_curvature(0.25)
    for before, after in zip(ball.norms, curved.norms, strict=True):
        np.testing.assert_allclose(np.arctanh(before), np.arctanh(0.5 * after) / 0.5, rtol=1e-3)
    (eta, pair, siblings), (trained, same, others) = curved.bounds()[0], ball.bounds()[0]
    longest = float(np.arctanh(ball.norms[0]).max())  # the tangent vectors' lengths, r being 1
    assert eta == pytest.approx(math.tanh(0.5 * longest) / 0.5, rel=1e-4)
    assert pair == pytest.approx(4 * 7.0 * longest, rel=1e-4) == pytest.approx(same, rel=1e-4)
    for norm, r, found in ((eta, 0.25, siblings), (trained, 1.0, others)):
        k, share = len(ball.norms[0]), math.sqrt(r) * norm
        edge = math.asinh(math.sqrt(2 * k / (k - 1)) * share / (1 - share**2))
        assert found == pytest.approx(7.0 * 2 / math.sqrt(r) * edge, rel=1e-4)
    assert eta > 1.2 * trained and siblings < others - 0.5


def test_gaps_add_up_from_the_coarsest_level_downwards():
    assert ordered_norms(0.5, 0.1, 3) == pytest.approx([0.8, 0.7, 0.6, 0.5])


def test_the_chart_draws_the_bound_and_only_norms_inside_the_ball(ball, pictures):
    states = [state_of(ball, pictures, 0)]
    wide, far = (bound_chart(ball, states, zeta, ball).axes[0] for zeta in (0.01, 0.5))
    (curve,) = (line for line in wide.lines if line.get_gid() == "bound")
    x, y = curve.get_data()
    np.testing.assert_allclose(y, 4 * 7.0 * np.arctanh(x))
    (least,) = (line.get_xydata() for line in wide.lines if line.get_gid() == "least")
    coarsest = ball.norms[-1].max()
    np.testing.assert_allclose(least[:, 0], [coarsest + 0.01 * (ball.tree.top - l) for l in range(ball.tree.top + 1)])
    np.testing.assert_allclose(least[:, 1], 28 * np.arctanh(least[:, 0]))
    counts = [len(line.get_xdata()) for axis in (wide, far) for line in axis.lines if line.get_gid() == "least"]
    assert counts == [ball.tree.top + 1, 1]
    assert svg(bound_chart(ball, states, 0.01, ball)).startswith("<svg")


def test_marks_are_the_true_path_and_the_nearest_nodes_of_each_state(ball, pictures):
    states = [state_of(ball, pictures, 0), state_of(ball, pictures, 5)]
    drawn, nodes = marks(ball, states, 0.5), scene(ball, 0.5)["nodes"]
    assert [nodes[k]["name"] for k in drawn["path"]] == [
        ball.tree.levels[l][k].name for l, k in enumerate(ball.tree.paths[0])
    ]
    assert [nodes[k]["level"] for k in drawn["states"][1]["nodes"]] == list(range(ball.tree.top + 1))
    assert len(drawn["moved"]) == 1 and len(marks(ball, states[:1], 0.5)["moved"]) == 0


@pytest.fixture(scope="module")
def page(explored, choices):
    return Explorer(explored, choices, "hier-0", "wordnet", "tuned")


def test_every_control_changes_what_it_is_for_and_to_what_it_says(page):
    view, tree = page.panels[0], page.model_views[0].tree
    page.leaf.value = next(k for k, right in enumerate(known_leaves(page)) if right)
    before = view.disk.scene, page.chart.value, view.strip.value
    page.level.value = 2
    assert view.disk.level == 2 and (view.disk.scene, page.chart.value, view.strip.value) == before
    assert re.findall(r'<tr class="marked"><th scope="row">(\d)', view.path.value) == ["2"]

    page.stretch.value = 0.8
    radii = [math.hypot(node["x"], node["y"]) for node in view.disk.scene["nodes"]]
    norms = np.concatenate(page.model_views[0].norms)
    np.testing.assert_allclose(radii, np.tanh(0.8 * np.arctanh(norms)), atol=2e-4)
    assert view.strip.value == before[2]

    drawn, lengths = view.disk.scene, [float(np.arctanh(level).max()) for level in page.model_views[0].norms]
    page.curvature.value = 0.5
    found = columns(page.numbers.value)
    curved = [math.tanh(math.sqrt(0.5) * length) / math.sqrt(0.5) for length in lengths]
    assert found["norm"] == tuple(f"{norm:.3f}" for norm in curved)
    assert [float(b) for b in found["bound, pair"]] == pytest.approx([28 * length for length in lengths], abs=0.06)
    assert page.chart.value != before[1] and view.disk.scene == drawn

    page.zeta.value = 0.05
    wanted = [f"{curved[-1] + 0.05 * (tree.top - level):.3f}" for level in range(tree.top + 1)]
    assert [cell.split(",")[0] for cell in columns(page.numbers.value)["by zeta_gap: norm, bound"]] == wanted

    page.budget.value = 16.0
    clean, moved = (state.image for state in page.states[0])
    assert 12 / 255 < float((moved - clean).abs().max()) <= 16 / 255 + 1e-6
    assert (
        "the change, 8 times" in view.strip.value and "16/255: the picture <b>falls</b>" in page.panels[0].verdict.value
    )
    reached = image_state(page.model_views[0], moved, page.leaf.value)
    at = math.hypot(*view.disk.marks["states"][1]["points"][0])
    assert at == pytest.approx(math.tanh(0.8 * math.atanh(float(reached.norms[0]))), abs=2e-4)
    names = [level[k].name for level, k in zip(tree.levels, reached.nodes, strict=True)]
    assert all(name in cell for name, cell in zip(names, columns(view.path.value)["attacked"], strict=True))
    page.budget.value = 0.0
    assert len(page.states[0]) == 1 and "attacked" not in columns(view.path.value)

    page.tree.value = "use"
    assert [n["name"] for n in view.disk.scene["nodes"]] == [n.name for l in page.model_views[0].tree.levels for n in l]
    assert page.level.max == page.attacked.max == page.model_views[0].tree.top
    page.models[0].value = "tecoa-0"
    assert "none has a depth" in view.disk.scene["note"] and page.curvature.disabled and page.zeta.disabled
    page.models[0].value = "hier-0"
    assert page.curvature.value == 1.0 and page.zeta.value == 0.01 and not page.curvature.disabled
    page.task.value = "held_out"
    held_out = page.artifacts.task_data("held_out").task.trees[0].leaves
    assert dict(page.leaf.options) == {leaf.name: k for k, leaf in enumerate(held_out)}


def test_sliders_answer_when_they_are_let_go_and_hold_what_the_parameters_ask_for(explored, choices):
    deep = choices.method["hier"].model_copy(update={"zeta_gap": 0.3})
    page = Explorer(explored, choices.model_copy(update={"method": {**choices.method, "hier": deep}}), "hier-0")
    sliders = [widget for widget in vars(page).values() if hasattr(widget, "continuous_update")]
    assert len(sliders) == 7 and not any(widget.continuous_update for widget in sliders)
    assert page.zeta.value == 0.3 <= page.zeta.max


def test_what_cannot_be_opened_leaves_no_picture_under_its_name_but_the_reason(explored, choices):
    broken = explored / "data/models/broken-0"
    shutil.copytree(explored / "data/models/hier-0", broken)
    (broken / "hierclip.json").write_text(json.dumps({"method": "hier", "head": {"kind": "odd"}}), encoding="utf8")
    try:
        page = Explorer(explored, choices, "hier-0", "wordnet", "tuned")
        page.models[0].value = "broken-0"
    finally:
        shutil.rmtree(broken)
    view = page.panels[0]
    assert "no head &#x27;odd&#x27;" in page.status.value and page.states == []
    shown = [view.strip, view.path, view.verdict, page.chart, page.numbers]
    for change in ({}, {"leaf": 3}, {"budget": 1.0}, {"level": 1}, {"zeta": 0.02}):  # nor does a control bring it back
        for name, value in change.items():
            getattr(page, name).value = value
        assert view.disk.scene == view.disk.marks == {} and not any(widget.value for widget in shown)
    page.models[0].value = "hier-0"
    assert page.states[0][0].label == 3 and view.disk.scene["nodes"] and all(widget.value for widget in shown)


def test_a_level_of_one_text_has_nothing_to_be_taken_for_and_no_bound(ball, pictures):
    """As the last cell of 90_explore holds margins against bounds."""
    small = ball.tree.restrict(
        [leaf for leaf, path in zip(ball.tree.ids, ball.tree.paths, strict=True) if not path[-1]]
    )
    known_as = [{node.id: k for k, node in enumerate(level)} for level in ball.tree.levels]
    texts = [ball.texts[l][[known_as[l][node.id] for node in level]] for l, level in enumerate(small.levels)]
    kept = [k for k, label in enumerate(ball.reference_images[1].tolist()) if ball.tree.ids[label] in small.ids]
    labels = torch.tensor([small.ids.index(ball.tree.ids[int(ball.reference_images[1][k])]) for k in kept])
    model_view = make_model_view(
        ball.classifier.encoder, ball.head, small, texts, (ball.reference_images[0][kept], labels)
    )
    margins, bounds = (
        image_state(model_view, pictures.floats()[0], 0).margins,
        [pair for _, pair, _ in model_view.bounds()],
    )
    assert small.sizes[-1] == 1 and margins[-1] == bounds[-1] == math.inf
    assert (margins <= bounds).all() and np.isfinite(margins[0])
    assert svg(
        bound_chart(model_view, [image_state(model_view, pictures.floats()[0], 0)], 0.01, model_view)
    ).startswith("<svg")


def known_leaves(page):
    """By leaf, whether its first picture is right there, in the tree at hand."""
    references, model_view = page.artifacts.task_data("tuned").references, page.model_views[0]
    return [state_of(model_view, references, row).margins[0] > 0 for row in range(len(references))]


def test_a_click_on_a_node_takes_a_picture_of_it(explored, choices):
    page = Explorer(explored, choices, "hier-0", "wordnet", "tuned")
    page.panels[0].disk.clicked = 6
    assert page.leaf.value == 6 == page.states[0][0].label


def test_two_methods_are_shown_on_the_same_picture_each_under_its_name(explored, choices):
    page = compare(explored, choices, ("tecoa-0", "hier-0"))
    assert [type(model_view.head).__name__ for model_view in page.model_views] == ["CosineHead", "PoincareHead"]
    torch.testing.assert_close(page.states[0][0].image, page.states[1][0].image)
    assert page.panels[0].disk.scene != page.panels[1].disk.scene
    assert [model.label for model in page.models] == [
        choices.labels["tecoa"] + ", seed 0",
        choices.labels["hier"] + ", seed 0",
    ]
    beside = next(box for box in page.children if isinstance(box, HBox) and isinstance(box.children[0], VBox))
    assert [column.children[0] for column in beside.children] == page.models
    page.models[0].value = "hier-0"
    assert page.models[0].label == page.models[1].label


def test_what_is_shown_in_place_of_what_is_not_there_is_said(explored, choices):
    page = compare(explored, choices, ("fare-0", "hier-0"), "none", "tuned")
    said = [child.value for child in page.children[:2]]
    assert f"There is no method fare-0 here: {page.models[0].label} is shown instead." in said[0]
    assert "There is no tree none here: wordnet is shown instead." in said[1]
    assert (
        page.models[0].label == choices.labels["tecoa"] + ", seed 0"
        and compare(explored, choices, ("", "")).notes == []
    )


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("data/models", "no model in .*; `make repro` makes what is missing"),
        ("data/trees", "wordnet.json: cannot be read .*; `make repro` makes what is missing"),
        ("data/prepared", "run notebooks/10_data.ipynb or `dvc repro data`"),
    ],
)
def test_a_page_says_what_to_run_where_something_is_missing(explored, choices, gone, said, tmp_path):
    (explored / gone).rename(tmp_path / "elsewhere")
    try:
        page = Explorer(explored, choices)
    finally:
        (tmp_path / "elsewhere").rename(explored / gone)
    assert re.search(said, page.missing) and "Nothing to show" in page.children[0].value


@pytest.mark.parametrize("there", [True, False])
def test_the_notebook_runs_without_a_page(there, explored, root, tmp_path, monkeypatch):
    if not there:
        (tmp_path / "params.yaml").write_bytes((explored / "params.yaml").read_bytes())
    monkeypatch.setenv("HIERCLIP_ROOT", str(explored if there else tmp_path))
    names = {}
    for cell in nbformat.read(root / "notebooks/90_explore.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
    assert bool(names["page"].missing) == bool(names["pair"].missing) != there
