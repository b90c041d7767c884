"""Class trees: from WordNet or a file, cut to levels, checked; and the prompts of their nodes."""

from hierclip.trees.forest import (
    check_forest as check_forest,
    forest_columns as forest_columns,
    forest_levels as forest_levels,
    forest_paths as forest_paths,
    load_forest as load_forest,
    set_synsets as set_synsets,
)
from hierclip.trees.graphs import (
    graph_tree as graph_tree,
    read_tree as read_tree,
)
from hierclip.trees.prompts import (
    level_prompts as level_prompts,
)
from hierclip.trees.shipped import (
    load as load,
    save_csv as save_csv,
    shipped_trees as shipped_trees,
)
from hierclip.trees.tree import (
    Node as Node,
    Tree as Tree,
    TreeError as TreeError,
    lca_heights as lca_heights,
    load_tree as load_tree,
    save_tree as save_tree,
    shared_nodes as shared_nodes,
    tree_from_graph as tree_from_graph,
)
from hierclip.trees.wordnet import (
    WNID as WNID,
    full_folder as full_folder,
    open_wordnet as open_wordnet,
    synsets_by_name as synsets_by_name,
    synsets_by_wnid as synsets_by_wnid,
    wordnet_tree as wordnet_tree,
)
