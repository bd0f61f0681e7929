"""TensorRT-RTX plans of the shipped students, built without a GPU, and what the parser refuses."""

from __future__ import annotations

import functools
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeseg.export.audit import achieved_in_rtx, require_share
from edgeseg.export.pipeline import load_trained
from edgeseg.export.qdq import qdq_from_onnx
from edgeseg.export.ranges import measure_ranges
from edgeseg.export.to_half import half_from_onnx
from edgeseg.export.to_rtx import (
    COMPUTE_CAPABILITIES,
    _bytes_from_log,
    layers_from_log,
    plan_from_onnx,
)
from edgeseg.kd.zoo import available_names, find_weights
from edgeseg.runtime.errors import EngineError, InputError, Refused
from edgeseg.runtime.image import input_from_frame

STUDENTS = available_names()
# Form -> the type that its convolutions run in, and that of those with one output channel, which
# stay in float when a network is quantised.
TYPES = {
    "fp32": ("Float", "Float"),
    "fp16": ("Half", "Half"),
    "qdq": ("Int8", "Float"),
    "qdq-fp16": ("Int8", "Half"),  # what ships as int8
}
PRECISIONS = {"Float": "fp32", "Half": "fp16", "Int8": "int8"}
BITS = {"Float": 32, "Half": 16, "Int8": 8}


@functools.cache
def onnx_of(student, form):
    if form == "fp32":
        return load_trained(find_weights(student)).to_onnx()
    if form == "fp16":
        return half_from_onnx(onnx_of(student, "fp32"))
    base = onnx_of(student, "fp16" if form == "qdq-fp16" else "fp32")
    return qdq_from_onnx(base, amax_of(student))


@functools.cache
def amax_of(student):
    contract = load_trained(find_weights(student)).contract
    frames = np.random.default_rng(0).integers(0, 256, (4, 150, 170), dtype=np.uint8)
    images = [input_from_frame(frame, contract) for frame in frames]
    return measure_ranges(onnx_of(student, "fp32"), images).amax("entropy")


@pytest.fixture(scope="module")
def plan_of():
    """(student, form, compute capability) -> plan, each built once."""

    @functools.cache
    def plan(student, form, compute_capability):
        return plan_from_onnx(onnx_of(student, form), compute_capability)

    return plan


def convolutions_of(student):
    """Output channels of each convolution, by name."""
    graph = onnx.load_model_from_string(onnx_of(student, "fp32")).graph
    weights = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    return {node.name: weights[node.input[1]] for node in graph.node if node.op_type == "Conv"}


def tiny_onnx(*nodes, shape=(1, 4, 16, 16), outputs=(1, 8, 16, 16), **weights):
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, outputs)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def tiny_conv(name="body", **shapes):
    node = helper.make_node("Conv", ["x", "w"], ["y"], name=name)
    return tiny_onnx(node, w=np.ones((8, 4, 1, 1), np.float32), **shapes)


# --- the shipped students ------------------------------------------------------------------------

EVERY = pytest.mark.parametrize(
    ("student", "form", "compute_capability"),
    [(name, form, cc) for name in STUDENTS for form in TYPES for cc in COMPUTE_CAPABILITIES],
)


def test_both_students_are_built_for_three_gpu_generations():
    assert set(STUDENTS) == {"t2kd-attunet", "t2kd-edge"}
    assert tuple(COMPUTE_CAPABILITIES) == ("8.6", "8.9", "12.0")


@EVERY
def test_plan_is_built_without_a_gpu(plan_of, student, form, compute_capability):
    built = plan_of(student, form, compute_capability)
    assert built.plan.startswith(b"vtrt")
    assert built.compute_capability == compute_capability
    assert len(built.plan) > built.weights_bytes > 0
    assert built.activation_bytes > 0
    assert built.version


@EVERY
def test_every_convolution_runs_in_the_type_it_was_exported_in(
    plan_of, student, form, compute_capability
):
    convolutions = convolutions_of(student)
    layers = plan_of(student, form, compute_capability).layers
    types = {
        name: (layer.input_type, layer.weight_type)
        for layer in layers
        for name in convolutions
        if layer.kind == "correlation" and name in layer.origins
    }
    many, one = TYPES[form]
    wanted = {
        name: (one if channels == 1 else many,) * 2 for name, channels in convolutions.items()
    }
    assert types == wanted


@EVERY
def test_all_macs_but_those_of_one_channel_run_in_the_precision(
    plan_of, student, form, compute_capability
):
    layers = plan_of(student, form, compute_capability).layers
    achieved = achieved_in_rtx(onnx_of(student, form), layers)
    many, one = (PRECISIONS[kind] for kind in TYPES[form])
    require_share(achieved, many, 0.999 if many == "int8" else 1.0)
    fallen = {node.name: node.precision for node in achieved.nodes if node.precision != many}
    single = {name for name, channels in convolutions_of(student).items() if channels == 1}
    assert fallen == (dict.fromkeys(single, one) if many == "int8" else {})


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("form", ["fp16", "qdq", "qdq-fp16"])
def test_weights_of_a_plan_shrink_with_their_bits(plan_of, student, form):
    full = plan_of(student, "fp32", "8.6").weights_bytes
    shrunk = plan_of(student, form, "8.6").weights_bytes
    share = BITS[TYPES[form][0]] / 32
    if (student, TYPES[form][0]) == ("t2kd-edge", "Int8"):
        share = 0.54  # the builder pads each channel of a depthwise kernel, up to 452 bytes
    assert shrunk / full == pytest.approx(share, abs=0.02)


