"""A bundle that runs: its network marks what is brighter than the mean, made in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeseg.runtime.bundle import GoldenVectors, seal_bundle
from edgeseg.runtime.contract import InputContract
from edgeseg.tests.support.fabricated_bundle import manifest_fields


def write_working_bundle(folder: Path, **changes: Any) -> Path:
    """Write a bundle for ONNX Runtime into a new folder; `changes` are of the manifest's fields."""
    onnx = pytest.importorskip("onnx", reason="no onnx; make install brings it")
    contract = InputContract(height=32, width=32)
    shape = [1, 1, contract.height, contract.width]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name in ("image", "logits")
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Mul", ["image", "gain"], ["logits"])],
        "bright",
        ends[:1],
        ends[1:],
        [onnx.helper.make_tensor("gain", onnx.TensorProto.FLOAT, [1], [9.0])],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    fields = {
        **manifest_fields(),
        "contract": contract,
        "models": {"onnxruntime": ("model.onnx",)},
        "vectors": GoldenVectors((), {}, {}),
        **changes,
    }
    seal_bundle(folder, fields)
    return folder
