"""One benchmark run as a value: what was measured, on what, under which conditions.

A row holds latency and accuracy of the same artifact, every sample of both, and its hash.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..runtime.contract import InputContract
from ..runtime.engines import available_threads
from ..runtime.errors import InputError
from ..runtime.paths import takes_paths
from ..runtime.progress import Progress, quiet
from ..runtime.session import Session
from .accuracy import (
    METRICS,
    Accuracy,
    Case,
    ImageScore,
    PairedDifference,
    calibration_error,
    paired_difference,
    score_images,
    summarise,
)
from .batches import require_same_answers
from .conditions import (
    CHANGES,
    Change,
    Conditions,
    compare_conditions,
    gpus_in_use,
    read_conditions,
)
from .energy import Energy, explain_no_counter, find_counter, measure_energy
from .environment import Environment, describe_environment
from .jsonform import json_from_value, value_from_json
from .latency import (
    P99_MIN_N,
    LatencyRatio,
    LatencyRun,
    measure_alone,
    measure_interleaved,
    median_ratio,
)
from .layers import LayerReport, report_layers
from .modes import (
    MODES,
    OfflineRun,
    PacedRun,
    SoakRun,
    measure_offline,
    measure_paced,
    measure_soak,
)
from .nvml import computes_on_nvidia
from .prediction import DevicePeaks
from .process import ProcessFacts, probe_process
from .profile import PROFILERS
from .roofline import Peaks, measure_peaks
from .seconds import by_the_second
from .yardstick import (
    Pass,
    Yardstick,
    open_yardstick,
    time_pass,
    waits_are_told,
    yardstick_engine,
)

SCHEMA = "edgeseg.benchmark/5"
MAX_RECORD_BYTES = 1 << 28  # compared with the file's size before anything is read
ANY_BATCH = 1 << 30  # of a candidate whose engine takes as many frames a call as fit
MAX_FRAMES = 16  # held in memory for the latency measurement
_FEW_LESIONS = 30
_IDLE_S, _ENERGY_S = 30.0, 60.0  # at rest, then under load
_BURST_S = 0.5
_SOAK_WINDOW_S = 10.0  # at most
_SOAK_WINDOWS = 20  # at least
_LEAST_MS, _MOST_MS = 1e-6, 1e9  # of a call of a pass: a nanosecond, eleven days
_REOPEN_MAX_MS = 10_000  # start of a process; what takes longer is opened once
T = TypeVar("T")
Frame = npt.NDArray[np.uint8]


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
class Candidate:
    """One network in one engine at one precision, open and ready."""

    name: str  # unique in a run; the reports print it
    kind: str  # name of the engine
    precision: str  # "fp32", "fp16" or "int8"
    session: Session
    artifact_sha256: str  # of the bundle or checkpoint that the session was opened from
    file_bytes: int  # of the model files alone
    complexity: Mapping[str, int]  # "parameters", "macs", "weights_bytes"
    probe: tuple[str, ...]  # command whose child calls `process.report_probe`
    trained: bool = True  # False: its masks mean nothing and are not scored
    open_another: Callable[[int], Session] | None = None  # for streams, on so many threads
    max_batch: int = 1  # frames that a call of the engine takes
    files: Mapping[str, bytes] = field(default_factory=dict)  # the engine's, for its profiler
    onnx: bytes | None = None  # that the files were made from; None: layers are not known
    proof: Proof | None = None


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


# Every warning there is: the cause first, then what to do. Filled in by `_notes_on`.
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
        "Runtime and OpenVINO have one, and it needs the package onnx), so --compare cannot tell "
        "the machine from the row; measure both in one run.",
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


def run_benchmark(
    candidates: Sequence[Candidate],
    cases: Sequence[Case],
    *,
    settings: Settings = Settings(),
    part: str,
    split_sha256: str | None,
    command: Sequence[str],
    devices: Sequence[DevicePeaks] = (),
    progress: Progress = quiet,
) -> BenchmarkRecord:
    """Measure all candidates and compare each with the first.

    Args:
        candidates: at least one, under different names.
        cases: all are scored; the frames of the first 16 serve for latency and throughput.
        settings: what is measured.
        part: which part of the split the cases are, or "unseen" or "all".
        split_sha256: of that split; None for "unseen" and "all".
        command: goes into the record, without folders, to reproduce it.
        devices: that are not here and whose latency is predicted, with the layers.
        progress: wraps the long loops.

    Raises:
        InputError: E-BENCHMARK-EMPTY (no candidate or case), E-BENCHMARK-NAMES (one name twice),
            E-BENCHMARK-STREAMS (streams of what opens once), E-BENCHMARK-BATCH (a batch for what
            takes single frames), and what reading the cases raises.
        EngineError: E-PROBE-FAILED, those of `require_same_answers`.
    """
    names = [candidate.name for candidate in candidates]
    if not candidates or not cases:
        raise InputError(
            "E-BENCHMARK-EMPTY",
            f"{len(candidates)} candidates, {len(cases)} images; give at least one of each",
        )
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise InputError(
            "E-BENCHMARK-NAMES",
            f"{', '.join(twice)} would be there twice; name each source once, or rename a folder",
        )
    single = [each.name for each in candidates if each.open_another is None]
    if settings.streams > 1 and "offline" in settings.modes and single:
        raise InputError(
            "E-BENCHMARK-STREAMS",
            f"{', '.join(single)} can be opened only once; measure one stream",
        )
    batch = settings.batch if "offline" in settings.modes else 1
    if small := [each.name for each in candidates if each.max_batch < batch]:
        raise InputError(
            "E-BENCHMARK-BATCH",
            f"{', '.join(small)} cannot take {batch} frames a call; export with --dynamic {batch}, "
            "or measure without --batch",
        )
    environment = describe_environment(command)
    # Accuracy first: it reads every file, so bad input is met before anything is timed.
    trained = [candidate for candidate in candidates if candidate.trained]
    scores = {
        candidate.name: score_images(candidate.session.predict, cases, progress=progress)
        for candidate in trained
    }
    gaps = {
        candidate.name: calibration_error(candidate.session.logits, cases, progress=progress)
        for candidate in trained
    }
    frames = [case.read_image() for case in cases[:MAX_FRAMES]]
    if batch > 1:
        for candidate in progress(candidates, "batches", len(candidates)):
            require_same_answers(candidate.session, frames, batch, candidate.precision)
    processes = {
        candidate.name: probe_process(candidate.probe)
        for candidate in progress(candidates, "memory and start", len(candidates))
    }
    before = _conditions_at_work(candidates[0], frames)
    measured = _Passes(candidates, processes, frames, progress)
    measured.add(settings.passes - settings.passes // 2)
    sessions = {candidate.name: candidate.session for candidate in candidates}
    latencies = measure_interleaved(sessions, frames, rounds=settings.rounds, progress=progress)
    alone_ms = measure_alone(sessions, frames, rounds=settings.rounds, progress=progress)
    loads = _Loads(settings, frames, progress)
    offline = loads.each(candidates, "offline", settings.offline_s, _measure_offline)
    paced = loads.each(candidates, "paced", settings.paced_s, _measure_paced)
    soaks = loads.each(candidates, "soak", settings.soak_s, _measure_soak)
    energies: dict[str, Energy] = {}
    no_energy = [] if settings.energy else ["not asked for"]
    metered = candidates if settings.energy else ()
    for candidate in by_the_second(metered, "energy", _IDLE_S + _ENERGY_S, progress):
        gpus = [gpu.index for gpu in gpus_in_use(before)] if _on_gpu(candidate) else None
        counter = find_counter(gpus=gpus)
        if counter is None:
            no_energy.append(explain_no_counter(gpus=gpus))
            continue
        work = partial(_work, candidate.session, frames, _ENERGY_S)
        energies[candidate.name] = measure_energy(counter, work, idle_s=_IDLE_S)
    peaks: tuple[Peaks, ...] = ()
    layers: dict[str, LayerReport] = {}
    if settings.layers:
        peaks, layers = _measure_layers(candidates, devices, progress)
    measured.add(settings.passes // 2)  # as far from the others as a run is long
    after = _conditions_at_work(candidates[0], frames)
    rows = [
        Row(
            name=candidate.name,
            kind=candidate.kind,
            precision=candidate.precision,
            artifact_sha256=candidate.artifact_sha256,
            contract=candidate.session.contract,
            engine_facts=dict(candidate.session.engine.facts),
            file_bytes=candidate.file_bytes,
            parameters=candidate.complexity["parameters"],
            macs=candidate.complexity["macs"],
            weights_bytes=candidate.complexity["weights_bytes"],
            process=processes[candidate.name],
            latency=replace(latencies[candidate.name], alone_ms=alone_ms[candidate.name]),
            offline=offline.get(candidate.name),
            paced=paced.get(candidate.name),
            soak=soaks.get(candidate.name),
            energy=energies.get(candidate.name),
            layers=layers.get(candidate.name),
            proof=candidate.proof,
            accuracy=summarise(scores[candidate.name]) if candidate.trained else None,
            scores=scores.get(candidate.name, ()),
            calibration_error=gaps.get(candidate.name, math.nan),
            yardstick=measured.yardsticks.get(candidate.name),
            passes=tuple(measured.passes[candidate.name]),
        )
        for candidate in candidates
    ]
    return BenchmarkRecord(
        schema=SCHEMA,
        environment=environment,
        before=before,
        after=after,
        changes=compare_conditions(before, after, on_gpu=any(map(_on_gpu, candidates))),
        settings=settings,
        frames=len(frames),
        images=len(cases),
        part=part,
        split_sha256=split_sha256,
        peaks=peaks,
        no_energy="; ".join(dict.fromkeys(no_energy)) or None,
        rows=tuple(rows),
        comparisons=tuple(_compare(row, rows[0]) for row in rows[1:]),
        notes=_notes_on(rows, environment, settings),
    )


@dataclass(frozen=True)
class _Loads:
    """What the modes need besides a candidate."""

    settings: Settings
    frames: Sequence[Frame]
    progress: Progress

    def each(
        self,
        candidates: Sequence[Candidate],
        mode: str,
        seconds: float,
        measure: Callable[[_Loads, Candidate], T],
    ) -> dict[str, T]:
        """Measure every candidate in a mode for so long; nothing if it was not asked."""
        if mode not in self.settings.modes:
            return {}
        turns = by_the_second(candidates, mode, seconds, self.progress)
        return {candidate.name: measure(self, candidate) for candidate in turns}


class _Passes:
    """Passes of every candidate beside its yardstick."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        processes: Mapping[str, ProcessFacts],
        frames: Sequence[Frame],
        progress: Progress,
    ) -> None:
        self._candidates = candidates
        self._processes = processes
        self._frames = frames
        self._progress = progress
        self.yardsticks: dict[str, Yardstick] = {}
        self.passes: dict[str, list[Pass]] = {candidate.name: [] for candidate in candidates}

    def add(self, count: int) -> None:
        """Measure so many passes more, all candidates in turn."""
        turns = [candidate for _ in range(count) for candidate in self._candidates]
        for candidate in self._progress(turns, "yardstick", len(turns)):
            kind = yardstick_engine(candidate.kind, candidate.precision)
            if kind is None:
                continue
            self.yardsticks[candidate.name], yardstick = open_yardstick(
                *kind, _threads_of(candidate)
            )
            session, turn = self._session(candidate), itertools.cycle(self._frames)
            found = time_pass(partial(_next_frame, session, turn), yardstick)
            self.passes[candidate.name].append(found)

    def _session(self, candidate: Candidate) -> Session:
        """Return the candidate opened anew, or as it is where that takes too long."""
        is_quick = self._processes[candidate.name].start_ms <= _REOPEN_MAX_MS
        if candidate.open_another is None or not is_quick:
            return candidate.session
        return candidate.open_another(_threads_of(candidate))


