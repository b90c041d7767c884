"""Tables as editors and spreadsheets save them: the same rows, or one line that says what is odd."""

import codecs

import pytest

from hierclip.errors import HierclipError
from hierclip.trees import TreeError, read_tree
from hierclip.trees.chosen import read_synsets
from hierclip.trees.tables import read_columns, read_rows, read_text

ROWS = [{"id": "001", "name": "cat"}, {"id": "002", "name": "sea, lion"}]
PLAIN = 'id,name\n001,cat\n002,"sea, lion"\n'
SAVED = {
    "plain": PLAIN.encode(),
    "with a mark": codecs.BOM_UTF8 + PLAIN.encode(),
    "UTF-16": PLAIN.encode("utf-16"),
    "UTF-16, big end first": codecs.BOM_UTF16_BE + PLAIN.encode("utf-16-be"),
    "CRLF": PLAIN.replace("\n", "\r\n").encode(),
    "CR": PLAIN.replace("\n", "\r").encode(),
    "no last line end": PLAIN.rstrip().encode(),
    "semicolons": b"id;name\n001;cat\n002;sea, lion\n",
    "Excel's line": b"sep=;\nid;name\n001;cat\n002;sea, lion\n",
    "tabs": b"id\tname\n001\tcat\n002\tsea, lion\n",
    "capitals and blanks": b"ID ; Name \n 001;cat \n002; sea, lion\n",
    "a blank that does not break": PLAIN.replace("cat", "cat\u00a0").encode(),
    "blank lines": b'\n \nid,name\n\n001,cat\n,,\n002,"sea, lion"\n\n',
    "separators at the end": b'id,name,,\n001,cat,,\n002,"sea, lion",\n',
    "a quoted line break": b'id,name\n001,cat\n002,"sea,\r\n  lion"\n',
    "everything quoted": b'"id","name"\n"001","cat"\n"002", "sea, lion"\n',
}


@pytest.mark.parametrize("how", SAVED)
def test_a_table_is_the_same_however_it_is_saved(tmp_path, how):
    (tmp_path / "t.csv").write_bytes(SAVED[how])
    assert read_columns(tmp_path / "t.csv", "id", "name") == ROWS


REFUSED = {
    "another encoding": ("id,name\n1,caf\u00e9\n".encode("latin-1"), "not in UTF-8; save it so"),
    "half a character": (b"\xff\xfe\xff", "not in UTF-8; save it so"),
    "UTF-16 without a mark": (PLAIN.encode("utf-16-le"), "columns id and name are needed, each"),
    "an empty file": (b"", "columns id and name are needed, each once, not an empty file"),
    "no header": (b"001,cat\n", "are needed, each once, not '001', 'cat'"),
    "an invisible header": ("id,na\u200bme\n".encode(), r"not 'id', 'na\u200bme'"),
    "a column twice": (b"id,name,Name\n1,cat,dog\n", "each once, not 'id', 'name', 'Name'"),
    "too many cells": (b"id,name\n1,crane, bird\n", "more cells than the 2 columns in ['1', 'cra"),
    "no id": (b"id,name\n,cat\n", "1 rows have no id; each needs one"),
    "an id twice": (b"id,name\n1,cat\n1 ,dog\n", "id 1 stands twice; each has one row"),
    "an id in two forms": ("id,name\ne\u0301,a\n\u00e9,b\n".encode(), "id \u00e9 stands twice"),
    "an invisible id twice": ("id,name\na\u200b,a\na\u200b,b".encode(), r"id 'a\u200b' stands"),
    "an open quote": (b'id,name\n1,"cat\n2,dog\n', "row 2: unexpected end of data"),
    "a quote inside": (b'id,name\n1,"cat" big\n', "row 2: ',' expected after '\"'"),
}


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_a_table_that_may_be_read_wrong_is_refused_in_a_line(tmp_path, content, words):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(HierclipError) as caught:
        read_columns(tmp_path / "t.csv", "id", "name")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 't.csv'}: ") and words in message
    assert "\n" not in message and message.isprintable()


