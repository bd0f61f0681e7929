"""Whether an ONNX network's output is a logit, and how a probability becomes one again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..runtime.contract import InputContract
from ..runtime.errors import InputError
from .graph import producers_of
from .onnx_file import set_nodes

_SQUASHING = ("Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax", "Hardmax")
# What only moves or selects values of its first input commutes with a function of one value that
# rises, so it may stay behind a sigmoid that is cut off.
_MOVES = frozenset(
    (
        "Cast",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "MaxPool",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    )
)
_ARITHMETIC = frozenset(("Add", "Div", "Mul", "Sub"))
# What does not, yet leaves a probability a function of that probability alone: all that has no
# weights. What has them is another layer of the network.
_BENDS = _ARITHMETIC | frozenset(
    (
        "Abs",
        "Acos",
        "Acosh",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "AveragePool",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Cosh",
        "CumSum",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "GlobalAveragePool",
        "GlobalLpPool",
        "GlobalMaxPool",
        "HardSwish",
        "LRN",
        "LeakyRelu",
        "Log",
        "LpNormalization",
        "LpPool",
        "Max",
        "Mean",
        "MeanVarianceNormalization",
        "Min",
        "Mish",
        "Mod",
        "Neg",
        "PRelu",
        "Pad",
        "Pow",
        "Reciprocal",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
        "Relu",
        "Resize",
        "Round",
        "Selu",
        "Shrink",
        "Sign",
        "Sin",
        "Sinh",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Sum",
        "Swish",
        "Tan",
        "Tanh",
        "ThresholdedRelu",
        "TopK",
        "Trilu",
    )
)
_UNBOUNDED = frozenset(
    ("BatchNormalization", "Conv", "ConvTranspose", "InstanceNormalization", "LayerNormalization")
)
# Largest logit that FP32 can tell in a probability: the next above 0.5 ** 24 from 1 is 1.
_LARGEST_LOGIT = math.log(2.0**24 - 1)


def cut_probability(graph: onnx.GraphProto, file: Path, contract: InputContract) -> str | None:
    """Make logits of an output that is a sigmoid, or a softmax over the channels; in place.

    A sigmoid goes; a softmax over two channels becomes each channel's difference to the other, and
    of an output with both channels the second stays, as the lesion's. A softmax over background
    and several classes goes, where the contract says that it is one; `subtract_background` does
    the rest. Nodes behind it that only move or select values stay, also where its parts are moved
    apart and joined again. Left alone: a graph that ends in neither, or in one of them with
    something else.

    Args:
        graph: opset 17 to 24, constants folded, every shape static and inferred.
        file: for messages.
        contract: of the network.

    Returns:
        The operator that was cut off; None if none was.

    Raises InputError (E-ONNX-SHAPE): another function of the probability comes behind it, it is
    made of another probability alone, a softmax has another number of channels, or a function that
    cannot be undone ends the graph.
    """
    producers, constants = producers_of(graph), _constants_of(graph)
    ends, passed = _squashed_ends(graph.output[0].name, producers, constants)
    if not ends:
        return None
    where = f"{file} ends in {ends[0].op_type} {ends[0].name or ends[0].output[0]!r}"
    bent = next((each for each in passed if not _only_moves_or_joins(each, constants)), None)
    if bent is not None:
        raise InputError(
            "E-ONNX-SHAPE",
            f"{where} with {bent.op_type} {bent.name or bent.output[0]!r} behind it, so its output "
            "is no logit; export it without these",
        )
    behind = [each.output[0] for each in passed]
    for node in ends:
        if any(
            node.output[0] in each.input and each.output[0] not in behind for each in graph.node
        ):
            raise InputError(
                "E-ONNX-SHAPE",
                f"{where}, which the network reads too, so it cannot be cut off; export the logits",
            )
        several = len(contract.classes) > 1 and contract.head == "softmax"
        if node.op_type == "Softmax" and several:
            _require_channels(graph, node, contract, where)
        if node.op_type == "Sigmoid" or (node.op_type == "Softmax" and several):
            same = helper.make_node("Identity", node.input, node.output, node.name)
            _replace(graph, node, [same])
        elif node.op_type == "Softmax":
            _replace(graph, node, _difference(graph, node, where))
        else:
            raise InputError(
                "E-ONNX-SHAPE", f"{where}, so its output is no logit; export it without"
            )
    if len(contract.classes) == 1:
        _keep_second_channel(graph)
    # The sizes of the Splits made above are constants too.
    inner, _ = _squashed_ends(graph.output[0].name, producers_of(graph), _constants_of(graph))
    if inner:
        raise InputError(
            "E-ONNX-SHAPE",
            f"{where}, and what that is of is made of {inner[0].op_type} "
            f"{inner[0].name or inner[0].output[0]!r} alone, a probability too and no logit; "
            "export it with one of them",
        )
    return " and ".join(sorted({str(node.op_type) for node in ends}))


def _squashed_ends(
    output: str, producers: Mapping[str, onnx.NodeProto], constants: Mapping[str, np.ndarray]
) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """Return the nodes that make probabilities of which alone the output is made, and those behind.

    Both are empty where the output is also, or only, made of something else.
    """
    ends: dict[str, onnx.NodeProto] = {}
    passed: dict[str, onnx.NodeProto] = {}
    waiting = [output]
    while waiting:
        node = producers.get(waiting.pop())
        if node is None:
            return [], []
        if node.op_type in _SQUASHING:
            ends[node.output[0]] = node
            continue
        sources = [name for name in node.input if name and name not in constants]
        if not sources or node.op_type not in _MOVES | _BENDS | {"Concat"}:
            return [], []
        if node.output[0] not in passed:
            passed[node.output[0]] = node
            waiting.extend(sources)
    return list(ends.values()), list(passed.values())


def subtract_background(graph: onnx.GraphProto, contract: InputContract) -> bool:
    """Let a softmax's logits [1, 1 + K, H, W] be the classes' differences to the background's.

    In place. The background is the first channel. An output of another number of channels is left
    alone. Returns whether anything was done.
    """
    name, count = graph.output[0].name, len(contract.classes)
    shape = _shape_of(graph, name)
    if contract.head != "softmax" or len(shape) != 4 or shape[1] != 1 + count:
        return False
    for node in graph.node:
        for place, output in enumerate(node.output):
            node.output[place] = f"{name}.all" if output == name else output
    parts = (f"{name}.background", f"{name}.classes")
    split = _split(graph, f"{name}.all", parts, f"{name}.split", 1, (1, count))
    graph.node.extend([split, helper.make_node("Sub", parts[::-1], [name], f"{name}.difference")])
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = count
    return True


def logits_of(answer: np.ndarray, contract: InputContract, *, probability: bool) -> np.ndarray:
    """Return float32 logits [1, K, H, W] as the contract means them.

    Args:
        answer: what a file answers, [1, C, H, W]: K channels, or the background's before them.
        contract: of the network.
        probability: the answer is one; what FP32 rounds to 0 or 1 becomes the largest logit that
            it can tell.
    """
    count = len(contract.classes)
    with_background = answer.shape[1] == 1 + count
    if not probability:
        found = answer[:, 1:] - answer[:, :1] if with_background else answer
        return np.asarray(found, np.float32)
    share = answer[:, -count:].astype(np.float64)
    with np.errstate(divide="ignore"):
        rest = np.log1p(-share)
        if count > 1 and with_background:
            rest = np.log(answer[:, :1].astype(np.float64))
        with np.errstate(invalid="ignore"):  # of two that are rounded to 0 neither is larger
            logits = np.nan_to_num(np.log(share) - rest, nan=0.0, posinf=np.inf, neginf=-np.inf)
    return np.asarray(np.clip(logits, -_LARGEST_LOGIT, _LARGEST_LOGIT), np.float32)


def require_logits(graph: onnx.GraphProto, level: float, file: Path) -> None:
    """Raise InputError (E-ONNX-SHAPE) for an output that cannot be a logit, whatever the frame.

    Bounds follow from the operators, see `_BOUNDS`: a probability made by other ones than Sigmoid
    is between 0 and 1, and what is never on both sides of the threshold answers nothing.

    Args:
        graph: opset 17 to 24, constants folded.
        level: `InputContract.logit_threshold`.
        file: for messages.
    """
    low, high = _bounds(graph)
    fits = low <= level < high and (low < 0 or high == math.inf)
    if fits or low == high:  # a constant is refused as one
        return
    last = producers_of(graph)[graph.output[0].name]
    raise InputError(
        "E-ONNX-SHAPE",
        f"{file} ends in {last.op_type} {last.name or last.output[0]!r} with answers in "
        f"{low:.4g} to {high:.4g} for any frame, which are no logits around {level:.4g}; export "
        "what comes before the probability",
    )


def ends_unbounded(graph: onnx.GraphProto) -> bool:
    """Say whether the output is that of a convolution or norm, moved, shifted or scaled at most.

    Such an output can be any number, so that few answers tell nothing against it.
    """
    producers, constants = producers_of(graph), _constants_of(graph)
    waiting = [graph.output[0].name]
    while waiting:
        node = producers.get(waiting.pop())
        if node is None:
            continue
        if node.op_type in _UNBOUNDED:
            return True
        if _only_moves(node) or node.op_type == "Resize":
            waiting.append(node.input[0])
        elif node.op_type in ("Add", "Sub", "Concat"):
            waiting.extend(name for name in node.input if name not in constants)
        elif node.op_type == "Mul" or (node.op_type == "Div" and node.input[1] in constants):
            source = _only_source(node, constants)  # two would be any function, x / |x| too
            waiting.extend([source] if source is not None else [])
    return False


def _constants_of(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def _only_source(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> str | None:
    """Return the one input that is no constant."""
    sources = [name for name in node.input if name and name not in constants]
    return sources[0] if len(sources) == 1 else None


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    found = (helper.get_attribute_value(each) for each in node.attribute if each.name == name)
    return next(found, default)


def _only_moves(node: onnx.NodeProto) -> bool:
    if node.op_type == "Resize":
        return bool(_attribute(node, "mode", b"nearest") == b"nearest")
    if node.op_type == "Pad":
        return bool(_attribute(node, "mode", b"constant") != b"constant")
    return node.op_type in _MOVES


def _only_moves_or_joins(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> bool:
    joins = node.op_type == "Concat" and not any(name in constants for name in node.input)
    return joins or _only_moves(node)


def _replace(graph: onnx.GraphProto, node: onnx.NodeProto, others: list[onnx.NodeProto]) -> None:
    """Put others in the place of the node that makes `node`'s output."""
    made = node.output[0]
    set_nodes(
        graph, [each for old in graph.node for each in (others if made in old.output else [old])]
    )


