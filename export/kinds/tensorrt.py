"""TensorRT: ONNX, and a kit that builds, verifies and audits the engine on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...runtime.errors import Refused
from ..target import Target
from .kind import TYPED_ONNX, EngineBuild, FrameSize, Kind, takes_every_precision

if TYPE_CHECKING:
    from ..forms import Conversion, Form
    from ..plan import Plan

_OLDEST = (8, 5)
_OPSET, _HALF_QDQ_OPSET = 17, 19


def refuse(target: Target, dla_core: int | None, cache: bool) -> None:
    """Refuse what this TensorRT, or the DLA under it, does not build.

    Raises Refused: E-TARGET-TENSORRT (too old), E-TARGET-CACHE, E-TARGET-DLA.
    """
    name = target.name
    version = target.tensorrt_version
    if version[:2] < _OLDEST:
        raise Refused(
            "E-TARGET-TENSORRT",
            f"{name} has TensorRT {target.tensorrt}, which edgeseg does not build for; the oldest "
            "is 8.5 (JetPack 5.1)",
        )
    if cache and version[0] >= 11:
        raise Refused(
            "E-TARGET-CACHE",
            f"{name} has TensorRT {target.tensorrt}, which has no calibration caches any more; "
            "leave --calibration-cache out: Q/DQ is written",
        )
    if dla_core is None:
        return
    if not 0 <= dla_core < target.dla_cores:
        has = f"{target.dla_cores} DLA cores" if target.dla_cores else "no DLA"
        raise Refused("E-TARGET-DLA", f"{name} has {has}; choose another core or leave --dla out")
    if version[0] >= 11:
        raise Refused(
            "E-TARGET-DLA",
            f"DLA under TensorRT {target.tensorrt} takes Q/DQ throughout its part of the graph, "
            f"which edgeseg does not write; build for the GPU of {name}: leave --dla out",
        )


def require_network(target: Target, master: bytes) -> None:
    """See `require_parsed`."""
    from ..surface import require_parsed

    require_parsed(target, master)


def notes(
    target: Target,
    precisions: Sequence[str],
    builds: Mapping[str, EngineBuild],
    frame: FrameSize | None,
    common: Sequence[str],
) -> list[str]:
    """Say what only the device can judge."""
    own = []
    if any(each.dla_core is not None for each in builds.values()):
        own.append("DLA arithmetic cannot run here: the golden vectors judge it on the device")
    if frame and any(each.may_halve for each in builds.values()):
        own.append(
            f"TensorRT {target.tensorrt} may compute what --frame adds in FP16, resize, threshold "
            "and least peak: the golden frames judge it on the device"
        )
    return [*common, *own]


def builds_of(
    target: Target, precisions: Sequence[str], dla_core: int | None, cache: bool
) -> dict[str, EngineBuild]:
    """Return how the device builds each precision."""
    return {name: _build_of(target, name, dla_core, cache) for name in precisions}


def _build_of(target: Target, precision: str, dla_core: int | None, cache: bool) -> EngineBuild:
    """Choose the form of one engine: typed from TensorRT 10 on, but for the DLA and for caches."""
    implicit = precision == "int8" and (cache or dla_core is not None)
    # Types in the graph would bind the DLA, and Q/DQ would end implicit quantisation.
    untyped = implicit or dla_core is not None
    if target.tensorrt_version[0] >= 10 and not untyped:
        return EngineBuild(TYPED_ONNX[precision], typed=True)
    flags = {"fp32": (), "fp16": ("FP16",), "int8": ("FP16", "INT8")}[precision]
    files = {"fp32": "fp32.onnx", "fp16": "fp16.onnx", "int8": "qdq.onnx"}
    if untyped:
        files = dict.fromkeys(files, "fp32.onnx")
    return EngineBuild(
        files[precision],
        typed=False,
        flags=flags,
        cache="calib.cache" if implicit else None,
        dla_core=dla_core,
    )


def describe(plan: Plan, precision: str) -> str:
    """Say what the engine is built from, and how."""
    build = plan.builds[precision]
    opset = _HALF_QDQ_OPSET if build.onnx == "qdq-fp16.onnx" else _OPSET
    kind = "strongly typed" if build.typed else "weakly typed"
    flags = f", flags {' '.join(build.flags)}" if build.flags else ""
    cache = f", implicit INT8 from {build.cache}" if build.cache else ""
    explicit = ", explicit INT8 (Q/DQ)" if precision == "int8" and not build.cache else ""
    dla = f", DLA core {build.dla_core} with GPU fallback" if build.dla_core is not None else ""
    return f"{build.onnx} (opset {opset}), {kind} network{flags}{cache}{explicit}{dla}"


def make(conversion: Conversion, precision: str, keep_float: tuple[str, ...]) -> Iterator[Form]:
    """The ONNX that TensorRT builds from on the device; DLA and caches are judged there."""
    from ...runtime.engines import available_threads
    from ..audit import asked_in_graph, require_share
    from ..forms import (
        Form,
        kept_in_float,
        least_share_of,
        require_half,
        shaped_model,
        typed_onnx,
        weights_bytes,
    )
    from ..parity import exact_run

    build = conversion.plan.builds[precision]
    if build.may_halve:
        require_half(conversion)
    model = typed_onnx(conversion, build.onnx, keep_float)
    stand_in = model
    if build.cache:  # the same ranges in Q/DQ are the nearest that can run here
        stand_in = typed_onnx(conversion, "qdq.onnx", keep_float)
    kept = kept_in_float(conversion, build.onnx, keep_float)
    if build.typed or precision == "int8":  # what the graph does not ask for no device can run
        least = least_share_of(conversion, precision, kept)
        require_share(asked_in_graph(stand_in), precision, least)
    run = exact_run(shaped_model(conversion, stand_in), available_threads())
    size = weights_bytes(model)
    files = {build.onnx: shaped_model(conversion, model)}
    yield Form("tensorrt", precision, files, run, size, (), kept, model)


def ship(*arguments: Any, **options: Any) -> None:
    """Add the kit; see `to_kit.write_kit`."""
    from ..to_kit import write_kit

    write_kit(*arguments, **options)


TENSORRT = Kind(
    refuse=refuse,
    why_not=takes_every_precision,
    require_network=require_network,
    describe=describe,
    make=make,
    ship=ship,
    notes=notes,
    builds=builds_of,
    precisions=tuple(TYPED_ONNX),
    ships_every_precision=True,
    stores_half_only=False,
    has_unsigned_activations=False,
    on_device="in the bundle: python3 build_engine.py --help",
)
