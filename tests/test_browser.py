"""The explorer in a browser: JupyterLab serves the notebooks, and Chromium opens them."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest
from playwright.sync_api import sync_playwright

from hierclip.config import load_params
from hierclip.data.tasks import load_task
from tests.conftest import ROOT, notebook_functions

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
SCREENSHOTS = ROOT / "tests/artifacts"
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 180_000  # milliseconds, for a busy machine
SHOWN = """(name) => document.querySelector('.hierclip-path').innerText.includes(name)
  && document.querySelector('.point-attacked')"""
SETTINGS = {  # no questions, and no cell without text because it is not in view
    "apputils-extension/notification": '{"fetchNews": "false"}',
    "notebook-extension/tracker": '{"autoStartDefaultKernel": true, "windowingMode": "none"}',
}
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium; `apt-get install chromium` brings one"
)


@contextmanager
def served(root):
    """The address of a JupyterLab on the notebooks of a project."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
    ]
    command += [
        f"--notebook-dir={root / 'notebooks'}",
        "--IdentityProvider.token=",
        "--ServerApp.disable_check_xsrf=True",
    ]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    own = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTERLAB_SETTINGS_DIR", "IPYTHONDIR")
    folders = {name: str(root / "jupyter" / name) for name in own}
    for name, settings in SETTINGS.items():
        file = root / f"jupyter/JUPYTERLAB_SETTINGS_DIR/@jupyterlab/{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(settings, encoding="utf8")
    environment = os.environ | folders | {"HIERCLIP_ROOT": str(root)}
    environment |= {"PYTHONPATH": str(ROOT / "lib")}
    environment |= {"PYTHONHASHSEED": "0"}  # ipywidgets then names marks before their scene
    with (root / "lab.log").open("w", encoding="utf8") as log:
        lab = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log)
        try:
            while not answers(port):
                assert lab.poll() is None, (root / "lab.log").read_text(encoding="utf8")
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            lab.terminate()
            try:
                lab.wait(10)
            except (
                subprocess.TimeoutExpired
            ):  # it waits for a kernel that is still starting, and that ends without it
                lab.kill()
                lab.wait()


def answers(port):
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=5).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def known(explored):
    """Return the name of a leaf whose first image the model knows with a large margin."""
    explore = notebook_functions("90_explore")
    params = load_params(explored / "params.yaml")
    data = explore["open_task"](explored, params, "seen")
    tree = data.task.trees[0]
    view = explore["open_model"](explored, params, "hier-0", data, tree)
    images = enumerate(data.references.floats())
    margins = [explore["image_state"](view, image, leaf).margins[0] for leaf, image in images]
    return tree.leaves[max(range(len(margins)), key=margins.__getitem__)].name


@pytest.fixture(scope="module")
def lab(explored):
    """Return the address of a JupyterLab on the project, and a browser."""
    with served(explored) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield address, browser
        browser.close()


