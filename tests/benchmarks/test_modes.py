"""Frame clocks, streams and soaks over a fake engine that takes a given time."""

from __future__ import annotations

import gc
import math
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from edgeseg.benchmarks.measure import modes
from edgeseg.benchmarks.measure.modes import (
    MODES,
    OfflineRun,
    PacedRun,
    Slope,
    measure_offline,
    measure_paced,
    measure_soak,
    slope_of,
)
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError
from edgeseg.runtime.session import Session

FRAMES = [np.full((16, 16), value, np.uint8) for value in (10, 200)]


@pytest.fixture(autouse=True)
def _cold(monkeypatch):
    monkeypatch.setattr(modes, "UNTIMED_CALLS", 0)


class FakeEngine:
    """Sleeps in each call; `does(n)` may do more in the n-th."""

    name = "fake"

    def __init__(self, sleep_ms=0.0, does=None):
        self.facts = {"threads": "1"}
        self.sleep_ms = sleep_ms
        self.does = does or (lambda call: None)
        self.seen = []

    def run(self, image):
        time.sleep(self.sleep_ms / 1000)
        self.does(len(self.seen))
        self.seen.append(round(float(image[0, 0, 0, 0]), 3))
        return np.zeros(image.shape, np.float32)


def session(sleep_ms=0.0, does=None):
    return Session.over(FakeEngine(sleep_ms, does), InputContract(height=16, width=16))


class OutOfOrder(Exception):  # noqa: N818 - what an engine of somebody else may raise
    pass


def fails_at(number):
    def does(call):
        if call == number:
            raise OutOfOrder

    return does


def threads():
    return {thread.name for thread in threading.enumerate()}


# --- paced ---------------------------------------------------------------------------------------


def test_fast_session_keeps_up_with_the_clock():
    run = measure_paced(session(), FRAMES, hz=20, seconds=0.6)
    assert run.done + run.dropped == run.due == 12
    assert run.dropped <= 3  # none on an idle machine
    assert list(run.answered) == sorted(set(run.answered))
    assert all(latency_ms > 0 for latency_ms in run.latency_ms)
    assert len(run.jitter_ms) == run.done - 1


def test_session_of_two_periods_answers_every_other_frame_and_misses_its_deadline():
    run = measure_paced(session(sleep_ms=40.0), FRAMES, hz=50, seconds=0.8)
    assert run.done + run.dropped == run.due == 40
    assert 2 <= run.done <= 21  # 20 calls fit, and the last frame waits beyond the clock
    assert run.missed == run.done


def test_newest_frame_wins():
    def does(call):  # the first call lasts over frames 1 to 4
        time.sleep(0.09 if call == 0 else 0)

    run = measure_paced(session(does=does), FRAMES, hz=50, seconds=0.3)
    assert run.answered[1] - run.answered[0] >= 4
    assert run.dropped >= 3


def test_latency_counts_from_the_tick_not_from_the_call():
    """A frame that waits for the session is late, however fast its own call is."""

    def does(call):
        time.sleep(0.05 if call == 0 else 0)

    run = measure_paced(session(does=does), FRAMES, hz=25, seconds=0.2)
    assert run.latency_ms[0] >= 50
    assert run.latency_ms[1] >= 50 - 40 * (run.answered[1] - run.answered[0])


def test_frames_are_taken_in_turn_with_the_clock():
    one = session()
    run = measure_paced(one, FRAMES, hz=100, seconds=0.2)
    values = [round(float(one.prepare(frame)[0, 0, 0, 0]), 3) for frame in FRAMES]
    assert one.engine.seen == [values[k % 2] for k in run.answered]


def test_misses_drops_and_jitter_by_hand():
    run = PacedRun(hz=100, due=5, answered=(0, 1, 4), latency_ms=(4.0, 12.0, 3.0), late_ms=0.1)
    assert (run.done, run.dropped, run.missed) == (3, 2, 1)
    # masks at 4, 22 and 43 ms: 18 and 21 ms apart, the period is 10
    assert run.jitter_ms == pytest.approx((8.0, 11.0))


def test_clock_stops_when_the_session_fails():
    with pytest.raises(OutOfOrder):
        measure_paced(session(does=fails_at(2)), FRAMES, hz=50, seconds=60)
    assert "frame clock" not in threads()
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("hz", "seconds"), [(0, 1), (-1, 1), (30, 0), (30, 0.05), (math.nan, 1), (30, math.inf)]
)
def test_clock_without_two_ticks_is_refused(hz, seconds):
    with pytest.raises(InputError) as caught:
        measure_paced(session(), FRAMES, hz=hz, seconds=seconds)
    assert caught.value.code == "E-BENCHMARK-MODE"


# --- offline -------------------------------------------------------------------------------------


def test_one_stream_answers_one_over_its_time():
    run = measure_offline(lambda: session(sleep_ms=5.0), FRAMES, streams=1, seconds=0.3)
    assert len(run.window_fps) == modes.OFFLINE_WINDOWS
    assert 20 < run.fps <= 200
    assert run.fps_low <= run.fps <= run.fps_high


