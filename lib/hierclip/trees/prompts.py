"""What a node is called in front of a model."""

import re

from hierclip.errors import HierclipError
from hierclip.trees.tree import Tree

# Letters read one by one: one alone, two or three capitals, more of them without a vowel.
SPELT = r"(?:[A-Z]|[A-Z]{2,3}s?|[B-DF-HJ-NP-TV-Z]{4,})(?![^\W\d_])|[a-z]-"
AN = re.compile(  # "an" goes before these, by how a name begins to sound
    rf"""
    8 | 1[18](?:\d{{3}})*(?!\d)  # digits that read as "eight", "eleven" or "eighteen"
    | (?={SPELT}) (?!(?:LAN|RAM|ROM|SIM)s?(?![^\W\d_]))  # spelt, and no acronym read as a word:
      [AEFHILMNORSXaefhilmnorsx]  # a letter whose own name begins with a vowel
    | (?!{SPELT}) (?i:  # a word:
      (?! e[uw] | u[gkrstv][aeiou] | ukr | uni(?!n|m[ap]|dent)  # none that begins like "you"
        | one\b | once\b | oui )  # or "won"
      [aeiou]
      | hour | heir | hon(?=est|ou?r) | hors\b )  # a silent h
    """,
    re.VERBOSE,
)


def prompt(template: str, name: str) -> str:
    """Put the name for {} and, for an "a(n)" right before it, the article that the name needs."""
    article = "an" if AN.match(name) else "a"
    return template.replace("a(n) {}", f"{article} {{}}").replace("{}", name)


def level_prompts(tree: Tree, template: str) -> list[list[str]]:
    """Return a prompt for every node, level by level. template: text with {}, as in `prompt`.

    Raises HierclipError where the template has no {}.
    """
    if "{}" not in template:
        raise HierclipError(f"template {template!r} has no {{}} for the class's name")
    return [[prompt(template, node.name) for node in level] for level in tree.levels]
