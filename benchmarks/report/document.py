"""What a report is made of, in whatever form; `page.py` and `markdown.py` write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Head = tuple[str, str]  # of a column: title, unit or ""


@dataclass(frozen=True)
class Table:
    """Cells as text; the first of each line is its heading."""

    title: str
    header: tuple[Head, ...]
    lines: tuple[tuple[str, ...], ...]
    words: bool = False  # whether the cells are text, not numbers
    folded: bool = False  # whether a page shows it only when asked


def heads(*titles: str | Head) -> tuple[Head, ...]:
    """Return a header of titles, with their units where they have one."""
    return tuple((title, "") if isinstance(title, str) else title for title in titles)


@dataclass(frozen=True)
class Figure:
    """A plot; only the page shows it."""

    title: str
    svg: str  # or HTML of what stands in its place
    caption: str
    legend: tuple[tuple[str, str], ...] = ()  # a colour's class in the style sheet, what it means


@dataclass(frozen=True)
class Figures:
    """Plots that stand beside each other."""

    figures: tuple[Figure, ...]
    kinds: tuple[str, ...]  # engines whose colours they show


@dataclass(frozen=True)
class Terms:
    """Names and what is said of each."""

    terms: Mapping[str, str]


@dataclass(frozen=True)
class Code:
    """A command line."""

    text: str
    label: str = "Command line"  # for those who hear the page


Part = str | Table | Terms | Figures | Code  # a text is a paragraph


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    parts: tuple[Part, ...]


def section(title: str, *parts: Part | None) -> Section:
    """Return a section of the parts that are there."""
    return Section(title, tuple(part for part in parts if part))


@dataclass(frozen=True)
class Caution:
    """What belongs in front of the numbers."""

    text: str
    invalidates: bool  # whether the numbers must not be used as they are


@dataclass(frozen=True)
class Document:
    """A whole report: what to remember, what to mind, then the rest."""

    title: str
    date: str  # of the measurement, ISO 8601
    headline: str  # one sentence
    cautions: tuple[Caution, ...]  # what invalidates the numbers first
    sections: tuple[Section, ...]
