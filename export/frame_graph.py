"""Pre- and post-processing in the graph: a frame in, its mask out; ONNX in, ONNX out.

The resize before the network is that of the Pillow that exports, to the last bit. Pillow computes
8-bit images in whole numbers and rounds after the box reduction and after each of two passes, one
along either axis. Float32 holds every whole number up to 2**24, so that the same sums come out
where no term and no sum is larger. ONNX's own Resize could not do it: it rounds nowhere, its
`antialias` begins with opset 18, and the parser of TensorRT-RTX 1.7 refuses that.

TensorRT may multiply FP32 in TF32, whose factors have 11 bits. All factors of the resize have no
more: pixels have 8, and each weight comes as two halves of 11. TensorRT 8 may also choose FP16 for
what is FP32 here, which rounds some grey levels otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.compose
from onnx import TensorProto, helper, numpy_helper

from ..runtime.contract import InputContract
from ..runtime.errors import Refused
from ..runtime.image import bilinear_taps, reduction_factor, resize_grey

AROUND = ("before/", "after/")  # how the names of all other nodes begin
_NETWORK = "network/"  # prefix of all that is the network's, so that no name meets one of ours
_WEIGHT_BITS = 22  # of Pillow's weights for 8-bit images, PRECISION_BITS in its Resample.c
_TRANSPOSED = (0, 1, 3, 2)
_HALF = 1 << (_WEIGHT_BITS // 2)
_BOX_PART = 1 / 256  # of the sum of a box; a whole one would be beyond FP16 from 257 pixels on
_STEPS_A_ROUND = 4  # of a loop, before it asks whether anything moved
_DIVISOR_BITS = 24  # Pillow divides the sum of a box by multiplying with 2**24 / pixels, cut


def frame_graph_from_onnx(model: bytes, contract: InputContract, width: int, height: int) -> bytes:
    """Return the network with all that `edgeseg.runtime` does before and after it.

    Input ``frame``: uint8 [1, 1, height, width], grey. Outputs ``mask``: uint8 of that shape, 1
    where lesion, and ``logits``: float32 [1, 1, h, w] at the contract's size. A logit above the
    contract's level is a probability above its threshold, so there is no sigmoid. Logits that are
    not finite give no lesion and no error: ``logits`` tells.

    The network is left alone but for its names; what stands around it computes in float32. One
    case is not Pillow's to the last bit: where boxes of 256 pixels and more are averaged, a grey
    level may be one less.

    Args:
        model: ONNX of any precision, batch 1: ``image`` to ``logits``.
        contract: of the network.
        width: of the frame in px.
        height: of the frame in px.

    Raises Refused: E-FRAME-CONTRACT, see `require_frame_contract`.
    """
    require_frame_contract(contract)
    network = onnx.compose.add_prefix(onnx.load_model_from_string(model), _NETWORK)
    graph = network.graph
    before, after = map(_Steps, AROUND)
    grey = before.add("Cast", "frame", to=TensorProto.FLOAT)
    grey = _resized(before, grey, (height, width), (contract.height, contract.width))
    if contract.depth > 1:
        grey = before.add("Concat", *[grey] * contract.depth, axis=1)
    scales = np.array([np.float32(1 / (255 * std)) for std in contract.stds])
    offsets = np.array(
        [np.float32(mean / std) for mean, std in zip(contract.means, contract.stds, strict=True)]
    )
    scaled = before.add("Mul", grey, _by_channel(scales))
    before.add("Sub", scaled, _by_channel(offsets), output=graph.input[0].name)
    _rename(graph, graph.output[0].name, "logits")
    values = _without_small(after, "logits", contract)
    if width != contract.width:  # columns first, as `mask_from_logits`
        # Rows of the transpose: ONNX Runtime takes 5 times as long to gather columns.
        values = after.add("Transpose", values, perm=_TRANSPOSED)
        values = _interpolated(after, values, contract.width, width)
        values = after.add("Transpose", values, perm=_TRANSPOSED)
    if height != contract.height:
        values = _interpolated(after, values, contract.height, height)
    lesion = after.add("Greater", values, np.float32(contract.logit_threshold))
    after.add("Cast", _ones(after, lesion), output="mask", to=TensorProto.UINT8)
    nodes = [*before.nodes, *graph.node, *after.nodes]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*before.constants, *after.constants])
    uint8, float32 = TensorProto.UINT8, TensorProto.FLOAT
    graph.input.append(helper.make_tensor_value_info("frame", uint8, [1, 1, height, width]))
    size = [1, 1, contract.height, contract.width]
    graph.output.append(helper.make_tensor_value_info("mask", uint8, [1, 1, height, width]))
    graph.output.append(helper.make_tensor_value_info("logits", float32, size))
    onnx.checker.check_model(network, full_check=True)
    return bytes(network.SerializeToString(deterministic=True))


def _by_channel(values: np.ndarray) -> np.ndarray | np.float32:
    """Return float32 [C] so that it broadcasts over [1, C, H, W]; of one channel a scalar."""
    return np.float32(values[0]) if len(values) == 1 else values[None, :, None, None]


def require_frame_contract(contract: InputContract, *, weakly_typed: bool = False) -> None:
    """Refuse a contract that no frame graph can follow.

    Frames are grey, stretched, of one class.

    Args:
        contract: of the network.
        weakly_typed: an engine is built that may compute in FP16 what is FP32 in the graph. It
            cannot count components, whose numbers go up to the pixels of the network's input.

    Raises Refused: E-FRAME-CONTRACT (colour, a letterbox or several classes), E-FRAME-LEAST (a
        least area for an engine of weak types).
    """
    beyond = [
        what
        for what, is_so in (
            (f"channels {contract.channels}", contract.takes_colour),
            (f"resize {contract.resize}", contract.resize != "stretch"),
            (f"{len(contract.classes)} classes", len(contract.classes) > 1),
        )
        if is_so
    ]
    if beyond:
        raise Refused(
            "E-FRAME-CONTRACT",
            f"a frame graph takes grey frames, stretches them and knows one class; the contract "
            f"has {', '.join(beyond)}: export without --frame and let the session do it",
        )
    if weakly_typed and contract.least_area:
        raise Refused(
            "E-FRAME-LEAST",
            f"the masks are {contract.least_text}, and an engine of TensorRT below 10 may count "
            "them in FP16, which merges components; export without --frame or --precision fp32",
        )


@dataclass(frozen=True)
class _Steps:
    """Nodes in the order in which they were added, and their constants."""

    prefix: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def add(
        self, operator: str, *inputs: str | np.ndarray | np.generic, output: str = "", **kinds: Any
    ) -> str:
        """Append a node and return the name of its output; arrays become constants."""
        own = f"{self.prefix}{len(self.nodes)}.{operator}"
        self._append(own, operator, inputs, [output or own], kinds)
        return output or own

    def add_several(
        self, operator: str, count: int, *inputs: str | np.ndarray | np.generic, **kinds: Any
    ) -> list[str]:
        """Append a node and return the names of its outputs, of which it has `count`."""
        own = f"{self.prefix}{len(self.nodes)}.{operator}"
        outputs = [f"{own}:{index}" for index in range(count)]
        self._append(own, operator, inputs, outputs, kinds)
        return outputs

    def _append(
        self,
        own: str,
        operator: str,
        inputs: Sequence[str | np.ndarray | np.generic],
        outputs: list[str],
        kinds: dict[str, Any],
    ) -> None:
        names = []
        for index, each in enumerate(inputs):
            if not isinstance(each, str):
                self.constants.append(numpy_helper.from_array(np.asarray(each), f"{own}.{index}"))
            names.append(each if isinstance(each, str) else f"{own}.{index}")
        self.nodes.append(helper.make_node(operator, names, outputs, own, **kinds))


def _without_small(steps: _Steps, logits: str, contract: InputContract) -> str:
    """Add what `kept_logits` does: components below the least lesion sink under the threshold.

    No fixed number of operators can tell how far a component reaches, so loops run until nothing
    changes. All pixels that reach the least peak spread at once, which mostly takes few rounds.
    """
    if not contract.drops:
        return logits
    level = np.float32(contract.logit_threshold)
    above = _ones(steps, steps.add("Greater", logits, level))
    kept = above
    if contract.least_peak:
        low = steps.add("Less", logits, np.float32(contract.least_logit))
        reached = steps.add("Mul", above, _ones(steps, steps.add("Not", low)))
        kept = _spread(steps, reached, above, contract)
    if contract.least_px > 1:
        places = np.arange(1, contract.height * contract.width + 1, dtype=np.float32)
        own = steps.add("Mul", kept, places.reshape(1, 1, contract.height, contract.width))
        # Within `above`: TensorRT-RTX 1.7 takes no loop whose body reads what another loop gave.
        labels = _spread(steps, own, above, contract)
        kept = steps.add("Mul", kept, _large(steps, labels, contract))
    lost = steps.add("Greater", steps.add("Sub", above, kept), np.float32(0.5))
    return steps.add("Where", lost, level - np.float32(1), logits)


def _ones(steps: _Steps, truth: str) -> str:
    """Add the cast from bool to float32, TensorRT's way on to other types too."""
    return steps.add("Cast", truth, to=TensorProto.FLOAT)


