"""Memory, copies and clocks of NVIDIA's GPU 0, through the driver's own library and ctypes.

``libcuda`` comes with every driver, and the calls here are those of CUDA 7, so no package is needed
on any JetPack; where it is missing or finds no GPU, nothing of TensorRT may be touched. The primary
context is used, as by TensorRT and PyTorch.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from typing import Any, Tuple

import numpy as np

from ..errors import EngineError

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# CUdevice_attribute
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_OUT_OF_MEMORY = 2


class Gpu:
    """GPU 0, opened once; every call raises EngineError where the driver reports an error.

    Addresses, streams and events are integers. The context is current in the thread that called
    `enter` last time it ran, so whoever uses another thread calls it there first.
    """

    def __init__(self) -> None:
        """Find the driver and its first GPU. Raises EngineError (E-ENGINE-DEVICE)."""
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise EngineError(
                "E-ENGINE-DEVICE",
                f"no NVIDIA driver is here ({error}); install it, or run another engine",
            ) from error
        code = self._library.cuInit(0)
        found = ctypes.c_int()
        if code == 0:
            code = self._library.cuDeviceGetCount(ctypes.byref(found))
        if code or not found.value:
            reason = f"error {code}" if code else "it finds none"
            raise EngineError(
                "E-ENGINE-DEVICE",
                f"the NVIDIA driver gives no GPU ({reason}); run `nvidia-smi`, or another engine",
            )
        self._context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), 0)
        self.enter()

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            what = "out of memory" if code == _OUT_OF_MEMORY else f"error {code}"
            raise EngineError(
                "E-ENGINE-DEVICE", f"{name} of the NVIDIA driver: {what}; see `nvidia-smi`"
            )

    def _integer(self, name: str, *arguments: Any) -> int:
        value = ctypes.c_int()
        self._call(name, ctypes.byref(value), *arguments)
        return value.value

    def _pointer(self, name: str, *arguments: Any) -> int:
        value = ctypes.c_void_p()
        self._call(name, ctypes.byref(value), *arguments)
        return value.value or 0

    def enter(self) -> None:
        """Make the GPU's primary context current in this thread."""
        self._call("cuCtxSetCurrent", self._context)

    def compute_capability(self) -> str:
        """Return it as ``8.7``."""
        major, minor = (
            self._integer("cuDeviceGetAttribute", which, 0)
            for which in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)
        )
        return f"{major}.{minor}"

    def name(self) -> str:
        """Return the GPU's name."""
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, len(text), 0)
        return text.value.decode("utf-8", "replace")

    def driver_version(self) -> str:
        """Return the newest CUDA version that the driver knows, as ``12.6``."""
        number = self._integer("cuDriverGetVersion")
        return f"{number // 1000}.{number % 1000 // 10}"

    def allocate(self, size: int) -> int:
        """Return the address of so many bytes on the GPU."""
        return self._pointer("cuMemAlloc_v2", ctypes.c_size_t(size))

    def free(self, address: int) -> None:
        """Give back what `allocate` returned."""
        self._call("cuMemFree_v2", ctypes.c_void_p(address))

    def pinned(self, shape: Tuple[int, ...]) -> np.ndarray:
        """Return zeros, float32, in page-locked memory, which the GPU copies from by itself.

        It is given back when the array and all its views are gone.
        """
        count = int(np.prod(shape))
        address = self._pointer("cuMemHostAlloc", ctypes.c_size_t(4 * count), 0)
        block = (ctypes.c_float * count).from_address(address)
        weakref.finalize(block, self._free_pinned, address).atexit = False  # the driver does then
        array: np.ndarray = np.ctypeslib.as_array(block).reshape(shape)
        array[...] = 0
        return array

    def _free_pinned(self, address: int) -> None:
        self.enter()
        self._call("cuMemFreeHost", ctypes.c_void_p(address))

    def create_stream(self) -> int:
        """Return a stream that does not wait for the default one."""
        return self._pointer("cuStreamCreate", 1)

    def destroy_stream(self, stream: int) -> None:
        """Give back what `create_stream` returned."""
        self._call("cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def create_event(self) -> int:
        """Return an event that notes when the GPU reaches it."""
        return self._pointer("cuEventCreate", 0)

    def destroy_event(self, event: int) -> None:
        """Give back what `create_event` returned."""
        self._call("cuEventDestroy_v2", ctypes.c_void_p(event))

    def record(self, event: int, stream: int) -> None:
        """Put an event into a stream."""
        self._call("cuEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(stream))

    def elapsed_ms(self, first: int, second: int) -> float:
        """Return the time between two events that the GPU has reached."""
        value = ctypes.c_float()
        pair = ctypes.c_void_p(first), ctypes.c_void_p(second)
        self._call("cuEventElapsedTime", ctypes.byref(value), *pair)
        return value.value

    def send(self, address: int, array: np.ndarray, stream: int) -> None:
        """Enqueue a copy of a pinned, C-contiguous array to the GPU."""
        self._call(
            "cuMemcpyHtoDAsync_v2",
            ctypes.c_void_p(address),
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_size_t(array.nbytes),
            ctypes.c_void_p(stream),
        )

    def fetch(self, array: np.ndarray, address: int, stream: int) -> None:
        """Enqueue a copy from the GPU to a pinned, C-contiguous array."""
        self._call(
            "cuMemcpyDtoHAsync_v2",
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_void_p(address),
            ctypes.c_size_t(array.nbytes),
            ctypes.c_void_p(stream),
        )

    def synchronise(self, stream: int) -> None:
        """Wait for everything in a stream."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))
