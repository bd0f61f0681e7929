"""What the machine did around a measurement: clocks, throttling, and time taken by others.

Two snapshots are compared, and what changed says whether the numbers between them can be used.
Nothing is set, nothing is run and nothing needs root; GPUs are asked through NVML.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from ..formatting import percent
from . import nvml
from .sysfs import read_fields, read_number, read_text

MAX_CLOCK_CHANGE = 0.02  # relative
MAX_STOLEN = 0.02  # of all CPU time
MAX_OTHERS = 0.05  # of all CPU time; what is more is told
SPOILING_OTHERS = 0.25  # of all CPU time; times under more are those of a busy machine

_CPU = "sys/devices/system/cpu"
# How the names of an integrated GPU begin: TX2, Xavier and Orin, then all since JetPack 6.
_JETSON_GPUS = ("gp10b", "gv11b", "ga10b", "gpu")
# Bits of NVML's clocks event reasons that mean slower than asked for.
_THROTTLES: Mapping[int, str] = MappingProxyType(
    {
        0x04: "software power cap",
        0x08: "hardware slowdown",
        0x20: "software thermal slowdown",
        0x40: "hardware thermal slowdown",
        0x80: "hardware power brake",
    }
)
_GPU_IDLE = 0x01

# Every finding there is: the cause first, then what to do.
CHANGES: Mapping[str, str] = MappingProxyType(
    {
        "cpu-clock": "The fastest core ran at {before:.0f} MHz before and at {after:.0f} MHz after "
        "the measurement, so its times belong to no one clock; set the governor to 'performance', "
        "switch boost off or let the machine warm up, and measure again.",
        "gpu-clock": "The clock of GPU {gpu} was {before:.0f} MHz before and {after:.0f} MHz after "
        "the measurement; lock its clocks (jetson_clocks, nvidia-smi -lgc) and measure again.",
        "throttled": "The CPU was throttled {count} times for its temperature; cool it or lower "
        "its clocks, and measure again.",
        "gpu-throttled": "GPU {gpu} was slowed down ({reasons}); raise its power limit or cool it, "
        "and measure again.",
        "stolen": "The host gave {percent} of this virtual machine's CPU time to others, which "
        "makes a slow tail; measure on a machine of its own.",
        "quota": "The control group's CPU quota stopped this process in {count} periods, so the "
        "slow tail is the quota's; raise the quota or run fewer threads.",
        "others": "Other programs used {percent} of the CPU time meanwhile; stop them and "
        "measure again.",
        "power-mode": "The power mode was {before} before and {after} after the measurement; leave "
        "it alone and measure again.",
        "governor": "The CPU governor was {before} before and {after} after the measurement; leave "
        "it alone and measure again.",
    }
)


@dataclass(frozen=True)
class CpuTicks:
    """CPU time since the machine started, in the kernel's ticks, summed over all cores."""

    total: int
    busy: int  # neither idle nor stolen
    stolen: int  # wanted, but the host ran another virtual machine
    own: int  # of this process and the children it has waited for


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, as NVML tells it."""

    index: int
    name: str | None
    clock_mhz: float | None  # of the multiprocessors
    memory_clock_mhz: float | None
    temperature_c: float | None
    power_limit_w: float | None
    is_idle: bool  # then its clocks are low and say nothing
    throttled_by: tuple[str, ...]  # why it runs slower than asked for
    ours: bool  # whether this process computes on it; inside a container that cannot be told


@dataclass(frozen=True)
class Conditions:
    """One moment; None, or nothing in a tuple or mapping, is what the system does not tell."""

    core_mhz: tuple[float, ...]  # clock of each core
    min_mhz: float | None  # lowest and highest clock the governor may choose
    max_mhz: float | None
    governors: tuple[str, ...]  # the distinct ones, sorted
    boost: bool | None  # whether clocks above the nominal one are allowed
    temperatures_c: Mapping[str, float]  # by sensor
    throttle_events: int | None  # thermal, of cores and packages, since the machine started
    load_average: float | None  # over the minute before, in runnable tasks
    cpu_ticks: CpuTicks | None
    quota_cores: float | None  # CPU quota of the control group; None without one
    quota_stops: int | None  # periods in which that quota stopped it
    memory_available_mib: int | None
    power_mode: str | None  # of a Jetson
    jetson_gpu_mhz: Mapping[str, float]
    fan_pwm: int | None  # 0..255, of a Jetson
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True)
class Change:
    """What moved between two snapshots."""

    code: str  # key in CHANGES
    text: str
    invalidates: bool  # whether it belongs at the top of the report, beside the result


def read_conditions(root: Path = Path("/")) -> Conditions:
    """Return the conditions now.

    Clocks rest when cores do: take the first snapshot right after the warm-up and the second right
    after the last call, so that both see a machine at work.

    Args:
        root: where ``proc``, ``sys``, ``etc`` and ``var`` are.
    """
    frequencies = sorted((root / _CPU).glob("cpu[0-9]*/cpufreq"))
    governors = {read_text(folder / "scaling_governor") for folder in frequencies}
    available = read_fields(root / "proc/meminfo").get("MemAvailable")
    quota_cores, quota_stops = _quota(root)
    load = read_text(root / "proc/loadavg")
    return Conditions(
        core_mhz=_core_mhz(root, frequencies),
        min_mhz=min(_mhz(frequencies, "scaling_min_freq"), default=None),
        max_mhz=max(_mhz(frequencies, "scaling_max_freq"), default=None),
        governors=tuple(sorted(governor for governor in governors if governor)),
        boost=_boost(root / _CPU),
        temperatures_c=_temperatures_c(root),
        throttle_events=_throttle_events(root / _CPU),
        load_average=float(load.split()[0]) if load else None,
        cpu_ticks=_cpu_ticks(root),
        quota_cores=quota_cores,
        quota_stops=quota_stops,
        memory_available_mib=int(available.split()[0]) // 1024 if available else None,
        power_mode=_power_mode(root),
        jetson_gpu_mhz=_jetson_gpu_mhz(root),
        fan_pwm=_fan_pwm(root),
        gpus=_nvidia_gpus(),
    )


def compare_conditions(
    before: Conditions, after: Conditions, *, on_gpu: bool
) -> tuple[Change, ...]:
    """Return what moved between two snapshots, in the order of `CHANGES`.

    Only what both snapshots tell is compared, and a GPU's clock only where it worked in both.

    Args:
        before: first snapshot.
        after: second one.
        on_gpu: whether anything that was measured ran on a GPU; if not, GPUs do not matter.
    """
    if not on_gpu:
        before, after = (replace(each, gpus=(), jetson_gpu_mhz={}) for each in (before, after))
    return tuple(
        Change(code, CHANGES[code].format(**facts), invalidates=_invalidates(code, facts))
        for code, facts in _changes(before, after)
    )


def _invalidates(code: str, facts: Mapping[str, object]) -> bool:
    """Say whether times under a change are no times of this machine; a few others only disturb."""
    share = facts.get("share")
    return code != "others" or (isinstance(share, float) and share > SPOILING_OTHERS)


def gpus_in_use(moment: Conditions) -> tuple[Gpu, ...]:
    """Return the GPUs that this process computes on; all where that cannot be told."""
    return tuple(gpu for gpu in moment.gpus if gpu.ours) or moment.gpus


def _changes(before: Conditions, after: Conditions) -> Iterator[tuple[str, Mapping[str, object]]]:
    if before.core_mhz and after.core_mhz:
        fastest = max(before.core_mhz), max(after.core_mhz)
        if _moved(*fastest):
            yield "cpu-clock", {"before": fastest[0], "after": fastest[1]}
    clocks = _working_gpus(before), _working_gpus(after)
    for gpu in sorted(set(clocks[0]) & set(clocks[1])):
        if _moved(clocks[0][gpu], clocks[1][gpu]):
            yield "gpu-clock", {"gpu": gpu, "before": clocks[0][gpu], "after": clocks[1][gpu]}
    if events := _rise(before.throttle_events, after.throttle_events):
        yield "throttled", {"count": events}
    reasons: dict[int, set[str]] = {}
    for each in (*gpus_in_use(before), *gpus_in_use(after)):
        reasons.setdefault(each.index, set()).update(each.throttled_by)
    for index in sorted(index for index, found in reasons.items() if found):
        yield "gpu-throttled", {"gpu": index, "reasons": ", ".join(sorted(reasons[index]))}
    stolen, others = _shares(before.cpu_ticks, after.cpu_ticks)
    if stolen > MAX_STOLEN:
        yield "stolen", {"share": stolen, "percent": percent(stolen)}
    if stops := _rise(before.quota_stops, after.quota_stops):
        yield "quota", {"count": stops}
    if others > MAX_OTHERS:
        yield "others", {"share": others, "percent": percent(others)}
    if None not in (before.power_mode, after.power_mode) and before.power_mode != after.power_mode:
        yield "power-mode", {"before": before.power_mode, "after": after.power_mode}
    if before.governors != after.governors:
        names = (", ".join(each.governors) or "unknown" for each in (before, after))
        yield "governor", dict(zip(("before", "after"), names, strict=True))


def _moved(before: float, after: float) -> bool:
    return abs(after - before) > MAX_CLOCK_CHANGE * before


def _rise(before: int | None, after: int | None) -> int:
    return 0 if before is None or after is None else max(0, after - before)


def _shares(before: CpuTicks | None, after: CpuTicks | None) -> tuple[float, float]:
    """Return which shares of all CPU time were stolen and used by others; 0 where unknown."""
    if before is None or after is None or after.total <= before.total:
        return 0.0, 0.0
    total = after.total - before.total
    others = (after.busy - before.busy) - (after.own - before.own)
    return (after.stolen - before.stolen) / total, others / total


def _working_gpus(conditions: Conditions) -> dict[str, float]:
    """Return the clock of every GPU that does not rest, by name."""
    discrete = {
        str(gpu.index): gpu.clock_mhz
        for gpu in gpus_in_use(conditions)
        if gpu.clock_mhz is not None and not gpu.is_idle
    }
    return {**conditions.jetson_gpu_mhz, **discrete}


def _mhz(folders: list[Path], name: str) -> list[float]:
    found = [read_number(folder / name) for folder in folders]
    return [khz / 1000 for khz in found if khz is not None]


def _core_mhz(root: Path, frequencies: list[Path]) -> tuple[float, ...]:
    if clocks := _mhz(frequencies, "scaling_cur_freq"):
        return tuple(clocks)
    text = read_text(root / "proc/cpuinfo") or ""
    return tuple(float(mhz) for mhz in re.findall(r"^cpu MHz\s*: ([\d.]+)", text, re.MULTILINE))


def _boost(cpu: Path) -> bool | None:
    no_turbo = read_number(cpu / "intel_pstate/no_turbo")
    if no_turbo is not None:
        return no_turbo == 0
    boost = read_number(cpu / "cpufreq/boost")
    return None if boost is None else boost != 0


def _temperatures_c(root: Path) -> dict[str, float]:
    """Return thermal zones and hwmon sensors; a name that comes again gets its folder's name."""
    found: dict[str, float] = {}

    def add(name: str, folder: Path, sensor: Path) -> None:
        milli_c = read_number(sensor)  # a sensor that is switched off answers with an error
        if milli_c is not None:
            found[f"{name} ({folder.name})" if name in found else name] = milli_c / 1000

    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        add(read_text(zone / "type") or zone.name, zone, zone / "temp")
    for sensor in sorted((root / "sys/class/hwmon").glob("hwmon*/temp*_input")):
        chip = read_text(sensor.parent / "name") or sensor.parent.name
        label = read_text(sensor.with_name(sensor.name.replace("_input", "_label")))
        add(f"{chip} {label or sensor.name[: -len('_input')]}", sensor.parent, sensor)
    return found


