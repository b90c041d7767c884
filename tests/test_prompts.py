"""What a node is called in front of a model."""

import pytest
import yaml

from hierclip.trees import level_prompts, open_wordnet
from hierclip.trees.prompts import prompt
from hierclip.trees.wordnet import EXCERPT, NAMES, node_names


def test_prompts_put_every_name_in_the_template(tree):
    assert level_prompts(tree, "a {}!")[2] == ["a animal!", "a vehicle!"]
    with pytest.raises(ValueError, match="no {}"):
        level_prompts(tree, "a image")


@pytest.mark.parametrize(
    "said",
    [
        "an eagle", "an alarm clock", "an onion", "an umbrella", "an usher", "an ungulate",
        "an uninteresting thing", "an hourglass", "an heirloom", "an honest face", "an Apple",
        "a honeybee", "a house", "a hero", "a uniform", "a unicorn", "a unit", "a useful object",
        "a euphonium", "a one-way street", "a dog", "a T-shirt", "a yak", "an FBI agent",
        "an X-ray", "an x-ray", "an MRI", "an F-16A/B", "an F/A-18", "an L-1011", "an SUV",
        "an HTML page", "an A5", "a UFO", "a US flag", "a U-boat", "a BMW", "a CD player",
        "a C-130", "a FIAT", "a MINI", "a RAM module", "an 8-ball", "an 11", "an 18-wheeler",
        "an 80s car", "an 11000", "a 1-person tent", "a 10", "a 110", "a 118", "a 707-320",
        "an hour", "an heir", "an honest man", "an honour", "a university", "a European",
        "a Ukrainian", "a urinal", "a Ugandan", "a Réunion", "an urn", "an unidentified object",
        "an unimportant thing", "an Il-76", "an iPod",
    ],
)  # fmt: skip
def test_an_article_goes_by_how_the_name_sounds(said):
    assert prompt("a picture of a(n) {}", said.split(" ", 1)[1]) == f"a picture of {said}"


def test_a_template_that_asks_for_no_article_is_left_alone():
    assert prompt("a {}", "eagle") == "a eagle" and prompt("{}!", "eagle") == "eagle!"
    assert prompt("a(n) photo: {}", "eagle") == "a(n) photo: eagle"  # not right before the name
    assert prompt("a(n) {} or a {}", "eagle") == "an eagle or a eagle"


def test_synsets_go_by_the_words_written_down_for_them_unless_they_are_given_others():
    wordnet = open_wordnet()
    known = yaml.safe_load((EXCERPT / NAMES).read_text(encoding="utf8"))
    assert node_names(wordnet, list(known), {}) == known
    assert node_names(wordnet, ["food.n.01", "dog.n.01"], {"food.n.01": "meal"}) == {
        "food.n.01": "meal",
        "dog.n.01": "dog",
    }
