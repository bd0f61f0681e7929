"""Even kernels of convolutions made odd by a row and a column of zeros; ONNX in, ONNX out.

On CPUs with AMX OpenVINO 2026.4 computes some convolutions with an even kernel of 4 or more wrong:
in INT8 (oneDNN's brgconv_avx512_amx_i8: 4×4, 6×6 and 8×8 with 16 to 48 channels) and in bfloat16
(brgconv_avx512_amx_bf16: 4×4 and 8×8 with up to 16), depending on stride and size. The answers are
other numbers altogether, and without AMX all are right, so that no gate there would see it. 2×2 and
odd kernels are right everywhere (`python tests/measure/kernels.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..runtime.errors import InputError
from .graph import producers_of
from .onnx_file import remove_unread, remove_unread_weights, set_nodes

_LEAST = 4  # px a side


def odd_kernels(model: bytes) -> bytes:
    """Return the graph with every even kernel of 4 or more a side one larger, by zeros at its end.

    The answers stay the same: the zeros meet one more row and column of padding. Bytes stay where
    there is no such kernel with constant weights.

    Args:
        model: ONNX with static shapes, also with Q/DQ pairs.

    Raises InputError: E-ONNX-SHAPE, see `_grow_reach`.
    """
    loaded = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model))
    graph = loaded.graph
    values = (*graph.input, *graph.value_info)
    shapes = {each.name: _shape_of(each) for each in values}
    stored = {each.name: each for each in graph.initializer}
    producers = producers_of(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "Conv":
            pair = producers.get(node.input[1])
            dequantised = pair is not None and pair.op_type == "DequantizeLinear"
            weight = stored.get(pair.input[0] if pair and dequantised else node.input[1])
            if weight is not None and any(map(_is_wrong, weight.dims[2:])):
                name = f"{node.name}.odd"
                _grow_reach(node, shapes.get(node.input[0], ())[2:], weight.dims[2:])
                zero = stored[pair.input[2]] if pair and len(pair.input) > 2 else None
                graph.initializer.append(_grown(weight, zero, name))
                if pair is not None:
                    copy = onnx.NodeProto()
                    copy.CopyFrom(pair)
                    copy.name, copy.input[0], copy.output[0] = (
                        f"{name}.pair",
                        name,
                        f"{name}.values",
                    )
                    nodes.append(copy)
                    name = copy.output[0]
                node.input[1] = name
        nodes.append(node)
    if len(nodes) == len(graph.node) and len(stored) == len(graph.initializer):
        return model
    set_nodes(graph, nodes)
    remove_unread(graph)
    remove_unread_weights(graph)
    del graph.value_info[:]
    onnx.checker.check_model(loaded, full_check=True)
    return bytes(loaded.SerializeToString(deterministic=True))


def _shape_of(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(each.dim_value for each in value.type.tensor_type.shape.dim)


def _is_wrong(side: int) -> bool:
    return side >= _LEAST and side % 2 == 0


def _grown(weight: onnx.TensorProto, zero: onnx.TensorProto | None, name: str) -> onnx.TensorProto:
    """Return weights [out, in, h, w] with zeros, in INT8 their zero points, after even sides."""
    values = numpy_helper.to_array(weight)
    width = [(0, 0), (0, 0), *((0, int(_is_wrong(side))) for side in values.shape[2:])]
    grown = np.pad(values, width)
    if zero is not None:
        point = numpy_helper.to_array(zero)
        added = np.pad(np.zeros(values.shape, np.bool_), width, constant_values=True)
        each = point.reshape(-1, *[1] * (values.ndim - 1))
        grown = np.where(added, each, grown).astype(values.dtype)
    return numpy_helper.from_array(grown, name)


def _grow_reach(node: onnx.NodeProto, size: Sequence[int], kernel: Sequence[int]) -> None:
    """Let a convolution take the kernel that `_grown` makes of its own, on the same places.

    Raises InputError: E-ONNX-SHAPE, where its padding hangs on a size that the graph does not tell.
    """
    given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    axes = len(kernel)
    dilations = given.get("dilations", [1] * axes)
    strides = given.get("strides", [1] * axes)
    pads = list(given.get("pads", [0] * 2 * axes))
    how = given.get("auto_pad", b"NOTSET")
    same = how in (b"SAME_UPPER", b"SAME_LOWER")
    if same and not (size and all(size)):
        raise InputError(
            "E-ONNX-SHAPE",
            f"{node.name} is padded to the size of its input, which the graph does not tell; "
            "export it with fixed sizes",
        )
    for axis, (side, dilation, stride) in enumerate(zip(kernel, dilations, strides, strict=True)):
        if same:
            reach = (-(-size[axis] // stride) - 1) * stride + dilation * (side - 1) + 1
            total = max(reach - size[axis], 0)
            less = total // 2
            begin = less if how == b"SAME_UPPER" else total - less
            pads[axis], pads[axes + axis] = begin, total - begin
        pads[axes + axis] += dilation * _is_wrong(side)
    kept = [
        each for each in node.attribute if each.name not in ("auto_pad", "pads", "kernel_shape")
    ]
    del node.attribute[:]
    node.attribute.extend(kept)
    grown = [side + _is_wrong(side) for side in kernel]
    node.attribute.append(helper.make_attribute("kernel_shape", grown))
    node.attribute.append(helper.make_attribute("pads", pads))
