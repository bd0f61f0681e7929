"""Time by layer, as the engine's own profiler measures it.

Engines fuse and rename: a kernel's time goes to the layer of `complexity.layer_costs` whose name
the engine kept for it (a convolution before whatever is fused with it). What carries no layer's
name, such as a change of memory layout, is summed apart. Profiling slows an engine down a little,
so calls without it are timed beside. ONNX Runtime times each call; OpenVINO tells only the mean of
all calls of a network since it was compiled, so there a sample is the mean of `BLOCK` calls.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from math import ceil
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime.engines import Engine, file_with_suffix, open_engine
from ...runtime.errors import InputError
from .complexity import input_shape, layer_costs, layers_by_name
from .latency import percentile

MIN_RUNS = 20
WARMUP_CALLS = 5
BLOCK = 10  # calls of one sample in OpenVINO
INT8_TYPES = frozenset({"i8", "u8", "int8", "uint8"})  # of `Kernel.type` and `LayerTime.type`

# Operators of ONNX Runtime that carry a layer's name but are no part of its kernel.
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "Cast")

Image = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Kernel:
    """One executed kernel of one sample."""

    names: tuple[str, ...]  # of what it computes, as far as the engine kept them
    operator: str  # in the engine's words
    type: str  # of what it reads, in the engine's words: "f32", "i8", "float", "uint8"; "" unknown
    ms: float


@dataclass(frozen=True)
class LayerProfile:
    """What an engine's profiler said."""

    calls_a_sample: int
    samples_ms: tuple[float, ...]  # whole calls
    kernels: tuple[tuple[Kernel, ...], ...]  # of each sample, in the order they ran


@dataclass(frozen=True)
class LayerTime:
    """The time of one layer in every sample."""

    name: str  # of the `LayerCost`
    type: str  # that its first kernel reads, as in `Kernel`
    samples_ms: tuple[float, ...]  # in the order of the calls; see `LayerTimes.calls_a_sample`

    @property
    def median_ms(self) -> float:
        """Median of the samples."""
        return percentile(self.samples_ms, 0.5)

    @property
    def best_ms(self) -> float:
        """Smallest sample: the one that other processes disturbed least."""
        return min(self.samples_ms)


@dataclass(frozen=True)
class LayerTimes:
    """The time of a network by layer."""

    engine: str
    threads: int
    calls_a_sample: int  # a sample is the mean of so many, but for `plain_ms`: 1, or `BLOCK`
    layers: tuple[LayerTime, ...]  # in the graph's order, without those fused into others
    other_ms: tuple[float, ...]  # kernels that carry no layer's name
    other_operators: tuple[str, ...]  # theirs, those that take most first
    profiled_ms: tuple[float, ...]  # a whole call with the profiler on
    plain_ms: tuple[float, ...]  # each call without it

    @property
    def kernels_ms(self) -> tuple[float, ...]:
        """All kernels of each sample; the rest of `profiled_ms` passes between them."""
        columns = (*(layer.samples_ms for layer in self.layers), self.other_ms)
        return tuple(map(sum, zip(*columns, strict=True)))

    @property
    def overhead(self) -> float:
        """Share that profiling adds to a call: ratio of the medians - 1."""
        return percentile(self.profiled_ms, 0.5) / percentile(self.plain_ms, 0.5) - 1