@pytest.fixture
def opened(lab, explored):
    """Opens a notebook of the project, runs all of it, and gives the page.

    Of a test that fails, pytest shows what the page, the kernel and JupyterLab said meanwhile.
    """
    address, browser = lab
    page = browser.new_page(viewport={"width": 1680, "height": 1800})
    page.on("console", lambda message: print(f"console: {message.type}: {message.text}"))
    page.on("pageerror", lambda error: print(f"page: {error}"))
    page.on("websocket", lambda socket: socket.on("framereceived", print_error))

    def open_notebook(name):
        page.goto(f"{address}/lab/tree/{name}?reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=PATIENCE)
        page.wait_for_selector("text=/Python 3.*\\| Idle/", timeout=PATIENCE)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        return page

    yield open_notebook
    print("page:", page.locator(".missing").all_inner_texts())
    print("kernel:", page.get_by_text(re.compile(r"^Python 3.*\|")).all_inner_texts())
    print("lab.log:", (explored / "lab.log").read_text(encoding="utf8")[-4000:])
    page.close()


def print_error(frame):
    """Print a message of the kernel that is an error: JupyterLab does not show a widget's."""
    if isinstance(frame, bytes) and b'"ename"' in frame:
        print("kernel:", frame.decode("utf8", "replace"))


def keep(page, name):
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def control(part, name):
    label = part.page.locator(".widget-label", has_text=re.compile(f"^{re.escape(name)}$"))
    return part.locator(".widget-inline-hbox").filter(has=label).first


def move(part, name, key):
    control(part, name).locator("[role=slider]").press(key)


def pick(part, name, option):
    control(part, name).locator("select").select_option(label=option)


def changed(page, selector, attribute, act):
    """Act, wait until an attribute of an element changes; return its new value."""
    before = page.locator(selector).first.get_attribute(attribute)
    script = """([selector, attribute, before]) => {
      const element = document.querySelector(selector);
      return element && element.getAttribute(attribute) !== before;
    }"""
    act()
    page.wait_for_function(script, arg=[selector, attribute, before], timeout=PATIENCE)
    return page.locator(selector).first.get_attribute(attribute)


def names(part):
    return part.locator(".node").evaluate_all("nodes => nodes.map((node) => node.dataset.name)")


def test_the_explorer_answers_in_a_browser(opened, explored, known):
    trees = {
        tree.name: tree
        for tree in load_task(explored, load_params(explored / "params.yaml"), "seen").trees
    }
    page, tree = opened("90_explore.ipynb"), trees["wordnet"]
    part = page.locator(".hierclip-explorer")
    page.wait_for_selector(".hierclip-disk .point-clean", timeout=PATIENCE)
    assert names(part) == [node.name for level in tree.levels for node in level]

    # an image that the model knows; the attack moves it
    pick(part, "image of", known)
    page.wait_for_function(SHOWN, arg=known, timeout=PATIENCE)
    keep(page, "explorer")

    # the level: larger dots, its names outside the rim
    for key, level in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1)):
        radius = changed(
            page,
            f".node[data-level='{level}']",
            "r",
            lambda key=key: move(part, "level shown", key),
        )
        assert radius == "5"
        assert part.locator(".labels text").all_text_contents() == [
            node.name for node in tree.levels[level]
        ]

    # the budget: the point moves, and with it the image, the path and the margins
    point, path = ".point-attacked[data-level='0']", part.locator(".hierclip-path")
    before, margins = path.inner_text(), part.locator(".hierclip-bounds").inner_text()
    images = part.locator("figure img")
    changed(page, point, "cx", lambda: move(part, "budget /255", "End"))
    page.wait_for_function(
        "() => document.body.innerText.includes('Linf 16/255: the image is misclassified')",
        timeout=PATIENCE,
    )
    script = "(before) => document.querySelector('.hierclip-bounds').innerText !== before"
    page.wait_for_function(script, arg=margins, timeout=PATIENCE)
    assert "✗" in path.inner_text() != before
    assert len(set(images.evaluate_all("images => images.map((image) => image.src)"))) == 3
    captions = part.locator("figcaption").all_inner_texts()
    assert captions == ["clean", "the change, 8 times", "attacked"]
    keep(page, "attacked")
    for key in ("ArrowLeft", "ArrowLeft"):
        changed(
            page, "figure:last-child img", "src", lambda key=key: move(part, "budget /255", key)
        )

    # the attacked level
    move(part, "level attacked", "End")
    page.wait_for_function(
        "() => document.body.innerText.includes('nearest node at level 3')", timeout=PATIENCE
    )

    # the bound: its curve moves with the curvature, what the gap asks for with the gap
    for _ in range(3):
        changed(
            page,
            "[id=bound] path",
            "d",
            lambda: move(part, "curvature \N{MULTIPLICATION SIGN}", "ArrowRight"),
        )
    changed(page, "[id=least] use", "x", lambda: move(part, "zeta_gap", "ArrowRight"))

    # a tree; the pointer on a node; a click on it
    script = """(names) => {
      const nodes = [...document.querySelectorAll(".hierclip-explorer .node")];
      return nodes.map((node) => node.dataset.name).join() === names.join();
    }"""
    pick(part, "tree", "use")
    page.wait_for_function(
        script, arg=[n.name for level in trees["use"].levels for n in level], timeout=PATIENCE
    )
    other = next(leaf.name for leaf in trees["use"].leaves if leaf.name != known)
    node = part.locator(f".node[data-level='0'][data-name='{other}']")
    node.hover()
    tip = part.locator(".hierclip-tip")
    assert (
        tip.inner_text().startswith(f"{other}: level 0, norm 0.")
        and tip.locator("img").count() == 1
    )
    keep(page, "pointed")
    node.click()
    script = "(name) => document.querySelector('.hierclip-path').innerText.includes(name)"
    page.wait_for_function(script, arg=other, timeout=PATIENCE)
    assert (
        control(part, "image of").locator("select").evaluate("s => s.selectedOptions[0].text")
        == other
    )

    # a flat method has no depth
    pick(part, "method", "TeCoA, seed 0")
    page.wait_for_function(
        "() => document.querySelector('.hierclip-disk').textContent.includes('none has a depth')",
        timeout=PATIENCE,
    )
    radii = part.locator(".node").evaluate_all(
        "nodes => nodes.map((n) => Math.hypot(n.getAttribute('cx'), n.getAttribute('cy')))"
    )
    assert max(radii) - min(radii) < 0.1
    page.wait_for_function("() => !document.querySelector('[id=least]')", timeout=PATIENCE)
    keep(page, "flat")


