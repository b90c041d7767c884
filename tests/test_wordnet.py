import csv
import shutil
from collections import Counter
from itertools import pairwise
from runpy import run_path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
from timm.data.imagenet_info import ImageNetInfo

from hierclip.config import find_root
from hierclip.data import load_dataset
from hierclip.trees import TreeError, synsets_by_name, synsets_by_wnid, wordnet_tree
from hierclip.trees.wordnet import (
    EXCERPT,
    INSTALL,
    NAMES,
    WordNet,
    find_synset,
    full_folder,
    hypernym_graph,
    open_wordnet,
)

CUT = run_path(str(find_root() / "data/source/wordnet.py"))  # what cuts the excerpt
NO_FULL = f"needs {INSTALL}"
SIZES = (200, 87, 48, 24, 12, 5)

# What each emoji shows, by hand: a synset above the pictured sense of the word and above no other
# sense of it, or that sense itself where another one shares all its ancestors (the big cat, the
# motor scooter, the truck's tractor).
PICTURED = {
    "edge_tool.n.01": "axe, knife, razor, pair of scissors",
    "hand_tool.n.01": "hammer, handsaw, screwdriver, wrench",
    "writing_implement.n.01": "crayon, pen, pencil",
    "brush.n.02": "paintbrush, toothbrush",
    "timepiece.n.01": "alarm clock, hourglass, stopwatch, watch",
    "weapon.n.01": "bow, dagger, pistol",
    "magnifier.n.01": "microscope, telescope",
    "medical_instrument.n.01": "stethoscope, syringe",
    "car.n.01": "ambulance, taxi, police car, racing car",
    "truck.n.01": "fire engine, pickup",
    "wheeled_vehicle.n.01": "motorcycle, bicycle, skateboard, steam locomotive",
    "scooter.n.02": "scooter",
    "tractor.n.01": "tractor",
    "stringed_instrument.n.01": "banjo, guitar, violin",
    "keyboard_instrument.n.01": "piano, accordion",
    "percussion_instrument.n.01": "maraca, snare drum",
    "wind_instrument.n.01": "trumpet, flute, saxophone",
    "ball.n.01": "baseball, basketball, football, soccer ball, tennis ball",
    "electronic_equipment.n.01": "radio, television, mobile phone",
    "vessel.n.02": "canoe, ferry, speedboat, passenger ship, sailboat",
    "aircraft.n.01": "airliner, helicopter",
    "bag.n.01": "backpack",
    "vessel.n.03": "bathtub, bucket",
    "cutlery.n.02": "spoon",
    "furniture.n.01": "chair, sofa, bed",
    "lamp.n.01": "candle, flashlight, lantern, light bulb",
    "garment.n.01": "bikini, T-shirt, kimono, lab coat, necktie",
    "trouser.n.01": "pair of jeans, pair of shorts",
    "headdress.n.01": "baseball cap, top hat, helmet",
    "footwear.n.02": "running shoe, sandal, boot",
    "building.n.01": "church, hospital, hotel, mosque, office building, synagogue",
    "dwelling.n.01": "house",
    "carnivore.n.01": "dog, fox, wolf, lion, tiger, otter, skunk, bear, giant panda",
    "cat.n.01": "cat",
    "even-toed_ungulate.n.01": "bison, cow, goat, giraffe, dromedary, Bactrian camel, hippopotamus, pig",
    "odd-toed_ungulate.n.01": "horse, zebra, rhinoceros",
    "primate.n.02": "gorilla, orangutan, monkey",
    "rodent.n.01": "beaver, chipmunk, mouse, rat",
    "proboscidean.n.01": "elephant",
    "marsupial.n.01": "kangaroo, koala",
    "bird.n.01": "duck, flamingo, penguin, swan, eagle, owl, peacock, turkey, parrot",
    "reptile.n.01": "crocodile, lizard, snake, tyrannosaur, turtle",
    "fish.n.01": "blowfish, shark",
    "insect.n.01": "ant, butterfly, cricket, honeybee, ladybug, mosquito",
    "crustacean.n.01": "crab, lobster, shrimp",
    "arachnid.n.01": "scorpion, spider",
    "mollusk.n.01": "octopus, squid, snail",
    "edible_fruit.n.01": "apple, avocado, banana, cherry, grape, kiwi, lemon, peach, pineapple, strawberry, watermelon",
    "vegetable.n.01": "bell pepper, chili pepper, eggplant, tomato, broccoli, carrot, cucumber, onion",
    "baked_goods.n.01": "bagel, croissant, French bread, pretzel, cookie, doughnut, pancake, waffle",
    "dish.n.02": "burrito, hamburger, hot dog, pizza, salad, spaghetti, sushi, taco",
    "beverage.n.01": "beer, coffee, milk, wine",
    "vascular_plant.n.01": "daisy, sunflower, hyacinth, tulip, hibiscus, rose, cactus, palm",
}


