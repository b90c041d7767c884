"""A page of HTML that stands alone: text, tables and pictures in sections, in one file that opens from disk."""

import base64
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader
from markdown_it import MarkdownIt
from markupsafe import Markup

# Raw HTML is shown as it was written, and pictures come only from `Picture`, so that nothing is loaded from elsewhere.
MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")

NUMBER = re.compile(r"[-+−]?\.?\d|–$")
TABLE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""
{%- macro number(k) %}{% if numeric[k] %} class="number"{% endif %}{% endmacro -%}
<table{% if name %} class="{{ name }}"{% endif %}>
{% if caption %}
<caption>{{ caption }}</caption>
{% endif %}
<thead>
<tr>{% for column in columns %}<th scope="col"{{ number(loop.index0) }}>{{ column }}</th>{% endfor %}</tr>
</thead>
<tbody>
{% for row in rows %}
<tr{% if loop.index0 in marked %} class="marked"{% endif %}><th scope="row">{{ row[0] }}</th>
{%- for cell in row[1:] %}<td{{ number(loop.index) }}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
""")


def cell(value: object) -> str:
    """Floats to three digits, None and NaN as a dash, an interval on one line; HTML as it is."""
    if isinstance(value, Markup):
        return value
    if value is None or value != value:
        return "–"
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return re.sub(r"\[([^\s,]+), ([^\s,]+)\]", "[\\1,\N{NO-BREAK SPACE}\\2]", text)


def table_html(frame: pd.DataFrame, caption: str = "", marked: Collection[int] = (), name: str = "") -> Markup:
    """A frame as a table in HTML, of a class `name`; the first column heads its rows, columns of numbers are set apart.

    marked: places of rows. What is no Markup is escaped.
    """
    rows = [[cell(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    numeric = [all(map(NUMBER.match, column)) for column in zip(*rows, strict=True)]
    shown = {"columns": frame.columns, "rows": rows, "numeric": numeric, "marked": marked}
    return Markup(TABLE.render(caption=caption, name=name, **shown))


@dataclass(frozen=True)
class Text:
    """Paragraphs in Markdown, with tables; HTML in it is shown, not obeyed."""

    markdown: str

    @property
    def html(self) -> Markup:
        return Markup(MARKDOWN.render(self.markdown))


@dataclass(frozen=True)
class Table:
    """A frame's columns as they are, without its index; the first one heads its rows, None and NaN are a dash.

    Floats are shown to three digits: format them before where that is not right. marked: places of the rows to stand
    out, say those that failed; say so in a cell too, as not everybody sees the colour.
    """

    frame: pd.DataFrame
    caption: str
    marked: Collection[int] = ()

    @property
    def html(self) -> Markup:
        return table_html(self.frame, self.caption, self.marked)


@dataclass(frozen=True)
class Picture:
    """A PNG file. caption: Markdown, says what to see; alt: what is there, for the blind."""

    file: Path
    caption: str
    alt: str

    @property
    def caption_html(self) -> Markup:
        return Markup(MARKDOWN.renderInline(self.caption))

    @property
    def address(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.file.read_bytes()).decode()


@dataclass(frozen=True)
class Section:
    """A heading, listed in the contents, and what stands under it."""

    title: str
    parts: Sequence[Text | Table | Picture]


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Writes sections under a title and a lead (Markdown) as one HTML file, the same to the byte for the same content.

    Raises OSError where a picture's file is not there.
    """
    pages = Environment(loader=PackageLoader("hierclip.audits"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    anchors = [f"{n}-{re.sub(r'[^a-z0-9]+', '-', s.title.lower()).strip('-')}" for n, s in enumerate(sections, start=1)]
    placed = list(zip(anchors, sections, strict=True))
    text = pages.get_template("page.html").render(title=title, lead=Text(lead), sections=placed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf8")
