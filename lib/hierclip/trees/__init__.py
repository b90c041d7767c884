"""Class trees: from WordNet or a file, cut to levels, validated; and the prompts of their nodes."""

from hierclip.trees.cut import assign_levels, keep_one_parent, remove_unary_chains
from hierclip.trees.excerpt import write_excerpt
from hierclip.trees.files import load_tree, save_tree
from hierclip.trees.prompts import level_prompts
from hierclip.trees.tree import Node, Tree, TreeError, tree_from_graph
from hierclip.trees.wordnet import full_folder, open_wordnet, wordnet_tree

__all__ = [
    "Node",
    "Tree",
    "TreeError",
    "assign_levels",
    "full_folder",
    "keep_one_parent",
    "level_prompts",
    "load_tree",
    "open_wordnet",
    "remove_unary_chains",
    "save_tree",
    "tree_from_graph",
    "wordnet_tree",
    "write_excerpt",
]
