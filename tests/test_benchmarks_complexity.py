from __future__ import annotations

import io
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from edgeseg.benchmarks.complexity import OPS, Complexity, count_complexity
from edgeseg.kd.models import build_model, count_parameters
from edgeseg.runtime.errors import InputError


def serialised(nodes, weights, shape, *, outputs=("y",)):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * len(shape))
            for name in outputs
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


CONV_WEIGHTS = {"w": zeros(3, 2, 3, 3), "b": zeros(3)}
CONV = helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1])


def test_convolution_costs_channels_times_kernel_for_each_output_value():
    counted = count_complexity(serialised([CONV], CONV_WEIGHTS, [1, 2, 5, 4]))
    assert counted == Complexity(parameters=54 + 3, macs=20 * 3 * 2 * 9, weights_bytes=4 * 57)
    assert counted.flops == 2 * counted.macs


def test_depthwise_convolution_costs_one_channel_for_each_output_value():
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], group=4)
    counted = count_complexity(serialised([node], {"w": zeros(4, 1, 3, 3)}, [1, 4, 5, 5]))
    assert (counted.parameters, counted.macs) == (36, 25 * 4 * 9)


def test_transposed_convolution_costs_its_kernel_for_each_input_value():
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    counted = count_complexity(serialised([node], {"w": zeros(2, 3, 2, 2)}, [1, 2, 5, 5]))
    assert counted.macs == 25 * 2 * 3 * 4


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_and_matmul_cost_rows_times_columns_times_depth(transposed):
    weight = zeros(5, 3) if transposed else zeros(3, 5)
    gemm = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=transposed)
    counted = count_complexity(serialised([gemm], {"w": weight, "b": zeros(5)}, [7, 3]))
    assert (counted.parameters, counted.macs) == (20, 7 * 3 * 5)
    matmul = helper.make_node("MatMul", ["x", "w"], ["y"])
    assert count_complexity(serialised([matmul], {"w": zeros(3, 5)}, [7, 3])).macs == 7 * 3 * 5


def test_weight_used_twice_is_stored_once_and_computed_twice():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    counted = count_complexity(serialised(nodes, {"w": zeros(3, 3)}, [2, 3]))
    assert (counted.parameters, counted.macs) == (9, 2 * 18)


def test_shape_constants_are_no_parameters():
    nodes = [CONV, helper.make_node("Resize", ["y", "", "scales"], ["z"], mode="nearest")]
    scales = {"scales": np.array([1, 1, 2, 2], np.float32)}
    model = serialised(nodes, {**CONV_WEIGHTS, **scales}, [1, 2, 5, 4], outputs=("z",))
    assert count_complexity(model).parameters == 57


def test_quantised_graph_counts_as_the_float_one_with_a_quarter_of_the_bytes():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "s"], ["bf"]),
        helper.make_node("Conv", ["xf", "wf", "bf"], ["y"], pads=[1, 1, 1, 1]),
    ]
    weights = {
        "w": zeros(3, 2, 3, 3, dtype=np.int8),
        "b": zeros(3, dtype=np.int32),
        "s": np.array(0.1, np.float32),
        "z": np.array(0, np.uint8),
        "ws": np.ones(3, np.float32),
        "wz": zeros(3, dtype=np.int8),
    }
    counted = count_complexity(serialised(nodes, weights, [1, 2, 5, 4]))
    assert counted == Complexity(parameters=57, macs=20 * 54, weights_bytes=54 + 4 * 3)


def test_half_precision_weights_count_the_same_with_half_the_bytes():
    nodes = [
        helper.make_node("Cast", ["w"], ["wf"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "wf"], ["y"], pads=[1, 1, 1, 1]),
    ]
    counted = count_complexity(
        serialised(nodes, {"w": zeros(3, 2, 3, 3, dtype=np.float16)}, [1, 2, 5, 4])
    )
    assert counted == Complexity(parameters=54, macs=20 * 54, weights_bytes=2 * 54)


def test_batch_norm_counts_what_is_trained():
    node = helper.make_node("BatchNormalization", ["x", "g", "b", "m", "v"], ["y"])
    weights = {name: zeros(6) for name in "gbmv"}
    assert count_complexity(serialised([node], weights, [1, 6, 4, 4])).parameters == 12


def test_unknown_shape_is_refused():
    with pytest.raises(InputError) as caught:
        count_complexity(serialised([CONV], CONV_WEIGHTS, ["batch", 2, 5, 4]))
    assert caught.value.code == "E-COMPLEXITY-SHAPE"


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Einsum", ["x", "w"], ["y"], equation="ij,jk->ik"),
        helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft"),
    ],
)
def test_operator_that_computes_but_is_not_counted_is_refused(node):
    model = onnx.load_model_from_string(serialised([node], {"w": zeros(3, 3)}, [3, 3]))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(InputError) as caught:
        count_complexity(model.SerializeToString())
    assert caught.value.code == "E-COMPLEXITY-OP"


@pytest.mark.parametrize("content", [b"", b"not onnx at all", b"\x00" * 64])
def test_bytes_that_are_no_model_are_refused(content):
    with pytest.raises(InputError) as caught:
        count_complexity(content)
    assert caught.value.code == "E-COMPLEXITY-MODEL"


def test_student_agrees_with_the_flop_counter_of_torch():
    model = build_model("attunet-8").eval()
    image = torch.zeros(1, 1, 64, 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    exported = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces its newer exporter
        torch.onnx.export(model, (image,), exported, dynamo=False, opset_version=17)
    counted = count_complexity(exported.getvalue())
    assert counted.macs == pytest.approx(counter.get_total_flops() / 2, rel=1e-3)
    assert counted.parameters == pytest.approx(count_parameters(model), rel=0.01)
    assert counted.weights_bytes == 4 * counted.parameters


def test_counted_operators_are_the_four_documented():
    assert set(OPS) == {"Conv", "ConvTranspose", "Gemm", "MatMul"}
