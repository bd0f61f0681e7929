"""The roofline of this machine and how near a network comes to it (Williams et al. 2009).

A layer takes at least its operations over the compute peak or its bytes over the memory bandwidth,
whichever is longer (doi 10.1145/1498765.1498785). Both peaks are measured, the first through the
engine that runs the network, so that they say what this engine can do and no data sheet's promise.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ...runtime.engines import ENGINES, open_engine
from ..formatting import threads_text
from .complexity import LayerCost, count_complexity
from .latency import SETTLE_S, percentile
from .profile import INT8_TYPES, noise, run_profiled, time_calls

CHANNELS = 256  # of the convolutions that measure compute, 3×3, in and out
SIDE = 14  # px, of their images; short calls are more often undisturbed
DEPTH = 2  # so many in a row
ROUNDS = 20  # in turns FP32 and INT8, so that a disturbance meets both
RUNS = 20  # of each in a round; the best of all counts
TOLERANCE = 0.05  # relative
TRIAD_BYTES = 64 << 20  # of each of three arrays, far above the last cache
TRIAD_BLOCK = 16 << 10  # float64 values: what a core's own cache keeps between two steps
TRIAD_RUNS = 10  # the best counts


@dataclass(frozen=True)
class Peaks:
    """What one engine and the memory reach on this machine, best of several runs."""

    engine: str
    version: str  # of the engine
    threads: int
    fp32_gflops: float  # two per multiply-accumulate
    int8_gops: float | None  # the same; None where the engine did not run the graph in INT8
    executed: Mapping[str, str]  # type that the convolutions' kernels read, by precision asked for
    bandwidth_gb_s: float  # STREAM triad, counting 3 arrays
    steady: bool  # whether a tenth of the calls came within `TOLERANCE` of the best; if not, the
    # machine was busy and the compute peaks are too low

    @property
    def how(self) -> str:
        """How they were measured, in one line."""
        return (
            f"{DEPTH} convolutions 3×3, {CHANNELS} to {CHANNELS} channels, {SIDE}×{SIDE} px, in "
            f"{self.engine} {self.version}, best of {ROUNDS * RUNS}; STREAM triad over 3 arrays of "
            f"{TRIAD_BYTES >> 20} MiB, best of {TRIAD_RUNS}, without what a write reads first; "
            f"{threads_text(self.threads)}"
        )

    def compute_gflops(self, precision: str) -> float:
        """Return the peak for a layer: that of INT8, or of FP32 for all that is not INT8.

        A CPU computes FP16 files in FP32. Where there is no INT8 peak, FP32's holds.
        """
        if precision == "int8" and self.int8_gops is not None:
            return self.int8_gops
        return self.fp32_gflops


@dataclass(frozen=True)
class AttainedLayer:
    """One layer against the roofline."""

    name: str
    bound: str  # "compute" or "memory": what sets the least time
    min_ms: float  # least time by the roofline
    measured_ms: float | None  # None for a layer that the engine ran inside another's kernel

    @property
    def share(self) -> float | None:
        """Least over measured time. Above 1 where data stayed in a cache, faster than memory."""
        return self.min_ms / self.measured_ms if self.measured_ms else None


@dataclass(frozen=True)
class Attained:
    """A network against the roofline."""

    layers: tuple[AttainedLayer, ...]
    measured_ms: float  # of the whole network
    compute_ms: float  # all operations at the compute peak of their precision

    @property
    def min_ms(self) -> float:
        """Least time of the layers one after the other."""
        return sum(layer.min_ms for layer in self.layers)

    @property
    def share(self) -> float:
        """Least over measured time."""
        return self.min_ms / self.measured_ms

    @property
    def compute_share(self) -> float:
        """Share of the compute peak, whatever the bytes cost."""
        return self.compute_ms / self.measured_ms


def attained(
    layers: Sequence[LayerCost],
    peaks: Peaks,
    *,
    whole_ms: float,
    layer_ms: Mapping[str, float],
) -> Attained:
    """Compare a network's times with the roofline.

    Args:
        layers: of the file that ran.
        peaks: of the engine that ran it, with as many threads.
        whole_ms: measured time of one call.
        layer_ms: measured time of its layers by name, without those that have none; may be empty.
    """
    return Attained(
        layers=tuple(_attained_layer(layer, peaks, layer_ms.get(layer.name)) for layer in layers),
        measured_ms=whole_ms,
        compute_ms=sum(_compute_ms(layer, peaks) for layer in layers),
    )


def _attained_layer(layer: LayerCost, peaks: Peaks, measured_ms: float | None) -> AttainedLayer:
    compute_ms = _compute_ms(layer, peaks)
    memory_ms = layer.total_bytes / peaks.bandwidth_gb_s / 1e6
    bound = "compute" if compute_ms >= memory_ms else "memory"
    return AttainedLayer(layer.name, bound, max(compute_ms, memory_ms), measured_ms)


def _compute_ms(layer: LayerCost, peaks: Peaks) -> float:
    return layer.flops / peaks.compute_gflops(layer.precision) / 1e6


# --- measuring -----------------------------------------------------------------------------------


def measure_peaks(engine: str, threads: int) -> Peaks:
    """Measure compute in FP32 and INT8 through an engine, and the bandwidth of the memory.

    Takes a few seconds and 200 MiB. Whether INT8 is INT8 is read from the engine's profiler.

    Args:
        engine: key in `profile.PROFILERS`.
        threads: number of threads, >= 1.

    Raises:
        InputError: E-PROFILE-ENGINE.
        EngineError: as `open_engine`.
    """
    engines, executed, flops = {}, {}, 0
    image = noise((1, CHANNELS, SIDE, SIDE))
    for precision in ("fp32", "int8"):
        model = compute_graph(precision, channels=CHANNELS, side=SIDE, depth=DEPTH)
        files = files_for(engine, model)
        executed[precision] = _types_of_products(engine, files, image, threads)
        engines[precision] = open_engine(engine, files, threads)
        flops = count_complexity(model).flops
    samples_ms: dict[str, list[float]] = {precision: [] for precision in engines}
    for _ in range(ROUNDS):
        for precision, opened in engines.items():
            time.sleep(SETTLE_S)
            samples_ms[precision] += time_calls(opened, image, RUNS)
    ran_in_int8 = bool(executed["int8"]) and set(executed["int8"]) <= INT8_TYPES
    gflops = {precision: flops / min(times) / 1e6 for precision, times in samples_ms.items()}
    return Peaks(
        engine=engine,
        version=engines["fp32"].facts["version"],
        threads=threads,
        fp32_gflops=gflops["fp32"],
        int8_gops=gflops["int8"] if ran_in_int8 else None,
        executed={
            precision: ", ".join(f"{kind} {count}" for kind, count in types.items())
            for precision, types in executed.items()
        },
        bandwidth_gb_s=measure_bandwidth(threads),
        steady=all(
            percentile(times, 0.1) <= (1 + TOLERANCE) * min(times) for times in samples_ms.values()
        ),
    )


def _types_of_products(
    engine: str, files: Mapping[str, bytes], image: np.ndarray, threads: int
) -> Counter[str]:
    """Count the convolutions of a call by the type that their kernels read."""
    kernels = run_profiled(engine, files, image, threads=threads, runs=1).kernels[0]
    return Counter(kernel.type for kernel in kernels if "Conv" in kernel.operator)


def compute_graph(precision: str, *, channels: int, side: int, depth: int) -> bytes:
    """Return ONNX of 3×3 convolutions, each with a ReLU: [1, C, S, S] to the same shape.

    Args:
        precision: "fp32", or "int8" for Q/DQ pairs in the form that `edgeseg export` writes for
            CPUs: UINT8 activations, INT8 weights of 7 bits with a scale for each channel.
        channels: C, in and out of each.
        side: S in px.
        depth: number of convolutions.
    """
    import onnx
    from onnx import helper, numpy_helper

    shape = [1, channels, side, side]
    limit = 63  # of 7 bits: the sum of two products stays in 16 bits
    weights = np.random.default_rng(0).integers(
        -limit, limit, (channels, channels, 3, 3), dtype=np.int8, endpoint=True
    )
    step = 1 / (limit * 3 * math.isqrt(channels))  # keeps the values' size from layer to layer
    quantised = precision == "int8"
    tensors: dict[str, Any] = {"bias": np.zeros(channels, np.float32)}
    if quantised:
        tensors |= {
            "weight.quantised": weights,
            "weight.scale": np.full(channels, step, np.float32),
            "weight.zero": np.zeros(channels, np.int8),
            "scale": np.float32(4 / 255),
            "zero": np.uint8(0),
        }
    else:
        tensors["weight"] = weights.astype(np.float32) * np.float32(step)
    nodes, value = [], "image"

    def node(operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [name], name=f"{name}.node", **attributes))
        return name

    def pair(name: str) -> str:
        stored = node("QuantizeLinear", [name, "scale", "zero"], f"{name}.quantised")
        return node("DequantizeLinear", [stored, "scale", "zero"], f"{name}.dequantised")

    if quantised:
        value = pair(value)
        operands = [f"weight.{part}" for part in ("quantised", "scale", "zero")]
        node("DequantizeLinear", operands, "weight", axis=0)
    for index in range(depth):
        value = node("Conv", [value, "weight", "bias"], f"conv{index}", pads=[1, 1, 1, 1])
        value = node("Relu", [value], f"relu{index}")
        if quantised:
            value = pair(value)
    graph = helper.make_graph(
        nodes,
        "compute",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


def files_for(engine: str, model: bytes) -> dict[str, bytes]:
    """Return the files of an engine that an ONNX makes, of one whose entry says `from_onnx`."""
    if ENGINES[engine].suffixes == (".onnx",):
        return {"model.onnx": model}
    import openvino as ov

    with TemporaryDirectory() as folder:
        source = Path(folder, "source.onnx")
        source.write_bytes(model)
        ov.save_model(ov.convert_model(source), Path(folder, "model.xml"), compress_to_fp16=False)
        return {name: Path(folder, name).read_bytes() for name in ("model.xml", "model.bin")}


def measure_bandwidth(threads: int) -> float:
    """Return the bandwidth in GB/s of STREAM's triad, a = b + s·c, best of `TRIAD_RUNS`.

    Three arrays count, as STREAM counts. Reading `a` before it is written, as caches do, is a
    fourth that moves and is not counted: neither do `LayerCost.total_bytes` count it.

    Args:
        threads: number of threads, each with its share of the arrays, >= 1.
    """
    arrays = [np.full(TRIAD_BYTES // 8, value) for value in (0.0, 1.0, 2.0)]
    parts = list(zip(*(np.array_split(array, threads) for array in arrays), strict=True))
    seconds = [_seconds_of_triad(parts) for _ in range(TRIAD_RUNS)]
    return 3 * TRIAD_BYTES / min(seconds) / 1e9


def _seconds_of_triad(parts: Sequence[tuple[np.ndarray, ...]]) -> float:
    start = threading.Barrier(len(parts) + 1)
    workers = [threading.Thread(target=_triad, args=(start, *part)) for part in parts]
    for worker in workers:
        worker.start()
    start.wait()
    began = time.perf_counter()
    for worker in workers:
        worker.join()
    return time.perf_counter() - began


def _triad(start: threading.Barrier, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    start.wait()
    for first in range(0, len(a), TRIAD_BLOCK):
        block = slice(first, first + TRIAD_BLOCK)
        np.multiply(c[block], 3.0, out=a[block])  # stays in the core's cache for the next line
        np.add(a[block], b[block], out=a[block])
