"""Parameters, multiply-accumulates and bytes of an ONNX graph, counted from its static shapes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil, prod
from types import MappingProxyType
from typing import TYPE_CHECKING

from ...runtime.errors import InputError, first_line

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


@dataclass(frozen=True)
class LayerCost:
    """What one layer of a graph costs in one call: a node and the activations behind it."""

    name: str  # of the node, or of its first output where the node has none
    op: str  # ONNX operator
    nodes: tuple[str, ...]  # the node, then the activation functions that run in its kernel
    inputs: tuple[Shape, ...]  # of what it reads that is not constant
    outputs: tuple[Shape, ...]
    kernel: Shape  # of the window; () for an operator without one
    precision: str  # "int8", "fp16", "bf16" or "fp32": the widest of its operands
    macs: int
    parameters: int  # a tensor that several layers share counts in the first
    weights_bytes: int  # of the same tensors, as stored
    read_bytes: int  # of activations, each tensor once
    written_bytes: int  # of activations

    @property
    def flops(self) -> int:
        """Two per multiply-accumulate."""
        return 2 * self.macs

    @property
    def total_bytes(self) -> int:
        """What has to move at least: weights and activations, each once."""
        return self.weights_bytes + self.read_bytes + self.written_bytes

    @property
    def intensity(self) -> float:
        """Arithmetic intensity in FLOP per byte; 0 where nothing is multiplied."""
        return self.flops / self.total_bytes if self.macs else 0.0


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

# Functions of one value, which engines compute in the kernel before them.
_ACTIVATIONS = frozenset(
    ("Clip", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Relu", "Sigmoid", "Tanh")
)

# No layers: a Q/DQ pair is how its tensor is stored, the others give the same bytes a new shape.
_STORAGE = frozenset(
    (
        "QuantizeLinear",
        "DequantizeLinear",
        "Constant",
        "Shape",
        "Dropout",
        "Flatten",
        "Identity",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
    )
)

# Operators that multiply and accumulate but are not counted: refused, or the sum would be short.
_UNCOUNTED = frozenset(
    (
        "QLinearConv",
        "ConvInteger",
        "QLinearMatMul",
        "MatMulInteger",
        "DeformConv",
        "Einsum",
        "Attention",
        "RNN",
        "GRU",
        "LSTM",
        "If",
        "Loop",
        "Scan",
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
    weights = [tensor for tensors in _new_weights(model, constants) for tensor in tensors]
    return Complexity(
        parameters=sum(prod(tensor.dims) for tensor in weights),
        macs=sum(macs for _, macs in _node_macs(model, constants)),
        weights_bytes=sum(_bytes(prod(tensor.dims), tensor.data_type) for tensor in weights),
    )


def layer_costs(onnx_bytes: bytes, *, half: bool = False) -> tuple[LayerCost, ...]:
    """Count each layer of a serialised ONNX model, in the graph's order.

    A layer is a node that computes or moves activations, with the activation function that alone
    reads its output. Reshapes are none, and neither are Q/DQ pairs: a tensor between them counts
    with the bytes of its quantised form. Parameters, multiply-accumulates and weight bytes add up
    to those of `count_complexity`.

    Args:
        onnx_bytes: a model whose weights are inside, with static shapes.
        half: count FP32 tensors as FP16, which is how a typed file for a GPU stores them.

    Raises:
        InputError: as `count_complexity`; E-COMPLEXITY-SHAPE for any activation.
    """
    model = _inferred(onnx_bytes)
    constants = dict(_constants(model))
    macs = iter(_node_macs(model, constants))
    tensors = _tensors_of(model, constants)
    layers = []
    for node, weights in zip(model.graph.node, _new_weights(model, constants), strict=True):
        own_macs = next(macs)[1] if node.op_type in OPS else 0
        if _is_layer(node, tensors):
            layers.append(_layer(node, own_macs, weights, tensors, half))
    return tuple(layers)


def with_batch_of_one(onnx_bytes: bytes) -> bytes:
    """Return a model that takes any batch with its batch fixed to 1; another as it is."""
    import onnx

    model = onnx.load_model_from_string(onnx_bytes)
    ends = [
        value.type.tensor_type.shape.dim[0] for value in (*model.graph.input, *model.graph.output)
    ]
    if all(dim.HasField("dim_value") for dim in ends):
        return onnx_bytes
    for dim in ends:
        dim.dim_value = 1
    del model.graph.value_info[:]
    return bytes(model.SerializeToString(deterministic=True))


def layers_by_name(onnx_bytes: bytes) -> dict[str, str]:
    """Map every name by which an engine may call the work of a layer to the layer's name.

    Those are its nodes, their outputs, and the Q/DQ pairs and reshapes behind them with theirs.
    The errors are those of `layer_costs`.
    """
    model = _inferred(onnx_bytes)
    tensors = _tensors_of(model, dict(_constants(model)))
    owners: dict[str, str] = {}
    for node in model.graph.node:
        if _is_layer(node, tensors):
            owner: str | None = _name(node)
        else:  # a part or the storage of what it reads; of nothing where that is a graph's input
            owner = owners.get(node.input[0]) if node.input else None
        if owner is not None:
            owners |= dict.fromkeys(filter(None, (node.name, *node.output)), owner)
    return owners


def input_shape(onnx_bytes: bytes) -> Shape:
    """Return the shape of a model's first input, whose batch and size must be static.

    The errors are those of `count_complexity`.
    """
    model = _inferred(onnx_bytes)
    shapes, name = _shapes(model, {}), model.graph.input[0].name
    return _shape_at(model.graph.node[0], name, shapes)


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
    shapes = _shapes(model, constants)
    for node in model.graph.node:
        if node.op_type in _UNCOUNTED or node.domain not in ("", "ai.onnx"):
            raise InputError(
                "E-COMPLEXITY-OP",
                f"{node.op_type} {node.name!r} is not counted; export to plain ONNX operators "
                "(Q/DQ format where quantised)",
            )
        if node.op_type in OPS:
            operands = tuple(_shape_at(node, name, shapes) for name in node.input[:2])
            yield node.name, OPS[node.op_type](operands, _shape_at(node, node.output[0], shapes))


def _shapes(model: onnx.ModelProto, constants: Mapping[str, onnx.TensorProto]) -> dict[str, Shape]:
    """Return every static shape by tensor."""
    graph = model.graph
    shapes = {name: tuple(tensor.dims) for name, tensor in constants.items()}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes[value.name] = tuple(d.dim_value for d in dims)
    return shapes


def _shape_at(node: onnx.NodeProto, name: str, shapes: Mapping[str, Shape]) -> Shape:
    if name not in shapes:
        raise InputError(
            "E-COMPLEXITY-SHAPE",
            f"shape of {name!r} at {node.op_type} {node.name!r} is unknown; export the model "
            "with a fixed batch and input size",
        )
    return shapes[name]


def _new_weights(
    model: onnx.ModelProto, constants: Mapping[str, onnx.TensorProto]
) -> Iterator[list[onnx.TensorProto]]:
    """Yield for each node its weights and biases, without those that a node before it has."""
    producers = {output: node for node in model.graph.node for output in node.output}
    seen: set[str] = set()
    for node in model.graph.node:
        new = []
        for index in _WEIGHTS.get(node.op_type, ()):
            stored = _stored(node.input[index], producers) if index < len(node.input) else ""
            if stored in constants and stored not in seen:
                seen.add(stored)
                new.append(constants[stored])
        yield new


def _inferred(onnx_bytes: bytes) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    malformed = (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError)
    try:
        model = onnx.load_model_from_string(onnx_bytes)
        onnx.checker.check_model(model)
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except malformed as error:
        reason = first_line(error)
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


def _bytes(elements: int, kind: int) -> int:
    """Return what so many elements of an ONNX type take."""
    import onnx

    if kind in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return ceil(elements / 2)
    return elements * int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)


# --- layers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tensors:
    """The tensors of a graph by name."""

    shapes: Mapping[str, Shape]
    kinds: Mapping[str, int]  # ONNX types
    fixed: frozenset[str]  # known before any call
    outputs: frozenset[str]  # of the graph
    producers: Mapping[str, onnx.NodeProto]
    readers: Mapping[str, list[onnx.NodeProto]]


def _tensors_of(model: onnx.ModelProto, constants: Mapping[str, onnx.TensorProto]) -> _Tensors:
    graph = model.graph
    kinds = {name: tensor.data_type for name, tensor in constants.items()}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kinds[value.name] = value.type.tensor_type.elem_type
    fixed = set(constants)
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
        if node.op_type == "Shape" or fixed.issuperset(filter(None, node.input)):
            fixed.update(node.output)
    return _Tensors(
        shapes=_shapes(model, constants),
        kinds=kinds,
        fixed=frozenset(fixed),
        outputs=frozenset(value.name for value in graph.output),
        producers={name: node for node in graph.node for name in node.output},
        readers=readers,
    )


def _is_layer(node: onnx.NodeProto, tensors: _Tensors) -> bool:
    if node.op_type in _STORAGE or node.output[0] in tensors.fixed:
        return False
    before = tensors.producers.get(node.input[0])
    return before is None or _activation_behind(before, tensors) is not node


def _activation_behind(node: onnx.NodeProto, tensors: _Tensors) -> onnx.NodeProto | None:
    """Return the activation function that alone reads a node's output; None where none does."""
    if node.op_type in _STORAGE or node.output[0] in tensors.outputs:
        return None
    readers = tensors.readers.get(node.output[0], [])
    return readers[0] if len(readers) == 1 and readers[0].op_type in _ACTIVATIONS else None


