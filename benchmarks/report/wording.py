"""The sentences and table cells that every form of the report shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ..formatting import MISSING, fixed, percent, signed_interval, significant
from ..measure.accuracy import CALIBRATION_BINS, MetricSummary, PairedDifference
from ..measure.latency import (
    P99_MIN_N,
    LatencyRatio,
    percentile,
    percentile_bounds,
    supported_percentile,
)
from ..measure.modes import MODES, OfflineRun
from ..measure.yardstick import MAX_WAIT
from ..record import BenchmarkRecord, Comparison, Row
from ..yardstick_passes import BETWEEN_RUNS, MIN_PASSES
from .document import Caution

TOO_FEW = "n too small"
NOT_TRAINED = "not trained"
CLEARANCE = (
    "Engineering evidence for the artifacts named here, on this machine. It is not a regulatory "
    "clearance and not a statement of clinical performance."
)

# Term and meaning, in the order they are printed.
DEFINITIONS: Mapping[str, str] = MappingProxyType(
    {
        "MACs and FLOPs": "multiply-accumulates of convolutions and matrix products for one frame, "
        "counted from the graph; FLOPs = 2 × MACs. Literature often prints MACs under the name of "
        "FLOPs.",
        "Latency": "from a uint8 frame in memory to its mask in the frame's own size, in memory: "
        "preparing (resizing, normalising), the engine with its copies, and reading out the mask. "
        "The three are timed in the same call and add up to it; the medians of each need not. "
        "Copies to and from a GPU are told apart where the engine has the GPU time them; the rest "
        "of the engine's part is compute, with its launch and the copy into pinned memory. "
        "Files are not read meanwhile. Mode single: the next frame is sent when the mask is there.",
        "Engine alone": "the engine's calls back to back on prepared input, as its own benchmark "
        "times them. Between the frames of a device its threads rest and its data leave the "
        "caches, so its share of a real frame takes longer.",
        "Overhead": "what preparing and reading out add to the engine's time: the median over "
        "calls.",
        "p50, p90, p99": "measured values of rank n·q. The bounds are those of the 95 % confidence "
        "interval, themselves measured values. A percentile is given only where n is large enough "
        f"for its upper bound: p90 from 36 calls on, p99 from {P99_MIN_N}.",
        "Latency against the reference": "all rows take turns on the same frames, in blocks: a "
        "random order of the rows, then its reverse (ABBA), so that a steady drift cancels. Each "
        "pair of blocks gives one ratio of medians; the result is their median, and the 99 % "
        "interval resamples the pairs. “No difference” means the interval holds 1: not shown to "
        "differ, which is not proof of equality.",
        "Yardstick and passes": "a fixed network of the same kind of layers, timed beside a row in "
        "blocks that take turns, in the same engine and precision on as many threads (a row of "
        "PyTorch beside ONNX Runtime's). What the machine does meets both, so the ratio of the two "
        "can be compared with that of another run where the times cannot. Both are opened anew in "
        "each pass, half of the passes before the rest of the run and half after it; the spread "
        "is the standard deviation of the passes' ratios. Calls in which a thread waited for a "
        f"core for more than {percent(MAX_WAIT, 0)} of the time are set aside, and a pass with too "
        "few others does not count. The 99 % interval has an allowance of "
        f"{percent(BETWEEN_RUNS, 0)} a run for what no pass shows. The smallest slow-down is what "
        "a comparison with a run of as many passes, spread alike, would find 19 times in 20; it "
        f"takes {MIN_PASSES} passes of each.",
        "Frames/s": "mode offline: all streams busy back to back; the streams of a row share its "
        "threads, and a call of a batch counts as so many frames. The 95 % interval is Student's t "
        "over ten windows.",
        "Paced": "a frame at each tick of a clock; the newest waits and replaces an older one, "
        "which is dropped. Latency from the tick to the mask; missed: answered after the next "
        "tick. Jitter: time between two masks minus the period, without its sign.",
        "Soak": "frames back to back for minutes. Drift and growth are Theil–Sen slopes over the "
        "windows with their 95 % interval; “drifts” means the interval leaves out 0.",
        "First mask": "from the start of a fresh process, so it includes imports and loading.",
        "Peak memory": "high-water mark of that process (RSS), interpreter and libraries included. "
        "PSS counts what is shared with other processes in part, after its last mask. GPU memory: "
        "the most that the driver counted after any mask, the CUDA context included.",
        "Energy": "net: (power under load − power at rest) × time / frames; gross: power under "
        "load × time / frames. Of the rails named only: no carrier or main board, no power supply. "
        "A GPU's rail is its whole board.",
        "Roofline": "a layer takes at least its operations over the compute peak or its bytes "
        "(weights and activations, each once) over the memory bandwidth, whichever is longer; the "
        "share is that least time over the measured one. Both peaks are measured here, compute "
        "through the same engine. A share above 100 % means that data stayed in a cache, or that "
        "the machine was busier when its peak was measured.",
        "Predicted": "computed from a data sheet's peaks with ranges of efficiency and launch time "
        "that no run on a device has confirmed: an interval to plan with, never a measurement.",
        "Parity and gate": "each file of an export against the trained network on the same frames. "
        "The gate judges the upper end of the 95 % interval of the loss of Dice.",
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


def headline(record: BenchmarkRecord) -> str:
    """Return the one sentence to remember: the fastest row against the reference.

    An untrained network wins nothing, so it is named only where no other is compared.
    """
    if not record.comparisons:
        return _headline_of_one(record.rows[0])
    scored = [comparison for comparison in record.comparisons if comparison.dice is not None]
    best = min(scored or record.comparisons, key=lambda comparison: comparison.latency.ratio)
    among = "" if len(scored) in (0, len(record.comparisons)) else " of the trained networks"
    return f"{_latency_finding(best, among)}; Dice {dice_difference(best.dice)}."


def _headline_of_one(row: Row) -> str:
    dice = dice_of(row)
    accuracy = NOT_TRAINED if dice is None else f"Dice {with_interval(dice)}"
    return f"{row.name} takes {significant(row.latency.p50_ms)} ms a frame (median), {accuracy}."


def _latency_finding(best: Comparison, among: str) -> str:
    ratio, reference = best.latency, best.reference
    if math.isnan(ratio.low):
        return (
            f"{best.name} takes {significant(ratio.ratio)}× the time of {reference} (too few "
            "rounds for an interval)"
        )
    if ratio.high < 1:
        return (
            f"{best.name} is {significant(1 / ratio.ratio)}× faster than {reference} "
            f"(99 % interval {significant(1 / ratio.high)}–{significant(1 / ratio.low)})"
        )
    interval = f"99 % interval {significant(ratio.low)}–{significant(ratio.high)}"
    if ratio.low > 1:
        return (
            f"{reference} is the fastest{among}; {best.name} takes {significant(ratio.ratio)}× its "
            f"time ({interval})"
        )
    return (
        f"No difference in latency was found between {best.name} and {reference} (ratio "
        f"{significant(ratio.ratio)}, {interval})"
    )


def cautions(record: BenchmarkRecord) -> list[Caution]:
    """Return what to know before the numbers are used: what invalidates them first."""
    found = [Caution(change.text, change.invalidates) for change in record.changes]
    found += [Caution(note.text, note.code == "not-steady") for note in record.notes]
    return sorted(found, key=lambda caution: not caution.invalidates)


def dice_difference(difference: PairedDifference | None) -> str:
    """Return a paired Dice difference with its interval, and whether it is one."""
    if difference is None:
        return f"not compared ({NOT_TRAINED})"
    if not difference.n:
        return "not compared (no image has a lesion)"
    interval = signed_interval(difference.mean, difference.low, difference.high)
    text = f"{interval.removesuffix(')')}, n={difference.n})"
    return text if difference.differs else f"not shown to differ: {text}"


def with_interval(summary: MetricSummary) -> str:
    """Return a mean with its interval, such as ``0.812 (0.790–0.831)``."""
    if not summary.n:
        return MISSING
    return f"{fixed(summary.mean)} ({fixed(summary.low)}–{fixed(summary.high)})"


def mode_name(mode: str) -> str:
    """Return a key of `MODES` with MLPerf's name for it."""
    mlperf = MODES[mode].mlperf
    return f"{mode} ({f'MLPerf {mlperf}' if mlperf else 'not in MLPerf'})"


