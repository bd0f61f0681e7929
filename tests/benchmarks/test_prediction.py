"""Laws of the prediction, on layers whose times fit in the head."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgeseg.benchmarks.measure.complexity import LayerCost
from edgeseg.benchmarks.measure.prediction import (
    COMPUTE_EFFICIENCY,
    LAUNCH_US,
    MEMORY_EFFICIENCY,
    DevicePeaks,
    predict_latency,
)


def layer(name="conv", *, macs=0, moved=0, precision="fp16"):
    return LayerCost(
        name=name,
        op="Conv" if macs else "Concat",
        nodes=(name,),
        inputs=(),
        outputs=(),
        kernel=(),
        precision=precision,
        macs=macs,
        parameters=0,
        weights_bytes=0,
        read_bytes=moved,
        written_bytes=0,
    )


DEVICE = DevicePeaks("board", bandwidth_gb_s=100.0, fp16_tflops=1.0, int8_tops=2.0)
COMPUTE = layer("compute", macs=500_000_000)  # 1 ms at the FP16 peak
MEMORY = layer("memory", moved=100_000_000)  # 1 ms at the full bandwidth
LAYERS = (COMPUTE, MEMORY, layer("small", macs=10, moved=10))


def test_layer_takes_the_longer_of_its_operations_and_its_bytes_and_a_launch():
    prediction = predict_latency([COMPUTE, MEMORY], DEVICE)
    launches_ms = [2 * each / 1e3 for each in LAUNCH_US]
    low = 1 / COMPUTE_EFFICIENCY[1] + 1 / MEMORY_EFFICIENCY[1] + launches_ms[0]
    high = 1 / COMPUTE_EFFICIENCY[0] + 1 / MEMORY_EFFICIENCY[0] + launches_ms[1]
    assert (prediction.low_ms, prediction.high_ms) == pytest.approx((low, high))
    both = replace(COMPUTE, read_bytes=MEMORY.read_bytes)
    alone = predict_latency([COMPUTE], DEVICE)
    assert predict_latency([both], DEVICE).high_ms == alone.high_ms  # the longer hides the other


@pytest.mark.parametrize("layers", [[COMPUTE], [MEMORY], LAYERS])
def test_low_is_below_high(layers):
    prediction = predict_latency(layers, DEVICE)
    assert 0 < prediction.low_ms < prediction.high_ms


@pytest.mark.parametrize("peak", ["bandwidth_gb_s", "fp16_tflops", "int8_tops"])
def test_doubling_a_peak_never_slows(peak):
    faster = replace(DEVICE, **{peak: 2 * getattr(DEVICE, peak)})
    for layers in (LAYERS, [replace(each, precision="int8") for each in LAYERS]):
        before, after = predict_latency(layers, DEVICE), predict_latency(layers, faster)
        assert after.low_ms <= before.low_ms
        assert after.high_ms <= before.high_ms


def test_int8_is_never_slower_than_fp16_at_the_same_bytes():
    int8 = predict_latency([replace(each, precision="int8") for each in LAYERS], DEVICE)
    fp16 = predict_latency(LAYERS, DEVICE)
    assert (int8.precision, fp16.precision) == ("int8", "fp16")
    assert int8.low_ms < fp16.low_ms
    assert int8.high_ms < fp16.high_ms


def test_every_layer_more_costs_a_launch_at_least():
    once, twice = (predict_latency([layer("small", moved=1)] * n, DEVICE) for n in (1, 2))
    assert twice.low_ms - once.low_ms == pytest.approx(LAUNCH_US[0] / 1e3, rel=1e-3)
    assert twice.high_ms - once.high_ms == pytest.approx(LAUNCH_US[1] / 1e3, rel=1e-3)


@pytest.mark.parametrize(
    ("layers", "bound"),
    [([COMPUTE], "compute"), ([MEMORY], "memory"), ([layer("small", moved=1)] * 9, "launch")],
)
def test_bound_is_what_takes_most(layers, bound):
    assert predict_latency(layers, DEVICE).bound == bound


@pytest.mark.parametrize("peak", ["bandwidth_gb_s", "fp16_tflops"])
def test_nothing_is_predicted_without_a_peak_that_is_needed(peak):
    assert predict_latency(LAYERS, replace(DEVICE, **{peak: None})) is None


def test_only_the_peaks_of_the_precisions_at_work_are_needed():
    without_int8 = replace(DEVICE, int8_tops=None)
    assert predict_latency(LAYERS, without_int8) == predict_latency(LAYERS, DEVICE)
    assert predict_latency([replace(COMPUTE, precision="int8")], without_int8) is None


def test_fp32_has_no_peak_in_the_table():
    assert predict_latency([replace(COMPUTE, precision="fp32")], DEVICE) is None
