"""The ends of an ONNX from elsewhere, made those of our contract: one output, fixed axes, NCHW."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from ..runtime.contract import InputContract
from ..runtime.errors import InputError
from .onnx_file import OTHER_FLOATS, nodes_of, remove_unread, remove_unread_weights, unreadable

_FLOAT = onnx.TensorProto.FLOAT
_TO_NHWC, _TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
_Dims = list[int | None]  # None: not fixed


@dataclass(frozen=True)
class End:
    """An input or output of a file."""

    name: str
    kind: str  # of its values, "float32"
    dims: tuple[int | None, ...]  # None: not fixed

    @property
    def text(self) -> str:
        """Type and shape for people."""
        return (
            f"{self.kind} [{', '.join('?' if each is None else str(each) for each in self.dims)}]"
        )


def ends_of(graph: onnx.GraphProto) -> tuple[tuple[End, ...], tuple[End, ...]]:
    """Return inputs and outputs of a file, without weights that are listed as inputs."""
    stored = {tensor.name for tensor in graph.initializer}
    inputs, outputs = (
        tuple(
            End(each.name, type_name(each.type.tensor_type.elem_type), tuple(_dims_of(each)))
            for each in values
            if each.name not in stored
        )
        for values in (graph.input, graph.output)
    )
    return inputs, outputs


def type_name(kind: int) -> str:
    """Return the name of a type as numpy has it."""
    name = str(onnx.TensorProto.DataType.Name(kind)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def fit_ends(
    model: onnx.ModelProto, file: Path, contract: InputContract, output: str | None
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Make the ends of a model float32 [1, C, H, W] where only their form differs.

    Axes that are not fixed get the contract's sizes, the batch 1. A channel that comes last is
    moved by a transpose at the edge, another float type is cast there, and so are grey levels
    (uint8), which the contract must then leave as they are. What differs otherwise
    stays, to be refused by what it is. A model that fits already is returned as it is.

    Args:
        model: without weights among its inputs; may be changed.
        file: for messages.
        contract: gives the sizes.
        output: name of the one that answers, where there are several; what only others need goes.

    Returns:
        The model, and what was done, for its provenance.

    Raises InputError: E-ONNX-OUTPUT (several outputs and no name, or none of that name),
    E-ONNX-READ (shapes that contradict each other once the axes are fixed).
    """
    done: dict[str, Any] = {}
    graph = model.graph
    if (output is not None or len(graph.output) > 1) and _keep_output(graph, file, output):
        done["output"] = output
    if len(graph.input) != 1 or len(graph.output) != 1:
        return model, done
    source = graph.input[0]
    wanted = {
        "NCHW": [1, contract.depth, contract.height, contract.width],
        "NHWC": [1, contract.height, contract.width, contract.depth],
    }
    found = _dims_of(source)
    layout = next((name for name, dims in wanted.items() if _agrees(found, dims)), None)
    if layout is None:
        return model, done
    if None in found:
        done["fixed_axes"] = wanted[layout]
    if None in (*found, *_dims_of(graph.output[0])):
        model = _with_axes(model, file, wanted[layout])
        graph = model.graph
    taken = {name for node in nodes_of(graph) for name in (*node.input, *node.output)}
    moved = []
    if graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8:
        _require_grey_levels(file, contract)
    if _cast_input(graph, taken) | _cast_output(graph, taken):
        done["cast_ends"] = True
    if layout == "NHWC":
        _transpose_input(graph, taken, wanted["NCHW"])
        moved.append("input")
    answer = _dims_of(graph.output[0])
    inner = [contract.height, contract.width]
    counts = (len(contract.classes), 1 + len(contract.classes))  # a softmax has the background's
    channels_first = any(answer == [1, count, *inner] for count in counts)
    if not channels_first and any(answer == [1, *inner, count] for count in counts):
        _transpose_output(graph, taken)
        moved.append("output")
    if moved:
        done["channels_last"] = moved
    return model, done


def _keep_output(graph: onnx.GraphProto, file: Path, output: str | None) -> bool:
    """Leave one output, by its name, and what it needs; say whether others went."""
    told = ", ".join(f"{end.name} {end.text}" for end in ends_of(graph)[1])
    if output is None:
        raise InputError(
            "E-ONNX-OUTPUT",
            f"{file} has the outputs {told}; name the one that answers with --output",
        )
    kept = [each for each in graph.output if each.name == output]
    if not kept:
        raise InputError(
            "E-ONNX-OUTPUT", f"{file} has no output {output!r}; name one of {told} with --output"
        )
    if len(graph.output) == 1:
        return False
    value = onnx.ValueInfoProto()
    value.CopyFrom(kept[0])
    del graph.output[:]
    graph.output.append(value)
    remove_unread(graph)
    remove_unread_weights(graph)
    return True


