from collections import Counter

import numpy as np
import pytest

from hierclip.data import OpenMoji
from hierclip.trees import TreeError, wordnet_tree
from hierclip.trees.excerpt import write_excerpt
from hierclip.trees.wordnet import EXCERPT, WordNet, find_synset, full_folder, hypernym_graph

NO_FULL = "needs a full WordNet 3.0: nltk.download('wordnet'), or Debian's wordnet-base and wordnet-sense-index"
SIZES = (200, 87, 48, 24, 12, 5)

# What each emoji shows, by hand: a synset above the pictured sense of the word and above no other sense of it,
# or that sense itself where another one shares all its ancestors (the big cat, the motor scooter, the truck's tractor).
PICTURED = {
    "edge_tool.n.01": "axe, knife, razor, scissors",
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
    "trouser.n.01": "jean, shorts",
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
    return OpenMoji(params.data, project)


@pytest.fixture(scope="module")
def names(dataset):
    return {leaf.id: leaf.name for leaf in dataset.leaves}


@pytest.fixture(scope="module")
def excerpt(project):
    return WordNet(project / EXCERPT)


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
    assert all(size <= width for size, width in zip(tree.sizes[1:], params.trees.widths, strict=True))


def test_the_tree_has_the_datasets_leaves_in_the_datasets_order(tree, dataset):
    assert [(node.id, node.name) for node in tree.leaves] == [(leaf.id, leaf.name) for leaf in dataset.leaves]


def test_a_level_never_says_the_same_word_twice(tree):
    for level in tree.levels:
        assert not [name for name, count in Counter(node.name for node in level).items() if count > 1]


def test_every_leaf_goes_by_one_of_its_synsets_lemmas(names, excerpt):
    for synset, name in names.items():
        assert name in [lemma.replace("_", " ") for lemma in find_synset(excerpt, synset).lemma_names()]


@pytest.mark.parametrize("identifier", ["unicorn.n.77", "nosuchword.n.01", "dog", ""])
def test_an_unknown_synset_is_refused_in_one_line(excerpt, identifier):
    with pytest.raises(TreeError) as caught:
        find_synset(excerpt, identifier)
    assert repr(identifier) in str(caught.value) and "\n" not in str(caught.value)


def test_a_synset_by_another_of_its_names_is_refused(excerpt):
    with pytest.raises(TreeError, match=r"^synset auto.n.01 goes by the name car.n.01; use that$"):
        find_synset(excerpt, "auto.n.01")


def test_a_leaf_above_another_leaf_is_refused(excerpt):
    with pytest.raises(TreeError, match=r"leaf feline.n.01 stands above another leaf"):
        wordnet_tree("t", {"feline.n.01": "cat", "tiger.n.02": "tiger", "ax.n.01": "axe"}, [2], excerpt)


def test_every_leaf_is_the_sense_that_its_emoji_shows(names, excerpt):
    pictured = [(name, above) for above, group in PICTURED.items() for name in group.split(", ")]
    assert sorted(name for name, _ in pictured) == sorted(names.values())
    lines = {name: set(hypernym_graph([find_synset(excerpt, synset)])) for synset, name in names.items()}
    assert not [(name, above) for name, above in pictured if above not in lines[name]]


def test_the_ram_of_an_excerpt_is_the_sheep_and_not_the_memory_chip(tmp_path, full):
    write_excerpt(full_folder(), tmp_path, ["ram.n.05"])
    assert hypernyms(find_synset(WordNet(tmp_path), "ram.n.05")) == {"sheep.n.01"}


def test_150_leaves_are_tuned_and_50_held_out(dataset):
    assert Counter(leaf.split for leaf in dataset.leaves) == {"tuned": 150, "held_out": 50}


def test_every_large_superclass_has_its_share_of_held_out_leaves(tree, dataset):
    held_out = np.array([leaf.split == "held_out" for leaf in dataset.leaves])
    for l in range(3, tree.top + 1):
        for k, node in enumerate(tree.levels[l]):
            below = tree.paths[:, l] == k
            assert below.sum() < 4 or 0.1 <= held_out[below].mean() <= 0.45, node.name


def test_the_excerpt_and_the_full_wordnet_give_one_tree(tree, names, params, full):
    assert wordnet_tree("wordnet", names, params.trees.widths, full).hash == tree.hash


def test_every_synset_of_the_excerpt_is_as_in_the_full_wordnet(excerpt, full):
    for synset in excerpt.all_synsets("n"):
        gloss = synset.definition()
        original = full.synset_from_pos_and_offset("n", int(gloss.removeprefix("n")))
        assert gloss == f"n{original.offset():08d}"
        assert (synset.name(), synset.lemma_names()) == (original.name(), original.lemma_names())
        assert hypernyms(synset) == hypernyms(original)


def test_the_committed_excerpt_is_what_the_full_wordnet_gives(tmp_path, names, project):
    folder = full_folder() or pytest.skip(NO_FULL)
    write_excerpt(folder, tmp_path, names)
    committed = {file.name: file.read_bytes() for file in (project / EXCERPT).iterdir() if file.name != "LICENSE"}
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == committed
