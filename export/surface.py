"""Which operators the ONNX parser of a TensorRT takes, as recorded in `surfaces/`."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import onnx

from ..runtime.errors import Refused
from .target import Target

_FOLDER = Path(__file__).parent / "surfaces"


@functools.cache
def operators_of(version: str) -> frozenset[str]:
    """Return the operators that a parser takes, by major and minor version, such as "10.3"."""
    content = json.loads((_FOLDER / f"tensorrt-{version}.json").read_text(encoding="utf-8"))
    return frozenset(content["operators"])


def require_parsed(target: Target, master: bytes) -> None:
    """Raise Refused (E-TARGET-OPERATOR) for the first node that a target's TensorRT cannot parse.

    What it says of a node's attributes only the device tells.
    """
    major, minor, _ = target.tensorrt_version
    known = operators_of(f"{major}.{minor}")
    for node in onnx.load_model_from_string(master).graph.node:
        if node.op_type not in known:
            raise Refused(
                "E-TARGET-OPERATOR",
                f"the parser of TensorRT {target.tensorrt} on {target.name} does not take "
                f"{node.op_type} ({node.name!r}); export the network without it, or for a target "
                "with a later TensorRT",
            )
