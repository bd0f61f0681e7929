"""Every figure of a row, once: its number, what it is, and where people read it or limit it.

The CSV and its description, the tables of figures on the page, in Markdown and in the terminal,
those of a comparison, and budgets follow from `METRICS`. Tables of a mode, of layers or of energy
have cells of their own in `tables`.

`python -m edgeseg.benchmarks.report.metrics` prints the description of the CSV.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...runtime.errors import InputError
from ..compare import (
    ANY_LIMIT,
    MILLISECONDS,
    OF_COMPARISONS,
    SIZES,
    Budget,
    BudgetKind,
    Convert,
    RowComparison,
    times,
)
from ..formatting import MISSING, fixed, percent, significant
from ..measure.froc import CurvePoint
from ..measure.latency import P99_MIN_N, percentile, percentile_bounds
from ..record import BenchmarkRecord, Comparison, Row
from ..yardstick_passes import summarise_passes
from . import cells
from .froc_chart import point_of
from .wording import (
    bounded_text,
    fps_text,
    input_size,
    median_text,
    mib,
    percentile_text,
)

Value = str | float | None  # None or NaN: not measured, not defined, or n too small
Get = Callable[[Row, Comparison | None], Value]  # of a row, and of it against the reference
Cell = Callable[[Row, Comparison | None], str]
Table = Literal[
    "results",
    "terminal",
    "latency",
    "memory",
    "accuracy",
    "compared times",
    "compared memory",
    "compared accuracy",
]


@dataclass(frozen=True)
class Column:
    """A figure in one table of a report."""

    table: Table
    title: str
    unit: str  # empty where there is none
    cell: Cell
    order: int = 50  # columns stand by it, those alike in the order of METRICS
    only_where: Callable[[Row], bool] | None = None  # left out unless one row has it; None: never
    is_split: bool = False  # in a comparison: old and new apart, not one cell with an arrow


@dataclass(frozen=True)
class Limit:
    """How a budget of a figure is written; the figure's `better` says which side is kept."""

    name: str  # before the "="
    example: str
    units: Mapping[str, Convert]  # to the unit of the figure
    written: Callable[[float], str]
    why_none: Callable[[Row], str] = lambda row: "not measured"
    limits: tuple[float, float] = ANY_LIMIT
    of_trained: bool = False  # passes over networks that are not trained


@dataclass(frozen=True)
class Metric:
    """One figure of a row."""

    key: str  # of its column in the CSV
    unit: str  # of its number; empty for words, counts, shares and ratios
    get: Get
    text: str  # what it is; no stop at its end
    better: Literal["lower", "higher", ""] = ""
    budget: Limit | None = None
    columns: tuple[Column, ...] = ()
    type: type = float  # or str, bool


# --- entries that are alike ----------------------------------------------------------------------


def _of(get: Callable[[Row], Any]) -> Callable[[Row, Comparison | None], Any]:
    """Return a number or cell of a row alone as one of a row and its comparison."""
    return lambda row, against: get(row)


def _fact(key: str, get: Callable[[Row], Any], text: str, kind: type = float) -> Metric:
    """Return a figure that only the CSV has."""
    return Metric(key, "", _of(get), text, type=kind)


def _ends(
    keys: tuple[str, str], unit: str, what: str, get: Callable[[Row], cells.Ends]
) -> tuple[Metric, Metric]:
    """Return both ends of an interval."""
    low = Metric(keys[0], unit, _of(lambda row: get(row)[0]), f"lower end of {what}")
    return low, Metric(keys[1], unit, _of(lambda row: get(row)[1]), f"upper end of {what}")


def _percentile(
    name: str, q: float, get: Callable[[Row], Value], budget: Limit, cell: Callable[[Row], str]
) -> tuple[Metric, ...]:
    """Return a percentile of latency and both ends of its interval."""
    of_samples = _of(lambda row: bounded_text(row.latency.e2e_ms, q))
    return (
        Metric(
            f"{name}_ms",
            "ms",
            _of(get),
            f"{name} of latency, from a frame in memory to its mask",
            "lower",
            budget,
            (
                Column("results", name, "ms", _of(cell), order=1 if q == 0.5 else 5),
                Column("terminal", name, "ms", _of(cell)),
                Column("latency", name, "ms, 95 %", of_samples),
                Column("compared times", name, "ms", _of(cell)),
            ),
        ),
        *_ends(
            (f"{name}_low_ms", f"{name}_high_ms"),
            "ms",
            f"the 95 % interval of {name}",
            lambda row: percentile_bounds(row.latency.e2e_ms, q),
        ),
    )