def _spread(steps: _Steps, values: str, within: str, contract: InputContract) -> str:
    """Add a loop that gives each pixel the highest value of its 8-connected component.

    Args:
        steps: takes the loop.
        values: float32 [1, 1, h, w], at least 0, and 0 outside the components.
        within: 1 inside the components, 0 outside.
        contract: gives the size.
    """

    def round_of(body: _Steps, before: str) -> tuple[str, list[str]]:
        spread = before
        for _ in range(_STEPS_A_ROUND):
            wider = body.add("MaxPool", spread, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
            spread = body.add("Mul", wider, within)
        moved = body.add("ReduceMax", body.add("Sub", spread, before), keepdims=0)
        return body.add("Greater", moved, np.float32(0)), [spread]

    (spread,) = _repeated(steps, round_of, [values], contract)
    return spread


def _large(steps: _Steps, labels: str, contract: InputContract) -> str:
    """Add a loop over the components that gives 1 where one has the least area, else 0.

    Where there is no component at all it gives 1.

    Args:
        steps: takes the loop.
        labels: float32 [1, 1, h, w], one number above 0 a component, 0 outside.
        contract: gives the size and the least area.
    """

    def round_of(body: _Steps, left: str, large: str) -> tuple[str, list[str]]:
        chosen = _ones(body, body.add("Equal", left, body.add("ReduceMax", left, keepdims=1)))
        area = body.add("ReduceSum", chosen, keepdims=1)
        enough = body.add("Greater", area, np.float32(contract.least_px - 1))
        large = body.add("Add", large, body.add("Mul", chosen, _ones(body, enough)))
        left = body.add("Mul", left, body.add("Sub", np.float32(1), chosen))
        more = body.add("Greater", body.add("ReduceMax", left, keepdims=0), np.float32(0))
        return more, [left, large]

    none = steps.add("Mul", labels, np.float32(0))
    _, large = _repeated(steps, round_of, [labels, none], contract)
    return large


def _repeated(
    steps: _Steps,
    round_of: Callable[..., tuple[str, list[str]]],
    states: list[str],
    contract: InputContract,
) -> list[str]:
    """Add a loop; `round_of` adds a round and returns whether there is more, and the new states."""
    own = f"{steps.prefix}{len(steps.nodes)}.Loop"
    body = _Steps(f"{own}/")
    names = [f"{own}/{index}" for index in range(len(states))]
    more, after = round_of(body, *names)
    size = [1, 1, contract.height, contract.width]

    def floats(of: list[str]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name in of]

    graph = helper.make_graph(
        body.nodes,
        f"{own}/body",
        [
            helper.make_tensor_value_info(f"{own}/round", TensorProto.INT64, []),
            helper.make_tensor_value_info(f"{own}/go", TensorProto.BOOL, []),
            *floats(names),
        ],
        [helper.make_tensor_value_info(more, TensorProto.BOOL, []), *floats(after)],
        body.constants,
    )
    most = np.int64(contract.height * contract.width)  # no path is longer, nor are there more parts
    return steps.add_several("Loop", len(states), most, np.bool_(True), *states, body=graph)


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]