def _difference(graph: onnx.GraphProto, node: onnx.NodeProto, where: str) -> list[onnx.NodeProto]:
    """Return the nodes that answer a softmax's logits: each of two channels minus the other."""
    shape = _shape_of(graph, node.input[0])
    axis = int(_attribute(node, "axis", -1)) % max(len(shape), 1)
    if not shape or shape[axis] != 2:
        count = shape[axis] if shape else "unknown"
        raise InputError(
            "E-ONNX-SHAPE",
            f"{where} over {count} channels; of one class edgeseg takes one of two, background and "
            'lesion: name the others under "classes" in the contract, with "head": "softmax"',
        )
    first, second, swapped = (f"{node.output[0]}.{part}" for part in ("0", "1", "swapped"))
    return [
        _split(graph, node.input[0], (first, second), f"{swapped}.split", axis, (1, 1)),
        helper.make_node("Concat", [second, first], [swapped], swapped, axis=axis),
        helper.make_node("Sub", [node.input[0], swapped], node.output, node.name),
    ]


def _split(
    graph: onnx.GraphProto,
    source: str,
    parts: tuple[str, str],
    name: str,
    axis: int,
    lengths: tuple[int, int],
) -> onnx.NodeProto:
    """Return a Split of an axis, by sizes: without them opset 18 and later want a number."""
    sizes = numpy_helper.from_array(np.array(lengths, np.int64), f"{name}.sizes")
    graph.initializer.append(sizes)
    return helper.make_node("Split", [source, sizes.name], parts, name, axis=axis)


