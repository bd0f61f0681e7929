from __future__ import annotations

import math
import os
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeseg.benchmarks.measure import yardstick
from edgeseg.benchmarks.measure.complexity import count_complexity
from edgeseg.benchmarks.measure.yardstick import (
    Block,
    Pass,
    log_ratio,
    open_yardstick,
    time_pass,
    waits_are_told,
    yardstick_engine,
    yardstick_graph,
    yardstick_log_ms,
)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(yardstick, "REST_S", 0.0)
    monkeypatch.setattr(yardstick, "PAIRS", 3)
    monkeypatch.setattr(yardstick, "PASS_CAP_S", 1.0)


def blocks(*times_ms, waited_ms=0.0):
    """Blocks of two calls each."""
    return tuple(Block((each,) * 2, (waited_ms,) * 2) for each in times_ms)


# --- the network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_network_is_valid_always_the_same_and_of_a_students_size(precision):
    content = yardstick_graph(precision)
    onnx.checker.check_model(onnx.load_from_string(content))
    assert content == yardstick_graph(precision)
    assert 50e6 < count_complexity(content).macs < 500e6


def test_network_in_int8_answers_what_it_does_in_float():
    answers = [open_yardstick("onnxruntime", precision, 1)[1]() for precision in ("fp32", "int8")]
    assert answers[0].shape == (1, 1, yardstick.SIDE, yardstick.SIDE)
    assert np.std(answers[0]) > 0.01  # it is not constant, so nothing was folded away
    assert np.corrcoef(answers[0].ravel(), answers[1].ravel())[0, 1] > 0.95


def test_yardstick_is_named_with_what_it_depends_on():
    about = open_yardstick("onnxruntime", "int8", 1)[0]
    assert (about.engine, about.precision, about.threads) == ("onnxruntime", "int8", "1")
    assert len(about.graph_sha256) == 64


@pytest.mark.parametrize(
    ("kind", "precision", "found"),
    [
        ("openvino", "int8", ("openvino", "int8")),
        ("openvino-default", "fp32", ("openvino", "fp32")),
        ("openvino-gpu", "fp16", ("openvino-gpu", "fp32")),
        ("onnxruntime-cuda", "fp32", ("onnxruntime-cuda", "fp32")),
        ("onnxruntime-default", "int8", ("onnxruntime", "int8")),
        ("torch", "fp32", ("onnxruntime", "fp32")),
        ("torch-compile", "fp32", ("onnxruntime", "fp32")),
        ("torch-cuda", "fp32", None),
        ("tensorrt", "int8", None),
    ],
)
def test_row_is_measured_against_its_own_engine_where_it_can_be(kind, precision, found):
    assert yardstick_engine(kind, precision) == found


def test_without_onnx_there_is_no_yardstick(monkeypatch):
    monkeypatch.setattr(yardstick.importlib.util, "find_spec", lambda name: None)
    assert yardstick_engine("onnxruntime", "fp32") is None


# --- timing --------------------------------------------------------------------------------------


def test_row_and_yardstick_take_turns_forwards_and_backwards(short):
    log = []
    found = time_pass(lambda: log.append("r"), lambda: log.append("y"))
    turns = "".join(log[2 * yardstick.UNTIMED_CALLS :])
    # Each block has one call that is not timed before those that are.
    orders = ["ry" if index % 2 == 0 else "yr" for index in range(len(found.row))]
    expected, blocks = "", {"r": iter(found.row), "y": iter(found.yardstick)}
    for letter in "".join(orders):
        expected += letter * (1 + len(next(blocks[letter]).ms))
    assert len(found.row) == len(found.yardstick) >= 3
    assert turns == expected


def test_block_ends_with_so_many_undisturbed_calls(short):
    found = time_pass(lambda: time.sleep(0.001), lambda: time.sleep(0.001))
    for block in found.row + found.yardstick:
        undisturbed = len(block.undisturbed_ms())
        assert undisturbed == yardstick.CALLS or len(block.ms) == yardstick.MAX_CALLS
        if undisturbed == yardstick.CALLS:  # and the last call is the one that made it so many
            assert block.waited_ms[-1] <= yardstick.MAX_WAIT * block.ms[-1]
    assert all(len(block.ms) <= yardstick.MAX_CALLS for block in found.row + found.yardstick)
    assert all(time_ms >= 1 for block in found.row for time_ms in block.ms)


