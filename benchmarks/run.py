"""Run a benchmark: who is measured by what, in which order. What comes out is a `record`."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from ..runtime.engines import available_threads
from ..runtime.errors import InputError
from ..runtime.progress import Progress, quiet
from ..runtime.session import Session
from .measure.accuracy import (
    Case,
    paired_difference,
    summarise,
)
from .measure.batches import require_same_answers
from .measure.conditions import Conditions, compare_conditions, gpus_in_use, read_conditions
from .measure.energy import Energy, explain_no_counter, find_counter, measure_energy
from .measure.environment import Environment, describe_environment
from .measure.froc import Scored, score_with_curves
from .measure.latency import (
    P99_MIN_N,
    Frame,
    LatencyRun,
    measure_alone,
    measure_interleaved,
    median_ratio,
)
from .measure.layers import LayerReport, report_layers
from .measure.modes import (
    OfflineRun,
    PacedRun,
    SoakRun,
    measure_offline,
    measure_paced,
    measure_soak,
)
from .measure.nvml import computes_on_nvidia
from .measure.prediction import DevicePeaks
from .measure.process import ProcessFacts, probe_process
from .measure.profile import PROFILERS
from .measure.roofline import Peaks, measure_peaks
from .measure.timed_progress import by_the_second
from .measure.yardstick import (
    Pass,
    Yardstick,
    open_yardstick,
    time_pass,
    waits_are_told,
    yardstick_engine,
)
from .record import NOTES, SCHEMA, BenchmarkRecord, Comparison, Note, Proof, Row, Settings

ANY_BATCH = 1 << 30  # of a candidate whose engine takes as many frames a call as fit
MAX_FRAMES = 16  # held in memory for the latency measurement
_FEW_LESIONS = 30
_IDLE_S, _ENERGY_S = 30.0, 60.0  # at rest, then under load
BURST_S = 0.5
_SOAK_WINDOW_S = 10.0  # at most
_SOAK_WINDOWS = 20  # at least
_REOPEN_MAX_MS = 10_000  # start of a process; what takes longer is opened once
_DEFAULTS = Settings()
T = TypeVar("T")


@dataclass(frozen=True)
class Candidate:
    """One network in one engine at one precision, open and ready."""

    name: str  # unique in a run; the reports print it
    kind: str  # name of the engine
    precision: str  # "fp32", "fp16", "bf16" or "int8"
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


def run_benchmark(
    candidates: Sequence[Candidate],
    cases: Sequence[Case],
    *,
    settings: Settings = _DEFAULTS,
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
    _require_measurable(candidates, cases, settings)
    environment = describe_environment(command)
    # Accuracy first: it reads every file, so bad input is met before anything is timed.
    scored = _score(candidates, cases, progress)
    colour = all(candidate.session.contract.takes_colour for candidate in candidates)
    frames = [case.read_image(colour=colour) for case in cases[:MAX_FRAMES]]
    _require_batches(candidates, frames, settings, progress)
    processes = _probe(candidates, progress)
    before = _conditions_at_work(candidates[0], frames)
    passes = _Passes(candidates, processes, frames, progress)
    passes.add(settings.passes - settings.passes // 2)
    latencies = _time_single_frames(candidates, frames, settings, progress)
    loads = _measure_loads(candidates, frames, settings, progress)
    energies, no_energy = _measure_energies(candidates, before, frames, settings, progress)
    peaks, layers = _measure_layers(candidates, devices, settings, progress)
    passes.add(settings.passes // 2)  # as far from the others as a run is long
    after = _conditions_at_work(candidates[0], frames)
    measured = _Measured(
        scored, processes, latencies, loads, energies, layers, passes.yardsticks, passes.passes
    )
    rows = tuple(_row_of(candidate, measured) for candidate in candidates)
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
        no_energy=no_energy,
        rows=rows,
        comparisons=tuple(_compare(row, rows[0]) for row in rows[1:]),
        notes=_notes_on(rows, environment, settings),
    )


def _require_measurable(
    candidates: Sequence[Candidate], cases: Sequence[Case], settings: Settings
) -> None:
    """Raise InputError for what `run_benchmark` cannot measure."""
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
    batch = _batch_of(settings)
    if small := [each.name for each in candidates if each.max_batch < batch]:
        raise InputError(
            "E-BENCHMARK-BATCH",
            f"{', '.join(small)} cannot take {batch} frames a call; export with --dynamic {batch}, "
            "or measure without --batch",
        )


def _batch_of(settings: Settings) -> int:
    return settings.batch if "offline" in settings.modes else 1


# --- steps, each for all candidates --------------------------------------------------------------


@dataclass(frozen=True)
class _Loads:
    """What the modes besides "single" measured, by candidate; empty where not asked for."""

    offline: Mapping[str, OfflineRun]
    paced: Mapping[str, PacedRun]
    soak: Mapping[str, SoakRun]


@dataclass(frozen=True)
class _Measured:
    """All that was measured, by the name of the candidate."""

    scored: Mapping[str, Scored]  # of trained ones
    processes: Mapping[str, ProcessFacts]
    latencies: Mapping[str, LatencyRun]
    loads: _Loads
    energies: Mapping[str, Energy]
    layers: Mapping[str, LayerReport]
    yardsticks: Mapping[str, Yardstick]
    passes: Mapping[str, Sequence[Pass]]


def _row_of(candidate: Candidate, measured: _Measured) -> Row:
    """Return all that was measured of one candidate."""
    name = candidate.name
    scored = measured.scored.get(name)
    return Row(
        name=name,
        kind=candidate.kind,
        precision=candidate.precision,
        artifact_sha256=candidate.artifact_sha256,
        contract=candidate.session.contract,
        engine_facts=dict(candidate.session.engine.facts),
        file_bytes=candidate.file_bytes,
        parameters=candidate.complexity["parameters"],
        macs=candidate.complexity["macs"],
        weights_bytes=candidate.complexity["weights_bytes"],
        process=measured.processes[name],
        latency=measured.latencies[name],
        offline=measured.loads.offline.get(name),
        paced=measured.loads.paced.get(name),
        soak=measured.loads.soak.get(name),
        energy=measured.energies.get(name),
        layers=measured.layers.get(name),
        proof=candidate.proof,
        accuracy=summarise(scored.scores) if scored else None,
        scores=scored.scores if scored else (),
        calibration_error=scored.calibration_error if scored else math.nan,
        yardstick=measured.yardsticks.get(name),
        passes=tuple(measured.passes[name]),
        curves=scored.curves if scored else (),
    )


def _score(
    candidates: Sequence[Candidate], cases: Sequence[Case], progress: Progress
) -> dict[str, Scored]:
    """Score all that are trained."""
    return {
        candidate.name: score_with_curves(candidate.session, cases, progress=progress)
        for candidate in candidates
        if candidate.trained
    }


def _require_batches(
    candidates: Sequence[Candidate],
    frames: Sequence[Frame],
    settings: Settings,
    progress: Progress,
) -> None:
    batch = _batch_of(settings)
    if batch > 1:
        for candidate in progress(candidates, "batches", len(candidates)):
            require_same_answers(candidate.session, frames, batch, candidate.precision)


def _probe(candidates: Sequence[Candidate], progress: Progress) -> dict[str, ProcessFacts]:
    return {
        candidate.name: probe_process(candidate.probe)
        for candidate in progress(candidates, "memory and start", len(candidates))
    }


def _time_single_frames(
    candidates: Sequence[Candidate],
    frames: Sequence[Frame],
    settings: Settings,
    progress: Progress,
) -> dict[str, LatencyRun]:
    """Time frames in turns, then the engines alone."""
    sessions = {candidate.name: candidate.session for candidate in candidates}
    runs = measure_interleaved(sessions, frames, rounds=settings.rounds, progress=progress)
    alone_ms = measure_alone(sessions, frames, rounds=settings.rounds, progress=progress)
    return {name: replace(run, alone_ms=alone_ms[name]) for name, run in runs.items()}


def _measure_loads(
    candidates: Sequence[Candidate],
    frames: Sequence[Frame],
    settings: Settings,
    progress: Progress,
) -> _Loads:
    def each(
        mode: str, seconds: float, measure: Callable[[Candidate, Sequence[Frame], Settings], T]
    ) -> dict[str, T]:
        """Measure every candidate in a mode for so long; nothing if it was not asked."""
        if mode not in settings.modes:
            return {}
        turns = by_the_second(candidates, mode, seconds, progress)
        return {candidate.name: measure(candidate, frames, settings) for candidate in turns}

    return _Loads(
        offline=each("offline", settings.offline_s, _measure_offline),
        paced=each("paced", settings.paced_s, _measure_paced),
        soak=each("soak", settings.soak_s, _measure_soak),
    )


def _measure_energies(
    candidates: Sequence[Candidate],
    before: Conditions,
    frames: Sequence[Frame],
    settings: Settings,
    progress: Progress,
) -> tuple[dict[str, Energy], str | None]:
    """Return the energy of each candidate that has a counter, and why others have none."""
    if not settings.energy:
        return {}, "not asked for"
    energies: dict[str, Energy] = {}
    reasons: list[str] = []
    for candidate in by_the_second(candidates, "energy", _IDLE_S + _ENERGY_S, progress):
        gpus = [gpu.index for gpu in gpus_in_use(before)] if _on_gpu(candidate) else None
        counter = find_counter(gpus=gpus)
        if counter is None:
            reasons.append(explain_no_counter(gpus=gpus))
            continue
        work = partial(_work, candidate.session, frames, _ENERGY_S)
        energies[candidate.name] = measure_energy(counter, work, idle_s=_IDLE_S)
    return energies, "; ".join(dict.fromkeys(reasons)) or None


def _measure_layers(
    candidates: Sequence[Candidate],
    devices: Sequence[DevicePeaks],
    settings: Settings,
    progress: Progress,
) -> tuple[tuple[Peaks, ...], dict[str, LayerReport]]:
    """Return the peaks of each engine, and the layers of each candidate that has a profiler."""
    if not settings.layers:
        return (), {}
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


# --- one candidate -------------------------------------------------------------------------------


def _threads_of(candidate: Candidate) -> int:
    """Return the threads of a candidate's engine; all there are where it has none, or its own."""
    threads = candidate.session.engine.facts.get("threads", "")
    return int(threads) if threads.isdecimal() else available_threads()


def _measure_offline(
    candidate: Candidate, frames: Sequence[Frame], settings: Settings
) -> OfflineRun:
    """Measure with the session that is open, or with several streams that share its threads."""
    session, another = candidate.session, candidate.open_another
    each = max(1, _threads_of(candidate) // settings.streams)

    def open_session() -> Session:
        return session if settings.streams == 1 or another is None else another(each)

    return measure_offline(
        open_session,
        frames,
        streams=settings.streams,
        seconds=settings.offline_s,
        batch=settings.batch,
    )


def _measure_paced(candidate: Candidate, frames: Sequence[Frame], settings: Settings) -> PacedRun:
    return measure_paced(candidate.session, frames, hz=settings.hz, seconds=settings.paced_s)


def _measure_soak(candidate: Candidate, frames: Sequence[Frame], settings: Settings) -> SoakRun:
    seconds = settings.soak_s
    return measure_soak(
        candidate.session,
        frames,
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
    _work(candidate.session, frames, BURST_S)
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