def _layer(
    node: onnx.NodeProto,
    macs: int,
    weights: list[onnx.TensorProto],
    tensors: _Tensors,
    half: bool,
) -> LayerCost:
    import onnx

    def size(name: str, kind: int) -> int:
        return _bytes(prod(_shape_at(node, name, tensors.shapes)), narrowed(kind))

    def narrowed(kind: int) -> int:
        is_float = kind == onnx.TensorProto.FLOAT
        return int(onnx.TensorProto.FLOAT16) if half and is_float else kind

    nodes = [node]
    while (after := _activation_behind(nodes[-1], tensors)) is not None:
        nodes.append(after)
    read = [name for name in dict.fromkeys(node.input) if name and name not in tensors.fixed]
    written = [name for name in nodes[-1].output if name]
    operands = list(node.input[:2]) if node.op_type in OPS else read
    return LayerCost(
        name=_name(node),
        op=node.op_type,
        nodes=tuple(map(_name, nodes)),
        inputs=tuple(_shape_at(node, name, tensors.shapes) for name in read),
        outputs=tuple(_shape_at(node, name, tensors.shapes) for name in written),
        kernel=_kernel(node, tensors),
        precision=_precision(narrowed(_kind_read(name, tensors)) for name in operands),
        macs=macs,
        parameters=sum(prod(tensor.dims) for tensor in weights),
        weights_bytes=sum(
            _bytes(prod(tensor.dims), narrowed(tensor.data_type)) for tensor in weights
        ),
        read_bytes=sum(size(name, _kind_read(name, tensors)) for name in read),
        written_bytes=sum(size(name, _kind_written(name, tensors)) for name in written),
    )


