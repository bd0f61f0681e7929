"""What a kind of target answers: what it refuses, how it is described, what is made and shipped.

What needs ONNX or an engine is imported inside the functions, so that targets can be listed and
plans printed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ...runtime.errors import Refused
from ..target import Target

if TYPE_CHECKING:
    from ..forms import Conversion, Form
    from ..plan import Plan

FrameSize = tuple[int, int]  # width, height in px


# What strongly typed networks of TensorRT are built from, by precision.
TYPED_ONNX: Mapping[str, str] = MappingProxyType(
    {"fp32": "fp32.onnx", "fp16": "fp16.onnx", "int8": "qdq-fp16.onnx"}
)


@dataclass(frozen=True)
class EngineBuild:
    """How TensorRT builds one engine on the device; goes into `kit.json`."""

    onnx: str  # file
    typed: bool  # strongly typed network: every tensor keeps the type it has in the ONNX
    flags: tuple[str, ...] = ()  # BuilderFlag names, of a weakly typed network
    cache: str | None = None  # calibration cache, for implicit quantisation
    dla_core: int | None = None

    @property
    def may_halve(self) -> bool:
        """Whether TensorRT may compute in FP16 what is FP32 in the ONNX."""
        return not self.typed and "FP16" in self.flags


@dataclass(frozen=True)
class Kind:
    """One kind of target; the functions are of its module."""

    # (target, DLA core, whether a calibration cache was asked for): raises Refused for what no
    # precision could make up for.
    refuse: Callable[[Target, int | None, bool], None]
    # (target, precision, frame): why it does not take a precision; "" if it does
    why_not: Callable[[Target, str, FrameSize | None], str]
    # (target, the network as FP32 ONNX): raises Refused for what the target cannot read
    require_network: Callable[[Target, bytes], None]
    # (plan, precision): what is written, in a line
    describe: Callable[[Plan, str], str]
    # (conversion, precision, convolutions kept in float): the files, the preferred engine's first
    make: Callable[[Conversion, str, tuple[str, ...]], Iterator[Form]]
    # with the arguments of `to_kit.write_kit`: adds what the files need beside them
    ship: Callable[..., None]
    # (target, precisions, builds, frame, notes of every kind): what to know of a plan
    notes: Callable[
        [Target, Sequence[str], Mapping[str, EngineBuild], FrameSize | None, Sequence[str]],
        Sequence[str],
    ]
    # (target, precisions, DLA core, cache): how a device builds its engines, by precision
    builds: Callable[[Target, Sequence[str], int | None, bool], Mapping[str, EngineBuild]]
    precisions: tuple[str, ...]  # of its forms, the widest first
    ships_every_precision: bool  # else the one that was chosen
    stores_half_only: bool  # FP16 is a way to store weights, no arithmetic
    has_unsigned_activations: bool  # INT8 activations are in 0..255
    why_no_frame: str = ""  # what `--frame` writes is not taken; "" if it is
    on_device: str = ""  # what is left to do there; "" if nothing is


def takes_every_precision(target: Target, precision: str, frame: FrameSize | None) -> str:
    """Return "": every precision is taken, but for what a row of targets says."""
    return ""


def refuse_dla_and_cache(target: Target, dla_core: int | None, cache: bool) -> None:
    """Refuse what only TensorRT has. Raises Refused: E-TARGET-DLA, E-TARGET-CACHE."""
    if dla_core is not None:
        raise Refused("E-TARGET-DLA", f"{target.name} has no DLA; leave --dla out")
    if cache:
        raise Refused(
            "E-TARGET-CACHE", f"{target.name} takes Q/DQ only; leave --calibration-cache out"
        )


def ask_the_parser(target: Target, master: bytes) -> None:
    """Refuse nothing: the target's parser is here, and reads the network when it is made."""


def ship_nothing_more(*_: Any, **__: Any) -> None:
    """Add nothing: the files run as they are."""


def build_nothing(
    target: Target, precisions: Sequence[str], dla_core: int | None, cache: bool
) -> Mapping[str, EngineBuild]:
    """Return no builds: nothing is built on the device."""
    return {}
