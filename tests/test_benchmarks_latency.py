from __future__ import annotations

import gc
import math
import time
from itertools import pairwise

import numpy as np
import pytest

from edgeseg.benchmarks import latency
from edgeseg.benchmarks.latency import (
    P99_MIN_N,
    LatencyRun,
    measure_interleaved,
    measure_throughput,
    median_ratio,
    percentile,
    percentile_bound,
)
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.session import Session

FRAMES = [np.full((16, 16), value, np.uint8) for value in (10, 200)]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(latency, "SETTLE_S", 0.0)


class FakeEngine:
    """Takes a given time and tells a common log that it was called, and with which frame."""

    def __init__(self, name="fake", sleep_ms=0.0, log=None):
        self.facts = {"threads": "1"}
        self.name = name
        self.sleep_ms = sleep_ms
        self.log = [] if log is None else log

    def run(self, image):
        self.log.append((self.name, float(image[0, 0, 0, 0]), gc.isenabled()))
        time.sleep(self.sleep_ms / 1000)
        return np.zeros((1, 1, 16, 16), np.float32)


def session(**options):
    return Session.over(FakeEngine(**options), InputContract(height=16, width=16))


def run_of(times_ms):
    return LatencyRun(tuple(times_ms), tuple(t / 2 for t in times_ms), 1.0, 20, True)


def test_percentile_is_the_measured_value_of_that_rank():
    samples = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(samples, q) for q in (0.01, 0.5, 0.8, 0.81, 1.0)] == [1, 3, 4, 5, 5]


def test_p90_of_ten_is_the_ninth():
    assert percentile(range(1, 11), 0.9) == 9


def test_bound_of_the_median_of_six_is_the_largest():
    # P(Binomial(6, 1/2) <= 5) = 1 - 1/64 = 0.984; for five samples 1 - 1/32 = 0.969 is too little
    assert percentile_bound([1, 2, 3, 4, 5, 6], 0.5) == 6
    assert percentile_bound([1, 2, 3, 4, 5], 0.5) is None


def test_bound_of_the_median_of_a_hundred_is_the_sixty_first():
    # P(Binomial(100, 1/2) <= 59) = 0.972 < 0.975 <= P(... <= 60) = 0.982, so k - 1 = 60
    assert percentile_bound(range(1, 101), 0.5) == 61


def test_p99_needs_368_samples():
    assert 1 - 0.99**P99_MIN_N >= 0.975 > 1 - 0.99 ** (P99_MIN_N - 1)
    assert run_of([1.0] * (P99_MIN_N - 1)).p99_ms is None
    assert run_of([1.0] * P99_MIN_N).p99_ms == 1.0


def test_p90_needs_36_samples():
    assert run_of([1.0] * 35).p90_ms is None
    assert run_of([1.0] * 36).p90_ms == 1.0


def test_overhead_is_the_median_over_pairs():
    run = LatencyRun((11.0, 12.0, 90.0), (10.0, 10.0, 10.0), 1.0, 20, True)
    assert run.overhead == pytest.approx(0.2)


def test_ratio_of_identical_runs_holds_1():
    run = run_of(np.random.default_rng(0).normal(10, 1, 100))
    ratio = median_ratio(run, run)
    assert (ratio.ratio, ratio.low, ratio.high) == (1, 1, 1)
    assert not ratio.differs


def test_ratio_of_two_draws_from_one_distribution_holds_1():
    draws = np.random.default_rng(1).normal(10, 1, (2, 400))
    ratio = median_ratio(run_of(draws[0]), run_of(draws[1]))
    assert ratio.low < 1 < ratio.high


def test_ratio_of_a_run_that_takes_twice_as_long_each_time_is_exactly_2():
    times = np.random.default_rng(2).normal(10, 1, 50)
    ratio = median_ratio(run_of(2 * times), run_of(times))
    assert (ratio.ratio, ratio.low, ratio.high) == (2, 2, 2)
    assert ratio.differs