def _throttle_events(cpu: Path) -> int | None:
    counters = sorted(cpu.glob("cpu[0-9]*/thermal_throttle/*_throttle_count"))
    counts = [count for count in map(read_number, counters) if count is not None]
    return int(sum(counts)) if counts else None


def _cpu_ticks(root: Path) -> CpuTicks | None:
    machine = (read_text(root / "proc/stat") or "").partition("\n")[0].split()
    # The name of the program, in parentheses, may hold spaces.
    process = (read_text(root / "proc/self/stat") or "").rpartition(")")[2].split()
    if len(machine) < 9 or len(process) < 15:
        return None
    ticks = [int(value) for value in machine[1:9]]  # the guests' that follow are in user's
    idle, waiting, stolen = ticks[3], ticks[4], ticks[7]
    return CpuTicks(
        total=sum(ticks),
        busy=sum(ticks) - idle - waiting - stolen,
        stolen=stolen,
        own=sum(int(value) for value in process[11:15]),
    )


def _quota(root: Path) -> tuple[float | None, int | None]:
    """Return the tightest CPU quota in cores, and how often this control group was stopped."""
    cores: list[float] = []
    stops: list[int] = []
    for folder in _control_groups(root):
        if both := (read_text(folder / "cpu.max") or "").split():
            quota, period = both
        else:
            quota = read_text(folder / "cpu.cfs_quota_us") or "max"
            period = read_text(folder / "cpu.cfs_period_us") or "100000"
        if quota not in ("max", "-1"):
            cores.append(int(quota) / int(period))
        throttled = read_fields(folder / "cpu.stat", " ").get("nr_throttled")
        if throttled is not None:
            stops.append(int(throttled))
    return min(cores, default=None), sum(stops) if stops else None