def _part(
    key: str,
    title: str,
    what: str,
    samples: Callable[[Row], Sequence[float]],
    only_where: Callable[[Row], bool] | None = None,
) -> Metric:
    """Return the median of a part of a call."""
    cell = _of(lambda row: median_text(samples(row)))
    return Metric(
        key,
        "ms",
        _of(lambda row: percentile(samples(row), 0.5) if samples(row) else None),
        f"median of {what}",
        "lower",
        columns=(Column("latency", title, "ms, median", cell, only_where=only_where),),
    )


def _of_lesions(
    key: str, title: str, text: str, get: Callable[[Row], float | None], *more: Column
) -> Metric:
    """Return a share or ratio over images with a lesion, of which 1 is best."""

    def cell(row: Row) -> str:
        value = get(row)
        return MISSING if value is None else fixed(value)

    column = Column("accuracy", title, "", _of(cell))
    return Metric(key, "", _of(get), text, "higher", columns=(column, *more))


def _of_point(
    key: str, better: Literal["lower", "higher"], text: str, get: Callable[[CurvePoint], float]
) -> Metric:
    """Return a figure of the row's own point on the curve over all images."""

    def number(row: Row) -> Value:
        return get(point_of(row, row.curves[0])) if row.curves else None

    return Metric(key, "", _of(number), text, better)


def _mean(metric: str) -> Callable[[Row], float | None]:
    return lambda row: row.accuracy.lesions.per_image[metric].mean if row.accuracy else None


def _pooled(ratio: str) -> Callable[[Row], float | None]:
    return lambda row: row.accuracy.lesions.pooled[ratio] if row.accuracy else None


def _passes(key: str, unit: str, text: str, get: Callable[[Any], Any]) -> Metric:
    """Return a figure of the passes; only the CSV has it as a plain number."""
    return Metric(key, unit, _of(lambda row: get(summarise_passes(row))), text)


def _if_yardstick(key: str, text: str, get: Callable[[Any], Any]) -> Metric:
    return _fact(key, lambda row: get(summarise_passes(row)) if row.yardstick else None, text)


def _offline(key: str, unit: str, text: str, get: Callable[[Any], Any]) -> Metric:
    return Metric(key, unit, _of(lambda row: row.offline and get(row.offline)), text)


def _paced(key: str, unit: str, text: str, get: Callable[[Any], Any]) -> Metric:
    return Metric(key, unit, _of(lambda row: row.paced and get(row.paced)), text)


def _against(key: str, text: str, get: Callable[[Comparison], Any], *more: Column) -> Metric:
    def number(row: Row, against: Comparison | None) -> Value:
        return get(against) if against else None

    return Metric(key, "", number, text, columns=more)


def _ms_text(value: float) -> str:
    return f"{significant(value)} ms"


def _time_limit(name: str, example: str, why_none: str = "not measured") -> Limit:
    return Limit(name, example, MILLISECONDS, _ms_text, lambda row: why_none)


def _tells_copies(row: Row) -> bool:
    return bool(row.latency.transfer_ms)


_name = _of(lambda row: row.name)
_input = _of(input_size)
_parameters = _of(lambda row: significant(row.parameters / 1e6))
_macs = _of(lambda row: significant(row.macs / 1e9))
_file = _of(lambda row: significant(mib(row.file_bytes)))
_peak = _of(lambda row: significant(row.process.peak_rss_mib))
_start = _of(lambda row: significant(row.process.start_ms))
_first_mask = _of(lambda row: significant(row.process.first_mask_ms))
_first_frame = _of(lambda row: significant(cells.first_frame_ms(row)))
_MISSED_UNIT = f"Dice under {cells.MISSED_BELOW:g}"
_fps = _of(lambda row: fps_text(row.offline))

# --- the table -----------------------------------------------------------------------------------

