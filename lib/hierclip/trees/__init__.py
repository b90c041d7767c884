"""Class trees: from WordNet or a file, cut to levels, validated; and the prompts of their nodes."""

from hierclip.trees.cut import assign_levels, end_at_leaves, halving_widths, keep_one_parent, remove_unary_chains
from hierclip.trees.files import load_tree, save_tree
from hierclip.trees.forest import check_forest, find_tree, forest_columns, forest_levels, forest_paths, load_forest
from hierclip.trees.inputs import graph_tree, leaves_of, read_tree
from hierclip.trees.prompts import level_prompts
from hierclip.trees.sets import SETS, set_forest, set_synsets, set_tree
from hierclip.trees.tree import Node, Tree, TreeError, lca_heights, tree_from_graph
from hierclip.trees.wordnet import WNID, full_folder, open_wordnet, synsets_by_name, synsets_by_wnid, wordnet_tree
