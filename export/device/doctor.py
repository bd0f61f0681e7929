"""What a device is, what it lacks for edgeseg, and the exact fix; nothing is changed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...runtime.engines import ENGINES
from .. import target as table_of_targets
from .jobs import Outcome
from .ssh import not_understood
from .table import render_table
from .transfer import Link

LEAST_PYTHON = (3, 8)
LEAST_DISK_MIB = 1024  # kit, engine and timing cache with room to spare
LEAST_MEMORY_MIB = 1024  # that TensorRT takes beside the workspace of a kit's builds
_JETSON_PACKAGE = "sudo apt install nvidia-jetpack"
# Importable name -> what is missing without it, and the fix.
_MODULES = {
    "numpy": "sudo apt install python3-numpy",
    "PIL": "sudo apt install python3-pil",
    "tensorrt": f"sudo apt install python3-libnvinfer (all of JetPack: {_JETSON_PACKAGE})",
}
# Modules of the engines.
_ENGINES = tuple(dict.fromkeys(entry.package for entry in ENGINES.values()))
# In the device tree's model -> the module's row in targets.json, told apart by memory.
_FAMILIES = {
    "orin nano": "orin-nano",
    "orin nx": "orin-nx",
    "agx orin": "agx-orin",
    "xavier nx": "xavier-nx",
    "agx xavier": "agx-xavier",
    "thor": "thor",
    "jetson nano": "nano",
}


class Finding(NamedTuple):
    """Something that is missing or that will disturb a measurement."""

    what: str
    fix: str
    blocks: bool  # whether nothing runs without the fix


class Examined(NamedTuple):
    """A device's facts, the target to export for, and what was found."""

    facts: dict[str, Any]
    target: str | None  # name in `edgeseg targets`; None: not a Jetson that is known
    findings: tuple[Finding, ...]


def examine(link: Link) -> Examined:
    """Ask a device and judge what it answers; errors as `Connection`."""
    with link.connect() as connection:
        connection.request("doctor")
        facts = connection.read_answer(facts=dict)["facts"]
    try:
        return judge(facts, link.device.name)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise not_understood(link.device, error) from error


def judge(facts: dict[str, Any], name: str) -> Examined:
    """Return what is missing on a device of these facts, see `look` of the agent."""
    target = target_of(facts)
    return Examined(facts, target, tuple(_findings(facts, target, name)))


def target_of(facts: Mapping[str, Any]) -> str | None:
    """Return the target whose kits fit a device, by its model, memory and Jetson Linux."""
    jetpack = _jetpack_of(facts["l4t"])
    model = (facts["model"] or "").lower()
    family = next((row for words, row in _FAMILIES.items() if words in model), None)
    if jetpack is None or family is None:
        return None
    memory_gib = (facts["memory_mib"]["total"] or 0) / 1024
    fitting = [
        target
        for name, target in table_of_targets.targets().items()
        if name.endswith(f"@{jetpack}") and re.match(rf"{family}(-|@)", name)
    ]
    # Linux sees somewhat less than a module has, never more.
    fitting = [each for each in fitting if (each.memory_gib or 0) >= memory_gib]
    return min(fitting, key=lambda each: each.memory_gib or 0).name if fitting else None


def _jetpack_of(l4t: str | None) -> str | None:
    """Return the JetPack of a Jetson Linux, such as "jp6.2" of "36.4.3"."""
    if l4t is None:
        return None
    names = {
        name.partition("@")[2]: target.l4t
        for name, target in table_of_targets.targets().items()
        if target.l4t is not None
    }
    return next((name for name, span in names.items() if span and _covers(span, l4t)), None)


def _covers(span: str, l4t: str) -> bool:
    """Whether a version lies in a span such as "36.3", "35.2-35.6" or "36.4.3-36.5.0"."""
    first, _, last = span.partition("-")
    try:
        low, high = _numbers(first), _numbers(last or first)
        found = _numbers(l4t)
    except ValueError:  # "39.2.x": the table does not know which
        return False
    return low <= found[: len(low)] and found[: len(high)] <= high


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _loads(module: Mapping[str, Any] | None) -> bool:
    return module is not None and module["error"] is None


def _first_numbers(version: str) -> tuple[int, ...]:
    """Return the numbers at the start of a version such as "3.13.0rc1"; none of "?"."""
    found = re.match(r"\d+(\.\d+)*", version)
    return _numbers(found[0]) if found else ()