def test_missing_cells_are_empty_and_other_columns_stay(tmp_path):
    (tmp_path / "t.csv").write_text("note,ID,name\nx,1,\n,2\n", encoding="utf8")
    rows = read_columns(tmp_path / "t.csv", "id")
    assert rows == [{"note": "x", "id": "1", "name": ""}, {"note": "", "id": "2", "name": ""}]


def test_what_separates_lines_in_unicode_alone_is_text(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\u2028c\n", encoding="utf8")
    assert read_rows(tmp_path / "t.csv") == [["a", "b\u2028c"]]
    assert read_text(tmp_path / "t.csv") == "a,b\u2028c\n"


@pytest.mark.parametrize("separator", ";\t")
@pytest.mark.parametrize("header", ["", "Leaf{}Parent\n"])
def test_a_tree_of_semicolons_or_tabs_is_that_of_commas(tmp_path, separator, header):
    rows = ["lion,cats", "tiger,cats", "eagle,birds", '"hawk, red",birds']
    (tmp_path / "zoo.csv").write_text("leaf,parent\n" + "\n".join(rows), encoding="utf8")
    tree = read_tree(tmp_path / "zoo.csv")
    text = header.format(separator) + "\n".join(rows).replace(",", separator)
    text = text.replace(f'"hawk{separator} red"', "hawk, red")
    (tmp_path / "zoo.csv").write_text(text, encoding="utf-16")
    assert read_tree(tmp_path / "zoo.csv") == tree
    assert tree.ids == ("lion", "tiger", "eagle", "hawk, red")


def test_an_outline_in_utf_16_is_read(tmp_path):
    (tmp_path / "zoo.yaml").write_text("a: [no, on]\nb: [1.0, x]\n", encoding="utf-16")
    assert read_tree(tmp_path / "zoo.yaml").ids == ("no", "on", "1.0", "x")


CLASSES = {name: name for name in ("no", "on", "null", "7", "1_0", "dog")}


def synsets(path, text: str, leaves=CLASSES):
    path.write_text(text, encoding="utf8")
    return read_synsets(path, leaves)


def test_classes_that_yaml_takes_for_values_are_text(tmp_path):
    text = "no: no.n.01\non: on.n.01\nnull: null.n.01\n7: seven.n.01\n1_0: ten.n.01\n"
    chosen = {"no": "no.n.01", "on": "on.n.01", "null": "null.n.01", "7": "seven.n.01"}
    assert synsets(tmp_path / "s.yaml", text) == (chosen | {"1_0": "ten.n.01"}, {})


def test_synsets_of_a_spreadsheet_are_those_of_a_plain_table(tmp_path):
    plain = synsets(tmp_path / "s.csv", "class,synset,under\ndog,dog.n.01,\nno,,cat.n.01\n")
    assert plain == ({"dog": "dog.n.01"}, {"no": "cat.n.01"})
    odd = "\ufeffClass; Synset ;Under;\ndog; dog.n.01;;\n\nno;;cat.n.01;\n"
    assert synsets(tmp_path / "s.csv", odd) == plain
    assert synsets(tmp_path / "s.csv", "class,synset\ndog,dog.n.01\n") == (plain[0], {})


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("s.yaml", "dog: dog.n.01\ndog: dog.n.02\n", "dog stands twice"),
        ("s.csv", "class,synset\ndog,dog.n.01\ndog,dog.n.02\n", "class dog stands twice"),
        ("s.csv", "class,sense\ndog,dog.n.01\n", "columns class and synset are needed"),
        ("s.yaml", "dog: [dog.n.01]\n", "the synset of dog is no text"),
        ("s.yaml", "", "no lines `class: synset`"),
        ("s.yaml", "dog: [", "no lines `class: synset`"),
        ("s.yaml", "- dog\n", "no lines `class: synset`"),
    ],
)
def test_synsets_that_may_be_read_wrong_are_refused_in_a_line(tmp_path, name, text, words):
    with pytest.raises(TreeError) as caught:
        synsets(tmp_path / name, text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / name}: no lines") and words in message
    assert "\n" not in message and message.count(str(tmp_path)) == 1
