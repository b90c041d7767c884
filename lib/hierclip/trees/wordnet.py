"""WordNet through NLTK: the full corpus where it is installed, the committed excerpt elsewhere."""

import re
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from textwrap import shorten
from zipfile import BadZipFile, ZipFile

import networkx as nx
import nltk
import yaml
from nltk.corpus.reader.wordnet import Synset, WordNetCorpusReader, WordNetError
from nltk.data import SeekableUnicodeStreamReader

from hierclip.trees.graphs import assign_levels, keep_one_parent
from hierclip.trees.tree import LEVEL, NAME, Tree, TreeError, tree_from_graph

EXCERPT = Path(__file__).parents[1] / "source/wordnet"  # cut by data/source/wordnet.py
NAMES = "names.yaml"  # only in the excerpt: words for synsets whose own do not fit after "a"
HEADER = b"WordNet 3.0 Copyright"  # among the first lines of data.noun
WNID = re.compile(r"n\d{8}", re.ASCII)
DEBIAN = Path("/usr/share/wordnet")  # the packages wordnet-base and wordnet-sense-index
INSTALL = (
    'a full WordNet 3.0: nltk.download("wordnet"), or '
    "Debian's wordnet-base and wordnet-sense-index"
)


class WordNet(WordNetCorpusReader):
    """Read a folder in WordNet's own file format, or the zip file of one, in English.

    An excerpt lacks synsets, and of the synsets that it has, the senses of other words. It fills in
    what a full WordNet lacks.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.is_excerpt = (folder / NAMES).exists()
        self.excerpt = folder if self.is_excerpt else EXCERPT
        self.more = f"; this is an excerpt, more are in {INSTALL}" if self.is_excerpt else ""
        nltk.data.path.append(str(folder))  # NLTK accepts a corpus nowhere else
        super().__init__(str(folder), False)  # False: no other languages, without a warning of it
        nltk.data.path.remove(str(folder))

    def open(self, file: str) -> SeekableUnicodeStreamReader:
        """Open a file of the corpus; `lexnames`, which Debian leaves out, is the excerpt's."""
        folder = self.excerpt if file == "lexnames" else self.folder
        return SeekableUnicodeStreamReader(BytesIO(read_file(folder, file)), "utf8")

    def map_wn(self, version: str = "wordnet") -> None:
        """Map nothing to other languages' WordNets, which would need the sense index."""


def full_folder() -> Path | None:
    """Find a full WordNet 3.0: in NLTK's data path a folder or a zip file, then Debian's.

    Another version is passed over: its ids are other synsets' in 3.0.
    """
    corpora = [Path(path) / "corpora" for path in nltk.data.path]
    known = [folder / name for folder in corpora for name in ("wordnet", "wordnet.zip")] + [DEBIAN]
    there = [place for place in known if place.is_file() or (place / "data.noun").is_file()]
    return next((p for p in there if HEADER in read_file(p, "data.noun")[:4000]), None)


def read_file(place: Path, name: str) -> bytes:
    """Read a file of a WordNet, in a folder or a zip file. Raises TreeError for a damaged zip."""
    if not place.is_file():
        return (place / name).read_bytes()
    try:
        return ZipFile(place).read(f"wordnet/{name}")
    except (BadZipFile, KeyError, EOFError, zlib.error) as error:
        raise TreeError(
            f"{place}: no zip file of WordNet, or a damaged one ({error}); remove it, or "
            'download it again: nltk.download("wordnet", force=True)'
        ) from None


_opened = cache(WordNet)  # opening takes a second


def open_wordnet() -> WordNet:
    """Open the full WordNet where there is one, else the excerpt that comes with the package.

    The excerpt has the classes of data/source/emoji, ImageNet-1k, Tiny-ImageNet and the tables of
    data/source/sets.
    """
    return _opened(full_folder() or EXCERPT)


def find_synset(wordnet: WordNet, identifier: str) -> Synset:
    """Return the noun whose own name is `identifier` ("dog.n.01"). Raises TreeError if none is."""
    try:
        synset = wordnet.synset(identifier)
    except (WordNetError, ValueError):
        synset = None
    if synset is None or synset.pos() != "n":
        raise TreeError(
            f"WordNet has no synset {identifier!r} of a noun; "
            f"names look like dog.n.01{wordnet.more}"
        )
    if synset.name() != identifier:
        raise TreeError(f"synset {identifier} goes by the name {synset.name()}; use that")
    return synset


def synsets_by_name(
    names: Iterable[str], chosen: Mapping[str, str] = {}, wordnet: WordNet | None = None
) -> dict[str, str]:
    """Map class names to synsets ("poodle" to "poodle.n.01"): the chosen, else the only noun sense.

    Nothing is guessed: raises one TreeError for all names without a choice that WordNet does not
    have or that have several senses there, with these; an excerpt, which lacks senses, looks none
    up.
    """
    wordnet = wordnet or open_wordnet()
    bare = [name for name in dict.fromkeys(names) if name not in chosen]
    if wordnet.is_excerpt and bare:
        raise TreeError(f"no synset chosen for {', '.join(bare)}; to look names up takes {INSTALL}")
    synsets = dict(chosen)
    unclear = []
    for name in bare:
        senses = [sense for sense in wordnet.synsets(name.strip().replace(" ", "_"), "n") if sense]
        glosses = [f"{sense.name()} ({shorten(str(sense.definition()), 60)})" for sense in senses]
        if len(senses) == 1:
            synsets[name] = str(senses[0].name())
        else:
            unclear.append(f"\n  {name}: {'; '.join(glosses) or 'no noun of WordNet'}")
    if unclear:
        raise TreeError(
            f"{len(unclear)} of {len(bare)} class names need a synset; "
            'choose as in chosen={"dog": "dog.n.01"}' + "".join(unclear)
        )
    return synsets


