"""A session under a load: a frame clock, several streams at once, many minutes on end.

`latency.measure_interleaved` is the mode "single". `MODES` sets ours beside those of MLPerf
Inference (Reddi et al. 2020, doi 10.1109/ISCA45697.2020.00045).
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime.errors import InputError
from ...runtime.session import Session
from .batches import BatchSession
from .latency import Frame, garbage_collection_off, percentile, supported_percentile

UNTIMED_CALLS = 20  # of each session before it is measured
OFFLINE_WINDOWS = 10
_T_9 = 2.262  # 97.5 % quantile of Student's t with OFFLINE_WINDOWS - 1 degrees of freedom
MIN_WINDOWS = 7  # smallest n with 2 * 0.5 ** (n - 1) < 0.05
_SPIN_S = 0.001  # a sleep overshoots by less; the rest of the wait for a tick is spun
_Z = 1.96  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Mode:
    """A way of sending frames, beside what MLPerf Inference has."""

    sends: str  # when a frame is sent
    mlperf: str | None  # its scenario that sends in the same way
    difference: str  # from that scenario, or from the nearest


MODES: Mapping[str, Mode] = MappingProxyType(
    {
        "single": Mode(
            "the next frame when the mask is there",
            "SingleStream",
            "MLPerf runs for 600 s at least and reports the 90th percentile alone",
        ),
        "paced": Mode(
            "a frame at each tick of a clock; the newest waits, older ones are dropped",
            None,
            "Server sends at random (Poisson) times and MultiStream 8 samples after each reply; "
            "neither drops any",
        ),
        "offline": Mode(
            "in each stream the next frame or batch when its masks are there, all streams at once",
            "Offline",
            "MLPerf sends at least 24,576 samples in one query, to be batched at will; here the "
            "calls of every stream have a fixed number of frames, 1 unless asked for more",
        ),
        "soak": Mode(
            "as single, for minutes",
            None,
            "SingleStream has no test for drift",
        ),
    }
)


# --- paced ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PacedRun:
    """What became of the frames of a clock.

    One frame may wait while another is in work; a newer one takes its place (newest wins). The
    deadline of a frame is the next tick.
    """

    hz: float
    due: int  # ticks, one frame each; frame k is due k / hz after the start
    answered: tuple[int, ...]  # which frames got a mask, ascending; the others were dropped
    latency_ms: tuple[float, ...]  # of each answered frame, from its tick to its mask
    late_ms: float  # the clock's own longest delay, part of the latency of that frame

    @property
    def done(self) -> int:
        """Frames that got a mask."""
        return len(self.answered)

    @property
    def dropped(self) -> int:
        """Frames replaced by a newer one before they were sent."""
        return self.due - self.done

    @property
    def missed(self) -> int:
        """Frames answered after their deadline."""
        return sum(latency_ms > 1000 / self.hz for latency_ms in self.latency_ms)

    @property
    def jitter_ms(self) -> tuple[float, ...]:
        """Time between consecutive masks minus the period; a drop adds a period."""
        at_ms = [
            1000 * frame / self.hz + latency_ms
            for frame, latency_ms in zip(self.answered, self.latency_ms, strict=True)
        ]
        return tuple(after - before - 1000 / self.hz for before, after in pairwise(at_ms))


def measure_paced(
    session: Session, frames: Sequence[Frame], *, hz: float, seconds: float
) -> PacedRun:
    """Send frames by a clock in a thread of its own, as a camera does, and answer them in this one.

    Args:
        session: gets 20 untimed calls first.
        frames: uint8 [H, W] or [H, W, 3], at least one; taken in turn.
        hz: ticks a second, above 0.
        seconds: how long the clock runs; it must have two ticks at least.

    Raises:
        InputError: E-BENCHMARK-MODE for no frame, or a clock without two ticks.
        Whatever the session raises, once the clock has stopped.
    """
    due = math.floor(seconds * hz) if hz > 0 and math.isfinite(seconds * hz) else 0
    if not frames or due < 2:
        raise InputError(
            "E-BENCHMARK-MODE",
            f"{len(frames)} frames, {seconds:g} s at {hz:g} Hz; give at least one frame and a "
            "clock with at least two ticks",
        )
    _call_untimed(session, frames)
    waiting: deque[int] = deque(maxlen=1)  # appending to a full one drops the frame that waits
    changed = threading.Condition()
    stopped = threading.Event()
    late_s = 0.0

    def clock(start: float) -> None:
        nonlocal late_s
        for frame in range(due):
            late_s = max(late_s, _wait_until(start + frame / hz))
            if stopped.is_set():
                return
            with changed:
                waiting.append(frame)
                changed.notify()
        with changed:
            stopped.set()
            changed.notify()

    answered: list[int] = []
    latency_ms: list[float] = []
    with garbage_collection_off():
        start = time.perf_counter() + 1 / hz
        thread = threading.Thread(target=clock, args=(start,), name="frame clock", daemon=True)
        thread.start()
        try:
            while True:
                with changed:
                    changed.wait_for(lambda: waiting or stopped.is_set())
                    if not waiting:
                        break
                    frame = waiting.popleft()
                session.predict(frames[frame % len(frames)])
                latency_ms.append((time.perf_counter() - start - frame / hz) * 1000)
                answered.append(frame)
        finally:
            stopped.set()
            thread.join()
    return PacedRun(hz, due, tuple(answered), tuple(latency_ms), late_s * 1000)


def _wait_until(tick: float) -> float:
    """Return at a time of `time.perf_counter`, and by how many seconds too late."""
    if (rest := tick - time.perf_counter() - _SPIN_S) > 0:
        time.sleep(rest)
    while (late := time.perf_counter() - tick) < 0:
        time.sleep(0)  # lets the session's thread have the interpreter
    return late


# --- offline -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OfflineRun:
    """Frames a second of several sessions at once, in `OFFLINE_WINDOWS` equal windows."""

    streams: int
    seconds: float
    window_fps: tuple[float, ...]  # all streams together; a frame between two windows is shared
    batch: int = 1  # frames a call; each counts as one frame
    threads_each: str | None = None  # of each stream's engine, as it states them
    call_p50_ms: float | None = None  # of one call, from its frames to their masks, all streams
    call_p99_ms: float | None = None  # None for too few calls, below `latency.P99_MIN_N`

    @property
    def fps(self) -> float:
        """Frames a second over the whole time."""
        return sum(self.window_fps) / len(self.window_fps)

    @property
    def fps_low(self) -> float:
        """Lower end of the 95 % interval of `fps`: Student's t over the windows."""
        return self.fps - self._half_width

    @property
    def fps_high(self) -> float:
        """Upper end of that interval."""
        return self.fps + self._half_width

    @property
    def _half_width(self) -> float:
        return _T_9 * float(np.std(self.window_fps, ddof=1)) / math.sqrt(len(self.window_fps))


