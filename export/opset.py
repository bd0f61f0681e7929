"""ONNX of another opset brought to one that a target reads.

What lies between ours and the highest that the target's parsers take stays as it is. All else
becomes ours. Upwards the `onnx` package converts. Its way down fails for what torch writes today,
so it is ours: an operator that opset 17 lacks becomes what the standard defines it by, one whose
definition changed is rewritten, one that only got further types stays, and any other is refused.
Every export compares the network with the file as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from onnx import defs, helper, numpy_helper

from ..runtime.errors import InputError, first_line
from .target import OPSET

_LEAST, _MOST = 7, 24  # what ONNX Runtime takes, and what the rewrites below were compared with
_RESIZE_MODES = 11  # the opset from which a Resize says how it places pixels
_HAS_DEFINITION = ("has_function", "has_context_dependent_function")  # of a schema
_ALWAYS_DEFINED = frozenset(("Attention",))  # its products cannot be followed as one operator


def opset_of(model: onnx.ModelProto) -> int:
    """Return the opset of the standard operators."""
    versions = (each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    return max(versions, default=0)


def require_opset(model: onnx.ModelProto, file: Path) -> None:
    """Raise InputError (E-ONNX-OPSET) for an opset that is not converted."""
    if not _LEAST <= opset_of(model) <= _MOST:
        raise InputError(
            "E-ONNX-OPSET",
            f"{file} has opset {opset_of(model)}; edgeseg takes {_LEAST} to {_MOST}, so export it "
            f"with one of these (torch: opset_version={OPSET})",
        )


def at_our_opset(model: onnx.ModelProto, file: Path, highest: int = OPSET) -> onnx.ModelProto:
    """Return a model in an opset from 17 to `highest` that answers as before.

    Args:
        model: constants folded, every shape static and inferred, see `as_defined`.
        file: for messages.
        highest: opset that the target takes whole, see `Target.opset`; one above becomes 17.

    Raises InputError (E-ONNX-OPSET): what opset 17 cannot say.
    """
    opset = opset_of(model)
    kept = _kept(opset, highest)
    if opset < OPSET:
        try:
            model = _with_modes(onnx.version_converter.convert_version(model, OPSET), opset)
        except Exception as error:  # the converter's errors share no narrower base
            reason = first_line(error)
            raise InputError(
                "E-ONNX-OPSET",
                f"edgeseg cannot convert {file} from opset {opset} to {OPSET}, which all its "
                f"targets read ({reason}); export it with opset {OPSET}",
            ) from error
    elif opset > kept:
        model = _lowered(model, file)
    imported = helper.make_opsetid("", kept)
    # A runtime on a device refuses a newer one.
    model.ir_version = helper.find_min_ir_version_for([imported])
    del model.opset_import[:]
    model.opset_import.append(imported)
    return model


def _with_modes(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Say what a Resize before opset 11 and an Upsample are; the converter leaves it out."""
    for node in model.graph.node:
        if opset < _RESIZE_MODES and node.op_type == "Resize":
            said = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            for attribute in [each for each in node.attribute if each.name in said]:
                node.attribute.remove(attribute)
            node.attribute.extend(helper.make_attribute(*each) for each in said.items())
    return model


# --- down ----------------------------------------------------------------------------------------


class _CannotSayError(Exception):
    """Opset 17 has no words for a node; the text says for what of it."""


