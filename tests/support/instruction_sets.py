"""Which CPU the tests run on, which of its instructions they use, and in which float types.

Two variables make an older CPU of this one, for whatever the tests start too: ONEDNN_MAX_CPU_ISA
caps the kernels of PyTorch's convolutions and those of OpenVINO, ATEN_CPU_CAPABILITY what else
PyTorch computes. ONNX Runtime knows no cap.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

CAPS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
# Those that choose kernels, as Linux names them; oldest first
_SETS = (
    *("sse4_1", "avx", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)


def capped_below_avx512() -> bool:
    """Whether the kernels of oneDNN are those of a CPU without AVX-512."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper().startswith(("SSE", "AVX2"))


def describe() -> list[str]:
    """Return lines about the CPU, the caps on its kernels and the float types of the engines."""
    cpu = (
        Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    )
    name = re.search(r"^model name\s*: (.*)$", cpu, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", cpu, re.MULTILINE)
    has = flags[1].split() if flags else []
    caps = [f"{cap}={os.environ[cap]}" for cap in CAPS if os.environ.get(cap)]
    return [
        f"cpu: {name[1] if name else os.uname().machine}, {os.cpu_count()} cores",
        f"instruction sets: {' '.join(each for each in _SETS if each in has) or 'unknown'}; "
        f"{', '.join(caps) or 'no cap'}",
        f"float types: {_of_training()}; {_of_openvino()}",
    ]


def _of_training() -> str:
    try:
        import torch

        from edgeseg.kd.fit import compute_dtype
    except ImportError:
        return "no PyTorch"
    dtype = str(compute_dtype(torch.device("cpu"))).removeprefix("torch.")
    return f"training {dtype} (PyTorch with {torch.backends.cpu.get_cpu_capability()})"


def _of_openvino() -> str:
    try:
        import openvino
    except ImportError:
        return "no OpenVINO"
    if capped_below_avx512():  # it asks the CPU itself, which knows of no cap
        return "OpenVINO f32 by default, as far as the cap is heeded"
    hint = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
    return f"OpenVINO {hint} by default"