def _dims_of(value: onnx.ValueInfoProto) -> _Dims:
    tensor = value.type.tensor_type
    return [each.dim_value if each.HasField("dim_value") else None for each in tensor.shape.dim]


def _agrees(found: _Dims, wanted: Sequence[int]) -> bool:
    """Say whether every axis that is fixed is as wanted."""
    return len(found) == len(wanted) and all(
        own in (None, theirs) for own, theirs in zip(found, wanted, strict=True)
    )


def _with_axes(model: onnx.ModelProto, file: Path, dims: Sequence[int]) -> onnx.ModelProto:
    """Return the model with the input's axes fixed and every shape inferred from them."""
    for axis, size in zip(model.graph.input[0].type.tensor_type.shape.dim, dims, strict=True):
        axis.Clear()
        axis.dim_value = size
    del model.graph.value_info[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception as error:  # the library's errors share no narrower base
        raise unreadable(file, error) from error


def _new_name(taken: set[str], name: str) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _behind_input(graph: onnx.GraphProto, taken: set[str], suffix: str) -> str:
    """Let what reads the input read a new name, which is returned for a node to make."""
    name = graph.input[0].name
    new = _new_name(taken, f"{name}.{suffix}")
    for node in nodes_of(graph):
        for place, each in enumerate(node.input):
            node.input[place] = new if each == name else each
    for value in graph.output:  # a graph that only hands its input on
        value.name = new if value.name == name else value.name
    return new


def _before_output(graph: onnx.GraphProto, taken: set[str], suffix: str) -> str:
    """Let what makes the output make a new name, which is returned for a node to read."""
    name = graph.output[0].name
    new = _new_name(taken, f"{name}.{suffix}")
    for node in nodes_of(graph):
        for names in (node.input, node.output):
            for place, each in enumerate(names):
                names[place] = new if each == name else each
    return new


def _cast_input(graph: onnx.GraphProto, taken: set[str]) -> bool:
    kind = graph.input[0].type.tensor_type.elem_type
    if kind not in (*OTHER_FLOATS, onnx.TensorProto.UINT8):
        return False
    source = graph.input[0].name
    readers = [node for node in nodes_of(graph) if source in node.input]
    if kind == onnx.TensorProto.UINT8 and all(_casts_to_float(node) for node in readers):
        graph.input[0].type.tensor_type.elem_type = _FLOAT  # whole numbers either way
        return True
    made = _behind_input(graph, taken, "cast")
    graph.node.insert(0, helper.make_node("Cast", [source], [made], made, to=kind))
    graph.input[0].type.tensor_type.elem_type = _FLOAT
    return True


def _casts_to_float(node: onnx.NodeProto) -> bool:
    kinds = (_FLOAT, *OTHER_FLOATS)
    return node.op_type == "Cast" and all(each.i in kinds for each in node.attribute)


def _require_grey_levels(file: Path, contract: InputContract) -> None:
    """Raise InputError (E-CONTRACT) unless the input of the network is 0 to 255 exactly."""
    pairs = set(zip(contract.means, contract.stds, strict=True))
    if any(mean != 0 or np.float32(1 / (255 * std)) != 1 for mean, std in pairs):
        raise InputError(
            "E-CONTRACT",
            f"{file} takes grey levels as uint8 and normalises them itself, so the contract has "
            f"to leave them as they are: mean 0 and std {1 / 255!r}",
        )


def _cast_output(graph: onnx.GraphProto, taken: set[str]) -> bool:
    if graph.output[0].type.tensor_type.elem_type not in OTHER_FLOATS:
        return False
    read = _before_output(graph, taken, "cast")
    graph.node.append(helper.make_node("Cast", [read], [graph.output[0].name], read, to=_FLOAT))
    graph.output[0].type.tensor_type.elem_type = _FLOAT
    return True


def _transpose_input(graph: onnx.GraphProto, taken: set[str], dims: Sequence[int]) -> None:
    made = _behind_input(graph, taken, "nhwc")
    node = helper.make_node("Transpose", [graph.input[0].name], [made], made, perm=_TO_NHWC)
    graph.node.insert(0, node)
    for axis, size in zip(graph.input[0].type.tensor_type.shape.dim, dims, strict=True):
        axis.dim_value = size


def _transpose_output(graph: onnx.GraphProto, taken: set[str]) -> None:
    read = _before_output(graph, taken, "nhwc")
    name = graph.output[0].name
    graph.node.append(helper.make_node("Transpose", [read], [name], read, perm=_TO_NCHW))
    dims = [each.dim_value for each in graph.output[0].type.tensor_type.shape.dim]
    for axis, place in zip(graph.output[0].type.tensor_type.shape.dim, _TO_NCHW, strict=True):
        axis.dim_value = dims[place]
