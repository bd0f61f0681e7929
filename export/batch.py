"""A batch axis of a size that is chosen at run time; ONNX in, ONNX out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..runtime.contract import InputContract
from ..runtime.errors import Refused, first_line
from ..runtime.image import labels_of
from .parity import MAX_FLIPPED, Run

AXIS = "batch"  # name of the symbolic dimension
_MAX_KEY = "edgeseg.max_batch"  # in metadata_props: ONNX itself knows no upper end


def with_dynamic_batch(model: bytes, maximum: int) -> bytes:
    """Return the graph with the first axis of its input and outputs as `AXIS`, 1 to `maximum`.

    Height and width stay as they are: the contract fixes them. Of the nodes that hold a batch of
    1 as a constant,

    - a Reshape that keeps the batch in front copies it from its input (0 instead of 1 or -1),
    - a Resize to sizes asks its input for the batch; one by scales needs nothing, as its first
      scale is 1,
    - an Expand needs nothing: a 1 in its shape broadcasts.

    Left alone is everything else, such as a constant that is joined to the activations along
    another axis. Such a graph is refused here or, if it only mixes the frames, by `require_rows`.

    Args:
        model: ONNX of any precision, static, batch 1.
        maximum: largest batch, at least 2.

    Raises Refused (E-BATCH-ROWS) if the outputs do not get the axis of the input.
    """
    static = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model))
    before = _first_dims(static.graph)
    loaded = onnx.load_model_from_string(model)
    graph = loaded.graph
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = AXIS
    del graph.value_info[:]
    done: set[str] = set()
    while True:  # what lies behind a mended node is known only then
        known = _inferred(loaded)
        first = _first_dims(known.graph)
        node = next(_fixed_nodes(graph, before, first, done), None)
        if node is None:
            break
        done.add(node.output[0])
        if node.op_type == "Reshape":
            _copy_batch(graph, node)
        else:
            _ask_for_batch(graph, node)
    if any(first[value.name] != AXIS for value in graph.output):
        raise _refused("the graph itself holds a batch of 1")
    helper.set_model_props(
        known, {**{each.key: each.value for each in known.metadata_props}, _MAX_KEY: str(maximum)}
    )
    onnx.checker.check_model(known, full_check=True)
    return bytes(known.SerializeToString(deterministic=True))


def require_rows(
    name: str,
    run: Run,
    images: np.ndarray,
    contract: InputContract,
    precision: str,
    maximum: int,
) -> None:
    """Run a full batch and compare each of its frames with the answer to that frame alone.

    Args:
        name: of what runs, as in the parity table.
        run: the exported file in its engine.
        images: float32 [N, C, H, W], N >= 1; they are repeated to fill the batch.
        contract: says what class a pixel is of.
        precision: its tolerance is `MAX_FLIPPED`'s.
        maximum: frames of the full batch.

    Raises Refused (E-BATCH-ROWS): a frame's answer depends on its neighbours, or the engine takes
    no batch.
    """
    alone = np.concatenate([run(image[None]).copy() for image in images])
    places = np.arange(maximum) % len(images)
    try:
        together = run(np.ascontiguousarray(images[places]))
    except Exception as error:  # the engines' errors share no narrower base
        reason = first_line(error)
        raise _refused(f"{name} runs no batch of {maximum} ({reason})") from error
    if together.shape != (maximum, *alone.shape[1:]):
        raise _refused(f"{name} answers a batch of {maximum} with {list(together.shape)}")
    flipped = max(
        float(np.mean(labels_of(ours, contract) != labels_of(theirs, contract)))
        for ours, theirs in zip(together, alone[places], strict=True)
    )
    if not (np.isfinite(together).all() and flipped <= MAX_FLIPPED[precision]):
        raise _refused(
            f"{name} changes {flipped:.2%} of a frame's pixels in a batch of {maximum} "
            f"(allowed are {MAX_FLIPPED[precision]:.2%})"
        )


def _refused(reason: str) -> Refused:
    return Refused("E-BATCH-ROWS", f"no dynamic batch: {reason}; export without --dynamic")


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        reason = " ".join(str(error).split())
        raise _refused(f"the graph itself holds a batch of 1 ({reason})") from error


def _first_dims(graph: onnx.GraphProto) -> dict[str, int | str]:
    """Return the length or name of the first axis of every tensor whose shape is known."""
    values = (*graph.input, *graph.value_info, *graph.output)
    return {
        value.name: dims[0].dim_param or dims[0].dim_value
        for value in values
        if (dims := value.type.tensor_type.shape.dim)
    }


def _fixed_nodes(
    graph: onnx.GraphProto,
    before: Mapping[str, int | str],
    first: Mapping[str, int | str],
    done: set[str],
) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that read the batch, keep it in front, and hold a 1 for it."""
    for node in graph.node:
        output = node.output[0]
        if output in done or first.get(output) == AXIS:
            continue
        if not node.input or first.get(node.input[0]) != AXIS:
            continue
        sized = node.op_type == "Resize" and len(node.input) == 4 and node.input[3]
        if (node.op_type == "Reshape" or sized) and before.get(output) == 1:
            yield node


def _copy_batch(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    shape = _constant(graph, node.input[1]).copy()
    shape[0] = 0
    name = f"{node.output[0]}.shape"
    graph.initializer.append(numpy_helper.from_array(shape, name))
    node.input[1] = name


def _ask_for_batch(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """Put the sizes together from the batch of the node's input and the constant rest."""
    sizes = _constant(graph, node.input[3])
    own = node.output[0]
    names = {part: f"{own}.{part}" for part in ("shape", "first", "batch", "rest", "sizes")}
    graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), names["first"]))
    graph.initializer.append(numpy_helper.from_array(sizes[1:], names["rest"]))
    asking = [
        helper.make_node("Shape", [node.input[0]], [names["shape"]], names["shape"]),
        helper.make_node(
            "Gather", [names["shape"], names["first"]], [names["batch"]], names["batch"]
        ),
        helper.make_node(
            "Concat", [names["batch"], names["rest"]], [names["sizes"]], names["sizes"], axis=0
        ),
    ]
    node.input[3] = names["sizes"]
    nodes = list(graph.node)
    place = next(index for index, each in enumerate(nodes) if own in each.output)
    del graph.node[:]
    graph.node.extend([*nodes[:place], *asking, *nodes[place:]])


def _constant(graph: onnx.GraphProto, name: str) -> np.ndarray:
    """Return a constant's value. Raises Refused (E-BATCH-ROWS) for one that is computed."""
    for tensor in graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    for node in graph.node:
        if name in node.output and node.op_type == "Constant":
            return numpy_helper.to_array(node.attribute[0].t)
    raise _refused(f"the shape {name!r} is computed in the graph")
