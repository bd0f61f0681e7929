"""Write a benchmark record for people and spreadsheets; all numbers come from the record."""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runtime.errors import InputError
from ..runtime.files import require_writable, write_bytes
from .page import to_html
from .record import BenchmarkRecord, Row, to_json
from .text import text_table
from .wording import (
    CLEARANCE,
    COLUMNS,
    DEFINITIONS,
    TERMINAL_COLUMNS,
    artifacts_table,
    conditions,
    groups_caption,
    groups_table,
    headline,
    metrics_table,
)

__all__ = ["to_csv", "to_html", "to_markdown", "to_table", "write_reports"]


def to_table(record: BenchmarkRecord) -> str:
    """Return headline, warnings and a compact table for a terminal."""
    header = [f"{c.title} {c.unit}".strip() for c in TERMINAL_COLUMNS]
    rows = [[column.cell(record, row) for column in TERMINAL_COLUMNS] for row in record.rows]
    notes = [f"note: {note.text}" for note in record.notes]
    return "\n".join([headline(record), *notes, "", text_table(header, rows)])


def to_markdown(record: BenchmarkRecord) -> str:
    """Return the whole report but its plots as Markdown."""
    header = [f"{c.title} ({c.unit})" if c.unit else c.title for c in COLUMNS]
    rows = [[column.cell(record, row) for column in COLUMNS] for row in record.rows]
    notes = [f"> **Note:** {_escape_markdown(note.text)}\n" for note in record.notes]
    parts = [
        "# edgeseg benchmark\n",
        f"**{_escape_markdown(headline(record))}**\n",
        *notes,
        "## Results\n",
        markdown_table(header, rows),
        "## Accuracy by class and lesion size\n",
        f"{groups_caption(record)}\n",
        markdown_table(*groups_table(record)),
        "## All metrics\n",
        markdown_table(*metrics_table(record)),
        "## Conditions\n",
        "".join(f"- {name}: {_escape_markdown(v)}\n" for name, v in conditions(record).items()),
        markdown_table(*artifacts_table(record)),
        "## Definitions\n",
        "".join(f"- **{term}**: {meaning}\n" for term, meaning in DEFINITIONS.items()),
        "## Reproduce\n",
        f"    {shlex.join(record.environment.command)}\n",
        "---\n",
        CLEARANCE,
    ]
    return "\n".join(parts) + "\n"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: the first column to the left, the others to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    lines += [[_escape_markdown(cell) for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _escape_markdown(text: str) -> str:
    """Keep a name from becoming a table cell, a link, emphasis or HTML."""
    for character in "\\`*_[]|":
        text = text.replace(character, f"\\{character}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")


def to_csv(record: BenchmarkRecord) -> str:
    """Return one line per row with plain numbers; an empty cell is undefined or n too small."""
    lines = [_csv_fields(record, row) for row in record.rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _csv_fields(record: BenchmarkRecord, row: Row) -> dict[str, Any]:
    comparison = record.comparison_of(row)
    latency, process = row.latency, row.process
    dice = row.accuracy.lesions.per_image["dice"]
    fields: dict[str, Any] = {
        "name": row.name,
        "kind": row.kind,
        "precision": row.precision,
        "artifact_sha256": row.artifact_sha256,
        "input_width_px": row.contract.width,
        "input_height_px": row.contract.height,
        "parameters": row.parameters,
        "macs": row.macs,
        "weights_bytes": row.weights_bytes,
        "file_bytes": row.file_bytes,
        "peak_rss_mib": process.peak_rss_mib,
        "start_ms": process.start_ms,
        "first_mask_ms": process.first_mask_ms,
        "rounds": record.rounds,
        "steady": latency.steady,
        "p50_ms": latency.p50_ms,
        "p90_ms": latency.p90_ms,
        "p99_ms": latency.p99_ms,
        "overhead": latency.overhead,
        "throughput_fps": row.throughput_fps,
        "images_with_lesion": row.accuracy.lesions.images,
        "dice": dice.mean,
        "dice_low": dice.low,
        "dice_high": dice.high,
        "iou": row.accuracy.lesions.per_image["iou"].mean,
        "pooled_dice": row.accuracy.lesions.pooled["dice"],
        "false_positive_share": row.accuracy.false_positive_share,
        "calibration_error": row.calibration_error,
        "latency_ratio": comparison and comparison.latency.ratio,
        "latency_ratio_low": comparison and comparison.latency.low,
        "latency_ratio_high": comparison and comparison.latency.high,
        "dice_difference": comparison and comparison.dice.mean,
        "dice_difference_low": comparison and comparison.dice.low,
        "dice_difference_high": comparison and comparison.dice.high,
    }
    return {key: _csv_cell(value) for key, value in fields.items()}


def _csv_cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def require_report_path(html_path: Path) -> None:
    """Check before the long work that the reports can be written.

    Raises:
        InputError: E-REPORT-NAME for an ending other than ``.html``.
        OutputError: E-OUT-WRITE where the folder cannot be written to.
    """
    if html_path.suffix != ".html":
        raise InputError(
            "E-REPORT-NAME", f"{html_path.name} does not end in .html; the page needs that ending"
        )
    require_writable(html_path)


def write_reports(record: BenchmarkRecord, html_path: Path) -> tuple[Path, ...]:
    """Write the page and, beside it under the same name, .json, .md and .csv; each atomically.

    Args:
        record: what to report.
        html_path: ends in ``.html``.

    Returns:
        The paths written, the page first.

    Raises:
        InputError: E-REPORT-NAME for another ending.
        OutputError: E-OUT-WRITE.
    """
    require_report_path(html_path)
    contents = {
        ".html": to_html(record),
        ".json": to_json(record),
        ".md": to_markdown(record),
        ".csv": to_csv(record),
    }
    for suffix, content in contents.items():
        write_bytes(html_path.with_suffix(suffix), content)
    return tuple(html_path.with_suffix(suffix) for suffix in contents)
