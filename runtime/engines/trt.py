"""TensorRT 8.5 to 11 and TensorRT-RTX: a plan, alone on the GPU that it was made for.

Only names that all of these versions have are used. A plan is code to whoever loads it, so callers
hand over what they have verified.
"""

from __future__ import annotations

import functools
import importlib
import json
import re
import weakref
from pathlib import Path
from types import MappingProxyType
from typing import Any, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np

from ..errors import EngineError, Refused
from . import ModelFiles, affinity, file_with_suffix
from .cuda import Gpu

RELEASE_FILE = Path("/etc/nv_tegra_release")
MODEL_FILE = Path("/proc/device-tree/model")


class Place(NamedTuple):
    """What a plan is tied to, as `build_engine.py` of a kit writes it into the plan's side-car."""

    tensorrt: str  # full version
    compute_capability: str
    l4t: Optional[str]  # Jetson Linux, such as "36.4.3"; None elsewhere
    model: Optional[str]  # of the device tree; None on a PC

    def __str__(self) -> str:
        parts = [self.model, self.l4t and f"L4T {self.l4t}", f"TensorRT {self.tensorrt}"]
        return ", ".join([*filter(None, parts), f"compute capability {self.compute_capability}"])


def open_built(files: ModelFiles) -> TensorRtEngine:
    """Open a plan that was built on this device.

    Args:
        files: the plan and its side-car.

    Raises:
        EngineError: E-ENGINE-DEVICE (no GPU, or another place than it was built on), E-ENGINE-LOAD.
        Refused: E-ENGINE-PLAN (the side-car cannot be read).
    """
    gpu = Gpu()  # before TensorRT, which ends the process where there is no driver
    trt = importlib.import_module("tensorrt")
    try:
        side_car = json.loads(file_with_suffix(files, ".json"))
        built_on = Place(*(side_car[name] for name in Place._fields))
        dla_core = side_car["build"]["dla_core"]
        if not isinstance(dla_core, (int, type(None))):
            raise TypeError(f"DLA core {dla_core!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(
            "E-ENGINE-PLAN", f"the plan's side-car is malformed ({error!r}); build the plan again"
        ) from error
    here = Place(trt.__version__, gpu.compute_capability(), _l4t_version(), _device_model())
    if here != built_on:
        raise EngineError(
            "E-ENGINE-DEVICE",
            f"the plan was built on {built_on}; here is {here}; build it here with build_engine.py",
        )
    plan = file_with_suffix(files, ".plan")
    return TensorRtEngine("tensorrt", trt, gpu, plan, dla_core=dla_core)


def open_ahead(files: ModelFiles) -> TensorRtEngine:
    """Open the plan of TensorRT-RTX that was built ahead of time for this GPU's generation.

    Args:
        files: plans whose names end in ``-sm86.plan`` and the like.

    Raises EngineError: E-ENGINE-DEVICE (no GPU, or none that there is a plan for), E-ENGINE-LOAD.
    """
    gpu = Gpu()
    capability = gpu.compute_capability()
    ending = f"-sm{capability.replace('.', '')}.plan"
    plan = next((content for name, content in files.items() if name.endswith(ending)), None)
    if plan is None:
        raise EngineError(
            "E-ENGINE-DEVICE",
            f"the bundle has {', '.join(files)}; here is compute capability {capability}; export "
            "for the device that it runs on",
        )
    return TensorRtEngine("tensorrt-rtx", importlib.import_module("tensorrt_rtx"), gpu, plan)