def test_two_streams_that_sleep_answer_twice_as_much():
    opened = []

    def opener():
        opened.append(session(sleep_ms=10.0))
        return opened[-1]

    one, two = (measure_offline(opener, FRAMES, streams=n, seconds=0.3) for n in (1, 2))
    assert len(opened) == 3
    assert (one.streams, two.streams) == (1, 2)
    assert 1.2 * one.fps < two.fps  # 2 on an idle machine


def test_call_longer_than_a_window_is_shared_between_windows():
    run = measure_offline(lambda: session(sleep_ms=50.0), FRAMES, streams=1, seconds=0.2)
    assert min(run.window_fps) > 0
    assert run.fps <= 20


def test_batch_counts_as_so_many_frames_and_its_own_latency_is_told():
    run = measure_offline(lambda: session(sleep_ms=10.0), FRAMES, streams=1, seconds=0.3, batch=4)
    assert 60 < run.fps <= 400  # 100 calls a second of 4 frames
    assert (run.batch, run.threads_each, run.call_p99_ms) == (4, "1", None)
    assert run.call_p50_ms >= 10


def test_calls_of_a_batch_take_the_frames_in_turn():
    """Of five frames two at a time, the first of each call is 2, 4, 1, 3, 0, 2, ..."""
    frames = [np.full((16, 16), 20 * number, np.uint8) for number in range(5)]
    one = session(does=lambda call: time.sleep(0.001))
    measure_offline(lambda: one, frames, streams=1, seconds=0.05, batch=2)
    first = [round(float(one.prepare(frames[k])[0, 0, 0, 0]), 3) for k in (2, 4, 1, 3, 0, 2)]
    assert len(one.engine.seen) >= 3
    assert one.engine.seen[:6] == first[: len(one.engine.seen)]


def test_interval_of_fps_by_hand():
    # sd of five 9s and five 11s is sqrt(10 / 9); times 2.262 / sqrt(10) is 0.754
    run = OfflineRun(1, 1.0, (9.0, 11.0) * 5)
    assert (run.fps, run.fps_low, run.fps_high) == pytest.approx((10, 9.246, 10.754), abs=1e-3)


def test_failure_of_one_stream_ends_the_others():
    sessions = iter([session(sleep_ms=1.0), session(sleep_ms=1.0, does=fails_at(3))])
    start = time.perf_counter()
    with pytest.raises(OutOfOrder):
        measure_offline(lambda: next(sessions), FRAMES, streams=2, seconds=60)
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize(
    ("streams", "seconds", "batch"),
    [(0, 1, 1), (-1, 1, 1), (1, 0, 1), (1, math.inf, 1), (1, 1, 0)],
)
def test_no_stream_no_time_or_no_batch_is_refused(streams, seconds, batch):
    with pytest.raises(InputError) as caught:
        measure_offline(session, FRAMES, streams=streams, seconds=seconds, batch=batch)
    assert caught.value.code == "E-BENCHMARK-MODE"


# --- soak ----------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a call of a session moves it on."""
    fake = SimpleNamespace(now=0.0)
    monkeypatch.setattr(modes, "time", SimpleNamespace(perf_counter=lambda: fake.now))
    return fake


def clocked(clock, *calls_s):
    """Return a session whose calls take these times in turn, the last for ever."""

    def does(call):
        clock.now += calls_s[min(call, len(calls_s) - 1)]

    return session(does=does)


def test_soak_summarises_every_window(clock):
    run = measure_soak(
        clocked(clock, 0.5, 0.5, 0.75, 0.25),
        FRAMES,
        seconds=3,
        window_s=1,
        sample=lambda: {"temperature_c": 50 + clock.now},
    )
    assert [(w.end_s, w.calls, w.p50_ms, w.max_ms) for w in run.windows] == [
        (1.0, 2, 500, 500),
        (2.0, 2, 250, 750),
        (3.0, 4, 250, 250),
    ]
    assert [w.sampled["temperature_c"] for w in run.windows] == [51, 52, 53]
    assert all(w.p99_ms is None for w in run.windows)


def test_call_longer_than_a_window_still_gives_every_window_a_call(clock):
    run = measure_soak(clocked(clock, 2.5, 0.5), FRAMES, seconds=4, window_s=1)
    assert [w.calls for w in run.windows] == [1, 1, 1, 1]


def test_soak_finds_a_session_that_grows_slower(clock):
    one = clocked(clock, *(0.01 + 0.0001 * call for call in range(10**4)))
    run = measure_soak(one, FRAMES, seconds=20, window_s=1)
    assert run.latency_ms.drifts
    assert run.latency_ms.per_minute > 0
    assert not measure_soak(clocked(clock, 0.01), FRAMES, seconds=20, window_s=1).latency_ms.drifts


@pytest.mark.skipif(modes._rss_mib() is None, reason="no /proc/self/statm; Linux has it")
def test_memory_of_the_process_is_told():
    assert 10 < modes._rss_mib() < 1 << 20