def _require_channels(
    graph: onnx.GraphProto, node: onnx.NodeProto, contract: InputContract, where: str
) -> None:
    """Raise InputError (E-ONNX-SHAPE) unless a softmax is over background and classes."""
    shape = _shape_of(graph, node.input[0])
    axis = int(_attribute(node, "axis", -1)) % max(len(shape), 1)
    wanted = 1 + len(contract.classes)
    if not shape or shape[axis] != wanted:
        raise InputError(
            "E-ONNX-SHAPE",
            f"{where} over {shape[axis] if shape else 'unknown'} channels, and the contract's "
            f"background and classes ({', '.join(contract.classes)}) are {wanted}; correct it",
        )


def _keep_second_channel(graph: onnx.GraphProto) -> None:
    """Let an output [1, 2, H, W] be its second channel, the lesion's; another stays."""
    name = graph.output[0].name
    shape = _shape_of(graph, name)
    if len(shape) != 4 or shape[1] != 2:
        return
    for node in graph.node:
        for place, output in enumerate(node.output):
            node.output[place] = f"{name}.both" if output == name else output
    background = f"{name}.background"
    graph.node.append(_split(graph, f"{name}.both", (background, name), f"{name}.split", 1, (1, 1)))
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1


def _shape_of(graph: onnx.GraphProto, name: str) -> tuple[int, ...]:
    """Return a static shape; () if it is not known."""
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.name == name:
            return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    return ()


