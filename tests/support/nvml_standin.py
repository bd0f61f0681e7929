"""A library that answers like NVIDIA's NVML, with what a test puts there; needs gcc."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from edgeseg.benchmarks.measure import nvml

NOT_TOLD = (1 << 64) - 1  # then a function answers that it is not supported
GPUS = 2

_SOURCE = """
#include <string.h>
typedef unsigned long long ull;
typedef unsigned int uint;
enum { OK = 0, NOT_SUPPORTED = 3, TOO_SMALL = 7, FACTS = 10, GPUS = 2 };
enum { SM, MEMORY, TEMPERATURE, LIMIT, POWER, ENERGY, REASONS, USED, PID, OWN };
static ull facts[GPUS][FACTS];
static uint count = GPUS, started;
static int handles[GPUS];  /* a handle is the address of its index */

void standin_set(uint gpu, uint fact, ull value) { facts[gpu][fact] = value; }
void standin_count(uint value) { count = value; }

static int tell(const int *gpu, int fact, ull *value) {
    *value = facts[*gpu][fact];
    return *value == ~0ull ? NOT_SUPPORTED : OK;
}
static int tell_uint(const int *gpu, int fact, uint *value) {
    ull wide;
    int status = tell(gpu, fact, &wide);
    if (status == OK) *value = (uint)wide;
    return status;
}
int nvmlInit_v2(void) { started = 1; return OK; }
int nvmlSystemGetDriverVersion(char *text, uint length) {
    return started && length > 9 ? (strcpy(text, "575.57.08"), OK) : 1;
}
int nvmlDeviceGetCount_v2(uint *value) { *value = count; return OK; }
int nvmlDeviceGetHandleByIndex_v2(uint index, int **handle) {
    handles[index] = (int)index;
    *handle = &handles[index];
    return OK;
}
int nvmlDeviceGetName(const int *gpu, char *text, uint length) {
    if (length < 16) return TOO_SMALL;
    strcpy(text, *gpu ? "NVIDIA T400" : "NVIDIA RTX A2000");
    return OK;
}
int nvmlDeviceGetClockInfo(const int *gpu, int type, uint *mhz) {
    return tell_uint(gpu, type == 1 ? SM : MEMORY, mhz);
}
int nvmlDeviceGetTemperature(const int *gpu, int sensor, uint *celsius) {
    return sensor ? 2 : tell_uint(gpu, TEMPERATURE, celsius);
}
int nvmlDeviceGetEnforcedPowerLimit(const int *gpu, uint *mw) { return tell_uint(gpu, LIMIT, mw); }
int nvmlDeviceGetPowerUsage(const int *gpu, uint *mw) { return tell_uint(gpu, POWER, mw); }
int nvmlDeviceGetTotalEnergyConsumption(const int *gpu, ull *mj) { return tell(gpu, ENERGY, mj); }
int nvmlDeviceGetCurrentClocks%sReasons(const int *gpu, ull *bits) {
    return tell(gpu, REASONS, bits);
}
int nvmlDeviceGetMemoryInfo(const int *gpu, ull *bytes) {
    bytes[0] = 8ull << 30;
    return tell(gpu, USED, &bytes[2]);
}
struct process { uint pid; ull used; uint gpu_instance, compute_instance; };
int nvmlDeviceGetComputeRunningProcesses%s(const int *gpu, uint *number, struct process *found) {
    if (facts[*gpu][PID] == ~0ull) return NOT_SUPPORTED;
    if (*number < 2) return TOO_SMALL;
    memset(found, 0, 2 * sizeof *found);
    found[0].pid = 1;  /* of somebody else */
    found[0].used = 7;
    found[1].pid = (uint)facts[*gpu][PID];
    found[1].used = facts[*gpu][OWN];
    *number = 2;
    return OK;
}
"""
_FACTS = (
    *("sm", "memory", "temperature", "limit", "power", "energy", "reasons"),
    *("used", "pid", "own"),
)


class StandIn:
    """The facts of two GPUs, zero until they are set."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))
        for gpu in range(GPUS):
            self.set(gpu, **dict.fromkeys(_FACTS, 0))

    def set(self, gpu: int, **facts: int) -> None:
        """Set facts in NVML's own units: MHz, °C, mW, mJ, bits, bytes."""
        for name, value in facts.items():
            number = _FACTS.index(name)
            self._library.standin_set(gpu, number, ctypes.c_ulonglong(value))

    def set_count(self, count: int) -> None:
        """Say how many GPUs there are, at most two."""
        self._library.standin_count(count)


def make_standin(folder: Path, monkeypatch: pytest.MonkeyPatch, *, old: bool = False) -> StandIn:
    """Compile the library into a folder and have `nvml` load it in place of NVIDIA's.

    old: as a driver that has only the older names of two functions.
    """
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("no gcc for a library in place of NVML; apt install gcc")
    source, library = folder / "nvml.c", folder / "libnvml-standin.so"
    source.write_text(_SOURCE % (("Throttle", "_v2") if old else ("Event", "_v3")))
    command = [gcc, "-shared", "-fPIC", "-Wall", "-Werror", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    monkeypatch.setattr(nvml, "LIBRARY", str(library))
    return StandIn(library)
