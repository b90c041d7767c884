"""The disk as a page: for any embeddings with a tree, from a file, without a kernel."""

import json
import re

import pytest
import torch
from playwright.sync_api import sync_playwright

from hierclip.errors import HierclipError
from hierclip.explorer import DrawnImage, disk
from hierclip.hyperbolic import expmap0, pairwise_distance
from hierclip.trees import Node, Tree
from tests.conftest import ROOT
from tests.test_browser import CHROMIUM, QUIET

DEPTHS = (1.0, 0.7, 0.4)  # tangent length by level


@pytest.fixture
def points(tree):
    """Points of the tree's nodes, each near its leaves' directions."""
    directions = torch.eye(len(tree.leaves))
    levels = []
    for depth, nodes in zip(DEPTHS, torch.from_numpy(tree.paths).T, strict=True):
        means = torch.stack([directions[nodes == k].mean(0) for k in range(int(nodes.max()) + 1)])
        levels.append(expmap0(depth * means / means.norm(dim=-1, keepdim=True), 1.0))
    return levels


@pytest.fixture
def attacked(tree, points):
    """An image of the first leaf, moved to the last one in two steps."""
    start, end = points[0][0], points[0][-1]
    path = torch.stack([0.9 * start, 0.45 * (start + end), 0.9 * end])
    return DrawnImage(0, path, torch.rand(2, 3, 8, 8), "the first")


def content_of(html: str) -> dict:
    return json.loads(re.search(r'id="content">(.*?)</script>', html, re.S)[1])


def test_every_node_and_every_point_of_an_attack_is_there(tree, points, attacked):
    content = content_of(disk(points, tree, [attacked, DrawnImage(1, points[0][1:2])]).to_html())
    assert [node["norm"] for node in content["scene"]["nodes"]] == pytest.approx(
        torch.cat(points).norm(dim=-1).tolist()
    )
    first, second = content["marks"]
    assert first["name"] == "the first" and second["name"] == tree.leaves[1].name
    assert len(first["states"]) == 3 and len(second["states"]) == 1
    offsets = [0, 5, 5 + tree.sizes[1]]
    for k, state in enumerate(first["states"]):
        nearest = [
            offset + int(pairwise_distance(attacked.points[k : k + 1], level, 1.0).argmin())
            for offset, level in zip(offsets, points, strict=True)
        ]
        assert state["nodes"] == nearest
        assert state["norms"] == pytest.approx([float(attacked.points[k].norm())])
    assert first["path"] == [o + int(k) for o, k in zip(offsets, tree.paths[0], strict=True)]
    assert len(first["strip"]) == 2 and first["strip"][0].startswith("data:image/png")


def test_an_image_at_a_leaf_is_drawn_at_the_leafs_angle(tree, points):
    drawn = content_of(disk(points, tree, [DrawnImage(2, points[0][2:3])], tau=60.0).to_html())
    angle = drawn["marks"][0]["states"][0]["angles"][0]
    assert (angle - drawn["scene"]["nodes"][2]["angle"]) % (2 * torch.pi) == pytest.approx(
        0, abs=1e-3
    )


def test_points_of_a_model_in_training_are_drawn_as_others(tree, points, attacked):
    tracked = [level.clone().requires_grad_(True) for level in points]
    moved = DrawnImage(0, attacked.points.clone().requires_grad_(True))
    made = disk(tracked, tree, [moved]).to_html()
    assert made == disk(points, tree, [DrawnImage(0, attacked.points)]).to_html()


def test_the_page_says_whose_the_images_are(tree, points):
    assert (
        "<small>Drawn by me &amp; you</small>"
        in disk(points, tree, credit="Drawn by me & you").to_html()
    )
    committed = (ROOT / "data/results/disk.html").read_text(encoding="utf8")
    assert "OpenMoji (openmoji.org), CC BY-SA 4.0" in committed


def test_the_curvature_sets_the_rim(tree, points):
    wide = [2 * level for level in points]  # norms up to 1.6
    content = content_of(disk(wide, tree, curvature=0.25).to_html())
    assert content["scene"]["head"]["curvature"] == 0.25
    with pytest.raises(HierclipError, match=r"^points outside the ball, whose rim is at norm 1$"):
        disk(wide, tree)


def test_points_of_another_tree_and_unknown_labels_are_refused(tree, points):
    with pytest.raises(HierclipError, match=r"^points of \(5, 3\) nodes; the levels of tree tiny"):
        disk(points[:2], tree)
    with pytest.raises(HierclipError, match=r"^label \[5\]: tree tiny has 5 leaves, from 0$"):
        disk(points, tree, [DrawnImage(5, points[0][:1])])
    with pytest.raises(
        HierclipError, match=r"^points of shapes \(\.\.\., \(5,\), \(3,\)\)|^points of"
    ):
        disk([points[0], points[1][:, :3], points[2]], tree)
    with pytest.raises(HierclipError, match="^points of shapes"):
        disk(points, tree, [DrawnImage(0, points[0][0])])
    nan = [points[0] * torch.nan, *points[1:]]
    with pytest.raises(HierclipError, match="^points outside the ball"):
        disk(nan, tree)


@pytest.fixture
def named(tree):
    """The tree with a leaf whose name is a program."""
    evil = Node("dog", "</script><script>document.title = 'run'</script>")
    levels = tuple(tuple(evil if n.id == "dog" else n for n in level) for level in tree.levels)
    return Tree(tree.name, tree.root, levels, tree.parents)


def test_the_page_loads_nothing_and_no_name_is_run(named, points, attacked, tmp_path):
    html = disk(points, named, [attacked], title="<b>mine</b>").to_html(tmp_path / "disk.html")
    assert (tmp_path / "disk.html").read_text(encoding="utf8") == html
    assert html.count("<script") == 2 and "&lt;b&gt;mine" in html
    assert not re.findall(r'(?:src|href)="?https?:', html) and "import " not in html


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; `apt-get install chromium` brings one")
def test_the_page_works_in_a_browser(named, points, attacked, tmp_path):
    images = [attacked, DrawnImage(4, points[0][4:5], name="<i>last</i>")]
    disk(points, named, images).to_html(tmp_path / "disk.html")
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page()
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((tmp_path / "disk.html").as_uri())
        assert page.title().startswith("A class tree")
        assert page.locator("circle.node").count() == sum(named.sizes)
        assert page.locator(".point-clean").count() == page.locator(".point-attacked").count() == 1
        assert page.locator("#path td.wrong").count() and "<script>" in page.inner_text("#path")
        page.select_option("#image", "1")
        assert page.locator(".point-attacked").count() == 0
        assert page.locator("#image option").nth(1).inner_text() == "<i>last</i>"
        page.locator("#level").fill("2")
        assert page.inner_text("#named") == f"2: {named.sizes[2]} nodes"
        name = named.levels[2][named.paths[0, 2]].name  # of the first image alone
        page.locator(f"circle.node[data-level='2'][data-name='{name}']").click(force=True)
        assert page.locator("#image").input_value() == "0"
        assert not errors
        browser.close()