# In the order of the CSV. To add a figure: an entry here; every form and the test of it follow.
METRICS: tuple[Metric, ...] = (
    Metric(
        "name",
        "",
        _name,
        "name of the candidate, unique in a run",
        columns=(
            Column("results", "Candidate", "", _name, order=0),
            Column("terminal", "Candidate", "", _name),
            Column("latency", "Candidate", "", _name),
            Column("memory", "Candidate", "", _name),
            Column("accuracy", "Candidate", "", _name),
        ),
        type=str,
    ),
    _fact("kind", lambda row: row.kind, "name of the engine", str),
    _fact("precision", lambda row: row.precision, "fp32, fp16, bf16 or int8", str),
    _fact(
        "artifact_sha256",
        lambda row: row.artifact_sha256,
        "SHA-256 of the bundle or checkpoint that was opened",
        str,
    ),
    Metric(
        "input_width_px",
        "px",
        _of(lambda row: row.contract.width),
        "width of the network's input",
        columns=(
            Column("terminal", "Input", "px", _input),
            Column("memory", "Input", "px", _input),
        ),
    ),
    Metric(
        "input_height_px",
        "px",
        _of(lambda row: row.contract.height),
        "height of the network's input",
    ),
    Metric(
        "parameters",
        "",
        _of(lambda row: row.parameters),
        "parameters of the network",
        "lower",
        columns=(
            Column("terminal", "Parameters", "M", _parameters),
            Column("memory", "Parameters", "M", _parameters),
        ),
    ),
    Metric(
        "macs",
        "",
        _of(lambda row: row.macs),
        "multiply-accumulates of the network for one frame",
        "lower",
        columns=(
            Column("terminal", "MACs", "G", _macs),
            Column("memory", "MACs", "G", _macs),
        ),
    ),
    Metric(
        "weights_bytes",
        "bytes",
        _of(lambda row: row.weights_bytes),
        "bytes of the weights",
        "lower",
        columns=(
            Column(
                "memory",
                "Weights",
                "MiB",
                _of(lambda row: significant(mib(row.weights_bytes))),
                order=60,
            ),
        ),
    ),
    Metric(
        "file_bytes",
        "bytes",
        _of(lambda row: row.file_bytes),
        "bytes of the files that the engine loads",
        "lower",
        Limit("size", "size=2MiB", SIZES, lambda value: f"{significant(mib(value))} MiB"),
        (
            Column("results", "File", "MiB", _file, order=8),
            Column("terminal", "File", "MiB", _file),
            Column("memory", "File", "MiB", _file, order=60),
            Column("compared memory", "File", "MiB", _file, order=60),
        ),
    ),
    Metric(
        "peak_rss_mib",
        "MiB",
        _of(lambda row: row.process.peak_rss_mib),
        "most resident memory of a process of its own, interpreter and libraries included",
        "lower",
        Limit(
            "memory",
            "memory=300MiB",
            {unit: times(convert(1) / 2**20) for unit, convert in SIZES.items()},
            lambda value: f"{significant(value)} MiB",
        ),
        (
            Column("results", "Peak memory", "MiB", _peak, order=7),
            Column("terminal", "Peak memory", "MiB", _peak),
            Column("memory", "Peak RSS", "MiB", _peak),
            Column("compared memory", "Peak memory", "MiB", _peak),
        ),
    ),
    Metric(
        "pss_mib",
        "MiB",
        _of(lambda row: row.process.pss_mib),
        "memory of that process after its last mask; what is shared counts in part",
        "lower",
        columns=(
            Column("memory", "PSS", "MiB", _of(lambda row: significant(row.process.pss_mib))),
        ),
    ),
    Metric(
        "gpu_memory_mib",
        "MiB",
        _of(lambda row: row.process.device_mib),
        "most GPU memory of that process after any mask, the CUDA context included",
        "lower",
        columns=(Column("memory", "GPU memory", "MiB", _of(cells.gpu_memory_text)),),
    ),
    Metric(
        "start_ms",
        "ms",
        _of(lambda row: row.process.start_ms),
        "from the start of that process until the network is ready",
        "lower",
        _time_limit("start", "start=1.5s"),
        (
            Column("memory", "Start", "ms", _start),
            Column("compared memory", "Start", "ms", _start),
        ),
    ),
    Metric(
        "first_mask_ms",
        "ms",
        _of(lambda row: row.process.first_mask_ms),
        "from the start of that process until its first mask is there",
        "lower",
        _time_limit("first_mask", "first_mask=2s"),
        (
            Column("results", "First mask", "ms", _first_mask, order=6),
            Column("memory", "First mask", "ms", _first_mask),
            Column("compared memory", "First mask", "ms", _first_mask),
        ),
    ),
    Metric(
        "first_frame_ms",
        "ms",
        _of(cells.first_frame_ms),
        "from the ready network to its first mask: first_mask_ms less start_ms",
        "lower",
        _time_limit("first_frame", "first_frame=50ms"),
        (
            Column("memory", "Power-on to mask", "ms, start + frame", _of(cells.power_on_text)),
            Column("compared memory", "First frame", "ms", _first_frame),
        ),
    ),
    _fact("rounds", lambda row: len(row.latency.e2e_ms), "timed calls of single frames"),
    Metric(
        "steady",
        "",
        _of(lambda row: row.latency.steady),
        "whether the warm-up became steady within its cap",
        columns=(
            Column(
                "latency",
                "Steady",
                "",
                _of(lambda row: "yes" if row.latency.steady else "no"),
                order=60,
            ),
        ),
        type=bool,
    ),
    *_percentile(
        "p50",
        0.5,
        lambda row: row.latency.p50_ms,
        _time_limit("p50", "p50=20ms"),
        lambda row: median_text(row.latency.e2e_ms),
    ),
    *_percentile(
        "p90",
        0.9,
        lambda row: row.latency.p90_ms,
        _time_limit("p90", "p90=25ms", "n too small for a p90"),
        lambda row: percentile_text(row.latency.e2e_ms, 0.9),
    ),
    *_percentile(
        "p99",
        0.99,
        lambda row: row.latency.p99_ms,
        _time_limit("p99", "p99=33ms", f"n too small for a p99, which needs {P99_MIN_N}"),
        lambda row: percentile_text(row.latency.e2e_ms, 0.99),
    ),
    _part("pre_p50_ms", "Preparing", "preparing a frame", lambda row: row.latency.pre_ms),
    _part(
        "engine_p50_ms",
        "Engine",
        "the engine's call, copies included",
        lambda row: row.latency.engine_ms,
    ),
    _part(
        "transfer_p50_ms",
        "of it: copies",
        "copies to and from a GPU",
        lambda row: row.latency.transfer_ms,
        _tells_copies,
    ),
    _part(
        "compute_p50_ms",
        "of it: compute",
        "the engine's call without these copies",
        lambda row: row.latency.compute_ms,
        _tells_copies,
    ),
    _part("post_p50_ms", "Reading out", "reading out the mask", lambda row: row.latency.post_ms),
    Metric(
        "overhead",
        "",
        _of(lambda row: row.latency.overhead),
        "what preparing and reading out add to the engine's time, as a share of it",
        "lower",
        columns=(
            Column("latency", "Overhead", "", _of(lambda row: percent(row.latency.overhead))),
        ),
    ),
    _part(
        "engine_alone_p50_ms",
        "Engine alone",
        "the engine's calls back to back on prepared input",
        lambda row: row.latency.alone_ms,
    ),
    Metric(
        "warmup_calls",
        "",
        _of(lambda row: row.latency.warmup_calls),
        "calls before the first timed one",
        columns=(
            Column("latency", "Warm-up", "calls", _of(lambda row: str(row.latency.warmup_calls))),
        ),
    ),
    _fact(
        "yardstick_engine",
        lambda row: row.yardstick and row.yardstick.engine,
        "engine of the yardstick",
        str,
    ),
    _fact(
        "yardstick_precision",
        lambda row: row.yardstick and row.yardstick.precision,
        "precision of the yardstick",
        str,
    ),
    _passes("yardstick_ms", "ms", "time of the yardstick", lambda found: found.yardstick_ms),
    _passes("yardstick_ratio", "", "time over the yardstick's", lambda found: found.ratio),
    *_ends(
        ("yardstick_ratio_low", "yardstick_ratio_high"),
        "",
        "the 99 % interval of that ratio",
        lambda row: summarise_passes(row).interval,
    ),
    _if_yardstick("passes", "passes beside the yardstick", lambda found: found.measured),
    _if_yardstick("passes_that_count", "passes that count", lambda found: found.count),
    _passes(
        "passes_spread",
        "",
        "standard deviation of the passes' ratios, as a share",
        lambda found: found.spread,
    ),
    _passes(
        "smallest_slowdown",
        "",
        "smallest ratio that a comparison with a like run would find 19 times in 20",
        lambda found: found.smallest,
    ),
    _if_yardstick("passes_calls", "calls in all passes", lambda found: found.calls),
    _if_yardstick(
        "passes_calls_set_aside",
        "calls of them that waited for a core",
        lambda found: found.set_aside,
    ),
    _offline("offline_streams", "", "streams at once", lambda run: run.streams),
    _offline("offline_batch", "", "frames a call", lambda run: run.batch),
    _fact(
        "offline_threads_each",
        lambda row: row.offline and row.offline.threads_each,
        "threads of a stream",
        str,
    ),
    _offline("offline_call_p50_ms", "ms", "median of a call", lambda run: run.call_p50_ms),
    _offline("offline_call_p99_ms", "ms", "p99 of a call", lambda run: run.call_p99_ms),
    Metric(
        "offline_fps",
        "1/s",
        _of(lambda row: row.offline and row.offline.fps),
        "frames a second with all streams busy",
        "higher",
        columns=(
            Column("results", "Frames/s", "95 %", _fps, order=5),
            Column(
                "terminal",
                "Frames/s",
                "",
                _of(lambda row: significant(row.offline.fps) if row.offline else MISSING),
            ),
            Column("compared times", "Frames/s", "", _fps, is_split=True),
        ),
    ),
    *_ends(
        ("offline_fps_low", "offline_fps_high"),
        "1/s",
        "the 95 % interval of the frames a second",
        cells.fps_ends,
    ),
    _paced("paced_hz", "1/s", "frames a second of the clock", lambda run: run.hz),
    _paced("paced_due", "", "frames that were due", lambda run: run.due),
    _paced("paced_dropped", "", "frames that a newer one replaced", lambda run: run.dropped),
    _paced("paced_missed", "", "masks after the next tick", lambda run: run.missed),
    Metric("paced_p50_ms", "ms", _of(cells.paced_p50_ms), "median from tick to mask", "lower"),
    Metric("paced_p99_ms", "ms", _of(cells.paced_p99_ms), "p99 from tick to mask", "lower"),
    Metric(
        "soak_s",
        "s",
        _of(lambda row: row.soak and row.soak.windows[-1].end_s),
        "length of the soak",
    ),
    Metric(
        "soak_drift_ms_per_min",
        "ms/min",
        _of(lambda row: row.soak and row.soak.latency_ms.per_minute),
        "drift of latency over the soak",
    ),
    *_ends(
        ("soak_drift_low", "soak_drift_high"),
        "ms/min",
        "the 95 % interval of that drift",
        cells.drift_ends,
    ),
    Metric(
        "soak_memory_mib_per_min", "MiB/min", _of(cells.growth), "growth of memory over the soak"
    ),
    *_ends(
        ("soak_memory_low", "soak_memory_high"),
        "MiB/min",
        "the 95 % interval of that growth",
        cells.growth_ends,
    ),
    Metric(
        "energy_net_mj_per_frame",
        "mJ",
        _of(lambda row: row.energy and row.energy.net_mj_per_frame),
        "energy of a frame above rest",
        "lower",
    ),
    Metric(
        "energy_gross_mj_per_frame",
        "mJ",
        _of(lambda row: row.energy and row.energy.gross_mj_per_frame),
        "energy of a frame, rest included",
        "lower",
    ),
    _fact(
        "compute_peak_share",
        lambda row: row.layers and row.layers.attained.compute_share,
        "share of the compute peak",
    ),
    _fact(
        "roofline_share",
        lambda row: row.layers and row.layers.attained.share,
        "least time that the roofline allows over the measured one",
    ),
    _fact(
        "gate_max_dice_drop",
        lambda row: row.proof and row.proof.max_drop,
        "loss of Dice that the gate of the export allows",
    ),
    _fact(
        "gate_worst_dice_drop_high",
        cells.worst_drop,
        "largest upper end of the 95 % interval of that loss, of any file of the export",
    ),
    _fact("trained", lambda row: row.accuracy is not None, "whether masks mean something", bool),
    _fact(
        "images_with_lesion",
        lambda row: row.accuracy and row.accuracy.lesions.images,
        "images with a lesion that were scored",
    ),
    Metric(
        "dice",
        "",
        _of(cells.dice),
        "mean Dice over images with a lesion",
        "higher",
        Limit(
            "dice",
            "dice=0.8",
            {"": times(1)},
            fixed,
            cells.why_no_dice,
            limits=(0, 1),
            of_trained=True,
        ),
        (
            Column("results", "Dice", "95 %", _of(cells.dice_text), order=3),
            Column("terminal", "Dice", "", _of(cells.mean_dice_text)),
            Column("accuracy", "Dice", "", _of(cells.mean_dice_text)),
        ),
    ),
    *_ends(("dice_low", "dice_high"), "", "the 95 % interval of Dice", cells.dice_ends),
    Metric(
        "lesions_missed",
        "",
        _of(cells.missed_share),
        f"share of lesions whose Dice is under {cells.MISSED_BELOW:g}",
        "lower",
        Limit(
            "lesions_missed",
            "lesions_missed=5%",
            {"": times(1), "%": times(0.01)},
            percent,
            cells.why_no_dice,
            limits=(0, 1),
            of_trained=True,
        ),
        (
            Column("results", "Lesions missed", _MISSED_UNIT, _of(cells.missed_text), order=4),
            Column("accuracy", "Lesions missed", _MISSED_UNIT, _of(cells.missed_text)),
            Column("compared accuracy", "Lesions missed", _MISSED_UNIT, _of(cells.missed_text)),
        ),
    ),
    _of_lesions("iou", "IoU", "mean IoU over images with a lesion", _mean("iou")),
    _of_lesions("recall", "Recall", "mean recall over images with a lesion", _mean("recall")),
    _of_lesions(
        "mask_precision",
        "Precision",
        "mean precision of the masks over images with a lesion",
        _mean("precision"),
    ),
    _of_lesions(
        "pixel_accuracy",
        "Pixel accuracy",
        "mean share of right pixels over images with a lesion",
        _mean("accuracy"),
    ),
    Metric(
        "hd95_px",
        "px",
        _of(_mean("hd95_px")),
        "mean HD95 over images with a lesion in which something was predicted",
        "lower",
        columns=(Column("accuracy", "HD95", "px", _of(cells.hd95_text)),),
    ),
    _of_lesions("pooled_dice", "Pooled Dice", "Dice of summed pixels", _pooled("dice")),
    _of_lesions("pooled_iou", "Pooled IoU", "IoU of summed pixels", _pooled("iou")),
    Metric(
        "false_positive_share",
        "",
        _of(lambda row: row.accuracy and row.accuracy.false_positive_share),
        "share of images without a lesion in which anything was predicted",
        "lower",
        columns=(
            Column(
                "results",
                "False positives",
                "images without a lesion",
                _of(cells.false_positive_text),
                only_where=cells.has_normals,
                order=4,
            ),
            Column("accuracy", "False positives", "", _of(cells.false_positive_text)),
        ),
    ),
    _of_point(
        "lesions_found_share",
        "higher",
        "share of images with a lesion whose Dice at the network's size is at least 0.1",
        lambda point: point.found_share,
    ),
    _of_point(
        "marks_per_normal",
        "lower",
        "components marked for each image without a lesion",
        lambda point: point.marks_per_normal,
    ),
    Metric(
        "calibration_error",
        "",
        _of(lambda row: row.calibration_error),
        "expected calibration error of the pixels' lesion probability",
        "lower",
        columns=(
            Column(
                "accuracy",
                "ECE",
                "",
                _of(lambda row: fixed(row.calibration_error) if row.accuracy else MISSING),
            ),
        ),
    ),
    _against(
        "latency_ratio",
        "median of latency over that of the reference",
        lambda against: against.latency.ratio,
        Column("results", "Latency vs reference", "99 %", cells.latency_against_text, order=2),
        Column("terminal", "vs reference", "", cells.latency_against_text),
    ),
    _against(
        "latency_ratio_low",
        "lower end of the 99 % interval of that ratio",
        lambda against: against.latency.low,
    ),
    _against(
        "latency_ratio_high",
        "upper end of the 99 % interval of that ratio",
        lambda against: against.latency.high,
    ),
    _against(
        "dice_difference",
        "mean Dice minus that of the reference, image by image",
        lambda against: against.dice and against.dice.mean,
        Column("results", "Dice vs reference", "95 %", cells.dice_against_text, order=4),
    ),
    _against(
        "dice_difference_low",
        "lower end of the 95 % interval of that difference",
        lambda against: against.dice and against.dice.low,
    ),
    _against(
        "dice_difference_high",
        "upper end of the 95 % interval of that difference",
        lambda against: against.dice and against.dice.high,
    ),
)