class TensorRtEngine:
    """Runs a plan in one stream; the copies to and from the GPU are part of `run`.

    Host buffers are pinned and, like the GPU's, allocated at opening for one frame. A batch of
    another size takes new ones, so that calls of one size in a row pay nothing.
    """

    def __init__(
        self, name: str, trt: Any, gpu: Gpu, plan: bytes, *, dla_core: Optional[int] = None
    ) -> None:
        """Load the plan.

        Args:
            name: key in `ENGINES`.
            trt: the module `tensorrt` or `tensorrt_rtx`.
            gpu: open.
            plan: from a source that is trusted.
            dla_core: that the plan was built for.

        Raises EngineError: E-ENGINE-LOAD, E-ENGINE-DEVICE (its memory ran out).
        """
        self.name = name
        self._gpu = gpu
        said, logger = _logger_of(trt)
        said.clear()
        self._runtime = trt.Runtime(logger)
        if dla_core is not None:
            self._runtime.DLA_core = dla_core
        engine = self._runtime.deserialize_cuda_engine(plan)
        context = engine.create_execution_context() if engine is not None else None
        if context is None:
            reason = "; ".join(said[-2:]) or "it gave no reason"
            raise EngineError(
                "E-ENGINE-LOAD",
                f"{name} {trt.__version__} does not load the plan ({' '.join(reason.split())}); "
                "build it again here",
            )
        self._engine, self._context = engine, context
        self._source, self._target, shape = _ends_of(trt, engine)
        self._is_dynamic = shape[0] == -1
        self._stream = gpu.create_stream()
        self._events = tuple(gpu.create_event() for _ in range(4))
        self._memory: List[int] = []  # addresses on the GPU of the image and the logits
        self._image = self._logits = np.empty(0, np.float32)  # pinned, from `_bind` on
        self._bind((1, *shape[1:]))
        weakref.finalize(
            self, _release, gpu, self._stream, self._events, self._memory
        ).atexit = False  # the driver frees what a process leaves behind
        self.facts: Mapping[str, str] = MappingProxyType(
            {
                "version": str(trt.__version__),
                "device": gpu.name() if dla_core is None else f"DLA core {dla_core}",
                "compute capability": gpu.compute_capability(),
                "driver": f"CUDA {gpu.driver_version()}",
                "threads": "none",
                "streams": "1",  # one call at a time
                "pinning": "no",
                "affinity": affinity(),
            }
        )

    def run(self, image: np.ndarray) -> np.ndarray:
        """Map float32 [N, 1, H, W] to logits, alike; N is 1 but for a plan with a dynamic batch.

        Raises EngineError: E-ENGINE-LOAD (no such batch), E-ENGINE-DEVICE (the GPU failed).
        """
        gpu, stream = self._gpu, self._stream
        gpu.enter()  # the caller's thread may be another than that which opened the session
        if image.shape != self._image.shape:
            self._bind(image.shape)
        np.copyto(self._image, image)
        sent, arrived, done, fetched = self._events
        gpu.record(sent, stream)
        gpu.send(self._memory[0], self._image, stream)
        gpu.record(arrived, stream)
        if not self._context.execute_async_v3(stream):
            raise EngineError("E-ENGINE-DEVICE", f"{self.name} did not run the plan")
        gpu.record(done, stream)
        gpu.fetch(self._logits, self._memory[1], stream)
        gpu.record(fetched, stream)
        gpu.synchronise(stream)
        return self._logits

    @property
    def transfer_ms(self) -> float:
        """Time that the last call's copies to and from the GPU took there."""
        sent, arrived, done, fetched = self._events
        self._gpu.enter()
        return self._gpu.elapsed_ms(sent, arrived) + self._gpu.elapsed_ms(done, fetched)

    def _bind(self, shape: Tuple[int, ...]) -> None:
        """Allocate for inputs of a shape, in place of the last ones."""
        if shape[0] != 1 and not self._is_dynamic:
            raise EngineError(
                "E-ENGINE-LOAD",
                f"the plan takes one frame a call, not {shape[0]}; export with --dynamic",
            )
        self._image = self._logits = np.empty(0, np.float32)  # what fails below is tried again
        if self._is_dynamic and not self._context.set_input_shape(self._source, shape):
            raise EngineError("E-ENGINE-LOAD", f"the plan takes no batch of {shape[0]} frames")
        while self._memory:
            self._gpu.free(self._memory.pop())
        image, logits = self._gpu.pinned(shape), self._gpu.pinned(shape)
        for name, array in ((self._source, image), (self._target, logits)):
            self._memory.append(self._gpu.allocate(array.nbytes))
            self._context.set_tensor_address(name, self._memory[-1])
        self._image, self._logits = image, logits


def _release(gpu: Gpu, stream: int, events: Tuple[int, ...], memory: List[int]) -> None:
    gpu.enter()
    for address in memory:
        gpu.free(address)
    for event in events:
        gpu.destroy_event(event)
    gpu.destroy_stream(stream)


def _ends_of(trt: Any, engine: Any) -> Tuple[str, str, Tuple[int, ...]]:
    """Return the names of input and output and the input's shape; -1 is a dynamic batch.

    Raises EngineError: E-ENGINE-LOAD for a plan of anything but one float image and its logits.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    modes = [engine.get_tensor_mode(name) for name in names]
    shapes = [tuple(engine.get_tensor_shape(name)) for name in names]
    types = {engine.get_tensor_dtype(name) for name in names}
    inputs = [n for n, mode in zip(names, modes) if mode == trt.TensorIOMode.INPUT]  # noqa: B905
    if len(names) != 2 or len(inputs) != 1 or types != {trt.DataType.FLOAT} or len(set(shapes)) > 1:
        raise EngineError(
            "E-ENGINE-LOAD",
            f"the plan has {', '.join(map(str, zip(names, shapes)))} of {len(types)} types; "  # noqa: B905
            "expected one float image and its logits, so build it from a kit",
        )
    target = next(name for name in names if name != inputs[0])
    return inputs[0], target, shapes[0]


@functools.lru_cache(maxsize=None)  # all of a process log into the first logger that TensorRT met
def _logger_of(trt: Any) -> Tuple[List[str], Any]:
    """Return what TensorRT says of errors, as it comes, and the logger that notes it."""
    said: List[str] = []
    errors = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)

    class Log(trt.ILogger):  # type: ignore[misc]  # its base is known only now
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in errors:
                said.append(message)

    return said, Log()


def _l4t_version() -> Optional[str]:
    """Return the version of Jetson Linux, None elsewhere."""
    text = _text_of(RELEASE_FILE)
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text or "")
    return f"{found.group(1)}.{found.group(2)}" if found else None


def _device_model() -> Optional[str]:
    """Return the board's name in the device tree, None on a PC."""
    text = _text_of(MODEL_FILE)
    return None if text is None else text.rstrip("\0\n")


def _text_of(path: Path) -> Optional[str]:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None
