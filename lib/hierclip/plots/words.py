"""Records in words: cells, tables in Markdown and in HTML, the attack, the audit."""

import re
from collections.abc import Collection, Mapping, Sequence

import pandas as pd
from jinja2 import Environment
from markupsafe import Markup

from hierclip.evaluate import Record
from hierclip.evaluate.records import ThreatModel
from hierclip.plots.frames import in_order

READING = {"direct": "direct", "roll_up": "roll-up"}
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


def share(value: float, interval: tuple[float, float]) -> str:
    """A fraction with its interval, in percent."""
    low, high = interval
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def cell(value: object) -> str:
    """Floats to three digits, None and NaN as a dash, an interval on one line; HTML as it is."""
    if isinstance(value, Markup):
        return value
    if value is None or value != value:
        return "–"
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return re.sub(r"\[([^\s,]+), ([^\s,]+)\]", "[\\1,\N{NO-BREAK SPACE}\\2]", text)


def pipes(frame: pd.DataFrame, even: bool = False) -> str:
    """A frame as a table in Markdown; `even`: columns as wide as their cells, so that it reads well
    as plain text.
    """
    rows = [
        list(frame.columns),
        *(list(map(str, row)) for row in frame.itertuples(index=False, name=None)),
    ]
    widths = [max(map(len, column)) if even else 1 for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def table_html(
    frame: pd.DataFrame, caption: str = "", marked: Collection[int] = (), name: str = ""
) -> Markup:
    """A frame as a table in HTML, of a class `name`; the first column heads its rows, columns of
    numbers are set apart.

    marked: places of rows. What is no Markup is escaped.
    """
    rows = [[cell(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    numeric = [all(map(NUMBER.match, column)) for column in zip(*rows, strict=True)]
    shown = {"columns": frame.columns, "rows": rows, "numeric": numeric, "marked": marked}
    return Markup(TABLE.render(caption=caption, name=name, **shown))


def attack_words(threat: ThreatModel) -> str:
    """The attack of a threat model in a few words."""
    extra = (
        [f"PGD's steps {threat.step}"] if {"pgd_ce", "pgd_margin", "cw"} & set(threat.suite) else []
    )
    extra += [f"{threat.queries} queries"] if "square" in threat.suite else []
    if threat.prune:
        extra.append(
            f"the next on pictures that the one before moved {100 * threat.prune:.0f} % of the way at least"
        )
    words = f"{threat.norm} {threat.eps}, {' then '.join(threat.suite)}, {threat.steps} steps each"
    return ", ".join([words, f"random starts: {threat.restarts}", *extra])


def audit_words(records: Sequence[Record], labels: Mapping[str, str]) -> str:
    """Which checks of the audit failed in which record, with the number and its limit."""
    checks = [
        (r, name, check)
        for r in in_order(records, labels)
        for name, check in r.audit.checks.items()
    ]
    failed = [
        f"{labels[r.method]}, seed {r.seed}, {r.split.replace('_', ' ')}: "
        f"{name} ({check.value:.2f}, limit {check.limit:.2f})"
        for r, name, check in checks
        if not check.passed
    ]
    found = f"{len(checks) - len(failed)} of {len(checks)} checks passed."
    count = records[0].audit.images
    words = f"Audit of {count} picture{'s' * (count != 1)} a record: {found}"
    return words + (f" Failed: {'; '.join(failed)}." if failed else "")
