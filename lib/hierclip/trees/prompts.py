"""What a node is called in front of a model."""

import re

from hierclip.errors import HierclipError
from hierclip.trees.tree import Tree

VOWEL = re.compile(
    r"(?!e[uw]|one\b|uni(?!n)|u[kst][aeiou])[aeiou]|hour|heir|hon(?=est|or)", re.IGNORECASE
)  # as it sounds


def prompt(template: str, name: str) -> str:
    """The template with the name for {}; "a(n)" right before it becomes the article that the name wants."""
    article = "an" if VOWEL.match(name) else "a"
    return template.replace("a(n) {}", f"{article} {{}}").replace("{}", name)


def level_prompts(tree: Tree, template: str) -> list[list[str]]:
    """A prompt for every node, level by level. template: text with {} for the name, as `prompt` reads it.

    Raises HierclipError where the template has no {}.
    """
    if "{}" not in template:
        raise HierclipError(f"template {template!r} has no {{}} for the class's name")
    return [[prompt(template, node.name) for node in level] for level in tree.levels]