# --- what follows from it ------------------------------------------------------------------------


def columns_of(table: Table, rows: Sequence[Row]) -> list[Column]:
    """Return the columns of a table of these rows, in their order."""
    columns = [each for metric in METRICS for each in metric.columns if each.table == table]
    shown = [each for each in columns if each.only_where is None or any(map(each.only_where, rows))]
    return sorted(shown, key=lambda each: each.order)


def numbers_of(record: BenchmarkRecord, row: Row) -> dict[str, Value]:
    """Return every figure of a row by its key."""
    against = record.comparison_of(row)
    return {metric.key: metric.get(row, against) for metric in METRICS}


def csv_description() -> str:
    """Return the JSON Schema of a line of the CSV: what a column is, its unit, what is better."""
    words = {str: ["string"], bool: ["boolean"], float: ["number"]}
    properties = {
        metric.key: {
            "type": [*words[metric.type], "null"],
            "description": metric.text,
            **({"unit": metric.unit} if metric.unit else {}),
            **({"better": metric.better} if metric.better else {}),
        }
        for metric in METRICS
    }
    content = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "a line of a benchmark's CSV; an empty cell is null",
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def budget_kinds() -> dict[str, BudgetKind]:
    """Return what can be limited, by name: figures of a row, then those of two records."""
    of_rows = {
        metric.budget.name: _kind_of(metric, metric.budget) for metric in METRICS if metric.budget
    }
    return of_rows | {kind.name: kind for kind in OF_COMPARISONS}


