"""NVIDIA's management library (NVML) through ctypes: what each GPU tells of itself.

It comes with the driver, so nothing has to be installed for it. What a GPU does not tell is None.
Signatures and units are those of NVIDIA's `nvml.h`.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...runtime.engines import entry_of

LIBRARY = "libnvidia-ml.so.1"

_SUCCESS = 0
_SM, _MEMORY = 1, 2  # clocks
_UNKNOWN = (1 << 64) - 1  # memory of a process that the driver does not tell
_TEXT_BYTES = 96
_MORE_PROCESSES = 64  # room for so many; a GPU with more tells none


class _Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


class _Process(ctypes.Structure):
    _fields_ = [
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    ]


class Library:
    """NVML, initialised; it stays so until the process ends."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        """Take over a library whose `nvmlInit_v2` has succeeded."""
        self._functions = functions

    def driver(self) -> str | None:
        """Return the version of the driver."""
        text = ctypes.create_string_buffer(_TEXT_BYTES)
        told = self.call("nvmlSystemGetDriverVersion", text, _TEXT_BYTES)
        return text.value.decode(errors="replace") or None if told else None

    def devices(self) -> tuple[NvmlDevice, ...]:
        """Return all GPUs, in the order of `nvidia-smi`."""
        count = ctypes.c_uint()
        if not self.call("nvmlDeviceGetCount_v2", ctypes.byref(count)):
            return ()
        found = []
        for index in range(count.value):
            handle = ctypes.c_void_p()
            if self.call("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(handle)):
                found.append(NvmlDevice(self, index, handle))
        return tuple(found)

    def call(self, name: str, *arguments: object) -> bool:
        """Say whether a function is there and succeeded; what it writes is in its arguments."""
        function = getattr(self._functions, name, None)  # older drivers lack the newer ones
        return function is not None and function(*arguments) == _SUCCESS


@dataclass(frozen=True, eq=False)
class NvmlDevice:
    """One GPU."""

    library: Library
    index: int
    handle: ctypes.c_void_p

    def name(self) -> str | None:
        """Return the product's name."""
        text = ctypes.create_string_buffer(_TEXT_BYTES)
        told = self.library.call("nvmlDeviceGetName", self.handle, text, _TEXT_BYTES)
        return text.value.decode(errors="replace") or None if told else None

    def clock_mhz(self) -> float | None:
        """Return the clock of the multiprocessors, in MHz."""
        return self._number("nvmlDeviceGetClockInfo", _SM)

    def memory_clock_mhz(self) -> float | None:
        """Return the clock of the memory, in MHz."""
        return self._number("nvmlDeviceGetClockInfo", _MEMORY)

    def temperature_c(self) -> float | None:
        """Return the temperature of the chip, in °C."""
        return self._number("nvmlDeviceGetTemperature", 0)

    def power_limit_w(self) -> float | None:
        """Return the power limit in force, in W."""
        milliwatt = self._number("nvmlDeviceGetEnforcedPowerLimit")
        return None if milliwatt is None else milliwatt / 1e3

    def power_w(self) -> float | None:
        """Return the power of the whole board, in W; newer GPUs tell the mean of a second."""
        milliwatt = self._number("nvmlDeviceGetPowerUsage")
        return None if milliwatt is None else milliwatt / 1e3

    def energy_uj(self) -> float | None:
        """Return the energy of the whole board since the driver was loaded, in µJ (from Volta)."""
        millijoule = self._long("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoule is None else millijoule * 1e3

    def slowdown_bits(self) -> int:
        """Return why the clocks are what they are, as NVML's bits; 0 where it does not tell."""
        for name in ("Event", "Throttle"):  # of newer and older drivers
            bits = self._long(f"nvmlDeviceGetCurrentClocks{name}Reasons")
            if bits is not None:
                return bits
        return 0

    def used_bytes(self) -> int | None:
        """Return the memory that is taken, by whomever."""
        memory = _Memory()
        told = self.library.call("nvmlDeviceGetMemoryInfo", self.handle, ctypes.byref(memory))
        return int(memory.used) if told else None

    def bytes_by_process(self) -> dict[int, int | None] | None:
        """Return the memory of each process that computes here, by its number.

        The numbers are the host's: inside a container none of them is one's own. None where the
        GPU tells no processes; a process without a figure has None.
        """
        for version in ("_v3", "_v2"):
            count = ctypes.c_uint(_MORE_PROCESSES)
            found = (_Process * _MORE_PROCESSES)()
            name = f"nvmlDeviceGetComputeRunningProcesses{version}"
            if self.library.call(name, self.handle, ctypes.byref(count), found):
                listed: Sequence[_Process] = found[: count.value]
                return {
                    each.pid: None if each.used == _UNKNOWN else int(each.used) for each in listed
                }
        return None

    def _number(self, name: str, *choice: int) -> float | None:
        value = ctypes.c_uint()
        told = self.library.call(name, self.handle, *choice, ctypes.byref(value))
        return float(value.value) if told else None

    def _long(self, name: str) -> int | None:
        value = ctypes.c_ulonglong()
        told = self.library.call(name, self.handle, ctypes.byref(value))
        return int(value.value) if told else None


def devices() -> tuple[NvmlDevice, ...]:
    """Return the NVIDIA GPUs of this machine; none where NVML is missing or does not start."""
    library = _open(LIBRARY)
    return library.devices() if library else ()


def computes_on_nvidia(engine: str, facts: Mapping[str, str]) -> bool:
    """Say by an engine's name and facts whether it computes on an NVIDIA GPU."""
    entry = entry_of(engine)
    on_cpu = facts.get("device", "CPU").startswith("CPU")
    return not on_cpu and (entry is None or entry.on_nvidia)


def driver() -> str | None:
    """Return the version of NVIDIA's driver; None without one."""
    library = _open(LIBRARY)
    return library.driver() if library else None


@functools.cache
def _open(name: str) -> Library | None:
    try:
        library = Library(ctypes.CDLL(name))
    except OSError:
        return None
    return library if library.call("nvmlInit_v2") else None
