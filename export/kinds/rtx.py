"""NVIDIA RTX GPUs with TensorRT-RTX: plans for each generation, built here without a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..target import Target
from .kind import Frame, Kind, build_nothing, refuse_dla_and_cache, ship_nothing_more

if TYPE_CHECKING:
    from ..forms import Form, Recipe
    from ..plan import Plan


def why_not(target: Target, precision: str, frame: Frame | None) -> str:
    """Return "": every generation takes every precision, but for what a row of targets says."""
    return ""


def notes(
    target: Target,
    precisions: Sequence[str],
    dla_core: int | None,
    frame: Frame | None,
    common: Sequence[str],
) -> Sequence[str]:
    """Say nothing more."""
    return common


def describe(plan: Plan, precision: str) -> str:
    """Name the generations."""
    names = ", ".join(f"sm{each.replace('.', '')}" for each in plan.target.compute_capabilities)
    return f"a strongly typed plan for each of {names}"


def make(recipe: Recipe, precision: str, keep_float: tuple[str, ...]) -> Iterator[Form]:
    """A plan for each GPU generation, of the same ONNX as a kit's."""
    from ...runtime.engines import available_threads
    from ..audit import achieved_in_rtx
    from ..forms import Form, kept_in_float, shaped_model, typed_onnx, weights_bytes
    from ..parity import exact_run
    from ..to_rtx import plan_from_onnx

    file = {"fp32": "fp32.onnx", "fp16": "fp16.onnx", "int8": "qdq-fp16.onnx"}[precision]
    model = typed_onnx(recipe, file, keep_float)
    shaped = shaped_model(recipe, model)
    files, achieved = {}, []
    for capability in recipe.plan.target.compute_capabilities:
        plan = plan_from_onnx(shaped, capability, max_batch=recipe.plan.max_batch)
        files[f"{precision}-sm{capability.replace('.', '')}.plan"] = plan.plan
        achieved.append(achieved_in_rtx(model, plan.layers))
    run = exact_run(shaped, available_threads())
    size = weights_bytes(model)
    kept = kept_in_float(recipe, file, keep_float)
    yield Form("tensorrt-rtx", precision, files, run, size, tuple(achieved), kept)


RTX = Kind(
    refuse=refuse_dla_and_cache,
    why_not=why_not,
    describe=describe,
    make=make,
    ship=ship_nothing_more,
    notes=notes,
    builds=build_nothing,
    ships_every_precision=True,
    stores_half_only=False,
    has_unsigned_activations=False,
    why_no_frame="takes plans, and what takes whole frames is an ONNX",
)
