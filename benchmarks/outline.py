"""What the report says, in which order; its forms only differ in how they write it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from .charts import (
    LABELLED_LAYERS,
    PARTS,
    accuracy_against_latency,
    bars,
    latency_parts,
    latency_strips,
    part_medians,
    roofline,
    soak_lines,
)
from .record import BenchmarkRecord
from .svg import family
from .tables import (
    Table,
    artifacts_table,
    attained_table,
    conditions_table,
    energy_table,
    environment_terms,
    groups_caption,
    groups_table,
    latency_table,
    layers_table,
    memory_table,
    metrics_table,
    modes_table,
    offline_table,
    paced_table,
    parity_table,
    peaks_table,
    predictions_table,
    proofs_table,
    rails_table,
    results_table,
    soak_table,
)
from .wording import DEFINITIONS, mib, mode_name


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


Part = str | Table | Terms | Figures | Code  # a text is a paragraph


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    parts: tuple[Part, ...]


def sections(record: BenchmarkRecord) -> tuple[Section, ...]:
    """Return the whole report below its headline; what was not measured says so."""
    return (
        _section("Results", _results_caption(record), results_table(record)),
        _section("Plots", _plots(record)),
        _section("Latency in detail", latency_table(record)),
        _section("Modes", *_modes(record)),
        _section("Layers and roofline", *_layers(record)),
        _section(
            "Memory and energy",
            memory_table(record),
            energy_table(record),
            rails_table(record),
            f"Energy: {record.no_energy}." if record.no_energy else None,
        ),
        _section(
            "Parity and gates",
            parity_table(record) or "No candidate is an export with proofs.",
            proofs_table(record),
        ),
        _section(
            "Accuracy by class and lesion size",
            groups_caption(record),
            groups_table(record) or "No candidate is trained.",
        ),
        _section(
            "All metrics",
            "Means per image over images with a lesion, then pixel-pooled values, then the share "
            "of images without a lesion in which anything was predicted.",
            metrics_table(record),
        ),
        _section(
            "Conditions",
            Terms(environment_terms(record)),
            conditions_table(record),
            artifacts_table(record),
        ),
        _section("Definitions", Terms(DEFINITIONS)),
        _section(
            "Reproduce",
            Code(shlex.join(record.environment.command)),
            "Folders are left out of the command. The .json beside this report keeps every sample.",
        ),
    )


def _section(title: str, *parts: Part | None) -> Section:
    return Section(title, tuple(part for part in parts if part))


def _results_caption(record: BenchmarkRecord) -> str:
    settings = record.settings
    offline = (
        f"Frames/s: mode {mode_name('offline')}, streams × batch: {settings.streams} × "
        f"{settings.batch}."
        if "offline" in record.settings.modes
        else "Frames/s were not measured."
    )
    return (
        f"Times: mode {mode_name('single')}, {record.rounds} calls. {offline} The reference is "
        f"{record.rows[0].name}."
    )


def _plots(record: BenchmarkRecord) -> Figures:
    rows = record.rows
    told = {part for row in rows for part in part_medians(row)}
    memory = bars(rows, [row.process.peak_rss_mib for row in rows], "Peak memory", "MiB", "memory")
    size = bars(rows, [mib(row.file_bytes) for row in rows], "Model file", "MiB", "size")
    return Figures(
        (
            Figure(
                "Accuracy against latency",
                accuracy_against_latency(rows) or "<p>No image with a lesion was scored.</p>",
                "Up and left is better. Dashed: the Pareto front; nothing measured is both faster "
                "and more accurate. Circle FP32, square FP16, diamond INT8. Networks that are not "
                "trained are left out.",
            ),
            Figure(
                "Distribution of latency",
                latency_strips(rows),
                "A dot is a timed frame. Lines and numbers: p50 (long line), p90 and p99 (shorter, "
                "where n allows).",
            ),
            Figure(
                "Latency in parts, ms",
                latency_parts(rows),
                "Medians of each part.",
                tuple((part, PARTS[part]) for part in PARTS if part in told),
            ),
            Figure(
                "Peak memory, MiB",
                memory,
                "A fresh process opens the model, predicts 21 frames.",
            ),
            Figure("Model file, MiB", size, "The files an engine loads, as they lie on disk."),
        ),
        _kinds(record),
    )


def _kinds(record: BenchmarkRecord) -> tuple[str, ...]:
    return tuple(sorted({row.kind for row in record.rows}, key=lambda kind: (family(kind), kind)))


def _modes(record: BenchmarkRecord) -> list[Part | None]:
    figures = tuple(
        Figure(
            f"Soak of {row.name}",
            soak_lines(row, row.soak, f"soak-{index}"),
            "Above: median of each window. Below: resident memory of the process. The axes do not "
            "start at 0.",
        )
        for index, row in enumerate(record.rows)
        if row.soak
    )
    return [
        modes_table(record),
        offline_table(record),
        paced_table(record),
        soak_table(record),
        Figures(figures, ()) if figures else None,
    ]


def _layers(record: BenchmarkRecord) -> list[Part | None]:
    peaks = {(each.engine, each.threads): each for each in record.peaks}
    measured = [(row, row.layers) for row in record.rows if row.layers]
    if not measured:
        return ["Not measured."]
    figures = tuple(
        Figure(
            f"Roofline of {row.name}",
            roofline(row, report, peaks[key], f"roofline-{index}"),
            f"A dot is a layer with products: its area is its time, filled INT8, hollow float. "
            f"Numbers: the {LABELLED_LAYERS} layers that take most time, as in the table. A dot "
            "above the slope got its data from a cache; for one above its roof the machine was "
            "busier when that peak was measured.",
        )
        for index, (row, report) in enumerate(measured)
        if (key := (report.times.engine, report.times.threads)) in peaks
    )
    return [
        attained_table(record),
        peaks_table(record),
        Figures(figures, ()) if figures else None,
        *(layers_table(row, report) for row, report in measured),
        predictions_table(record),
        _predictions_caption(record),
    ]


def _predictions_caption(record: BenchmarkRecord) -> str | None:
    if predictions_table(record) is None:
        return None
    return (
        "Predictions are intervals from data sheets, in brackets the precision and what bounds "
        "most of the time. No device was measured for them."
    )
