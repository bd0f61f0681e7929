"""ONNX to OpenVINO IR: FP32, FP16 weights, or INT8 from Q/DQ pairs."""

from __future__ import annotations

from pathlib import Path

import openvino as ov


def openvino_from_onnx(
    model: bytes, folder: Path, *, half: bool = False, max_batch: int = 1
) -> None:
    """Write ``model.xml`` and ``model.bin`` into `folder`.

    Args:
        model: ONNX in FP32, or with Q/DQ pairs, which OpenVINO runs in INT8.
        folder: exists.
        half: store the weights in FP16.
        max_batch: upper end of a dynamic batch axis, where `model` has one.
    """
    source = folder / "source.onnx"
    source.write_bytes(model)
    network = ov.convert_model(source)
    if network.is_dynamic():
        shape = network.input(0).get_partial_shape()
        shape[0] = ov.Dimension(1, max_batch)
        network.reshape(shape)
    ov.save_model(network, folder / "model.xml", compress_to_fp16=half)
    source.unlink()
