"""Write a benchmark record for people and spreadsheets; all numbers come from the record."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...runtime.errors import InputError
from ...runtime.files import require_writable, write_together
from ...runtime.paths import takes_paths
from ..formatting import printable, text_table
from ..record import BenchmarkRecord, to_json
from .markdown import to_markdown_text
from .metrics import columns_of, numbers_of
from .outline import report_document
from .page import to_page
from .wording import cautions, headline

SUFFIXES = (".html", ".json", ".md", ".csv")  # of the forms, the page's first
ROOM_BYTES = 16 << 20  # that must be free before anything is measured; most records have 1 to 3 MiB


def to_table(record: BenchmarkRecord) -> str:
    """Return headline, warnings and a compact table for a terminal."""
    columns = columns_of("terminal", record.rows)
    header = [f"{column.title} {column.unit}".strip() for column in columns]
    rows = [
        [column.cell(row, record.comparison_of(row)) for column in columns] for row in record.rows
    ]
    notes = [
        f"{'warning, invalidates the times' if caution.invalidates else 'note'}: {caution.text}"
        for caution in cautions(record)
    ]
    return printable("\n".join([headline(record), *notes, "", text_table(header, rows)]))


def to_html(record: BenchmarkRecord) -> str:
    """Return the report as one self-contained page."""
    return to_page(report_document(record))


def to_markdown(record: BenchmarkRecord) -> str:
    """Return the whole report but its plots as Markdown."""
    return to_markdown_text(report_document(record))


def to_csv(record: BenchmarkRecord) -> str:
    """Return one line per row with plain numbers; an empty cell is undefined or n too small."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    lines = [numbers_of(record, row) for row in record.rows]
    writer.writerow(lines[0])
    writer.writerows(map(_csv_cell, line.values()) for line in lines)
    return text.getvalue()


def _csv_cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


@takes_paths
def require_report_path(html_path: Path, *, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Check before the long work that the reports can be written.

    Args:
        html_path: of the page.
        suffixes: of all files that are written under its name.

    Raises:
        InputError: E-REPORT-NAME for an ending other than ``.html``.
        OutputError: E-OUT-WRITE where the folder cannot be written to or has not `ROOM_BYTES`
            left, or a file's name is that of a folder or too long.
    """
    _require_html(html_path)
    for path in map(html_path.with_suffix, suffixes):
        require_writable(path, ROOM_BYTES)


def _require_html(html_path: Path) -> None:
    if html_path.suffix != ".html":
        raise InputError(
            "E-REPORT-NAME", f"{html_path.name} does not end in .html; the page needs that ending"
        )


@takes_paths
def write_reports(record: BenchmarkRecord, html_path: Path) -> tuple[Path, ...]:
    """Write the page and, beside it under the same name, .json, .md and .csv; all or none.

    Args:
        record: what to report.
        html_path: ends in ``.html``.

    Returns:
        The paths written, the page first.

    Raises:
        InputError: E-REPORT-NAME for another ending.
        OutputError: E-OUT-WRITE.
    """
    _require_html(html_path)
    forms = (to_html(record), to_json(record), to_markdown(record), to_csv(record))
    contents = dict(zip(map(html_path.with_suffix, SUFFIXES), forms, strict=True))
    write_together(contents)
    return tuple(contents)
