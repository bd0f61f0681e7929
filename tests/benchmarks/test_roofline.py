"""The roofline on layers that fit in the head, and the peaks of this machine, measured small."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from edgeseg.benchmarks.measure import roofline
from edgeseg.benchmarks.measure.complexity import count_complexity, layer_costs
from edgeseg.benchmarks.measure.profile import Kernel, LayerProfile, noise
from edgeseg.benchmarks.measure.roofline import (
    Peaks,
    attained,
    compute_graph,
    files_for,
    measure_bandwidth,
    measure_peaks,
)
from edgeseg.runtime.engines import open_engine
from edgeseg.runtime.errors import InputError

pytestmark = pytest.mark.numbers

PEAKS = Peaks(
    engine="onnxruntime",
    version="1.0",
    threads=2,
    fp32_gflops=100.0,
    int8_gops=200.0,
    executed={"fp32": "float 2", "int8": "uint8 2"},
    bandwidth_gb_s=10.0,
    steady=True,
)
(LAYER,) = layer_costs(compute_graph("fp32", channels=4, side=8, depth=1))
COMPUTE = replace(LAYER, name="compute", macs=100_000_000, read_bytes=0)  # 2 ms at the FP32 peak
MEMORY = replace(LAYER, name="memory", macs=0, read_bytes=10_000_000)  # 1 ms


def share_of(layers, peaks=PEAKS, *, whole_ms=10.0, layer_ms=None):
    return attained(layers, peaks, whole_ms=whole_ms, layer_ms=layer_ms or {})


def test_least_time_is_the_longer_of_operations_and_bytes():
    compute, memory = share_of([COMPUTE, MEMORY]).layers
    assert (compute.bound, memory.bound) == ("compute", "memory")
    assert compute.min_ms == pytest.approx(2.0)
    assert memory.min_ms == pytest.approx(1.0, rel=1e-3)


def test_share_is_least_over_measured_time():
    found = share_of([COMPUTE, MEMORY], whole_ms=6.0, layer_ms={"compute": 4.0})
    assert found.layers[0].share == pytest.approx(0.5)
    assert found.min_ms == pytest.approx(3.0, rel=1e-3)
    assert found.share == pytest.approx(0.5, rel=1e-3)
    assert found.compute_share == pytest.approx(2 / 6)


def test_layer_without_a_time_of_its_own_has_no_share():
    layer = share_of([MEMORY], layer_ms={}).layers[0]
    assert (layer.measured_ms, layer.share) == (None, None)


def test_share_does_not_depend_on_the_order_of_layers():
    one, other = share_of([COMPUTE, MEMORY]), share_of([MEMORY, COMPUTE])
    assert one.share == pytest.approx(other.share)


@pytest.mark.parametrize("peak", ["fp32_gflops", "bandwidth_gb_s"])
def test_higher_peak_never_raises_the_share(peak):
    higher = replace(PEAKS, **{peak: 2 * getattr(PEAKS, peak)})
    for layers in ([COMPUTE], [MEMORY], [COMPUTE, MEMORY]):
        assert share_of(layers, higher).share <= share_of(layers).share


def test_layers_in_int8_are_held_against_the_peak_of_int8():
    int8 = replace(COMPUTE, precision="int8")
    assert share_of([int8]).min_ms == pytest.approx(1.0)
    assert share_of([int8, COMPUTE]).compute_ms == pytest.approx(3.0)
    assert share_of([int8], replace(PEAKS, int8_gops=None)).min_ms == pytest.approx(2.0)


def test_fp16_is_held_against_the_peak_of_fp32_in_which_a_cpu_computes_it():
    assert share_of([replace(COMPUTE, precision="fp16")]).min_ms == pytest.approx(2.0)


# --- the graphs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_compute_graph_has_the_products_it_names(precision):
    model = compute_graph(precision, channels=4, side=8, depth=3)
    onnx.checker.check_model(onnx.load_model_from_string(model), full_check=True)
    assert count_complexity(model).macs == 3 * 4 * 4 * 9 * 8 * 8
    assert {layer.precision for layer in layer_costs(model)} == {precision}


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_compute_graphs_keep_values_alive_and_agree(engine):
    outputs = []
    for precision in ("fp32", "int8"):
        model = compute_graph(precision, channels=16, side=8, depth=2)
        opened = open_engine(engine, files_for(engine, model), 1)
        outputs.append(opened.run(np.abs(noise((1, 16, 8, 8)))).copy())
    exact, rounded = outputs
    assert exact.max() > 0.05
    assert np.isfinite(exact).all()
    assert np.abs(exact - rounded).max() < 0.3 * exact.max()


# --- measuring, small ----------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    values = {"CHANNELS": 32, "SIDE": 8, "ROUNDS": 1, "RUNS": 3}
    values |= {"TRIAD_BYTES": 1 << 20, "TRIAD_RUNS": 2}
    for name, value in values.items():
        monkeypatch.setattr(roofline, name, value)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_peaks_say_what_was_measured_and_in_which_type_it_ran(engine, small):
    peaks = measure_peaks(engine, 1)
    assert peaks.fp32_gflops > 0
    assert peaks.int8_gops > 0
    assert peaks.bandwidth_gb_s > 0
    assert peaks.executed["fp32"] in ("float 2", "f32 2")
    assert peaks.executed["int8"] in ("uint8 2", "i8 2", "u8 2")
    assert engine in peaks.how
    assert peaks.version in peaks.how
    assert "best of 3; STREAM triad over 3 arrays of 1 MiB, best of 2" in peaks.how


def test_int8_that_runs_in_float_gives_no_peak(small, monkeypatch):
    kernels = ((Kernel(("conv0",), "Conv", "float", 1.0), Kernel((), "Relu", "float", 1.0)),)
    monkeypatch.setattr(
        roofline, "run_profiled", lambda *args, **options: LayerProfile(1, (1.0,), kernels)
    )
    peaks = measure_peaks("onnxruntime", 1)
    assert peaks.int8_gops is None
    assert peaks.executed["int8"] == "float 1"


def test_engine_that_runs_no_convolution_gives_no_peak(small, monkeypatch):
    monkeypatch.setattr(
        roofline, "run_profiled", lambda *args, **options: LayerProfile(1, (1.0,), ((),))
    )
    assert measure_peaks("onnxruntime", 1).int8_gops is None


@pytest.mark.parametrize(
    ("times_ms", "steady"), [([1.0] * 3 + [1.04] * 7, True), ([1.0] + [1.5] * 19, False)]
)
def test_peak_that_hardly_any_call_reached_is_not_steady(times_ms, steady, small, monkeypatch):
    monkeypatch.setattr(roofline, "time_calls", lambda *args: times_ms)
    assert measure_peaks("onnxruntime", 1).steady is steady


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_triad_writes_every_value_whatever_the_threads(threads):
    a, b, c = np.zeros(100_001), np.full(100_001, 1.0), np.full(100_001, 2.0)
    parts = list(zip(*(np.array_split(each, threads) for each in (a, b, c)), strict=True))
    assert roofline._seconds_of_triad(parts) > 0
    assert (a == 7.0).all()


def test_bandwidth_is_of_this_planet(small):
    assert 0.01 < measure_bandwidth(2) < 10_000


def test_engine_without_a_known_profiler_is_refused(monkeypatch):
    monkeypatch.setattr("edgeseg.benchmarks.measure.profile.PROFILERS", {})
    with pytest.raises(InputError) as caught:
        measure_peaks("onnxruntime", 1)
    assert caught.value.code == "E-PROFILE-ENGINE"