@pytest.fixture(scope="module")
def project(request):
    return request.config.rootpath


@pytest.fixture(scope="module")
def dataset(params, project):
    return load_dataset(params.data.pretraining, project)


@pytest.fixture(scope="module")
def names(dataset):
    return {leaf.id: leaf.name for leaf in dataset.leaves}


@pytest.fixture(scope="module")
def excerpt():
    return WordNet(EXCERPT)


@pytest.fixture(scope="module")
def uncut(project, tmp_path_factory):
    """A small WordNet that does not look like an excerpt: the committed one without its words for
    synsets.
    """
    folder = tmp_path_factory.mktemp("uncut")
    shutil.copytree(EXCERPT, folder, dirs_exist_ok=True)
    (folder / NAMES).unlink()
    return WordNet(folder)


def zipped(project, corpora, folder="wordnet", change=lambda name, data: data):
    """Write what nltk.download leaves: corpora/wordnet.zip, here of the excerpt; return it."""
    corpora.mkdir(parents=True, exist_ok=True)
    with ZipFile(corpora / "wordnet.zip", "w", ZIP_DEFLATED) as archive:
        for file in sorted(EXCERPT.iterdir()):
            if file.name != NAMES:
                archive.writestr(f"{folder}/{file.name}", change(file.name, file.read_bytes()))
    return corpora / "wordnet.zip"


@pytest.fixture
def corpora(tmp_path, monkeypatch):
    """Where NLTK's downloads go, the only place of a full WordNet on this machine."""
    monkeypatch.setattr("nltk.data.path", [str(tmp_path / "none"), str(tmp_path)])
    monkeypatch.setattr("hierclip.trees.wordnet.DEBIAN", tmp_path / "none")
    return tmp_path / "corpora"


@pytest.fixture(scope="module")
def tree(names, params, excerpt):
    return wordnet_tree("wordnet", names, params.trees.widths, excerpt)


@pytest.fixture(scope="module")
def full():
    folder = full_folder()
    return WordNet(folder) if folder else pytest.skip(NO_FULL)


def hypernyms(synset):
    return {parent.name() for parent in synset.hypernyms() + synset.instance_hypernyms()}


def test_the_tree_has_the_levels_that_the_parameters_ask_for(tree, params):
    assert tree.sizes == SIZES
    assert all(
        size <= width for size, width in zip(tree.sizes[1:], params.trees.widths, strict=True)
    )


def test_the_tree_has_the_datasets_leaves_in_the_datasets_order(tree, dataset):
    assert [(node.id, node.name) for node in tree.leaves] == [
        (leaf.id, leaf.name) for leaf in dataset.leaves
    ]


def test_a_level_never_says_the_same_word_twice(tree):
    for level in tree.levels:
        assert not [
            name for name, count in Counter(node.name for node in level).items() if count > 1
        ]


def test_every_leaf_goes_by_one_of_its_synsets_lemmas(names, excerpt):
    for synset, name in names.items():
        lemmas = [lemma.replace("_", " ") for lemma in find_synset(excerpt, synset).lemma_names()]
        assert name in lemmas or name in [f"pair of {lemma.removesuffix('s')}s" for lemma in lemmas]


@pytest.mark.parametrize("identifier", ["unicorn.n.77", "nosuchword.n.01", "dog", ""])
def test_an_unknown_synset_is_refused_in_one_line(excerpt, identifier):
    with pytest.raises(TreeError) as caught:
        find_synset(excerpt, identifier)
    assert repr(identifier) in str(caught.value) and "\n" not in str(caught.value)


def test_a_synset_by_another_of_its_names_is_refused(excerpt):
    with pytest.raises(TreeError, match=r"^synset auto.n.01 goes by the name car.n.01; use that$"):
        find_synset(excerpt, "auto.n.01")


def test_a_leaf_above_another_leaf_is_put_beside_it(excerpt):
    leaves = {"feline.n.01": "cat", "tiger.n.02": "tiger", "dog.n.01": "dog", "ax.n.01": "axe"}
    tree = wordnet_tree("t", leaves, [2], excerpt)
    assert set(tree.ids) == set(leaves)
    assert [node.id for node in tree.levels[1]] == ["carnivore.n.01", "ax.n.01"]


