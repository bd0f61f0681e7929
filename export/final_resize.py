"""A linear upsampling of the logits as two matrix products; ONNX in, ONNX out.

OpenVINO's CPU plugin takes a quarter of edge-32's time for its last Resize, of one channel to
four times the size, whatever the precision. A product along the rows and one along the columns
answer the same in a fraction of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

_MODES = (b"half_pixel", b"pytorch_half_pixel")  # the same where a side has more than 1 px


class Resized(NamedTuple):
    """A graph, and the products that were put into it."""

    model: bytes
    products: tuple[str, ...] = ()  # names of what they write


def resize_as_products(model: bytes) -> Resized:
    """Return the graph with the Resize that writes its output as two MatMul, if it has one.

    Left alone, so that the bytes stay: a Resize of several channels, that shrinks, is not linear,
    lets corners coincide, or whose factors are not constants that make the output's size.

    Args:
        model: ONNX with static shapes, also with Q/DQ pairs.
    """
    loaded = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model))
    graph = loaded.graph
    logits = graph.output[0]
    (node,) = (each for each in graph.node if logits.name in each.output)
    shapes = {value.name: _shape_of(value) for value in (*graph.value_info, logits)}
    before, after = shapes.get(node.input[0]), shapes[logits.name]
    if before is None or not _is_plain(node, before, after):
        return Resized(model)
    factors = [new / old for old, new in zip(before[2:], after[2:], strict=True)]
    if not np.allclose(_scales_of(graph, node), [1, 1, *factors], rtol=1e-6):
        return Resized(model)
    names = f"{node.name}.rows", f"{node.name}.columns"
    rows, columns = (_weights(*sides) for sides in zip(before[2:], after[2:], strict=True))
    graph.initializer.append(numpy_helper.from_array(rows, names[0]))
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(columns.T), names[1]))
    wide = f"{node.name}.wide"
    products = [
        helper.make_node("MatMul", [node.input[0], names[1]], [wide], f"{node.name}.across"),
        helper.make_node("MatMul", [names[0], wide], [logits.name], node.name),
    ]
    index = list(graph.node).index(node)
    nodes = [*graph.node[:index], *products, *graph.node[index + 1 :]]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(loaded, full_check=True)
    content = bytes(loaded.SerializeToString(deterministic=True))
    return Resized(content, (wide, logits.name))


def _shape_of(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(each.dim_value for each in value.type.tensor_type.shape.dim)


def _scales_of(graph: onnx.GraphProto, node: onnx.NodeProto) -> np.ndarray:
    """Return the factors that a Resize names; NaN for one that names sizes, or is not constant."""
    name = node.input[2] if len(node.input) == 3 else ""
    for tensor in graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    for each in graph.node:
        if each.op_type == "Constant" and name in each.output and name:
            return numpy_helper.to_array(helper.get_node_attr_value(each, "value"))
    return np.full(4, np.nan)


def _is_plain(node: onnx.NodeProto, before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    if node.op_type != "Resize" or len(before) != 4 or before[:2] != (1, 1):
        return False
    told = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    return (
        told.get("mode") == b"linear"
        and told.get("coordinate_transformation_mode", b"half_pixel") in _MODES
        and not told.get("antialias")
        and after[:2] == (1, 1)
        and all(1 < old <= new for old, new in zip(before[2:], after[2:], strict=True))
    )


def _weights(old: int, new: int) -> np.ndarray:
    """Return how much of each of `old` px each of `new` has, float32 [new, old]; half pixels."""
    position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.minimum(position.astype(np.intp), old - 2)
    share = position - low
    weights = np.zeros((new, old), np.float32)
    weights[np.arange(new), low] = 1 - share
    weights[np.arange(new), low + 1] = share
    return weights
