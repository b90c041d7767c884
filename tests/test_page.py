"""The page: whole in one file, escaped, the same to the byte."""

import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from PIL import Image

from hierclip.audits.page import Picture, Section, Table, Text, write_page


@pytest.fixture
def png(tmp_path):
    Image.new("RGB", (2, 2), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


def page(tmp_path, *parts, title="T", lead="L") -> str:
    write_page(tmp_path / "page.html", title, lead, [Section("What & why", parts)])
    return (tmp_path / "page.html").read_text(encoding="utf8")


class Tags(HTMLParser):
    """Opened and closed tags must match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "img", "br", "hr"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_page_is_whole_html_and_needs_nothing_from_elsewhere(tmp_path, png):
    table = Table(pd.DataFrame({"method": ["CLIP"], "leaf": [97.3]}), "Accuracy")
    text = page(tmp_path, Text("A **bold** ![x](http://e.org/x.png) <b>"), table, Picture(png, "See `this`.", "red"))
    tags = Tags(text)
    assert not tags.open and {"main", "nav", "section", "table", "caption", "figure"} <= {tag for tag, _ in tags.seen}
    loaded = [a.get("src") or a["href"] for tag, a in tags.seen if tag in {"img", "link"}]
    assert len(loaded) == 2 and all(address.startswith("data:") for address in loaded)
    assert "script" not in {tag for tag, _ in tags.seen} and "<strong>bold</strong>" in text


def test_everything_is_escaped(tmp_path, png):
    bad = "<i onclick=x>&\"'"
    table = Table(pd.DataFrame({bad: [bad]}), bad)
    text = page(tmp_path, Text(bad), table, Picture(png, bad, bad), title=bad, lead=bad)
    assert "i" not in {tag for tag, _ in Tags(text).seen}
    assert "javascript:" not in str(Tags(page(tmp_path, Text("[x](javascript:alert)"))).seen)


def test_contents_lead_to_the_sections(tmp_path):
    tags = Tags(page(tmp_path)).seen
    targets = {a["href"][1:] for tag, a in tags if tag == "a"}
    assert targets == {a["id"] for tag, a in tags if tag == "section"} == {"1-what-why"}


def cells(table: Table) -> list[list[str]]:
    """What stands in a table's rows."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", str(table.html))
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows][1:]


def test_cells_are_shown_plainly_and_rows_are_marked_where_asked(tmp_path):
    table = Table(pd.DataFrame({"a": ["x", "y"], "b": [0.12345, None], "c": ["8/255", "12.0 [1, 2]"]}), "C", marked=[1])
    assert cells(table) == [["x", "0.123", "8/255"], ["y", "–", "12.0 [1,\N{NO-BREAK SPACE}2]"]]
    assert re.findall(r'<th scope="col"( class="number")?>(\w)', table.html) == [
        ("", "a"), (' class="number"', "b"), (' class="number"', "c")
    ]  # fmt: skip
    assert table.html.count('<td class="number">') == 4
    assert re.findall(r'<tr class="marked"><th scope="row">(\w)', page(tmp_path, table)) == ["y"]


def test_an_interval_stays_on_one_line():
    table = Table(pd.DataFrame({"a": ["97.3 [96.4, 98.1]"]}), "C")
    assert cells(table) == [["97.3 [96.4,\N{NO-BREAK SPACE}98.1]"]]


def test_two_pages_are_the_same_bytes(tmp_path, png):
    first = page(tmp_path, Picture(png, "f", "f"), Picture(png, "r", "r"))
    assert first.count("data:image/png;base64,iVBOR") == 2
    assert first == page(tmp_path, Picture(png, "f", "f"), Picture(png, "r", "r"))


def test_a_picture_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(OSError, match="none.png"):
        page(tmp_path, Picture(tmp_path / "none.png", "c", "a"))
