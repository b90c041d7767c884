"""The trees that come with the package: of published sets, and of the default's nouns."""

import csv
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import networkx as nx

from hierclip.errors import no_such, refuse
from hierclip.trees.graphs import MAP, read_tree
from hierclip.trees.tree import NAME, Tree, TreeError, load_tree, tree_from_graph
from hierclip.trees.wordnet import WNID, synsets_by_wnid

SHIPPED = Path(__file__).parents[1] / "source/trees"  # its README.md says how each was made
BY_SYNSET = (
    "imagenet",
    "tiny-imagenet",
    "emoji",
)  # sets whose leaves are identified by synset or wnid


@cache
def shipped_trees() -> dict[str, list[str]]:
    """List the names of trees by set; the first, in a JSON file, is the set's own."""
    by_set = {}
    for file in sorted(SHIPPED.glob("*/*.json")):
        others = sorted(path.stem for path in file.parent.glob("*.yaml"))
        by_set[file.parent.name] = [file.stem, *others]
    return by_set


def load(name: str, tree: str | None = None) -> Tree:
    """Return a tree over all classes of a set, such as "imagenet" or "cifar100".

    tree: one of `shipped_trees`; None: the set's own. Leaves of ImageNet and Tiny-ImageNet are
    identified by WordNet id, of emoji by synset, of other sets by torchvision's names. All trees
    of a set list the leaves in the order of its own. Raises TreeError for an unknown name.
    """
    sets = shipped_trees()
    refuse({no_such("set of trees", name, sets): name not in sets}, TreeError)
    names = sets[name]
    refuse({no_such(f"tree of {name}", tree, names): tree not in (None, *names)}, TreeError)
    first = load_tree(SHIPPED / name / f"{names[0]}.json")
    if tree in (None, names[0]):
        return first
    return read_tree(SHIPPED / name / f"{tree}.yaml", {leaf.id: leaf.name for leaf in first.leaves})


@cache
def class_synsets() -> dict[str, str]:
    """Map names of classes, in lower case, to the synset that they mean in the sets of BY_SYNSET.

    Left out are names that mean several.
    """
    leaves = [leaf for name in BY_SYNSET for leaf in load(name).leaves]
    by_wnid = synsets_by_wnid(leaf.id for leaf in leaves if WNID.fullmatch(leaf.id))
    meanings = {(leaf.name.lower(), by_wnid.get(leaf.id, leaf.id)) for leaf in leaves}
    counts = Counter(name for name, _ in meanings)
    return {name: synset for name, synset in sorted(meanings) if counts[name] == 1}


def is_set_name(written: str) -> bool:
    """Tell whether a tree is asked for by the name of a set, and not by a file."""
    return not (Path(written).suffix or Path(written).is_file())


def shipped_tree(written: str, leaves: Mapping[str, str]) -> Tree:
    """Return the part over `leaves` (identifier to name), in their order, of a tree of `load`.

    written: SET or SET/TREE. A leaf is found by its identifier, else by its name. Raises TreeError
    for leaves that the tree does not have.
    """
    name, _, tree = written.partition("/")
    whole = load(name, tree or None)
    known = {leaf.name: leaf.id for leaf in whole.leaves} | {each: each for each in whole.ids}
    lost = [leaf for leaf, words in leaves.items() if not {leaf, words} & known.keys()]
    refuse({f"tree {written}: it has no class {', '.join(lost[:5])}": lost}, TreeError)
    classes = {known[leaf if leaf in known else words]: leaf for leaf, words in leaves.items()}
    graph: nx.DiGraph = nx.relabel_nodes(whole.restrict(list(classes)).graph(), classes)
    for leaf in classes.values():
        graph.nodes[leaf][NAME] = leaves[leaf]
    return tree_from_graph(graph, whole.name, list(leaves))


def save_csv(tree: Tree, path: Path) -> None:
    """Write for each leaf its identifier, its name, and the name of its superclass by level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*MAP, *(f"level {level}" for level in range(1, tree.max_level + 1))])
        for leaf, ancestors in zip(tree.leaves, tree.paths, strict=True):
            table.writerow(
                [leaf.id, *(tree.levels[level][k].name for level, k in enumerate(ancestors))]
            )
