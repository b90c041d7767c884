"""What a node is called in front of a model."""

from hierclip.trees.tree import Tree


def level_prompts(tree: Tree, template: str) -> list[list[str]]:
    """A prompt for every node, level by level. template: text with {} for the name.

    Raises ValueError where the template has no {}.
    """
    if "{}" not in template:
        raise ValueError(f"template {template!r} has no {{}} for the class's name")
    return [[template.format(node.name) for node in level] for level in tree.levels]
