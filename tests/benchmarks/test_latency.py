from __future__ import annotations

import gc
import math
import time
from dataclasses import replace

import numpy as np
import pytest

from edgeseg.benchmarks.measure import latency
from edgeseg.benchmarks.measure.latency import (
    P99_MIN_N,
    LatencyRun,
    measure_interleaved,
    median_ratio,
    percentile,
    percentile_bounds,
)
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.session import Session

FRAMES = [np.full((16, 16), value, np.uint8) for value in (10, 200)]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(latency, "SETTLE_S", 0.0)
    monkeypatch.setattr(latency, "WARMUP_CAP_S", 0.0)


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


def run_of(times_ms, blocks=None):
    e2e_ms = tuple(times_ms)
    return LatencyRun(
        e2e_ms=e2e_ms,
        pre_ms=tuple(0.25 * t for t in e2e_ms),
        engine_ms=tuple(0.5 * t for t in e2e_ms),
        post_ms=tuple(0.25 * t for t in e2e_ms),
        first_ms=1.0,
        warmup_calls=100,
        steady=True,
        block_calls=blocks or latency.block_lengths(len(e2e_ms)),
    )


def test_percentile_is_the_measured_value_of_that_rank():
    samples = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(samples, q) for q in (0.01, 0.5, 0.8, 0.81, 1.0)] == [1, 3, 4, 5, 5]


def test_p90_of_ten_is_the_ninth():
    assert percentile(range(1, 11), 0.9) == 9


def test_bounds_of_the_median_of_six_are_the_smallest_and_the_largest():
    # P(Binomial(6, 1/2) <= 5) = 1 - 1/64 = 0.984; for five samples 1 - 1/32 = 0.969 is too little
    assert percentile_bounds([3, 1, 2, 6, 5, 4], 0.5) == (1, 6)
    assert percentile_bounds([1, 2, 3, 4, 5], 0.5) == (None, None)


def test_bounds_of_the_median_of_a_hundred_are_the_40th_and_the_61st():
    # P(Binomial(100, 1/2) <= 59) = 0.972 < 0.975 <= P(... <= 60) = 0.982, so k - 1 = 60;
    # P(... <= 39) = 0.018 <= 0.025 < P(... <= 40) = 0.028, so j - 1 = 39
    assert percentile_bounds(range(1, 101), 0.5) == (40, 61)


def test_high_percentile_can_have_a_lower_bound_alone():
    # P(Binomial(10, 0.9) <= 6) = 0.013 <= 0.025 < P(... <= 7) = 0.070; 1 - 0.9**10 = 0.65
    assert percentile_bounds(range(1, 11), 0.9) == (7, None)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_bounds_hold_the_true_percentile_in_95_percent_of_samples(q):
    draws = np.random.default_rng(4).random((400, 400))  # the true percentile is q itself
    bounds = [percentile_bounds(draw.tolist(), q) for draw in draws]
    assert np.mean([low <= q <= high for low, high in bounds]) > 0.93


def test_p99_needs_368_samples():
    assert 1 - 0.99**P99_MIN_N >= 0.975 > 1 - 0.99 ** (P99_MIN_N - 1)
    assert run_of([1.0] * (P99_MIN_N - 1)).p99_ms is None
    assert run_of([1.0] * P99_MIN_N).p99_ms == 1.0


def test_p90_needs_36_samples():
    assert run_of([1.0] * 35).p90_ms is None
    assert run_of([1.0] * 36).p90_ms == 1.0


def test_overhead_is_the_median_over_calls():
    run = replace(run_of((11.0, 12.0, 90.0)), engine_ms=(10.0, 10.0, 10.0))
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


@pytest.mark.parametrize("rounds", [1, 2, 15])
def test_few_rounds_have_no_interval_and_show_no_difference(rounds):
    ratio = median_ratio(run_of([1.0] * rounds), run_of([2.0] * rounds))
    assert ratio.ratio == 0.5
    assert math.isnan(ratio.low)
    assert not ratio.differs