def profile_layers(
    engine: str, files: Mapping[str, bytes], model: bytes, *, threads: int, runs: int
) -> LayerTimes:
    """Time the layers of a network in its engine, on noise.

    Args:
        engine: key in `PROFILERS`.
        files: the engine's model files by name.
        model: ONNX that the files were made from; for ONNX Runtime the same as in `files`.
        threads: number of threads, >= 1.
        runs: calls, >= `MIN_RUNS`, after `WARMUP_CALLS` others, rounded up to whole samples; as
            many again without profiler.

    Raises:
        InputError: E-PROFILE-ENGINE (its profiler is not known here); as `layer_costs`.
        EngineError: as `open_engine`.
        ValueError: too few runs.
    """
    if runs < MIN_RUNS:
        raise ValueError(f"{runs} runs; a median needs {MIN_RUNS}")
    costs, owners = layer_costs(model), layers_by_name(model)
    with_products = {cost.name for cost in costs if cost.macs}
    image = noise(input_shape(model))
    plain_ms = time_calls(open_engine(engine, files, threads), image, runs)
    profile = run_profiled(engine, files, image, threads=threads, runs=runs)
    count = len(profile.samples_ms)
    samples: dict[str, list[float]] = {}
    types: dict[str, str] = {}
    other_ms, other_operators = [0.0] * count, dict[str, float]()
    for index, kernels in enumerate(profile.kernels):
        for kernel in kernels:
            owner = _owner(kernel, owners, with_products)
            if owner is None:
                other_ms[index] += kernel.ms
                other_operators.setdefault(kernel.operator, 0.0)
                other_operators[kernel.operator] += kernel.ms
            else:
                samples.setdefault(owner, [0.0] * count)[index] += kernel.ms
                types.setdefault(owner, kernel.type)
    return LayerTimes(
        engine=engine,
        threads=threads,
        calls_a_sample=profile.calls_a_sample,
        layers=tuple(
            LayerTime(cost.name, types[cost.name], tuple(samples[cost.name]))
            for cost in costs
            if cost.name in samples
        ),
        other_ms=tuple(other_ms),
        other_operators=tuple(sorted(other_operators, key=lambda name: -other_operators[name])),
        profiled_ms=profile.samples_ms,
        plain_ms=tuple(plain_ms),
    )


def time_calls(engine: Engine, image: Image, runs: int) -> list[float]:
    """Return the time in ms of each of so many calls, after `WARMUP_CALLS` others."""
    for _ in range(WARMUP_CALLS):
        engine.run(image)
    times_ms = []
    for _ in range(runs):
        start_ns = time.perf_counter_ns()
        engine.run(image)
        times_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
    return times_ms


