"""What a node is called in front of a model."""

import re

from hierclip.errors import HierclipError
from hierclip.trees.tree import Tree

# What "an" goes before, by how a name begins to sound. Digits: those read as "eight", "eleven" or "eighteen".
NUMBER = r"8|1[18](?:\d{3})*(?!\d)"
# Letters read one by one: one that stands alone, two or three capitals, more of them without a vowel.
SPELT = r"(?:[A-Z]|[A-Z]{2,3}s?|[B-DF-HJ-NP-TV-Z]{4,})(?![^\W\d_])|[a-z]-"
AS_WORDS = r"(?:LAN|RAM|ROM|SIM)s?(?![^\W\d_])"
LETTER = r"[AEFHILMNORSXaefhilmnorsx]"  # whose own name begins with a vowel
# Words: a vowel, but for those that begin like "you" (eu, ewe, ukulele, uniform) or "won" (one); and a silent h.
YOU = r"e[uw]|u[gkrstv][aeiou]|ukr|uni(?!n|m[ap]|dent)"
WORD = rf"(?i:(?!{YOU}|one\b|once\b|oui)[aeiou]|hour|heir|hon(?=est|ou?r)|hors\b)"
AN = re.compile(rf"{NUMBER}|(?={SPELT})(?!{AS_WORDS}){LETTER}|(?!{SPELT}){WORD}")


def prompt(template: str, name: str) -> str:
    """The template with the name for {}; "a(n)" right before it becomes the article that the name wants."""
    article = "an" if AN.match(name) else "a"
    return template.replace("a(n) {}", f"{article} {{}}").replace("{}", name)


def level_prompts(tree: Tree, template: str) -> list[list[str]]:
    """A prompt for every node, level by level. template: text with {} for the name, as `prompt` reads it.

    Raises HierclipError where the template has no {}.
    """
    if "{}" not in template:
        raise HierclipError(f"template {template!r} has no {{}} for the class's name")
    return [[prompt(template, node.name) for node in level] for level in tree.levels]
