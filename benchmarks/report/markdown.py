"""A report as Markdown; plots are left out."""

from __future__ import annotations

from collections.abc import Sequence

from .document import Code, Document, Figures, Part, Section, Table, Terms
from .wording import CLEARANCE


def to_markdown_text(document: Document) -> str:
    """Return the whole report but its plots; all text in it is escaped."""
    notes = [
        f"> **{'Invalidates the times' if caution.invalidates else 'Note'}:** "
        f"{_escape(caution.text)}\n"
        for caution in document.cautions
    ]
    parts = [
        f"# {document.title}\n",
        f"**{_escape(document.headline)}**\n",
        *notes,
        *(text for section in document.sections for text in _section(section)),
        "---\n",
        CLEARANCE,
    ]
    return "\n".join(parts) + "\n"


def _section(section: Section) -> list[str]:
    parts = [part for part in section.parts if not isinstance(part, Figures)]
    return [f"## {section.title}\n", *(_part(part, section) for part in parts)] if parts else []


def _part(part: Part, section: Section) -> str:
    if isinstance(part, Table):
        header = [f"{title} ({unit})" if unit else title for title, unit in part.header]
        heading = "" if part.title == section.title else f"### {_escape(part.title)}\n\n"
        return heading + markdown_table([_escape(h) for h in header], part.lines)
    if isinstance(part, Terms):
        return "".join(f"- **{_escape(k)}**: {_escape(v)}\n" for k, v in part.terms.items())
    if isinstance(part, Code):
        return f"    {' '.join(part.text.splitlines())}\n"
    return f"{_escape(str(part))}\n"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: the first column to the left, the others to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    lines += [[_escape(cell) for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _escape(text: str) -> str:
    """Keep a name from becoming a table cell, a link, emphasis or HTML."""
    for character in "\\`*_[]|":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.splitlines()).replace("&", "&amp;").replace("<", "&lt;")