class _Graph:
    """A graph that is rewritten node by node, with the constants and shapes that this needs."""

    def __init__(self, graph: onnx.GraphProto, opset: int) -> None:
        self._graph = graph
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self.opset = opset
        for node in graph.node:
            if node.op_type == "Constant" and (tensor := _tensor_of(node)) is not None:
                self._constants[node.output[0]] = tensor
        self._shapes = {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in (*graph.input, *graph.value_info, *graph.output)
        }
        self._added = 0

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a static shape."""
        if not all(self._shapes.get(name, (0,))):
            raise _CannotSayError(f"the shape of {name!r} is not known")
        return self._shapes[name]

    def constant(self, node: onnx.NodeProto, index: int) -> np.ndarray | None:
        """Return a constant input; None where the node has none there."""
        if index >= len(node.input) or not node.input[index]:
            return None
        if node.input[index] not in self._constants:
            raise _CannotSayError(f"its input {node.input[index]!r} is not constant")
        return numpy_helper.to_array(self._constants[node.input[index]])

    def store(self, array: np.ndarray) -> str:
        """Add a constant and return its name."""
        while f"edgeseg.opset.{self._added}" in self._constants:
            self._added += 1
        tensor = numpy_helper.from_array(array, f"edgeseg.opset.{self._added}")
        self._graph.initializer.append(tensor)
        self._constants[tensor.name] = tensor
        return str(tensor.name)


def _kept(opset: int, highest: int) -> int:
    return opset if OPSET < opset <= highest else OPSET


def as_defined(model: onnx.ModelProto, file: Path, highest: int = OPSET) -> onnx.ModelProto:
    """Put the standard's definition in the place of each operator that the new opset lacks.

    Those of which it is known how they are better written stay. What comes back is to be folded
    again, but where it is the same object.

    Args:
        model: as of `at_our_opset`, before it.
        file: for messages.
        highest: see there.

    Raises InputError (E-ONNX-OPSET) for an operator that is not defined by others.
    """
    opset = opset_of(model)
    kept = _kept(opset, highest)
    if opset < OPSET:
        return model
    wanted = {}
    for node in model.graph.node:
        lacking = node.op_type not in _LOWER and _definition(node.op_type, kept) is None
        if lacking or node.op_type in _ALWAYS_DEFINED:
            wanted[node.op_type] = node
    for name, node in wanted.items():
        found = _definition(name, opset)
        if found is None or not any(getattr(found, each) for each in _HAS_DEFINITION):
            raise InputError(
                "E-ONNX-OPSET",
                f"{file} has {name} {node.name or node.output[0]!r}, which opset {kept}, as this "
                "target reads it, does not have; export the network without it",
            )
    if not wanted:
        return model
    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    known = {value.name for value in (*typed.graph.value_info, *typed.graph.input)}
    typed.graph.value_info.extend(  # the inliner asks for the types of weights too
        helper.make_tensor_value_info(each.name, each.data_type, list(each.dims))
        for each in typed.graph.initializer
        if each.name not in known
    )
    inlined = onnx.inliner.inline_selected_functions(
        typed, [("", name) for name in wanted], inline_schema_functions=True
    )
    return onnx.shape_inference.infer_shapes(inlined, strict_mode=True, data_prop=True)


def _definition(operator: str, opset: int) -> defs.OpSchema | None:
    """Return what an opset says of an operator; None where it does not have it."""
    try:
        return defs.get_schema(operator, opset, "")
    except defs.SchemaError:
        return None


def _form(schema: defs.OpSchema) -> tuple[Any, ...]:
    """Return all that a schema says of nodes but for names of inputs and the types they take."""
    attributes = {
        name: (str(each.type), each.required, each.default_value.SerializeToString())
        for name, each in schema.attributes.items()
    }
    options = [[str(each.option) for each in ends] for ends in (schema.inputs, schema.outputs)]
    return attributes, options, schema.min_input, schema.max_input


def _lowered(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    graph = _Graph(lowered.graph, opset_of(model))
    nodes: list[onnx.NodeProto] = []
    for node in lowered.graph.node:
        lower = _LOWER.get(node.op_type, _lower_unchanged)
        try:
            nodes += lower(node, graph)
        except _CannotSayError as error:
            raise InputError(
                "E-ONNX-OPSET",
                f"{file} has {node.op_type} {node.name or node.output[0]!r}, which opset {OPSET}, "
                f"as this target reads it, cannot say: {error}; export the network without it",
            ) from error
    del lowered.graph.node[:]
    lowered.graph.node.extend(nodes)
    return lowered


def _tensor_of(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return the value of a Constant; None for one of text."""
    (attribute,) = node.attribute
    if attribute.name == "value":
        tensor: onnx.TensorProto = attribute.t
        return tensor
    value = helper.get_attribute_value(attribute)
    if attribute.name in ("value_int", "value_ints"):
        return numpy_helper.from_array(np.array(value, np.int64))
    if attribute.name in ("value_float", "value_floats"):
        return numpy_helper.from_array(np.array(value, np.float32))
    return None


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def _drop(node: onnx.NodeProto, name: str, harmless: Callable[[Any], bool]) -> None:
    """Remove an attribute that opset 17 lacks. Raises _CannotSayError unless it says nothing."""
    for attribute in [each for each in node.attribute if each.name == name]:
        value = helper.get_attribute_value(attribute)
        if not harmless(value):
            raise _CannotSayError(f"{name} {value}")
        node.attribute.remove(attribute)


