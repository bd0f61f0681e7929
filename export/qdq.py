"""Q/DQ pairs and a TensorRT calibration cache from the same ranges; ONNX in, ONNX out."""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx
import onnx.version_converter
from onnx import helper, numpy_helper

from .graph import (
    activations_of,
    consumers_of,
    convolutions_of,
    data_inputs,
    fused_rectifiers,
    keeps_scale,
    producers_of,
    rectifiers_of,
)
from .ranges import LEVELS

HALF_QDQ_OPSET = 19  # the first in which Q/DQ take FP16


class Grid(NamedTuple):
    """What an activation is rounded to: `step` times a whole number in `least` to `most`."""

    step: float  # > 0
    least: int
    most: int


@dataclass(frozen=True)
class Rounding:
    """All that `qdq_from_onnx` rounds in a graph, for training that takes it into account.

    A tensor that only repeats values of others on the same grid (behind a pooling, a Concat) is
    left out: what is rounded already is not changed by it.
    """

    convolutions: Mapping[str, int]  # bits of the rounded weights, by node
    image: Grid | None  # of the graph's input
    outputs: Mapping[str, Grid]  # of the activations, by the node that writes them


def quantisable_convolutions(model: bytes) -> tuple[str, ...]:
    """Return the names of the convolutions that may run in INT8.

    Those with one output channel (the head and the attention maps) may not: they cost little and
    every mask hangs on them.
    """
    graph = onnx.load_model_from_string(model).graph
    return tuple(name for name, channels in convolutions_of(graph).items() if channels > 1)


def qdq_from_onnx(
    model: bytes,
    amax: Mapping[str, float],
    *,
    unsigned: bool = False,
    weight_bits: int = 8,
    keep_float: Collection[str] = (),
    lean: bool = False,
) -> bytes:
    """Return the graph with Q/DQ pairs around its convolutions.

    What ONNX Runtime, OpenVINO and the parsers of TensorRT 8.5 to 11 all take: one scale a tensor,
    symmetric weights per output channel and stored in INT8, biases left in float. A pair stands
    before every input and after every output (behind its ReLU) of a quantised convolution; all
    inputs of a Concat share its scale, and so do both sides of a pooling, resize or reshape, so
    that these run in INT8 too.

    Args:
        model: ONNX in FP32, or in FP16 (then the pairs take FP16 and the opset becomes 19).
        amax: largest representable |x| of every activation, > 0, by name; see `Ranges.amax`.
        unsigned: activations in UINT8 instead of symmetric INT8, with the zero point 0 where no
            value is negative (twice the steps) and 128 elsewhere. TensorRT takes only symmetric
            ones; ONNX Runtime takes a ReLU into its convolution only if the zero point cuts it.
        weight_bits: 8, or 7 for kernels that sum two products in 16 bits (x86 without VNNI);
            weights of depthwise convolutions have 8 all the same, see `_bits_of_weights`.
        keep_float: names of convolutions that are left alone.
        lean: leave out the pairs that OpenVINO is slower with, see `_lean`. ONNX Runtime runs a
            Concat in INT8 only with its pair, and TensorRT places them by itself.
    """
    loaded = onnx.load_model_from_string(model)
    if _is_half(loaded.graph):
        loaded = onnx.version_converter.convert_version(loaded, HALF_QDQ_OPSET)
    graph = loaded.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    dtype = np.float16 if _is_half(graph) else np.float32
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    candidates = set(quantisable_convolutions(model)) - set(keep_float)
    chosen = [
        node
        for node in graph.node
        # Of an FP16 graph, those that the caster left in FP32 for their range stay so.
        if node.name in candidates and weights[node.input[1]].data_type == kind
    ]
    kept = list(graph.initializer)
    pairs: dict[str, list[onnx.NodeProto]] = {}
    grids = _grids(graph, chosen, amax, dtype, unsigned=unsigned)
    for name, grid in (_lean(graph, chosen, grids) if lean else grids).items():
        zero = np.uint8(-grid.least) if unsigned else np.int8(0)
        kept.append(numpy_helper.from_array(np.asarray(grid.step, dtype), f"{name}.scale"))
        kept.append(numpy_helper.from_array(np.asarray(zero), f"{name}.zero"))
        pairs[name] = _pair(name)
    for node in graph.node:  # every reader: a float copy beside the INT8 one would cost twice
        for index, name in enumerate(node.input):
            if name in pairs:
                node.input[index] = f"{name}.dequantised"
    weight_nodes: list[onnx.NodeProto] = []
    for name, bits in _bits_of_weights(graph, chosen, weight_bits).items():
        kept += _quantised_weight(weights[name], bits, dtype)
        weight_nodes.append(_dequantise_weight(name))
    for node in chosen:
        node.input[1] = f"{node.input[1]}.dequantised"
    read = {name for node in graph.node for name in node.input} | {
        name for node in weight_nodes for name in node.input
    }
    read |= {name for nodes in pairs.values() for node in nodes for name in node.input}
    nodes = [*pairs.pop(graph.input[0].name, []), *weight_nodes]
    for node in graph.node:
        nodes.append(node)
        for name in node.output:
            nodes += pairs.pop(name, [])
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensor for tensor in kept if tensor.name in read)
    onnx.checker.check_model(loaded, full_check=True)
    return bytes(loaded.SerializeToString(deterministic=True))


