"""One precision in one engine: the files, what runs them, and how they are made from the master.

A form is proved in its own engine. What another device will run (a kit's ONNX, the source of a
plan) is proved exactly as it is written, in float arithmetic.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx

from ..benchmarks.measure.complexity import count_complexity
from ..runtime.errors import Refused
from .audit import ExecutedPrecisions, asked_in_graph, least_share
from .batch import with_dynamic_batch
from .calibration import Calibration
from .graph import convolutions_of
from .kinds import kind_of
from .parity import Run
from .plan import MIN_SHARE, Plan
from .qdq import Rounding, qdq_from_onnx, rounding_of
from .to_half import half_from_onnx, half_from_qdq, nodes_beyond_half

_SPARE_BYTES = 1 << 20  # less free space than this is a full disk


@dataclass(frozen=True)
class Form:
    """The files of one precision in one engine, and what is known of them."""

    engine: str
    precision: str
    files: Mapping[str, bytes]  # by name in the bundle
    run: Run
    weights_bytes: int  # as stored
    achieved: tuple[ExecutedPrecisions, ...]  # empty where only a device tells
    kept_float: tuple[str, ...] = ()  # convolutions that stay wider than the precision
    model: bytes | None = None  # what an engine that takes ONNX gets, with batch 1

    @property
    def name(self) -> str:
        """As in the parity table."""
        return f"{self.engine} {self.precision}"


@dataclass(frozen=True)
class Conversion:
    """All that a form is made from."""

    plan: Plan
    master: bytes  # the trained network as FP32 ONNX
    calibration: Calibration | None  # None where no precision needs ranges
    method: str  # of calibration
    folder: Path  # for what an engine's library only writes to a file; exists
    quantised: bytes | None = None  # the network as ONNX with its own INT8 pairs
    largest: Mapping[str, float] | None = (
        None  # |x| met in each activation; None: the calibration's
    )

    @cached_property
    def beyond_half(self) -> tuple[str, ...]:
        """The nodes that FP16 cannot hold, see `nodes_beyond_half`; needs a calibration."""
        largest = self.largest
        if largest is None and self.calibration is not None:
            largest = self.calibration.largest
        if largest is None:
            raise ValueError("an FP16 form needs the ranges of a calibration")
        return nodes_beyond_half(self.quantised or self.master, largest)


def make_forms(
    conversion: Conversion, precision: str, keep_float: Collection[str] = ()
) -> tuple[Form, ...]:
    """Return the forms of one precision, the preferred engine's first.

    Args:
        conversion: what they are made from.
        precision: one of the plan's.
        keep_float: convolutions that an INT8 form leaves in float.
    """
    return tuple(kind_of(conversion.plan.target).make(conversion, precision, tuple(keep_float)))


def typed_onnx(conversion: Conversion, file: str, keep_float: Collection[str] = ()) -> bytes:
    """Return one of the ONNX files that TensorRT builds from, by its name in a kit."""
    if file == "fp32.onnx":
        return conversion.master
    if conversion.quantised is not None:
        own = conversion.quantised
        return own if file == "qdq.onnx" else half_from_qdq(own, keep=conversion.beyond_half)
    base = conversion.master
    if file in ("fp16.onnx", "qdq-fp16.onnx"):
        base = half_from_onnx(base, keep=conversion.beyond_half)
    if file == "fp16.onnx":
        return base
    return qdq_from_onnx(base, amax_of(conversion), keep_float=keep_float)


def quantised_onnx(
    conversion: Conversion, keep_float: Collection[str] = (), *, lean: bool = False
) -> bytes:
    """Return the INT8 of a CPU: the network's own pairs, or ours from the ranges.

    Args:
        conversion: of the network.
        keep_float: convolutions that stay as they are.
        lean: of our pairs those go without which the engine is faster, see `qdq_from_onnx`.
    """
    if conversion.quantised is not None:
        return conversion.quantised
    target = conversion.plan.target
    return qdq_from_onnx(
        conversion.master,
        amax_of(conversion),
        unsigned=True,
        weight_bits=target.weight_bits,
        keep_float=keep_float,
        lean=lean,
    )


def least_share_of(conversion: Conversion, precision: str, kept_float: Collection[str]) -> float:
    """Return the share of MACs that must run in a precision, see `least_share`.

    Of a network with pairs of its own what these ask for counts.
    """
    if precision != "int8" or conversion.quantised is None:
        return least_share(conversion.master, precision, kept_float)
    asked = asked_in_graph(conversion.quantised).share("int8")
    return max(0.0, asked - (1 - MIN_SHARE["int8"]))


def rounding_for(conversion: Conversion, keep_float: Collection[str] = ()) -> Rounding:
    """Return what the target's INT8 forms round in the master.

    A convolution that only FP16 cannot hold is in it, as another network may fit.
    """
    target = conversion.plan.target
    return rounding_of(
        conversion.master,
        amax_of(conversion),
        unsigned=kind_of(target).has_unsigned_activations,
        weight_bits=target.weight_bits,
        keep_float=keep_float,
    )


def amax_of(conversion: Conversion) -> Mapping[str, float]:
    """Return the ranges of the method."""
    if conversion.calibration is None:
        raise ValueError("an INT8 form needs a calibration")
    return conversion.calibration.amax[conversion.method]


def require_half(conversion: Conversion) -> None:
    """Refuse what FP16 cannot hold: in a weakly typed network no type in the ONNX is binding."""
    if beyond := conversion.beyond_half:
        raise Refused(
            "E-PRECISION-RANGE",
            f"{', '.join(beyond[:3])} (of {len(beyond)} nodes) goes beyond FP16, which TensorRT "
            f"{conversion.plan.target.tensorrt} may choose for every layer; export "
            "--precision fp32 for the GPU",
        )


def kept_in_float(
    conversion: Conversion, file: str, keep_float: tuple[str, ...]
) -> tuple[str, ...]:
    """Add to what INT8 keeps in float the convolutions that FP16 cannot hold."""
    if file not in ("fp16.onnx", "qdq-fp16.onnx") or conversion.quantised is not None:
        return keep_float
    convolutions = convolutions_of(onnx.load_model_from_string(conversion.master).graph)
    beyond = (name for name in conversion.beyond_half if name in convolutions)
    return tuple(dict.fromkeys((*keep_float, *beyond)))


def shaped_model(conversion: Conversion, model: bytes) -> bytes:
    """Return the model as it ships: all that counts or audits takes it before, with batch 1."""
    most = conversion.plan.max_batch
    return with_dynamic_batch(model, most) if most > 1 else model


def weights_bytes(model: bytes) -> int:
    """Return the bytes of a model's weights."""
    return count_complexity(model).weights_bytes


def openvino_files(conversion: Conversion, model: bytes, *, half: bool) -> dict[str, bytes]:
    """Return OpenVINO's files of a model, by name."""
    from .to_openvino import openvino_from_onnx

    with tempfile.TemporaryDirectory(dir=conversion.folder) as folder:
        try:
            most = conversion.plan.max_batch
            openvino_from_onnx(model, Path(folder), half=half, max_batch=most)
        except RuntimeError as error:  # what OpenVINO raises for a write that failed
            if shutil.disk_usage(folder).free < _SPARE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
