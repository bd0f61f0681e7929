"""ONNX Runtime, CPU execution provider."""

from __future__ import annotations

from typing import Any, Mapping

import numpy as np
import onnxruntime as ort

from ..errors import EngineError
from . import ModelFiles, file_with_suffix


def session_options(threads: int) -> ort.SessionOptions:
    """Return what `OnnxRuntimeEngine` runs with, for whoever profiles the same network."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


class OnnxRuntimeEngine:
    """Runs `model.onnx` on the CPU with a fixed number of threads."""

    name = "onnxruntime"

    def __init__(self, files: ModelFiles, threads: int) -> None:
        """Load the model. Raises EngineError (E-ENGINE-LOAD)."""
        try:
            self._session = ort.InferenceSession(
                file_with_suffix(files, ".onnx"),
                session_options(threads),
                providers=["CPUExecutionProvider"],
            )
        except Exception as error:  # the library's errors share no narrower base
            raise EngineError("E-ENGINE-LOAD", f"onnxruntime refused the model: {error}") from error
        self._input: str = self._session.get_inputs()[0].name
        self._output: list[str] = [self._session.get_outputs()[0].name]
        self.facts: Mapping[str, str] = {
            "version": ort.__version__,
            "device": "CPU",
            "threads": str(threads),
        }

    def run(self, image: np.ndarray) -> np.ndarray:
        """Map float32 [1, 1, H, W] to logits float32 [1, 1, H, W]."""
        result: Any = self._session.run(self._output, {self._input: image})
        return np.asarray(result[0])