def test_each_build_lists_only_its_own_layers():
    for name in ("first", "second"):
        origins = [
            origin
            for layer in plan_from_onnx(tiny_conv(name), "8.6").layers
            for origin in layer.origins
        ]
        assert set(origins) == {name}


# --- refusals ------------------------------------------------------------------------------------

HAZARDS = {
    "Det": tiny_onnx(
        helper.make_node("Det", ["x"], ["y"], name="culprit"), shape=(1, 4, 4), outputs=(1,)
    ),
    "NonZero": tiny_onnx(
        helper.make_node("NonZero", ["x"], ["indices"], name="culprit"),
        helper.make_node("Cast", ["indices"], ["y"], to=TensorProto.FLOAT),
        shape=(4, 4),
        outputs=(2, None),
    ),
}


@pytest.mark.parametrize("operator", HAZARDS)
def test_operator_that_the_parser_lacks_is_refused_by_name_in_one_line(operator):
    with pytest.raises(Refused, match=f"{operator} 'culprit'") as caught:
        plan_from_onnx(HAZARDS[operator], "8.6")
    assert caught.value.code == "E-RTX-PARSE"
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_onnx_are_refused():
    with pytest.raises(Refused) as caught:
        plan_from_onnx(b"not a model", "8.6")
    assert caught.value.code == "E-RTX-PARSE"


def test_parsed_model_that_cannot_be_built_fails_with_the_builders_reason():
    free = tiny_conv(shape=(1, 4, None, None), outputs=(1, 8, None, None))
    with pytest.raises(EngineError, match="optimization profile") as caught:
        plan_from_onnx(free, "8.6")
    assert caught.value.code == "E-RTX-BUILD"
    assert "\n" not in str(caught.value)


def test_good_model_is_built_after_a_failed_one():
    with pytest.raises(Refused):
        plan_from_onnx(HAZARDS["Det"], "8.6")
    assert plan_from_onnx(tiny_conv(), "8.6").layers


@pytest.mark.parametrize("compute_capability", ["8.7", "86", ""])
def test_unknown_compute_capability_is_refused_with_the_known_ones(compute_capability):
    with pytest.raises(InputError, match=r"8\.6, 8\.9, 12\.0") as caught:
        plan_from_onnx(tiny_conv(), compute_capability)
    assert caught.value.code == "E-RTX-CC"


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(EngineError, match=r"pip install 'edgeseg\[rtx\]'") as caught:
        plan_from_onnx(tiny_conv(), "8.6")
    assert caught.value.code == "E-EXTRA-MISSING"


# --- the builder's listing -----------------------------------------------------------------------


def line(name="a_myl0_1", kind="correlation", data="Int8", weight="Int8", origins=("a", "relu")):
    def tensor(kind):
        return f"{{ Name: t, Dimensions: [1,4], Datatype: {kind}, Format: (NHWC) Channel major }}"

    metadata = "\x1f".join(f"[ONNX Layer: {origin}]" for origin in origins)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {tensor(data)}, {tensor('Half')}], "
        f"Constants: [ {tensor(weight)}, {tensor('Float')}], Outputs: [ {tensor('Float')}], "
        f"TacticName: tactic_0x1, StreamId: 0, Metadata: {metadata}"
    )


def listing(*lines):
    return "\n".join(["Layers:", *lines, "", "I/O Tensors:", " Name: x, IOMode: Input"])


def test_layer_is_read_with_its_first_types_and_its_origins():
    (layer,) = layers_from_log(["Total Weights Memory: 8 bytes", listing(line())])
    assert (layer.name, layer.kind) == ("a_myl0_1", "correlation")
    assert (layer.input_type, layer.weight_type, layer.output_type) == ("Int8", "Int8", "Float")
    assert layer.origins == ("a", "relu")


def test_layer_without_tensors_or_origins_is_read():
    bare = (
        "Name: s_myl0_5, LayerType: signal, Inputs: [], Constants: [], Outputs: [], "
        "TacticName: , StreamId: 0, EventId: 13, Metadata: "
    )
    signal, product = layers_from_log([listing(bare, line())])
    assert (signal.kind, signal.input_type, signal.weight_type) == ("signal", "", "")
    assert (signal.output_type, signal.origins) == ("", ())
    assert product.kind == "correlation"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        ["Total Weights Memory: 8 bytes"],
        [listing(line()), listing(line())],
        [listing()],
        [listing(line(), "Name: b, in another form")],
        [listing(line().replace("LayerType", "Kind"))],
    ],
)
def test_listing_that_is_not_understood_is_an_error_and_not_an_empty_audit(messages):
    with pytest.raises(EngineError) as caught:
        layers_from_log(messages)
    assert caught.value.code == "E-RTX-AUDIT"


def test_memory_that_the_builder_does_not_state_is_an_error_and_not_zero():
    messages = ["Total Weights Memory: 8 bytes", "Total Activation Memory: unknown"]
    assert _bytes_from_log(messages, "Total Weights Memory") == 8
    with pytest.raises(EngineError) as caught:
        _bytes_from_log(messages, "Total Activation Memory")
    assert caught.value.code == "E-RTX-AUDIT"


def test_layers_are_listed_also_where_another_logger_was_registered_first(tmp_path):
    file = tmp_path / "model.onnx"
    file.write_bytes(tiny_conv())
    code = """
import sys
from pathlib import Path
import tensorrt_rtx as trt
from edgeseg.export.to_rtx import plan_from_onnx
other = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(other)
built = plan_from_onnx(Path(sys.argv[1]).read_bytes(), "8.6")
print(*(layer.kind for layer in built.layers if "body" in layer.origins))
"""
    command = [sys.executable, "-c", code, str(file)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "correlation" in done.stdout.split()