def test_disturbance_that_meets_both_runs_cancels():
    quiet, disturbed = [10.0] * 50, [30.0] * 50
    ratio = median_ratio(run_of([2 * t for t in quiet + disturbed]), run_of(quiet + disturbed))
    assert (ratio.low, ratio.high) == (2, 2)


def test_one_round_has_no_interval_and_shows_no_difference():
    ratio = median_ratio(run_of([1.0]), run_of([9.0]))
    assert math.isnan(ratio.low)
    assert not ratio.differs


def test_runs_of_different_length_are_not_compared():
    with pytest.raises(ValueError, match="3 rounds against 2"):
        median_ratio(run_of([1.0] * 3), run_of([1.0] * 2))


def test_slower_engine_is_found_slower():
    sessions = {"slow": session(sleep_ms=4.0), "fast": session(sleep_ms=0.2)}
    runs = measure_interleaved(sessions, FRAMES, rounds=20)
    assert median_ratio(runs["slow"], runs["fast"]).low > 1
    assert all(time_ms >= 4.0 for time_ms in runs["slow"].engine_ms)


def timed_rounds(rounds):
    """Measure three sessions and return the log of each round, warm-up left out."""
    log = []
    sessions = {name: session(name=name, log=log) for name in "abc"}
    runs = measure_interleaved(sessions, FRAMES, rounds=rounds)
    assert all(len(run.e2e_ms) == len(run.engine_ms) == rounds for run in runs.values())
    calls = log[sum(run.warmup_calls for run in runs.values()) :]
    return [calls[9 * turn : 9 * turn + 9] for turn in range(rounds)]


def test_every_session_gets_the_frame_of_a_round_untimed_then_twice_timed():
    for calls in timed_rounds(6):
        names = [name for name, _, _ in calls]
        assert names[0::3] == names[1::3] == names[2::3]
        assert sorted(names[0::3]) == ["a", "b", "c"]
        assert len({value for _, value, _ in calls}) == 1


def test_rounds_go_through_the_frames_in_turn():
    values = [calls[0][1] for calls in timed_rounds(6)]
    assert all(one != other for one, other in pairwise(values))
    assert len(set(values)) == len(FRAMES)


def test_order_of_sessions_changes_between_rounds_and_repeats_between_runs():
    def orders():
        return ["".join(name for name, _, _ in calls[0::3]) for calls in timed_rounds(12)]

    first = orders()
    assert len(set(first)) > 1
    assert first == orders()


def test_threads_of_the_session_before_get_time_to_rest(monkeypatch):
    pauses = []
    monkeypatch.setattr(latency, "SETTLE_S", 0.25)
    monkeypatch.setattr(latency.time, "sleep", pauses.append)
    measure_interleaved({"a": session(), "b": session()}, FRAMES, rounds=3)
    assert pauses.count(0.25) == 3 * 2


def test_garbage_collection_is_off_while_measuring_and_on_again_after():
    log = []
    measure_interleaved({"a": session(log=log)}, FRAMES, rounds=2)
    assert not any(enabled for _, _, enabled in log)
    assert gc.isenabled()


def test_warm_up_takes_two_windows_when_they_agree(monkeypatch):
    monkeypatch.setattr(latency, "_time_ms", lambda call, argument: 7.0)
    run = measure_interleaved({"a": session()}, FRAMES, rounds=1)["a"]
    assert (run.first_ms, run.warmup_calls, run.steady) == (7.0, 20, True)


def test_drifting_times_are_not_called_steady(monkeypatch):
    drift = iter(range(1, 10**6))
    monkeypatch.setattr(latency, "WARMUP_CAP_S", 0.0)
    monkeypatch.setattr(latency, "_time_ms", lambda call, argument: float(next(drift)))
    run = measure_interleaved({"a": session()}, FRAMES, rounds=1)["a"]
    assert (run.warmup_calls, run.steady) == (10, False)


def test_throughput_counts_frames_over_the_time_they_took():
    fps = measure_throughput(session(sleep_ms=5.0), FRAMES, seconds=0.1)
    assert 1 < fps <= 200
