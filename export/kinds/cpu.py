"""CPUs: files for the engines of the runtime, measured here where this machine is one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..target import Target
from .kind import Frame, Kind, build_nothing, refuse_dla_and_cache, ship_nothing_more

if TYPE_CHECKING:
    from ..forms import Form, Recipe
    from ..parity import Run
    from ..plan import Plan


def why_not(target: Target, precision: str, frame: Frame | None) -> str:
    """Return why no engine of a CPU takes a precision; "" if one does."""
    if precision not in target.engines:
        return f"its engines have no arithmetic in it; choose of {', '.join(target.engines)}"
    if frame and "onnxruntime" not in target.engines[precision]:
        return "no engine of it takes an ONNX here, which --frame writes"
    return ""


def notes(
    target: Target,
    precisions: Sequence[str],
    dla_core: int | None,
    frame: Frame | None,
    common: Sequence[str],
) -> list[str]:
    """Say what the precisions are on a CPU."""
    own = []
    if "fp16" in precisions:
        own.append("fp16 halves the weights' file; a CPU without FP16 kernels computes in fp32")
    if target.weight_bits == 7 and "int8" in precisions:
        own.append("INT8 weights have 7 bits: on CPUs without VNNI sums of two products saturate")
    return [*own, *common]


def describe(plan: Plan, precision: str) -> str:
    """Name the engines."""
    return f"for {' and '.join(plan.target.engines[precision])}"


def make(recipe: Recipe, precision: str, keep_float: tuple[str, ...]) -> Iterator[Form]:
    """Files for the engines of a CPU target, each run in its own engine where that is here."""
    from ...benchmarks.measure.complexity import count_complexity
    from ...runtime.engines import available_threads, open_engine
    from ..audit import achieved_in_onnxruntime, achieved_in_openvino
    from ..forms import Form, amax_of, openvino_files, shaped_model, weights_bytes
    from ..parity import exact_run
    from ..qdq import qdq_from_onnx

    target = recipe.plan.target
    threads = available_threads()
    macs = count_complexity(recipe.master).macs
    model = recipe.master
    if precision == "int8":
        model = qdq_from_onnx(
            model,
            amax_of(recipe),
            unsigned=True,
            weight_bits=target.weight_bits,
            keep_float=keep_float,
        )
    for engine in target.engines[precision]:
        if engine == "openvino":
            half = precision == "fp16"
            fixed = openvino_files(recipe, model, half=half)
            files = fixed
            if recipe.plan.max_batch > 1:
                files = openvino_files(recipe, shaped_model(recipe, model), half=half)
        else:
            files = {"model.onnx": shaped_model(recipe, model)}
        size = len(files["model.bin"]) if engine == "openvino" else weights_bytes(model)
        source = model if engine == "onnxruntime" else None
        run: Run
        if not target.runs_here:
            run = exact_run(shaped_model(recipe, model), threads)
            yield Form(engine, precision, files, run, size, (), keep_float, source)
            continue
        if engine == "openvino":
            xml, weights = fixed["model.xml"], fixed["model.bin"]
            achieved = achieved_in_openvino(xml, weights, threads, macs=macs)
        else:
            achieved = achieved_in_onnxruntime(model, threads)
        run = open_engine(engine, files, threads).run
        yield Form(engine, precision, files, run, size, (achieved,), keep_float, source)


CPU = Kind(
    refuse=refuse_dla_and_cache,
    why_not=why_not,
    describe=describe,
    make=make,
    ship=ship_nothing_more,
    notes=notes,
    builds=build_nothing,
    ships_every_precision=False,
    stores_half_only=True,
    has_unsigned_activations=True,
)
