"""The sheets of emoji under data/source/emoji: 200 nouns in nine drawing styles."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.conftest import ROOT

FOLDER = ROOT / "data/source/emoji"
STYLES = pd.read_csv(FOLDER / "styles.csv", index_col="style")
CLASSES = pd.read_csv(FOLDER / "classes.csv")
GLYPH = 64
COLUMNS = 20


def load_glyphs(style: str) -> np.ndarray:
    """Cut the sheet of `style` into its glyphs: (200, 64, 64, 4) uint8, in the order of the classes."""
    sheet = np.asarray(Image.open(FOLDER / f"{style}.png"))
    assert sheet.shape == (len(CLASSES) // COLUMNS * GLYPH, COLUMNS * GLYPH, 4)
    rows = sheet.reshape(-1, GLYPH, COLUMNS, GLYPH, 4)
    return rows.swapaxes(1, 2).reshape(-1, GLYPH, GLYPH, 4)


def test_there_are_nine_styles_and_200_nouns_and_no_other_sheet():
    assert len(STYLES) == 9
    assert CLASSES.shape == (200, 4)
    assert CLASSES["synset"].is_unique
    assert set(CLASSES["subset"]) == {"seen", "unseen"}
    assert {path.stem for path in FOLDER.glob("*.png")} == set(STYLES.index)


@pytest.mark.parametrize("style", STYLES.index)
def test_a_sheet_draws_as_many_nouns_as_its_row_says_and_leaves_the_others_empty(style):
    glyphs = load_glyphs(style)
    opaque = (glyphs[..., 3] >= 128).sum(axis=(1, 2))
    drawn = glyphs.any(axis=(1, 2, 3))
    assert drawn.sum() == STYLES.loc[style, "drawn"]
    thinnest = CLASSES["name"][np.where(drawn, opaque, GLYPH**2).argmin()]
    assert opaque[drawn].min() >= 300, thinnest


@pytest.mark.parametrize("style", STYLES.index)
def test_a_sheet_is_premultiplied(style):
    glyphs = load_glyphs(style)
    assert (glyphs[..., :3] <= glyphs[..., 3:]).all()


@pytest.mark.parametrize("style", STYLES.index)
def test_a_drawing_fills_its_square_in_one_direction_and_is_centred_in_the_other(style):
    for name, glyph in zip(CLASSES["name"], load_glyphs(style), strict=True):
        if not glyph.any():
            continue
        rows, columns = np.nonzero(glyph[..., 3])
        height = rows.max() - rows.min() + 1
        width = columns.max() - columns.min() + 1
        assert max(height, width) >= GLYPH - 1, name
        assert abs(rows.min() + rows.max() - (GLYPH - 1)) <= 2, name
        assert abs(columns.min() + columns.max() - (GLYPH - 1)) <= 2, name


@pytest.mark.parametrize("style", STYLES.index)
def test_no_style_draws_two_nouns_alike(style):
    glyphs = load_glyphs(style)
    glyphs = glyphs[glyphs.any(axis=(1, 2, 3))]
    assert len(np.unique(glyphs.reshape(len(glyphs), -1), axis=0)) == len(glyphs)


def rank_of_the_same_noun(style: str, reference: str) -> np.ndarray:
    """Count, for each drawing of `style`, the nouns whose drawing in `reference` is nearer to it.

    The distance is the mean square of premultiplied colours at 16 x 16 pixels. (drawn,) integers.
    """
    small = {}
    for name in (style, reference):
        blocks = load_glyphs(name).reshape(-1, 16, 4, 16, 4, 4)
        small[name] = blocks.mean(axis=(2, 4)).reshape(len(CLASSES), -1)
    places = np.flatnonzero(small[style].any(axis=1))
    difference = small[style][places, None] - small[reference][None]
    distance = (difference**2).mean(axis=-1)
    same = distance[np.arange(len(places)), places]
    return (distance < same[:, None]).sum(axis=1)


@pytest.mark.parametrize("style", STYLES.index.drop("noto"))
def test_a_drawing_is_often_among_the_ten_nearest_to_the_same_noun_in_another_style(style):
    """In a sheet out of order, or of wrong glyphs, it is so by chance: for 5 % of the nouns."""
    assert (rank_of_the_same_noun(style, "noto") < 10).mean() > 0.4


def test_the_flat_and_the_shaded_drawings_by_one_hand_agree_in_nearly_every_noun():
    ranks = rank_of_the_same_noun("fluent-emoji", "fluent-emoji-flat")
    assert list(CLASSES["name"][ranks > 0]) == ["cucumber"]  # nearer to the skateboard


def test_a_cricket_is_an_insect_in_every_style_that_draws_it():
    """Two old styles call the bat and ball of the game `cricket`."""
    place = CLASSES.index[CLASSES["name"] == "cricket"].item()
    assert CLASSES["synset"][place] == "cricket.n.01"
    drawing = {style for style in STYLES.index if load_glyphs(style)[place].any()}
    assert drawing == {"openmoji", "noto", "twemoji", "fluent-emoji-flat", "fluent-emoji"}


@pytest.mark.parametrize("style", STYLES.index)
def test_a_style_has_its_terms_beside_it_and_a_credit_of_one_line(style):
    row = STYLES.loc[style]
    terms = (FOLDER / "LICENSES" / f"{style}.txt").read_text(encoding="utf8")
    assert f"Licence: {row['licence']}, https://" in terms
    assert f"{row['package']} {row['version']}\n" in terms
    assert f"{style}.png holds {row['drawn']} of the drawings" in terms
    assert row["credit"].endswith(row["licence"])
    assert len(row["credit"]) <= 60
    if row["licence"] == "Apache 2.0":
        assert "Apache-2.0.txt" in terms
        assert "9. Accepting Warranty" in (FOLDER / "LICENSES/Apache-2.0.txt").read_text(
            encoding="utf8"
        )
    if row["licence"] == "MIT":
        assert "Permission is hereby granted, free of charge" in terms
