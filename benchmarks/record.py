"""One benchmark run as a value: what was measured, on what, under which conditions.

A row holds latency and accuracy of the same artifact, every sample of both, and its hash. `run`
fills a record; here it is read, and refused where it contradicts itself.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

from ..runtime.contract import SPARSE, InputContract
from ..runtime.errors import InputError
from ..runtime.paths import takes_paths
from .jsonform import json_from_value, value_from_json
from .measure.accuracy import METRICS, Accuracy, ImageScore, PairedDifference
from .measure.conditions import CHANGES, Change, Conditions
from .measure.energy import Energy
from .measure.environment import Environment
from .measure.froc import SetCurve
from .measure.latency import LatencyRatio, LatencyRun
from .measure.layers import LayerReport
from .measure.modes import MODES, OfflineRun, PacedRun, SoakRun
from .measure.process import ProcessFacts
from .measure.roofline import Peaks
from .measure.yardstick import Pass, Yardstick

SCHEMA = "edgeseg.benchmark/5"
MAX_RECORD_BYTES = 1 << 28  # compared with the file's size before anything is read
_LEAST_MS, _MOST_MS = 1e-6, 1e9  # of a call of a pass: a nanosecond, eleven days


@dataclass(frozen=True)
class Settings:
    """What is measured besides single frames, and for how long."""

    modes: tuple[str, ...] = ("offline",)  # keys in MODES; "single" is always measured
    rounds: int = 400  # of single frames: timed calls per candidate, >= 1; a p99 needs 368
    offline_s: float = 3.0
    streams: int = 1  # of "offline"; they share the threads of a row
    batch: int = 1  # of "offline": frames a call, >= 1
    paced_s: float = 10.0
    hz: float = 30.0  # of "paced"
    soak_s: float = 600.0
    layers: bool = False  # time by layer, roofline, predictions
    energy: bool = False  # a minute and a half for each candidate
    passes: int = 0  # of each row beside its yardstick, for comparisons with other runs

    def __post_init__(self) -> None:
        """Raise InputError: E-BENCHMARK-EMPTY (no round), E-BENCHMARK-MODE (unknown, no ticks)."""
        if self.rounds < 1:
            raise InputError("E-BENCHMARK-EMPTY", f"{self.rounds} rounds; give at least one")
        for mode in self.modes:
            if mode not in MODES:
                raise InputError(
                    "E-BENCHMARK-MODE", f"no mode {mode!r}; choose of {', '.join(MODES)}"
                )
        if "paced" in self.modes and self.hz * self.paced_s < 2:
            raise InputError(
                "E-BENCHMARK-MODE",
                f"a clock of {self.hz:g} Hz has no two ticks in {self.paced_s:g} s; give it longer",
            )


@dataclass(frozen=True)
class ProofStep:
    """One file of an export against the trained network, on the export's check frames."""

    name: str
    max_abs: float  # largest difference of a logit
    flipped_share: float  # of pixels, in the frames' own size
    mask_dice: float  # between the masks
    dice_drop: float  # mean; positive is worse
    dice_drop_low: float  # 95 % interval
    dice_drop_high: float


@dataclass(frozen=True)
class Proof:
    """What the export of a bundle has proved, from its manifest."""

    part: str  # what the check frames are
    frames: int
    trained_dice: float
    max_drop: float  # the gate: limit of `dice_drop_high`
    steps: tuple[ProofStep, ...]
    achieved: Mapping[str, Mapping[str, float]]  # form -> precision -> share of the MACs
    kept_float: tuple[str, ...]  # convolutions that INT8 leaves in float


@dataclass(frozen=True)
class Row:
    """All that was measured of one candidate."""

    name: str
    kind: str  # name of the engine
    precision: str
    artifact_sha256: str
    contract: InputContract
    engine_facts: Mapping[str, str]
    file_bytes: int
    parameters: int
    macs: int
    weights_bytes: int
    process: ProcessFacts
    latency: LatencyRun
    offline: OfflineRun | None  # None: not asked for, as all below it
    paced: PacedRun | None
    soak: SoakRun | None
    energy: Energy | None  # None: no counter, see `BenchmarkRecord.no_energy`
    layers: LayerReport | None  # None too where the engine's profiler is not known
    proof: Proof | None  # None: of no bundle
    accuracy: Accuracy | None  # None: not trained, so its masks mean nothing
    scores: tuple[ImageScore, ...]  # what `accuracy` summarises
    calibration_error: float  # of the pixels' lesion probability, see `calibration_error`; or NaN
    yardstick: Yardstick | None = None  # None: not asked for, or there is none for the engine
    passes: tuple[Pass, ...] = ()  # of the row beside its yardstick
    curves: tuple[SetCurve, ...] = field(default=(), metadata=SPARSE)  # both errors, by threshold


@dataclass(frozen=True)
class Comparison:
    """A row against the reference, which is the first row."""

    name: str
    reference: str
    latency: LatencyRatio  # median of the row over that of the reference
    dice: PairedDifference | None  # row minus reference, image by image; None: one is not scored


