"""What really runs in which precision, as a share of a graph's multiply-accumulates (MACs).

An engine is free to run a layer in another type than the file asks for, and says so only in its own
listing of what it executes. Here that listing is matched, name by name, with the nodes that
`benchmarks.complexity` counts; a MAC that cannot be assigned is an error, never left out.

The denominator is every MAC of the graph. Convolutions with one output channel stay in float by
design (see `qdq`), so a fully quantised network reaches a little less than 1.0 in INT8, and one
with matrix products or transposed convolutions less.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx

from ..benchmarks.measure.complexity import macs_of_nodes
from ..runtime.errors import EngineError, Refused
from .graph import convolutions_of, producers_of
from .plan import MIN_SHARE
from .qdq import quantisable_convolutions
from .to_rtx import PlanLayer

_WIDTH = ("int8", "fp16", "bf16", "fp32")  # the widest operand names a product's precision
_NAMED = 5  # layers that a refusal lists


@dataclass(frozen=True)
class AuditedNode:
    """One node of the graph and the precision that its products are computed in."""

    name: str
    precision: str  # "int8", "fp16", "bf16" or "fp32"
    macs: int  # of one call


@dataclass(frozen=True)
class ExecutedPrecisions:
    """What one engine runs in which precision."""

    engine: str
    nodes: tuple[AuditedNode, ...]  # all that have MACs

    @property
    def macs(self) -> Mapping[str, int]:
        """MACs of one call by precision; a precision that nothing runs in is absent."""
        total: Counter[str] = Counter()
        for node in self.nodes:
            total[node.precision] += node.macs
        return dict(total)

    def share(self, precision: str) -> float:
        """Return the share of all MACs in [0, 1]; NaN for a graph without any."""
        total = sum(self.macs.values())
        return self.macs.get(precision, 0) / total if total else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Return engine, MACs and node names by precision, as JSON takes them."""
        names = {
            precision: [node.name for node in self.nodes if node.precision == precision]
            for precision in self.macs
        }
        return {"engine": self.engine, "macs": dict(self.macs), "nodes": names}


def require_share(achieved: ExecutedPrecisions, precision: str, minimum: float) -> None:
    """Raise Refused (E-PRECISION-FALLBACK) when less than `minimum` of the MACs run in it.

    Args:
        achieved: what the engine runs.
        precision: "int8", "fp16", "bf16" or "fp32".
        minimum: share of all MACs in [0, 1]. For "int8" leave room for the convolutions that stay
            in float by design; 0.9 holds for the shipped students.
    """
    if achieved.share(precision) >= minimum:  # NaN is not
        return
    fallen = sorted(
        (node for node in achieved.nodes if node.precision != precision),
        key=lambda node: node.macs,
        reverse=True,
    )
    layers = ", ".join(f"{node.name} ({node.precision})" for node in fallen[:_NAMED])
    more = f" and {len(fallen) - _NAMED} more" if len(fallen) > _NAMED else ""
    raise Refused(
        "E-PRECISION-FALLBACK",
        f"{precision} was asked for in {minimum:.1%} of the multiply-accumulates, but "
        f"{achieved.engine} runs {achieved.share(precision):.1%} in it; not so: "
        f"{layers or 'no layer has any'}{more}; export another precision",
    )


def least_share(master: bytes, precision: str, kept_float: Collection[str]) -> float:
    """Return the share of MACs that must run in a precision; what was kept in float is no fault.

    What else may fall back is the same share of the whole, however much was kept. Of INT8 what
    is no convolution with constant weights counts as kept: the quantiser leaves it alone.

    Args:
        master: the network as ONNX.
        precision: key in `MIN_SHARE`.
        kept_float: names of products that were left in float on purpose.
    """
    macs = dict(macs_of_nodes(master))
    kept = set(kept_float)
    if precision == "int8":
        kept |= macs.keys() - convolutions_of(onnx.load_model_from_string(master).graph).keys()
    kept_share = sum(macs[name] for name in kept) / sum(macs.values())
    return max(0.0, MIN_SHARE[precision] - kept_share)