def rounding_of(
    model: bytes,
    amax: Mapping[str, float],
    *,
    unsigned: bool = False,
    weight_bits: int = 8,
    keep_float: Collection[str] = (),
) -> Rounding:
    """Return what `qdq_from_onnx` rounds for the same arguments; the model is in FP32.

    Of a typed FP16 graph this is the nearest: its steps are cast to FP16 as well.
    """
    graph = onnx.load_model_from_string(model).graph
    candidates = set(quantisable_convolutions(model)) - set(keep_float)
    chosen = [node for node in graph.node if node.name in candidates]
    grids = _grids(graph, chosen, amax, np.float32, unsigned=unsigned)
    outputs = {}
    for node in graph.node:
        grid = grids.get(node.output[0])
        if grid is not None and not _repeats(node, grid, grids):
            outputs[node.name] = grid
    bits = _bits_of_weights(graph, chosen, weight_bits)
    convolutions = {node.name: bits[node.input[1]] for node in chosen}
    return Rounding(convolutions, grids.get(graph.input[0].name), outputs)


def calibration_cache(model: bytes, amax: Mapping[str, float], tensorrt: str) -> str:
    """Return a TensorRT calibration cache with a scale for every activation of the graph.

    Format as NVIDIA's Deep-Learning-Accelerator-SW `qdq-translator` writes it: a line with the
    version, then ``name: <big-endian IEEE 754 of amax / 127 in hexadecimal>``.

    Args:
        model: FP32 ONNX, whose names TensorRT's parser keeps.
        amax: as `qdq_from_onnx`.
        tensorrt: version on the device, such as "8.5.2"; a cache of another is ignored there.
    """
    graph = onnx.load_model_from_string(model).graph
    names = activations_of(graph)
    scales = _scales(graph, names, amax, np.float32)
    major, minor, patch = (int(part) for part in tensorrt.split("."))
    # NV_TENSORRT_VERSION has two digits a part from TensorRT 10 on.
    version = (
        major * 10000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch
    )
    lines = [f"TRT-{version}-EntropyCalibration2"]
    lines += [f"{name}: {struct.pack('>f', scales[name]).hex()}" for name in names]
    return "\n".join(lines) + "\n"


def _is_half(graph: onnx.GraphProto) -> bool:
    """Say whether the weights are in FP16."""
    return any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer)


def _grids(
    graph: onnx.GraphProto,
    chosen: Iterable[onnx.NodeProto],
    amax: Mapping[str, float],
    dtype: type,
    *,
    unsigned: bool,
) -> dict[str, Grid]:
    """Return the grid of every tensor that gets a pair."""
    scales = _scales(graph, _tensors_to_quantise(graph, chosen), amax, dtype)
    positive = _non_negative(graph) if unsigned else frozenset()
    grids = {}
    for name, scale in scales.items():
        step = scale * LEVELS / 255 if name in positive else scale
        bounds = (0, 255) if name in positive else (-128, 127)
        grids[name] = Grid(float(dtype(step)), *bounds)
    return grids


def _repeats(node: onnx.NodeProto, grid: Grid, grids: Mapping[str, Grid]) -> bool:
    """Say whether a node only selects values that are on the same grid already."""
    modes = [each.s for each in node.attribute if each.name == "mode"]
    selects = keeps_scale(node) and (node.op_type != "Resize" or modes in ([], [b"nearest"]))
    return selects and all(grids.get(name) == grid for name in data_inputs(node))


def _lean(
    graph: onnx.GraphProto, chosen: Iterable[onnx.NodeProto], grids: Mapping[str, Grid]
) -> dict[str, Grid]:
    """Return the grids without those behind which nothing needs a pair.

    That is a Concat whose inputs are on its grid, where nothing is rounded any more, but OpenVINO
    quantises its inputs once more and keeps them in float until then; and what no quantised
    convolution and nothing that keeps the scale reads, such as both sides of an Add.
    """
    quantised = {node.name for node in chosen}
    readers, producers = consumers_of(graph), producers_of(graph)

    def is_needed(name: str, grid: Grid) -> bool:
        node = producers.get(name)
        if node is not None and node.op_type == "Concat" and _repeats(node, grid, grids):
            return False
        return any(
            each.name in quantised or (keeps_scale(each) and each.output[0] in grids)
            for each in readers[name]
        )

    return {name: grid for name, grid in grids.items() if is_needed(name, grid)}


