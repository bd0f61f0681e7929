"""One precision in one engine: the files, what runs them, and how they are made from the master.

A form is proved in its own engine. What another device will run (a kit's ONNX, the source of a
plan) is proved exactly as it is written, in float arithmetic.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import onnx

from ..benchmarks.measure.complexity import count_complexity
from ..runtime.engines import available_threads, open_engine
from ..runtime.errors import Refused
from .audit import (
    Achieved,
    achieved_in_onnxruntime,
    achieved_in_openvino,
    achieved_in_rtx,
    asked_in_graph,
    least_share,
    require_share,
)
from .batch import with_dynamic_batch
from .calibration import Calibration
from .graph import convolutions_of
from .parity import Run, exact_run
from .plan import Plan
from .qdq import Rounding, qdq_from_onnx, rounding_of
from .to_half import half_from_onnx, nodes_beyond_half

_SPARE_BYTES = 1 << 20  # less free space than this is a full disk


@dataclass(frozen=True)
class Form:
    """The files of one precision in one engine, and what is known of them."""

    engine: str
    precision: str
    files: Mapping[str, bytes]  # by name in the bundle
    run: Run
    weights_bytes: int  # as stored
    achieved: tuple[Achieved, ...]  # what runs in which precision; empty where only a device tells
    kept_float: tuple[str, ...] = ()  # convolutions that stay wider than the precision
    model: bytes | None = None  # what an engine that takes ONNX gets, with batch 1

    @property
    def name(self) -> str:
        """As in the parity table."""
        return f"{self.engine} {self.precision}"


@dataclass(frozen=True)
class Recipe:
    """All that a form is made from."""

    plan: Plan
    master: bytes  # the trained network as FP32 ONNX
    calibration: Calibration | None  # None where no precision needs ranges
    method: str  # of calibration
    folder: Path  # for what an engine's library only writes to a file; exists

    @cached_property
    def beyond_half(self) -> tuple[str, ...]:
        """The nodes that FP16 cannot hold, see `nodes_beyond_half`; needs a calibration."""
        if self.calibration is None:
            raise ValueError("an FP16 form needs the ranges of a calibration")
        return nodes_beyond_half(self.master, self.calibration.largest)


def make_forms(
    recipe: Recipe, precision: str, keep_float: Collection[str] = ()
) -> tuple[Form, ...]:
    """Return the forms of one precision, the preferred engine's first.

    Args:
        recipe: what they are made from.
        precision: one of the plan's.
        keep_float: convolutions that an INT8 form leaves in float.
    """
    return tuple(_MAKERS[recipe.plan.target.kind](recipe, precision, tuple(keep_float)))


def typed_onnx(recipe: Recipe, file: str, keep_float: Collection[str] = ()) -> bytes:
    """Return one of the ONNX files that TensorRT builds from, by its name in a kit."""
    if file == "fp32.onnx":
        return recipe.master
    base = recipe.master
    if file in ("fp16.onnx", "qdq-fp16.onnx"):
        base = half_from_onnx(base, keep=recipe.beyond_half)
    if file == "fp16.onnx":
        return base
    return qdq_from_onnx(base, _amax(recipe), keep_float=keep_float)


def rounding_for(recipe: Recipe, keep_float: Collection[str] = ()) -> Rounding:
    """Return what the target's INT8 forms round in the master.

    A convolution that only FP16 cannot hold is in it, as another network may fit.
    """
    target = recipe.plan.target
    return rounding_of(
        recipe.master,
        _amax(recipe),
        unsigned=target.kind == "cpu",
        weight_bits=target.weight_bits,
        keep_float=keep_float,
    )


def _amax(recipe: Recipe) -> Mapping[str, float]:
    if recipe.calibration is None:
        raise ValueError("an INT8 form needs a calibration")
    return recipe.calibration.amax[recipe.method]


def _require_half(recipe: Recipe) -> None:
    """Refuse what FP16 cannot hold: in a weakly typed network no type in the ONNX is binding."""
    if beyond := recipe.beyond_half:
        raise Refused(
            "E-PRECISION-RANGE",
            f"{', '.join(beyond[:3])} (of {len(beyond)} nodes) goes beyond FP16, which TensorRT "
            f"{recipe.plan.target.tensorrt} may choose for every layer; export --precision fp32 "
            "for the GPU",
        )


def _kept(recipe: Recipe, file: str, keep_float: tuple[str, ...]) -> tuple[str, ...]:
    """Add to what INT8 keeps in float the convolutions that FP16 cannot hold."""
    if file not in ("fp16.onnx", "qdq-fp16.onnx"):
        return keep_float
    convolutions = convolutions_of(onnx.load_model_from_string(recipe.master).graph)
    beyond = (name for name in recipe.beyond_half if name in convolutions)
    return tuple(dict.fromkeys((*keep_float, *beyond)))


def _cpu_forms(recipe: Recipe, precision: str, keep_float: tuple[str, ...]) -> Iterator[Form]:
    """Files for the engines of a CPU target, each run in its own engine where that is here."""
    target = recipe.plan.target
    threads = available_threads()
    macs = count_complexity(recipe.master).macs
    model = recipe.master
    if precision == "int8":
        model = qdq_from_onnx(
            model,
            _amax(recipe),
            unsigned=True,
            weight_bits=target.weight_bits,
            keep_float=keep_float,
        )
    for engine in target.engines[precision]:
        if engine == "openvino":
            half = precision == "fp16"
            fixed = _openvino_files(recipe, model, half=half)
            files = fixed
            if recipe.plan.max_batch > 1:
                files = _openvino_files(recipe, _shaped(recipe, model), half=half)
        else:
            files = {"model.onnx": _shaped(recipe, model)}
        size = len(files["model.bin"]) if engine == "openvino" else _weights_bytes(model)
        source = model if engine == "onnxruntime" else None
        run: Run
        if not target.runs_here:
            run = exact_run(_shaped(recipe, model), threads)
            yield Form(engine, precision, files, run, size, (), keep_float, source)
            continue
        if engine == "openvino":
            xml, weights = fixed["model.xml"], fixed["model.bin"]
            achieved = achieved_in_openvino(xml, weights, threads, macs=macs)
        else:
            achieved = achieved_in_onnxruntime(model, threads)
        run = open_engine(engine, files, threads).run
        yield Form(engine, precision, files, run, size, (achieved,), keep_float, source)


def _kit_forms(recipe: Recipe, precision: str, keep_float: tuple[str, ...]) -> Iterator[Form]:
    """The ONNX that TensorRT builds from on the device; DLA and caches are judged there."""
    build = recipe.plan.builds[precision]
    if not build.typed and "FP16" in build.flags:
        _require_half(recipe)
    model = typed_onnx(recipe, build.onnx, keep_float)
    stand_in = model
    if build.cache:  # the same ranges in Q/DQ are the nearest that can run here
        stand_in = typed_onnx(recipe, "qdq.onnx", keep_float)
    kept = _kept(recipe, build.onnx, keep_float)
    if build.typed or precision == "int8":  # what the graph does not ask for no device can run
        least = least_share(recipe.master, precision, kept)
        require_share(asked_in_graph(stand_in), precision, least)
    run = exact_run(_shaped(recipe, stand_in), available_threads())
    size = _weights_bytes(model)
    files = {build.onnx: _shaped(recipe, model)}
    yield Form("tensorrt", precision, files, run, size, (), kept, model)


def _rtx_forms(recipe: Recipe, precision: str, keep_float: tuple[str, ...]) -> Iterator[Form]:
    """A plan for each GPU generation, of the same ONNX as a kit's."""
    from .to_rtx import plan_from_onnx

    file = {"fp32": "fp32.onnx", "fp16": "fp16.onnx", "int8": "qdq-fp16.onnx"}[precision]
    model = typed_onnx(recipe, file, keep_float)
    shaped = _shaped(recipe, model)
    files, achieved = {}, []
    for capability in recipe.plan.target.compute_capabilities:
        plan = plan_from_onnx(shaped, capability, max_batch=recipe.plan.max_batch)
        files[f"{precision}-sm{capability.replace('.', '')}.plan"] = plan.plan
        achieved.append(achieved_in_rtx(model, plan.layers))
    run = exact_run(shaped, available_threads())
    size = _weights_bytes(model)
    kept = _kept(recipe, file, keep_float)
    yield Form("tensorrt-rtx", precision, files, run, size, tuple(achieved), kept)


def _shaped(recipe: Recipe, model: bytes) -> bytes:
    """Return the model as it ships: all that counts or audits takes it before, with batch 1."""
    most = recipe.plan.max_batch
    return with_dynamic_batch(model, most) if most > 1 else model


def _weights_bytes(model: bytes) -> int:
    return count_complexity(model).weights_bytes


def _openvino_files(recipe: Recipe, model: bytes, *, half: bool) -> dict[str, bytes]:
    from .to_openvino import openvino_from_onnx

    with tempfile.TemporaryDirectory(dir=recipe.folder) as folder:
        try:
            most = recipe.plan.max_batch
            openvino_from_onnx(model, Path(folder), half=half, max_batch=most)
        except RuntimeError as error:  # what OpenVINO raises for a write that failed
            if shutil.disk_usage(folder).free < _SPARE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


_Maker = Callable[[Recipe, str, tuple[str, ...]], Iterator[Form]]

# To add a kind of target: a generator of its forms and a line here.
_MAKERS: Mapping[str, _Maker] = MappingProxyType(
    {"cpu": _cpu_forms, "tensorrt": _kit_forms, "rtx": _rtx_forms}
)
