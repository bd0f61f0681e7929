"""FP16 by casting the graph, INT8 Q/DQ by calibration on real frames; ONNX in, ONNX out."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx


def fp16_from_onnx(model: bytes) -> bytes:
    """Return the graph in FP16, its input and output left in FP32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    half = convert_float_to_float16(onnx.load_model_from_string(model), keep_io_types=True)
    OnnxModel(half).topological_sort()  # the converter appends its casts at the end
    onnx.checker.check_model(half, full_check=True)
    return bytes(half.SerializeToString(deterministic=True))


def qdq_from_onnx(model: bytes, images: Collection[np.ndarray], *, weight_bits: int = 8) -> bytes:
    """Return the graph with Q/DQ pairs around its convolutions, ranges from real frames.

    Symmetric INT8, weights per output channel, biases left in float: what the parsers of
    TensorRT 8.5 to 11 take. Convolutions with one output channel (the head and the attention
    maps) stay in float: they cost little and every mask hangs on them.

    Args:
        model: FP32 ONNX.
        images: calibration inputs, float32 [1, 1, H, W] each; ranges are their minimum and maximum.
        weight_bits: 8, or 7 for kernels that sum two products in 16 bits (x86 without VNNI).
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    graph = onnx.load_model_from_string(model).graph
    channels = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    single = [
        node.name for node in graph.node if node.op_type == "Conv" and channels[node.input[1]] == 1
    ]

    class Frames(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._next = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self._next, None)
            return None if image is None else {graph.input[0].name: image}

    logging.getLogger().addFilter(_not_preprocessing_advice)
    try:
        with tempfile.TemporaryDirectory() as folder:
            source, result = Path(folder, "fp32.onnx"), Path(folder, "qdq.onnx")
            source.write_bytes(model)
            quantize_static(
                source,
                result,
                Frames(),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=weight_bits == 7,
                op_types_to_quantize=["Conv"],
                nodes_to_exclude=single,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                },
            )
            quantised = onnx.load_model(result)
    finally:
        logging.getLogger().removeFilter(_not_preprocessing_advice)
    onnx.checker.check_model(quantised, full_check=True)
    return bytes(quantised.SerializeToString(deterministic=True))


def _not_preprocessing_advice(record: logging.LogRecord) -> bool:
    """Drop the advice to fold and infer shapes first: the exporter has done both."""
    return "pre-processing before quantization" not in record.getMessage()