def _resized(steps: _Steps, grey: str, shape: tuple[int, int], wanted: tuple[int, int]) -> str:
    """Add what `resize_grey` does: whole numbers 0 to 255 in, the same out."""
    if shape == wanted:
        return grey
    factors = (reduction_factor(shape[0], wanted[0]), reduction_factor(shape[1], wanted[1]))
    if factors != (1, 1):
        grey = _box_reduced(steps, grey, shape, factors)
        shape = (-(-shape[0] // factors[0]), -(-shape[1] // factors[1]))
    weights = [_weights(*sizes) for sizes in zip(shape, wanted, strict=True)]
    for axis in _order_of_passes(shape, wanted, weights):
        if shape[axis] == wanted[axis]:
            continue
        halves = _halves(weights[axis] if axis == 0 else weights[axis].T)
        sums = [
            steps.add("MatMul", half, grey) if axis == 0 else steps.add("MatMul", grey, half)
            for half in halves
        ]
        grey = _rounded(steps, *sums)
    return grey


def _order_of_passes(
    shape: tuple[int, int], wanted: tuple[int, int], weights: list[np.ndarray]
) -> tuple[int, int]:
    """Return which axis Pillow resizes first: 1 (width) up to Pillow 12, 13 chooses by the sizes.

    It is tried, since the order decides how some pixels are rounded.
    """
    probe = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    half, one = 1 << (_WEIGHT_BITS - 1), 1 << _WEIGHT_BITS
    columns = (probe.astype(np.float64) @ weights[1].T + half) // one  # all sums below 2**53
    both = (weights[0] @ columns + half) // one
    return (1, 0) if np.array_equal(both, resize_grey(probe, *wanted)) else (0, 1)


def _box_reduced(steps: _Steps, grey: str, shape: tuple[int, int], factors: tuple[int, int]) -> str:
    """Add Pillow's `reduce`: the mean of each box, of what is left of it at the far edges."""
    missing = [-size % factor for size, factor in zip(shape, factors, strict=True)]
    parts = np.full((1, 1, *factors), _BOX_PART, np.float32)
    pads = [0, 0, *missing]
    sums = steps.add("Conv", grey, parts, kernel_shape=factors, strides=factors, pads=pads)
    counts = np.full([-(-size // each) for size, each in zip(shape, factors, strict=True)], 1)
    for axis in (0, 1):
        along = np.full(counts.shape[axis], factors[axis])
        along[-1] -= missing[axis]
        counts *= along[:, None] if axis == 0 else along
    # Pillow's cut divisor makes a sum that divides evenly give one less, unless it was not cut.
    cut = (1 << _DIVISOR_BITS) % counts != 0
    offset = counts // 2 - np.where(cut, 0.5, 0.0)
    moved = steps.add("Add", sums, (offset * _BOX_PART)[None, None].astype(np.float32))
    whole = (1 / counts / _BOX_PART)[None, None].astype(np.float32)
    means = steps.add("Mul", moved, whole)
    return steps.add("Floor", means)


def _rounded(steps: _Steps, high: str, low: str) -> str:
    """Add the two halves of a weighted sum and round it, half up, in exact steps."""
    carried = steps.add("Floor", steps.add("Add", low, np.float32(_HALF / 2)))
    carry = steps.add("Mul", carried, np.float32(1 / _HALF))
    return steps.add("Floor", steps.add("Add", high, carry))


def _weights(size_in: int, size_out: int) -> np.ndarray:
    """Return Pillow's bilinear weights for one axis, times 2**22: whole float64 [out, in]."""
    scale = size_in / size_out
    support = max(scale, 1.0)  # of the triangle, in px of the input
    centre = (np.arange(size_out) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(int), 0)
    last = np.minimum((centre + support + 0.5).astype(int), size_in)
    place = np.arange(size_in)
    triangle = np.maximum(1 - np.abs((place - centre[:, None] + 0.5) / support), 0)
    inside = (place >= first[:, None]) & (place < last[:, None])
    weights = np.where(inside, triangle, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    whole: np.ndarray = np.floor(weights * (1 << _WEIGHT_BITS) + 0.5)
    return whole


def _halves(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return high and low half of weights, float32 [1, 1, ...] in multiples of 2**-11.

    A weight divided by 2**22 is high + low / 2**11.
    """
    high, low = np.divmod(weights[None, None], _HALF)
    return (high / _HALF).astype(np.float32), (low / _HALF).astype(np.float32)


def _interpolated(steps: _Steps, values: str, size_in: int, size_out: int) -> str:
    """Add what `mask_from_logits` does along one axis, here the rows, in the same arithmetic."""
    lower, upper, weight = bilinear_taps(size_in, size_out)
    low = steps.add("Gather", values, lower, axis=2)
    up = steps.add("Gather", values, upper, axis=2)
    step = steps.add("Mul", steps.add("Sub", up, low), weight[None, None, :, None])
    return steps.add("Add", low, step)