def test_eight_pairs_are_the_fewest_whose_extremes_hold_the_median_99_times_in_100():
    assert 1 - 2 * 0.5**latency.MIN_PAIRS >= latency.RATIO_CONFIDENCE
    assert 1 - 2 * 0.5 ** (latency.MIN_PAIRS - 1) < latency.RATIO_CONFIDENCE
    assert median_ratio(run_of([1.0] * 16), run_of([2.0] * 16)).differs


def test_runs_of_different_length_are_not_compared():
    with pytest.raises(ValueError, match="blocks of"):
        median_ratio(run_of([1.0] * 3), run_of([1.0] * 2))


def test_ratio_is_that_of_the_middle_pair():
    a = run_of([2, 2, 9, 9, 6, 6], blocks=(1,) * 6)  # over b: 2, 3 and 6
    b = run_of([1, 1, 3, 3, 1, 1], blocks=(1,) * 6)
    assert median_ratio(a, b).ratio == 3


def test_pairs_of_calls_that_swing_together_count_as_pairs_not_as_calls():
    """Four hundred calls in twenty pairs, each pair off by its own factor: calls alone feign."""
    rng = np.random.default_rng(3)
    found = 0
    for _ in range(200):
        a, b = (np.repeat(10 * np.exp(rng.normal(0, 0.1, 20)), 20) for _ in range(2))
        blocks = (10,) * 40
        found += median_ratio(run_of(a, blocks), run_of(b, blocks)).differs
    assert found <= 10


def test_ten_percent_are_found_though_every_pair_swings_by_more():
    rng = np.random.default_rng(5)
    swing = np.repeat(np.exp(rng.normal(0, 0.5, 40)), 10)
    a, b = (10 * swing * np.exp(rng.normal(0, 0.1, 400)) for _ in range(2))
    ratio = median_ratio(run_of(1.1 * a), run_of(b))
    assert 1 < ratio.low < 1.1 < ratio.high


def test_slower_engine_is_found_slower():
    sessions = {"slow": session(sleep_ms=4.0), "fast": session(sleep_ms=0.2)}
    runs = measure_interleaved(sessions, FRAMES, rounds=20)
    assert median_ratio(runs["slow"], runs["fast"]).low > 1
    assert all(time_ms >= 4.0 for time_ms in runs["slow"].engine_ms)


def test_steps_of_a_call_add_up_to_it():
    run = measure_interleaved({"a": session(sleep_ms=2.0)}, FRAMES, rounds=8)["a"]
    steps = zip(run.pre_ms, run.engine_ms, run.post_ms, strict=True)
    assert [sum(each) for each in steps] == pytest.approx(run.e2e_ms)
    assert all(each > 0 for each in run.pre_ms + run.post_ms)


def test_masks_of_timed_calls_are_those_of_predict():
    one = session()
    image = one.prepare(FRAMES[0])
    assert image.shape == (1, 1, 16, 16)
    assert (one.read_out(one.infer(image), FRAMES[0].shape) == one.predict(FRAMES[0])).all()


def test_slowness_of_a_step_is_found_in_that_step(monkeypatch):
    def slow(self, frame):
        time.sleep(0.004)
        return prepare(self, frame)

    prepare = Session.prepare
    monkeypatch.setattr(Session, "prepare", slow)
    run = measure_interleaved({"a": session()}, FRAMES, rounds=20)["a"]
    assert min(run.pre_ms) >= 4
    assert min(run.engine_ms) < 4  # the largest is the machine's
    assert min(run.post_ms) < 4


@pytest.mark.parametrize("rounds", [1, 2, 3, 39, 40, 60, 200, 400, 1000])
def test_rounds_are_split_into_pairs_of_nearly_equal_blocks(rounds):
    blocks = latency.block_lengths(rounds)
    assert sum(blocks) == rounds
    assert max(blocks) - min(blocks) <= 1
    assert len(blocks) == 1 if rounds == 1 else len(blocks) % 2 == 0
    assert len(blocks) >= min(2 * latency.BLOCK_PAIRS, rounds - 1)


