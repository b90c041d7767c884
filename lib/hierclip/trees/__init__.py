"""Class trees: from WordNet or a file, cut to levels, checked; and the prompts of their nodes."""

from hierclip.trees.forest import (
    check_forest,
    forest_columns,
    forest_levels,
    forest_paths,
    load_forest,
    set_synsets,
)
from hierclip.trees.graphs import graph_tree, read_tree
from hierclip.trees.prompts import level_prompts
from hierclip.trees.shipped import load, save_csv, shipped_trees
from hierclip.trees.tree import (
    Node,
    Tree,
    TreeError,
    lca_heights,
    load_tree,
    save_tree,
    shared_nodes,
    tree_from_graph,
)
from hierclip.trees.wordnet import (
    WNID,
    full_folder,
    open_wordnet,
    synsets_by_name,
    synsets_by_wnid,
    wordnet_tree,
)
