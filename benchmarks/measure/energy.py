"""Energy of a frame, from the counters that x86 CPUs, NVIDIA's GPUs and Jetson modules have.

RAPL counts the energy of CPU packages and memory, NVML that of a GPU's whole board; the INA3221 of
a Jetson measures voltage and current of its rails, which are sampled here, as is the power of a GPU
without a counter (before Volta). None sees the carrier or main board or the power supply.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from ...runtime.errors import EngineError
from . import nvml
from .sysfs import read_number, read_text

SAMPLE_S = 0.05  # between two readings; RAPL wraps after minutes, rails change at once
IDLE_S = 30.0  # as long as the power at rest needs to settle

_NVML_RANGE_UJ = math.inf  # mJ in 64 bits never wrap; they fall where the driver is reloaded
_WHOLE_MODULE = "VDD_IN"  # rail of Orin NX and Nano that feeds all the others
T = TypeVar("T")


@dataclass(frozen=True)
class Rail:
    """One supply that is measured, by its energy or by its power."""

    name: str
    read: Callable[[], float | None]  # energy in µJ or power in W; None where it cannot be read
    range_uj: float | None  # where an energy counter starts again from 0; None for a power rail
    in_total: bool  # False for a part of another rail


@dataclass(frozen=True)
class Counter:
    """The energy counter of a machine."""

    name: str  # of "RAPL", "NVML", both with a plus, or "INA3221"
    rails: tuple[Rail, ...]


@dataclass(frozen=True)
class Energy:
    """Energy of a frame under load; what the machine draws at rest is in `gross` only."""

    counter: str
    total_rails: tuple[str, ...]  # what the totals are the sum of
    sample_hz: float  # readings a second, as reached under load
    idle_s: float
    idle_w: float  # power at rest, measured just before the load
    idle_drift_w: float  # second half of the rest minus its first: what `net` is uncertain by
    load_s: float
    load_w: float
    frames: int
    gross_mj_per_frame: float
    net_mj_per_frame: float  # (load - idle power) x time / frames
    rails_net_mj_per_frame: Mapping[str, float]  # of every rail, parts of others included


def find_counter(root: Path = Path("/"), *, gpus: Collection[int] | None = None) -> Counter | None:
    """Return the energy counter that this process can read, or None.

    Args:
        root: where ``sys`` is.
        gpus: indices of the NVIDIA GPUs that the work runs on, none of them where NVML does not
            know it; None for work on the CPU. Without a board's rail there is no counter for work
            on it, since most of its energy would be missing.
    """
    if rails := _ina3221_rails(root):  # a Jetson's GPU is on its rails
        return Counter("INA3221", rails)
    host = _rapl_rails(root)
    boards = _nvml_rails(gpus or ())
    if not host if gpus is None else len(boards) < max(1, len(gpus)):
        return None
    names = [name for name, rails in (("RAPL", host), ("NVML", boards)) if rails]
    return Counter(" + ".join(names), host + boards)


def explain_no_counter(root: Path = Path("/"), *, gpus: Collection[int] | None = None) -> str:
    """Say why `find_counter` returned None."""
    if gpus is not None:
        return "no counter: NVML tells neither energy nor power of the GPU"
    if any(_rapl_zones(root)):
        return "no counter: RAPL is there, but only root may read its energy_uj"
    return "no counter: neither RAPL nor an INA3221 is there (virtual machines hide them)"


def measure_energy(counter: Counter, work: Callable[[], int], *, idle_s: float = IDLE_S) -> Energy:
    """Measure the power at rest, then that of `work`.

    Args:
        counter: what to read.
        work: warmed up already; runs for a minute or so and returns how many frames it did, >= 1.
        idle_s: how long to rest before, > 0.

    Raises:
        EngineError: E-ENERGY-READ where the counter cannot be read any more.
    """
    halves = [_record(counter, lambda: _rest(idle_s / 2))[1] for _ in range(2)]
    frames, load = _record(counter, work)
    first_w, second_w = (_total(counter, half.joules) / half.seconds for half in halves)
    rest_s = sum(half.seconds for half in halves)
    idle_w = {
        rail.name: sum(half.joules[rail.name] for half in halves) / rest_s for rail in counter.rails
    }
    net_mj = {
        name: 1000 * (joules - idle_w[name] * load.seconds) / frames
        for name, joules in load.joules.items()
    }
    return Energy(
        counter=counter.name,
        total_rails=tuple(rail.name for rail in counter.rails if rail.in_total),
        sample_hz=load.readings / load.seconds,
        idle_s=rest_s,
        idle_w=_total(counter, idle_w),
        idle_drift_w=second_w - first_w,
        load_s=load.seconds,
        load_w=_total(counter, load.joules) / load.seconds,
        frames=frames,
        gross_mj_per_frame=1000 * _total(counter, load.joules) / frames,
        net_mj_per_frame=_total(counter, net_mj),
        rails_net_mj_per_frame=net_mj,
    )


def _rest(seconds: float) -> None:
    time.sleep(seconds)


def _total(counter: Counter, values: Mapping[str, float]) -> float:
    return sum(values[rail.name] for rail in counter.rails if rail.in_total)


# --- reading while something runs ----------------------------------------------------------------


class _Meter:
    """Adds up the energy of every rail from its first to its last reading."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._last: tuple[float, list[float]] | None = None
        self.start_s = 0.0
        self.seconds = 0.0
        self.readings = 0
        self.joules = {rail.name: 0.0 for rail in counter.rails}

    def read(self) -> None:
        """Take one reading. Raises EngineError (E-ENERGY-READ)."""
        now_s = time.monotonic()
        values = [_reading(rail) for rail in self._counter.rails]
        if self._last is None:
            self.start_s = now_s
        else:
            last_s, last_values = self._last
            for rail, last, value in zip(self._counter.rails, last_values, values, strict=True):
                self.joules[rail.name] += _joules(rail, last, value, now_s - last_s)
        self._last = now_s, values
        self.seconds = now_s - self.start_s
        self.readings += 1