def _threads_of(candidate: Candidate) -> int:
    """Return the threads of a candidate's engine; all there are where it has none, or its own."""
    threads = candidate.session.engine.facts.get("threads", "")
    return int(threads) if threads.isdecimal() else available_threads()


def _measure_offline(loads: _Loads, candidate: Candidate) -> OfflineRun:
    """Measure with the session that is open, or with several streams that share its threads."""
    settings, session, another = loads.settings, candidate.session, candidate.open_another
    each = max(1, _threads_of(candidate) // settings.streams)

    def open_session() -> Session:
        return session if settings.streams == 1 or another is None else another(each)

    return measure_offline(
        open_session,
        loads.frames,
        streams=settings.streams,
        seconds=settings.offline_s,
        batch=settings.batch,
    )


def _measure_paced(loads: _Loads, candidate: Candidate) -> PacedRun:
    settings = loads.settings
    return measure_paced(candidate.session, loads.frames, hz=settings.hz, seconds=settings.paced_s)


def _measure_soak(loads: _Loads, candidate: Candidate) -> SoakRun:
    seconds = loads.settings.soak_s
    return measure_soak(
        candidate.session,
        loads.frames,
        seconds=seconds,
        window_s=min(_SOAK_WINDOW_S, seconds / _SOAK_WINDOWS),
        sample=_warmth,
    )


def _warmth() -> dict[str, float]:
    """Return temperatures and the mean clock, as far as the system tells."""
    now = read_conditions()
    warmth = {f"{sensor} °C": value for sensor, value in now.temperatures_c.items()}
    if now.core_mhz:
        warmth["mean MHz"] = sum(now.core_mhz) / len(now.core_mhz)
    return warmth


def _next_frame(session: Session, turn: Iterator[Frame]) -> None:
    session.predict(next(turn))


def _conditions_at_work(candidate: Candidate, frames: Sequence[Frame]) -> Conditions:
    """Return the conditions after a burst of work: idle clocks tell nothing of busy ones."""
    _work(candidate.session, frames, _BURST_S)
    return read_conditions()


def _on_gpu(candidate: Candidate) -> bool:
    return computes_on_nvidia(candidate.kind, candidate.session.engine.facts)


def _work(session: Session, frames: Sequence[Frame], seconds: float) -> int:
    """Answer frames for so long and return how many."""
    done, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        session.predict(frames[done % len(frames)])
        done += 1
    return done


def _measure_layers(
    candidates: Sequence[Candidate], devices: Sequence[DevicePeaks], progress: Progress
) -> tuple[tuple[Peaks, ...], dict[str, LayerReport]]:
    """Return the peaks of each engine, and the layers of each candidate that has a profiler."""
    peaks: dict[tuple[str, int], Peaks] = {}
    reports = {}
    for candidate in progress(candidates, "layers and peaks", len(candidates)):
        if candidate.kind not in PROFILERS or candidate.onnx is None:
            continue
        threads = int(candidate.session.engine.facts["threads"])
        key = (candidate.kind, threads)
        if key not in peaks:
            peaks[key] = measure_peaks(candidate.kind, threads)
        reports[candidate.name] = report_layers(
            candidate.kind, candidate.files, candidate.onnx, peaks[key], devices
        )
    return tuple(peaks.values()), reports


def _compare(row: Row, reference: Row) -> Comparison:
    scored = row.accuracy is not None and reference.accuracy is not None
    return Comparison(
        name=row.name,
        reference=reference.name,
        latency=median_ratio(row.latency, reference.latency),
        dice=paired_difference(row.scores, reference.scores) if scored else None,
    )


def _notes_on(
    rows: Sequence[Row], environment: Environment, settings: Settings
) -> tuple[Note, ...]:
    """Return the warnings that apply, in the order of NOTES."""
    sizes = sorted({f"{row.contract.width}×{row.contract.height}" for row in rows})
    threads = sorted({row.engine_facts.get("threads", "unknown") for row in rows} - {"none"})
    untrained = [row.name for row in rows if row.accuracy is None]
    lesions = min((row.accuracy.lesions.images for row in rows if row.accuracy), default=None)
    notes: list[Note] = []

    def add(code: str, **facts: object) -> None:
        notes.append(Note(code, NOTES[code].format(**facts)))

    for row in rows:
        if not row.latency.steady:
            add("not-steady", name=row.name)
    if settings.rounds < P99_MIN_N:
        add("few-rounds", rounds=settings.rounds, needed=P99_MIN_N)
    if environment.load_average > environment.cores:
        add("load", load=environment.load_average, cores=environment.cores)
    if environment.governor not in (None, "performance"):
        add("governor", governor=environment.governor)
    if len(sizes) > 1:
        add("input-sizes", sizes=", ".join(sizes))
    if len(threads) > 1:
        add("threads", threads=", ".join(threads))
    if lesions is not None and lesions < _FEW_LESIONS:
        add("few-lesions", lesions=lesions)
    if untrained:
        add("not-trained", names=", ".join(untrained))
    if settings.layers and (unknown := [row.name for row in rows if row.layers is None]):
        add("no-layers", names=", ".join(unknown))
    if settings.passes and (unknown := [row.name for row in rows if row.yardstick is None]):
        add("no-yardstick", names=", ".join(unknown))
    if settings.passes and not waits_are_told():
        add("no-waits")
    return tuple(notes)


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