def _control_groups(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's CPU control group and of those above it."""
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        inside = base / place.strip("/")
        yield from (folder for folder in (inside, *inside.parents) if folder.is_relative_to(base))


def _power_mode(root: Path) -> str | None:
    """Return a Jetson's power mode by name, or by number where its table does not name it."""
    mode = re.search(r"pmode:0*(\d+)", read_text(root / "var/lib/nvpmodel/status") or "")
    if mode is None:
        return None
    table = read_text(root / "etc/nvpmodel.conf") or ""
    line = rf"^<\s*POWER_MODEL\s+ID={mode[1]}\s+NAME=([^\s>]+)"
    name = re.search(line, table, re.MULTILINE)
    return name[1] if name else mode[1]


def _jetson_gpu_mhz(root: Path) -> dict[str, float]:
    found = {}
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        name = read_text(folder / "device/of_node/name") or folder.name.rpartition(".")[2]
        hertz = read_number(folder / "cur_freq")
        if name.startswith(_JETSON_GPUS) and hertz is not None:
            found[name] = hertz / 1e6
    return found


def _fan_pwm(root: Path) -> int | None:
    for name in sorted((root / "sys/class/hwmon").glob("hwmon*/name")):
        if read_text(name) == "pwmfan":
            pwm = read_number(name.with_name("pwm1"))
            return None if pwm is None else int(pwm)
    return None


def _nvidia_gpus() -> tuple[Gpu, ...]:
    return tuple(map(_gpu, nvml.devices()))


def _gpu(device: nvml.NvmlDevice) -> Gpu:
    bits = device.slowdown_bits()
    return Gpu(
        index=device.index,
        name=device.name(),
        clock_mhz=device.clock_mhz(),
        memory_clock_mhz=device.memory_clock_mhz(),
        temperature_c=device.temperature_c(),
        power_limit_w=device.power_limit_w(),
        is_idle=bool(bits & _GPU_IDLE),
        throttled_by=tuple(name for bit, name in _THROTTLES.items() if bits & bit),
        ours=os.getpid() in (device.bytes_by_process() or {}),
    )
