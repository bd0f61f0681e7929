"""Networks that come with Q/DQ pairs: held to what targets take, and as they were without them.

What ONNX Runtime's `quantize_static`, NNCF and torch's exporters write: a QuantizeLinear and the
DequantizeLinear behind it round an activation; a DequantizeLinear of stored integers is a weight or
a bias, and so is a pair behind stored floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..runtime.errors import InputError, Refused
from .graph import consumers_of, producers_of
from .onnx_file import remove_unread, remove_unread_weights, set_nodes
from .target import Target

_QUANTISE, _DEQUANTISE = "QuantizeLinear", "DequantizeLinear"
_EIGHT_BITS = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
_BIAS = onnx.TensorProto.INT32
_SYMMETRIC = "quantise it again with symmetric INT8 activations and weights"


@dataclass(frozen=True)
class _Grid:
    """What a node rounds to, or reads."""

    scale: np.ndarray  # float32 [] or [channels]
    zero: np.ndarray  # of the shape of the scale or []
    kind: int  # ONNX type of the integers
    axis: int


def is_quantised(graph: onnx.GraphProto) -> bool:
    """Say whether a graph has Q/DQ pairs."""
    return any(node.op_type in (_QUANTISE, _DEQUANTISE) for node in graph.node)


def has_constant_grids(graph: onnx.GraphProto) -> bool:
    """Say whether every scale and zero point is stored, or would have to be folded first."""
    stored = _stored_in(graph)
    return all(name in stored for node in _pair_nodes(graph) for name in node.input[1:] if name)


def require_pairs(graph: onnx.GraphProto, file: Path) -> None:
    """Hold the pairs of a file to what every engine reads.

    Scales are constant, finite and above 0, one a tensor for what is computed; integers have 8
    bits, of biases 32; both nodes of a pair have one grid, and only DequantizeLinear reads
    integers.

    Raises InputError (E-ONNX-QDQ) with the node that differs.
    """
    stored, readers, producers = _stored_in(graph), consumers_of(graph), producers_of(graph)

    def refuse(node: onnx.NodeProto, why: str) -> InputError:
        return InputError(
            "E-ONNX-QDQ",
            f"{file} has {node.op_type} {node.name or node.output[0]!r} {why}; quantise it again "
            "in Q/DQ form with 8 bits, or name the float network",
        )

    for node in _pair_nodes(graph):
        if any(name not in stored for name in node.input[1:] if name):
            raise refuse(node, "whose scale or zero point is computed")
        if any(each.name == "block_size" and each.i for each in node.attribute):
            raise refuse(node, "with a scale for each block")
        grid, computed = _grid_of(node, stored), node.input[0] not in stored
        if not (np.isfinite(grid.scale).all() and (grid.scale > 0).all()):
            raise refuse(node, "with a scale that is not finite and above 0")
        if node.op_type == _QUANTISE:
            others = [each.op_type for each in readers.get(node.output[0], [])]
            if others and set(others) != {_DEQUANTISE}:
                raise refuse(node, f"whose integers {sorted(set(others) - {_DEQUANTISE})[0]} reads")
        elif computed:
            source = producers.get(node.input[0])
            if source is None or source.op_type != _QUANTISE:
                raise refuse(node, "of integers that no QuantizeLinear makes")
            if not _same(_grid_of(source, stored), grid):
                raise refuse(node, "of another scale, zero point or type than its QuantizeLinear")
            computed = source.input[0] not in stored
        bias = node.op_type == _DEQUANTISE and grid.kind == _BIAS
        if bias and (computed or grid.zero.any()):
            raise refuse(node, "of INT32 that is no bias with the zero point 0")
        if not bias and grid.kind not in _EIGHT_BITS:
            name = onnx.TensorProto.DataType.Name(grid.kind)
            raise refuse(node, f"in {name}, which not every engine computes in")
        if computed and grid.scale.size != 1:
            raise refuse(node, "with a scale for each channel of what is computed")


def require_symmetric(target: Target, model: bytes) -> None:
    """Raise Refused (E-TARGET-QDQ) for the first grid that TensorRT does not take.

    Args:
        target: for the message.
        model: of `require_pairs`.
    """
    graph = onnx.load_model_from_string(model).graph
    stored = _stored_in(graph)
    for node in _pair_nodes(graph):
        grid = _grid_of(node, stored)
        if grid.kind != onnx.TensorProto.INT8 or grid.zero.any():
            raise Refused(
                "E-TARGET-QDQ",
                f"{target.name} takes INT8 with the zero point 0 only, and {node.op_type} "
                f"{node.name!r} is in {onnx.TensorProto.DataType.Name(grid.kind)} with the zero "
                f"point {int(grid.zero.flat[np.abs(grid.zero).argmax()])}; {_SYMMETRIC}, or export "
                "the float network",
            )


def without_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the float network: activations are not rounded, weights have the values of the file.

    Weights behind a pair of stored floats are those floats; stored integers are what they stand
    for. The pairs are those of `require_pairs`.
    """
    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    graph = stripped.graph
    stored, producers = _stored_in(graph), producers_of(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != _DEQUANTISE:
            nodes.append(node)
        elif node.input[0] in stored:
            graph.initializer.append(_dequantised(node, stored))
        else:
            source = producers[node.input[0]].input[0]
            nodes.append(helper.make_node("Identity", [source], node.output, node.name))
    _replace_nodes(graph, nodes)
    return stripped


def with_stored_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the network with weights stored in integers and biases in floats.

    TensorRT's parser takes no INT32 biases, and engines look for stored integers.
    """
    tidy = onnx.ModelProto()
    tidy.CopyFrom(model)
    graph = tidy.graph
    stored = _stored_in(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        weight = stored.get(node.input[0]) if node.input else None
        if weight is None or node.op_type not in (_QUANTISE, _DEQUANTISE):
            nodes.append(node)
        elif node.op_type == _QUANTISE:
            graph.initializer.append(_rounded(node, stored))
        elif weight.data_type == _BIAS:
            graph.initializer.append(_dequantised(node, stored))
        else:
            nodes.append(node)
    _replace_nodes(graph, nodes)
    return tidy


def drop_end_pair(graph: onnx.GraphProto) -> None:
    """Let the output be what its pair rounds, in place: no engine has to round an answer."""
    producers = producers_of(graph)
    end = producers.get(graph.output[0].name)
    while end is not None and end.op_type == "Identity":
        end = producers.get(end.input[0])
    before = producers.get(end.input[0]) if end is not None else None
    if end is None or before is None or (end.op_type, before.op_type) != (_DEQUANTISE, _QUANTISE):
        return
    end.CopyFrom(helper.make_node("Identity", [before.input[0]], end.output, end.name))
    remove_unread(graph)


def _pair_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type in (_QUANTISE, _DEQUANTISE)]


def _stored_in(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            stored[node.output[0]] = node.attribute[0].t
    return stored


def _grid_of(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> _Grid:
    attributes = {each.name: each.i for each in node.attribute}
    scale = numpy_helper.to_array(stored[node.input[1]]).astype(np.float32)
    if len(node.input) > 2 and node.input[2]:
        zero, kind = numpy_helper.to_array(stored[node.input[2]]), stored[node.input[2]].data_type
    else:
        zero = np.zeros((), np.int32)
        kind = attributes.get("output_dtype", 0) or onnx.TensorProto.UINT8
    if node.op_type == _DEQUANTISE and node.input[0] in stored:
        kind = stored[node.input[0]].data_type
    return _Grid(scale, np.asarray(zero), int(kind), int(attributes.get("axis", 1)))


def _same(first: _Grid, second: _Grid) -> bool:
    return (
        first.kind == second.kind
        and np.array_equal(first.scale, second.scale)
        and np.array_equal(first.zero, second.zero)
        and (first.scale.size == 1 or first.axis == second.axis)
    )


def _along(values: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """Shape what belongs to an axis so that it meets it; one value meets all."""
    if values.size == 1:
        return values.reshape(())
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def _dequantised(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> onnx.TensorProto:
    grid = _grid_of(node, stored)
    steps = numpy_helper.to_array(stored[node.input[0]]).astype(np.float32)
    zero, scale = (_along(each, grid.axis, steps.ndim) for each in (grid.zero, grid.scale))
    values = (steps - zero.astype(np.float32)) * scale
    return numpy_helper.from_array(values.astype(np.float32), node.output[0])


def _rounded(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> onnx.TensorProto:
    grid = _grid_of(node, stored)
    dtype = helper.tensor_dtype_to_np_dtype(grid.kind)
    values = numpy_helper.to_array(stored[node.input[0]]).astype(np.float32)
    zero, scale = (_along(each, grid.axis, values.ndim) for each in (grid.zero, grid.scale))
    limits = np.iinfo(dtype)
    steps = np.clip(np.rint(values / scale) + zero, limits.min, limits.max)
    return numpy_helper.from_array(steps.astype(dtype), node.output[0])


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    set_nodes(graph, nodes)
    remove_unread(graph)
    remove_unread_weights(graph)
    del graph.value_info[:]