def int8_share_of(master: bytes) -> float:
    """Return the share of MACs in convolutions that `qdq_from_onnx` quantises."""
    macs = dict(macs_of_nodes(master))
    return sum(macs[name] for name in quantisable_convolutions(master)) / sum(macs.values())


# --- OpenVINO ------------------------------------------------------------------------------------

# Every weight is used once for each position of this side.
_IR_POSITIONS: Mapping[str, str] = MappingProxyType(
    {
        "Convolution": "output",
        "GroupConvolution": "output",
        "ConvolutionBackpropData": "input",
        "GroupConvolutionBackpropData": "input",
    }
)
_OPENVINO_KINDS = ("Convolution", "Deconvolution")  # of executed layers
# Matrix products; the attention that OpenVINO makes of two of them is one, run alone or in code
# that it writes.
_IR_ATTENTION = "ScaledDotProductAttention"
_OPENVINO_MATRIX_KINDS = ("FullyConnected", "MatMul", "MHA", _IR_ATTENTION, "Subgraph")
_WITHOUT_BIAS = "/WithoutBiases"  # how the frontend ends the name of a product whose bias it splits
_OPENVINO_TYPES: Mapping[str, str] = MappingProxyType(
    {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8", "I8": "int8"}
)


def achieved_in_openvino(
    xml: bytes,
    weights: bytes,
    threads: int,
    *,
    macs: int,
    arithmetic: str = "f32",
    beside: Collection[str] = (),
) -> ExecutedPrecisions:
    """Compile an IR as `OpenVinoEngine` does and read what it executes.

    An IR with FP16 weights computes in FP32 on a CPU, and is said to.

    Args:
        xml: content of the IR's ``.xml``.
        weights: content of its ``.bin``.
        threads: number of threads, >= 1.
        macs: of one call, as `count_complexity` counts the ONNX that the IR was made from.
        arithmetic: as `OpenVinoEngine` takes it.
        beside: what products write that are none of the network's, see `resize_as_products`.

    Raises:
        EngineError: E-ENGINE-LOAD, E-ENGINE-DEVICE, E-AUDIT (a product is not executed
            under its name, runs in an unknown type, or the MACs do not add up to `macs`).
    """
    from ..runtime.engines.ov import OpenVinoEngine, shared_core

    files = {"model.xml": xml, "model.bin": weights}
    engine = OpenVinoEngine(files, threads, arithmetic=arithmetic)
    executed: dict[str, str] = {}
    matrices: dict[str, str] = {}
    # The engine's own network, so that what is audited is what predicts.
    for layer in engine._request.get_compiled_model().get_runtime_model().get_ops():
        info = {key: str(value.value) for key, value in layer.get_rt_info().items()}
        # Its kernel ends in the type of the input that it reads, as in brgconv_avx2_f32. The
        # runtimePrecision beside it says f16 for weights stored so, whatever computes.
        kernel_type = info.get("primitiveType", "").rpartition("_")[2]
        names = info.get("originalLayersNames", "").split(",")
        if info.get("layerType") in _OPENVINO_KINDS:
            executed |= dict.fromkeys(names, kernel_type)
        elif info.get("layerType") in _OPENVINO_MATRIX_KINDS:
            short = (name.removesuffix(_WITHOUT_BIAS) for name in names)
            matrices |= dict.fromkeys(short, kernel_type)
    costs = []
    for op in shared_core().read_model(BytesIO(xml), BytesIO(weights)).get_ops():
        name, kind = op.get_friendly_name(), op.get_type_name()
        if kind in _IR_POSITIONS:
            costs.append((name, _ir_macs(op)))
        elif kind in ("MatMul", _IR_ATTENTION):
            name = name.removesuffix(_WITHOUT_BIAS)
            if op.output(0).get_names() & set(beside):
                continue
            costs.append((name, _ir_matrix_macs(op)))
            if name in matrices:
                executed[name] = matrices[name]
    achieved = _achieved(engine.name, costs, executed, _OPENVINO_TYPES)
    if sum(achieved.macs.values()) != macs:
        raise EngineError(
            "E-AUDIT",
            f"the IR's products have {sum(achieved.macs.values())} multiply-accumulates, the "
            f"ONNX has {macs}; another operator computes",
        )
    return achieved


def _ir_macs(op: Any) -> int:
    per_output = _IR_POSITIONS[op.get_type_name()] == "output"
    side = op.output(0).shape if per_output else op.input_value(0).shape
    positions = prod(side) // side[1]  # batch and space, without channels
    return int(positions * prod(op.input_value(1).shape))


def _ir_matrix_macs(op: Any) -> int:
    """Count a matrix product, or the two of an attention: queries, keys and values."""
    first, second = (tuple(op.input_value(at).shape) for at in (0, 1))
    if op.get_type_name() == _IR_ATTENTION:
        values = op.input_value(2).shape[-1]
        return int(prod(first[:-1]) * second[-2] * (first[-1] + values))
    shared = first[-2] if op.get_attributes()["transpose_a"] else first[-1]
    return int(prod(op.output(0).shape) * shared)


# --- ONNX Runtime --------------------------------------------------------------------------------

_ONNXRUNTIME_TYPES: Mapping[str, str] = MappingProxyType(
    {"float": "fp32", "bfloat16": "bf16", "float16": "fp16", "int8": "int8", "uint8": "int8"}
)
# They choose a memory layout, or take a factor or a transposition in, but choose no type; and they
# rename the products they touch.
_RENAMING = (
    "NchwcTransformer",
    "NhwcTransformer",
    "MatMulScaleFusion",
    "MatmulTransposeFusion",
)
_PRODUCTS = ("Conv", "Gemm", "MatMul")  # part of the name of every operator with MACs


def achieved_in_onnxruntime(model: bytes, threads: int) -> ExecutedPrecisions:
    """Run an ONNX model once on zeros, profiled, and read which types its kernels took.

    Names come from a run without the rewrites that rename nodes; a second run with all of them, as
    `OnnxRuntimeEngine` has, must execute as many products of each type. FP16 is said to run in
    FP32 where, as on x86, there is no FP16 kernel and casts are put in.

    Args:
        model: ONNX with static shapes.
        threads: number of threads, >= 1.

    Raises:
        InputError: as `count_complexity`.
        EngineError: E-AUDIT (a node is not executed under its name, runs in an unknown type, or
            the two runs differ).
    """
    costs = macs_of_nodes(model)
    named, real = _profile(model, threads, _RENAMING), _profile(model, threads, ())
    if _product_types(named) != _product_types(real):
        raise EngineError(
            "E-AUDIT",
            f"onnxruntime executes {dict(_product_types(real))} products by type, but "
            f"{dict(_product_types(named))} where its nodes keep their names",
        )
    executed = {kernel.node: kernel.input_type for kernel in named}
    return _achieved("onnxruntime", costs, executed, _ONNXRUNTIME_TYPES)


@dataclass(frozen=True)
class _Kernel:
    """One executed kernel of a profile."""

    node: str
    operator: str
    input_type: str  # of the first input; "" without one


def _profile(model: bytes, threads: int, disabled: Sequence[str]) -> list[_Kernel]:
    """Return the kernels of one run in order."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = ort.InferenceSession(
            model, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled)
        )
        (image,) = session.get_inputs()
        session.run(None, {image.name: np.zeros(image.shape, np.float32)})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return [
        _Kernel(
            node=event["name"].removesuffix("_kernel_time"),
            operator=event["args"]["op_name"],
            input_type=_first_type(event["args"]["input_type_shape"]),
        )
        for event in events
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time")
    ]


def _first_type(tensors: Sequence[Mapping[str, Any]]) -> str:
    """Return the type of the first tensor, given as {type: shape}; "" without one."""
    return next((kind for tensor in tensors[:1] for kind in tensor), "")


def _product_types(kernels: Iterable[_Kernel]) -> Counter[str]:
    return Counter(
        kernel.input_type
        for kernel in kernels
        if any(part in kernel.operator for part in _PRODUCTS)
    )


# --- TensorRT-RTX --------------------------------------------------------------------------------

_RTX_TYPES: Mapping[str, str] = MappingProxyType(
    {"Float": "fp32", "BFloat16": "bf16", "Half": "fp16", "Int8": "int8"}
)
_MATRIX_KINDS = ("correlation", "deconv", "gemm")


def achieved_in_rtx(model: bytes, layers: Sequence[PlanLayer]) -> ExecutedPrecisions:
    """Match the layers of a plan with the ONNX it was built from.

    A node counts as the widest type among the data and weights of the matrix kernels that compute
    it; where generated code does, of that code's.

    Args:
        model: ONNX with static shapes.
        layers: `RtxPlan.layers`.

    Raises:
        InputError: as `count_complexity`.
        EngineError: E-AUDIT (no layer computes a node, or in an unknown type).
    """
    costs = macs_of_nodes(model)
    executed: dict[str, str] = {}
    for name, _ in costs:
        parts = [layer for layer in layers if name in layer.origins]
        parts = [layer for layer in parts if layer.kind in _MATRIX_KINDS] or parts
        types = {kind for layer in parts for kind in (layer.input_type, layer.weight_type) if kind}
        if types:
            executed[name] = max(types, key=_rtx_width)
    return _achieved("tensorrt-rtx", costs, executed, _RTX_TYPES)


def _rtx_width(kind: str) -> int:
    """Rank a type by its width; an unknown one comes first, so that it is met."""
    return _WIDTH.index(_RTX_TYPES[kind]) if kind in _RTX_TYPES else len(_WIDTH)


# --- the graph itself ----------------------------------------------------------------------------

_GRAPH_TYPES: Mapping[str, str] = MappingProxyType(
    {"FLOAT": "fp32", "FLOAT16": "fp16", "Q": "int8"}
)


def asked_in_graph(model: bytes) -> ExecutedPrecisions:
    """Return what ONNX asks for where its types and Q/DQ pairs are binding.

    A product of two dequantised operands is INT8, any other has the type of its first.
    Raises InputError as `count_complexity`, EngineError: E-AUDIT (an unknown type).
    """
    graph = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model)).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {each.name: each.type.tensor_type.elem_type for each in values}
    producers = producers_of(graph)
    asked = {}
    for node in graph.node:
        operands = [producers[name].op_type for name in node.input[:2] if name in producers]
        if operands == ["DequantizeLinear"] * 2:
            asked[node.name] = "Q"
        elif node.input and node.input[0] in types:
            asked[node.name] = onnx.TensorProto.DataType.Name(types[node.input[0]])
    return _achieved("the graph", macs_of_nodes(model), asked, _GRAPH_TYPES)


# --- common --------------------------------------------------------------------------------------


def _achieved(
    engine: str,
    costs: Sequence[tuple[str, int]],
    executed: Mapping[str, str],
    precisions: Mapping[str, str],
) -> ExecutedPrecisions:
    """Join MACs by node with the engine's types by node. Raises EngineError (E-AUDIT)."""
    shared = [name for name, count in Counter(name for name, _ in costs).items() if count > 1]
    if shared:
        raise EngineError("E-AUDIT", f"nodes of the graph share the name {shared[0]!r}")
    nodes = []
    for name, macs in costs:
        if name not in executed:
            raise EngineError("E-AUDIT", f"{engine} executes no layer named {name!r}")
        if executed[name] not in precisions:
            raise EngineError(
                "E-AUDIT", f"{engine} runs {name!r} in {executed[name]!r}, which is not known here"
            )
        nodes.append(AuditedNode(name, precisions[executed[name]], macs))
    return ExecutedPrecisions(engine, tuple(nodes))