def measure_offline(
    open_session: Callable[[], Session],
    frames: Sequence[Frame],
    *,
    streams: int,
    seconds: float,
    batch: int = 1,
) -> OfflineRun:
    """Keep several sessions busy at once, each in a thread: its next frames when masks are there.

    Preparing and reading out hold Python's interpreter lock in part, as they do for a user of
    threads.

    Args:
        open_session: called once for each stream, in this thread; gets 20 untimed calls each.
        frames: uint8 [H, W] or [H, W, 3], at least one; each stream takes them in turn.
        streams: >= 1. How many threads each session has is the opener's matter.
        seconds: how long, above 0; calls that run at the end are finished and counted in part.
        batch: frames a call, >= 1; above 1 for engines that take so many, see `batches`.

    Raises:
        InputError: E-BENCHMARK-MODE for no frame, stream, batch or time.
        Whatever a session raises, once the other streams have stopped.
    """
    if not frames or min(streams, batch) < 1 or not 0 < seconds < math.inf:
        raise InputError(
            "E-BENCHMARK-MODE",
            f"{len(frames)} frames, {streams} streams of {batch}, {seconds:g} s; give at least one "
            "frame, one stream, one frame a call and some time",
        )
    sessions = [open_session() for _ in range(streams)]
    answers = [_answer_of(session, frames, batch) for session in sessions]
    for answer in answers:
        for call in range(UNTIMED_CALLS):
            answer(call)
    together = threading.Barrier(streams)
    failed = threading.Event()

    def keep_busy(stream: int) -> list[float]:
        """Return when each call ended, in seconds from the start; the last is at or after it."""
        ends_s = [0.0]
        together.wait()
        start = time.perf_counter()
        try:
            while ends_s[-1] < seconds and not failed.is_set():
                answers[stream](stream + len(ends_s))
                ends_s.append(time.perf_counter() - start)
        except BaseException:
            failed.set()
            raise
        return ends_s

    with garbage_collection_off(), ThreadPoolExecutor(streams) as pool:
        streams_ends_s = list(pool.map(keep_busy, range(streams)))
    edges_s = np.linspace(0, seconds, OFFLINE_WINDOWS + 1)
    done = sum(np.interp(edges_s, ends_s, range(len(ends_s))) for ends_s in streams_ends_s)
    fps = batch * np.diff(done) * OFFLINE_WINDOWS / seconds
    calls_ms = [1000 * s for ends_s in streams_ends_s for s in np.diff(ends_s).tolist()]
    return OfflineRun(
        streams=streams,
        seconds=seconds,
        window_fps=tuple(fps.tolist()),
        batch=batch,
        threads_each=", ".join(
            sorted({s.engine.facts.get("threads", "unknown") for s in sessions})
        ),
        call_p50_ms=percentile(calls_ms, 0.5),
        call_p99_ms=supported_percentile(calls_ms, 0.99),
    )