def timed_blocks(names, rounds):
    """Return the log of each block of each session as (name, frame values), warm-up left out."""
    log = []
    sessions = {name: session(name=name, log=log) for name in names}
    runs = measure_interleaved(sessions, FRAMES, rounds=rounds)
    assert all(len(run.e2e_ms) == rounds for run in runs.values())
    calls = iter(log[sum(run.warmup_calls for run in runs.values()) :])
    blocks = []
    for length in runs[names[0]].block_calls:
        for _ in names:
            block = [next(calls) for _ in range(1 + length)]
            assert len({name for name, _, _ in block}) == 1
            blocks.append((block[0][0], [value for _, value, _ in block]))
    assert next(calls, None) is None
    return blocks


@pytest.mark.parametrize("names", ["ab", "abcd"])
def test_blocks_of_a_pair_run_forwards_and_backwards(names):
    turns = [name for name, _ in timed_blocks(names, 80)]
    size = 2 * len(names)
    pairs = ["".join(turns[i : i + size]) for i in range(0, len(turns), size)]
    assert all(pair == pair[::-1] and set(pair) == set(names) for pair in pairs)
    assert len(pairs) >= latency.BLOCK_PAIRS
    assert len(set(pairs)) > 1
    assert turns == [name for name, _ in timed_blocks(names, 80)]  # in the next run as well


def test_every_session_gets_the_same_frames_in_turn():
    values = {name: [] for name in "abc"}
    for name, block in timed_blocks("abc", 90):
        assert block[0] == block[1]  # the call that is not timed
        values[name] += block[1:]
    assert values["a"] == values["b"] == values["c"]
    assert values["a"][:4] == 2 * values["a"][:2]
    assert len(set(values["a"])) == len(FRAMES)


def test_threads_of_the_session_before_get_time_to_rest(monkeypatch):
    pauses = []
    monkeypatch.setattr(latency, "SETTLE_S", 0.25)
    monkeypatch.setattr(latency.time, "sleep", pauses.append)
    measure_interleaved({"a": session(), "b": session()}, FRAMES, rounds=3)
    assert pauses.count(0.25) == 2 * 2


def test_garbage_collection_is_off_while_measuring_and_on_again_after():
    log = []
    measure_interleaved({"a": session(log=log)}, FRAMES, rounds=2)
    assert not any(enabled for _, _, enabled in log)
    assert gc.isenabled()


def call_of(e2e_ms):
    return latency._Call(e2e_ms=e2e_ms, pre_ms=1.0, engine_ms=1.0, post_ms=1.0)


def test_warm_up_takes_two_windows_when_they_agree(monkeypatch):
    monkeypatch.setattr(latency, "WARMUP_CAP_S", 60.0)
    monkeypatch.setattr(latency, "_time_call", lambda session, frame: call_of(7.0))
    run = measure_interleaved({"a": session()}, FRAMES, rounds=1)["a"]
    assert (run.first_ms, run.warmup_calls, run.steady) == (7.0, 100, True)


def test_drifting_times_are_not_called_steady(monkeypatch):
    drift = iter(range(1, 10**6))
    monkeypatch.setattr(latency, "_time_call", lambda session, frame: call_of(float(next(drift))))
    run = measure_interleaved({"a": session()}, FRAMES, rounds=1)["a"]
    assert (run.warmup_calls, run.steady) == (50, False)


def test_windows_that_differ_by_two_percent_do_not_agree():
    assert latency._is_steady([100.0] * 50 + [100.9] * 50)
    assert not latency._is_steady([100.0] * 50 + [102.0] * 50)


# --- copies to and from a device -----------------------------------------------------------------


class CopyingEngine(FakeEngine):
    """Tells copies of 1, 2, 3, ... ms."""

    @property
    def transfer_ms(self):
        return float(len(self.log))


def test_copies_are_told_of_each_timed_call_and_only_where_the_engine_tells_them():
    copying = Session.over(CopyingEngine(), InputContract(height=16, width=16))
    runs = measure_interleaved({"a": copying, "b": session()}, FRAMES, rounds=3)
    told = runs["a"].transfer_ms
    assert len(told) == 3
    assert list(told) == sorted(told)
    assert told[0] > runs["a"].warmup_calls  # those of the warm-up are not among them
    assert runs["b"].transfer_ms == runs["b"].compute_ms == ()


def test_compute_is_what_of_the_engine_is_no_copy():
    run = replace(run_of([8.0, 16.0]), transfer_ms=(1.0, 3.0))
    assert run.compute_ms == (3.0, 5.0)