def _tensors_to_quantise(
    graph: onnx.GraphProto, chosen: Iterable[onnx.NodeProto]
) -> tuple[str, ...]:
    """Return what feeds or leaves the chosen convolutions, up through what keeps the scale."""
    producers, fused = producers_of(graph), fused_rectifiers(graph)
    outputs = {each.name for each in graph.output}
    constants = {tensor.name for tensor in graph.initializer}
    wanted: list[str] = []
    for node in chosen:
        wanted += [node.input[0], fused.get(node.output[0], node.output[0])]
    for name in wanted:  # grows while it is walked
        producer = producers.get(name)
        if producer is not None and keeps_scale(producer):
            sources = set(data_inputs(producer)) - constants - set(wanted)
            wanted += sorted(sources)
    return tuple(dict.fromkeys(name for name in wanted if name not in outputs))


def _non_negative(graph: onnx.GraphProto) -> frozenset[str]:
    """Return the tensors that cannot be negative, as far as the operators tell."""
    found = set(rectifiers_of(graph))
    for node in graph.node:
        keeps = node.op_type == "Mul" or keeps_scale(node)
        if node.op_type == "Sigmoid" or (keeps and found.issuperset(data_inputs(node))):
            found.update(node.output)
    return frozenset(found)


def _scales(
    graph: onnx.GraphProto, names: Iterable[str], amax: Mapping[str, float], dtype: type
) -> dict[str, float]:
    """Return a scale for each name; tensors that must share one take the largest range."""
    names = tuple(names)
    group = {name: name for name in names}

    def root(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    for node in graph.node:
        if keeps_scale(node) and node.output[0] in group:
            for source in data_inputs(node):
                if source in group:
                    group[root(source)] = root(node.output[0])
    producers, fused, ends = producers_of(graph), fused_rectifiers(graph), rectifiers_of(graph)
    constants = {tensor.name: tensor for tensor in graph.initializer}

    def range_of(name: str) -> float:
        if name in amax:  # the last bin of a histogram may end beyond what a ReLU6 lets through
            return min(amax[name], ends.get(name, math.inf))
        if name in constants:  # as a Concat may have among its inputs
            return float(np.abs(numpy_helper.to_array(constants[name])).max())
        if name in fused:
            return range_of(fused[name])
        source = producers[name]
        if not (keeps_scale(source) or source.op_type == "Cast"):  # a cast of the FP16 converter
            raise ValueError(f"no range of {name}")
        return max(map(range_of, data_inputs(source)))

    largest: dict[str, float] = {}
    for name in names:
        largest[root(name)] = max(largest.get(root(name), 0.0), range_of(name))
    smallest = float(np.finfo(dtype).smallest_subnormal)
    return {name: max(float(dtype(largest[root(name)] / LEVELS)), smallest) for name in names}


def _pair(name: str) -> list[onnx.NodeProto]:
    scale = [f"{name}.scale", f"{name}.zero"]
    quantised = f"{name}.quantised"
    return [
        helper.make_node("QuantizeLinear", [name, *scale], [quantised], f"{name}.quantise"),
        helper.make_node(
            "DequantizeLinear", [quantised, *scale], [f"{name}.dequantised"], f"{name}.dequantise"
        ),
    ]


def _bits_of_weights(
    graph: onnx.GraphProto, chosen: Iterable[onnx.NodeProto], bits: int
) -> dict[str, int]:
    """Return the bits of each weight of the chosen convolutions: 8 if all are depthwise.

    A depthwise kernel has no channels to sum in pairs: those of oneDNN and of ONNX Runtime multiply
    into 32 bits, without VNNI too. With several outputs a channel they take another kernel.
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    found: dict[str, int] = {}
    for node in chosen:
        name = node.input[1]
        outputs, of_group = shapes[name][:2]
        groups = next((each.i for each in node.attribute if each.name == "group"), 1)
        depthwise = of_group == 1 and outputs == groups > 1
        found[name] = min(found.get(name, 8), 8 if depthwise else bits)
    return found


def _quantised_weight(
    tensor: onnx.TensorProto, bits: int, dtype: type
) -> tuple[onnx.TensorProto, onnx.TensorProto, onnx.TensorProto]:
    """Return weight, scales and zero points of a convolution, one scale an output channel."""
    weight = numpy_helper.to_array(tensor).astype(np.float32)
    levels = 2 ** (bits - 1) - 1
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    smallest = np.finfo(dtype).smallest_subnormal
    scale: np.ndarray = np.where(largest > 0, np.maximum(largest / levels, smallest), 1.0)
    scale = scale.astype(dtype)
    steps = weight / scale.astype(np.float32).reshape(-1, *[1] * (weight.ndim - 1))
    name = tensor.name
    return (
        numpy_helper.from_array(
            np.clip(np.round(steps), -levels, levels).astype(np.int8), f"{name}.quantised"
        ),
        numpy_helper.from_array(scale, f"{name}.scale"),
        numpy_helper.from_array(np.zeros(len(weight), np.int8), f"{name}.zero"),
    )


def _dequantise_weight(name: str) -> onnx.NodeProto:
    return helper.make_node(
        "DequantizeLinear",
        [f"{name}.quantised", f"{name}.scale", f"{name}.zero"],
        [f"{name}.dequantised"],
        f"{name}.dequantise",
        axis=0,
    )
