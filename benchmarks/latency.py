"""Latency of several sessions, measured in turns so that a disturbance meets all of them alike.

Percentiles are order statistics and a p99 is given only where its confidence bound exists, as
MLPerf's early stopping does (Reddi et al. 2020, doi 10.1109/ISCA45697.2020.00045).
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.image import input_from_frame
from ..runtime.progress import Progress, quiet
from ..runtime.session import Session

Frame = npt.NDArray[np.uint8]

WARMUP_WINDOW = 10  # calls; the medians of two such windows in a row must agree
WARMUP_TOLERANCE = 0.05  # relative
WARMUP_CAP_S = 5.0
SETTLE_S = 0.05  # before each turn: thread pools spin for a while after their last call
CONFIDENCE = 0.975  # one-sided, of `percentile_bound`
P99_MIN_N = 368  # smallest n with 1 - 0.99**n >= CONFIDENCE
_SEED = 0  # of the order in which sessions take their turns


@dataclass(frozen=True)
class LatencyRun:
    """All timed calls of one session, in order; warm-up calls are not among them."""

    e2e_ms: tuple[float, ...]  # uint8 frame in memory to mask in the frame's size, in memory
    engine_ms: tuple[float, ...]  # the engine alone on prepared input, same frame and round
    first_ms: float  # the very first call, end to end
    warmup_calls: int
    steady: bool  # whether two warm-up windows agreed before the cap

    @property
    def p50_ms(self) -> float:
        """Median of the end-to-end times."""
        return percentile(self.e2e_ms, 0.5)

    @property
    def p90_ms(self) -> float | None:
        """90th percentile end to end; None where n is too small (below 36)."""
        return _supported_percentile(self.e2e_ms, 0.9)

    @property
    def p99_ms(self) -> float | None:
        """99th percentile end to end; None where n is too small (below `P99_MIN_N`)."""
        return _supported_percentile(self.e2e_ms, 0.99)

    @property
    def overhead(self) -> float:
        """Share that preparing and reading out add to the engine: median of e2e/engine - 1."""
        pairs = zip(self.e2e_ms, self.engine_ms, strict=True)
        return percentile([e2e / engine for e2e, engine in pairs], 0.5) - 1


@dataclass(frozen=True)
class LatencyRatio:
    """Median end-to-end time of one session over that of another."""

    ratio: float
    low: float  # 95 % bootstrap over rounds
    high: float

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out 1; not shown to differ is not the same as equal."""
        return self.high < 1 or self.low > 1


def percentile(samples: Sequence[float], q: float) -> float:
    """Return the order statistic of rank ceil(q·n), a value that was really measured."""
    return sorted(samples)[_rank(len(samples), q) - 1]


def _rank(n: int, q: float) -> int:
    return max(1, math.ceil(q * n - 1e-9))  # 0.9 * 10 must not become 9.000...1


def percentile_bound(samples: Sequence[float], q: float) -> float | None:
    """Return an upper bound of the true percentile, exceeded with a chance of 2.5 % at most.

    It is the order statistic x_(k) with the smallest k such that Binomial(n, q) is below k with a
    probability of at least 0.975. None where even the largest sample is no such bound.
    """
    n = len(samples)
    below = 0.0  # P(Binomial(n, q) < k)
    for k in range(1, n + 1):
        below += math.exp(
            math.lgamma(n + 1)
            - math.lgamma(k)
            - math.lgamma(n - k + 2)
            + (k - 1) * math.log(q)
            + (n - k + 1) * math.log1p(-q)
        )
        if below >= CONFIDENCE:
            return sorted(samples)[k - 1]
    return None


def _supported_percentile(samples: Sequence[float], q: float) -> float | None:
    return None if percentile_bound(samples, q) is None else percentile(samples, q)