def test_soak_finds_a_session_that_leaks(monkeypatch):
    kept = []  # counted, not allocated: the process may have free memory of earlier tests
    monkeypatch.setattr(modes, "_rss_mib", lambda: 100.0 + len(kept))
    one = session(does=lambda call: (time.sleep(0.01), kept.append(call)))
    slope = measure_soak(one, FRAMES, seconds=0.6, window_s=0.05).memory_mib
    assert slope.drifts
    assert slope.per_minute > 60  # a MiB in each call


def test_soak_of_less_than_two_windows_is_refused():
    for seconds, window_s in [(1, 1), (0, 1), (1, 0), (math.inf, 1)]:
        with pytest.raises(InputError) as caught:
            measure_soak(session(), FRAMES, seconds=seconds, window_s=window_s)
        assert caught.value.code == "E-BENCHMARK-MODE"


@pytest.mark.parametrize(
    "measure",
    [
        lambda: measure_paced(session(), [], hz=30, seconds=1),
        lambda: measure_offline(session, [], streams=1, seconds=1),
        lambda: measure_soak(session(), [], seconds=1, window_s=0.1),
    ],
)
def test_no_frame_is_refused(measure):
    with pytest.raises(InputError) as caught:
        measure()
    assert caught.value.code == "E-BENCHMARK-MODE"


def longest_paced_ms(one):
    return max(measure_paced(one, FRAMES, hz=20, seconds=0.2).latency_ms)


def longest_offline_ms(one):
    return 1000 / min(measure_offline(lambda: one, FRAMES, streams=1, seconds=0.1).window_fps)


def longest_soak_ms(one):
    return max(w.max_ms for w in measure_soak(one, FRAMES, seconds=0.1, window_s=0.05).windows)


@pytest.mark.parametrize("longest_ms", [longest_paced_ms, longest_offline_ms, longest_soak_ms])
def test_first_calls_are_not_among_the_measured(monkeypatch, longest_ms):
    monkeypatch.setattr(modes, "UNTIMED_CALLS", 3)
    one = session(does=lambda call: time.sleep(0.3 if call < 3 else 0))
    assert longest_ms(one) < 300


# --- slopes --------------------------------------------------------------------------------------


def test_slope_of_a_line_is_exact():
    minutes = np.arange(20)
    assert slope_of(60.0 * minutes, 5 + 3.0 * minutes) == Slope(3, 3, 3)
    assert slope_of(60.0 * minutes, 5 + 3.0 * minutes).drifts


def test_slope_of_a_constant_is_zero_and_no_drift():
    slope = slope_of(range(20), [7.0] * 20)
    assert slope == Slope(0, 0, 0)
    assert not slope.drifts


def test_one_wild_window_does_not_make_a_slope():
    values = [7.0] * 20
    values[-1] = 700.0
    assert not slope_of(range(20), values).drifts


def test_interval_of_ten_windows_by_hand():
    # Values 0..9 with neighbours swapped: no autocorrelation to widen. Var S = 10 * 9 * 25 / 18
    # = 125, 1.96 * sqrt(125) = 21.9, so of the 45 slopes the 11th and the 35th are the bounds.
    values = [1, 0, 3, 2, 5, 4, 7, 6, 9, 8]
    slopes = sorted((values[j] - values[i]) / (j - i) for j in range(10) for i in range(j))
    slope = slope_of([60 * k for k in range(10)], values)
    assert (slope.per_minute, slope.low, slope.high) == pytest.approx(
        (slopes[22], slopes[10], slopes[34])
    )


def test_few_windows_have_no_interval():
    slope = slope_of(range(6), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert slope.per_minute == pytest.approx(60)
    assert math.isnan(slope.low)
    assert not slope.drifts


def test_seven_windows_that_only_rise_are_a_drift():
    assert 2 * 0.5 ** (modes.MIN_WINDOWS - 1) < 0.05 <= 2 * 0.5 ** (modes.MIN_WINDOWS - 2)
    assert slope_of(range(7), [1, 2, 4, 7, 11, 16, 22]).drifts


@pytest.mark.parametrize("shape", ["line", "step", "curve"])
def test_change_of_five_standard_deviations_is_found(shape):
    rng = np.random.default_rng(1)
    share = np.linspace(0, 1, 60)
    change = {"line": share, "step": share > 0.5, "curve": 1 - np.exp(-5 * share)}[shape]
    found = sum(
        slope_of(10.0 * np.arange(60), 10 + 0.5 * change + 0.1 * rng.normal(size=60)).drifts
        for _ in range(20)
    )
    assert found >= 19


@pytest.mark.parametrize(("correlation", "most"), [(0.0, 0.07), (0.6, 0.12)])
def test_slow_waves_are_seldom_called_a_drift(correlation, most):
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(300):
        noise = rng.normal(size=60)
        for i in range(1, 60):
            noise[i] = correlation * noise[i - 1] + math.sqrt(1 - correlation**2) * noise[i]
        found += slope_of(10.0 * np.arange(60), 10 + 0.1 * noise).drifts
    assert found <= most * 300


def test_every_mode_says_what_mlperf_has():
    assert {name: mode.mlperf for name, mode in MODES.items()} == {
        "single": "SingleStream",
        "paced": None,
        "offline": "Offline",
        "soak": None,
    }
    assert all(mode.sends and mode.difference for mode in MODES.values())
