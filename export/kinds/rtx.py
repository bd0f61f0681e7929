"""NVIDIA RTX GPUs with TensorRT-RTX: plans for each generation, built here without a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ..target import Target
from .kind import (
    TYPED_ONNX,
    EngineBuild,
    FrameSize,
    Kind,
    ask_the_parser,
    build_nothing,
    refuse_dla_and_cache,
    ship_nothing_more,
    takes_every_precision,
)

if TYPE_CHECKING:
    from ..forms import Conversion, Form
    from ..plan import Plan


def notes(
    target: Target,
    precisions: Sequence[str],
    builds: Mapping[str, EngineBuild],
    frame: FrameSize | None,
    common: Sequence[str],
) -> Sequence[str]:
    """Say nothing more."""
    return common


def describe(plan: Plan, precision: str) -> str:
    """Name the generations."""
    names = ", ".join(f"sm{each.replace('.', '')}" for each in plan.target.compute_capabilities)
    return f"a strongly typed plan for each of {names}"


def make(conversion: Conversion, precision: str, keep_float: tuple[str, ...]) -> Iterator[Form]:
    """A plan for each GPU generation, of the same ONNX as a kit's."""
    from ...runtime.engines import available_threads
    from ..audit import achieved_in_rtx
    from ..forms import Form, kept_in_float, shaped_model, typed_onnx, weights_bytes
    from ..parity import exact_run
    from ..to_rtx import plan_from_onnx

    file = TYPED_ONNX[precision]
    model = typed_onnx(conversion, file, keep_float)
    shaped = shaped_model(conversion, model)
    files, achieved = {}, []
    for capability in conversion.plan.target.compute_capabilities:
        plan = plan_from_onnx(shaped, capability, max_batch=conversion.plan.max_batch)
        files[f"{precision}-sm{capability.replace('.', '')}.plan"] = plan.plan
        achieved.append(achieved_in_rtx(model, plan.layers))
    run = exact_run(shaped, available_threads())
    size = weights_bytes(model)
    kept = kept_in_float(conversion, file, keep_float)
    yield Form("tensorrt-rtx", precision, files, run, size, tuple(achieved), kept)


RTX = Kind(
    refuse=refuse_dla_and_cache,
    why_not=takes_every_precision,
    require_network=ask_the_parser,
    describe=describe,
    make=make,
    ship=ship_nothing_more,
    notes=notes,
    builds=build_nothing,
    precisions=tuple(TYPED_ONNX),
    ships_every_precision=True,
    stores_half_only=False,
    has_unsigned_activations=False,
    why_no_frame="takes plans, and what takes whole frames is an ONNX",
)