# --- bounds --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Range:
    """What a tensor's values lie between, ends included."""

    low: float = -math.inf
    high: float = math.inf

    def __or__(self, other: _Range) -> _Range:
        return _Range(min(self.low, other.low), max(self.high, other.high))

    def map(self, rising: Callable[[float], float]) -> _Range:
        """Return the range of a function that rises."""
        return _Range(rising(self.low), rising(self.high))


_ANY = _Range()
_Inputs = list[_Range]
_Node = onnx.NodeProto


def _bounds(graph: onnx.GraphProto) -> tuple[float, float]:
    """Return bounds of the output that hold for any input; infinite where none is known."""
    constants = _constants_of(graph)
    ranges = {
        name: _Range(float(array.min()), float(array.max()))
        for name, array in constants.items()
        if array.size and array.dtype.kind in "fiu" and not np.isnan(array).any()
    }
    for node in graph.node:
        inputs = [ranges.get(name, _ANY) for name in node.input]
        if node.op_type == "Conv" and node.input[1] in constants:
            found = _conv_range(node, inputs[0], constants)
        elif node.op_type in _BOUNDS and inputs:
            found = _BOUNDS[node.op_type](node, inputs)
        else:
            found = _ANY
        for name in node.output:
            ranges.setdefault(name, found)
    answer = ranges.get(graph.output[0].name, _ANY)
    return answer.low, answer.high


def _conv_range(node: _Node, data: _Range, constants: Mapping[str, np.ndarray]) -> _Range:
    weights = constants[node.input[1]].astype(np.float64)
    bias = constants.get(node.input[2]) if len(node.input) > 2 else np.zeros(len(weights))
    if bias is None:
        return _ANY
    unpadded = not any(_attribute(node, "pads", ())) and not _attribute(node, "auto_pad", b"")
    data = data if unpadded else data | _Range(0, 0)
    rows = weights.reshape(len(weights), -1)
    above, below = np.maximum(rows, 0).sum(1), np.minimum(rows, 0).sum(1)

    def sums(times_above: float, times_below: float) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # 0 times infinity is 0 here: it adds nothing
            parts = [
                np.where(each == 0, 0.0, each * end)
                for each, end in ((above, times_above), (below, times_below))
            ]
        return np.asarray(parts[0] + parts[1] + bias)

    low, high = sums(data.low, data.high), sums(data.high, data.low)
    return _Range(float(low.min()), float(high.max()))


def _product(first: float, second: float) -> float:
    return 0.0 if 0 in (first, second) else first * second


def _corners(first: _Range, second: _Range) -> _Range:
    ends = [_product(a, b) for a in (first.low, first.high) for b in (second.low, second.high)]
    return _Range(min(ends), max(ends))


def _of_mul(node: _Node, inputs: _Inputs) -> _Range:
    if node.input[0] == node.input[1]:
        return _even(inputs[0])
    return _corners(inputs[0], inputs[1])


def _of_div(_: _Node, inputs: _Inputs) -> _Range:
    divisor = inputs[1]
    if divisor.low <= 0 <= divisor.high and not (divisor.low == 0 or divisor.high == 0):
        return _ANY
    first, second = (1 / end if end else math.inf for end in (divisor.low, divisor.high))
    if divisor.high == 0:
        second = -math.inf
    return _corners(inputs[0], _Range(min(first, second), max(first, second)))


def _even(data: _Range) -> _Range:
    ends = [_product(data.low, data.low), _product(data.high, data.high)]
    return _Range(0.0 if data.low <= 0 <= data.high else min(ends), max(ends))


