"""What the report says, in which order; its forms only differ in how they write it."""

from __future__ import annotations

import shlex

from ..formatting import threads_text
from ..record import BenchmarkRecord
from ..yardstick_passes import MIN_PASSES, summarise_passes
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
from .document import Code, Document, Figure, Figures, Part, Section, Terms, section
from .froc_chart import froc_figures
from .pass_charts import pass_strips
from .svg import family
from .tables import (
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
    passes_table,
    peaks_table,
    predictions_table,
    proofs_table,
    rails_table,
    results_table,
    selection,
    soak_table,
)
from .wording import DEFINITIONS, cautions, headline, mib, mode_name


def report_document(record: BenchmarkRecord) -> Document:
    """Return the whole report of a record."""
    return Document(
        title="edgeseg benchmark",
        date=record.environment.started_utc[:10],
        headline=headline(record),
        cautions=tuple(cautions(record)),
        sections=_sections(record),
    )


def _sections(record: BenchmarkRecord) -> tuple[Section, ...]:
    """Return all below the headline; what was not measured says so."""
    return (
        section("Results", _results_caption(record), results_table(record)),
        section("Plots", _plots(record)),
        section("Latency in detail", latency_table(record)),
        section("How comparable is this run", *_passes(record)),
        section("Modes", *_modes(record)),
        section("Layers and roofline", *_layers(record)),
        section(
            "Memory and energy",
            memory_table(record),
            energy_table(record),
            rails_table(record),
            f"Energy: {record.no_energy}." if record.no_energy else None,
        ),
        section(
            "Parity and gates",
            parity_table(record) or "No candidate is an export with proofs.",
            proofs_table(record),
        ),
        section(
            "Accuracy by class and lesion size",
            groups_caption(record),
            groups_table(record) or "No candidate is trained.",
        ),
        section(
            "All metrics",
            "Means per image over images with a lesion, then pixel-pooled values, then the share "
            "of images without a lesion in which anything was predicted.",
            metrics_table(record),
        ),
        section(
            "Conditions",
            Terms(environment_terms(record)),
            conditions_table(record),
            artifacts_table(record),
        ),
        section("Definitions", Terms(DEFINITIONS)),
        section(
            "Reproduce",
            Code(shlex.join(record.environment.command)),
            "Folders are left out of the command. The .json beside this report keeps every sample.",
        ),
    )


def _results_caption(record: BenchmarkRecord) -> str:
    settings = record.settings
    offline = (
        f"Frames/s: mode {mode_name('offline')}, streams × batch: {settings.streams} × "
        f"{settings.batch}."
        if "offline" in record.settings.modes
        else "Frames/s were not measured."
    )
    return (
        f"Times: mode {mode_name('single')}, {record.rounds} calls{_threads(record)}. {offline} "
        f"{_scored(record)}The reference is {record.rows[0].name}."
    )


def _threads(record: BenchmarkRecord) -> str:
    """Return on how many threads all rows ran; empty where they differ (a note says so) or not."""
    threads = {row.engine_facts.get("threads", "") for row in record.rows}
    number = threads.pop()
    if threads or not number.isdecimal():
        return ""
    return f" on {threads_text(number)}"


def _scored(record: BenchmarkRecord) -> str:
    accuracy = next((row.accuracy for row in record.rows if row.accuracy), None)
    if accuracy is None:
        return ""
    return (
        f"Dice: {accuracy.lesions.images} images with a lesion of {record.images} "
        f"({selection(record)}). "
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
                "and more accurate. Circle FP32, square FP16, triangle BF16, diamond INT8. "
                "Networks that are not trained are left out.",
            ),
            *froc_figures(rows),
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


def _passes(record: BenchmarkRecord) -> list[Part | None]:
    table = passes_table(record)
    if table is None:
        return [
            "The rows of this run compare with each other only: it was measured without --passes, "
            "so edgeseg compare cannot tell a change of the machine from one of a row."
        ]
    strips = pass_strips(record.rows)
    figure = Figure(
        "Passes",
        strips,
        "A dot is a pass, the first one on top: the row's time over its yardstick's, in percent of "
        "their mean (long line). Below: the 99 % interval of that mean. Dots that drift from top "
        "to bottom moved during the run.",
    )
    return [
        "Between two runs a machine changes. So each row was also timed beside a yardstick, a "
        "fixed network in the same engine, and edgeseg compare compares the ratios of the two. A "
        "slow-down smaller than the one named here would probably be missed.",
        table,
        _too_few_passes(record),
        Figures((figure,), ()) if strips else None,
    ]


def _too_few_passes(record: BenchmarkRecord) -> str | None:
    names = [
        row.name
        for row in record.rows
        if row.yardstick and summarise_passes(row).count < MIN_PASSES
    ]
    if not names:
        return None
    return (
        f"{', '.join(names)}: cannot be compared with another run, as in too many passes nearly "
        "every call waited for a core; measure on a quieter machine, or with more --passes."
    )


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