def _answer_of(session: Session, frames: Sequence[Frame], batch: int) -> Callable[[int], object]:
    """Return what answers the n-th call of a stream: its frames follow those of the call before."""
    if batch == 1:
        return lambda call: session.predict(frames[call % len(frames)])
    several = BatchSession(session, batch)
    return lambda call: several.predict(
        [frames[(call * batch + row) % len(frames)] for row in range(batch)]
    )


# --- soak ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slope:
    """Theil–Sen estimate of a change per minute: the median slope over all pairs of windows."""

    per_minute: float
    low: float  # 95 %, see `slope_of`; nan for fewer than MIN_WINDOWS
    high: float

    @property
    def drifts(self) -> bool:
        """Whether the interval leaves out 0; no drift found is not the same as none."""
        return self.high < 0 or self.low > 0


@dataclass(frozen=True)
class SoakWindow:
    """A stretch of a soak."""

    end_s: float  # from the start of the soak
    calls: int
    p50_ms: float
    p99_ms: float | None  # None for too few calls, below `latency.P99_MIN_N`
    max_ms: float
    rss_mib: float | None  # of the process at the end; None where there is no /proc/self/statm
    sampled: Mapping[str, float]  # what the caller's `sample` told at the end


@dataclass(frozen=True)
class SoakRun:
    """Windows of one session that never rested."""

    windows: tuple[SoakWindow, ...]

    @property
    def latency_ms(self) -> Slope:
        """Drift of the windows' medians, in ms per minute."""
        return slope_of([w.end_s for w in self.windows], [w.p50_ms for w in self.windows])

    @property
    def memory_mib(self) -> Slope | None:
        """Growth of the process, in MiB per minute; None where it was not told."""
        known = [(w.end_s, w.rss_mib) for w in self.windows if w.rss_mib is not None]
        return slope_of(*zip(*known, strict=True)) if known else None


