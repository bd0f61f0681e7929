"""FP16 by casting the graph; ONNX in, ONNX out."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx
import onnx.version_converter

from .qdq import HALF_QDQ_OPSET

# A quarter of FP16's largest: other frames than the calibration's may go further.
_LIMIT = 65504.0 / 4


def half_from_onnx(model: bytes, *, keep: Collection[str] = ()) -> bytes:
    """Return the graph in FP16, its input and output left in FP32.

    Args:
        model: FP32 ONNX.
        keep: names of nodes that stay in FP32, with casts around them.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    half = convert_float_to_float16(
        onnx.load_model_from_string(model), keep_io_types=True, node_block_list=list(keep)
    )
    _join_kept_nodes(half.graph)
    OnnxModel(half).topological_sort()  # the converter appends its casts at the end
    onnx.checker.check_model(half, full_check=True)
    return bytes(half.SerializeToString(deterministic=True))


def half_from_qdq(model: bytes, *, keep: Collection[str] = ()) -> bytes:
    """Return a graph with Q/DQ pairs in FP32 as one whose pairs take FP16, as `half_from_onnx`.

    In the first opset that lets them.
    """
    raised = onnx.version_converter.convert_version(
        onnx.load_model_from_string(model), HALF_QDQ_OPSET
    )
    return half_from_onnx(raised.SerializeToString(), keep=keep)


def _join_kept_nodes(graph: onnx.GraphProto) -> None:
    """Let a node that stays in FP32 read another's FP32 output, not a copy that went through FP16.

    The converter casts behind and before every kept node, so a value beyond FP16 would overflow
    between two of them. Left alone: a cast whose source is not such a copy.
    """
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}

    def target(node: onnx.NodeProto) -> int:
        return int(onnx.helper.get_node_attr_value(node, "to"))

    sources: dict[str, str] = {}
    for name, node in casts.items():
        before = casts.get(node.input[0])
        if before is None or target(node) != onnx.TensorProto.FLOAT:
            continue
        if target(before) == onnx.TensorProto.FLOAT16:
            sources[name] = before.input[0]
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = sources.get(name, name)
    read = {name for node in graph.node for name in node.input}
    read |= {value.name for value in graph.output}
    unread = [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in read]
    for node in unread:
        graph.node.remove(node)


def nodes_beyond_half(model: bytes, largest: Mapping[str, float]) -> tuple[str, ...]:
    """Return the nodes that read or write values which FP16 could not hold with room to spare.

    Args:
        model: FP32 ONNX.
        largest: |x| that was met in each activation, by name.
    """
    graph = onnx.load_model_from_string(model).graph
    return tuple(
        node.name
        for node in graph.node
        if any(largest.get(name, 0.0) > _LIMIT for name in (*node.input, *node.output))
    )
