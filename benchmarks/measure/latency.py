"""Latency of several sessions, measured in turns so that a disturbance meets all of them alike.

Percentiles are order statistics and a p99 is given only where its confidence bound exists, as
MLPerf's early stopping does (Reddi et al. 2020, doi 10.1109/ISCA45697.2020.00045).
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...runtime.progress import Progress, quiet
from ...runtime.session import Session

Frame = npt.NDArray[np.uint8]

WARMUP_WINDOW = 50  # calls; the medians of two such windows in a row must agree
WARMUP_TOLERANCE = 0.01  # relative
WARMUP_CAP_S = 60.0
SETTLE_S = 0.05  # before each block: thread pools spin for a while after their last call
BLOCK_CALLS = 5  # that a block has if there are rounds for BLOCK_PAIRS of them
BLOCK_PAIRS = 20  # at least, in shorter blocks if need be; there may be rounds for fewer
ALONE_BLOCKS = 8
ALONE_UNTIMED = 20  # calls of each such block: clocks, caches and threads settle meanwhile
RATIO_CONFIDENCE = 0.99  # not 0.95: that finds one difference in 20 comparisons of equals
MIN_PAIRS = 8  # smallest n with 1 - 2 * 0.5**n >= RATIO_CONFIDENCE
CONFIDENCE = 0.975  # one-sided, of each of `percentile_bounds`
P99_MIN_N = 368  # smallest n with 1 - 0.99**n >= CONFIDENCE
_SEED = 0  # of the order in which sessions take their turns


@dataclass(frozen=True)
class LatencyRun:
    """All timed calls of one session, in order; warm-up calls are not among them."""

    e2e_ms: tuple[float, ...]  # uint8 frame in memory to mask in the frame's size, in memory
    pre_ms: tuple[float, ...]  # of the same call: `Session.prepare`,
    engine_ms: tuple[float, ...]  # `Session.infer`,
    post_ms: tuple[float, ...]  # and `Session.read_out`; the three add up to e2e_ms
    first_ms: float  # first call of the warm-up, end to end
    warmup_calls: int
    steady: bool  # whether two warm-up windows agreed before the cap
    block_calls: tuple[int, ...]  # calls of each block in order; blocks 2i and 2i + 1 are a pair
    alone_ms: tuple[float, ...] = ()  # the engine back to back: `measure_alone`, if it was called
    transfer_ms: tuple[float, ...] = ()  # copies to and from the device in it; () if not told

    @property
    def p50_ms(self) -> float:
        """Median of the end-to-end times."""
        return percentile(self.e2e_ms, 0.5)

    @property
    def p90_ms(self) -> float | None:
        """90th percentile end to end; None where n is too small (below 36)."""
        return supported_percentile(self.e2e_ms, 0.9)

    @property
    def p99_ms(self) -> float | None:
        """99th percentile end to end; None where n is too small (below `P99_MIN_N`)."""
        return supported_percentile(self.e2e_ms, 0.99)

    @property
    def alone_p50_ms(self) -> float | None:
        """Median of the engine back to back; None where it was not measured."""
        return percentile(self.alone_ms, 0.5) if self.alone_ms else None

    @property
    def compute_ms(self) -> tuple[float, ...]:
        """What of `engine_ms` is no copy; () where the engine does not tell its copies."""
        pairs = zip(self.engine_ms, self.transfer_ms, strict=True)
        return tuple(engine - copies for engine, copies in pairs) if self.transfer_ms else ()

    @property
    def overhead(self) -> float:
        """Share that preparing and reading out add to the engine: median over calls."""
        pairs = zip(self.e2e_ms, self.engine_ms, strict=True)
        return percentile([e2e / engine for e2e, engine in pairs], 0.5) - 1


@dataclass(frozen=True)
class LatencyRatio:
    """End-to-end time of one session over that of another, see `median_ratio`."""

    ratio: float
    low: float  # RATIO_CONFIDENCE bootstrap over block pairs; nan for fewer than MIN_PAIRS
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


def percentile_bounds(samples: Sequence[float], q: float) -> tuple[float | None, float | None]:
    """Return the 95 % confidence interval of the true percentile, as two order statistics.

    With X from Binomial(n, q), the number of samples below the true percentile, the upper bound is
    x_(k) with the smallest k such that P(X < k) >= 0.975 and the lower one x_(j) with the largest
    j such that P(X < j) <= 0.025. None where even the extreme sample is no such bound.
    """
    n = len(samples)
    low: int | None = None
    high: int | None = None
    below = 0.0  # P(X < rank)
    for rank in range(1, n + 1):
        below += math.exp(
            math.lgamma(n + 1)
            - math.lgamma(rank)
            - math.lgamma(n - rank + 2)
            + (rank - 1) * math.log(q)
            + (n - rank + 1) * math.log1p(-q)
        )
        if below <= 1 - CONFIDENCE:
            low = rank
        if below >= CONFIDENCE:
            high = rank
            break
    ascending = sorted(samples)
    return low and ascending[low - 1], high and ascending[high - 1]


def supported_percentile(samples: Sequence[float], q: float) -> float | None:
    """Return the percentile; None where n is too small for an upper bound of the true one."""
    return None if percentile_bounds(samples, q)[1] is None else percentile(samples, q)


def measure_interleaved(
    sessions: Mapping[str, Session],
    frames: Sequence[Frame],
    *,
    rounds: int,
    warmup_cap_s: float | None = None,
    progress: Progress = quiet,
) -> dict[str, LatencyRun]:
    """Time every session on the same frames, in blocks of consecutive calls that take turns.

    Each session is warmed up first: at least 50 calls and until the medians of two windows of 50
    calls agree within 1 %. The blocks of a pair run in a fresh random order of
    the sessions and then in its reverse (ABBA), so a steady drift cancels. Before each block comes
    a pause, in which the idle threads of the session before stop spinning on the cores, and one
    call that is not timed. Every session's n-th call gets the same frame. Garbage collection is
    off meanwhile.

    Args:
        sessions: by name.
        frames: uint8 [H, W] or [H, W, 3], at least one; calls go through them in turn.
        rounds: timed calls per session, >= 1.
        warmup_cap_s: after it a session that is not steady is measured all the same; None takes
            `WARMUP_CAP_S`.
        progress: wraps the warm-ups and the blocks.

    Returns:
        A `LatencyRun` for each name.
    """
    shuffle = np.random.default_rng(_SEED)
    names = list(sessions)
    order = np.arange(len(names))
    calls: dict[str, list[_Call]] = {name: [] for name in names}
    blocks = block_lengths(rounds)
    cap_s = WARMUP_CAP_S if warmup_cap_s is None else warmup_cap_s
    with garbage_collection_off():
        warmups = {
            name: _warm_up(sessions[name], frames, cap_s)
            for name in progress(names, "warm-up", len(names))
        }
        for block, length in enumerate(progress(blocks, "latency", len(blocks))):
            order = order[::-1] if block % 2 else shuffle.permutation(len(names))
            for index in order:
                session, done = sessions[names[index]], calls[names[index]]
                time.sleep(SETTLE_S)
                session.predict(frames[len(done) % len(frames)])
                for _ in range(length):
                    done.append(_time_call(session, frames[len(done) % len(frames)]))
    return {
        name: LatencyRun(
            e2e_ms=tuple(call.e2e_ms for call in calls[name]),
            pre_ms=tuple(call.pre_ms for call in calls[name]),
            engine_ms=tuple(call.engine_ms for call in calls[name]),
            post_ms=tuple(call.post_ms for call in calls[name]),
            first_ms=warmup.first_ms,
            warmup_calls=warmup.calls,
            steady=warmup.steady,
            block_calls=blocks,
            transfer_ms=tuple(
                call.transfer_ms for call in calls[name] if call.transfer_ms is not None
            ),
        )
        for name, warmup in warmups.items()
    }


def measure_alone(
    sessions: Mapping[str, Session],
    frames: Sequence[Frame],
    *,
    rounds: int,
    progress: Progress = quiet,
) -> dict[str, tuple[float, ...]]:
    """Time every engine back to back on prepared input, as the engines' own benchmarks do.

    Between the frames of a device an engine's threads rest and its data leave the caches, so its
    share of a real frame (`LatencyRun.engine_ms`) takes longer than this. Sessions take turns in
    `ALONE_BLOCKS` blocks, in reverse order every other time; the first calls of each are not timed.

    Args:
        sessions: by name.
        frames: uint8, at least one; each block takes the next.
        rounds: timed calls per session, >= 1.
        progress: wraps the blocks.

    Returns:
        Times in ms, in order, by name.
    """
    times_ms: dict[str, list[float]] = {name: [] for name in sessions}
    with garbage_collection_off():
        for block in progress(range(ALONE_BLOCKS), "engines alone", ALONE_BLOCKS):
            for name in list(sessions)[:: -1 if block % 2 else 1]:
                session = sessions[name]
                image = session.prepare(frames[block % len(frames)])
                time.sleep(SETTLE_S)
                for _ in range(ALONE_UNTIMED):
                    session.engine.run(image)
                for _ in range(rounds // ALONE_BLOCKS + (block < rounds % ALONE_BLOCKS)):
                    start_ns = time.perf_counter_ns()
                    session.engine.run(image)
                    times_ms[name].append((time.perf_counter_ns() - start_ns) / 1e6)
    return {name: tuple(times) for name, times in times_ms.items()}


def block_lengths(rounds: int) -> tuple[int, ...]:
    """Split the rounds into an even number of nearly equal blocks; a single round is one block."""
    pairs = min(max(BLOCK_PAIRS, rounds // (2 * BLOCK_CALLS)), rounds // 2)
    blocks = max(1, 2 * pairs)
    return tuple(rounds // blocks + (block < rounds % blocks) for block in range(blocks))


class _Call(NamedTuple):
    e2e_ms: float
    pre_ms: float
    engine_ms: float
    post_ms: float
    transfer_ms: float | None = None  # part of engine_ms, by the device's clock; None: not told


def _time_call(session: Session, frame: Frame) -> _Call:
    start_ns = time.perf_counter_ns()
    image = session.prepare(frame)
    prepared_ns = time.perf_counter_ns()
    logits = session.infer(image)
    inferred_ns = time.perf_counter_ns()
    session.read_out(logits, frame.shape)
    end_ns = time.perf_counter_ns()
    return _Call(
        e2e_ms=(end_ns - start_ns) / 1e6,
        pre_ms=(prepared_ns - start_ns) / 1e6,
        engine_ms=(inferred_ns - prepared_ns) / 1e6,
        post_ms=(end_ns - inferred_ns) / 1e6,
        transfer_ms=getattr(session.engine, "transfer_ms", None),
    )


@contextlib.contextmanager
def garbage_collection_off() -> Iterator[None]:
    """Collect once and not again until the end: a collection would fall on some call."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _WarmUp(NamedTuple):
    first_ms: float
    calls: int
    steady: bool


