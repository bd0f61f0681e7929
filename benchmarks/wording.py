"""The sentences and table cells that every form of the report shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from .accuracy import CALIBRATION_BINS, METRICS, MetricSummary, PairedDifference
from .latency import P99_MIN_N
from .record import BenchmarkRecord, Row
from .text import MISSING, fixed, percent, signed, significant

Cell = Callable[[BenchmarkRecord, Row], str]

CLEARANCE = (
    "Engineering evidence for the artifacts named here, on this machine. It is not a regulatory "
    "clearance and not a statement of clinical performance."
)

# Term and meaning, in the order they are printed.
DEFINITIONS: Mapping[str, str] = MappingProxyType(
    {
        "MACs and FLOPs": "multiply-accumulates of convolutions and matrix products for one frame; "
        "FLOPs = 2 × MACs.",
        "Latency": "from a uint8 frame in memory to its mask in the frame's own size, in memory: "
        "resizing, normalising, the engine, and reading out the mask. Single stream: the next "
        "frame is sent when the mask is there. Files are not read meanwhile. Each turn of a row "
        "starts with a pause, to let the threads of the row before rest, and one untimed call.",
        "Overhead": "what resizing, normalising and reading out add to the engine's own time on "
        "prepared input: the median over pairs of calls on the same frame.",
        "p50, p90, p99": "measured values of rank n·q. One is given only where n is large enough "
        f"for a 97.5 % upper confidence bound: p90 from 36 calls on, p99 from {P99_MIN_N}.",
        "Frames/s": "single stream, back to back.",
        "First mask": "from the start of a fresh process, so it includes imports and loading.",
        "Peak memory": "high-water mark of that process, interpreter and libraries included.",
        "Against the reference": "ratio of medians; all rows took turns on the same frames, and "
        "the 95 % interval resamples the rounds. “No difference” means the interval holds 1: "
        "not shown to differ, which is not proof of equality.",
        "Dice per image and pooled": "per image: the mean over images with a lesion, each counts "
        "the same, a missed lesion counts 0; the 95 % interval resamples groups of "
        "near-duplicates. Pooled: one ratio of summed pixels, so large lesions weigh more. Images "
        "without a lesion enter neither; their share with any predicted pixel is the false-"
        "positive rate.",
        "HD95": "95th percentile of the distances between both boundaries, in pixels of the image; "
        "undefined where nothing was predicted, so its n is smaller.",
        "ECE": "expected calibration error of the pixels' lesion probability at the network's "
        "size: the mean gap between probability and share of lesion pixels over "
        f"{CALIBRATION_BINS} bins of equal width (Guo et al. 2017), all images with equal weight, "
        "those without a lesion too. 0 is best.",
    }
)


class Column(NamedTuple):
    """One column of the main table."""

    title: str
    unit: str  # empty where there is none
    cell: Cell


def headline(record: BenchmarkRecord) -> str:
    """Return the one sentence to remember: the fastest row against the reference."""
    reference = record.rows[0]
    if not record.comparisons:
        dice = reference.accuracy.lesions.per_image["dice"]
        return (
            f"{reference.name} takes {significant(reference.latency.p50_ms)} ms a frame (median), "
            f"Dice {with_interval(dice)}."
        )
    best = min(record.comparisons, key=lambda comparison: comparison.latency.ratio)
    ratio = best.latency
    if ratio.high < 1:
        finding = (
            f"{best.name} is {significant(1 / ratio.ratio)}× faster than {reference.name} "
            f"(95 % interval {significant(1 / ratio.high)}–{significant(1 / ratio.low)})"
        )
    elif ratio.low > 1:
        finding = (
            f"{reference.name} is the fastest; {best.name} takes {significant(ratio.ratio)}× its "
            f"time (95 % interval {significant(ratio.low)}–{significant(ratio.high)})"
        )
    else:
        finding = (
            f"No difference in latency was found between {best.name} and {reference.name} "
            f"(ratio {significant(ratio.ratio)}, 95 % interval {significant(ratio.low)}–"
            f"{significant(ratio.high)})"
        )
    return f"{finding}; Dice {dice_difference(best.dice)}."


def dice_difference(difference: PairedDifference) -> str:
    """Return a paired Dice difference with its interval, and whether it is one."""
    text = (
        f"{signed(difference.mean)} ({signed(difference.low)} to {signed(difference.high)}, "
        f"n={difference.n})"
    )
    return text if difference.differs else f"not shown to differ: {text}"


def with_interval(summary: MetricSummary) -> str:
    """Return a mean with its interval, such as ``0.812 (0.790–0.831)``."""
    if not summary.n:
        return MISSING
    return f"{fixed(summary.mean)} ({fixed(summary.low)}–{fixed(summary.high)})"


def input_size(row: Row) -> str:
    """Return width × height of the network's input."""
    return f"{row.contract.width}×{row.contract.height}"


def percentile_text(value_ms: float | None) -> str:
    """Return a percentile, or why there is none."""
    return "n too small" if value_ms is None else significant(value_ms)


def mib(size_bytes: int) -> float:
    """Convert bytes to MiB."""
    return size_bytes / (1 << 20)


def _dice(row: Row) -> MetricSummary:
    return row.accuracy.lesions.per_image["dice"]


def _latency_vs_reference(record: BenchmarkRecord, row: Row) -> str:
    comparison = record.comparison_of(row)
    if comparison is None:
        return "reference"
    ratio = comparison.latency
    finding = f"{significant(ratio.ratio)}×" if ratio.differs else "no difference"
    return f"{finding} ({significant(ratio.low)}–{significant(ratio.high)})"


