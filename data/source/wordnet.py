"""Cuts the folder `wordnet` beside this file out of a full WordNet 3.0, in WordNet's own file
format, for machines that have none: `python data/source/wordnet.py [FOLDER OF THE FULL ONE]`.

The excerpt holds the wanted nouns, every synset above them, and what else must be there for names
such as `ram.n.05` to mean the same as in the full WordNet: the number is a place among the senses
of the synset's first word, so the senses before it are kept, those after it are not. It has no
glosses; where the gloss stood is the synset's WordNet id. Synsets move in the file, so byte offsets
and the pointers that name them are computed anew. Format: wndb(5WN).
"""

import csv
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from timm.data.imagenet_info import ImageNetInfo

from hierclip.trees import set_synsets, synsets_by_wnid
from hierclip.trees.wordnet import INSTALL, WordNet, full_folder, read_file

SOURCE = Path(__file__).parent
HEADER = (
    "  1 Excerpt of WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved.  \n"
)

# The lexicographer files of WordNet 3.0, in their order, with their part of speech: lexnames(5WN).
LEXNAMES = (
    "adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute"
    " noun.body noun.cognition noun.communication noun.event noun.feeling noun.food noun.group"
    " noun.location noun.motive noun.object noun.person noun.phenomenon noun.plant"
    " noun.possession noun.process noun.quantity noun.relation noun.shape noun.state"
    " noun.substance noun.time verb.body verb.change verb.cognition verb.communication"
    " verb.competition verb.consumption verb.contact verb.creation verb.emotion verb.motion"
    " verb.perception verb.possession verb.social verb.stative verb.weather adj.ppl"
).split()
SPLITS = {"noun": 1, "verb": 2, "adj": 3, "adv": 4}
UPWARD = {"@", "@i"}  # pointers to a hypernym, of a class and of an instance


@dataclass(frozen=True)
class Entry:
    """A line of data.noun."""

    offset: str
    lexfile: str
    words: tuple[str, ...]
    parents: tuple[tuple[str, str], ...]  # pointer symbol, offset


def parse_entry(line: str) -> Entry:
    fields = line.split("|")[0].split()
    count = int(fields[3], 16)
    words = tuple(fields[4 : 4 + 2 * count : 2])
    pointers = fields[5 + 2 * count :]
    upward = tuple(
        (pointers[i], pointers[i + 1]) for i in range(0, len(pointers), 4) if pointers[i] in UPWARD
    )
    return Entry(fields[0], fields[1], words, upward)


def write_excerpt(full: Path, folder: Path, synsets: Iterable[str]) -> int:
    """Writes the excerpt that `synsets` ("dog.n.01") need from the WordNet in `full`; gives its
    synset count.
    """
    entries = {e.offset: e for e in map(parse_entry, _lines(full, "data.noun"))}
    senses = dict(map(_parse_index, _lines(full, "index.noun")))
    kept = _close(entries, senses, [_offset(senses, name) for name in synsets])
    folder.mkdir(parents=True, exist_ok=True)
    lines = {offset: _data_line(entries[offset], dict.fromkeys(kept, offset)) for offset in kept}
    moved, place = {}, len(HEADER)
    for offset, line in lines.items():
        moved[offset] = f"{place:08d}"
        place += len(line)
    data = HEADER + "".join(_data_line(entries[offset], moved) for offset in kept)
    first = {
        word: [moved[o] for o in takewhile(moved.__contains__, offsets)]
        for word, offsets in senses.items()
    }
    index = HEADER + "".join(
        _index_line(word, offsets) for word, offsets in sorted(first.items()) if offsets
    )
    files = {"data.noun": data, "index.noun": index, "lexnames": _lexnames()}
    empty = [f"{kind}.{part}" for kind in ("data", "index") for part in ("adj", "adv", "verb")]
    files |= dict.fromkeys(empty, HEADER) | {f"{part}.exc": "" for part in SPLITS}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="ascii", newline="\n")
    return len(kept)


def _lines(full: Path, name: str) -> list[str]:
    lines = read_file(full, name).decode("ascii").splitlines()
    return [line for line in lines if not line.startswith("  ")]


def _parse_index(line: str) -> tuple[str, list[str]]:
    fields = line.split()
    return fields[0], fields[-int(fields[2]) :]


def _offset(senses: dict[str, list[str]], name: str) -> str:
    word, _, number = name.rsplit(".", 2)
    return senses[word.lower()][int(number) - 1]


def _close(entries: dict[str, Entry], senses: dict[str, list[str]], wanted: list[str]) -> list[str]:
    """With every wanted synset its hypernyms and the senses that come before it, in WordNet's
    order.
    """
    kept: set[str] = set()
    todo = list(wanted)
    while todo:
        offset = todo.pop()
        if offset not in kept:
            kept.add(offset)
            entry = entries[offset]
            todo += [parent for _, parent in entry.parents]
            todo += takewhile(
                lambda other, this=offset: other != this, senses[entry.words[0].lower()]
            )
    return sorted(kept)


def _data_line(entry: Entry, moved: dict[str, str]) -> str:
    words = " ".join(f"{word} 0" for word in entry.words)
    pointers = "".join(f" {symbol} {moved[parent]} n 0000" for symbol, parent in entry.parents)
    return (
        f"{moved[entry.offset]} {entry.lexfile} n {len(entry.words):02x} {words} "
        f"{len(entry.parents):03d}{pointers} | n{entry.offset}  \n"
    )


def _index_line(word: str, offsets: list[str]) -> str:
    return f"{word} n {len(offsets)} 1 @ {len(offsets)} 0 {' '.join(offsets)}  \n"


def _lexnames() -> str:
    return "".join(
        f"{k:02d}\t{name}\t{SPLITS[name.split('.')[0]]}\n" for k, name in enumerate(LEXNAMES)
    )


def wanted_synsets(wordnet: WordNet) -> list[str]:
    """The classes that the excerpt is cut for, each once: the emoji's, ImageNet-1k's, Tiny-
    ImageNet's, the tables'.
    """
    with (
        (SOURCE / "emoji/classes.csv").open(encoding="utf8") as emoji,
        (SOURCE / "tiny-imagenet.csv").open(encoding="utf8") as tiny,
    ):
        synsets = [row["synset"] for row in csv.DictReader(emoji)]
        wnids = ImageNetInfo().label_names() + [row["wnid"] for row in csv.DictReader(tiny)]
    tables = [
        synset for table in sorted((SOURCE / "sets").glob("*.csv")) for synset in set_synsets(table)
    ]
    listed = [synset for table in tables for synset in table.values()]
    return list(dict.fromkeys([*synsets, *synsets_by_wnid(wnids, wordnet).values(), *listed]))


if __name__ == "__main__":
    full = Path(sys.argv[1]).resolve() if sys.argv[1:] else full_folder()
    if full is None:
        sys.exit(f"no WordNet found; the excerpt is cut out of {INSTALL}")
    count = write_excerpt(full, SOURCE / "wordnet", wanted_synsets(WordNet(full)))
    print(f"{count} synsets from {full} to {SOURCE / 'wordnet'}")
