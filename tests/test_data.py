import itertools
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hierclip.config import STYLES
from hierclip.data import DATASETS, SPLITS, DataError, ImageSet, emoji as drawings, load_dataset
from hierclip.data.dataset import class_indices, step_seed
from hierclip.data.emoji import FIXED, SOURCE, draw
from hierclip.data.tasks import (
    TREES,
    ZERO_SHOT,
    load_task,
    load_zero_shot,
    zero_shot_file,
)
from hierclip.errors import HierclipError
from hierclip.trees import load_tree, save_tree
from tests.conftest import ROOT, notebook_functions, prepare

SOME = torch.tensor([3, 50, 120])
CLASSES = pd.read_csv(ROOT / SOURCE / "classes.csv")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def opened(params, folder, **changes):
    """Open the emoji with some entries of `data` changed, in a project that has the sheets."""
    if not (folder / SOURCE).exists():
        (folder / SOURCE).parent.mkdir(parents=True)
        (folder / SOURCE).symlink_to(ROOT / SOURCE)
    counts = {"val_per_drawing": 1, "test_per_drawing": 2}
    name = "-".join([*changes["styles"], str(changes["subset"])])
    data = params.data.model_copy(update=counts | changes)
    return load_dataset(data, folder, f"data/{name}.safetensors")


@pytest.mark.parametrize("column", ["emoji", "synset", "name"])
def test_no_two_leaves_share_their(column):
    assert CLASSES[column].nunique() == len(CLASSES) == 200


def test_leaves_are_the_rows_of_the_table(emoji):
    table = CLASSES[["synset", "name", "subset"]].set_axis(["id", "name", "subset"], axis=1)
    assert pd.DataFrame(emoji.leaves).equals(table)


def test_the_styles_are_those_of_the_table():
    assert list(pd.read_csv(ROOT / SOURCE / "styles.csv")["style"]) == list(STYLES)


@pytest.mark.parametrize("subset", ["seen", "unseen", None])
def test_nouns_that_no_style_draws_are_no_classes(params, tmp_path, subset):
    """By the column `drawn` of the table, and the union of two styles' drawings."""
    drawn = pd.read_csv(ROOT / SOURCE / "styles.csv", index_col="style")["drawn"]
    old = {}
    for styles in (("fxemoji",), ("emojione-v1",), ("fxemoji", "emojione-v1")):
        dataset = opened(params, tmp_path, styles=styles, subset=subset)
        old[styles] = {leaf.id for leaf in dataset.leaves}
        assert all(leaf.subset == subset for leaf in dataset.leaves if subset)
    (one, other), both = list(old.values())[:2], old["fxemoji", "emojione-v1"]
    assert both == one | other and both > one
    if subset is None:
        assert (len(one), len(other)) == (drawn["fxemoji"], drawn["emojione-v1"])
    everything = opened(params, tmp_path, styles=STYLES, subset=subset)
    assert len(everything.leaves) == {"seen": 150, "unseen": 50, None: 200}[subset]