def _findings(facts: Mapping[str, Any], target: str | None, name: str) -> list[Finding]:
    found = []
    python = _first_numbers(facts["python"])
    if python < LEAST_PYTHON:
        found.append(
            Finding(
                f"Python {facts['python']}; 3.8 is the oldest that works",
                "flash JetPack 5 or newer, or name a newer interpreter with --python",
                True,
            )
        )
    jetson = facts["l4t"] is not None
    modules = facts["modules"]
    for module, fix in _MODULES.items():
        if modules[module] is None and (jetson or module != "tensorrt"):
            found.append(Finding(f"no {module} in {facts['executable']}", fix, True))
    for module, told in modules.items():
        if told is not None and told["error"] is not None:
            fix = _MODULES.get(module, f"{facts['executable']} -m pip install --upgrade {module}")
            what = f"{module} is there and does not load: {told['error']}"
            found.append(Finding(what, fix, module in _MODULES))
    if not jetson and not any(map(_loads, (modules.get(each) for each in _ENGINES))):
        fix = f"{facts['executable']} -m pip install onnxruntime"
        found.append(Finding("no engine", fix, True))
    if jetson and facts["cuda"] is None:
        found.append(Finding("no CUDA in /usr/local/cuda", _JETSON_PACKAGE, True))
    found += _of_target(facts, target)
    if jetson and facts["clocks_locked"] is False:
        found.append(
            Finding(
                "clocks are free: latencies vary",
                "sudo nvpmodel -m 0 && sudo jetson_clocks (before measuring)",
                False,
            )
        )
    available = facts["memory_mib"]["available"]
    if available is not None and available < LEAST_MEMORY_MIB:
        fix = "sudo systemctl isolate multi-user.target (stops the desktop)"
        found.append(Finding(f"{available} MiB of memory free", fix, False))
    if facts["disk_free_mib"] < LEAST_DISK_MIB:
        fix = f"edgeseg device clean {name}, or free space under {facts['work_folder']}"
        found.append(Finding(f"{facts['disk_free_mib']} MiB of disk free", fix, True))
    return found


def _of_target(facts: Mapping[str, Any], target: str | None) -> list[Finding]:
    """Compare what is installed with what the device's JetPack brings."""
    if facts["l4t"] is None:
        return []
    if target is None:
        what = f"model {facts['model']!r} with L4T {facts['l4t']} is in no row of ours"
        return [Finding(what, "edgeseg targets lists the rows; report it with this table", False)]
    module = facts["modules"]["tensorrt"]
    wanted = table_of_targets.find_target(target).tensorrt_version
    if not _loads(module) or _first_numbers(module["version"])[:2] == wanted[:2]:
        return []
    brings = ".".join(map(str, wanted))
    return [
        Finding(
            f"TensorRT {module['version']}; kits for {target} are for {brings}",
            f"install JetPack's own ({_JETSON_PACKAGE}), or export for the JetPack that has yours",
            True,
        )
    ]


def render(outcomes: Sequence[Outcome[Examined]]) -> str:
    """Return one table, a row for each property and a column for each device, then the fixes."""
    good = [each for each in outcomes if each.result is not None]
    lines = []
    if good:
        columns = [_column(each.result) for each in good if each.result is not None]
        rows = [(head, *(column[head] for column in columns)) for head in columns[0]]
        lines.append(render_table(("", *(each.name for each in good)), rows))
    for each in outcomes:
        if each.error is not None:
            lines.append(f"{each.name}: {each.error}")
        elif each.result is not None:
            lines += [
                f"{each.name}: {finding.what}; fix: {finding.fix}"
                for finding in each.result.findings
            ]
    return "\n".join(lines)


def _column(examined: Examined) -> dict[str, str]:
    facts = examined.facts
    memory = facts["memory_mib"]

    def module(name: str) -> str:
        found = facts["modules"][name]
        return found["version"] if _loads(found) else "broken" if found else "none"

    locked = {True: "locked", False: "free", None: "unknown"}[facts["clocks_locked"]]
    moved = [each for each in ("cuda", "pycuda") if _loads(facts["modules"][each])]
    return {
        "model": facts["model"] or "no device tree",
        "machine": facts["machine"],
        "L4T": facts["l4t"] or "none",
        "JetPack": facts["packages"].get("nvidia-jetpack") or _jetpack_of(facts["l4t"]) or "none",
        "target": examined.target or "none",
        "TensorRT packages": facts["packages"].get("tensorrt", "none"),
        "TensorRT in Python": module("tensorrt"),
        "CUDA": facts["cuda"] or "none",
        "CUDA in Python": ", ".join(moved) or "ctypes",
        "onnxruntime": module("onnxruntime"),
        "openvino": module("openvino"),
        "numpy, Pillow": f"{module('numpy')}, {module('PIL')}",
        "Python": facts["python"],
        "power mode": facts["power_mode"] or "unknown",
        "clocks": locked,
        "memory free": f"{memory['available']} of {memory['total']} MiB",
        "disk free": f"{facts['disk_free_mib']} MiB",
        "missing": str(sum(finding.blocks for finding in examined.findings)),
    }


def to_json(outcomes: Sequence[Outcome[Examined]]) -> str:
    """Return all facts and findings, by device."""
    content = {
        each.name: {"error": str(each.error)}
        if each.result is None
        else {
            "facts": each.result.facts,
            "target": each.result.target,
            "findings": [finding._asdict() for finding in each.result.findings],
        }
        for each in outcomes
    }
    return json.dumps(content, indent=1)