def _warm_up(session: Session, frames: Sequence[Frame], cap_s: float) -> _WarmUp:
    times_ms: list[float] = []
    deadline = time.perf_counter() + cap_s
    while True:
        times_ms.append(_time_call(session, frames[len(times_ms) % len(frames)]).e2e_ms)
        if _is_steady(times_ms):
            return _WarmUp(times_ms[0], len(times_ms), True)
        if len(times_ms) >= WARMUP_WINDOW and time.perf_counter() >= deadline:
            return _WarmUp(times_ms[0], len(times_ms), False)


def _is_steady(times_ms: Sequence[float]) -> bool:
    """Say whether a window has just ended whose median agrees with that of the one before."""
    if len(times_ms) < 2 * WARMUP_WINDOW or len(times_ms) % WARMUP_WINDOW:
        return False
    before = percentile(times_ms[-2 * WARMUP_WINDOW : -WARMUP_WINDOW], 0.5)
    after = percentile(times_ms[-WARMUP_WINDOW:], 0.5)
    return abs(after - before) <= WARMUP_TOLERANCE * before


def median_ratio(a: LatencyRun, b: LatencyRun) -> LatencyRatio:
    """Return the end-to-end time of `a` over that of `b`: 0.29 means a takes 29 % of it.

    Each block pair gives the ratio of its two medians, and the result is the median of those:
    what disturbed a pair is in both of its medians, and a pair in which one session alone was
    disturbed counts once. The bootstrap draws block pairs, since the calls of a block resemble
    each other. tests/measure/comparison.py counts how often this is right.

    Both runs must come from one `measure_interleaved`. Raises ValueError for unequal blocks.
    """
    if a.block_calls != b.block_calls:
        raise ValueError(f"blocks of {a.block_calls} calls against {b.block_calls}")
    if len(a.block_calls) < 2:
        return LatencyRatio(a.p50_ms / b.p50_ms, math.nan, math.nan)
    ratios = _pair_medians(a) / _pair_medians(b)
    n = len(ratios)
    ratio = float(np.median(ratios))
    if n < MIN_PAIRS:
        return LatencyRatio(ratio, math.nan, math.nan)
    draws = np.random.default_rng(_SEED).integers(0, n, (10_000, n))
    medians = np.median(ratios[draws], axis=1)
    tail = (1 - RATIO_CONFIDENCE) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return LatencyRatio(ratio, float(low), float(high))


def _pair_medians(run: LatencyRun) -> npt.NDArray[np.float64]:
    ends = np.cumsum(run.block_calls)[1::2]
    return np.array([np.median(calls) for calls in np.split(np.array(run.e2e_ms), ends[:-1])])