def test_a_batch_draws_the_styles_of_a_noun_alike_and_no_other(params, tmp_path, monkeypatch):
    """Half of the images of a noun that both styles draw are of each; of one that only the first
    draws, all. Nouns are as frequent as each other.
    """
    dataset = opened(params, tmp_path, styles=("openmoji", "fxemoji"), subset="seen")
    seen = []
    monkeypatch.setattr(drawings, "draw", lambda glyphs, *_: seen.append(glyphs) or glyphs[:, :3])
    rows = CLASSES.index[CLASSES["subset"] == "seen"]
    drawn = dataset.sheets[1].flatten(1).any(1)[rows]
    places = torch.stack([drawn.nonzero()[0, 0], (~drawn).nonzero()[0, 0]])
    assert [leaf.id for leaf in dataset.leaves] == list(CLASSES["synset"][rows])
    _, labels = dataset.batch(places, 4000, seed=0, step=0)
    share = (labels == 0).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.03)  # 4 standard deviations
    of = [(seen[0] == sheet[rows[places[labels]]]).flatten(1).all(1) for sheet in dataset.sheets]
    assert torch.equal(of[0], ~of[1])
    assert of[0][labels == 1].all()
    assert of[0][labels == 0].float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_the_fixed_images_of_a_drawing_are_the_same_in_every_set_that_has_it(params, tmp_path):
    """Sets of one style and subset have the images of a set of more styles and all nouns."""
    styles = ("fxemoji", "noto")
    whole = opened(params, tmp_path, styles=styles, subset=None, test_per_drawing=3)
    prepare(whole)
    for style, subset in itertools.product(styles, ("seen", "unseen")):
        part = opened(params, tmp_path, styles=(style,), subset=subset, val_per_drawing=2)
        prepare(part)
        for split, copies in (("val", 1), ("test", 2)):
            images, more = part.images(split), whole.images(split)
            of_style = whole.tensors[f"{split}.styles"] == STYLES.index(style)
            for k in (0, len(part.leaves) // 2, len(part.leaves) - 1):
                (place,) = class_indices(whole, (part.leaves[k].id,))
                found = images[images.labels == k].read()[:copies]
                expected = more[(more.labels == place) & of_style].read()[:copies]
                assert len(found) == copies and torch.equal(found, expected)
                assert len(found.unique(dim=0)) == copies
    val, test = (whole.images(split).read() for split in SPLITS)
    assert not (val[:, None, 0, 0] == test[None, :, 0, 0]).all(-1).any()


def test_a_subset_of_a_prepared_files_styles_has_their_images(params, tmp_path):
    """Studies leave out a style without preparing anything again."""
    whole = opened(params, tmp_path, styles=("noto", "fxemoji"), subset="seen")
    prepare(whole)
    own = opened(params, tmp_path, styles=("fxemoji",), subset="seen")
    prepare(own)
    part = load_dataset(own.params, tmp_path, whole.prepared.relative_to(tmp_path))
    for split in SPLITS:
        assert torch.equal(part.images(split).labels, own.images(split).labels)
        assert torch.equal(part.images(split).read(), own.images(split).read())


@pytest.mark.parametrize(
    ("changes", "lacks"),
    [
        ({"styles": ("openmoji", "noto", "fxemoji")}, r"234 drawings, such as the \w+ of noto"),
        ({"subset": None}, r"50 drawings, such as the \w+ of openmoji"),
    ],
)
def test_a_prepared_file_without_a_drawing_is_refused_by_its_name(params, tmp_path, changes, lacks):
    """The parameters were changed by hand, and the data not prepared again."""
    small = opened(params, tmp_path, styles=("openmoji",), subset="seen")
    prepare(small)
    dataset = load_dataset(small.params.model_copy(update=changes), tmp_path)
    dataset.prepared = small.prepared
    with pytest.raises(DataError, match=f"lacks {lacks}; run `dvc repro data` again"):
        dataset.images("val")


def test_a_prepared_file_of_other_drawings_is_refused(params, tmp_path):
    shutil.copytree(ROOT / SOURCE, tmp_path / SOURCE)
    small = opened(params, tmp_path, styles=("openmoji",), subset="seen")
    prepare(small)
    with Image.open(tmp_path / SOURCE / "openmoji.png") as sheet:
        sheet.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / SOURCE / "openmoji.png")
    again = load_dataset(small.params, tmp_path, small.prepared)
    with pytest.raises(DataError, match=f"was made from another {SOURCE}/openmoji.png; run"):
        again.images("val")


def test_a_credit_names_every_style_and_no_other(params, tmp_path):
    credit = opened(params, tmp_path, styles=("noto", "fxemoji"), subset="seen").credit
    assert credit == ("Noto Emoji, Google, Apache 2.0; FxEmojis, Mozilla Foundation, CC BY 4.0")


@pytest.fixture(scope="module")
def supers(params, emoji, emoji_forest, tmp_path_factory):
    """A project with the unseen nouns as superclasses of level 2, and as themselves."""
    folder = tmp_path_factory.mktemp("superclasses")
    styles = {"styles": ("noto", "fxemoji"), "subset": "unseen"}
    counts = {"val_per_drawing": 1, "test_per_drawing": 2}
    data = params.data.model_copy(update=styles | counts | {"level": 2})
    entries = {}
    for name, level in {"above": 2, "nouns": 0}.items():
        entry = params.zero_shot["superclasses"]
        update = {"data": data.model_copy(update={"level": level})}
        entries[name] = entry.model_copy(update=update)
    params = params.model_copy(update={"zero_shot": entries})
    (folder / SOURCE).parent.mkdir(parents=True)
    (folder / SOURCE).symlink_to(ROOT / SOURCE)
    save_tree(emoji_forest[0], folder / TREES / "wordnet.json")
    for name, entry in entries.items():
        prepare(load_dataset(entry.data, folder, zero_shot_file(name)))
    return folder, params