def _lower_unchanged(node: onnx.NodeProto, graph: _Graph) -> list[onnx.NodeProto]:
    """What only takes further types since 17 is as it was."""
    ours, theirs = (_definition(node.op_type, opset) for opset in (OPSET, graph.opset))
    if ours is None or theirs is None or _form(ours) != _form(theirs):
        raise _CannotSayError("it has changed since, and edgeseg does not know how")
    return [node]


def _lower_cast(node: onnx.NodeProto, _: _Graph) -> list[onnx.NodeProto]:
    """`saturate` (19) is of FP8 only, which is no type here; `round_mode` (24) likewise."""
    _drop(node, "saturate", lambda _: True)
    _drop(node, "round_mode", lambda _: True)
    return [node]


def _lower_pool(node: onnx.NodeProto, _: _Graph) -> list[onnx.NodeProto]:
    """`dilations` came with 19, of LpPool with 18 together with `ceil_mode`."""
    _drop(node, "dilations", lambda value: set(value) <= {1})
    if node.op_type == "LpPool":
        _drop(node, "ceil_mode", lambda value: value == 0)
    return [node]


def _lower_quantise(node: onnx.NodeProto, _: _Graph) -> list[onnx.NodeProto]:
    """`saturate` (19) is of FP8 only; blocks, types and precisions of their own came with 21."""
    _drop(node, "saturate", lambda _: True)
    _drop(node, "block_size", lambda value: value == 0)
    _drop(node, "precision", lambda value: value in (0, onnx.TensorProto.FLOAT))
    # It repeats the type of the zero point, or says FP32 of what is dequantised.
    taken = {0, onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8, onnx.TensorProto.INT8}
    if node.op_type == "QuantizeLinear" and len(node.input) < 3:  # where there is none
        taken = {0, onnx.TensorProto.UINT8}
    _drop(node, "output_dtype", lambda value: value in taken)
    return [node]


