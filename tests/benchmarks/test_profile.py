"""Times by layer, in both engines, of a network with two convolutions."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeseg.benchmarks.measure import profile
from edgeseg.benchmarks.measure.complexity import input_shape, layers_by_name
from edgeseg.benchmarks.measure.profile import (
    INT8_TYPES,
    MIN_RUNS,
    PROFILERS,
    Kernel,
    LayerProfile,
    LayerTimes,
    profile_layers,
)
from edgeseg.benchmarks.measure.roofline import compute_graph, files_for
from edgeseg.runtime.engines import ENGINES
from edgeseg.runtime.errors import EngineError, InputError


def network():
    """Conv and ReLU, pool, conv: channels 8, of 32×32 px."""
    weight = np.random.default_rng(0).normal(size=(8, 8, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MaxPool", ["b"], ["c"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["c", "w"], ["logits"], name="second", pads=[1] * 4),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 8, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 8, 16, 16])],
        [numpy_helper.from_array(weight, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def profiled(engine, model, runs=MIN_RUNS):
    return profile_layers(engine, files_for(engine, model), model, threads=1, runs=runs)


IN_FLOAT = sorted(set(PROFILERS) - {"openvino-bf16"})  # which computes in no other type


@pytest.fixture(scope="module", params=IN_FLOAT)
def times(request):
    return profiled(request.param, network())


def test_every_layer_has_its_time(times):
    assert [layer.name for layer in times.layers] == ["first", "pool", "second"]
    assert all(layer.median_ms >= layer.best_ms >= 0 for layer in times.layers)
    assert times.layers[0].median_ms > 0
    assert times.layers[0].type in ("f32", "float")


def test_every_call_is_a_sample_or_a_part_of_one(times):
    count = len(times.profiled_ms)
    assert count * times.calls_a_sample == MIN_RUNS
    assert len(times.plain_ms) == MIN_RUNS
    assert {len(layer.samples_ms) for layer in times.layers} == {count}
    assert len(times.other_ms) == count


def test_kernels_take_less_than_the_call_they_are_in(times):
    for kernels, whole in zip(times.kernels_ms, times.profiled_ms, strict=True):
        assert 0 < kernels < whole


@pytest.mark.parametrize("engine", IN_FLOAT)
def test_quantised_convolutions_are_seen_to_run_in_int8_under_their_names(engine):
    times = profiled(engine, compute_graph("int8", channels=16, side=16, depth=2))
    found = {layer.name: layer.type for layer in times.layers}
    assert set(found) == {"conv0.node", "conv1.node"}
    assert set(found.values()) <= INT8_TYPES


def test_what_carries_no_layers_name_is_summed_apart(monkeypatch):
    kernels = (
        Kernel(("relu",), "Conv", "float", 2.0),
        Kernel(("c", "second"), "Pooling", "float", 3.0),  # the layer with products has it
        Kernel(("c",), "Cast", "float", 4.0),
        Kernel(("Reorder7",), "Reorder", "float", 5.0),
        Kernel(("pool",), "MaxPool", "float", 1.0),
    )

    def fake(files, image, threads, runs):
        return LayerProfile(1, (20.0,) * runs, (kernels,) * runs)

    monkeypatch.setattr(profile, "PROFILERS", {"onnxruntime": fake})
    times = profiled("onnxruntime", network())
    assert [(layer.name, layer.median_ms) for layer in times.layers] == [
        ("first", 2.0),
        ("pool", 1.0),
        ("second", 3.0),
    ]
    assert times.other_ms == (9.0,) * MIN_RUNS
    assert times.other_operators == ("Reorder", "Cast")
    assert times.kernels_ms == (15.0,) * MIN_RUNS


def test_overhead_is_what_the_profiler_adds_to_the_median():
    times = LayerTimes("e", 1, 1, (), (0.0,) * 3, (), (3.0, 1.5, 9.0), (2.0, 2.0, 9.0))
    assert times.overhead == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("/a/Conv_token_29", "/a/Conv"),
        ("/a/Relu_output_0_nchwc", "/a/Relu_output_0"),
        ("/a/Relu_output_0.dequantise/duplicated_token_5", "/a/Relu_output_0.dequantise"),
        ("/a/Conv", "/a/Conv"),
    ],
)
def test_what_onnx_runtime_appends_to_names_is_taken_off(name, wanted):
    event = {"name": f"{name}_kernel_time", "dur": 1500}
    event["args"] = {"op_name": "Conv", "input_type_shape": [{"float": [1]}, {"int8": []}]}
    kernel = profile._onnxruntime_kernel(event)
    assert kernel == Kernel((name, wanted), "Conv", "float", 1.5)


def test_names_of_a_layer_are_those_of_its_nodes_outputs_and_storage():
    owners = layers_by_name(compute_graph("int8", channels=4, side=8, depth=1))
    names = ("conv0.node", "conv0", "relu0.node", "relu0", "relu0.quantised", "relu0.dequantised")
    assert {owners[name] for name in names} == {"conv0.node"}
    assert "image.quantised" not in owners  # it stores the graph's input


def test_input_shape_is_that_of_the_graph():
    assert input_shape(network()) == (1, 8, 32, 32)


def test_engine_without_a_known_profiler_is_refused(monkeypatch):
    monkeypatch.setattr(profile, "PROFILERS", {})
    with pytest.raises(InputError) as caught:
        profiled("onnxruntime", network())
    assert caught.value.code == "E-PROFILE-ENGINE"


def test_engine_that_is_not_installed_is_named(monkeypatch):
    entry = ENGINES["onnxruntime"]._replace(package="not_there")
    monkeypatch.setitem(ENGINES, "onnxruntime", entry)
    with pytest.raises(EngineError) as caught:
        profiled("onnxruntime", network())
    assert caught.value.code == "E-EXTRA-MISSING"


def test_too_few_calls_are_our_mistake():
    with pytest.raises(ValueError, match="19 runs"):
        profiled("onnxruntime", network(), runs=19)


def test_every_engine_of_the_cpu_has_a_profiler():
    on_the_cpu = {name for name, entry in ENGINES.items() if entry.on_cpu}
    assert set(PROFILERS) == on_the_cpu