def test_every_leaf_is_the_sense_that_its_emoji_shows(names, excerpt):
    pictured = [(name, above) for above, group in PICTURED.items() for name in group.split(", ")]
    assert sorted(name for name, _ in pictured) == sorted(names.values())
    lines = {
        name: set(hypernym_graph([find_synset(excerpt, synset)])) for synset, name in names.items()
    }
    assert not [(name, above) for name, above in pictured if above not in lines[name]]


def test_the_ram_of_an_excerpt_is_the_sheep_and_not_the_memory_chip(tmp_path, full):
    CUT["write_excerpt"](full_folder(), tmp_path, ["ram.n.05"])
    assert hypernyms(find_synset(WordNet(tmp_path), "ram.n.05")) == {"sheep.n.01"}


def test_150_leaves_are_seen_and_50_unseen(dataset):
    assert Counter(leaf.subset for leaf in dataset.leaves) == {"seen": 150, "unseen": 50}


def test_every_large_superclass_has_its_share_of_unseen_leaves(tree, dataset):
    unseen = np.array([leaf.subset == "unseen" for leaf in dataset.leaves])
    for l in range(3, tree.max_level + 1):
        for k, node in enumerate(tree.levels[l]):
            below = tree.paths[:, l] == k
            assert below.sum() < 4 or 0.1 <= unseen[below].mean() <= 0.45, node.name


def test_the_excerpt_and_the_full_wordnet_give_one_tree(tree, names, params, full):
    assert wordnet_tree("wordnet", names, params.trees.widths, full).hash == tree.hash


def test_every_synset_of_the_excerpt_is_as_in_the_full_wordnet(excerpt, full):
    for synset in excerpt.all_synsets("n"):
        gloss = synset.definition()
        original = full.synset_from_pos_and_offset("n", int(gloss.removeprefix("n")))
        assert gloss == f"n{original.offset():08d}"
        assert (synset.name(), synset.lemma_names()) == (original.name(), original.lemma_names())
        assert hypernyms(synset) == hypernyms(original)


def test_the_committed_excerpt_is_what_the_full_wordnet_gives(tmp_path, project, full):
    CUT["write_excerpt"](full_folder(), tmp_path, CUT["wanted_synsets"](full))
    committed = {
        file.name: file.read_bytes()
        for file in EXCERPT.iterdir()
        if file.name not in ("LICENSE", NAMES)
    }
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == committed


def test_the_excerpt_knows_that_it_is_one(excerpt, uncut):
    assert excerpt.is_excerpt and not uncut.is_excerpt


def test_a_name_with_one_sense_needs_no_choice(uncut):
    assert synsets_by_name(["tennis ball", "Soccer_ball", "axes"], {"axes": "ax.n.01"}, uncut) == {
        "tennis ball": "tennis_ball.n.01",
        "Soccer_ball": "soccer_ball.n.01",
        "axes": "ax.n.01",
    }


def test_all_unclear_names_are_listed_with_their_senses(uncut):
    with pytest.raises(TreeError) as caught:
        synsets_by_name(
            ["tennis ball", "crane", "qwerty", "dog", "ram"], {"dog": "dog.n.01"}, uncut
        )
    head, crane, qwerty, ram = str(caught.value).splitlines()
    assert head.startswith("3 of 4 class names need a synset; choose as in chosen={")
    assert (
        crane.startswith("  crane: ") and crane.count(".n.") == len(uncut.synsets("crane", "n")) > 1
    )
    assert all(
        f"{sense.name()} ({sense.definition()})" in crane for sense in uncut.synsets("crane", "n")
    )
    assert qwerty == "  qwerty: no noun of WordNet" and ram.startswith("  ram: ")


def test_two_leaves_of_one_synset_are_refused(excerpt):
    synsets = dict.fromkeys(["dog", "hound"], "dog.n.01")
    with pytest.raises(TreeError, match="tree t: one synset for dog, hound; each needs its own"):
        wordnet_tree("t", {"dog": "dog", "hound": "hound"}, None, excerpt, synsets=synsets)


def test_the_excerpt_looks_no_names_up(excerpt):
    assert synsets_by_name(["cat"], {"cat": "cat.n.01"}, excerpt) == {"cat": "cat.n.01"}
    with pytest.raises(
        TreeError, match="no synset chosen for tennis ball, dog; .* full WordNet 3.0: nltk.download"
    ):
        synsets_by_name(["tennis ball", "cat", "dog"], {"cat": "cat.n.01"}, excerpt)