def _lower_split(node: onnx.NodeProto, graph: _Graph) -> list[onnx.NodeProto]:
    """`num_outputs` (18) becomes sizes, the last one smaller where it does not divide."""
    count = _attributes(node).get("num_outputs")
    if count is None:
        return [node]
    axis = int(_attributes(node).get("axis", 0))
    total, parts = graph.shape(node.input[0])[axis], len(node.output)
    size = -(-total // parts)
    sizes = np.array([size] * (parts - 1) + [total - size * (parts - 1)], np.int64)
    _drop(node, "num_outputs", lambda _: True)
    del node.input[1:]
    node.input.append(graph.store(sizes))
    return [node]


def _lower_reduce(node: onnx.NodeProto, graph: _Graph) -> list[onnx.NodeProto]:
    """The axes were an attribute before 18."""
    axes = graph.constant(node, 1)
    keeps_all = bool(_attributes(node).get("noop_with_empty_axes", 0))
    _drop(node, "noop_with_empty_axes", lambda _: True)
    del node.input[1:]
    if axes is not None and axes.size:
        node.attribute.append(helper.make_attribute("axes", [int(axis) for axis in axes]))
    elif keeps_all:
        return [helper.make_node("Identity", node.input, node.output, node.name)]
    return [node]


def _lower_pad(node: onnx.NodeProto, graph: _Graph) -> list[onnx.NodeProto]:
    """`axes` came with 18, the mode `wrap` with 19."""
    if _attributes(node).get("mode", b"constant") == b"wrap":
        raise _CannotSayError("mode wrap")
    axes = graph.constant(node, 3)
    if axes is None:
        del node.input[3:]
        return [node]
    pads = graph.constant(node, 1)
    if pads is None:
        raise _CannotSayError("it has no pads")
    rank = len(graph.shape(node.input[0]))
    whole = np.zeros((2, rank), np.int64)
    whole[:, [int(axis) % rank for axis in axes]] = pads.reshape(2, -1)
    del node.input[3:]
    node.input[1] = graph.store(whole.reshape(-1))
    return [node]


def _lower_resize(node: onnx.NodeProto, graph: _Graph) -> list[onnx.NodeProto]:
    """`axes`, `antialias` and `keep_aspect_ratio_policy` came with 18, a mode with 19."""
    given = _attributes(node)
    _drop(node, "keep_aspect_ratio_policy", lambda value: value == b"stretch")
    mode = given.get("coordinate_transformation_mode", b"half_pixel")
    if mode in (b"half_pixel_symmetric", b"tf_crop_and_resize"):
        raise _CannotSayError(f"coordinate_transformation_mode {mode.decode()}")
    before = graph.shape(node.input[0])
    sizes, scales = graph.constant(node, 3), graph.constant(node, 2)
    axes = [int(axis) % len(before) for axis in given.get("axes", range(len(before)))]
    _drop(node, "axes", lambda _: True)
    if sizes is not None and sizes.size:
        whole = np.array(before, np.int64)
        whole[axes] = sizes
        del node.input[1:]
        node.input.extend(["", "", graph.store(whole)])
    elif scales is not None:
        factors = np.ones(len(before), np.float32)
        factors[axes] = scales
        del node.input[1:]
        node.input.extend(["", graph.store(factors)])
    smooth = bool(given.get("antialias", 0))
    _drop(node, "antialias", lambda _: True)
    after = graph.shape(node.output[0])
    shrinks = any(new < old for new, old in zip(after, before, strict=True))
    return _smoothed(node, graph, before, after) if smooth and shrinks else [node]


def _smoothed(
    node: onnx.NodeProto, graph: _Graph, before: Sequence[int], after: Sequence[int]
) -> list[onnx.NodeProto]:
    """Write a linear Resize with antialias as a depthwise Conv with a stride.

    Where its triangle hangs over the border, the border pixel is repeated, or, with
    `exclude_outside`, what is left of it counts as the whole, which a factor puts right.
    """
    given = _attributes(node)
    half_pixel = given.get("coordinate_transformation_mode", b"half_pixel") == b"half_pixel"
    whole = all(old % new == 0 for old, new in zip(before, after, strict=True))
    if given.get("mode") != b"linear" or not half_pixel or not whole or len(before) != 4:
        raise _CannotSayError("antialias, but for a linear one by a whole factor")
    if tuple(before[:2]) != tuple(after[:2]):
        raise _CannotSayError("antialias over channels")
    steps = [old // new for old, new in zip(before[2:], after[2:], strict=True)]
    taps = [_triangle(step) for step in steps]
    pads = [(len(each) - step) // 2 for each, step in zip(taps, steps, strict=True)]
    kernel = np.outer(*taps).astype(np.float32)
    weights = np.ascontiguousarray(np.broadcast_to(kernel, (before[1], 1, *kernel.shape)))
    name = node.name or node.output[0]
    excludes = bool(given.get("exclude_outside", 0))
    source, smooth = node.input[0], node.output[0]
    nodes = []
    if excludes:
        smooth = f"{node.output[0]}.smooth"
    else:
        source = f"{node.output[0]}.padded"
        whole_pads = graph.store(np.array([0, 0, *pads, 0, 0, *pads], np.int64))
        nodes.append(
            helper.make_node(
                "Pad", [node.input[0], whole_pads], [source], f"{name}.pad", mode="edge"
            )
        )
    nodes.append(
        helper.make_node(
            "Conv",
            [source, graph.store(weights)],
            [smooth],
            f"{name}.smooth",
            group=before[1],
            strides=steps,
            pads=[*pads, *pads] if excludes else [0, 0, 0, 0],
            kernel_shape=list(kernel.shape),
        )
    )
    if excludes:
        inside = [
            np.array([_inside(place, step, each, old) for place in range(new)])
            for step, each, old, new in zip(steps, taps, before[2:], after[2:], strict=True)
        ]
        factors = (1 / np.outer(*inside)[None, None]).astype(np.float32)
        nodes.append(
            helper.make_node("Mul", [smooth, graph.store(factors)], node.output, node.name)
        )
    return nodes


def _triangle(step: int) -> np.ndarray:
    """Return the weights of the pixels that one pixel of a reduction by `step` is made from."""
    count = 2 * step - step % 2  # all that are nearer than a step to the middle
    distance = np.abs(np.arange(count) - (count - 1) / 2)
    weights = 1 - distance / step
    return np.asarray(weights / weights.sum())


def _inside(place: int, step: int, taps: np.ndarray, size: int) -> float:
    """Return the part of a pixel's weights that lies inside the image."""
    first = place * step - (len(taps) - step) // 2
    return float(sum(tap for at, tap in enumerate(taps, first) if 0 <= at < size))


def _lower_gelu(node: onnx.NodeProto, graph: _Graph) -> list[onnx.NodeProto]:
    """Came with 20: x / 2 times 1 + erf(x / √2), or 1 + tanh(√(2 / π) (x + 0.044715 x³))."""
    name, source = node.name or node.output[0], node.input[0]
    nodes: list[onnx.NodeProto] = []

    def then(operator: str, *operands: str | float) -> str:
        names = [
            graph.store(np.array(each, np.float32)) if isinstance(each, float) else each
            for each in operands
        ]
        made = f"{node.output[0]}.gelu.{len(nodes)}"
        nodes.append(helper.make_node(operator, names, [made], f"{name}.gelu.{len(nodes)}"))
        return made

    if _attributes(node).get("approximate", b"none") == b"tanh":
        cube = then("Mul", then("Mul", source, source), source)
        inner = then("Add", source, then("Mul", cube, 0.044715))
        bent = then("Tanh", then("Mul", inner, math.sqrt(2 / math.pi)))
    else:
        bent = then("Erf", then("Mul", source, math.sqrt(0.5)))
    then("Mul", then("Mul", source, 0.5), then("Add", bent, 1.0))
    nodes[-1].output[0] = node.output[0]
    return nodes


_REDUCES = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
)
# To take another operator that opset 18 or later changed: a function above and a line here.
_LOWER: Mapping[str, Callable[[onnx.NodeProto, _Graph], list[onnx.NodeProto]]] = MappingProxyType(
    {
        "AveragePool": _lower_pool,
        "Cast": _lower_cast,
        "CastLike": _lower_cast,
        "DequantizeLinear": _lower_quantise,
        "Gelu": _lower_gelu,
        "LpPool": _lower_pool,
        "Pad": _lower_pad,
        "QuantizeLinear": _lower_quantise,
        **dict.fromkeys(_REDUCES, _lower_reduce),
        "Resize": _lower_resize,
        "Split": _lower_split,
    }
)