def test_superclasses_are_the_ancestors_of_the_nouns_on_the_same_images(supers, emoji_forest):
    folder, params = supers
    above, nouns = (load_zero_shot(folder, params, name) for name in ("above", "nouns"))
    whole = emoji_forest[0]
    level = {whole.ids[k]: whole.levels[2][node] for k, node in enumerate(whole.paths[:, 2])}
    for split in SPLITS:
        images, plain = above.images(split), nouns.images(split)
        assert torch.equal(images.read(), plain.read())
        for label, noun in zip(images.labels, plain.labels, strict=True):
            assert above.leaves[label].id == level[nouns.leaves[noun].id].id
            assert above.leaves[label].name == level[nouns.leaves[noun].id].name
    assert {leaf.id for leaf in above.leaves} == {level[leaf.id].id for leaf in nouns.leaves}
    assert len(above.leaves) < len(nouns.leaves)
    assert above.credit == nouns.credit and above.name == "emoji"


def test_the_tree_of_superclasses_is_what_is_above_their_level(supers, emoji, emoji_forest):
    """As notebook 20 makes it: the paths of the nouns from the level up."""
    folder, params = supers
    source = notebook_source("20_trees", "part, level = tree.restrict(ids)")
    names = notebook_functions("20_trees")
    names |= {"tree": emoji_forest[0], "params": params, "root": folder}
    exec(source, names)
    for name, tree in names["zero_shot"].items():
        save_tree(tree, folder / ZERO_SHOT / f"trees/{name}.json")
    part, nouns = (load_tree(folder / ZERO_SHOT / f"trees/{n}.json") for n in ("above", "nouns"))
    assert part.levels == nouns.levels[2:] and part.sizes == nouns.sizes[2:]
    first = np.array([np.flatnonzero(nouns.paths[:, 2] == k)[0] for k in range(part.sizes[0])])
    assert np.array_equal(part.paths, nouns.paths[first, 2:])
    task = load_task(folder, params, "above")
    assert task.trees[0].ids == tuple(leaf.id for leaf in task.dataset.leaves)
    assert not task.thorough


def notebook_source(name: str, words: str) -> str:
    """Return the one cell of a notebook in which these words are."""
    import nbformat

    cells = nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4).cells
    (source,) = (cell.source for cell in cells if words in cell.source)
    return source


def test_pictures_are_drawn_alike_from_a_generator_alike(emoji):
    glyphs = emoji.sheets[0, SOME]
    one, same, other = (draw(glyphs, 32, generator(seed)) for seed in (1, 1, 2))
    assert one.shape == (3, 3, 32, 32) and one.min() >= 0 and one.max() <= 1
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_picture_shows_its_glyph(emoji, monkeypatch):
    glyphs = emoji.sheets[0, SOME]
    for name in ("ROTATION", "SHIFT", "SHEAR", "COLOUR", "NOISE"):
        monkeypatch.setattr(drawings, name, 0)
    monkeypatch.setattr(drawings, "SCALE", (1, 1))
    image = draw(glyphs, 40, generator())
    opaque = (glyphs[:, 3:] == 255).expand_as(image)
    colours = glyphs[:, :3].float() / 255
    torch.testing.assert_close(image[opaque], colours[opaque])


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
    assert not torch.equal(emoji.batch(SOME, 16, 1, 5)[0], emoji.batch(SOME, 16, seed, step)[0])


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
    assert torch.equal(test.labels, torch.arange(200).repeat(2))
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
    other = params.data.model_copy(update={"name": "openmoji"})
    with pytest.raises(
        DataError,
        match=f"no dataset 'openmoji'; known are {', '.join(DATASETS)}; data.layout: folder takes",
    ):
        load_dataset(other, root)


def test_a_missing_prepared_file_says_what_to_run(emoji):
    bare = load_dataset(emoji.params, emoji.prepared.parents[2])
    bare.prepared = bare.prepared.with_name("nothing.safetensors")
    with pytest.raises(HierclipError, match="nothing.safetensors is missing; run .*10_data"):
        bare.images("val")
