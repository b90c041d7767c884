"""WordNet through NLTK: the full corpus where it is installed, the committed excerpt elsewhere."""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from textwrap import shorten

import networkx as nx
import nltk
import yaml
from nltk.corpus.reader.wordnet import Synset, WordNetCorpusReader, WordNetError

from hierclip.trees.cut import assign_levels, end_at_leaves, halving_widths, keep_one_parent, remove_unary_chains
from hierclip.trees.tree import NAME, Tree, TreeError, tree_from_graph

EXCERPT = "data/source/wordnet"  # cut by data/source/wordnet.py
HEADER = "  1 Excerpt of WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved.  \n"
NAMES = "names.yaml"  # beside the excerpt: words for synsets whose own do not stand after "a"
WNID = re.compile(r"n\d{8}", re.ASCII)
DEBIAN = Path("/usr/share/wordnet")  # the packages wordnet-base and wordnet-sense-index
INSTALL = 'a full WordNet 3.0: nltk.download("wordnet"), or Debian\'s wordnet-base and wordnet-sense-index'


class WordNet(WordNetCorpusReader):
    """NLTK's reader, in English, of a folder in WordNet's own file format.

    root: the project whose excerpt fills in what the folder lacks; the checkout's if None.
    """

    def __init__(self, folder: Path, root: Path | None = None):
        self._folder, self.project = folder, root
        with _allowed(folder), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The multilingual functions are not available")
            super().__init__(str(folder), None)

    @property
    def is_excerpt(self) -> bool:
        """Whether this is an excerpt: it lacks synsets, and of the synsets that it has, other words' senses."""
        with (self._folder / "data.noun").open(encoding="ascii") as lines:
            return next(lines, "") == HEADER

    def open(self, file: str):
        """Debian leaves `lexnames` out: it is taken from the excerpt then."""
        if file == "lexnames" and not (self._folder / file).exists() and (own := beside_excerpt(file, self.project)):
            return own.open(encoding="utf8")
        with _allowed(self._folder):
            return super().open(file)

    def map_wn(self, version: str = "wordnet") -> None:
        """No mapping to other languages' WordNets, which would want the sense index."""


@contextmanager
def _allowed(folder: Path) -> Iterator[None]:
    """Let NLTK open a corpus in this folder, inside: it opens none outside its data path."""
    nltk.data.path.insert(0, str(folder))
    try:
        yield
    finally:
        nltk.data.path.remove(str(folder))


def full_folder() -> Path | None:
    """Where a full WordNet 3.0 is installed: NLTK's data path, then Debian's; None where it is not."""
    known = [Path(path) / "corpora" / "wordnet" for path in nltk.data.path] + [DEBIAN]
    return next((folder for folder in known if (folder / "data.noun").exists()), None)


def beside_excerpt(file: str, root: Path | None = None) -> Path | None:
    """A file of the excerpt: of the project `root`, else of the checkout that this package is in, if any."""
    roots = [*filter(None, [root]), Path(__file__).parents[3]]
    return next((path for place in roots if (path := place / EXCERPT / file).exists()), None)


def open_wordnet(root: Path | None = None) -> WordNet:
    """The full WordNet where there is one, else the excerpt (`beside_excerpt`), which has the classes of OpenMoji,
    ImageNet-1k, Tiny-ImageNet and the tables of `SETS`. Raises TreeError, saying what to install, where there is none.
    """
    nouns = beside_excerpt("data.noun", root)
    if (folder := full_folder() or (nouns and nouns.parent)) is None:
        raise TreeError(f"no WordNet here; install {INSTALL}")
    return _opened(folder, root)


@cache
def _opened(folder: Path, root: Path | None) -> WordNet:
    """Read once: that takes a second, and the reader keeps its files open."""
    return WordNet(folder, root)


def find_synset(wordnet: WordNet, identifier: str) -> Synset:
    """The synset whose own name is `identifier` ("dog.n.01"). Raises TreeError where WordNet has none."""
    try:
        synset = wordnet.synset(identifier)
    except (WordNetError, ValueError) as error:
        more = f"; this is an excerpt, more are in {INSTALL}" if wordnet.is_excerpt else ""
        raise TreeError(f"WordNet has no synset {identifier!r}; names look like dog.n.01{more}") from error
    if synset is None or synset.name() != identifier:
        raise TreeError(f"synset {identifier} goes by the name {synset and synset.name()}; use that")
    return synset


def synsets_by_name(
    names: Iterable[str], chosen: Mapping[str, str] = {}, wordnet: WordNet | None = None
) -> dict[str, str]:
    """Class name to synset ("poodle" to "poodle.n.01"): the one chosen for it, else its only noun sense.

    Nothing is guessed: raises one TreeError for all names that WordNet does not have or that have several senses
    there, with these; and for a choice that is no noun or fits no name, for two names of one synset, and for
    names without a choice where WordNet is the excerpt, which lacks senses.
    """
    wordnet, names = wordnet or open_wordnet(), list(dict.fromkeys(names))
    if stray := [name for name in chosen if name not in names]:
        raise TreeError(f"synset chosen for {', '.join(stray)}, which is no class name here")
    if wordnet.is_excerpt and (bare := [name for name in names if name not in chosen]):
        raise TreeError(f"no synset chosen for {', '.join(bare)}; to look names up takes {INSTALL}")
    senses = {name: _senses(wordnet, name, chosen) for name in names}
    if unclear := [f"{name}: {_describe(senses[name])}" for name in names if len(senses[name]) != 1]:
        hint = 'choose as in chosen={"dog": "dog.n.01"}'
        raise TreeError("\n  ".join([f"{len(unclear)} of {len(names)} class names need a synset; {hint}", *unclear]))
    synsets = {name: str(found[0].name()) for name, found in senses.items()}
    if twice := [name for name in names if list(synsets.values()).count(synsets[name]) > 1]:
        same = ", ".join(f"{name} ({synsets[name]})" for name in twice)
        raise TreeError(f"class names of one synset: {same}; each needs its own")
    return synsets


