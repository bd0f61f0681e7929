from __future__ import annotations

import io
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from edgeseg.benchmarks.measure.complexity import OPS, Complexity, count_complexity, layer_costs
from edgeseg.export.to_onnx import onnx_from_network
from edgeseg.kd.checkpoint import load_checkpoint
from edgeseg.kd.models import MODELS, build_model, count_macs, count_parameters
from edgeseg.kd.zoo import SHIPPED, find_weights
from edgeseg.runtime.contract import InputContract
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


def flops_by_torch(network, height, width):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 1, height, width))
    return counter.get_total_flops()


LARGE = ("attunet-64", "resnet50-attunet", "resnet101-attunet")  # exporting the weights takes long


@pytest.mark.parametrize("name", [name for name in MODELS if name not in LARGE])
def test_every_model_agrees_with_the_flop_counter_of_torch(name):
    network = build_model(name).eval()
    counted = count_complexity(onnx_from_network(network, InputContract(64, 64)))
    assert counted.flops == pytest.approx(flops_by_torch(network, 64, 64), rel=1e-3)
    assert counted.parameters == pytest.approx(parameters_once_folded(network), rel=0.01)
    assert counted.weights_bytes == 4 * counted.parameters


def parameters_once_folded(network):
    """Parameters without those of batch norms, which leave a bias to each convolution."""
    norms = [each for each in network.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    convolutions = [each for each in network.modules() if isinstance(each, torch.nn.Conv2d)]
    gone = sum(2 * each.num_features for each in norms)
    return (
        count_parameters(network)
        - gone
        + sum(each.out_channels for each in convolutions if each.bias is None)
    )


@pytest.mark.parametrize("name", LARGE)
def test_every_large_model_agrees_with_the_flop_counter_of_torch(name):
    with torch.device("meta"):
        network = build_model(name).eval()
    network.to_empty(device="cpu")
    exported = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces its newer exporter
        torch.onnx.export(
            network,
            (torch.zeros(1, 1, 64, 64),),
            exported,
            dynamo=False,
            opset_version=17,
            export_params=False,
        )
    counted = count_complexity(exported.getvalue())
    assert counted.flops == pytest.approx(flops_by_torch(network, 64, 64), rel=1e-3)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_student_agrees_with_the_flop_counter_of_torch(name):
    trained = load_checkpoint(find_weights(name))
    contract = trained.contract
    exported = onnx_from_network(trained.network, contract)
    by_torch = flops_by_torch(trained.network, contract.height, contract.width)
    assert count_complexity(exported).flops == pytest.approx(by_torch, rel=1e-3)


# --- the paper's figures: 16.59 G for the student, 205.98 G for a teacher ------------------------


@pytest.mark.parametrize(
    ("name", "paper_g"), [("attunet-16", 16.59), ("resnet101-attunet", 205.98)]
)
def test_the_papers_operations_are_multiply_accumulates_at_512_px(name, paper_g):
    with torch.device("meta"):
        network = build_model(name).eval()
        macs = {size: count_macs(network, InputContract(size, size)) for size in (256, 512)}
    assert macs[512] / 1e9 == pytest.approx(paper_g, rel=0.003)
    assert 2 * macs[512] / 1e9 == pytest.approx(2 * paper_g, rel=0.003)  # as FLOPs
    assert macs[256] / 1e9 == pytest.approx(paper_g / 4, rel=0.003)


def test_students_graph_at_512_px_has_the_papers_operations_too():
    exported = onnx_from_network(build_model("attunet-16"), InputContract(512, 512))
    assert count_complexity(exported).macs / 1e9 == pytest.approx(16.62, abs=5e-3)


# --- layers --------------------------------------------------------------------------------------


def test_layer_of_a_convolution_has_its_shapes_kernel_and_bytes():
    relu = helper.make_node("Relu", ["y"], ["z"], name="relu")
    conv = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", pads=[1, 1, 1, 1])
    model = serialised([conv, relu], CONV_WEIGHTS, [1, 2, 5, 4], outputs=("z",))
    (layer,) = layer_costs(model)
    assert (layer.name, layer.op, layer.nodes) == ("conv", "Conv", ("conv", "relu"))
    assert (layer.inputs, layer.outputs) == (((1, 2, 5, 4),), ((1, 3, 5, 4),))
    assert (layer.kernel, layer.precision) == ((3, 3), "fp32")
    assert (layer.macs, layer.flops, layer.parameters) == (20 * 54, 40 * 54, 57)
    assert (layer.weights_bytes, layer.read_bytes, layer.written_bytes) == (228, 160, 240)
    assert layer.total_bytes == 628
    assert layer.intensity == pytest.approx(40 * 54 / 628)


def test_activation_that_is_not_alone_behind_its_layer_is_a_layer_itself():
    nodes = [
        CONV,
        helper.make_node("Relu", ["y"], ["r"], name="relu"),
        helper.make_node("Add", ["y", "r"], ["z"], name="add"),
    ]
    model = serialised(nodes, CONV_WEIGHTS, [1, 2, 5, 4], outputs=("z",))
    assert [layer.name for layer in layer_costs(model)] == ["y", "relu", "add"]


def test_what_only_moves_values_costs_bytes_and_no_products():
    nodes = [
        helper.make_node("MaxPool", ["x"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Resize", ["p", "", "scales"], ["r"], name="up", mode="nearest"),
        helper.make_node("Concat", ["x", "r"], ["y"], name="join", axis=1),
    ]
    scales = {"scales": np.array([1, 1, 2, 2], np.float32)}
    pool, resize, concat = layer_costs(serialised(nodes, scales, [1, 2, 4, 4]))
    assert (pool.kernel, pool.read_bytes, pool.written_bytes) == ((2, 2), 128, 32)
    assert (resize.kernel, resize.read_bytes, resize.written_bytes) == ((), 32, 128)
    assert (concat.read_bytes, concat.written_bytes) == (256, 256)
    assert {(layer.macs, layer.intensity) for layer in (pool, resize, concat)} == {(0, 0.0)}


def test_reshape_moves_nothing_and_is_no_layer():
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"], name="reshape"),
        helper.make_node("Conv", ["r", "w"], ["y"], name="conv"),
    ]
    weights = {"w": zeros(3, 4, 1, 1), "shape": np.array([1, 4, 2, 2])}
    assert [each.name for each in layer_costs(serialised(nodes, weights, [1, 1, 4, 4]))] == ["conv"]


def quantised(name):
    """A Q/DQ pair: `name` to `name`.f"""
    return [
        helper.make_node("QuantizeLinear", [name, "s", "z"], [f"{name}.q"]),
        helper.make_node("DequantizeLinear", [f"{name}.q", "s", "z"], [f"{name}.f"]),
    ]


QDQ_WEIGHTS = {
    "w": zeros(3, 2, 3, 3, dtype=np.int8),
    "b": zeros(3),
    "s": np.array(0.1, np.float32),
    "z": np.array(0, np.uint8),
    "ws": np.ones(3, np.float32),
    "wz": zeros(3, dtype=np.int8),
    "head": zeros(1, 3, 1, 1),
}
QDQ = [
    *quantised("x"),
    helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=0),
    helper.make_node("Conv", ["x.f", "wf", "b"], ["c"], name="body", pads=[1, 1, 1, 1]),
    helper.make_node("Relu", ["c"], ["r"]),
    *quantised("r"),
    helper.make_node("Conv", ["r.f", "head"], ["y"], name="head"),
]


def test_quantised_tensors_count_a_byte_an_element_and_the_widest_operand_names_the_precision():
    body, head = layer_costs(serialised(QDQ, QDQ_WEIGHTS, [1, 2, 5, 4]))
    assert (body.precision, head.precision) == ("int8", "fp32")
    assert (body.weights_bytes, body.read_bytes, body.written_bytes) == (54 + 12, 40, 60)
    assert (head.weights_bytes, head.read_bytes, head.written_bytes) == (12, 60, 80)


def test_half_halves_what_is_stored_in_fp32_and_leaves_int8():
    body, head = layer_costs(serialised(QDQ, QDQ_WEIGHTS, [1, 2, 5, 4]), half=True)
    assert (body.precision, head.precision) == ("int8", "fp16")
    assert (body.weights_bytes, body.read_bytes, body.written_bytes) == (54 + 6, 40, 60)
    assert (head.weights_bytes, head.read_bytes, head.written_bytes) == (6, 60, 40)


def test_shared_weight_counts_in_the_first_layer_that_has_it():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    first, second = layer_costs(serialised(nodes, {"w": zeros(3, 3)}, [2, 3]))
    assert (first.parameters, second.parameters) == (9, 0)


@pytest.mark.parametrize("name", ["attunet-8", "edge-16"])
def test_layers_add_up_to_the_whole(name):
    exported = onnx_from_network(build_model(name), InputContract(64, 64))
    layers, whole = layer_costs(exported), count_complexity(exported)
    assert sum(layer.macs for layer in layers) == whole.macs
    assert sum(layer.parameters for layer in layers) == whole.parameters
    assert sum(layer.weights_bytes for layer in layers) == whole.weights_bytes
    assert len({layer.name for layer in layers}) == len(layers)


def test_layers_of_an_unknown_shape_are_refused():
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="nearest")
    scales = {"scales": np.array([1, 1, 2, 2], np.float32)}
    with pytest.raises(InputError) as caught:
        layer_costs(serialised([node], scales, ["batch", 2, 5, 4]))
    assert caught.value.code == "E-COMPLEXITY-SHAPE"


def test_counted_operators_are_the_four_documented():
    assert set(OPS) == {"Conv", "ConvTranspose", "Gemm", "MatMul"}