@dataclass(frozen=True)
class Note:
    """A warning that belongs in front of the numbers."""

    code: str  # key in NOTES
    text: str


# Every warning there is: the cause first, then what to do. Filled in by `run._notes_on`.
NOTES: Mapping[str, str] = MappingProxyType(
    {
        "not-steady": "{name}: the warm-up did not become steady within its cap, so its times may "
        "still drift; close other programs and measure again.",
        "few-rounds": "{rounds} rounds are too few for a p99, which needs {needed}; ask for more.",
        "load": "The load average was {load:.1f} on {cores} cores before the run: other programs "
        "ran too, so the slow tail may be theirs; stop them and measure again.",
        "governor": "The CPU governor is {governor!r}: clocks may change during the run; set it "
        "to 'performance' for the measurement.",
        "input-sizes": "The rows have different input sizes ({sizes}): their times compare whole "
        "networks, not engines.",
        "threads": "The rows run on different numbers of threads ({threads}); give each the same "
        "to compare engines.",
        "few-lesions": "Only {lesions} images have a lesion, so the intervals of Dice are wide; "
        "score more images.",
        "not-trained": "{names} are not trained: their times and sizes compare, their masks mean "
        "nothing and are not scored.",
        "no-layers": "{names}: no times by layer, as the engine has no profiler known here or the "
        "bundle no ONNX; measure one that ONNX Runtime takes too.",
        "no-yardstick": "{names}: there is no yardstick for the engine here (of GPUs only ONNX "
        "Runtime and OpenVINO have one, and it needs the package onnx), so edgeseg compare cannot "
        "tell the machine from the row; measure both in one run.",
        "no-waits": "The system does not tell how long a thread waited for a core, so passes take "
        "every call; compare runs of a quiet machine only.",
    }
)


@dataclass(frozen=True)
class BenchmarkRecord:
    """One run; the first row is the reference of all comparisons."""

    schema: str
    environment: Environment
    before: Conditions
    after: Conditions
    changes: tuple[Change, ...]  # between the two, that the numbers suffer from
    settings: Settings
    frames: int  # distinct frames of the latency measurement
    images: int  # scored
    part: str  # of the split they are, "unseen" by any network here, or "all"
    split_sha256: str | None  # of that split; None for "unseen" and "all"
    peaks: tuple[Peaks, ...]  # of this machine, by engine; empty without layers
    no_energy: str | None  # why a row has no energy; None where each has a counter
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]  # one for each row but the first, in their order
    notes: tuple[Note, ...]

    @property
    def rounds(self) -> int:
        """Timed calls per row, of single frames."""
        return self.settings.rounds

    def comparison_of(self, row: Row) -> Comparison | None:
        """Return the comparison of a row; None for the reference."""
        return next((c for c in self.comparisons if c.name == row.name), None)


def to_json(record: BenchmarkRecord) -> str:
    """Return the record as JSON text; an undefined number is null."""
    return json.dumps(json_from_value(record), ensure_ascii=False, allow_nan=False) + "\n"


@takes_paths
def read_record(file: Path) -> BenchmarkRecord:
    """Read the .json of a benchmark.

    Raises InputError: E-REPORT-READ (not readable, over `MAX_RECORD_BYTES`), those of `from_json`
    with the name of the file.
    """
    try:
        size = file.stat().st_size
        content = file.read_bytes() if size <= MAX_RECORD_BYTES else b""
    except OSError as error:
        raise InputError(
            "E-REPORT-READ",
            f"cannot read {file} ({error.strerror}); give the .json of a benchmark",
        ) from error
    if size > MAX_RECORD_BYTES:
        raise InputError(
            "E-REPORT-READ",
            f"{file} has {size} bytes and a record at most {MAX_RECORD_BYTES}; give the .json of a "
            "benchmark",
        )
    try:
        return from_json(content)
    except InputError as error:
        told = str(error).removeprefix(f"{error.code}: ")
        raise InputError(error.code, f"{file}: {told}") from error


def from_json(text: str | bytes) -> BenchmarkRecord:
    """Read the result of `to_json`, as text or UTF-8.

    Raises InputError: E-REPORT-SCHEMA for another schema, or for the first field that is missing,
    unknown, mistyped or contradicts another; E-CONTRACT for an impossible input size.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            "E-REPORT-SCHEMA", f"not JSON ({error}); give the .json of a benchmark"
        ) from error
    found = content.get("schema") if isinstance(content, dict) else None
    if found != SCHEMA:
        raise InputError("E-REPORT-SCHEMA", _other_schema(found))
    record = value_from_json(BenchmarkRecord, content, "record")
    if fault := _contradiction(record):
        raise InputError("E-REPORT-SCHEMA", f"{fault}; run the benchmark again")
    return record


def _other_schema(found: object) -> str:
    """Return what a file is that is no record of this version, and what to do about it."""
    kind, _, version = found.partition("/") if isinstance(found, str) else ("", "", "")
    if kind != SCHEMA.partition("/")[0] or not re.fullmatch(r"[0-9]{1,9}", version):
        told = f"its schema is {found!r:.60}" if found else "it names no schema"
        return f"not the record of a benchmark: {told}; give the .json of a benchmark"
    newer = int(version) > int(SCHEMA.partition("/")[2])
    mend = "update edgeseg" if newer else "measure again, or compare with the version that wrote it"
    return f"schema is {found!r:.60}, this tool reads {SCHEMA!r}; {mend}"


def _is_drawable(curve: SetCurve, threshold: float) -> bool:
    """Say whether a curve has the row's own point, and each point a place where it has images."""
    return any(point.threshold == threshold for point in curve.points) and all(
        (not curve.lesions or 0 <= point.found_share <= 1)
        and (not curve.without_lesion or point.marks_per_normal >= 0)
        for point in curve.points
    )