def _kind_of(metric: Metric, limit: Limit) -> BudgetKind:
    def value(row: Row, found: RowComparison | None, budget: Budget) -> float | str:
        number = metric.get(row, None)
        if isinstance(number, str) or number is None or math.isnan(number):
            return limit.why_none(row)
        return number

    return BudgetKind(
        limit.name,
        limit.example,
        limit.units,
        limit.limits,
        value,
        limit.written,
        is_minimum=metric.better == "higher",
        of_trained=limit.of_trained,
    )


def parse_budget(text: str) -> Budget:
    """Read a budget such as ``p99=33ms`` or, of some rows only, ``openvino int8:p99=33ms``.

    Times take us, ms or s and sizes B, kB, MB, KiB, MiB or GiB, never no unit; `dice` (a minimum)
    and `dice_drop` are plain numbers; `slowdown` is a percentage or a ratio from 1 on.

    Raises InputError: E-BUDGET with the known names and forms.
    """
    rows, _, limits = text.strip().rpartition(":")
    written = re.fullmatch(r"(\w+)=(\d+\.?\d*|\.\d+) ?([A-Za-z%]*)", limits, re.ASCII)
    name, number, unit = written.groups() if written else ("", "", "")
    kinds = budget_kinds()
    kind = kinds.get(name)
    if kind is None or unit not in kind.units:
        forms = ", ".join(each.example for each in kinds.values())
        raise InputError(
            "E-BUDGET", f"{text!r:.60} is no budget; give one like {forms}, or ROW:p99=33ms"
        )
    limit = kind.units[unit](float(number))
    least, most = kind.limits
    if not (least <= limit <= most and math.isfinite(limit)):
        raise InputError(
            "E-BUDGET",
            f"{text!r:.60} asks for {limit:g}, outside {least:g}..{most:g}; "
            f"give one like {kind.example}",
        )
    return Budget(kind, limit, text.strip(), rows.strip())


if __name__ == "__main__":
    print(csv_description(), end="")
