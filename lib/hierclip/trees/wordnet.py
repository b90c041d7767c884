"""WordNet through NLTK: the full corpus where it is installed, the committed excerpt elsewhere."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import networkx as nx
import nltk
from nltk.corpus.reader.wordnet import Synset, WordNetCorpusReader, WordNetError

from hierclip.params import find_root
from hierclip.trees.cut import assign_levels, keep_one_parent, remove_unary_chains
from hierclip.trees.tree import NAME, Tree, TreeError, tree_from_graph

EXCERPT = "data/source/wordnet"
DEBIAN = Path("/usr/share/wordnet")  # the packages wordnet-base and wordnet-sense-index


class WordNet(WordNetCorpusReader):
    """NLTK's reader, in English, of a folder in WordNet's own file format."""

    def __init__(self, folder: Path):
        if str(folder) not in nltk.data.path:  # NLTK opens no corpus outside its data path
            nltk.data.path.insert(0, str(folder))
        self._folder = folder
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The multilingual functions are not available")
            super().__init__(str(folder), None)

    def open(self, file: str):
        """Debian leaves `lexnames` out: it is taken from the excerpt then."""
        if file == "lexnames" and not (self._folder / file).exists():
            return (find_root() / EXCERPT / file).open(encoding="utf8")
        return super().open(file)

    def map_wn(self, version: str = "wordnet") -> None:
        """No mapping to other languages' WordNets, which would want the sense index."""


def full_folder() -> Path | None:
    """Where a full WordNet 3.0 is installed: NLTK's data path, then Debian's; None where it is not."""
    known = [Path(path) / "corpora" / "wordnet" for path in nltk.data.path] + [DEBIAN]
    return next((folder for folder in known if (folder / "data.noun").exists()), None)


def open_wordnet() -> WordNet:
    """The full WordNet where there is one, else the excerpt, which has what the built-in datasets need."""
    return WordNet(full_folder() or find_root() / EXCERPT)


def find_synset(wordnet: WordNet, identifier: str) -> Synset:
    """The synset whose own name is `identifier` ("dog.n.01"). Raises TreeError where WordNet has none."""
    try:
        synset = wordnet.synset(identifier)
    except (WordNetError, ValueError) as error:
        raise TreeError(f"WordNet has no synset {identifier!r}; names look like dog.n.01") from error
    if synset is None or synset.name() != identifier:
        raise TreeError(f"synset {identifier} goes by the name {synset and synset.name()}; use that")
    return synset


def hypernym_graph(synsets: Sequence[Synset]) -> nx.DiGraph:
    """Every hypernym path of the synsets: edges from hypernym to hyponym, nodes by synset name."""
    graph, todo = nx.DiGraph(), list(synsets)
    graph.add_nodes_from(synset.name() for synset in synsets)
    while todo:
        synset = todo.pop()
        for parent in synset.hypernyms() + synset.instance_hypernyms():
            if parent.name() not in graph:
                todo.append(parent)
            graph.add_edge(parent.name(), synset.name())
    return graph


def node_names(wordnet: WordNet, identifiers: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """Words for each node: the name given, else its first lemma that no other node here uses as its own."""
    names = dict(given)
    for identifier in identifiers:
        lemmas = [lemma.replace("_", " ") for lemma in find_synset(wordnet, identifier).lemma_names()]
        free = [lemma for lemma in lemmas if lemma not in names.values()]
        names.setdefault(identifier, (free or lemmas)[0])
    return names


def wordnet_tree(name: str, leaves: Mapping[str, str], widths: Sequence[int], wordnet: WordNet | None = None) -> Tree:
    """The tree of WordNet over `leaves` (synset to name), cut to 1 + len(widths) levels.

    Hypernym paths are joined to a graph, one parent is kept (`keep_one_parent` states the rule), unary
    chains are removed, levels are cut (`assign_levels`). Leaves come in the order of the tree.
    Raises TreeError for an unknown synset, a leaf above another leaf, widths that cannot be reached.
    """
    wordnet = wordnet or open_wordnet()
    synsets = [find_synset(wordnet, identifier) for identifier in leaves]
    ragged = keep_one_parent(hypernym_graph(synsets), list(leaves))
    if inner := [leaf for leaf in leaves if ragged.out_degree(leaf)]:
        raise TreeError(f"tree {name}: leaf {', '.join(inner)} stands above another leaf")
    graph = assign_levels(remove_unary_chains(ragged), widths)
    coarse_first = sorted(set(graph) - set(leaves), key=lambda node: (-graph.nodes[node]["level"], node))
    nx.set_node_attributes(graph, node_names(wordnet, coarse_first, leaves), NAME)
    order = [node for node in nx.dfs_preorder_nodes(_sorted(graph)) if node in leaves]
    return tree_from_graph(graph, name, order)


def _sorted(graph: nx.DiGraph) -> nx.DiGraph:
    """The same graph, children by size and then by name, so that the order of leaves is one and the same."""
    out = nx.DiGraph()
    root = next(nx.topological_sort(graph))
    size = {node: len(nx.descendants(graph, node)) for node in graph}
    out.add_node(root)
    for node in nx.topological_sort(graph):
        out.add_edges_from((node, child) for child in sorted(graph.successors(node), key=lambda c: (-size[c], c)))
    return out
