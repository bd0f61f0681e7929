"""Operators that no export takes, each with its reason; of all others the parsers are asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import onnx

from ..runtime.errors import InputError

CONDITION = "If"  # is refused only where folding leaves it: exporters write it around shapes
_CONTROL = "is control flow, so what runs hangs on the frame and may not end"
_CHANCE = "draws at random, so it answers one frame in two ways"
_INTEGERS = "computes in integers of its own; quantise in the Q/DQ form"
_PRODUCTS = "multiplies in a way that cannot be followed in what an engine says it runs"
_CUSTOM = "is of the domain {}, whose code no target has"
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys((CONDITION, "Loop", "Scan", "SequenceMap"), _CONTROL),
        **dict.fromkeys(
            (
                "Bernoulli",
                "Multinomial",
                "RandomNormal",
                "RandomNormalLike",
                "RandomUniform",
                "RandomUniformLike",
            ),
            _CHANCE,
        ),
        **dict.fromkeys(
            (
                "ConvInteger",
                "DynamicQuantizeLinear",
                "MatMulInteger",
                "QLinearConv",
                "QLinearMatMul",
            ),
            _INTEGERS,
        ),
        **dict.fromkeys(("DeformConv", "Einsum", "GRU", "LSTM", "RNN"), _PRODUCTS),
    }
)


def refusals_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Yield the nodes that no export takes, each with why."""
    for node in nodes:
        if node.domain not in ("", "ai.onnx"):
            yield node, _CUSTOM.format(repr(node.domain))
        elif node.op_type in REFUSED:
            yield node, REFUSED[node.op_type]


def require_operators(nodes: Iterable[onnx.NodeProto], file: Path) -> None:
    """Raise InputError (E-ONNX-OPERATOR) for the first node that no export takes."""
    for node, reason in refusals_of(nodes):
        raise InputError(
            "E-ONNX-OPERATOR",
            f"{file} has the operator {node.op_type} ({node.name or node.output[0]!r}), which "
            f"{reason}; export the network without it",
        )