def synsets_by_wnid(wnids: Iterable[str], wordnet: WordNet | None = None) -> dict[str, str]:
    """Map WordNet ids ("n02084071") to synsets ("dog.n.01"), in the order given.

    The digits are the synset's byte offset in WordNet 3.0's data.noun; the excerpt has the id for
    a gloss. Raises TreeError, listing all, for ids that are badly written and for those that
    WordNet does not have.
    """
    wordnet = wordnet or open_wordnet()
    wnids = list(wnids)
    if wordnet.is_excerpt:
        pairs = [(synset.definition(), synset) for synset in wordnet.all_synsets("n")]
    else:
        good = [wnid for wnid in wnids if WNID.fullmatch(wnid)]
        with warnings.catch_warnings(action="ignore"):  # of an offset at which no synset starts
            pairs = [(i, wordnet.synset_from_pos_and_offset("n", int(i[1:]))) for i in good]
    known = {wnid: str(synset.name()) for wnid, synset in pairs if synset}
    unknown = [wnid for wnid in wnids if wnid not in known]
    if unknown:
        raise TreeError(
            f"no synset in WordNet: {', '.join(unknown)}; ids are n and eight digits, such as "
            f"n02084071, of version 3.0{wordnet.more}"
        )
    return {wnid: known[wnid] for wnid in wnids}


def hypernym_graph(synsets: Iterable[Synset]) -> nx.DiGraph:
    """Join all hypernym paths of the synsets: edges from hypernym to hyponym, nodes by name."""
    graph = nx.DiGraph()
    for synset in synsets:
        for path in synset.hypernym_paths():
            nx.add_path(graph, [node.name() for node in path])
    return graph


def node_names(
    wordnet: WordNet, identifiers: Iterable[str], given: Mapping[str, str]
) -> dict[str, str]:
    """Return words for each node: those given, else those of NAMES, else a lemma.

    The lemma is the node's first that no other node here uses.
    """
    known = yaml.safe_load((wordnet.excerpt / NAMES).read_text(encoding="utf8"))
    names = {node: known[node] for node in identifiers if node in known} | dict(given)
    for node in identifiers:
        lemmas = [lemma.replace("_", " ") for lemma in find_synset(wordnet, node).lemma_names()]
        free = [lemma for lemma in lemmas if lemma not in names.values()]
        names.setdefault(node, (free or lemmas)[0])
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
    """Return WordNet's tree over `leaves` (identifier to name), in the order of the tree.

    widths: of `assign_levels`, which cuts the levels. synsets: each leaf's, by identifier; by
    default identifiers are synsets, or WordNet ids. under: for leaves that WordNet lacks, a synset
    to be placed under. Hypernym paths are joined to a graph, of which `keep_one_parent` makes a
    tree. Raises TreeError for an unknown synset and for widths that cannot be reached.
    """
    wordnet = wordnet or open_wordnet()
    if synsets is None:
        by_wnid = leaves and all(WNID.fullmatch(leaf) for leaf in leaves)
        synsets = synsets_by_wnid(leaves, wordnet) if by_wnid else {leaf: leaf for leaf in leaves}
    bare = [leaf for leaf in leaves if leaf not in synsets and leaf not in under]
    if bare:
        raise TreeError(f"tree {name}: no synset, nor one to stand under, for {', '.join(bare)}")
    chosen = {leaf: synsets[leaf] for leaf in leaves if leaf in synsets}
    twice = [leaf for leaf, synset in chosen.items() if list(chosen.values()).count(synset) > 1]
    if twice:
        raise TreeError(f"tree {name}: one synset for {', '.join(twice)}; each needs its own")
    parents = {leaf: under[leaf] for leaf in leaves if leaf not in chosen}
    known = [find_synset(wordnet, synset) for synset in (*chosen.values(), *parents.values())]
    graph = hypernym_graph(known)
    graph.add_edges_from((parent, leaf) for leaf, parent in parents.items())
    graph = nx.relabel_nodes(graph, {synset: leaf for leaf, synset in chosen.items()})
    graph = assign_levels(keep_one_parent(graph, leaves), widths)
    level = dict(graph.nodes(data=LEVEL))
    inner = sorted(set(graph) - set(leaves), key=lambda node: (-level[node], node))
    nx.set_node_attributes(graph, node_names(wordnet, inner, leaves), NAME)
    size = {node: len(nx.descendants(graph, node)) for node in graph}
    root = next(nx.topological_sort(graph))
    nodes = nx.dfs_preorder_nodes(
        graph, root, sort_neighbors=lambda nodes: sorted(nodes, key=lambda n: (-size[n], n))
    )
    return tree_from_graph(graph, name, [node for node in nodes if node in leaves])
