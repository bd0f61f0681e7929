"""CPUs: files for the engines of the runtime, measured here where this machine is one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from ...runtime.cpu import missing_features
from ..target import PRECISIONS, Target
from .kind import (
    EngineBuild,
    FrameSize,
    Kind,
    ask_the_parser,
    build_nothing,
    refuse_dla_and_cache,
    ship_nothing_more,
)

if TYPE_CHECKING:
    from ..audit import ExecutedPrecisions
    from ..forms import Conversion, Form
    from ..parity import Run
    from ..plan import Plan


def why_not(target: Target, precision: str, frame: FrameSize | None) -> str:
    """Return why no engine of a CPU takes a precision; "" if one does."""
    if precision not in target.engines:
        return f"its engines have no arithmetic in it; choose of {', '.join(target.engines)}"
    if frame and not any(map(_takes_onnx, target.engines[precision])):
        return "no engine of it takes an ONNX here, which --frame writes"
    # Elsewhere a form is proved in float arithmetic, which says nothing of this one.
    if precision == "bf16" and (not target.runs_here or missing_features(target.needs("bf16"))):
        return (
            "it cannot be proved on this machine, whose CPU has neither AVX512_BF16 nor AMX_BF16, "
            "or is none of the target's; export it on one that has it"
        )
    return ""


def _takes_onnx(engine: str) -> bool:
    from ...runtime.engines import ENGINES

    return ENGINES[engine].suffixes == (".onnx",)


def notes(
    target: Target,
    precisions: Sequence[str],
    builds: Mapping[str, EngineBuild],
    frame: FrameSize | None,
    common: Sequence[str],
) -> list[str]:
    """Say what the precisions are on a CPU."""
    own = []
    if "fp16" in precisions:
        own.append("fp16 halves the weights' file; a CPU without FP16 kernels computes in fp32")
    if target.weight_bits == 7 and "int8" in precisions:
        own.append(
            "INT8 weights have 7 bits, those of depthwise convolutions 8: on CPUs without VNNI "
            "sums of two products saturate"
        )
    if needed := sorted({each for name in precisions for each in target.needs(name)}):
        own.append(f"CPUs without {' or '.join(needed)} refuse a bundle that needs it")
    return [*own, *common]


def describe(plan: Plan, precision: str) -> str:
    """Name the engines."""
    return f"for {' and '.join(plan.target.engines[precision])}"


@dataclass(frozen=True)
class _Files:
    """What one engine gets of a model."""

    files: Mapping[str, bytes]
    weights_bytes: int
    audit: Callable[[], ExecutedPrecisions]  # what runs here in which precision
    model: bytes | None = None  # see `Form.model`


def _for_openvino(conversion: Conversion, precision: str, model: bytes, threads: int) -> _Files:
    from ...benchmarks.measure.complexity import count_complexity
    from ..audit import achieved_in_openvino
    from ..final_resize import resize_as_products
    from ..forms import openvino_files, shaped_model
    from ..odd_kernels import odd_kernels

    half = precision == "fp16"
    arithmetic = "bf16" if precision == "bf16" else "f32"
    products: tuple[str, ...] = ()
    if precision in ("bf16", "int8"):
        model = odd_kernels(model)
    macs = count_complexity(model).macs
    if precision in ("bf16", "int8"):
        model, products = resize_as_products(model)
    fixed = openvino_files(conversion, model, half=half)
    files = fixed
    if conversion.plan.max_batch > 1:
        files = openvino_files(conversion, shaped_model(conversion, model), half=half)
    xml, weights = fixed["model.xml"], fixed["model.bin"]
    return _Files(
        files,
        len(files["model.bin"]),
        lambda: achieved_in_openvino(
            xml, weights, threads, macs=macs, arithmetic=arithmetic, beside=products
        ),
    )


def _for_onnxruntime(conversion: Conversion, precision: str, model: bytes, threads: int) -> _Files:
    from ..audit import achieved_in_onnxruntime
    from ..forms import shaped_model, weights_bytes

    return _Files(
        {"model.onnx": shaped_model(conversion, model)},
        weights_bytes(model),
        lambda: achieved_in_onnxruntime(model, threads),
        model,
    )


# By engine. To add one that a CPU target names: a function above and a line here.
WRITERS: Mapping[str, Callable[[Conversion, str, bytes, int], _Files]] = MappingProxyType(
    {
        "openvino": _for_openvino,
        "openvino-bf16": _for_openvino,
        "onnxruntime": _for_onnxruntime,
    }
)


def make(conversion: Conversion, precision: str, keep_float: tuple[str, ...]) -> Iterator[Form]:
    """Files for the engines of a CPU target, each run in its own engine where that is here."""
    from ...runtime.engines import available_threads, open_engine
    from ..forms import Form, quantised_onnx, shaped_model
    from ..parity import exact_run

    target = conversion.plan.target
    threads = available_threads()
    for engine in target.engines[precision]:
        model = conversion.master
        if precision == "int8":
            model = quantised_onnx(conversion, keep_float, lean=engine == "openvino")
        made = WRITERS[engine](conversion, precision, model, threads)
        run: Run
        achieved: tuple[ExecutedPrecisions, ...] = ()
        if target.runs_here:
            achieved = (made.audit(),)
            run = open_engine(engine, made.files, threads).run
        else:
            run = exact_run(shaped_model(conversion, model), threads)
        yield Form(
            engine,
            precision,
            made.files,
            run,
            made.weights_bytes,
            achieved,
            keep_float,
            made.model,
        )


CPU = Kind(
    refuse=refuse_dla_and_cache,
    why_not=why_not,
    require_network=ask_the_parser,
    describe=describe,
    make=make,
    ship=ship_nothing_more,
    notes=notes,
    builds=build_nothing,
    precisions=PRECISIONS,
    ships_every_precision=False,
    stores_half_only=True,
    has_unsigned_activations=True,
)