def _senses(wordnet: WordNet, name: str, chosen: Mapping[str, str]) -> list[Synset]:
    if name not in chosen:
        return [synset for synset in wordnet.synsets(name.strip().replace(" ", "_"), "n") if synset]
    synset = find_synset(wordnet, chosen[name])
    if synset.pos() != "n":
        raise TreeError(f"class name {name}: {chosen[name]} is no noun; a class needs one, such as dog.n.01")
    return [synset]


def _describe(senses: Sequence[Synset]) -> str:
    said = [f"{sense.name()} ({shorten(str(sense.definition()), 60, placeholder=' ...')})" for sense in senses]
    return "; ".join(said) or "no noun of WordNet"


def synsets_by_wnid(wnids: Iterable[str], wordnet: WordNet | None = None) -> dict[str, str]:
    """WordNet id ("n02084071") to synset ("dog.n.01"), in the order given.

    The digits are the synset's byte offset in WordNet 3.0's data.noun, and the excerpt has the id for a gloss.
    Raises TreeError, listing all, for ids that are badly written and for those that WordNet does not have.
    """
    wordnet, wnids = wordnet or open_wordnet(), list(wnids)
    if bad := [str(wnid) for wnid in wnids if not re.fullmatch(WNID, str(wnid))]:
        raise TreeError(f"no WordNet id: {', '.join(bad)}; ids are n and eight digits, such as n02084071")
    if wordnet.is_excerpt:
        by_wnid = {synset.definition(): synset for synset in wordnet.all_synsets("n")}
    else:
        with warnings.catch_warnings(action="ignore"):  # NLTK warns of an offset at which no synset starts
            by_wnid = {wnid: wordnet.synset_from_pos_and_offset("n", int(wnid[1:])) for wnid in wnids}
    found = {wnid: str(synset.name()) for wnid in wnids if (synset := by_wnid.get(wnid))}
    if unknown := [wnid for wnid in wnids if wnid not in found]:
        remedy = f"this is an excerpt, more are in {INSTALL}" if wordnet.is_excerpt else "ids are of version 3.0"
        raise TreeError(f"no synset in WordNet: {', '.join(unknown)}; {remedy}")
    return found


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
    """Words for each node: the name given, else that of NAMES, else its first lemma that no other node here uses."""
    file = beside_excerpt(NAMES, wordnet.project)
    known = yaml.safe_load(file.read_text(encoding="utf8")) if file else {}
    names = {identifier: known[identifier] for identifier in identifiers if identifier in known} | dict(given)
    for identifier in identifiers:
        lemmas = [lemma.replace("_", " ") for lemma in find_synset(wordnet, identifier).lemma_names()]
        free = [lemma for lemma in lemmas if lemma not in names.values()]
        names.setdefault(identifier, (free or lemmas)[0])
    return names


def wordnet_tree(
    name: str,
    leaves: Mapping[str, str],
    widths: Sequence[int] | None,
    wordnet: WordNet | None = None,
    *,
    synsets: Mapping[str, str] | None = None,
    under: Mapping[str, str] = {},
) -> Tree:
    """The tree of WordNet over `leaves` (identifier to name), cut to 1 + len(widths) levels.

    widths: those of `halving_widths` if None. synsets: each leaf's, by identifier; by default identifiers are synsets,
    or WordNet ids. under: for leaves that WordNet lacks, a synset to stand under instead.
    Hypernym paths are joined to a graph, a leaf above another is put beside it (`end_at_leaves`), one parent
    is kept (`keep_one_parent` states the rule), unary chains are removed, levels are cut (`assign_levels`).
    Leaves come in the order of the tree. Raises TreeError for an unknown synset, widths that cannot be reached.
    """
    wordnet = wordnet or open_wordnet()
    if synsets is None:
        by_wnid = bool(leaves) and all(re.fullmatch(WNID, identifier) for identifier in leaves)
        synsets = synsets_by_wnid(leaves, wordnet) if by_wnid else {identifier: identifier for identifier in leaves}
    under = {leaf: synset for leaf, synset in under.items() if leaf in leaves and leaf not in synsets}
    if bare := [leaf for leaf in leaves if leaf not in synsets and leaf not in under]:
        raise TreeError(f"tree {name}: no synset, nor one to stand under, for {', '.join(bare)}")
    node_of = {leaf: synsets[leaf] if leaf in synsets else f"{leaf}, under {under[leaf]}" for leaf in leaves}
    if twice := [leaf for leaf, node in node_of.items() if list(node_of.values()).count(node) > 1]:
        raise TreeError(f"tree {name}: one synset for {', '.join(twice)}; each needs its own")
    names = {node_of[leaf]: words for leaf, words in leaves.items()}
    known = dict.fromkeys(synsets.get(leaf) or under[leaf] for leaf in leaves)
    drawn = hypernym_graph([find_synset(wordnet, synset) for synset in known])
    drawn.add_edges_from((synset, node_of[leaf]) for leaf, synset in under.items())
    ragged = keep_one_parent(end_at_leaves(drawn, names), list(names))
    short = remove_unary_chains(ragged)
    graph = assign_levels(short, halving_widths(short) if widths is None else widths)
    coarse_first = sorted(set(graph) - set(names), key=lambda node: (-graph.nodes[node]["level"], node))
    nx.set_node_attributes(graph, node_names(wordnet, coarse_first, names), NAME)
    graph = nx.relabel_nodes(graph, {node: leaf for leaf, node in node_of.items()})
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