def noise(shape: tuple[int, ...]) -> Image:
    """Return normal noise, the same every time."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def run_profiled(
    engine: str, files: Mapping[str, bytes], image: Image, *, threads: int, runs: int
) -> LayerProfile:
    """Run an engine with its profiler on, after `WARMUP_CALLS` calls that are not counted.

    Raises InputError (E-PROFILE-ENGINE).
    """
    if engine not in PROFILERS:
        raise InputError(
            "E-PROFILE-ENGINE",
            f"no profiler of {engine!r} is known; layers are timed in {' and '.join(PROFILERS)}",
        )
    return PROFILERS[engine](files, image, threads, runs)


def _owner(kernel: Kernel, owners: Mapping[str, str], with_products: Collection[str]) -> str | None:
    """Return the layer that a kernel computes; of several the one with multiply-accumulates."""
    if kernel.operator in _CONVERSIONS:
        return None
    found = [owners[name] for name in kernel.names if name in owners]
    return next((name for name in found if name in with_products), found[0] if found else None)


# --- OpenVINO ------------------------------------------------------------------------------------


def _profile_openvino(
    files: Mapping[str, bytes], image: Image, threads: int, runs: int, arithmetic: str = "f32"
) -> LayerProfile:
    blocks = [_openvino_block(files, image, threads, arithmetic) for _ in range(ceil(runs / BLOCK))]
    samples_ms, kernels = zip(*blocks, strict=True)
    return LayerProfile(BLOCK, samples_ms, kernels)


def _openvino_block(
    files: Mapping[str, bytes], image: Image, threads: int, arithmetic: str
) -> tuple[float, tuple[Kernel, ...]]:
    """Return the mean time in ms and the kernels of `BLOCK` calls of a network compiled anew.

    The plugin gives means in whole µs over n calls, hence sums to n µs: few calls are exact.
    """
    import openvino as ov

    from ...runtime.engines.ov import settings, shared_core

    core = shared_core()
    network = core.read_model(
        BytesIO(file_with_suffix(files, ".xml")), BytesIO(file_with_suffix(files, ".bin"))
    )
    compiled = core.compile_model(
        network, "CPU", {**settings(threads, arithmetic), "PERF_COUNT": "YES"}
    )
    request = compiled.create_infer_request()
    names = {
        node.get_friendly_name(): str(node.get_rt_info()["originalLayersNames"].value).split(",")
        for node in compiled.get_runtime_model().get_ops()
        if "originalLayersNames" in node.get_rt_info()
    }

    def mean_ms(calls: int) -> float:
        start_ns = time.perf_counter_ns()
        for _ in range(calls):
            request.infer({0: image}, share_inputs=True, share_outputs=True)
        return (time.perf_counter_ns() - start_ns) / 1e6 / calls

    mean_ms(WARMUP_CALLS)
    before = request.get_profiling_info()
    sample_ms = mean_ms(BLOCK)
    kernels = []
    for early, late in zip(before, request.get_profiling_info(), strict=True):
        if late.status == ov.ProfilingInfo.Status.EXECUTED:
            total = late.real_time * (WARMUP_CALLS + BLOCK) - early.real_time * WARMUP_CALLS
            kernels.append(
                Kernel(
                    names=tuple(filter(None, names.get(late.node_name, []))),
                    operator=late.node_type,
                    type=late.exec_type.rpartition("_")[2].lower(),  # as in brgconv_avx2_f32
                    ms=max(0.0, total.total_seconds() * 1e3 / BLOCK),
                )
            )
    return sample_ms, tuple(kernels)


# --- ONNX Runtime --------------------------------------------------------------------------------

# What its optimisers append to the name of a node, or to that of its output.
_APPENDED = re.compile(r"(_nchwc)?(/duplicated)?(_token_\d+)?$")


def _profile_onnxruntime(
    files: Mapping[str, bytes], image: Image, threads: int, runs: int
) -> LayerProfile:
    import onnxruntime as ort

    from ...runtime.engines.ort import session_options

    options = session_options(threads)
    options.enable_profiling = True
    times_ms = []
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = ort.InferenceSession(
            file_with_suffix(files, ".onnx"), options, providers=["CPUExecutionProvider"]
        )
        name = session.get_inputs()[0].name
        for _ in range(WARMUP_CALLS + runs):
            start_ns = time.perf_counter_ns()
            session.run(None, {name: image})
            times_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    calls: list[list[Kernel]] = [[]]
    for event in events:
        if event["name"] == "model_run":  # it ends a call
            calls.append([])
        elif event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            calls[-1].append(_onnxruntime_kernel(event))
    kernels = tuple(map(tuple, calls[WARMUP_CALLS:-1]))
    return LayerProfile(1, tuple(times_ms[WARMUP_CALLS:]), kernels)


def _onnxruntime_kernel(event: Mapping[str, Any]) -> Kernel:
    name = event["name"].removesuffix("_kernel_time")
    inputs: list[dict[str, list[int]]] = event["args"]["input_type_shape"]  # {type: shape}
    return Kernel(
        names=(name, _APPENDED.sub("", name)),
        operator=event["args"]["op_name"],
        type=next((kind for tensor in inputs[:1] for kind in tensor), ""),
        ms=event["dur"] / 1e3,
    )


# To add an engine: a function above and a line here.
PROFILERS: Mapping[str, Callable[[Mapping[str, bytes], Image, int, int], LayerProfile]] = (
    MappingProxyType(
        {
            "openvino": _profile_openvino,
            "openvino-bf16": partial(_profile_openvino, arithmetic="bf16"),
            "onnxruntime": _profile_onnxruntime,
        }
    )
)