def test_two_methods_are_compared_in_a_browser(opened, known):
    page = opened("90_explore.ipynb")
    part = page.locator(".hierclip-compare")
    page.set_viewport_size({"width": 1440, "height": 1800})
    page.wait_for_function(
        "() => document.querySelectorAll('.hierclip-compare .point-clean').length >= 2",
        timeout=PATIENCE,
    )
    pick(part, "image of", known)
    attacked = "'.hierclip-compare .point-attacked[data-level=\"0\"]'"
    script = f"() => document.querySelectorAll({attacked}).length === 2"
    page.wait_for_function(script, timeout=PATIENCE)
    disks = [part.locator(".hierclip-disk").nth(k) for k in range(2)]
    points = [disk.locator(".point-attacked[data-level='0']").get_attribute("cx") for disk in disks]
    assert points[0] != points[1]
    assert ["none has a depth" in (disk.text_content() or "") for disk in disks] == [True, False]
    page.wait_for_function(
        "() => document.querySelectorAll('.hierclip-compare figure img').length === 6",
        timeout=PATIENCE,
    )
    part.scroll_into_view_if_needed()
    keep(page, "compared")
    # At one moment: between two measurements the page may scroll.
    boxes = part.locator(".hierclip-disk").evaluate_all(
        "disks => disks.map(disk => disk.getBoundingClientRect().toJSON())"
    )
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]  # side by side
    method = page.locator(".widget-label", has_text=re.compile("^method$"))
    lists = part.locator(".widget-inline-hbox").filter(has=method).locator("select").all()
    chosen = [
        each.evaluate("s => s.selectedOptions[0].text").replace("\xa0", " ") for each in lists
    ]
    assert chosen == ["TeCoA, seed 0", "Hierarchical, seed 0"]
    for each, box in zip(lists, boxes, strict=True):  # each over its own disk
        place = each.bounding_box() or {}
        assert place["y"] < box["y"] and box["x"] < place["x"] < box["x"] + box["width"]


def test_the_page_says_what_to_run_in_a_browser(opened, explored):
    (explored / "data/models").rename(explored / "data/elsewhere")
    try:
        page = opened("90_explore.ipynb")
        page.wait_for_selector(".missing", timeout=PATIENCE)
    finally:
        (explored / "data/elsewhere").rename(explored / "data/models")
    assert "`make repro` makes what is missing" in page.locator(".missing").first.inner_text()
    keep(page, "missing")