def test_calls_that_waited_for_a_core_are_set_aside():
    block = Block((1.0, 1.0, 5.0, 2.0), (0.0, 0.021, 4.0, 0.04))
    assert block.undisturbed_ms() == (1.0, 2.0)


@pytest.mark.skipif(
    not waits_are_told(),
    reason="no /proc/self/schedstat; a Linux with CONFIG_SCHED_INFO tells waits",
)
def test_wait_of_a_thread_that_others_keep_from_its_core_is_told():
    core = min(os.sched_getaffinity(0))
    allowed = os.sched_getaffinity(0)
    stop = threading.Event()

    def compute():
        os.sched_setaffinity(0, {core})  # of this thread alone
        while not stop.is_set():
            sum(range(1000))

    others = [threading.Thread(target=compute) for _ in range(2)]
    try:
        os.sched_setaffinity(0, {core})
        for other in others:
            other.start()
        with yardstick._Queue() as queue:
            before = queue.waited_ns()
            time.sleep(0.2)
            assert queue.waited_ns() > before
    finally:
        stop.set()
        os.sched_setaffinity(0, allowed)
        for other in others:
            other.join()


def test_system_that_tells_no_waits_takes_every_call(monkeypatch, short):
    monkeypatch.setattr(yardstick.os, "open", lambda *_: (_ for _ in ()).throw(OSError()))
    found = time_pass(lambda: None, lambda: None)
    assert all(block.waited_ms == (0.0,) * len(block.ms) for block in found.row)
    assert len(found.row) == 3


@pytest.mark.skipif(
    not waits_are_told(),
    reason="no /proc/self/schedstat; a Linux with CONFIG_SCHED_INFO tells waits",
)
def test_thread_that_ends_meanwhile_does_not_hide_the_others(monkeypatch):
    real, opened = os.open, []

    def open_but_the_first(path, flags):
        opened.append(path)
        if len(opened) == 1:
            raise FileNotFoundError(path)
        return real(path, flags)

    monkeypatch.setattr(yardstick.os, "open", open_but_the_first)
    monkeypatch.setattr(yardstick.Path, "iterdir", lambda self: [Path("/proc/self")] * 2)
    with yardstick._Queue() as queue:
        assert len(queue._files) == 1


# --- ratios --------------------------------------------------------------------------------------


def test_ratio_is_that_of_neighbours_so_that_what_meets_both_cancels():
    found = Pass(blocks(3, 6, 30, 3, 3), blocks(1, 2, 10, 1, 1))
    assert log_ratio(found) == pytest.approx(math.log(3))


def test_pair_that_only_one_of_the_two_was_disturbed_in_does_not_move_the_ratio():
    assert log_ratio(Pass(blocks(3, 3, 9, 3, 3), blocks(1, 1, 1, 1, 1))) == pytest.approx(
        math.log(3)
    )


def test_pass_with_fewer_than_four_undisturbed_pairs_has_no_ratio():
    row = blocks(3, 3, 3) + blocks(3, 3, waited_ms=1.0)
    assert math.isnan(log_ratio(Pass(row, blocks(1, 1, 1, 1, 1))))
    assert not math.isnan(log_ratio(Pass(row + blocks(3), blocks(1, 1, 1, 1, 1, 1))))


def test_speed_of_the_machine_is_the_median_of_the_undisturbed_yardstick():
    found = Pass(blocks(3, 3), blocks(2) + blocks(50, waited_ms=40.0))
    assert yardstick_log_ms(found) == pytest.approx(math.log(2))
    nothing = Pass(blocks(3), blocks(2, waited_ms=1.0))
    assert math.isnan(yardstick_log_ms(nothing))