def _reading(rail: Rail) -> float:
    """Return µJ of an energy counter, or W."""
    value = rail.read()
    if value is None:
        raise EngineError(
            "E-ENERGY-READ",
            f"energy counter {rail.name} cannot be read any more; measure without energy",
        )
    return value


def _joules(rail: Rail, last: float, value: float, seconds: float) -> float:
    if rail.range_uj is None:
        return (last + value) / 2 * seconds
    counted_uj = value - last
    if counted_uj < 0 and math.isinf(rail.range_uj):
        raise EngineError(
            "E-ENERGY-READ",
            f"energy counter {rail.name} fell, as it does where the driver is reloaded; "
            "measure again",
        )
    return (counted_uj if counted_uj >= 0 else counted_uj + rail.range_uj) / 1e6


def _record(counter: Counter, work: Callable[[], T]) -> tuple[T, _Meter]:
    """Run `work` and read the counter before it, every `SAMPLE_S` meanwhile and after it."""
    meter = _Meter(counter)
    stop = threading.Event()
    failures: list[EngineError] = []

    def sample() -> None:
        try:
            while not stop.wait(SAMPLE_S):
                meter.read()
        except EngineError as error:
            failures.append(error)  # raised where the caller sees it

    meter.read()
    thread = threading.Thread(target=sample, name="energy", daemon=True)
    thread.start()
    try:
        result = work()
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]
    meter.read()
    return result, meter


# --- which rails there are -----------------------------------------------------------------------


def _rapl_zones(root: Path) -> list[Path]:
    return sorted((root / "sys/class/powercap").glob("intel-rapl:*"))


def _rapl_rails(root: Path) -> tuple[Rail, ...]:
    """Return packages and memory; cores and the like are parts of a package, and psys is more."""
    rails: list[Rail] = []
    for zone in _rapl_zones(root):
        name = read_text(zone / "name") or zone.name
        energy = zone / "energy_uj"
        range_uj = read_number(zone / "max_energy_range_uj")
        if not name.startswith(("package", "dram")) or range_uj is None:
            continue
        if read_number(energy) is None:
            return ()  # a sum without one of its rails would be too small
        if name in (rail.name for rail in rails):  # each package has a "dram"
            name = f"{name} ({zone.name})"
        rails.append(Rail(name, partial(read_number, energy), range_uj, in_total=True))
    return tuple(rails)


def _ina3221_rails(root: Path) -> tuple[Rail, ...]:
    """Return the rails of a Jetson; unconnected inputs are labelled NC."""
    named: dict[str, tuple[Path, Path]] = {}
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if read_text(chip / "name") != "ina3221":
            continue
        for number in (1, 2, 3):  # the others are sums of shunt voltages
            label = read_text(chip / f"in{number}_label")
            files = chip / f"in{number}_input", chip / f"curr{number}_input"
            if label and label != "NC" and None not in map(read_number, files):
                named[label] = files
    return tuple(
        Rail(
            name,
            partial(_watt, *files),
            None,
            in_total=_WHOLE_MODULE not in named or name == _WHOLE_MODULE,
        )
        for name, files in named.items()
    )


def _watt(millivolt: Path, milliampere: Path) -> float | None:
    values = read_number(millivolt), read_number(milliampere)
    return None if values[0] is None or values[1] is None else values[0] * values[1] / 1e6


def _nvml_rails(gpus: Collection[int]) -> tuple[Rail, ...]:
    """Return the boards of these GPUs: by energy where they count it, else by power."""
    rails = []
    for device in nvml.devices() if gpus else ():
        if device.index not in gpus:
            continue
        if device.energy_uj() is not None:
            rails.append(Rail(f"GPU {device.index}", device.energy_uj, _NVML_RANGE_UJ, True))
        elif device.power_w() is not None:
            rails.append(Rail(f"GPU {device.index} (power)", device.power_w, None, True))
    return tuple(rails)
