"""The explorer without a browser: what it shows of a picture, and what each control changes."""

import math
import re

import nbformat
import numpy as np
import pytest
import torch

from hierclip.attacks import budget_of
from hierclip.losses.hierarchical import roll_up
from hierclip.margins import hyperbolic_bound, measured_margins
from hierclip.model import EuclideanHead
from hierclip.params import load_params
from hierclip.widgets import Compare, Explorer
from hierclip.widgets.chart import bound_chart, svg
from hierclip.widgets.look import drawn_radius, look, make_lens, ordered_norms, strike
from hierclip.widgets.scene import marks, scene
from hierclip.widgets.store import Store
from tests.explored import write_project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("explored")
    write_project(root)
    return root


@pytest.fixture(scope="module")
def choices(project):
    return load_params(project / "params.yaml")


@pytest.fixture(scope="module")
def store(project, choices):
    return Store(project, choices)


@pytest.fixture(scope="module")
def pictures(store):
    return store.shelf("tuned").pictures


@pytest.fixture(scope="module", params=["tecoa-0", "hier-0"])
def lens(request, store):
    return store.lens(request.param, "tuned", "wordnet")


@pytest.fixture(scope="module")
def ball(store):
    return store.lens("hier-0", "tuned", "wordnet")


def seen(lens, pictures, row):
    return look(lens, pictures.floats()[row], int(pictures.labels[row]))


def known(lens, pictures, level=0):
    """The first picture that is right at a level."""
    return next(row for row in range(len(pictures)) if seen(lens, pictures, row).margins[level] > 0)


