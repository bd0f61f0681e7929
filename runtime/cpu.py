"""What a bundle may need of the CPU beyond its architecture, and whether this CPU has it.

Flags are those that Linux found in the CPU and lets processes use. Where it does not tell (another
system), nothing is known to be there and a bundle that needs something is refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType
from typing import FrozenSet, Iterable, Mapping, Tuple

from .errors import EngineError

CPUINFO = Path("/proc/cpuinfo")

# To add a feature: its flags as Linux names them, any one of the sets is enough, and the same in
# `runtime/c/src/cpu.c`.
FEATURES: Mapping[str, Tuple[FrozenSet[str], ...]] = MappingProxyType(
    {
        "vnni": (frozenset({"avx512_vnni"}), frozenset({"avx_vnni"})),
        "bf16": (frozenset({"avx512_bf16"}), frozenset({"amx_tile", "amx_bf16"})),
        "amx": (frozenset({"amx_tile", "amx_int8", "amx_bf16"}),),
    }
)

# Values of oneDNN's ONEDNN_MAX_CPU_ISA that keep its kernels, and so OpenVINO's, from a feature.
ISA_CAP = "ONEDNN_MAX_CPU_ISA"
_BELOW_VNNI = frozenset({"SSE41", "AVX", "AVX2", "AVX512_CORE"})
CAPPED_BELOW_BF16 = _BELOW_VNNI | {"AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE_VNNI"}
_CAPPED: Mapping[str, FrozenSet[str]] = MappingProxyType(
    {
        "vnni": _BELOW_VNNI,
        "bf16": CAPPED_BELOW_BF16,
        "amx": CAPPED_BELOW_BF16 | {"AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512"},
    }
)


def cpu_flags() -> FrozenSet[str]:
    """Return the flags of the first CPU; none where the system does not tell them."""
    try:
        with CPUINFO.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == "flags":
                    return frozenset(value.split())
    except OSError:
        pass
    return frozenset()


def missing_features(needed: Iterable[str]) -> Tuple[str, ...]:
    """Return which of `needed` this CPU does not have, in their order; also what is not known.

    What `ISA_CAP` keeps from the kernels of this process it does not have either.
    """
    flags, cap = cpu_flags(), os.environ.get(ISA_CAP, "").upper()
    return tuple(
        name
        for name in needed
        if cap in _CAPPED.get(name, ())
        or not any(each <= flags for each in FEATURES.get(name, ()))  # an unknown name has no set
    )


def require_features(needed: Iterable[str], what: str) -> None:
    """Raise EngineError (E-CPU-FEATURE) where this CPU lacks some of `needed`.

    Args:
        needed: keys in `FEATURES`; of a newer bundle maybe others, which nothing here can tell.
        what: needs them, for the message.
    """
    missing = missing_features(needed)
    if not missing:
        return
    unknown = [name for name in missing if name not in FEATURES]
    if unknown:
        raise EngineError(
            "E-CPU-FEATURE",
            f"{what} needs {', '.join(map(repr, unknown))} of the CPU, which this version does not "
            "know; update edgeseg, or export for x86-cpu",
        )
    wanted = ", ".join(
        f"{name} ({' or '.join('+'.join(sorted(each)) for each in FEATURES[name])})"
        for name in missing
    )
    told = "this CPU does not have" if cpu_flags() else "this system does not tell of the CPU"
    if os.environ.get(ISA_CAP):
        told += f" or {ISA_CAP}={os.environ[ISA_CAP]} keeps from it"
    raise EngineError(
        "E-CPU-FEATURE",
        f"{what} needs what {told}: {wanted}; export for x86-cpu in another precision",
    )
