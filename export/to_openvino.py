"""ONNX to OpenVINO IR: FP32, FP16 weights, or INT8 from Q/DQ pairs."""

from __future__ import annotations

from pathlib import Path

import openvino as ov


def openvino_from_onnx(model: bytes, folder: Path, *, half: bool = False) -> None:
    """Write ``model.xml`` and ``model.bin`` into `folder`.

    Args:
        model: ONNX in FP32, or with Q/DQ pairs, which OpenVINO runs in INT8.
        folder: exists.
        half: store the weights in FP16.
    """
    source = folder / "source.onnx"
    source.write_bytes(model)
    network = ov.convert_model(source)
    ov.save_model(network, folder / "model.xml", compress_to_fp16=half)
    source.unlink()