def test_a_synset_that_is_no_noun_is_refused(full):
    with pytest.raises(TreeError, match=r"WordNet has no synset 'run.v.01' of a noun"):
        find_synset(full, "run.v.01")


def test_the_names_of_a_full_wordnet_say_what_their_senses_mean(full):
    assert (
        synsets_by_name(["poodle", "golden retriever"], {}, full)["golden retriever"]
        == "golden_retriever.n.01"
    )
    with pytest.raises(TreeError, match=r"crane.n.04 \(lifts and moves heavy objects"):
        synsets_by_name(["crane"], {}, full)


def test_a_wordnet_id_finds_its_synset_in_the_order_given(excerpt):
    found = synsets_by_wnid(["n03126707", "n02084071"], excerpt)
    assert list(found.items()) == [("n03126707", "crane.n.04"), ("n02084071", "dog.n.01")]


def test_outside_an_excerpt_a_wordnet_id_is_a_place_in_the_file(uncut):
    dog = f"n{find_synset(uncut, 'dog.n.01').offset():08d}"
    assert synsets_by_wnid([dog], uncut) == {dog: "dog.n.01"}


@pytest.mark.parametrize("kind", ["excerpt", "uncut"])
def test_unknown_and_badly_written_wordnet_ids_are_listed(kind, request):
    wordnet = request.getfixturevalue(kind)
    with pytest.raises(TreeError, match="no synset in WordNet: n00000007, n99999999; "):
        synsets_by_wnid(["n00000007", "n99999999"], wordnet)
    with pytest.raises(
        TreeError, match="no synset in WordNet: dog, n1, .*v02084071; ids are n and eight digits"
    ):
        synsets_by_wnid(["dog", "n1", "n02084071", "v02084071"], wordnet)


def imagenet() -> dict[str, str]:
    """ImageNet-1k's ids, each with the first of its synset's words."""
    info = ImageNetInfo()
    return {wnid: info.label_name_to_description(wnid).split(",")[0] for wnid in info.label_names()}


def tiny_imagenet(project) -> dict[str, str]:
    with (project / "data/source/tiny-imagenet.csv").open(encoding="utf8") as file:
        return {row["wnid"]: row["name"] for row in csv.DictReader(file)}


def tree_of_wnids(names, widths, wordnet):
    return wordnet_tree(
        "t",
        {s: names[wnid] for wnid, s in synsets_by_wnid(names, wordnet).items()},
        widths,
        wordnet,
    )


def test_imagenets_ids_become_a_tree(excerpt):
    assert tree_of_wnids(imagenet(), [400, 150, 60, 25, 9], excerpt).sizes == (
        1000,
        400,
        127,
        56,
        18,
        9,
    )


def test_leaves_may_go_by_their_wordnet_ids(excerpt):
    names = dict(list(imagenet().items())[::20])
    by_synset, by_id = (
        tree_of_wnids(names, [20, 9, 4], excerpt),
        wordnet_tree("t", names, [20, 9, 4], excerpt),
    )
    synset_of = synsets_by_wnid(names, excerpt)
    assert sorted(by_id.ids) == sorted(names) and by_id.sizes == by_synset.sizes
    rows = [by_synset.ids.index(synset_of[wnid]) for wnid in by_id.ids]
    for level in range(1, by_id.max_level + 1):
        for row, other in enumerate(rows):
            a, b = (
                by_id.levels[level][by_id.paths[row, level]],
                by_synset.levels[level][by_synset.paths[other, level]],
            )
            assert a.name == b.name


def test_tiny_imagenets_ids_become_a_tree(excerpt, project):
    names = tiny_imagenet(project)
    assert len(set(names.values())) == 200
    assert tree_of_wnids(names, [90, 48, 24, 12, 6], excerpt).sizes == (200, 89, 45, 18, 12, 5)


def test_no_class_of_imagenet_stands_above_another(excerpt, project):
    for names in (imagenet(), tiny_imagenet(project)):
        synsets = synsets_by_wnid(names, excerpt).values()
        graph = hypernym_graph([find_synset(excerpt, synset) for synset in synsets])
        assert not [synset for synset in synsets if graph.out_degree(synset)]