def _dice_vs_reference(record: BenchmarkRecord, row: Row) -> str:
    comparison = record.comparison_of(row)
    if comparison is None:
        return "reference"
    dice = comparison.dice
    return f"{signed(dice.mean)} ({signed(dice.low)} to {signed(dice.high)})"


_NAME = Column("Candidate", "", lambda record, row: row.name)
_TIMES: tuple[Column, ...] = (
    Column("p50", "ms", lambda record, row: significant(row.latency.p50_ms)),
    Column("p90", "ms", lambda record, row: percentile_text(row.latency.p90_ms)),
    Column("p99", "ms", lambda record, row: percentile_text(row.latency.p99_ms)),
    Column("Frames/s", "", lambda record, row: significant(row.throughput_fps)),
)
_COST: tuple[Column, ...] = (
    Column("Input", "px", lambda record, row: input_size(row)),
    Column("Parameters", "M", lambda record, row: significant(row.parameters / 1e6)),
    Column("MACs", "G", lambda record, row: significant(row.macs / 1e9)),
    Column("File", "MiB", lambda record, row: significant(mib(row.file_bytes))),
    Column("Peak memory", "MiB", lambda record, row: significant(row.process.peak_rss_mib)),
)

# What the pages show, what matters most first, and what fits into a terminal.
COLUMNS: tuple[Column, ...] = (
    _NAME,
    Column("Dice", "95 %", lambda record, row: with_interval(_dice(row))),
    Column("Dice vs reference", "95 %", _dice_vs_reference),
    *_TIMES,
    Column("Latency vs reference", "95 %", _latency_vs_reference),
    Column("Overhead", "", lambda record, row: percent(row.latency.overhead)),
    Column("First mask", "ms", lambda record, row: significant(row.process.first_mask_ms)),
    *_COST,
)
TERMINAL_COLUMNS: tuple[Column, ...] = (
    _NAME,
    *_COST,
    *_TIMES,
    Column("Dice", "", lambda record, row: fixed(_dice(row).mean)),
    Column("vs reference", "", _latency_vs_reference),
)


def metrics_table(record: BenchmarkRecord) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: metrics over images with a lesion, then those over all images."""
    header = ["Candidate", "Dice", "IoU", "Recall", "Precision", "Pixel accuracy", "HD95 px"]
    header += ["Pooled Dice", "Pooled IoU", "False positives", "ECE"]
    return header, [[row.name, *_metric_cells(row)] for row in record.rows]


def _metric_cells(row: Row) -> list[str]:
    accuracy = row.accuracy
    means, pooled = accuracy.lesions.per_image, accuracy.lesions.pooled
    return [
        *(fixed(means[metric].mean) for metric in METRICS if metric != "hd95_px"),
        f"{significant(means['hd95_px'].mean)} (n={means['hd95_px'].n})",
        fixed(pooled["dice"]),
        fixed(pooled["iou"]),
        f"{percent(accuracy.false_positive_share)} (n={accuracy.images_without_lesion})",
        fixed(row.calibration_error),
    ]


def groups_table(record: BenchmarkRecord) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: Dice of every row in every group of images."""
    groups = record.rows[0].accuracy.groups
    header = ["Candidate", *(f"{group.name} (n={group.images})" for group in groups)]
    return header, [
        [row.name, *(with_interval(group.per_image["dice"]) for group in row.accuracy.groups)]
        for row in record.rows
    ]


def groups_caption(record: BenchmarkRecord) -> str:
    """Say what small and large mean."""
    accuracy = record.rows[0].accuracy
    return (
        "Mean Dice per image with its 95 % interval. Sizes are the terciles of lesion area: small "
        f"up to {percent(accuracy.small_up_to_share)} of the image, large above "
        f"{percent(accuracy.large_above_share)}."
    )


def conditions(record: BenchmarkRecord) -> dict[str, str]:
    """Return what the numbers depend on, by name."""
    place = record.environment
    frequency = place.frequency_mhz
    clocks = [
        f"governor {place.governor}" if place.governor else "governor not readable",
        f"{frequency:.0f} MHz at the start" if frequency else "frequency not readable",
    ]
    packages = [f"{name} {version}" for name, version in place.packages.items() if version]
    return {
        "Measured": f"{place.started_utc}, {record.rounds} rounds over {record.frames} frames, "
        f"{record.images} images scored ({_selection(record)})",
        "CPU": f"{place.cpu}, {place.cores} logical cores usable",
        "Instructions": ", ".join(place.isa) or "none of interest",
        "Clocks": ", ".join(clocks),
        "Memory": f"{place.memory_mib} MiB" if place.memory_mib else "not readable",
        "System": place.system,
        "Load before": f"{place.load_average:.2f} over one minute",
        "Software": f"Python {place.python}, {', '.join(packages)}",
    }


def artifacts_table(record: BenchmarkRecord) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: which artifact ran how; .json and .csv have the whole hashes."""
    header = ["Candidate", "Engine", "Precision", "Engine facts", "Warm-up calls", "SHA-256, start"]
    return header, [
        [
            row.name,
            row.kind,
            row.precision,
            ", ".join(f"{key}: {value}" for key, value in row.engine_facts.items()),
            str(row.latency.warmup_calls) + ("" if row.latency.steady else " (not steady)"),
            row.artifact_sha256[:16],
        ]
        for row in record.rows
    ]


def _selection(record: BenchmarkRecord) -> str:
    if record.part == "unseen":
        return "what no network here was trained on"
    if record.split_sha256 is None:
        return "all of the data set"
    return f"{record.part} part of split {record.split_sha256[:12]}"
