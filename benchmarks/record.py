"""One benchmark run as a value: what was measured, on what, under which conditions.

A row holds latency and accuracy of the same artifact, every sample of both, and its hash.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ..runtime.contract import InputContract
from ..runtime.errors import InputError
from ..runtime.progress import Progress, quiet
from ..runtime.session import Session
from .accuracy import (
    Accuracy,
    Case,
    ImageScore,
    PairedDifference,
    calibration_error,
    paired_difference,
    score_images,
    summarise,
)
from .environment import Environment, describe_environment
from .jsonform import json_from_value, value_from_json
from .latency import (
    P99_MIN_N,
    LatencyRatio,
    LatencyRun,
    measure_interleaved,
    median_ratio,
)
from .modes import measure_offline
from .process import ProcessFacts, probe_process

SCHEMA = "edgeseg.benchmark/4"
MAX_FRAMES = 16  # held in memory for the latency measurement
THROUGHPUT_S = 3.0
_FEW_LESIONS = 30


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
    throughput_fps: float  # single stream
    accuracy: Accuracy
    scores: tuple[ImageScore, ...]  # what `accuracy` summarises
    calibration_error: float  # of the pixels' lesion probability, see `calibration_error`


@dataclass(frozen=True)
class Comparison:
    """A row against the reference, which is the first row."""

    name: str
    reference: str
    latency: LatencyRatio  # median of the row over that of the reference
    dice: PairedDifference  # row minus reference, image by image


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
    }
)


@dataclass(frozen=True)
class BenchmarkRecord:
    """One run; the first row is the reference of all comparisons."""

    schema: str
    environment: Environment
    frames: int  # distinct frames of the latency measurement
    rounds: int  # timed calls per row
    images: int  # scored
    part: str  # of the split they are, "unseen" by any network here, or "all"
    split_sha256: str | None  # of that split; None for "unseen" and "all"
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]  # one for each row but the first, in their order
    notes: tuple[Note, ...]

    def comparison_of(self, row: Row) -> Comparison | None:
        """Return the comparison of a row; None for the reference."""
        return next((c for c in self.comparisons if c.name == row.name), None)


def run_benchmark(
    candidates: Sequence[Candidate],
    cases: Sequence[Case],
    *,
    rounds: int = 200,
    part: str,
    split_sha256: str | None,
    command: Sequence[str],
    progress: Progress = quiet,
) -> BenchmarkRecord:
    """Measure all candidates and compare each with the first.

    Args:
        candidates: at least one, under different names.
        cases: all are scored; the frames of the first 16 serve for latency and throughput.
        rounds: timed calls per candidate, >= 1; a p99 needs 368.
        part: which part of the split the cases are, or "unseen" or "all".
        split_sha256: of that split; None for "unseen" and "all".
        command: goes into the record, without folders, to reproduce it.
        progress: wraps the long loops.

    Raises:
        InputError: E-BENCHMARK-EMPTY (no candidate, case or round), E-BENCHMARK-NAMES (one name
            twice), and what reading the cases raises.
        EngineError: E-PROBE-FAILED.
    """
    names = [candidate.name for candidate in candidates]
    if not candidates or not cases or rounds < 1:
        raise InputError(
            "E-BENCHMARK-EMPTY",
            f"{len(candidates)} candidates, {len(cases)} images, {rounds} rounds; "
            "give at least one of each",
        )
    if len(set(names)) < len(names):
        raise InputError(
            "E-BENCHMARK-NAMES", f"candidates {', '.join(names)} share a name; rename one"
        )
    environment = describe_environment(command)
    # Accuracy first: it reads every file, so bad input is met before anything is timed.
    scores = {
        candidate.name: score_images(candidate.session.predict, cases, progress=progress)
        for candidate in candidates
    }
    gaps = {
        candidate.name: calibration_error(candidate.session.logits, cases, progress=progress)
        for candidate in candidates
    }
    frames = [case.read_image() for case in cases[:MAX_FRAMES]]
    processes = [
        probe_process(candidate.probe)
        for candidate in progress(candidates, "memory and start", len(candidates))
    ]
    sessions = {candidate.name: candidate.session for candidate in candidates}
    latencies = measure_interleaved(sessions, frames, rounds=rounds, progress=progress)
    rows = []
    for candidate, process in zip(candidates, processes, strict=True):
        offline = measure_offline(
            lambda session=candidate.session: session, frames, streams=1, seconds=THROUGHPUT_S
        )
        rows.append(
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
                process=process,
                latency=latencies[candidate.name],
                throughput_fps=offline.fps,
                accuracy=summarise(scores[candidate.name]),
                scores=scores[candidate.name],
                calibration_error=gaps[candidate.name],
            )
        )
    return BenchmarkRecord(
        schema=SCHEMA,
        environment=environment,
        frames=len(frames),
        rounds=rounds,
        images=len(cases),
        part=part,
        split_sha256=split_sha256,
        rows=tuple(rows),
        comparisons=tuple(_compare(row, rows[0]) for row in rows[1:]),
        notes=_notes_on(rows, environment, rounds),
    )


def _compare(row: Row, reference: Row) -> Comparison:
    return Comparison(
        name=row.name,
        reference=reference.name,
        latency=median_ratio(row.latency, reference.latency),
        dice=paired_difference(row.scores, reference.scores),
    )


def _notes_on(rows: Sequence[Row], environment: Environment, rounds: int) -> tuple[Note, ...]:
    """Return the warnings that apply, in the order of NOTES."""
    sizes = sorted({f"{row.contract.width}×{row.contract.height}" for row in rows})
    threads = sorted({row.engine_facts.get("threads", "unknown") for row in rows})
    lesions = rows[0].accuracy.lesions.images
    notes: list[Note] = []

    def add(code: str, **facts: object) -> None:
        notes.append(Note(code, NOTES[code].format(**facts)))

    for row in rows:
        if not row.latency.steady:
            add("not-steady", name=row.name)
    if rounds < P99_MIN_N:
        add("few-rounds", rounds=rounds, needed=P99_MIN_N)
    if environment.load_average > environment.cores:
        add("load", load=environment.load_average, cores=environment.cores)
    if environment.governor not in (None, "performance"):
        add("governor", governor=environment.governor)
    if len(sizes) > 1:
        add("input-sizes", sizes=", ".join(sizes))
    if len(threads) > 1:
        add("threads", threads=", ".join(threads))
    if lesions < _FEW_LESIONS:
        add("few-lesions", lesions=lesions)
    return tuple(notes)


def to_json(record: BenchmarkRecord) -> str:
    """Return the record as JSON text; an undefined number is null."""
    return json.dumps(json_from_value(record), ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str | bytes) -> BenchmarkRecord:
    """Read the result of `to_json`, as text or UTF-8.

    Raises InputError: E-REPORT-SCHEMA for another schema, or for the first field that is missing,
    unknown, mistyped or contradicts another; E-CONTRACT for an impossible input size.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InputError(
            "E-REPORT-SCHEMA", f"not JSON ({error}); give the .json of a benchmark"
        ) from error
    found = content.get("schema") if isinstance(content, dict) else None
    if found != SCHEMA:
        raise InputError(
            "E-REPORT-SCHEMA",
            f"schema is {found!r:.60}, this tool reads {SCHEMA!r}; use the version that wrote it",
        )
    record = value_from_json(BenchmarkRecord, content, "record")
    if fault := _contradiction(record):
        raise InputError("E-REPORT-SCHEMA", f"{fault}; run the benchmark again")
    return record


def _contradiction(record: BenchmarkRecord) -> str | None:
    """Return what the types alone do not catch and the reports rely on."""
    names = [row.name for row in record.rows]
    if not names or len(set(names)) < len(names):
        return "record.rows has no row, or a name twice"
    if [(c.name, c.reference) for c in record.comparisons] != [(n, names[0]) for n in names[1:]]:
        return "record.comparisons are not those of its rows with the first"
    for row in record.rows:
        times = (*row.latency.e2e_ms, *row.latency.engine_ms)
        if {len(row.latency.e2e_ms), len(row.latency.engine_ms)} != {record.rounds}:
            return f"{row.name} has not {record.rounds} samples"
        if not times or not all(time > 0 and math.isfinite(time) for time in times):
            return f"{row.name} has no samples, or one that is no time above 0"
        if not row.accuracy.groups:
            return f"{row.name} has no accuracy"
    if unknown := [note.code for note in record.notes if note.code not in NOTES]:
        return f"note {unknown[0]!r} is unknown"
    return None
