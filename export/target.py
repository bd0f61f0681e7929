"""The targets: what is written for which device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..runtime.errors import InputError, Refused

PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Target:
    """A device family and the model files it takes."""

    name: str
    summary: str
    engines: Mapping[str, tuple[str, ...]]  # precision -> engines, preferred first
    kit: bool = False  # whether the TensorRT build kit goes along
    weight_bits: int = 8  # of Q/DQ ONNX in INT8, 7 or 8


# To add a target: a row here; tests/test_export.py walks the table.
TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        target.name: target
        for target in (
            Target(
                "x86-cpu",
                "Intel and AMD CPUs: OpenVINO IR, ONNX Runtime as second engine",
                {
                    "fp32": ("openvino", "onnxruntime"),
                    # ONNX Runtime's CPU provider has no FP16 convolution: it would cast back.
                    "fp16": ("openvino",),
                    "int8": ("openvino", "onnxruntime"),
                },
                # ONNX Runtime adds pairs of 8×8-bit products in 16 bits on CPUs without VNNI: they
                # saturate (0.025 Dice on BUSI), and the masks depend on the CPU.
                weight_bits=7,
            ),
            Target(
                "jetson",
                "NVIDIA Jetson: typed ONNX and a kit that builds the TensorRT engine there",
                {"fp16": ("onnxruntime",), "int8": ("onnxruntime",)},
                kit=True,
            ),
        )
    }
)


def find_target(name: str, precision: str) -> Target:
    """Return a target that has this precision.

    Raises:
        InputError: E-TARGET-NAME for a name not in the table.
        Refused: E-TARGET-PRECISION where the target has no such files.
    """
    if name not in TARGETS:
        raise InputError("E-TARGET-NAME", f"no target {name!r}; choose of {', '.join(TARGETS)}")
    target = TARGETS[name]
    if precision not in target.engines:
        raise Refused(
            "E-TARGET-PRECISION",
            f"target {name} has no {precision} files; choose of {', '.join(target.engines)}",
        )
    return target
