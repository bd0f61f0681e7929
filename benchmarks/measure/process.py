"""What a process of its own pays: peak memory, and time until it is ready and has a mask.

Both need a fresh child: in the benchmark's own process memory is shared with everything else
that was measured there, and libraries are imported and pages read already.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime.errors import EngineError
from ...runtime.session import Session
from . import nvml
from .sysfs import read_fields, read_text

ON_CPU = "runs on the CPU"
_NVMAP = Path("/sys/kernel/debug/nvmap/iovmm/clients")  # a Jetson's GPU memory, by process
_MORE_FRAMES = 20  # after the first: engines still allocate during their first calls


@dataclass(frozen=True)
class ProcessFacts:
    """One child process, from its start to `_MORE_FRAMES` + 1 masks."""

    peak_rss_mib: float  # the process's own high-water mark, interpreter and libraries included
    start_ms: float  # from process start until the session is open
    first_mask_ms: float  # from process start until the first mask is there
    pss_mib: float | None = None  # after the last mask, what is shared in part; None: not told
    device_mib: float | None = None  # GPU memory, the most after any mask; None: see next
    device_memory: str = ON_CPU  # how that was counted, or why it was not


def report_probe(open_session: Callable[[], Session], frame: npt.NDArray[np.uint8]) -> str:
    """Do the child's part of `probe_process` and return the JSON line it must print.

    Args:
        open_session: imports, loads and opens everything; called once.
        frame: uint8 [H, W] or [H, W, 3], predicted once and then 20 times more.

    Raises:
        EngineError: E-PROBE-FAILED where the system does not tell the peak memory.
        EdgesegError: what `open_session` raises.
    """
    session = open_session()
    opened_ns = time.monotonic_ns()
    session.predict(frame)
    first_mask_ns = time.monotonic_ns()
    # Only now: to load the driver's library before would be part of the start.
    on_gpu = nvml.computes_on_nvidia(session.engine.name, session.engine.facts)
    device = [_device_memory()] if on_gpu else []
    for _ in range(_MORE_FRAMES):
        session.predict(frame)
        if on_gpu:
            device.append(_device_memory())
    return json.dumps(
        {
            "opened_ns": opened_ns,
            "first_mask_ns": first_mask_ns,
            "peak_rss_kib": _peak_rss_kib(),
            "pss_kib": _kib(Path("/proc/self/smaps_rollup"), "Pss"),
            "device": device,
        }
    )


def _device_memory() -> dict[str, int | None]:
    """Return bytes of GPU memory: of this process by NVML or nvmap, and of all; None: not told."""
    devices = nvml.devices()
    own: list[int] = []
    for device in devices:
        in_use = (device.bytes_by_process() or {}).get(os.getpid())
        own += [] if in_use is None else [in_use]
    return {
        "own": sum(own) if own else None,
        "nvmap": _nvmap_bytes(read_text(_NVMAP) or "", os.getpid()),
        "all": _used_bytes(devices),
    }


def _used_bytes(devices: Sequence[nvml.NvmlDevice]) -> int | None:
    used = [device.used_bytes() for device in devices]
    known = [each for each in used if each is not None]
    return sum(known) if known else None


def _nvmap_bytes(table: str, pid: int) -> int | None:
    """Return the size in a line such as ``user python3 1234 56789K``, summed over a process."""
    lines = re.findall(rf"^\S+\s+\S+\s+{pid}\s+(\d+)K\s*$", table, re.MULTILINE)
    return 1024 * sum(map(int, lines)) if lines else None


def _peak_rss_kib() -> int:
    # Not getrusage's ru_maxrss: it survives exec, so a small child of a large benchmark would
    # report the benchmark's peak. VmHWM belongs to the address space, which exec replaces.
    peak_kib = _kib(Path("/proc/self/status"), "VmHWM")
    if peak_kib is None:
        raise EngineError(
            "E-PROBE-FAILED",
            "no VmHWM in /proc/self/status; peak memory is measured on Linux only",
        )
    return peak_kib


def _kib(path: Path, name: str) -> int | None:
    value = read_fields(path).get(name)
    return int(value.split()[0]) if value else None


def probe_process(command: Sequence[str], timeout_s: float = 300) -> ProcessFacts:
    """Run a command that prints the line of `report_probe` last and return what it paid.

    The start is read here, just before the child is made. Both processes read CLOCK_MONOTONIC,
    which is one clock for the whole machine, so their readings may be subtracted.

    Args:
        command: program and arguments, run without a shell.
        timeout_s: the child is killed after this time.

    Raises:
        EngineError: E-PROBE-FAILED with the child's last line on stderr.
    """
    others_bytes = _used_bytes(nvml.devices())
    start_ns = time.monotonic_ns()
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as error:
        raise _failed(command, f"took over {timeout_s:g} s") from error
    except OSError as error:
        raise _failed(command, str(error.strerror)) from error
    if done.returncode:
        raise _failed(command, f"exit code {done.returncode}: {_last_line(done.stderr)}")
    try:
        line: Any = json.loads(_last_line(done.stdout))
        pss_kib = line["pss_kib"]
        device_mib, device_memory = _device_facts(line.get("device", []), others_bytes)
        return ProcessFacts(
            peak_rss_mib=int(line["peak_rss_kib"]) / 1024,
            start_ms=(int(line["opened_ns"]) - start_ns) / 1e6,
            first_mask_ms=(int(line["first_mask_ns"]) - start_ns) / 1e6,
            pss_mib=None if pss_kib is None else int(pss_kib) / 1024,
            device_mib=device_mib,
            device_memory=device_memory,
        )
    except (ValueError, TypeError, KeyError) as error:
        raise _failed(command, f"printed no probe line; {_last_line(done.stderr)}") from error


def _device_facts(
    readings: Sequence[Mapping[str, int | None]], others_bytes: int | None
) -> tuple[float | None, str]:
    """Return the most MiB of a child's readings and how they were counted, or why they were not.

    Args:
        readings: of `_device_memory`; none of a child that computes on the CPU.
        others_bytes: what all processes used before the child was made.
    """
    if not readings:
        return None, ON_CPU
    for key, how in (("own", "NVML, of the process"), ("nvmap", "nvmap, of the process")):
        found = [value for reading in readings if (value := reading[key]) is not None]
        if found:
            return max(found) / (1 << 20), how
    used = [value for reading in readings if (value := reading["all"]) is not None]
    if used and others_bytes is not None:
        return (max(used) - others_bytes) / (1 << 20), "NVML, rise of what all processes use"
    return None, "no counter: NVML is missing or tells none, and only root may read nvmap"


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "nothing on stderr")


def _failed(command: Sequence[str], reason: str) -> EngineError:
    name = Path(command[0]).name
    return EngineError("E-PROBE-FAILED", f"probe {name!r} failed ({reason}); run it by hand to see")
