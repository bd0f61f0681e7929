"""Small ONNX networks, as text of the operators between two convolutions or behind them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper, parser

from edgeseg.export.foreign import read_onnx
from edgeseg.export.onnx_file import nodes_of
from edgeseg.export.target import OPSET

SIDE = 32


def small_onnx(
    *,
    middle: str = "m = Identity(r)",
    end: str = "y = Identity(z)",
    opset: int = 17,
    out: str = "float[1,1,32,32]",
    constants: Mapping[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    """Return convolution, ReLU, `middle` from r to m, convolution, `end` from z to y; SIDE px.

    r is [1, 4, 32, 32] with channels that differ, m has four channels as well.
    """
    random = np.random.default_rng(7)
    # A convolution over noise with a mean around 0, so that masks are neither empty nor full.
    weights = {
        "w": random.normal(0, 0.5, (4, 1, 3, 3)).astype(np.float32),
        "b": np.array([0.1, 0.2, 0.3, 0.4], np.float32),
        "h": np.array([0.9, -0.8, 0.7, -0.75], np.float32).reshape(1, 4, 1, 1),
        **(constants or {}),
    }
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
        small (float[1,1,{SIDE},{SIDE}] x) => ({out} y) {{
            c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
            r = Relu (c)
            {middle}
            z = Conv (m, h)
            {end}
        }}"""
    model = parser.parse_model(text)
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in weights.items()
    )
    return model


def answer(model: onnx.ModelProto | bytes, image: np.ndarray) -> np.ndarray:
    """Return what ONNX Runtime answers, with no optimisation."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    content = model if isinstance(model, bytes) else model.SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: image})[0]
    return found


def noise(seed: int = 0, side: int = SIDE) -> np.ndarray:
    """Return an input, float32 [1, 1, side, side]."""
    return np.random.default_rng(seed).normal(size=(1, 1, side, side)).astype(np.float32)


def ours_of(
    model: onnx.ModelProto, folder: Path, contract: Path, opset: int = OPSET
) -> onnx.ModelProto:
    """Return what `read_onnx` makes of a model, through a file in a folder."""
    file = folder / "theirs.onnx"
    file.write_bytes(model.SerializeToString())
    return onnx.load_model_from_string(read_onnx(file, contract, opset).to_onnx())


def operators_of(model: onnx.ModelProto) -> set[str]:
    """Return the operators in a model."""
    return {node.op_type for node in nodes_of(model.graph)}


def constant(name: str, *values: float) -> dict[str, np.ndarray]:
    """Return one float constant of a shape [n]."""
    return {name: np.array(values, np.float32)}


def integers(name: str, *values: int) -> dict[str, np.ndarray]:
    """Return one int64 constant of a shape [n]."""
    return {name: np.array(values, np.int64)}


def listed(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """Give the input another type."""
    value = model.graph.input[0]
    value.CopyFrom(helper.make_tensor_value_info(value.name, kind, [1, 1, SIDE, SIDE]))
    return model
