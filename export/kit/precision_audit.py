"""In which precision the convolutions of a built engine run, from TensorRT's engine inspector.

A build may fall back to a wider precision without an error (no INT8 kernel for a layer, a flag that
a version ignores), and only the engine tells. The fields are those that TensorRT 8.5 to 11 print
with detailed verbosity; NVIDIA's own reader of them is TREx (tools/experimental/trt-engine-explorer
in NVIDIA/TensorRT). Only the standard library; valid Python 3.8.
"""

from __future__ import annotations

import json
import re
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

# The word in "Row major linear FP16 format" (8.x) or "Half" (10.x) -> our name.
_NAMES = {
    "fp32": "fp32",
    "float": "fp32",
    "fp16": "fp16",
    "half": "fp16",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp8": "fp8",
    "int8": "int8",
}
_ORIGIN = re.compile(r"\[ONNX Layer: ([^\]\x1e\x1f]+)")
_JOINT = re.compile(r" \+ | \|\| ")  # fused one after another, or side by side
_WORD = re.compile(r"\b(" + "|".join(_NAMES) + r")\b", re.IGNORECASE)


class Achieved(NamedTuple):
    """How the work of the convolutions is spread over precisions."""

    by: str  # "macs", or "count" where a layer does not tell its dimensions
    convolutions: int
    shares: Dict[str, float]  # by precision, "unknown" among them; they sum to 1

    def share(self, precision: str) -> float:
        """Return the share of one precision, in [0, 1]."""
        return self.shares.get(precision, 0.0)


def audit(information: str, around: Tuple[str, ...] = ()) -> Achieved:
    """Read the JSON of `EngineInspector.get_engine_information`.

    A fused DLA region counts as one convolution without dimensions. Layers that only move or join
    data (reformats, pooling, pointwise kernels) count for nothing.

    Args:
        information: that JSON.
        around: how the names of ONNX nodes begin that are not the network's, such as a resize
            before it. They stay in float on purpose, so what computes only these does not count.

    Raises:
        ValueError: it lists no convolution, or was built without detailed verbosity.
    """
    layers = json.loads(information)["Layers"]
    if not all(isinstance(layer, dict) for layer in layers):
        raise ValueError("the engine tells only the names of its layers")
    convolutions = [
        layer for layer in layers if _is_convolution(layer) and not _is_around(layer, around)
    ]
    if not convolutions:
        raise ValueError(f"none of the engine's {len(layers)} layers is a convolution")
    macs = [macs_of(layer) for layer in convolutions]
    known = [each for each in macs if each is not None]
    by_macs = len(known) == len(macs)
    weights: List[int] = known if by_macs else [1] * len(macs)
    shares: Dict[str, float] = {}
    for layer, weight in zip(convolutions, weights):  # noqa: B905 - not in Python 3.8
        precision = precision_of(layer)
        shares[precision] = shares.get(precision, 0.0) + weight / sum(weights)
    return Achieved("macs" if by_macs else "count", len(convolutions), shares)


def precision_of(layer: Dict[str, Any]) -> str:
    """Return the precision of a convolution: that of its first input, which its kernel reads."""
    inputs = layer.get("Inputs") or [{}]
    weights = layer.get("Weights") or layer.get("ConvWeights") or {}
    for text in (inputs[0].get("Format/Datatype", ""), weights.get("Type", "")):
        word = _WORD.search(text)
        if word:
            return _NAMES[word.group(1).lower()]
    return "unknown"


def macs_of(layer: Dict[str, Any]) -> Optional[int]:
    """Return the multiply-accumulates of a convolution, None where its dimensions are not told.

    A transposed convolution counts kernel height x width taps for each input pixel.
    """
    prefix = "Conv" if "ConvKernel" in layer else ""  # fused with pooling: ConvKernel, ConvStride
    try:
        batch, channels, height, width = layer["Inputs"][0]["Dimensions"]
        maps, groups = layer[prefix + "OutMaps"], layer[prefix + "Groups"]
        kernel = layer[prefix + "Kernel"]
        axes = zip(  # noqa: B905
            (height, width),
            kernel,
            layer[prefix + "PrePadding"],
            layer[prefix + "PostPadding"],
            layer[prefix + "Stride"],
            layer[prefix + "Dilation"],
        )
        each = kernel[0] * kernel[1] * channels * maps // groups
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    if "deconv" in _kind(layer):
        return int(batch * height * width * each)
    positions = 1
    for size, taps, before, after, stride, dilation in axes:
        positions *= (size + before + after - dilation * (taps - 1) - 1) // stride + 1
    return int(batch * positions * each)


def _kind(layer: Dict[str, Any]) -> str:
    return f"{layer.get('LayerType', '')} {layer.get('ParameterType', '')}".lower()


def _is_convolution(layer: Dict[str, Any]) -> bool:
    # TensorRT 10 calls some convolutions "correlation"; a DLA region says nothing of its layers.
    return "conv" in _kind(layer) or layer.get("LayerType") in ("correlation", "DLA")


def _is_around(layer: Dict[str, Any], around: Tuple[str, ...]) -> bool:
    # From 10 on a layer tells its ONNX nodes; before, its name joins theirs.
    nodes = _ORIGIN.findall(layer.get("Metadata", "")) or _JOINT.split(layer.get("Name", ""))
    return all(node.startswith(around) for node in nodes)