def _name(node: onnx.NodeProto) -> str:
    return str(node.name or node.output[0])


def _kernel(node: onnx.NodeProto, tensors: _Tensors) -> Shape:
    if node.op_type in ("Conv", "ConvTranspose"):
        return _shape_at(node, node.input[1], tensors.shapes)[2:]
    shapes = (each.ints for each in node.attribute if each.name == "kernel_shape")
    return tuple(next(shapes, ()))


def _kind_read(name: str, tensors: _Tensors) -> int:
    """Return the type in which a tensor is stored for a reader: before its DequantizeLinear."""
    producer = tensors.producers.get(name)
    if producer is not None and producer.op_type == "DequantizeLinear":
        return tensors.kinds[producer.input[0]]
    return tensors.kinds[name]


def _kind_written(name: str, tensors: _Tensors) -> int:
    """Return the type in which an output is stored: as its only readers quantise it."""
    readers = tensors.readers.get(name, [])
    if name not in tensors.outputs and {each.op_type for each in readers} == {"QuantizeLinear"}:
        return tensors.kinds[readers[0].output[0]]
    return tensors.kinds[name]


def _precision(kinds: Iterable[int]) -> str:
    """Name the widest of some ONNX types."""
    import onnx

    kind = max(kinds, key=lambda kind: _bytes(2, kind))
    name = str(onnx.TensorProto.DataType.Name(kind)).lower()
    return {"uint8": "int8", "float16": "fp16", "bfloat16": "bf16", "float": "fp32"}.get(name, name)