def _of_pow(_: _Node, inputs: _Inputs) -> _Range:
    power = inputs[1]
    if power.low != power.high:
        return _ANY
    if power.low % 2 == 0:
        return _Range(0) if power.low > 0 else _ANY
    if inputs[0].low >= 0 and power.low > 0:
        return inputs[0].map(lambda end: end**power.low)
    return _ANY


def _exp(end: float) -> float:
    try:
        return math.exp(end)
    except OverflowError:
        return math.inf


def _softplus(end: float) -> float:
    return max(end, 0.0) + math.log1p(_exp(-abs(end)))


def _absolute(data: _Range) -> _Range:
    ends = (abs(data.low), abs(data.high))
    return _Range(0.0 if data.low <= 0 <= data.high else min(ends), max(ends))


def _of_clip(_: _Node, inputs: _Inputs) -> _Range:
    least = inputs[1].low if len(inputs) > 1 and inputs[1] is not _ANY else -math.inf
    most = inputs[2].high if len(inputs) > 2 and inputs[2] is not _ANY else math.inf
    return inputs[0].map(lambda end: min(max(end, least), most))


def _of_first(_: _Node, inputs: _Inputs) -> _Range:
    return inputs[0]


def _of_pad(node: _Node, inputs: _Inputs) -> _Range:
    if _attribute(node, "mode", b"constant") != b"constant":
        return inputs[0]
    return inputs[0] | (inputs[2] if len(inputs) > 2 and node.input[2] else _Range(0, 0))


def _of_resize(node: _Node, inputs: _Inputs) -> _Range:
    outside = _attribute(node, "coordinate_transformation_mode", b"") == b"tf_crop_and_resize"
    cubic = _attribute(node, "mode", b"nearest") == b"cubic"
    return _ANY if cubic or outside else inputs[0]


def _of_concat(_: _Node, inputs: _Inputs) -> _Range:
    return _Range(min(each.low for each in inputs), max(each.high for each in inputs))


def _of_leaky_relu(node: _Node, inputs: _Inputs) -> _Range:
    slope = float(_attribute(node, "alpha", 0.01))
    if slope < 0:
        return _ANY
    return inputs[0].map(lambda end: end if end > 0 else _product(end, slope))


# Bounds of an operator's outputs from those of its inputs. What is not here has none.
_BOUNDS: Mapping[str, Callable[[_Node, _Inputs], _Range]] = MappingProxyType(
    {
        **dict.fromkeys(_MOVES - {"MaxPool"}, _of_first),
        **dict.fromkeys(
            (
                "GlobalAveragePool",
                "GlobalMaxPool",
                "MaxPool",
                "ReduceMax",
                "ReduceMean",
                "ReduceMin",
            ),
            _of_first,
        ),
        **dict.fromkeys(
            ("HardSigmoid", "Hardmax", "Sigmoid", "Softmax"), lambda _, __: _Range(0, 1)
        ),
        **dict.fromkeys(
            ("Cos", "Erf", "Sign", "Sin", "Softsign", "Tanh"), lambda _, __: _Range(-1, 1)
        ),
        "Abs": lambda _, of: _absolute(of[0]),
        "Add": lambda _, of: _Range(of[0].low + of[1].low, of[0].high + of[1].high),
        "AveragePool": lambda _, of: of[0] | _Range(0, 0),  # the padding may count
        "Clip": _of_clip,
        "Concat": _of_concat,
        "Div": _of_div,
        "Exp": lambda _, of: of[0].map(_exp),
        "Gelu": lambda _, of: of[0].map(lambda end: max(end, 0.0)) | _Range(-0.17, 0),
        "HardSwish": lambda _, of: of[0].map(lambda end: max(end, 0.0)) | _Range(-0.375, 0),
        "LeakyRelu": _of_leaky_relu,
        "LogSoftmax": lambda _, __: _Range(-math.inf, 0),
        "Mul": _of_mul,
        "Neg": lambda _, of: _Range(-of[0].high, -of[0].low),
        "Pad": _of_pad,
        "Pow": _of_pow,
        "Relu": lambda _, of: of[0].map(lambda end: max(end, 0.0)),
        "Resize": _of_resize,
        "Softplus": lambda _, of: of[0].map(_softplus),
        "Sqrt": lambda _, of: of[0].map(lambda end: math.sqrt(max(end, 0.0))),
        "Sub": lambda _, of: _Range(of[0].low - of[1].high, of[0].high - of[1].low),
    }
)
