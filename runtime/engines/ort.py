"""ONNX Runtime: the CPU execution provider, or one of a GPU and nothing beside it."""

from __future__ import annotations

from typing import Any, Mapping

import numpy as np
import onnxruntime as ort

from ..errors import EngineError
from . import ModelFiles, affinity, file_with_suffix

CPU = "CPUExecutionProvider"
_NO_FALLBACK = "session.disable_cpu_ep_fallback"
_NO_FALLBACK_SINCE = (1, 16)  # older versions ignore it


def session_options(threads: int) -> ort.SessionOptions:
    """Return what `OnnxRuntimeEngine` runs with, for whoever profiles the same network."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.log_severity_level = 3
    return options


class OnnxRuntimeEngine:
    """Runs `model.onnx` in one execution provider, with a fixed number of threads on the host.

    ONNX Runtime by itself puts on the CPU what a GPU's provider does not take, and everything where
    its libraries do not load; here each of the two is an error. Copies to and from a GPU are part
    of `run`.
    """

    def __init__(
        self, files: ModelFiles, threads: int, provider: str = CPU, name: str = "onnxruntime"
    ) -> None:
        """Load the model. Raises EngineError: E-ENGINE-LOAD, E-ENGINE-DEVICE."""
        self.name = name
        options = session_options(threads)
        model = file_with_suffix(files, ".onnx")
        if provider != CPU:
            _require_provider(provider)
            options.add_session_config_entry(_NO_FALLBACK, "1")
        try:
            self._session = ort.InferenceSession(model, options, providers=[provider])
        except Exception as error:  # the library's errors share no narrower base
            if "fallback to CPU" in str(error):
                raise EngineError(
                    "E-ENGINE-DEVICE",
                    f"{provider} does not take the whole model and the rest would run on the CPU; "
                    "run it in onnxruntime, or export another precision",
                ) from error
            raise EngineError("E-ENGINE-LOAD", f"onnxruntime refused the model: {error}") from error
        self._session.disable_fallback()  # a failed run stays one
        first = self._session.get_providers()[0]
        if first != provider:
            raise EngineError(
                "E-ENGINE-DEVICE",
                f"{provider} does not work here and onnxruntime fell back to {first}; install the "
                f"GPU libraries that onnxruntime {ort.__version__} was built for",
            )
        self._input: str = self._session.get_inputs()[0].name
        self._output: list[str] = [self._session.get_outputs()[0].name]
        self.facts: Mapping[str, str] = {
            "version": ort.__version__,
            "device": "CPU" if provider == CPU else "GPU",
            "provider": provider,
            "threads": str(threads),
            "streams": "1",  # one call at a time
            "spinning": "yes",
            "pinning": "no",  # ONNX Runtime pins only a number of threads that it chose itself
            "affinity": affinity(),
        }

    def run(self, image: np.ndarray) -> np.ndarray:
        """Map float32 [1, 1, H, W] to logits float32 [1, 1, H, W]."""
        result: Any = self._session.run(self._output, {self._input: image})
        return np.asarray(result[0])


def _require_provider(provider: str) -> None:
    """Raise EngineError (E-ENGINE-DEVICE) where a provider is missing or could fall back."""
    available = ort.get_available_providers()
    if provider not in available:
        raise EngineError(
            "E-ENGINE-DEVICE",
            f"this onnxruntime has {', '.join(available)} and no {provider}; "
            "pip uninstall onnxruntime, then pip install onnxruntime-gpu",
        )
    if tuple(map(int, ort.__version__.split(".")[:2])) < _NO_FALLBACK_SINCE:
        raise EngineError(
            "E-ENGINE-DEVICE",
            f"onnxruntime {ort.__version__} cannot be kept from falling back to the CPU; "
            "install 1.16 or newer",
        )