def test_the_excerpt_and_the_full_wordnet_give_imagenet_one_tree(excerpt, full, project):
    for names, widths in (
        (imagenet(), [400, 150, 60, 25, 9]),
        (tiny_imagenet(project), [90, 48, 24, 12, 6]),
    ):
        assert tree_of_wnids(names, widths, excerpt).hash == tree_of_wnids(names, widths, full).hash


def test_outside_a_project_the_excerpt_of_the_checkout_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HIERCLIP_ROOT", raising=False)
    made = wordnet_tree(
        "zoo", {"n02129165": "lion", "n02129604": "tiger", "n02012849": "crane"}, [2]
    )
    assert made.sizes == (3, 2)


def test_the_zip_file_of_a_download_is_read_as_the_folder_that_it_holds(
    project, corpora, uncut, names, params
):
    file = zipped(project, corpora)
    assert full_folder() == file
    made = WordNet(file)
    assert not made.is_excerpt and made.get_version() == "3.0"
    assert {s.name(): hypernyms(s) for s in made.all_synsets("n")} == {
        s.name(): hypernyms(s) for s in uncut.all_synsets("n")
    }
    widths = params.trees.widths
    assert wordnet_tree("wordnet", names, widths, made).hash == (
        wordnet_tree("wordnet", names, widths, uncut).hash
    )
    assert synsets_by_name(["tennis ball"], {}, made) == {"tennis ball": "tennis_ball.n.01"}


def test_an_excerpt_is_cut_out_of_a_zip_file_too(project, corpora, tmp_path):
    for place, folder in ((EXCERPT, "one"), (zipped(project, corpora), "two")):
        CUT["write_excerpt"](place, tmp_path / folder, ["dog.n.01"])
    one, two = (sorted((tmp_path / folder).iterdir()) for folder in ("one", "two"))
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]


def test_the_folder_is_taken_before_the_zip_file_beside_it(project, corpora):
    zipped(project, corpora)
    shutil.copytree(EXCERPT, corpora / "wordnet")
    assert full_folder() == corpora / "wordnet"


@pytest.mark.parametrize("folder", ["wordnet31", "wordnet2021", "omw-1.4/eng", "wordnet_ic"])
def test_other_corpora_are_not_taken_for_wordnet(folder, project, corpora):
    shutil.copytree(EXCERPT, corpora / folder)
    zipped(project, corpora).rename(corpora / f"{folder.split('/')[0]}.zip")
    assert full_folder() is None


@pytest.mark.parametrize("header", ["WordNet 3.1 Copyright 2011", "Wordnet 2021 Copyright", ""])
def test_another_version_of_wordnet_is_passed_over(header, project, corpora):
    def change(name, data):
        return data.replace(b"WordNet 3.0 Copyright 2006", header.encode())

    zipped(project, corpora, change=change)
    shutil.copytree(EXCERPT, corpora / "wordnet")
    data = corpora / "wordnet/data.noun"
    data.write_bytes(change("", data.read_bytes()))
    assert full_folder() is None


def cut_short(data: bytes) -> bytes:
    return data[: len(data) // 2]


def with_a_byte_changed(data: bytes) -> bytes:
    """Change the middle of data.noun, the largest file, compressed or not."""
    place = data.index(b"wordnet/data.noun") + 2000
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


@pytest.mark.parametrize("damage", [cut_short, with_a_byte_changed, lambda data: b""])
def test_a_damaged_zip_file_is_one_line(damage, project, corpora):
    file = zipped(project, corpora)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(TreeError) as caught:
        open_wordnet()
    assert str(caught.value).startswith(f"{file}: no zip file of WordNet, or a damaged one (")
    assert "\n" not in str(caught.value)


def test_a_zip_file_of_something_else_is_one_line(project, corpora):
    zipped(project, corpora, folder="words")
    with pytest.raises(TreeError, match=r"wordnet.zip: no zip file of .*data.noun.*download it"):
        open_wordnet()


def test_without_widths_each_level_has_half_of_the_one_before_at_most(names, excerpt):
    for count in (200, 50, 12):
        made = wordnet_tree("wordnet", dict(list(names.items())[:count]), None, excerpt)
        assert made.sizes[0] == count and made.max_level > 0
        assert all(
            above <= max(below // 2, made.sizes[-1]) for below, above in pairwise(made.sizes)
        )


def test_classes_that_nothing_groups_get_no_levels(excerpt):
    assert wordnet_tree("two", {"dog.n.01": "dog", "car.n.01": "car"}, None, excerpt).sizes == (2,)