def measure_interleaved(
    sessions: Mapping[str, Session],
    frames: Sequence[Frame],
    *,
    rounds: int,
    progress: Progress = quiet,
) -> dict[str, LatencyRun]:
    """Time every session on the same frames, round by round.

    Each session is warmed up first: at least 10 calls and until the medians of two windows of 10
    calls agree within 5 %, for 5 s at most. In each round every session, in a freshly shuffled
    order, gets one frame twice: through `Session.predict` and, already prepared, through its
    engine alone; which comes first alternates. Before that comes a pause, in which the idle
    threads of the session before stop spinning on the cores, and one call that is not timed.
    Garbage collection is off meanwhile.

    Args:
        sessions: by name.
        frames: uint8 [H, W] or [H, W, 3], at least one; rounds go through them in turn.
        rounds: timed calls per session, >= 1.
        progress: wraps the rounds.

    Returns:
        A `LatencyRun` for each name.
    """
    shuffle = np.random.default_rng(_SEED)
    names = list(sessions)
    e2e_ms: dict[str, list[float]] = {name: [] for name in names}
    engine_ms: dict[str, list[float]] = {name: [] for name in names}
    with _garbage_collection_off():
        warmups = {name: _warm_up(session, frames) for name, session in sessions.items()}
        for turn in progress(range(rounds), "latency", rounds):
            frame = frames[turn % len(frames)]
            for index in shuffle.permutation(len(names)):
                name = names[index]
                session = sessions[name]
                image = input_from_frame(frame, session.contract)
                time.sleep(SETTLE_S)
                session.predict(frame)
                if turn % 2:
                    engine_ms[name].append(_time_ms(session.engine.run, image))
                e2e_ms[name].append(_time_ms(session.predict, frame))
                if not turn % 2:
                    engine_ms[name].append(_time_ms(session.engine.run, image))
    return {
        name: LatencyRun(tuple(e2e_ms[name]), tuple(engine_ms[name]), *warmups[name])
        for name in names
    }


@contextlib.contextmanager
def _garbage_collection_off() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _time_ms(call: Callable[[npt.NDArray[Any]], object], argument: npt.NDArray[Any]) -> float:
    start_ns = time.perf_counter_ns()
    call(argument)
    return (time.perf_counter_ns() - start_ns) / 1e6


def _warm_up(session: Session, frames: Sequence[Frame]) -> tuple[float, int, bool]:
    """Return the first call's time in ms, the number of calls and whether they became steady."""
    times_ms: list[float] = []
    deadline = time.perf_counter() + WARMUP_CAP_S
    while True:
        times_ms.append(_time_ms(session.predict, frames[len(times_ms) % len(frames)]))
        if _is_steady(times_ms):
            return times_ms[0], len(times_ms), True
        if len(times_ms) >= WARMUP_WINDOW and time.perf_counter() >= deadline:
            return times_ms[0], len(times_ms), False


def _is_steady(times_ms: Sequence[float]) -> bool:
    """Say whether a window has just ended whose median agrees with that of the one before."""
    if len(times_ms) < 2 * WARMUP_WINDOW or len(times_ms) % WARMUP_WINDOW:
        return False
    before = percentile(times_ms[-2 * WARMUP_WINDOW : -WARMUP_WINDOW], 0.5)
    after = percentile(times_ms[-WARMUP_WINDOW:], 0.5)
    return abs(after - before) <= WARMUP_TOLERANCE * before


def median_ratio(a: LatencyRun, b: LatencyRun) -> LatencyRatio:
    """Return the median end-to-end time of `a` over that of `b`: 0.29 means a takes 29 % of it.

    Both runs must come from one `measure_interleaved`: the bootstrap draws rounds, so what
    disturbed a round enters both medians. Raises ValueError for unequal numbers of rounds.
    """
    if len(a.e2e_ms) != len(b.e2e_ms):
        raise ValueError(f"{len(a.e2e_ms)} rounds against {len(b.e2e_ms)}")
    n = len(a.e2e_ms)
    ratio = a.p50_ms / b.p50_ms
    if n < 2:
        return LatencyRatio(ratio, math.nan, math.nan)
    rounds = np.random.default_rng(_SEED).integers(0, n, (2000, n))
    middle = _rank(n, 0.5) - 1
    medians = [
        np.partition(np.asarray(run.e2e_ms)[rounds], middle, axis=1)[:, middle] for run in (a, b)
    ]
    low, high = np.quantile(medians[0] / medians[1], [0.025, 0.975])
    return LatencyRatio(ratio, float(low), float(high))


def measure_throughput(session: Session, frames: Sequence[Frame], seconds: float) -> float:
    """Return frames per second of a single stream: each frame is sent when the last mask is there.

    Args:
        session: warmed up already.
        frames: uint8 frames, taken in turn.
        seconds: how long to send; the call that is running then is finished and counted.
    """
    done = 0
    with _garbage_collection_off():
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            session.predict(frames[done % len(frames)])
            done += 1
    return done / elapsed
