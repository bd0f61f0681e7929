"""ONNX to OpenVINO IR: FP32, FP16 weights, or INT8 by NNCF."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
import openvino as ov


def openvino_from_onnx(
    model: bytes, folder: Path, *, precision: str, images: Collection[np.ndarray]
) -> tuple[str, str]:
    """Write ``model.xml`` and ``model.bin`` into `folder`; return the two names.

    Args:
        model: FP32 ONNX.
        folder: exists.
        precision: "fp32", "fp16" (weights stored in FP16) or "int8".
        images: calibration inputs for "int8", float32 [1, 1, H, W] each.
    """
    onnx_file = folder / "source.onnx"
    onnx_file.write_bytes(model)
    network = ov.convert_model(onnx_file)
    if precision == "int8":
        network = _quantise(network, images)
    ov.save_model(network, folder / "model.xml", compress_to_fp16=precision == "fp16")
    onnx_file.unlink()
    return "model.xml", "model.bin"


def _quantise(network: ov.Model, images: Collection[np.ndarray]) -> ov.Model:
    # NNCF reports usage over the network unless this is set before it is imported.
    os.environ.setdefault("NNCF_CI", "1")
    import nncf

    nncf.set_log_level(logging.ERROR)
    # As in Q/DQ ONNX: the head and the attention maps stay in float.
    single = [
        node.get_friendly_name()
        for node in network.get_ops()
        if node.get_type_name() == "Convolution" and node.output(0).shape[1] == 1
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # its own bars; ours are in `images`
        return nncf.quantize(
            network,
            nncf.Dataset(images),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(images),
            # The layer-by-layer correction halved the flipped pixels on BUSI against the fast one.
            fast_bias_correction=False,
            ignored_scope=nncf.IgnoredScope(names=single),
        )
