"""Figures: what they show, at the page's width, in letters that can be read and colours that can be
told apart.
"""

import itertools
import json

import matplotlib as mpl
import networkx as nx
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from hierclip.config import find_root, load_params
from hierclip.plots import STYLE, save
from hierclip.plots.figures import audit_figure, bars, level_bars, matrices, reading_panels
from hierclip.plots.images import magnified
from hierclip.plots.tree import FONTS, drawable, sunburst
from hierclip.trees import graph_tree
from tests.conftest import notebook_functions
from tests.test_evaluate import record

mpl.use("agg")
PARAMS = load_params(find_root() / "params.yaml")
RECORDS = [record(), record(method="hier")]
# How dichromats see linear RGB: Machado, Oliveira and Fernandes (2009), at full severity.
EYES = {
    "usual": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


@pytest.fixture(autouse=True)
def closed():
    with mpl.rc_context(STYLE):
        yield
    plt.close("all")


def linear(colour: str) -> np.ndarray:
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def seen(colour: str, eyes: str) -> np.ndarray:
    """In CIELAB."""
    white = np.array([0.9505, 1, 1.089])
    x, y, z = np.cbrt(np.maximum(XYZ @ (np.array(EYES[eyes]) @ linear(colour)), 1e-3) / white)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eyes", EYES)
def test_methods_can_be_told_apart_by_every_eye(eyes):
    for a, b in itertools.combinations(PARAMS.plots.palette, 2):
        colours = PARAMS.plots.palette[a], PARAMS.plots.palette[b]
        assert np.linalg.norm(np.subtract(*(seen(colour, eyes) for colour in colours))) > 12, (a, b)


def test_every_method_stands_out_from_white():
    for method, colour in PARAMS.plots.palette.items():
        assert 1.05 / (XYZ[1] @ linear(colour) + 0.05) > 2.2, method


def test_dvcs_chart_has_the_methods_in_the_same_colours():
    chart = json.loads((find_root() / ".dvc/plots/levels.json").read_text(encoding="utf8"))
    scale = chart["spec"]["encoding"]["color"]["scale"]
    assert dict(zip(scale["domain"], scale["range"], strict=True)) == PARAMS.plots.palette


LABELS, PALETTE = PARAMS.labels, PARAMS.plots.palette


def panel_of_bars(width):
    figure, axes = reading_panels(width, 2.6, "accuracy (%)", "tree")
    bars(axes[0], (0, 2), [0.5, 0.1], [(0.4, 0.6), (0.0, 0.2)], label="a method")
    return figure


FIGURES = {
    "levels": lambda width=7.0: level_bars(RECORDS, LABELS, PALETTE, width),
    "matrices": lambda width=7.0: matrices(RECORDS, "roll_up", LABELS, width),
    "bars": panel_of_bars,
    "audit": lambda width=7.0: audit_figure(RECORDS, LABELS, PALETTE, width),
}


@pytest.mark.parametrize("width", [7.0, 3.3])
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_fits_a_page_or_a_column_and_no_letter_is_smaller_than_7_points(name, width):
    figure = FIGURES[name](width)
    figure.canvas.draw()
    assert figure.get_size_inches()[0] == width
    written = [text for text in figure.findobj(Text) if text.get_text().strip()]
    assert written and min(text.get_fontsize() for text in written) >= 7
    drawn = figure.get_tightbbox()
    assert drawn.x0 >= -0.01 and drawn.x1 <= width + 0.01


def test_every_bar_has_its_interval():
    axis = FIGURES["levels"]().axes[0]
    assert len(axis.patches) == sum(len(lines.get_segments()) for lines in axis.collections)


def test_level_bars_are_percent_with_the_records_interval():
    axis = level_bars([record()], LABELS, PALETTE, 7.0).axes[0]
    made, (low, high) = record(), record().intervals["direct"].robust[1][1]
    assert axis.patches[4].get_height() == pytest.approx(100 * made.robust["direct"][1][1])
    assert axis.collections[1].get_segments()[1][:, 1] == pytest.approx([100 * low, 100 * high])


def test_matrices_show_the_clean_row_and_every_attack_and_frame_its_own_level():
    axis = FIGURES["matrices"]().axes[0]
    assert len(axis.texts) == 4 * 3
    assert [patch.get_xy() for patch in axis.patches] == [(0, 1), (1, 2), (2, 3)]


def test_a_check_is_filled_where_it_failed():
    bad = {"value": 0.5, "high": 0.9, "limit": 0.05, "passed": False}
    audit = record().audit.model_dump()
    audit["checks"]["steps"] = bad
    axis = audit_figure([record(audit=audit)], LABELS, PALETTE, 7.0).axes[1]
    filled = {
        line.get_ydata()[0]: line.get_mfc() for line in axis.lines if line.get_marker() == "o"
    }
    assert filled == {0: "white", 1: PALETTE["tecoa"]}


@pytest.mark.parametrize("count", [1, 2])
def test_a_strip_shows_what_is_read_and_in_bold_what_is_wrong(tree, count):
    def classify(images):
        """The last image's leaf is another, once it was made brighter."""
        leaves = torch.eye(5)[[*[0] * (count - 1), int(images[-1].mean() > 0.4)]]
        return [leaves, torch.eye(3)[[0] * count], torch.eye(2)[[0] * count]]

    before, labels = torch.full((count, 3, 8, 8), 0.3), torch.zeros(count, dtype=torch.long)
    attack_strip = notebook_functions("50_attack")["attack_strip"]
    figure = attack_strip(classify, before, before + 0.25, labels, tree, "credit", 7.0)
    bold = {
        text.get_text()
        for axis in figure.axes
        for text in axis.texts
        if text.get_fontweight() == "bold"
    }
    assert bold == {tree.levels[0][1].name}
    assert [axis.get_title() for axis in figure.axes[:count]] == [tree.levels[0][0].name] * count
    assert sum(len(axis.texts) for axis in figure.axes) == count * 2 * 3
    assert figure.axes[4].get_ylabel() == "change, ×2"  # 0.25 of half the range, 0.5


def test_a_change_is_magnified_until_the_largest_of_it_is_black_or_white():
    before = torch.full((2, 3, 4, 4), 0.25)
    after = before.clone()
    after[0, 0, 0, 0], after[1, 2, 3, 3] = 0.0, 0.35
    shown, times = magnified(before, after)
    assert times == 2 and shown[0, 0, 0, 0] == 0 and shown[1, 2, 3, 3] == pytest.approx(0.7)
    assert shown[0, 1].eq(0.5).all()
    same, times = magnified(before, before)
    assert times == 1 and same.eq(0.5).all()


def test_figures_are_kept_as_png_and_pdf_the_same_to_the_byte_each_time(tmp_path, monkeypatch):
    for name, time in (("a", "0"), ("b", "1000000000")):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", time)
        save(FIGURES["levels"](), tmp_path / name, 50)
    for kind in ("png", "pdf"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_every_node_of_a_tree_is_one_wedge_whatever_order_its_leaves_are_in(tree):
    kinds = nx.DiGraph(
        [("big", "car"), ("big", "dog"), ("small", "cat"), ("small", "bus"), ("small", "eagle")]
    )
    other = graph_tree(kinds, "sizes", {leaf.id: leaf.name for leaf in tree.leaves})
    assert other.ids == tree.ids
    for one in (tree, other):
        axis = sunburst(one).axes[0]
        assert len(axis.patches) == len(axis.texts) == sum(one.sizes)


NAMES = ["Straße", "قطة", "two\nlines", "a|b", "x$y$z", r"$\frac$ two", "<script>", "w" * 200]
LACKED = ["\U000e0041", "\U0010fffd", "\x1b[31m"]  # letters that no font has


def test_a_tree_with_odd_names_is_drawn_without_a_warning_and_every_name_can_be_read(tmp_path):
    leaves = {str(k): name for k, name in enumerate(NAMES + LACKED)}
    edges = [("top" if int(leaf) < 4 else "bottom", leaf) for leaf in leaves]
    figure = sunburst(graph_tree(nx.DiGraph(edges), "odd", leaves))
    figure.savefig(tmp_path / "odd.png")  # a lacking glyph is a warning, bad mathematics an error
    drawn = {label.get_text().replace("\n", " ") for label in figure.axes[0].texts}
    assert {"Straße", "قطة", "two lines", "x$y$z", r"$\frac$ two", "w" * 39 + "…"} < drawn
    assert {"[E0041]", "[10FFFD]", "[1B][31m"} < drawn


def test_a_long_name_of_several_words_stays_large_enough_to_be_read():
    leaves = {"a": "very " * 45 + "long dog", "b": "cat", "c": "bus"}
    edges = [("animal", "a"), ("animal", "b"), ("vehicle", "c")]
    texts = sunburst(graph_tree(nx.DiGraph(edges), "long", leaves)).axes[0].texts
    (label,) = (text for text in texts if "very" in text.get_text())
    assert label.get_text().count("\n") == 2 and label.get_size() >= 4


def test_letters_of_a_font_that_is_installed_are_drawn_and_others_stand_by_number():
    assert FONTS[0] == "DejaVu Sans" and drawable("lion, Löwe") == "lion, Löwe"
    has_chinese = any("CJK" in font or "Unicode" in font for font in FONTS)
    assert drawable("猫 1") == ("猫 1" if has_chinese else "[732B] 1")
