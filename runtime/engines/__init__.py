"""What runs a model file: one small adapter for each engine library and device.

An engine is opened by name with `open_engine`; its library is imported only then. An engine whose
device is not there, or that would run part of the model elsewhere, is an error.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import PurePosixPath
from typing import Callable, Dict, Mapping, NamedTuple, Optional, Protocol, Tuple

import numpy as np

from ..cpu import require_features
from ..errors import EngineError


class Engine(Protocol):
    """The only thing an engine must be: a name, some facts, and `run`.

    One that copies to a device may also tell how long the copies of the last call took there, in
    an attribute `transfer_ms`.
    """

    @property
    def name(self) -> str:
        """Key in `ENGINES`, or the name of an engine outside the runtime."""
        ...

    @property
    def facts(self) -> Mapping[str, str]:
        """Version, device, threads, streams, pinning and what else belongs in a report."""
        ...

    def run(self, image: np.ndarray) -> np.ndarray:
        """Map float32 [1, 1, H, W] to logits float32 [1, 1, H, W].

        The result may be a view of the engine's own buffer, valid until the next call.
        """
        ...


ModelFiles = Mapping[str, bytes]  # file name -> verified content


def _open_openvino(files: ModelFiles, threads: int) -> Engine:
    from .ov import OpenVinoEngine

    return OpenVinoEngine(files, threads)


def _open_openvino_bf16(files: ModelFiles, threads: int) -> Engine:
    from .ov import OpenVinoEngine

    return OpenVinoEngine(files, threads, arithmetic="bf16")


def _open_openvino_gpu(files: ModelFiles, threads: int) -> Engine:
    from .ov import OpenVinoEngine

    return OpenVinoEngine(files, threads, "GPU")


def _open_onnxruntime(files: ModelFiles, threads: int) -> Engine:
    from .ort import OnnxRuntimeEngine

    return OnnxRuntimeEngine(files, threads)


def _open_onnxruntime_cuda(files: ModelFiles, threads: int) -> Engine:
    from .ort import OnnxRuntimeEngine

    return OnnxRuntimeEngine(files, threads, "CUDAExecutionProvider", "onnxruntime-cuda")


def _open_onnxruntime_tensorrt(files: ModelFiles, threads: int) -> Engine:
    from .ort import OnnxRuntimeEngine

    return OnnxRuntimeEngine(files, threads, "TensorrtExecutionProvider", "onnxruntime-tensorrt")


def _open_tensorrt(files: ModelFiles, threads: int) -> Engine:
    from .trt import open_built

    return open_built(files)


def _open_tensorrt_rtx(files: ModelFiles, threads: int) -> Engine:
    from .trt import open_ahead

    return open_ahead(files)


class _EngineEntry(NamedTuple):
    package: str  # importable name of the library
    extra: str  # what to install it with
    suffixes: Tuple[str, ...]  # of the model files, all needed
    family: str  # of reports, which colour and compare by it
    from_onnx: bool  # an ONNX makes its files on any machine, so it can be measured on any network
    opener: Callable[[ModelFiles, int], Engine]
    files_of: str = ""  # engine whose files it runs in a bundle, where not its own
    on_cpu: bool = False  # runs on any machine, or any that has what is in `cpu`
    on_nvidia: bool = True  # its GPUs are NVIDIA's
    cpu: Tuple[str, ...] = ()  # what the CPU must have, keys of `cpu.FEATURES`


_OPENVINO = ("openvino", "pip install 'edgeseg[openvino]'", (".xml", ".bin"), "openvino", True)
_ONNXRUNTIME = ("onnxruntime", "pip install onnxruntime", (".onnx",), "onnxruntime", True)
_TENSORRT = (
    "tensorrt",
    "apt install python3-libnvinfer on a Jetson, pip install 'edgeseg[tensorrt]' elsewhere",
    (".plan", ".json"),
    "tensorrt",
    False,
)
_TENSORRT_RTX = ("tensorrt_rtx", "pip install 'edgeseg[rtx]'", (".plan",), "tensorrt", False)
_ONNXRUNTIME_GPU = ("onnxruntime", "pip install onnxruntime-gpu", (".onnx",), "onnxruntime", True)

# To add an engine: a module beside this one and a line here. One with `files_of` is in no bundle's
# list, so it is never chosen but only asked for by name.
ENGINES: Dict[str, _EngineEntry] = {
    "openvino": _EngineEntry(*_OPENVINO, _open_openvino, on_cpu=True, on_nvidia=False),
    "onnxruntime": _EngineEntry(*_ONNXRUNTIME, _open_onnxruntime, on_cpu=True),
    # An engine and not an option of one: a runtime that does not know it refuses the bundle.
    "openvino-bf16": _EngineEntry(
        *_OPENVINO, _open_openvino_bf16, on_cpu=True, on_nvidia=False, cpu=("bf16",)
    ),
    "openvino-gpu": _EngineEntry(*_OPENVINO, _open_openvino_gpu, "openvino", on_nvidia=False),
    "onnxruntime-cuda": _EngineEntry(*_ONNXRUNTIME_GPU, _open_onnxruntime_cuda, "onnxruntime"),
    "onnxruntime-tensorrt": _EngineEntry(
        *_ONNXRUNTIME_GPU, _open_onnxruntime_tensorrt, "onnxruntime"
    ),
    "tensorrt": _EngineEntry(*_TENSORRT, _open_tensorrt),
    "tensorrt-rtx": _EngineEntry(*_TENSORRT_RTX, _open_tensorrt_rtx),
}


def entry_of(name: str) -> Optional[_EngineEntry]:
    """Return the entry of an engine, or of what a name such as openvino-default begins with."""
    after = [each for each in ENGINES if f"{name}-".startswith(f"{each}-")]
    return ENGINES[max(after, key=len)] if after else None


def files_of(name: str) -> str:
    """Return the engine under which a bundle lists the files of another, or of itself."""
    return (ENGINES[name].files_of if name in ENGINES else "") or name


def is_installed(name: str) -> bool:
    """Say whether the library of a known engine can be imported, without importing it."""
    return importlib.util.find_spec(ENGINES[name].package) is not None


def require_installed(name: str) -> None:
    """Raise EngineError (E-EXTRA-MISSING) where the library of a known engine is missing."""
    if not is_installed(name):
        extra = ENGINES[name].extra
        raise EngineError("E-EXTRA-MISSING", f"engine {name!r} is not installed; {extra}")


def available_threads() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def affinity() -> str:
    """Return the cores that this process may use, as ``0,1,4``; it is never changed here."""
    if not hasattr(os, "sched_getaffinity"):
        return "unknown"
    return ",".join(map(str, sorted(os.sched_getaffinity(0))))


def open_engine(name: str, files: ModelFiles, threads: int) -> Engine:
    """Open a known engine.

    Args:
        name: key in `ENGINES`.
        files: content by name; which suffixes are needed is in the table.
        threads: number of threads the engine may use, >= 1; a GPU ignores it.

    Raises:
        EngineError: E-EXTRA-MISSING (library not installed), E-ENGINE-LOAD (model refused),
            E-ENGINE-DEVICE (the device is not there, or part of the model would run elsewhere),
            E-CPU-FEATURE (the CPU does not have what the engine needs).
    """
    require_installed(name)
    require_features(ENGINES[name].cpu, f"engine {name!r}")
    return ENGINES[name].opener(files, threads)


def file_with_suffix(files: ModelFiles, suffix: str) -> bytes:
    """Return the content of the one file with this suffix. Raises EngineError (E-ENGINE-LOAD)."""
    found = [content for name, content in files.items() if PurePosixPath(name).suffix == suffix]
    if len(found) != 1:
        raise EngineError("E-ENGINE-LOAD", f"{len(found)} files end in {suffix}; expected one")
    return found[0]