def test_a_look_agrees_with_the_classifier_and_the_measured_margins(lens, pictures):
    measured = measured_margins(lens.classifier, pictures, lens.paths, 50).set_index(["picture", "level"])
    for row in (0, 7, 31):
        found = seen(lens, pictures, row)
        logits = [level.detach() for level in lens.classifier(pictures.floats()[[row]])]
        assert found.nodes.tolist() == [int(level.argmax()) for level in logits]
        assert found.upward.tolist() == lens.tree.paths[found.nodes[0]].tolist()
        np.testing.assert_allclose(found.confidence, [float(level.softmax(1).max()) for level in logits], rtol=1e-4)
        np.testing.assert_allclose(found.margins, measured.loc[row]["margin"], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose([b for _, b, _ in lens.bounds()], measured.loc[row]["bound"], rtol=1e-6)


def test_a_picture_of_the_crowd_is_rolled_up_as_training_does(ball, store, pictures):
    shelf, leaf = store.shelf("tuned"), 4
    found = seen(ball, pictures, int(shelf.first[leaf]))
    points = ball.head.image_points(ball.crowd.embeddings)
    levels = roll_up(ball.head, points, ball.paths[ball.crowd.labels], ball.tree.top)
    own = [level.points[level.own == node] for level, node in zip(levels, ball.paths[leaf], strict=True)]
    np.testing.assert_allclose(found.norms, [float(p.norm()) for p in own], rtol=1e-4)


def test_a_flat_head_has_one_norm_rolls_nothing_up_and_says_so(store, pictures):
    lens = store.lens("tecoa-0", "tuned", "wordnet")
    drawn, found = scene(lens, 0.5), seen(lens, pictures, 0)
    radii = [math.hypot(node["x"], node["y"]) for node in drawn["nodes"]]
    np.testing.assert_allclose(radii, 0.8, atol=1e-3)
    assert "none has a depth" in drawn["note"] and not drawn["rim"]
    assert len(found.norms) == 1 and found.norms[0] == pytest.approx(1)
    with pytest.raises(TypeError, match="CosineHead has no curvature"):
        lens.bent(2.0)


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
    norms = [math.hypot(node["x"], node["y"]) for node in nodes]
    np.testing.assert_allclose(norms, [node["norm"] for node in nodes], atol=1e-3)  # a stretch of 1: as they are


def test_a_flat_space_is_drawn_in_proportion_with_straight_edges(ball):
    fields = {name: getattr(ball.head, name) for name in type(ball.head).__dataclass_fields__}
    flat = make_lens(ball.classifier.encoder, EuclideanHead(**fields), ball.tree, ball.texts, ball.crowd)
    assert all(edge[4] == 0 for edge in scene(flat, 0.5)["edges"])
    assert float(drawn_radius(flat.head, 2.0, 0.5)) == pytest.approx(0.5)


def test_an_attack_moves_the_picture_within_its_budget_and_a_larger_one_goes_further(ball, pictures, choices):
    row, ways = known(ball, pictures), []
    image, label = pictures.floats()[row], int(pictures.labels[row])
    for eps in (0.5 / 255, 2 / 255, 16 / 255):
        moved, way = strike(ball, image, label, "direct", 0, eps, budget_of(choices.attack), 0)
        assert 0 < float((moved - image).abs().max()) <= eps + 1e-6
        assert (look(ball, moved, label).margins[0] < 0) == (way > 1)
        ways.append(way)
    assert ways[0] < ways[1] and ways[2] > 1
    moved, way = strike(ball, image, label, "direct", 0, 0.0, budget_of(choices.attack), 0)
    assert torch.equal(moved, image) and way == 0


def test_another_curvature_keeps_tangent_vectors_and_a_pairs_bound_and_moves_norms_and_siblings(ball):
    bent = ball.bent(0.25)
    for before, after in zip(ball.norms, bent.norms, strict=True):
        np.testing.assert_allclose(np.arctanh(before), np.arctanh(0.5 * after) / 0.5, rtol=1e-3)
    (eta, pair, siblings), (trained, same, others) = bent.bounds()[0], ball.bounds()[0]
    assert pair == pytest.approx(hyperbolic_bound(eta, 0.25, 7.0)) == pytest.approx(same)  # 4 tau times the length
    assert eta > 1.2 * trained and siblings < others - 0.5


def test_gaps_add_up_from_the_coarsest_level_downwards():
    assert ordered_norms(0.5, 0.1, 3) == pytest.approx([0.8, 0.7, 0.6, 0.5])


def test_the_chart_draws_the_bound_and_only_norms_inside_the_ball(ball, pictures):
    looks = [seen(ball, pictures, 0)]
    wide, far = (bound_chart(ball, looks, zeta, ball).axes[0] for zeta in (0.01, 0.5))
    (curve,) = (line for line in wide.lines if line.get_gid() == "bound")
    x, y = curve.get_data()
    np.testing.assert_allclose(y[50], hyperbolic_bound(float(x[50]), 1.0, 7.0))
    counts = [len(line.get_xdata()) for axis in (wide, far) for line in axis.lines if line.get_gid() == "asked"]
    assert counts == [ball.tree.top + 1, 1]
    assert svg(bound_chart(ball, looks, 0.01, ball)).startswith("<svg")


def test_marks_are_the_true_path_and_what_each_look_found(ball, pictures):
    looks = [seen(ball, pictures, 0), seen(ball, pictures, 5)]
    drawn, nodes = marks(ball, 0, looks, 0.5), scene(ball, 0.5)["nodes"]
    assert [nodes[k]["name"] for k in drawn["path"]] == [
        ball.tree.levels[l][k].name for l, k in enumerate(ball.tree.paths[0])
    ]
    assert [nodes[k]["level"] for k in drawn["looks"][1]["found"]] == list(range(ball.tree.top + 1))
    assert len(drawn["moved"]) == 1 and len(marks(ball, 0, looks[:1], 0.5)["moved"]) == 0


@pytest.fixture(scope="module")
def page(project, choices):
    return Explorer(project, choices, "hier-0", "wordnet", "tuned")


def test_every_control_changes_what_it_is_for(page):
    disk = page.views[0].disk

    def state():
        return disk.scene, disk.level, disk.marks, page.views[0].path.value, page.chart.value, page.views[0].strip.value

    def changed(widget, value):
        before, _ = state(), setattr(widget, "value", value)
        return [a != b for a, b in zip(before, state(), strict=True)]

    scene_, level, marks_, path, chart, strip = range(6)
    known_leaf = next(k for k, case in enumerate(known_leaves(page)) if case)
    changed(page.leaf, known_leaf)
    found = changed(page.level, 2)
    assert found[level] and found[path] and not (found[scene_] or found[chart] or found[strip])
    found = changed(page.stretch, 0.8)
    assert found[scene_] and found[marks_] and not found[strip]
    found = changed(page.curvature, 0.5)
    assert found[chart] and not found[scene_]
    assert changed(page.zeta, 0.05)[chart]
    found = changed(page.budget, 16.0)
    assert found[marks_] and found[strip] and found[path]
    assert changed(page.tree, "use")[scene_] and disk.scene["families"] == page.lenses[0].tree.sizes[-1]
    assert changed(page.models[0], "tecoa-0")[scene_] and page.curvature.disabled and page.zeta.disabled
    changed(page.models[0], "hier-0")
    assert page.curvature.value == 1.0 and page.zeta.value == 0.01 and not page.curvature.disabled
    leaves = dict(page.leaf.options)
    changed(page.task, "held_out")
    assert dict(page.leaf.options) != leaves and not set(dict(page.leaf.options)) & set(leaves)


def known_leaves(page):
    """By leaf, whether its first picture is right there, in the tree at hand."""
    shelf, lens = page.store.shelf("tuned"), page.lenses[0]
    return [seen(lens, shelf.pictures, int(row)).margins[0] > 0 for row in shelf.first]


def test_a_click_on_a_node_takes_a_picture_of_it(project, choices):
    page = Explorer(project, choices, "hier-0", "wordnet", "tuned")
    page.views[0].disk.clicked = 6
    assert page.leaf.value == 6 == page.cases[0].label


def test_two_methods_are_shown_on_the_same_picture(project, choices):
    page = Compare(project, choices, ("tecoa-0", "hier-0"))
    assert [type(case.lens.head).__name__ for case in page.cases] == ["CosineHead", "PoincareHead"]
    torch.testing.assert_close(page.cases[0].images[0], page.cases[1].images[0])
    assert page.views[0].disk.scene != page.views[1].disk.scene


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("data/models", "no model in .*; `make repro` makes what is missing"),
        ("data/trees", "wordnet.json: cannot be read .*; `make repro` makes what is missing"),
        ("data/prepared", "run notebooks/10_data.ipynb or `dvc repro data`"),
    ],
)
def test_a_page_says_what_to_run_where_something_is_missing(project, choices, gone, said, tmp_path):
    (project / gone).rename(tmp_path / "elsewhere")
    try:
        page = Explorer(project, choices)
    finally:
        (tmp_path / "elsewhere").rename(project / gone)
    assert re.search(said, page.missing) and "Nothing to show yet" in page.children[0].value


@pytest.mark.parametrize("name", ["90_explore", "91_compare"])
@pytest.mark.parametrize("there", [True, False])
def test_a_notebook_runs_without_a_page(name, there, project, root, tmp_path, monkeypatch):
    if not there:
        (tmp_path / "params.yaml").write_bytes((project / "params.yaml").read_bytes())
    monkeypatch.setenv("HIERCLIP_ROOT", str(project if there else tmp_path))
    names = {}
    for cell in nbformat.read(root / f"notebooks/{name}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
    assert bool(names["page"].missing) != there
