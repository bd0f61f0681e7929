"""OpenVINO, CPU plugin."""

from __future__ import annotations

from collections import Counter
from io import BytesIO
from typing import Dict, Mapping

import numpy as np
import openvino as ov

from ..errors import EngineError
from . import ModelFiles, file_with_suffix


def settings(threads: int) -> Dict[str, str]:
    """Return what `OpenVinoEngine` compiles with, for whoever profiles the same network."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": "f32",
    }


class OpenVinoEngine:
    """Runs an OpenVINO IR on the CPU, one stream, a fixed number of threads.

    What is not quantised runs in float32: on CPUs with bf16 the plugin would otherwise choose
    bf16 by itself, and the masks would depend on the machine.
    """

    name = "openvino"

    def __init__(self, files: ModelFiles, threads: int) -> None:
        """Compile the model. Raises EngineError (E-ENGINE-LOAD)."""
        try:
            core = ov.Core()
            model = core.read_model(
                BytesIO(file_with_suffix(files, ".xml")), BytesIO(file_with_suffix(files, ".bin"))
            )
            compiled = core.compile_model(model, "CPU", settings(threads))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise EngineError("E-ENGINE-LOAD", f"openvino refused the model: {reason}") from error
        self._request = compiled.create_infer_request()
        self._output = compiled.output(0)
        self.facts: Mapping[str, str] = {
            "version": ov.__version__,
            "device": "CPU",
            "threads": str(compiled.get_property("INFERENCE_NUM_THREADS")),
            "convolutions": _convolution_types(compiled.get_runtime_model()),
        }

    def run(self, image: np.ndarray) -> np.ndarray:
        """Map float32 [1, 1, H, W] to logits float32 [1, 1, H, W]."""
        result = self._request.infer({0: image}, share_inputs=True, share_outputs=True)
        return np.asarray(result[self._output])


def _convolution_types(runtime_model: ov.Model) -> str:
    """Count the executed convolutions by the type that their kernels read, as ``f32 4, u8 31``.

    A kernel's name ends in it (``brgconv_avx2_f32``); the ``runtimePrecision`` beside it says f16
    for weights that are only stored so.
    """
    types: Counter[str] = Counter()
    for node in runtime_model.get_ops():
        info = node.get_rt_info()
        if "layerType" in info and "Convolution" in str(info["layerType"].value):
            types[str(info["primitiveType"].value).rpartition("_")[2].lower()] += 1
    return ", ".join(f"{name} {count}" for name, count in sorted(types.items()))
