"""Device memory and streams behind six calls, from whichever CUDA package is there.

NVIDIA's cuda-python, pycuda or libcudart itself through ctypes; all use the device's primary
context, as TensorRT does. Only the standard library is imported before a provider is opened; valid
Python 3.8.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional, Tuple

if TYPE_CHECKING:
    import numpy as np

# JetPack 7, 6 and 5. The folder is where JetPack puts them, should the linker not know.
LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
FOLDERS = ("", "/usr/local/cuda/lib64/")
# cudaDeviceAttr and cudaMemcpyKind of driver_types.h
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_TO_DEVICE, _TO_HOST = 1, 2


class CudaError(Exception):
    """CUDA said no, or a provider is not there."""

    def __init__(self, call: str, name: str) -> None:
        super().__init__(f"{call}: {name}")
        self.out_of_memory = "MemoryAllocation" in name or "out of memory" in name


class CudaFacts(NamedTuple):
    """What the runtime tells about itself and device 0."""

    provider: str  # a key of PROVIDERS
    runtime: str  # version of the CUDA runtime, such as "12.6"
    driver: str  # newest CUDA version that the driver knows
    compute_capability: str  # such as "8.7"


class Cuda(NamedTuple):
    """Device 0. Addresses and streams are integers; arrays are C-contiguous.

    Every call raises CudaError where CUDA reports one.
    """

    facts: CudaFacts
    alloc: Callable[[int], int]  # bytes -> device address
    free: Callable[[int], None]
    copy_to_device: Callable[[int, np.ndarray], None]  # waits for what was enqueued before
    copy_to_host: Callable[[np.ndarray, int], None]
    create_stream: Callable[[], int]
    synchronise: Callable[[int], None]
    memory_mib: Callable[[], Tuple[int, int]]  # free and total, in MiB


def open_cuda(provider: Optional[str] = None) -> Cuda:
    """Open device 0 with one provider, or with the first of PROVIDERS that works.

    Raises:
        CudaError: none works; the message tells why for each.
    """
    reasons: List[str] = []
    for name in [provider] if provider else list(PROVIDERS):
        try:
            return PROVIDERS[name]()
        # RuntimeError: cuda-python without a driver raises one of its own kind.
        except (CudaError, ImportError, OSError, RuntimeError) as error:
            reasons.append(f"{name} ({error})")
    raise CudaError("no CUDA", "; ".join(reasons))


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _with_cuda_python() -> Cuda:
    runtime = importlib.import_module("cuda.bindings.runtime")

    def call(name: str, *arguments: Any) -> Any:
        error, *values = getattr(runtime, name)(*arguments)
        if int(error):
            raise CudaError(name, str(getattr(error, "name", error)))
        return values[0] if len(values) == 1 else values

    def attribute(name: str) -> int:
        wanted = getattr(runtime.cudaDeviceAttr, name)
        return int(call("cudaDeviceGetAttribute", wanted, 0))

    def free(address: int) -> None:
        call("cudaFree", address)

    def synchronise(stream: int) -> None:
        call("cudaStreamSynchronize", stream)

    def copy_to_device(address: int, array: np.ndarray) -> None:
        kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        call("cudaMemcpy", address, array.ctypes.data, array.nbytes, kind)

    def copy_to_host(array: np.ndarray, address: int) -> None:
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call("cudaMemcpy", array.ctypes.data, address, array.nbytes, kind)

    def memory_mib() -> Tuple[int, int]:
        free, total = call("cudaMemGetInfo")
        return int(free) >> 20, int(total) >> 20

    call("cudaSetDevice", 0)
    major = attribute("cudaDevAttrComputeCapabilityMajor")
    minor = attribute("cudaDevAttrComputeCapabilityMinor")
    return Cuda(
        CudaFacts(
            "cuda-python",
            _version(int(call("cudaRuntimeGetVersion"))),
            _version(int(call("cudaDriverGetVersion"))),
            f"{major}.{minor}",
        ),
        alloc=lambda size: int(call("cudaMalloc", size)),
        free=free,
        copy_to_device=copy_to_device,
        copy_to_host=copy_to_host,
        create_stream=lambda: int(call("cudaStreamCreate")),
        synchronise=synchronise,
        memory_mib=memory_mib,
    )


def _with_pycuda() -> Cuda:
    driver = importlib.import_module("pycuda.driver")
    allocations: Dict[int, Any] = {}  # pycuda frees what nobody refers to
    streams: Dict[int, Any] = {}

    def call(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except driver.Error as error:
            raise CudaError(name, str(error)) from error

    def alloc(size: int) -> int:
        allocation = call("mem_alloc", driver.mem_alloc, size)
        allocations[int(allocation)] = allocation
        return int(allocation)

    def free(address: int) -> None:
        call("free", allocations.pop(address).free)

    def copy_to_device(address: int, array: np.ndarray) -> None:
        call("memcpy_htod", driver.memcpy_htod, address, array)

    def copy_to_host(array: np.ndarray, address: int) -> None:
        call("memcpy_dtoh", driver.memcpy_dtoh, array, address)

    def create_stream() -> int:
        stream = call("Stream", driver.Stream)
        streams[int(stream.handle)] = stream
        return int(stream.handle)

    def synchronise(stream: int) -> None:
        call("synchronize", streams[stream].synchronize)

    def memory_mib() -> Tuple[int, int]:
        free_bytes, total = call("mem_get_info", driver.mem_get_info)
        return int(free_bytes) >> 20, int(total) >> 20

    # autoinit would make a context of its own, which TensorRT does not use.
    call("primary context", importlib.import_module, "pycuda.autoprimaryctx")
    major, minor = call("Device", lambda: driver.Device(0).compute_capability())
    return Cuda(
        CudaFacts(
            "pycuda",
            ".".join(str(part) for part in driver.get_version()[:2]),
            _version(int(driver.get_driver_version())),
            f"{major}.{minor}",
        ),
        alloc=alloc,
        free=free,
        copy_to_device=copy_to_device,
        copy_to_host=copy_to_host,
        create_stream=create_stream,
        synchronise=synchronise,
        memory_mib=memory_mib,
    )


def _load_cudart() -> ctypes.CDLL:
    reasons = []
    for name in LIBRARIES:
        for folder in FOLDERS:
            try:
                return ctypes.CDLL(folder + name)
            except OSError as error:
                reasons.append(str(error))
    raise OSError(reasons[0])


def _with_ctypes() -> Cuda:
    library = _load_cudart()
    library.cudaGetErrorName.restype = ctypes.c_char_p

    def call(name: str, *arguments: Any) -> None:
        error = getattr(library, name)(*arguments)
        if error:
            raise CudaError(name, (library.cudaGetErrorName(error) or b"unknown error").decode())

    def integer(name: str, *arguments: Any) -> int:
        value = ctypes.c_int()
        call(name, ctypes.byref(value), *arguments)
        return value.value

    def pointer(name: str, *arguments: Any) -> int:
        value = ctypes.c_void_p()
        call(name, ctypes.byref(value), *arguments)
        return value.value or 0

    def copy(target: int, source: int, size: int, kind: int) -> None:
        sides = ctypes.c_void_p(target), ctypes.c_void_p(source)
        call("cudaMemcpy", *sides, ctypes.c_size_t(size), kind)

    def memory_mib() -> Tuple[int, int]:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value >> 20, total.value >> 20

    call("cudaSetDevice", 0)
    major = integer("cudaDeviceGetAttribute", _CAPABILITY_MAJOR, 0)
    minor = integer("cudaDeviceGetAttribute", _CAPABILITY_MINOR, 0)
    return Cuda(
        CudaFacts(
            "ctypes",
            _version(integer("cudaRuntimeGetVersion")),
            _version(integer("cudaDriverGetVersion")),
            f"{major}.{minor}",
        ),
        alloc=lambda size: pointer("cudaMalloc", ctypes.c_size_t(size)),
        free=lambda address: call("cudaFree", ctypes.c_void_p(address)),
        copy_to_device=lambda to, array: copy(to, array.ctypes.data, array.nbytes, _TO_DEVICE),
        copy_to_host=lambda array, source: copy(array.ctypes.data, source, array.nbytes, _TO_HOST),
        create_stream=lambda: pointer("cudaStreamCreate"),
        synchronise=lambda stream: call("cudaStreamSynchronize", ctypes.c_void_p(stream)),
        memory_mib=memory_mib,
    )


# In the order in which they are tried.
PROVIDERS: Dict[str, Callable[[], Cuda]] = {
    "cuda-python": _with_cuda_python,
    "pycuda": _with_pycuda,
    "ctypes": _with_ctypes,
}
