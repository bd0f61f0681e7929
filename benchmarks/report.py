"""Write a benchmark record for people and spreadsheets; all numbers come from the record."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runtime.errors import InputError
from ..runtime.files import require_writable, write_together
from ..runtime.paths import takes_paths
from .latency import percentile, percentile_bounds, supported_percentile
from .markdown import to_markdown_text
from .outline import report_document
from .page import to_page
from .passes import summarise_passes
from .record import BenchmarkRecord, Row, to_json
from .text import printable, text_table
from .wording import TERMINAL_COLUMNS, cautions, dice_of, headline

SUFFIXES = (".html", ".json", ".md", ".csv")  # of the forms, the page's first
ROOM_BYTES = 16 << 20  # that must be free before anything is measured; most records have 1 to 3 MiB


def to_table(record: BenchmarkRecord) -> str:
    """Return headline, warnings and a compact table for a terminal."""
    header = [f"{c.title} {c.unit}".strip() for c in TERMINAL_COLUMNS]
    rows = [[column.cell(record, row) for column in TERMINAL_COLUMNS] for row in record.rows]
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
    lines = [_csv_fields(record, row) for row in record.rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _csv_fields(record: BenchmarkRecord, row: Row) -> dict[str, Any]:
    process = row.process
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
        "pss_mib": process.pss_mib,
        "gpu_memory_mib": process.device_mib,
        "start_ms": process.start_ms,
        "first_mask_ms": process.first_mask_ms,
        "rounds": record.rounds,
        **_csv_latency(row),
        **_csv_passes(row),
        **_csv_modes(row),
        **_csv_energy_and_layers(row),
        **_csv_accuracy(record, row),
    }
    return {key: _csv_cell(value) for key, value in fields.items()}


def _csv_latency(row: Row) -> dict[str, Any]:
    latency = row.latency
    percentiles: dict[str, Any] = {}
    for name, q, value in (
        ("p50", 0.5, latency.p50_ms),
        ("p90", 0.9, latency.p90_ms),
        ("p99", 0.99, latency.p99_ms),
    ):
        low, high = percentile_bounds(latency.e2e_ms, q)
        percentiles |= {f"{name}_ms": value, f"{name}_low_ms": low, f"{name}_high_ms": high}
    return {
        "steady": latency.steady,
        **percentiles,
        "pre_p50_ms": percentile(latency.pre_ms, 0.5),
        "engine_p50_ms": percentile(latency.engine_ms, 0.5),
        "transfer_p50_ms": percentile(latency.transfer_ms, 0.5) if latency.transfer_ms else None,
        "post_p50_ms": percentile(latency.post_ms, 0.5),
        "overhead": latency.overhead,
        "engine_alone_p50_ms": latency.alone_p50_ms,
    }


def _csv_passes(row: Row) -> dict[str, Any]:
    found, yardstick = summarise_passes(row), row.yardstick
    low, high = found.interval
    return {
        "yardstick_engine": yardstick and yardstick.engine,
        "yardstick_precision": yardstick and yardstick.precision,
        "yardstick_ms": found.yardstick_ms,
        "yardstick_ratio": found.ratio,
        "yardstick_ratio_low": low,
        "yardstick_ratio_high": high,
        "passes": yardstick and found.measured,
        "passes_that_count": yardstick and found.count,
        "passes_spread": found.spread,
        "smallest_slowdown": found.smallest,
        "passes_calls": yardstick and found.calls,
        "passes_calls_set_aside": yardstick and found.set_aside,
    }


def _csv_modes(row: Row) -> dict[str, Any]:
    offline, paced, soak = row.offline, row.paced, row.soak
    drift = soak and soak.latency_ms
    growth = soak and soak.memory_mib
    return {
        "offline_streams": offline and offline.streams,
        "offline_batch": offline and offline.batch,
        "offline_threads_each": offline and offline.threads_each,
        "offline_call_p50_ms": offline and offline.call_p50_ms,
        "offline_call_p99_ms": offline and offline.call_p99_ms,
        "offline_fps": offline and offline.fps,
        "offline_fps_low": offline and offline.fps_low,
        "offline_fps_high": offline and offline.fps_high,
        "paced_hz": paced and paced.hz,
        "paced_due": paced and paced.due,
        "paced_dropped": paced and paced.dropped,
        "paced_missed": paced and paced.missed,
        "paced_p50_ms": percentile(paced.latency_ms, 0.5) if paced and paced.done else None,
        "paced_p99_ms": paced and supported_percentile(paced.latency_ms, 0.99),
        "soak_s": soak and soak.windows[-1].end_s,
        "soak_drift_ms_per_min": drift and drift.per_minute,
        "soak_drift_low": drift and drift.low,
        "soak_drift_high": drift and drift.high,
        "soak_memory_mib_per_min": growth and growth.per_minute,
        "soak_memory_low": growth and growth.low,
        "soak_memory_high": growth and growth.high,
    }


def _csv_energy_and_layers(row: Row) -> dict[str, Any]:
    energy, layers, proof = row.energy, row.layers, row.proof
    return {
        "energy_net_mj_per_frame": energy and energy.net_mj_per_frame,
        "energy_gross_mj_per_frame": energy and energy.gross_mj_per_frame,
        "compute_peak_share": layers and layers.attained.compute_share,
        "roofline_share": layers and layers.attained.share,
        "gate_max_dice_drop": proof and proof.max_drop,
        "gate_worst_dice_drop_high": proof
        and max((step.dice_drop_high for step in proof.steps), default=None),
    }


def _csv_accuracy(record: BenchmarkRecord, row: Row) -> dict[str, Any]:
    comparison = record.comparison_of(row)
    ratio = comparison and comparison.latency
    difference = comparison and comparison.dice
    accuracy, dice = row.accuracy, dice_of(row)
    return {
        "trained": accuracy is not None,
        "images_with_lesion": accuracy and accuracy.lesions.images,
        "dice": dice and dice.mean,
        "dice_low": dice and dice.low,
        "dice_high": dice and dice.high,
        "iou": accuracy and accuracy.lesions.per_image["iou"].mean,
        "pooled_dice": accuracy and accuracy.lesions.pooled["dice"],
        "false_positive_share": accuracy and accuracy.false_positive_share,
        "calibration_error": row.calibration_error,
        "latency_ratio": ratio and ratio.ratio,
        "latency_ratio_low": ratio and ratio.low,
        "latency_ratio_high": ratio and ratio.high,
        "dice_difference": difference and difference.mean,
        "dice_difference_low": difference and difference.low,
        "dice_difference_high": difference and difference.high,
    }


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
