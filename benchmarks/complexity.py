"""Parameters and multiply-accumulates of an ONNX graph, counted from its static shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil, prod
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..runtime.errors import InputError

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Complexity:
    """What one call of a graph costs."""

    parameters: int  # elements of weights and biases, each tensor once
    macs: int  # multiply-accumulates of one call at the graph's own input size
    weights_bytes: int  # the same weights and biases as stored, so INT8 takes a quarter of FP32

    @property
    def flops(self) -> int:
        """Two per multiply-accumulate."""
        return 2 * self.macs


def _conv_macs(inputs: tuple[Shape, ...], output: Shape) -> int:
    """Count C/group · kernel for each output value; the weight is [M, C/group, kernel...]."""
    return prod(output) * prod(inputs[1][1:])


def _conv_transpose_macs(inputs: tuple[Shape, ...], output: Shape) -> int:
    """Count M/group · kernel for each input value; the weight is [C, M/group, kernel...]."""
    return prod(inputs[0]) * prod(inputs[1][1:])


def _gemm_macs(inputs: tuple[Shape, ...], output: Shape) -> int:
    """Count K for each output value; K is what A, transposed or not, does not share with Y."""
    return prod(inputs[0]) * output[1]


def _matmul_macs(inputs: tuple[Shape, ...], output: Shape) -> int:
    """Count K for each output value; K is A's last dimension."""
    return prod(output) * inputs[0][-1]


# Multiply-accumulates of a node from the shapes of its first two inputs and of its output.
# To count another operator: a function above and a line here and in _WEIGHTS.
OPS: Mapping[str, Callable[[tuple[Shape, ...], Shape], int]] = MappingProxyType(
    {
        "Conv": _conv_macs,
        "ConvTranspose": _conv_transpose_macs,
        "Gemm": _gemm_macs,
        "MatMul": _matmul_macs,
    }
)

# Inputs that are weights or biases where they are constant. Running statistics of a batch norm
# are not: they are estimated, not trained.
_WEIGHTS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "Conv": (1, 2),
        "ConvTranspose": (1, 2),
        "Gemm": (0, 1, 2),
        "MatMul": (0, 1),
        "BatchNormalization": (1, 2),
        "InstanceNormalization": (1, 2),
        "LayerNormalization": (1, 2),
        "PRelu": (1,),
    }
)

# Operators between a stored weight and its use that keep its elements.
_TRANSPARENT = ("DequantizeLinear", "QuantizeLinear", "Cast", "Identity", "Transpose", "Reshape")

# Operators that multiply and accumulate but are not counted: refused, or the sum would be short.
_UNCOUNTED = frozenset(
    (
        *("QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "DeformConv"),
        *("Einsum", "Attention", "RNN", "GRU", "LSTM", "If", "Loop", "Scan"),
    )
)


def count_complexity(onnx_bytes: bytes) -> Complexity:
    """Count a serialised ONNX model.

    FP32, FP16 and quantise/dequantise (Q/DQ) graphs of one network give the same parameters and
    multiply-accumulates; scales, zero points and shape constants are no parameters. An exporter
    folds each batch norm into its convolution, so the parameters differ a little from the torch
    module's: two per channel go, and a convolution without bias gets one.

    Args:
        onnx_bytes: a model whose weights are inside, with static shapes.

    Raises:
        InputError: E-COMPLEXITY-MODEL (no valid ONNX), E-COMPLEXITY-OP (an operator that computes
            but is not counted here), E-COMPLEXITY-SHAPE (a shape needed is not static).
    """
    model = _inferred(onnx_bytes)
    constants = dict(_constants(model))
    producers = {output: node for node in model.graph.node for output in node.output}
    weights: dict[str, onnx.TensorProto] = {}
    for node in model.graph.node:
        for index in _WEIGHTS.get(node.op_type, ()):
            stored = _stored(node.input[index], producers) if index < len(node.input) else ""
            if stored in constants:
                weights[stored] = constants[stored]
    return Complexity(
        parameters=sum(prod(tensor.dims) for tensor in weights.values()),
        macs=sum(macs for _, macs in _node_macs(model, constants)),
        weights_bytes=sum(map(_stored_bytes, weights.values())),
    )


def macs_of_nodes(onnx_bytes: bytes) -> list[tuple[str, int]]:
    """Return name and multiply-accumulates of each node that has any, in the graph's order.

    Their sum is `Complexity.macs`; the errors are those of `count_complexity`.
    """
    model = _inferred(onnx_bytes)
    return list(_node_macs(model, dict(_constants(model))))


def _node_macs(
    model: onnx.ModelProto, constants: Mapping[str, onnx.TensorProto]
) -> Iterator[tuple[str, int]]:
    """Yield name and multiply-accumulates. Raises InputError (E-COMPLEXITY-OP, -SHAPE)."""
    graph = model.graph
    shapes = {name: tuple(tensor.dims) for name, tensor in constants.items()}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes[value.name] = tuple(d.dim_value for d in dims)

    def shape_of(node: onnx.NodeProto, name: str) -> Shape:
        if name not in shapes:
            raise InputError(
                "E-COMPLEXITY-SHAPE",
                f"shape of {name!r} at {node.op_type} {node.name!r} is unknown; export the model "
                "with a fixed batch and input size",
            )
        return shapes[name]

    for node in graph.node:
        if node.op_type in _UNCOUNTED or node.domain not in ("", "ai.onnx"):
            raise InputError(
                "E-COMPLEXITY-OP",
                f"{node.op_type} {node.name!r} is not counted; export to plain ONNX operators "
                "(Q/DQ format where quantised)",
            )
        if node.op_type in OPS:
            operands = tuple(shape_of(node, name) for name in node.input[:2])
            yield node.name, OPS[node.op_type](operands, shape_of(node, node.output[0]))


def _inferred(onnx_bytes: bytes) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    malformed = (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError)
    try:
        model = onnx.load_model_from_string(onnx_bytes)
        onnx.checker.check_model(model)
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except malformed as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            "E-COMPLEXITY-MODEL", f"not a valid ONNX model ({reason}); export it again"
        ) from error


def _constants(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Yield name and tensor of the initialisers and the tensors of `Constant` nodes."""
    for tensor in model.graph.initializer:
        yield tensor.name, tensor
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            yield node.output[0], node.attribute[0].t


def _stored(name: str, producers: Mapping[str, onnx.NodeProto]) -> str:
    """Follow a value back through the operators that keep its elements."""
    while name in producers and producers[name].op_type in _TRANSPARENT:
        name = producers[name].input[0]
    return name


def _stored_bytes(tensor: onnx.TensorProto) -> int:
    import onnx

    elements: int = prod(tensor.dims)
    if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return ceil(elements / 2)
    return elements * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