def fps_text(run: OfflineRun | None) -> str:
    """Return the frames a second with their interval."""
    if run is None:
        return MISSING
    low, high = significant(max(0.0, run.fps_low)), significant(run.fps_high)
    return f"{significant(run.fps)} ({low}–{high})"


def percentile_text(samples: Sequence[float], q: float) -> str:
    """Return a percentile above the median, or why there is none."""
    if not samples:
        return MISSING
    value = supported_percentile(samples, q)
    return TOO_FEW if value is None else significant(value)


def median_text(samples: Sequence[float]) -> str:
    """Return the median, of however few samples."""
    return significant(percentile(samples, 0.5)) if samples else MISSING


def bounded_text(samples: Sequence[float], q: float) -> str:
    """Return a percentile with its bounds, or why there is none; a median is always given."""
    low, high = percentile_bounds(samples, q)
    if low is not None and high is not None:
        return f"{significant(percentile(samples, q))} ({significant(low)}–{significant(high)})"
    return f"{median_text(samples)} ({TOO_FEW})" if q == 0.5 else TOO_FEW


def dice_of(row: Row) -> MetricSummary | None:
    """Return the mean Dice over images with a lesion; None for what is not trained."""
    return row.accuracy.lesions.per_image["dice"] if row.accuracy else None


def input_size(row: Row) -> str:
    """Return width × height of the network's input."""
    return f"{row.contract.width}×{row.contract.height}"


def mib(size_bytes: float) -> float:
    """Convert bytes to MiB."""
    return size_bytes / (1 << 20)


def ratio_text(ratio: LatencyRatio) -> str:
    """Return a ratio of medians with its interval, or that no difference was found."""
    if math.isnan(ratio.low):
        return f"{significant(ratio.ratio)}× ({TOO_FEW})"
    finding = f"{significant(ratio.ratio)}×" if ratio.differs else "no difference"
    return f"{finding} ({significant(ratio.low)}–{significant(ratio.high)})"
