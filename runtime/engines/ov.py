"""OpenVINO: the CPU plugin, or the GPU plugin alone."""

from __future__ import annotations

import threading
from collections import Counter
from io import BytesIO
from typing import Dict, Mapping, Optional

import numpy as np
import openvino as ov

from ..errors import EngineError
from . import ModelFiles, affinity, file_with_suffix

_core: Optional[ov.Core] = None
_making_core = threading.Lock()


def shared_core() -> ov.Core:
    """Return the process's one core, which is never given back.

    A core's CPU plugin puts a stack of its own under the thread's signal handlers, for CPUs with
    AMX, and brings back the one that it found when it goes. Of two that go in the order in which
    they came, the second brings back what the first has freed: the next signal, such as Ctrl-C,
    is a crash (OpenVINO 2022.3 to 2026.4, `SigAltStackSetup` of the CPU plugin).
    """
    global _core
    with _making_core:
        if _core is None:
            _core = ov.Core()
        return _core


def settings(threads: Optional[int], arithmetic: str = "f32") -> Dict[str, str]:
    """Return what `OpenVinoEngine` compiles with, for whoever profiles the same network.

    threads: of a CPU; None for a device that has none.
    arithmetic: of what is not quantised, "f32" or "bf16".
    """
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_PRECISION_HINT": arithmetic,
        **({} if threads is None else {"INFERENCE_NUM_THREADS": str(threads)}),
    }


class OpenVinoEngine:
    """Runs an OpenVINO IR in float32 and one stream, on the CPU or on the first GPU alone.

    What is not quantised runs in float32: on CPUs with bf16, and on GPUs, the plugin would
    otherwise choose a shorter type by itself, and the masks would depend on the machine. In
    bfloat16 it runs only where that was asked for.
    """

    def __init__(
        self, files: ModelFiles, threads: int, device: str = "CPU", arithmetic: str = "f32"
    ) -> None:
        """Compile the model.

        Args:
            files: the IR.
            threads: of the CPU, >= 1; a GPU has none.
            device: "CPU" or "GPU".
            arithmetic: "f32", or of a CPU that has it "bf16".

        Raises EngineError: E-ENGINE-LOAD, E-ENGINE-DEVICE.
        """
        on_cpu = device == "CPU"
        self.name = "openvino" if on_cpu else "openvino-gpu"
        if arithmetic == "bf16":
            self.name = "openvino-bf16"
        core = shared_core()
        if not any(found.startswith(device) for found in core.available_devices):
            raise EngineError(
                "E-ENGINE-DEVICE",
                f"OpenVINO {ov.__version__} finds {', '.join(core.available_devices)} and no "
                f"{device}; install the driver of the {device} (of Intel's: intel-opencl-icd)",
            )
        options = settings(threads if on_cpu else None, arithmetic)
        try:
            model = core.read_model(
                BytesIO(file_with_suffix(files, ".xml")), BytesIO(file_with_suffix(files, ".bin"))
            )
            compiled = core.compile_model(model, device, options)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise EngineError("E-ENGINE-LOAD", f"openvino refused the model: {reason}") from error
        used = [str(each) for each in compiled.get_property("EXECUTION_DEVICES")]
        if not used or not all(each.startswith(device) for each in used):
            raise EngineError(
                "E-ENGINE-DEVICE",
                f"OpenVINO runs the model on {', '.join(used) or 'nothing'} and not on the "
                f"{device} alone; run it in openvino",
            )
        if arithmetic == "bf16" and "bf16" not in (
            types := _convolution_types(compiled.get_runtime_model())
        ):
            raise EngineError(
                "E-ENGINE-DEVICE",
                f"OpenVINO was asked for bf16 and runs the convolutions as {types or 'nothing'}; "
                "unset ONEDNN_MAX_CPU_ISA if it is set, or run another precision",
            )
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        # Filled in place: binding a tensor at each call costs a small network 4 % of its time.
        image = self._request.get_input_tensor(0)
        if compiled.input(0).partial_shape.is_dynamic:
            image.shape = [
                1,
                *(dim.get_length() for dim in list(compiled.input(0).partial_shape)[1:]),
            ]
        self._image: np.ndarray = image.data
        # A buffer of our own, that the plugin writes to: asking for its tensor at each call, and
        # the copy of the results that `infer` makes unless they are shared, cost 4 us.
        self._logits: Optional[np.ndarray] = None
        if on_cpu and compiled.output(0).partial_shape.is_static:
            self._logits = np.empty(list(compiled.output(0).shape), np.float32)
            self._request.set_output_tensor(0, ov.Tensor(self._logits, shared_memory=True))
        self.facts: Mapping[str, str] = {
            "version": ov.__version__,
            "device": ", ".join(used),
            "streams": str(compiled.get_property("NUM_STREAMS")),
            "affinity": affinity(),
            **(_cpu_facts(compiled) if on_cpu else {"threads": "none", "pinning": "no"}),
        }

    def run(self, image: np.ndarray) -> np.ndarray:
        """Map float32 [1, 1, H, W] to logits float32 [1, 1, H, W]."""
        if image.shape != self._image.shape:  # a batch, of a bundle that takes one
            return np.asarray(self._compiled({0: image})[0])
        np.copyto(self._image, image)
        self._request.infer(share_outputs=True)
        if self._logits is not None:
            return self._logits
        logits: np.ndarray = self._request.get_output_tensor(0).data
        return logits


def _cpu_facts(compiled: ov.CompiledModel) -> Mapping[str, str]:
    return {
        "threads": str(compiled.get_property("INFERENCE_NUM_THREADS")),
        "pinning": "yes" if compiled.get_property("ENABLE_CPU_PINNING") else "no",
        "convolutions": _convolution_types(compiled.get_runtime_model()),
    }


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
