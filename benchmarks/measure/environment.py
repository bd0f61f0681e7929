"""The conditions of a measurement, with nothing in them that names a person or a place."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path, PurePath

from ...runtime.engines import available_threads
from . import nvml
from .sysfs import read_fields, read_text

_PACKAGES = ("edgeseg", "numpy", "pillow", "onnxruntime", "openvino", "torch", "onnx")

# Instructions that decide which kernels an engine picks: x86, then ARM.
_ISA = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_int8",
    "asimddp",
    "i8mm",
)
_CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")


@dataclass(frozen=True)
class Environment:
    """Machine, software and command of one run; None is what the system does not tell."""

    started_utc: str  # ISO 8601, to the second
    cpu: str
    cores: int  # logical, usable by this process
    isa: tuple[str, ...]  # those of interest that the CPU has
    memory_mib: int | None
    system: str  # distribution, kernel and architecture
    governor: str | None  # of the first core
    frequency_mhz: float | None  # of the first core, when asked
    load_average: float  # over the minute before, in runnable tasks
    python: str
    packages: Mapping[str, str | None]  # version; None where not installed
    command: tuple[str, ...]  # without the folders of its arguments
    commit: str | None = None  # of edgeseg, where it runs from a git checkout; edits are not seen
    affinity: tuple[int, ...] = ()  # the cores this process may run on; none where not told
    container: str | None = None  # what it is run by, such as "docker", where it can be told
    gpus: tuple[str, ...] = ()  # NVIDIA's, by name, in the order of nvidia-smi
    gpu_driver: str | None = None  # NVIDIA's


def describe_environment(command: Sequence[str]) -> Environment:
    """Return the conditions now, without host name, user name or folders.

    Args:
        command: what was run, to reproduce it. Of every argument with a path in it only the part
            after the last slash is kept (and the option's name, in ``--option=path``).
    """
    cpuinfo = read_fields(Path("/proc/cpuinfo"))
    instructions = f"{cpuinfo.get('flags', '')} {cpuinfo.get('Features', '')}".split()
    memory = read_fields(Path("/proc/meminfo")).get("MemTotal")
    return Environment(
        started_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        cpu=cpuinfo.get("model name") or read_text(Path("/proc/device-tree/model")) or "unknown",
        cores=available_threads(),
        isa=tuple(name for name in _ISA if name in instructions),
        memory_mib=int(memory.split()[0]) // 1024 if memory else None,
        system=_system(),
        governor=read_text(_CPUFREQ / "scaling_governor"),
        frequency_mhz=_frequency_mhz(cpuinfo.get("cpu MHz")),
        load_average=os.getloadavg()[0],
        python=platform.python_version(),
        packages={name: _version(name) for name in _PACKAGES},
        command=tuple(map(_without_folders, command)),
        commit=_commit(Path(__file__).parents[2]),
        affinity=tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else (),
        container=_container(Path("/")),
        gpus=tuple(device.name() or "unknown" for device in nvml.devices()),
        gpu_driver=nvml.driver(),
    )


def _frequency_mhz(from_cpuinfo: str | None) -> float | None:
    if in_khz := read_text(_CPUFREQ / "scaling_cur_freq"):
        return int(in_khz) / 1000
    return float(from_cpuinfo) if from_cpuinfo else None


def _system() -> str:
    try:
        distribution = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        distribution = platform.system()
    return f"{distribution}, kernel {platform.release()}, {platform.machine()}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit(checkout: Path) -> str | None:
    """Return the SHA of a checkout's HEAD from git's own files, or None where there is none."""
    git = checkout / ".git"
    if git.is_file():  # a work tree of another repository
        git = checkout / (read_text(git) or "").removeprefix("gitdir: ")
    head = read_text(git / "HEAD") or ""
    if not head.startswith("ref: "):
        return head or None
    name = head.removeprefix("ref: ")
    common = git / (read_text(git / "commondir") or ".")
    if sha := read_text(git / name) or read_text(common / name):
        return sha
    packed = (read_text(common / "packed-refs") or "").splitlines()
    return next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)


def _container(root: Path) -> str | None:
    for kind, mark in (("docker", ".dockerenv"), ("podman", "run/.containerenv")):
        if (root / mark).exists():
            return kind
    return read_text(root / "run/systemd/container")


def _without_folders(argument: str) -> str:
    option, separator, value = argument.partition("=")
    if not (argument.startswith("-") and separator):
        option, separator, value = "", "", argument
    return f"{option}{separator}{PurePath(value).name or value}"
