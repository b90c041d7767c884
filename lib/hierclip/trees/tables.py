"""Tables and texts that users write, however their editor saves them."""

import codecs
import csv
import re
from collections import Counter
from io import StringIO
from itertools import zip_longest
from pathlib import Path
from unicodedata import normalize

from hierclip.errors import HierclipError, refuse


def read_text(path: Path) -> str:
    """Read a text in UTF-8, or in UTF-16 with its mark. Raises HierclipError for any other."""
    marked = path.read_bytes().startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return path.read_text(encoding="utf-16" if marked else "utf-8-sig")
    except UnicodeError:
        raise HierclipError(f"{path}: not in UTF-8; save it so") from None


def read_rows(path: Path) -> list[list[str]]:
    """Read the rows of a table, without blank rows, blanks around cells and empty cells at the end.

    What separates cells is the first of comma, semicolon and tab that is in the first row. A line
    break inside a cell becomes a blank. Raises HierclipError for quotes that do not close.
    """
    text = re.sub(r"\A(\s*\n)?(sep=.\n)?", "", read_text(path))  # sep: Excel names what separates
    first = re.sub('"[^"]*"', "", text).partition("\n")[0]
    separator = next((mark for mark in ",;\t" if mark in first), ",")
    rows = []
    try:
        for row in csv.reader(
            StringIO(text), delimiter=separator, skipinitialspace=True, strict=True
        ):
            cells = [re.sub(r"\s*\n\s*", " ", cell.strip()) for cell in row]
            while cells and not cells[-1]:
                cells.pop()
            rows.append(cells)
    except csv.Error as error:
        raise HierclipError(f"{path}: row {len(rows) + 1}: {error}") from None
    return [row for row in rows if row]


def read_columns(path: Path, key: str, *needed: str) -> list[dict[str, str]]:
    """Read the rows of a table under a header, by column in lower case; missing cells are empty.

    Raises HierclipError for a column that is missing or there twice, a row of more cells than the
    header, and a `key` that a row lacks or that stands twice, whatever its form in Unicode.
    """
    header, *rows = read_rows(path) or [[]]
    columns = [cell.lower() for cell in header]
    long = [row for row in rows if len(row) > len(columns)]
    table = [dict(zip_longest(columns, row, fillvalue="")) for row in rows]
    keys = Counter(normalize("NFC", row.get(key, "")) for row in table)
    twice = [visible(each) for each, count in keys.items() if count > 1]
    refuse(
        {
            f"{path}: columns {' and '.join((key, *needed))} are needed, each once, not "
            f"{', '.join(map(repr, header)) or 'an empty file'}": (
                {key, *needed} - set(columns) or len(set(columns)) < len(columns)
            ),
            f"{path}: more cells than the {len(columns)} columns in {', '.join(map(str, long[:1]))}"
            "; a cell with a separator in it needs quotes": long,
            f"{path}: {keys['']} rows have no {key}; each needs one": keys[""],
            f"{path}: {key} {', '.join(twice[:5])} stands twice; each has one row": twice,
        }
    )
    return table


def visible(text: str) -> str:
    """Return a text as a message shows it: as Python would, where something in it is invisible."""
    return text if text.isprintable() and text == text.strip() else repr(text)
