"""Questions about an ONNX graph that several rewrites ask."""

from __future__ import annotations

import math
from collections import defaultdict

import onnx
from onnx import numpy_helper

# These only move or select values, so what goes in and what comes out share one scale.
_KEEPS_SCALE = frozenset({"Concat", "MaxPool", "Resize", "Reshape", "Transpose"})


def keeps_scale(node: onnx.NodeProto) -> bool:
    """Say whether a node only moves, selects or averages values.

    A cubic Resize overshoots, and one that crops makes values of its own outside of its input.
    """
    modes = {each.s for each in node.attribute if each.type == onnx.AttributeProto.STRING}
    return node.op_type in _KEEPS_SCALE and not modes & {b"cubic", b"tf_crop_and_resize"}


def activations_of(graph: onnx.GraphProto) -> tuple[str, ...]:
    """Return the input and every float output of a node, in the order of the nodes."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    known = {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type in floats
    }
    outputs = (name for node in graph.node for name in node.output if name in known)
    return (graph.input[0].name, *outputs)


def measured_of(graph: onnx.GraphProto) -> frozenset[str]:
    """Return the activations whose ranges do not follow from others.

    What `keeps_scale` moves has the range of its sources, and a convolution before a rectifier that
    of the rectifier, with which every engine fuses it.
    """
    producers, fused = producers_of(graph), fused_rectifiers(graph)
    return frozenset(
        name
        for name in activations_of(graph)
        if not (name in producers and keeps_scale(producers[name])) and name not in fused
    )


def rectifiers_of(graph: onnx.GraphProto) -> dict[str, float]:
    """Return the outputs of the nodes that cut below 0, and where each cuts above.

    That is infinity for a ReLU; a ReLU6 is a Clip with constant bounds.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type == "Relu":
            found[node.output[0]] = math.inf
        elif (
            node.op_type == "Clip"
            and len(node.input) == 3
            and constants.keys() >= {*node.input[1:]}
        ):
            low, high = (float(numpy_helper.to_array(constants[end])) for end in node.input[1:])
            if low == 0 < high:
                found[node.output[0]] = high
    return found


def fused_rectifiers(graph: onnx.GraphProto) -> dict[str, str]:
    """Return what each convolution writes that a rectifier alone reads, and what that writes."""
    readers, rectifiers = consumers_of(graph), rectifiers_of(graph)
    return {
        node.output[0]: after[0].output[0]
        for node in graph.node
        if node.op_type == "Conv"
        and len(after := readers.get(node.output[0], [])) == 1
        and after[0].output[0] in rectifiers
    }


def data_inputs(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return the inputs that carry values: all of a Concat or Mul, else the first."""
    return tuple(node.input) if node.op_type in ("Concat", "Mul") else (node.input[0],)


def consumers_of(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Return the nodes that read each tensor."""
    found: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            found[name].append(node)
    return found


def producers_of(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Return the node that writes each tensor."""
    return {name: node for node in graph.node for name in node.output}


def convolutions_of(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the output channels of every convolution with constant weights, by node name."""
    channels = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    return {
        node.name: channels[node.input[1]]
        for node in graph.node
        if node.op_type == "Conv" and node.input[1] in channels
    }