def _contradiction(record: BenchmarkRecord) -> str | None:
    """Return what the types alone do not catch and the reports rely on."""
    names = [row.name for row in record.rows]
    if not names or len(set(names)) < len(names):
        return "record.rows has no row, or a name twice"
    if [(c.name, c.reference) for c in record.comparisons] != [(n, names[0]) for n in names[1:]]:
        return "record.comparisons are not those of its rows with the first"
    for row in record.rows:
        if fault := _latency_fault(row.latency, record.rounds) or _load_fault(row):
            return f"{row.name} {fault}"
        if row.accuracy is not None and not _is_complete(row.accuracy):
            return f"{row.name} has no accuracy, or not every metric of a group"
        if row.layers and (fault := _layers_fault(row.layers)):
            return f"{row.name} {fault}"
        if not all(_is_drawable(curve, row.contract.thresholds[0]) for curve in row.curves):
            return f"{row.name} has a curve without the point that the row works at"
        if not all(map(_is_measured, row.passes)) or bool(row.passes) != bool(row.yardstick):
            return f"{row.name} has passes without their yardstick, or one without its times"
    if any(not (peaks.fp32_gflops > 0 and peaks.bandwidth_gb_s > 0) for peaks in record.peaks):
        return "record.peaks has one that is not above 0"
    if unknown := [note.code for note in record.notes if note.code not in NOTES]:
        return f"note {unknown[0]!r} is unknown"
    if unknown := [change.code for change in record.changes if change.code not in CHANGES]:
        return f"change {unknown[0]!r} is unknown"
    return None


def _is_complete(accuracy: Accuracy) -> bool:
    return bool(accuracy.groups) and all(
        set(METRICS) <= set(group.per_image) and {"dice", "iou"} <= set(group.pooled)
        for group in accuracy.groups
    )


def _latency_fault(run: LatencyRun, rounds: int) -> str | None:
    parts = (run.e2e_ms, run.pre_ms, run.engine_ms, run.post_ms)
    if {len(part) for part in parts} != {rounds} or sum(run.block_calls) != rounds:
        return f"has not {rounds} samples of each part of a call"
    if len(run.transfer_ms) not in (0, rounds):
        return "has copies of some calls only"
    whole = (*run.e2e_ms, *run.engine_ms)
    if not whole or not all(time > 0 and math.isfinite(time) for time in whole):
        return "has no samples, or one that is no time above 0"
    others = (*run.pre_ms, *run.post_ms, *run.transfer_ms)
    if not all(time >= 0 and math.isfinite(time) for time in others):
        return "has a sample that is no time"
    return None


def _is_measured(found: Pass) -> bool:
    blocks = (*found.row, *found.yardstick)
    return len(found.row) == len(found.yardstick) > 0 and all(
        0 < len(block.ms) == len(block.waited_ms)
        and all(_LEAST_MS <= time_ms <= _MOST_MS for time_ms in block.ms)
        for block in blocks
    )


def _load_fault(row: Row) -> str | None:
    if row.offline and (len(row.offline.window_fps) < 2 or row.offline.batch < 1):
        return "has fewer than two windows offline, or no frame a call"
    if row.paced and not (
        row.paced.hz > 0 and 0 < len(row.paced.answered) == len(row.paced.latency_ms)
    ):
        return "has no answered frames, or no clock"
    ends_s = [0.0, *(window.end_s for window in row.soak.windows)] if row.soak else [0.0, 1.0, 2.0]
    ascending = all(after > before for before, after in pairwise(ends_s))
    if len(ends_s) < 3 or not ascending:
        return "has a soak of fewer than two windows, or not in their order"
    if row.soak and not all(window.p50_ms > 0 for window in row.soak.windows):
        return "has a soak with a median that is no time above 0"
    return None


def _layers_fault(report: LayerReport) -> str | None:
    names = {cost.name for cost in report.costs}
    timed = {layer.name for layer in report.times.layers}
    if names != {layer.name for layer in report.attained.layers} or not timed <= names:
        return "has layers that are not those of its costs"
    times = report.times
    samples = (*(layer.samples_ms for layer in times.layers), times.profiled_ms, times.plain_ms)
    if not all(samples) or not min(*times.plain_ms, report.attained.measured_ms) > 0:
        return "has layers without a time"
    if not all(cost.total_bytes > 0 and cost.macs >= 0 for cost in report.costs):
        return "has a layer without bytes, or of fewer than no products"
    return None
