"""The targets: what is known of a device, read from `targets.json`."""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..runtime.cpu import missing_features
from ..runtime.errors import InputError

PRECISIONS = ("fp32", "fp16", "bf16", "int8")  # the widest first
OPSET = 17  # of ONNX: the highest that TensorRT 8.5 (JetPack 5) parses
ALIAS = "jetson"  # for the row's own default module and JetPack
_FILE = Path(__file__).with_name("targets.json")
_SCHEMA = "edgeseg.targets/1"
_SOFTWARE = ("l4t", "python", "cuda", "tensorrt")
_JETPACK_KEYS = frozenset({"name", "socs", "dla", "source", "checked", *_SOFTWARE})


@dataclass(frozen=True)
class Target:
    """A device, or a family of them, and the software on it; None is what the row does not know."""

    name: str
    kind: str  # key in `kinds.KINDS`
    summary: str
    source: str  # of the figures
    checked: str  # date, ISO 8601
    engines: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of a CPU, by precision
    weight_bits: int = 8  # of INT8 weights, 7 or 8; of depthwise ones 8
    # Highest of which its parsers take every operator that an export takes, where that is known: an
    # ONNX from elsewhere keeps its own up to this one, above it becomes `OPSET`.
    opset: int = OPSET
    machines: tuple[str, ...] = ()  # architectures of a CPU, as `platform.machine` names them
    cpu: tuple[str, ...] = ()  # what every CPU of it has, keys of `runtime.cpu.FEATURES`
    compute_capabilities: tuple[str, ...] = ()  # of the GPU; empty: whatever the host has
    int8: bool = True  # whether the GPU has INT8 arithmetic
    tensorrt: str | None = None
    cuda: str | None = None
    python: str | None = None
    l4t: str | None = None
    dla_cores: int = 0
    memory_gib: float | None = None
    bandwidth_gb_s: float | None = None
    fp16_tflops: float | None = None  # dense peak of the GPU
    int8_tops: float | None = None  # dense peak of the GPU, without DLA

    @property
    def is_jetson(self) -> bool:
        """Whether it is of a row of modules and one of JetPacks."""
        return self.l4t is not None

    @property
    def runs_here(self) -> bool:
        """Whether what is measured on this machine holds for the target."""
        return platform.machine() in self.machines and not missing_features(self.cpu)

    def needs(self, precision: str) -> tuple[str, ...]:
        """Return what a bundle of a precision needs of the CPU, keys of `runtime.cpu.FEATURES`."""
        from ..runtime.engines import ENGINES

        own = (each for engine in self.engines.get(precision, ()) for each in ENGINES[engine].cpu)
        return tuple(dict.fromkeys((*self.cpu, *own)))

    @property
    def tensorrt_version(self) -> tuple[int, int, int]:
        """Major, minor and patch. Raises ValueError for a target without TensorRT."""
        if self.tensorrt is None:
            raise ValueError(f"{self.name} has no TensorRT")
        major, minor, patch = (int(part) for part in self.tensorrt.split("."))
        return major, minor, patch


@functools.cache
def targets() -> Mapping[str, Target]:
    """Return every target by name: a host, ``host@variant`` of its CPUs, or ``module@jetpack``."""
    content = json.loads(_FILE.read_text(encoding="utf-8"))
    if content["schema"] != _SCHEMA:
        raise ValueError(f"{_FILE} has schema {content['schema']}, expected {_SCHEMA}")
    found = [_host_from_row(each) for row in content["hosts"] for each in _variants_of(row)]
    found += [
        _jetson_from_rows(module, jetpack)
        for module in content["modules"]
        for jetpack in content["jetpacks"]
        if set(module["socs"]) & set(jetpack["socs"])
    ]
    return MappingProxyType({target.name: target for target in found})


@functools.cache
def default_jetson() -> str:
    """Return the name that `ALIAS` stands for."""
    return str(json.loads(_FILE.read_text(encoding="utf-8"))["default_jetson"])


def find_target(name: str) -> Target:
    """Return a target by name.

    Raises InputError (E-TARGET-NAME) with the names that are close to it.
    """
    known = targets()
    wanted = default_jetson() if name == ALIAS else name
    if wanted in known:
        return known[wanted]
    module = name.partition("@")[0]
    near = [each for each in known if each.partition("@")[0] == module]
    if near:
        raise InputError(
            "E-TARGET-NAME", f"no target {name!r}; {module} takes one of {', '.join(near)}"
        )
    hosts = [each for each in known if "@" not in each]
    raise InputError(
        "E-TARGET-NAME",
        f"no target {name!r}; choose of {', '.join(hosts)}, {ALIAS} or a module with its JetPack, "
        f"such as {default_jetson()} (`edgeseg targets` lists all)",
    )


def render_targets() -> str:
    """Return the table of targets: hosts, then a line for each Jetson module with its JetPacks."""
    known = targets()
    rows = [(name, each.summary) for name, each in known.items() if not each.is_jetson]
    rows.append((ALIAS, f"the same as {default_jetson()}"))
    for module in jetson_modules():
        own = {name: known[name] for name in known if name.partition("@")[0] == module}
        first = next(iter(own.values()))
        jetpacks = ", ".join(
            f"@{name.partition('@')[2]} (TensorRT {target.tensorrt})"
            for name, target in own.items()
        )
        rows.append(
            (f"{module}@…", f"{first.memory_gib} GiB, {first.bandwidth_gb_s} GB/s: {jetpacks}")
        )
    return "\n".join(f"{name:22} {text}" for name, text in rows)


def jetson_modules() -> Mapping[str, Target]:
    """Return each Jetson module by name, with the last of its JetPacks."""
    known = targets().items()
    return {name.partition("@")[0]: each for name, each in known if each.is_jetson}


def _variants_of(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a host and, named ``host@variant``, those of its CPUs that have more."""
    host = {key: value for key, value in row.items() if key != "variants"}
    more = row.get("variants", [])
    return [host, *({**host, **each, "name": f"{row['name']}@{each['name']}"} for each in more)]


def _host_from_row(row: Mapping[str, Any]) -> Target:
    values = dict(row)
    capability = values.pop("compute_capability", None)
    capabilities = values.pop("compute_capabilities", [capability] if capability else [])
    engines = {name: tuple(kinds) for name, kinds in values.pop("engines", {}).items()}
    machines, cpu = (tuple(values.pop(name, ())) for name in ("machines", "cpu"))
    return Target(
        **values,
        compute_capabilities=tuple(capabilities),
        engines=engines,
        machines=machines,
        cpu=cpu,
    )


def _jetson_from_rows(module: Mapping[str, Any], jetpack: Mapping[str, Any]) -> Target:
    if unknown := set(jetpack) - _JETPACK_KEYS:
        raise TypeError(f"JetPack {jetpack['name']} has the unknown keys {sorted(unknown)}")
    values = {key: value for key, value in module.items() if key != "socs"}
    has_dla = set(module["socs"]) & set(jetpack["dla"])
    values["dla_cores"] = module["dla_cores"] if has_dla else 0
    values |= {key: jetpack[key] for key in _SOFTWARE}
    return _host_from_row(
        {
            **values,
            "name": f"{module['name']}@{jetpack['name']}",
            "kind": "tensorrt",
            "summary": f"NVIDIA Jetson {module['name']} with JetPack {jetpack['name'][2:]}: typed "
            "ONNX and a kit that builds the TensorRT engine there",
            "source": f"{module['source']}; {jetpack['source']}",
            "checked": min(module["checked"], jetpack["checked"]),
        }
    )