def measure_soak(
    session: Session,
    frames: Sequence[Frame],
    *,
    seconds: float,
    window_s: float,
    sample: Callable[[], Mapping[str, float]] = dict,
) -> SoakRun:
    """Send frames one after another for minutes, and keep a summary of each window.

    Samples of single calls are not kept: they would grow the memory that is measured. Garbage is
    collected as ever, as in an application.

    Args:
        session: gets 20 untimed calls first.
        frames: uint8 [H, W] or [H, W, 3], at least one; taken in turn.
        seconds: of the whole soak.
        window_s: of each window, above 0; the number of whole windows must be 2 at least.
        sample: conditions to keep with each window (temperature, clock), read at its end.

    Raises:
        InputError: E-BENCHMARK-MODE for no frame or fewer than two windows.
    """
    count = round(seconds / window_s) if window_s > 0 and math.isfinite(seconds) else 0
    if not frames or count < 2:
        raise InputError(
            "E-BENCHMARK-MODE",
            f"{len(frames)} frames, windows of {window_s:g} s in {seconds:g} s; give at least one "
            "frame and time for two windows",
        )
    _call_untimed(session, frames)
    windows = []
    done = 0
    start = time.perf_counter()
    for window in range(1, count + 1):
        times_ms: list[float] = []
        now = time.perf_counter()
        while not times_ms or now < start + window * window_s:
            session.predict(frames[done % len(frames)])
            before, now = now, time.perf_counter()
            times_ms.append((now - before) * 1000)
            done += 1
        windows.append(
            SoakWindow(
                end_s=now - start,
                calls=len(times_ms),
                p50_ms=percentile(times_ms, 0.5),
                p99_ms=supported_percentile(times_ms, 0.99),
                max_ms=max(times_ms),
                rss_mib=_rss_mib(),
                sampled=dict(sample()),
            )
        )
    return SoakRun(tuple(windows))


def _rss_mib() -> float | None:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return None
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def slope_of(at_s: Sequence[float], values: Sequence[float]) -> Slope:
    """Return the Theil–Sen slope of values over time with its 95 % interval.

    The interval holds the slopes that Kendall's test does not reject (Sen 1968, doi
    10.1080/01621459.1968.10480934). Neighbouring windows resemble each other, and taken as
    independent they would show a drift in every slow wave; so (1 + r) / (1 - r) of them count as
    one, r being their autocorrelation (Yue and Wang 2004, doi
    10.1023/B:WARM.0000043140.61082.60). At its widest it spans all slopes: even a random walk of
    MIN_WINDOWS steps in one direction alone with a chance below 5 %.

    Args:
        at_s: ascending times in seconds, at least two.
        values: as many, in any unit. Fewer than MIN_WINDOWS have no interval.
    """
    n = len(values)
    times_min, numbers = np.asarray(at_s) / 60, np.asarray(values)
    first, second = np.triu_indices(n, 1)
    slopes = np.sort((numbers[second] - numbers[first]) / (times_min[second] - times_min[first]))
    middle = float(np.median(slopes))
    if n < MIN_WINDOWS:
        return Slope(middle, math.nan, math.nan)
    r = _autocorrelation(numbers, numbers - middle * times_min)
    reach = _Z * math.sqrt(n * (n - 1) * (2 * n + 5) / 18 * (1 + r) / (1 - r))
    low = max(1, math.floor((len(slopes) - reach) / 2))  # ranks, from 1
    high = min(len(slopes), math.ceil((len(slopes) + reach) / 2) + 1)
    return Slope(middle, float(slopes[low - 1]), float(slopes[high - 1]))


def _autocorrelation(values: npt.NDArray[Any], residuals: npt.NDArray[Any]) -> float:
    """Return the correlation of neighbouring windows, in [0, 0.99], drift aside.

    The smaller of two estimates: that from the residuals of the line takes a step or a curve for
    a slow wave, and that from the differences (-(1 - r) / 2 at lag 1) is the less certain. Each
    is corrected for what it loses on average with n windows.
    """
    n = len(values)
    of_residuals = _lag_1(residuals)
    of_residuals += (2 + 4 * of_residuals) / n
    of_differences = 1 + 2 * (_lag_1(np.diff(values)) + 1 / n)
    return min(max(0.0, min(of_residuals, of_differences)), 0.99)


def _lag_1(values: npt.NDArray[Any]) -> float:
    """Return the autocorrelation of ranks at lag 1; 0 for equal values."""
    ascending = np.sort(values)
    ranks = ascending.searchsorted(values) + ascending.searchsorted(values, side="right")
    ranks -= len(values)
    return float(ranks[1:] @ ranks[:-1]) / float(ranks @ ranks) if ranks.any() else 0.0


def _call_untimed(session: Session, frames: Sequence[Frame]) -> None:
    for call in range(UNTIMED_CALLS):
        session.predict(frames[call % len(frames)])
