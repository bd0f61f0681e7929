"""A report as one HTML file: no script, no network, readable on paper, phones and in the dark."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape

from .document import (
    Caution,
    Code,
    Document,
    Figure,
    Figures,
    Head,
    Part,
    Section,
    Table,
    Terms,
)
from .style import STYLE
from .svg import family
from .wording import CLEARANCE

_LONG = 40  # characters of a cell that get a wide column
_ROW = 80  # characters of a command on a line of its field
_FINDINGS = ("slower", "faster", "worse", "better", "not kept", "failed")  # cells in bold


def to_page(document: Document) -> str:
    """Return a report as one self-contained page; all text in it is escaped."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(document.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<header>\n<p class="kind">{escape(document.title)}, {escape(document.date)}'
        f"</p>\n<h1>{_unbroken(document.headline)}</h1>\n{_cautions(document.cautions)}"
        f"{_contents(document.sections)}</header>\n"
        f"<main>\n{''.join(map(_section, document.sections))}</main>\n"
        f"<footer><p>{escape(CLEARANCE)}</p></footer>\n</body>\n</html>\n"
    )


def _unbroken(text: str) -> str:
    """Escape a text and keep its percent signs beside their numbers and its ranges on a line."""
    ranges = re.sub(r"[\d.]+–[\d.]+", r'<span class="range">\g<0></span>', escape(text))
    return ranges.replace(" %", "&nbsp;%")


def _cautions(found: Sequence[Caution]) -> str:
    if not found:
        return ""
    items = "".join(
        f"<li>{'<strong>Invalidates the times:</strong> ' if caution.invalidates else ''}"
        f"{_prose(caution.text)}</li>"
        for caution in found
    )
    style = "note bad" if any(caution.invalidates for caution in found) else "note"
    return (
        f'<div class="{style}" role="note"><strong>Before you use these numbers</strong>'
        f"<ul>{items}</ul></div>\n"
    )


def _contents(sections: Sequence[Section]) -> str:
    links = "".join(
        f'<li><a href="#{_key(section)}">{escape(section.title)}</a></li>' for section in sections
    )
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n'


def _key(section: Section) -> str:
    return section.title.lower().replace(" ", "-")


def _section(section: Section) -> str:
    key = _key(section)
    content = "\n".join(_part(part, section) for part in section.parts)
    heading = f'<h2 id="{key}">{section.title}</h2>'
    return f'<section aria-labelledby="{key}">\n{heading}\n{content}\n</section>\n'


def _part(part: Part, section: Section) -> str:
    if isinstance(part, Table):
        return _table_under_heading(part, section)
    if isinstance(part, Figures):
        return _figures(part)
    if isinstance(part, Terms):
        return _terms(part.terms)
    if isinstance(part, Code):
        return _command(part)
    return f'<p class="quiet">{_prose(part)}</p>'


def _prose(text: str) -> str:
    """Escape a text and keep its options, such as --passes, on one line."""
    return re.sub(r"(?<![\w-])--[a-z][a-z-]*", r"<code>\g<0></code>", escape(text))


def _command(part: Code) -> str:
    """Return a command in a field that Tab reaches and whose keys select and copy it alone."""
    rows = math.ceil(len(part.text) / _ROW)  # where a browser does not know `field-sizing`
    return (
        f'<textarea readonly spellcheck="false" rows="{rows}" aria-label="{escape(part.label)}">'
        f"\n{escape(part.text)}</textarea>"
    )


def _table_under_heading(table: Table, section: Section) -> str:
    title = escape(table.title)
    if table.folded:
        return f"<details><summary>{title}</summary>{_table(table)}</details>"
    heading = "" if table.title == section.title else f"<h3>{title}</h3>"
    return heading + _table(table)


def _table(table: Table) -> str:
    """Return a table that scrolls in its own box; the box takes focus so that keys scroll it."""
    cell = _words if table.words else _number
    head = "".join(f'<th scope="col">{_head(head)}</th>' for head in table.header)
    body = "".join(
        f'<tr><th scope="row">{escape(line[0])}</th>{"".join(map(cell, line[1:]))}</tr>'
        for line in table.lines
    )
    return (
        f'<div class="scroll" role="group" aria-label="{escape(table.title)}" tabindex="0">'
        f'<table class="{"words" if table.words else "numbers"}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _head(head: Head) -> str:
    title, unit = head
    return escape(title) + (f"<small>{escape(unit)}</small>" if unit else "")


def _number(text: str) -> str:
    """Return a cell with what stands in brackets, such as an interval, on a line of its own."""
    value, bracket, rest = escape(text).partition(" (")
    return f"<td>{_finding(value)}{f' <small>({rest}</small>' if bracket else ''}</td>"


def _words(text: str) -> str:
    style = ' class="long"' if len(text) > _LONG else ""
    return f"<td{style}>{_finding(escape(text))}</td>"


def _finding(cell: str) -> str:
    return f"<strong>{cell}</strong>" if cell in _FINDINGS else cell


def _figures(part: Figures) -> str:
    colours = _swatches([(family(kind), kind) for kind in part.kinds])
    legend = f'<p class="quiet">Colour is the engine:{colours}</p>' if colours else ""
    return f'{legend}<div class="plots">{"".join(map(_figure, part.figures))}</div>'


def _swatches(legend: Sequence[tuple[str, str]]) -> str:
    return "".join(
        f' <span class="key"><span class="swatch {style}"></span>{escape(meaning)}</span>'
        for style, meaning in legend
    )


def _figure(figure: Figure) -> str:
    return (
        f"<figure><h3>{escape(figure.title)}</h3>{figure.svg}"
        f"<figcaption>{escape(figure.caption)}{_swatches(figure.legend)}</figcaption></figure>"
    )


def _terms(terms: Mapping[str, str]) -> str:
    pairs = (f"<dt>{escape(term)}</dt><dd>{_prose(text)}</dd>" for term, text in terms.items())
    return f"<dl>{''.join(pairs)}</dl>"
