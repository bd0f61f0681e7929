"""Who runs what in which precision: tiny graphs whose multiply-accumulates fit in the head."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference

from edgeseg.benchmarks.measure.complexity import count_complexity, macs_of_nodes
from edgeseg.export import audit
from edgeseg.export.audit import (
    AuditedNode,
    ExecutedPrecisions,
    achieved_in_onnxruntime,
    achieved_in_openvino,
    achieved_in_rtx,
    asked_in_graph,
    require_share,
)
from edgeseg.export.qdq import qdq_from_onnx
from edgeseg.export.ranges import measure_ranges
from edgeseg.export.to_half import half_from_onnx
from edgeseg.export.to_openvino import openvino_from_onnx
from edgeseg.export.to_rtx import PlanLayer, plan_from_onnx
from edgeseg.runtime.errors import EngineError, Refused

BODY, HEAD = 256 * 8 * 4 * 9, 256 * 8  # of the network below; head has one output channel


def onnx_of(nodes, weights, inputs=(1, 4, 16, 16), outputs=(1, 1, 16, 16)):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, inputs)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, outputs)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def conv(name, data, out, operator="Conv", **attributes):
    return helper.make_node(operator, [data, f"{name}.w"], [out], name=name, **attributes)


def float_weights(*shape):
    return np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)


def pair(value):
    """A Q/DQ pair: `value` to `value`.d"""
    return [
        helper.make_node("QuantizeLinear", [value, "scale", "zero"], [f"{value}.q"], f"{value}Q"),
        helper.make_node("DequantizeLinear", [f"{value}.q", "scale", "zero"], [f"{value}.d"]),
    ]


def stored_in_int8(name):
    """The INT8 weights `name`.q as `name`.w"""
    return helper.make_node("DequantizeLinear", [f"{name}.q", "scale", "zero"], [f"{name}.w"])


SCALES = {"scale": np.float32(0.02), "zero": np.int8(0)}
WEIGHTS = {"body.w": float_weights(8, 4, 3, 3), "head.w": float_weights(1, 8, 1, 1)}
INT8_WEIGHTS = {"body.q": np.ones((8, 4, 3, 3), np.int8), "head.w": WEIGHTS["head.w"], **SCALES}
HEAD_NODE = conv("head", "h", "logits")

FP32 = onnx_of([conv("body", "image", "h", pads=[1] * 4), HEAD_NODE], WEIGHTS)
INT8 = onnx_of(
    [
        *pair("image"),
        stored_in_int8("body"),
        conv("body", "image.d", "b", pads=[1] * 4),
        *pair("b"),
        conv("head", "b.d", "logits"),
    ],
    INT8_WEIGHTS,
)
# The result of the convolution is not quantised.
INT8_IN_FLOAT_OUT = onnx_of(
    [*pair("image"), stored_in_int8("body"), conv("body", "image.d", "h", pads=[1] * 4), HEAD_NODE],
    INT8_WEIGHTS,
)
# Only stored in INT8.
INT8_WEIGHTS_ONLY = onnx_of(
    [stored_in_int8("body"), conv("body", "image", "h", pads=[1] * 4), HEAD_NODE], INT8_WEIGHTS
)


def in_rtx(model):
    return achieved_in_rtx(model, plan_from_onnx(model, "8.6").layers)


def in_onnxruntime(model):
    return achieved_in_onnxruntime(model, 1)


def ir_of(model, folder, precision):
    if precision == "int8":
        model = quantised(model)
    openvino_from_onnx(model, folder, half=precision == "fp16")
    return tuple((folder / name).read_bytes() for name in ("model.xml", "model.bin"))


def quantised(model):
    """The form of the x86 target."""
    images = [np.random.default_rng(0).normal(size=(1, 4, 16, 16)).astype(np.float32)]
    inferred = shape_inference.infer_shapes(onnx.load_model_from_string(model))
    model = inferred.SerializeToString()
    amax = measure_ranges(model, images).amax("mse")
    return qdq_from_onnx(model, amax, unsigned=True, weight_bits=7)


def achieved(*nodes, engine="engine"):
    return ExecutedPrecisions(engine, tuple(AuditedNode(*node) for node in nodes))


# --- counting ------------------------------------------------------------------------------------


def test_macs_are_given_for_each_node_and_add_up():
    assert macs_of_nodes(FP32) == [("body", BODY), ("head", HEAD)]
    assert count_complexity(FP32).macs == BODY + HEAD


def test_share_is_of_all_macs_and_zero_for_a_precision_nothing_runs_in():
    mixed = achieved(("a", "int8", 60), ("b", "fp32", 10), ("c", "int8", 30))
    assert mixed.macs == {"int8": 90, "fp32": 10}
    assert (mixed.share("int8"), mixed.share("fp32"), mixed.share("fp16")) == (0.9, 0.1, 0.0)


def test_audit_survives_json():
    mixed = achieved(("a", "int8", 60), ("b", "fp32", 10), engine="openvino")
    assert json.loads(json.dumps(mixed.to_dict())) == {
        "engine": "openvino",
        "macs": {"int8": 60, "fp32": 10},
        "nodes": {"int8": ["a"], "fp32": ["b"]},
    }


# --- the gate ------------------------------------------------------------------------------------


def test_share_of_exactly_the_minimum_passes_and_less_is_refused():
    mixed = achieved(("a", "int8", 90), ("b", "fp32", 10))
    require_share(mixed, "int8", 0.9)
    with pytest.raises(Refused) as caught:
        require_share(mixed, "int8", 0.901)
    assert caught.value.code == "E-PRECISION-FALLBACK"


def test_graph_without_macs_is_refused_at_any_minimum():
    with pytest.raises(Refused) as caught:
        require_share(achieved(), "int8", 0.0)
    assert caught.value.code == "E-PRECISION-FALLBACK"


def test_refusal_is_one_line_with_the_share_and_the_five_costliest_layers():
    names = [(f"layer{cost}", "fp32", cost) for cost in range(1, 8)]
    with pytest.raises(Refused) as caught:
        require_share(achieved(*names, ("good", "int8", 72), engine="toaster"), "int8", 0.9)
    text = str(caught.value)
    assert "\n" not in text
    assert "toaster runs 72.0% in it" in text
    named = [text.index(f"layer{cost} (fp32)") for cost in (7, 6, 5, 4, 3)]
    assert named == sorted(named)
    assert "layer2" not in text
    assert "and 2 more" in text
    assert "good" not in text


# --- engines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [in_rtx, in_onnxruntime])
def test_fp32_graph_runs_in_fp32_and_is_refused_as_int8(engine):
    audited = engine(FP32)
    assert audited.macs == {"fp32": BODY + HEAD}
    with pytest.raises(Refused, match="body") as caught:
        require_share(audited, "int8", 0.5)
    assert caught.value.code == "E-PRECISION-FALLBACK"


@pytest.mark.parametrize("engine", [in_rtx, in_onnxruntime])
def test_quantised_convolution_runs_in_int8_and_the_head_in_fp32(engine):
    audited = engine(INT8)
    assert audited.nodes == (AuditedNode("body", "int8", BODY), AuditedNode("head", "fp32", HEAD))
    require_share(audited, "int8", 0.9)


@pytest.mark.parametrize("engine", [in_rtx, in_onnxruntime])
def test_weights_only_stored_in_int8_are_multiplied_in_fp32(engine):
    assert engine(INT8_WEIGHTS_ONLY).macs == {"fp32": BODY + HEAD}


def test_onnxruntime_runs_in_float_what_rtx_runs_in_int8_where_the_result_is_not_quantised():
    assert in_rtx(INT8_IN_FLOAT_OUT).macs == {"int8": BODY, "fp32": HEAD}
    assert in_onnxruntime(INT8_IN_FLOAT_OUT).macs == {"fp32": BODY + HEAD}


def test_quantised_transposed_convolution_falls_back_to_float_in_rtx():
    nodes = [*pair("image"), stored_in_int8("up")]
    nodes += [conv("up", "image.d", "logits", "ConvTranspose", strides=[2, 2])]
    weights = {"up.q": np.ones((4, 8, 2, 2), np.int8), **SCALES}
    audited = in_rtx(onnx_of(nodes, weights, outputs=(1, 8, 32, 32)))
    assert audited.macs == {"fp32": 256 * 4 * 8 * 4}
    with pytest.raises(Refused, match="up"):
        require_share(audited, "int8", 0.9)


def test_fp16_graph_runs_in_half_in_rtx_but_in_fp32_in_onnxruntime_on_a_cpu():
    half = half_from_onnx(FP32)
    assert in_rtx(half).macs == {"fp16": BODY + HEAD}
    assert in_onnxruntime(half).macs == {"fp32": BODY + HEAD}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_float_ir_computes_in_fp32_on_a_cpu_also_with_its_weights_in_fp16(tmp_path, precision):
    audited = achieved_in_openvino(*ir_of(FP32, tmp_path, precision), 1, macs=BODY + HEAD)
    assert audited.macs == {"fp32": BODY + HEAD}
    with pytest.raises(Refused):
        require_share(audited, "int8", 0.9)


def test_int8_ir_computes_in_int8_and_its_head_in_fp32(tmp_path):
    audited = achieved_in_openvino(*ir_of(FP32, tmp_path, "int8"), 1, macs=BODY + HEAD)
    assert audited.macs == {"int8": BODY, "fp32": HEAD}
    require_share(audited, "int8", 0.9)


def test_grouped_and_transposed_convolutions_of_an_ir_cost_what_the_onnx_says(tmp_path):
    nodes = [
        conv("depthwise", "image", "d", pads=[1] * 4, group=4),
        conv("up", "d", "logits", "ConvTranspose", strides=[2, 2]),
    ]
    weights = {"depthwise.w": float_weights(4, 1, 3, 3), "up.w": float_weights(4, 8, 2, 2)}
    model = onnx_of(nodes, weights, outputs=(1, 8, 32, 32))
    macs = 256 * 4 * 9 + 256 * 4 * 8 * 4
    assert count_complexity(model).macs == macs
    audited = achieved_in_openvino(*ir_of(model, tmp_path, "fp32"), 1, macs=macs)
    assert audited.macs == {"fp32": macs}


def test_matrix_products_of_an_ir_cost_what_the_onnx_says_and_run_in_fp32(tmp_path):
    transpose = helper.make_node("Transpose", ["image"], ["turned"], perm=[0, 1, 3, 2])
    nodes = [
        helper.make_node("MatMul", ["image", "p.w"], ["p"], name="product"),
        transpose,
        helper.make_node("MatMul", ["p", "turned"], ["scores"], name="scores"),
        helper.make_node("Softmax", ["scores"], ["shares"], name="shares", axis=-1),
        helper.make_node("MatMul", ["shares", "image"], ["logits"], name="joined"),
    ]
    model = onnx_of(nodes, {"p.w": float_weights(16, 16)}, outputs=(1, 4, 16, 16))
    macs = count_complexity(model).macs
    assert macs == 3 * 4 * 16**3
    audited = achieved_in_openvino(*ir_of(model, tmp_path, "fp32"), 1, macs=macs)
    assert audited.macs == {"fp32": macs}


# --- nothing is dropped in silence ---------------------------------------------------------------


def layer(name, kind="correlation", types=("Int8", "Int8"), origins=None):
    return PlanLayer(f"{name}_myl0", kind, *types, "Float", origins or (name,))


def audit_error(call, *arguments, **keywords):
    with pytest.raises(EngineError) as caught:
        call(*arguments, **keywords)
    assert caught.value.code == "E-AUDIT"
    return str(caught.value)


def test_node_that_no_layer_of_the_plan_computes_is_an_error():
    assert "'head'" in audit_error(achieved_in_rtx, FP32, [layer("body"), layer("renamed")])


def test_type_that_is_not_known_is_an_error_even_beside_a_known_one():
    layers = [layer("body", types=("FP8", "Float")), layer("head")]
    assert "'FP8'" in audit_error(achieved_in_rtx, FP32, layers)


def test_wider_operand_names_the_precision():
    layers = [layer("body", types=("Int8", "Half")), layer("head", types=("Half", "Float"))]
    assert achieved_in_rtx(FP32, layers).macs == {"fp16": BODY, "fp32": HEAD}


def test_node_computed_by_several_kernels_counts_as_the_widest():
    layers = [layer("body"), layer("body", types=("Half", "Half")), layer("head")]
    assert achieved_in_rtx(FP32, layers).macs == {"fp16": BODY, "int8": HEAD}


def test_generated_code_counts_only_where_no_matrix_kernel_computes_the_node():
    quantise = layer("body", kind="kgen", types=("Float", ""))
    product = layer("head", kind="kgen", types=("Half", "Half"))
    audited = achieved_in_rtx(FP32, [quantise, layer("body"), product])
    assert audited.macs == {"int8": BODY, "fp16": HEAD}


def test_nodes_that_share_a_name_are_an_error():
    twin = helper.make_node("Conv", ["h", "head.w"], ["logits"], name="body")
    model = onnx_of([conv("body", "image", "h", pads=[1] * 4), twin], WEIGHTS)
    assert "'body'" in audit_error(achieved_in_rtx, model, [layer("body")])


def test_macs_of_an_ir_that_are_not_those_of_its_onnx_are_an_error(tmp_path):
    files = ir_of(FP32, tmp_path, "fp32")
    assert str(BODY + HEAD) in audit_error(achieved_in_openvino, *files, 1, macs=BODY + HEAD + 1)


def test_operator_of_an_ir_that_is_not_counted_is_an_error(tmp_path):
    equation = {"equation": "nchw,wk->nchk"}
    nodes = [helper.make_node("Einsum", ["image", "p.w"], ["logits"], name="product", **equation)]
    model = onnx_of(nodes, {"p.w": float_weights(16, 16)}, outputs=(1, 4, 16, 16))
    files = ir_of(model, tmp_path, "fp32")
    audit_error(achieved_in_openvino, *files, 1, macs=4 * 16 * 16 * 16)


def test_renamed_node_in_onnxruntime_is_an_error(monkeypatch):
    monkeypatch.setattr(audit, "_RENAMING", ())  # all rewrites stay, those that rename too
    assert "'body'" in audit_error(achieved_in_onnxruntime, INT8, 1)


def test_rewrite_that_changes_types_must_not_be_left_out_in_onnxruntime(monkeypatch):
    monkeypatch.setattr(audit, "_RENAMING", ("QDQSelectorActionTransformer",))
    assert "uint8" in audit_error(achieved_in_onnxruntime, INT8, 1)


def test_product_of_attention_keeps_its_name_though_the_engine_fuses_factor_and_transposition():
    model = onnx_of(
        [
            helper.make_node("Transpose", ["image"], ["t"], "turn", perm=[0, 1, 3, 2]),
            helper.make_node("MatMul", ["image", "t"], ["s"], "scores"),
            helper.make_node("Mul", ["s", "half"], ["logits"], "scale"),
        ],
        {"half": np.float32(0.5)},
        inputs=(1, 1, 4, 8),
        outputs=(1, 1, 4, 4),
    )
    achieved = achieved_in_onnxruntime(model, 1)
    assert achieved.nodes == (AuditedNode("scores", "fp32", 4 * 4 * 8),)


# --- the graph itself ----------------------------------------------------------------------------


def test_graph_asks_for_int8_where_both_operands_are_dequantised_else_for_its_type():
    nodes = [*pair("image"), stored_in_int8("body"), conv("body", "image.d", "h", pads=[1] * 4)]
    asked = asked_in_graph(onnx_of([*nodes, HEAD_NODE], INT8_WEIGHTS))
    assert asked.macs == {"int8": BODY, "fp32": HEAD}
    float_body = conv("body", "image.d", "h", pads=[1] * 4)
    half_way = onnx_of([*pair("image"), float_body, HEAD_NODE], {**WEIGHTS, **SCALES})
    assert asked_in_graph(half_way).macs == {"fp32": BODY + HEAD}
    assert asked_in_graph(half_from_onnx(FP32)).macs == {"fp16": BODY + HEAD}
