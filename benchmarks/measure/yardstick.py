"""A fixed network that takes turns with each row, so that two runs can be compared.

Between two runs a machine changes: its clock, its neighbours, what else it does. A network of the
same kind of layers, in the same engine, precision and threads, suffers much the same from it, so
the ratio of a row to its yardstick moves far less than the row's own time. Two things are needed
besides:

- Calls that waited for a core are set aside. Linux tells how long each thread stood in the queue;
  a call during which any thread of this process did so longer than `MAX_WAIT` of the call has the
  time of a schedule and not of a network.
- What is left differs from one opening of the engine to the next, and from minute to minute.
  So all is opened anew in several passes, and the intervals are those of passes, not of calls.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime.engines import ENGINES, entry_of, open_engine
from .latency import garbage_collection_off

PAIRS = 24  # of blocks of a row and its yardstick in a pass, each with an undisturbed call
MIN_PAIRS = 4  # of a pass that counts
PASS_CAP_S = 8.0  # after it a pass ends with fewer
CALLS = 2  # undisturbed ones of a block; then it ends
MAX_CALLS = 30  # or it ends after so many
# Before each block: idle pools of threads stop spinning, and whoever has rested is served first
# where others want the cores too.
REST_S = 0.02
UNTIMED_CALLS = 10  # of each after it was opened
MAX_WAIT = 0.02  # of a call's time
SIDE = 128  # px, of the network's input
_WIDTHS = (32, 64, 128, 256)  # channels at a quarter of that side, and at each half of it
_STEM = 4
_INT8_LIMIT = 63  # 7 bits, as the exports for CPUs have them
_SEED = 0
Call = Callable[[], object]


@dataclass(frozen=True)
class Yardstick:
    """What a row was timed against; only times against the same one are compared."""

    engine: str
    version: str  # of the engine
    precision: str  # "int8" or "fp32"
    threads: str  # of the engine's facts
    graph_sha256: str


@dataclass(frozen=True)
class Block:
    """Consecutive calls, and how long threads of the process waited for a core in each."""

    ms: tuple[float, ...]
    waited_ms: tuple[float, ...]  # zeros where the system does not tell

    def undisturbed_ms(self) -> tuple[float, ...]:
        """Return the times of the calls that hardly waited."""
        return tuple(
            time_ms
            for time_ms, waited_ms in zip(self.ms, self.waited_ms, strict=True)
            if waited_ms <= MAX_WAIT * time_ms
        )


@dataclass(frozen=True)
class Pass:
    """A row and its yardstick, opened anew; the i-th blocks of both are neighbours in time."""

    row: tuple[Block, ...]
    yardstick: tuple[Block, ...]


def yardstick_engine(kind: str, precision: str) -> tuple[str, str] | None:
    """Return the engine and precision of a row's yardstick; None where there is none.

    What is no engine of the runtime on a CPU (PyTorch) is measured against ONNX Runtime's.
    """
    if importlib.util.find_spec("onnx") is None:
        return None
    entry = entry_of(kind)
    family = entry.family if entry and entry.from_onnx else None
    if kind not in ENGINES:
        on_cpu = family is not None or kind.startswith("torch")
        engine = (family or "onnxruntime") if on_cpu and "cuda" not in kind else None
    else:
        engine = kind if family else None
    return None if engine is None else (engine, "int8" if precision == "int8" else "fp32")


def open_yardstick(engine: str, precision: str, threads: int) -> tuple[Yardstick, Call]:
    """Open the network in an engine and return what it is and a call of it on noise.

    Raises EngineError: as `open_engine`.
    """
    digest, files = _files(engine, precision)
    opened = open_engine(engine, files, threads)
    image = np.random.default_rng(_SEED).random((1, 1, SIDE, SIDE), np.float32)
    about = Yardstick(
        engine=engine,
        version=opened.facts["version"],
        precision=precision,
        threads=opened.facts["threads"],
        graph_sha256=digest,
    )
    return about, lambda: opened.run(image)


@functools.cache
def _files(engine: str, precision: str) -> tuple[str, Mapping[str, bytes]]:
    from .roofline import files_for

    model = yardstick_graph(precision)
    return hashlib.sha256(model).hexdigest(), files_for(engine, model)


def time_pass(row: Call, yardstick: Call) -> Pass:
    """Time a row and its yardstick in blocks that take turns (ABBA)."""
    calls = {"row": row, "yardstick": yardstick}
    for call in calls.values():
        for _ in range(UNTIMED_CALLS):
            call()
    blocks: dict[str, list[Block]] = {name: [] for name in calls}
    pairs, end = 0, time.perf_counter() + PASS_CAP_S
    with garbage_collection_off():
        while pairs < PAIRS and (not blocks["row"] or time.perf_counter() < end):
            for name in list(calls)[:: -1 if len(blocks["row"]) % 2 else 1]:
                time.sleep(REST_S)
                blocks[name].append(_time_block(calls[name]))
            pairs += all(each[-1].undisturbed_ms() for each in blocks.values())
    return Pass(tuple(blocks["row"]), tuple(blocks["yardstick"]))


def _time_block(call: Call) -> Block:
    times_ms: list[float] = []
    waits_ms: list[float] = []
    call()
    with _Queue() as queue:
        undisturbed = 0
        while undisturbed < CALLS and len(times_ms) < MAX_CALLS:
            waited_ns = queue.waited_ns()
            start_ns = time.perf_counter_ns()
            call()
            time_ms = (time.perf_counter_ns() - start_ns) / 1e6
            wait_ms = (queue.waited_ns() - waited_ns) / 1e6
            times_ms.append(time_ms)
            waits_ms.append(wait_ms)
            undisturbed += wait_ms <= MAX_WAIT * time_ms
    return Block(tuple(times_ms), tuple(waits_ms))


class _Queue:
    """How long the threads of this process have stood in the queue for a core (Linux)."""

    def __enter__(self) -> _Queue:
        """Open the files of the threads that there are now."""
        self._files: list[int] = []
        tasks = Path("/proc/self/task")
        for thread in tasks.iterdir() if tasks.is_dir() else ():
            try:
                self._files.append(os.open(thread / "schedstat", os.O_RDONLY | os.O_CLOEXEC))
            except OSError:  # not told, or this thread ended meanwhile: the others are asked
                continue
        return self

    def __exit__(self, *_: object) -> None:
        """Close them."""
        for file in self._files:
            os.close(file)

    def waited_ns(self) -> int:
        """Return the sum over the threads; a thread that has ended adds nothing."""
        total = 0
        for file in self._files:
            try:
                total += int(os.pread(file, 64, 0).split()[1])
            except (OSError, IndexError):
                continue
        return total


def waits_are_told() -> bool:
    """Say whether the system tells how long a thread waited for a core."""
    return os.access("/proc/self/schedstat", os.R_OK)


def log_ratio(measured: Pass) -> float:
    """Return the log of a row's time over its yardstick's in one pass, from undisturbed calls.

    The median over pairs of neighbouring blocks: what changes from second to second is in both. NaN
    where fewer than `MIN_PAIRS` pairs have an undisturbed call in each.
    """
    ratios = [
        math.log(float(np.mean(row_ms)) / float(np.mean(yardstick_ms)))
        for row, yardstick in zip(measured.row, measured.yardstick, strict=True)
        if (row_ms := row.undisturbed_ms()) and (yardstick_ms := yardstick.undisturbed_ms())
    ]
    return float(np.median(ratios)) if len(ratios) >= MIN_PAIRS else math.nan


def yardstick_log_ms(measured: Pass) -> float:
    """Return the log of the yardstick's median time in ms in one pass; NaN without such a call."""
    times_ms = [time_ms for block in measured.yardstick for time_ms in block.undisturbed_ms()]
    return math.log(float(np.median(times_ms))) if times_ms else math.nan


# --- the network ---------------------------------------------------------------------------------


def yardstick_graph(precision: str) -> bytes:
    """Return ONNX of an encoder and decoder: [1, 1, 128, 128] to the same shape.

    The layers are of the kinds and sizes of the shipped students, the weights are noise.

    Args:
        precision: "fp32", or "int8" for Q/DQ pairs around every convolution, in the form that
            `edgeseg export` writes for CPUs.
    """
    build = _Builder(quantised=precision == "int8")
    value = build.convolution("image", 1, _WIDTHS[0], kernel=_STEM, stride=_STEM)
    skipped: list[tuple[str, int]] = []
    before = _WIDTHS[0]
    for level, width in enumerate(_WIDTHS):
        if level:
            skipped.append((value, before))
            value = build.node("MaxPool", value, kernel_shape=[2, 2], strides=[2, 2])
        for _ in range(2):
            value = build.convolution(value, before, width)
            before = width
    for skip, width in reversed(skipped):
        value = build.doubled(build.convolution(value, before, width, kernel=1))
        value = build.node("Concat", value, skip, axis=1)
        before = 2 * width
        for _ in range(2):
            value = build.convolution(value, before, width)
            before = width
    for _ in range(2):  # back from a quarter of the side
        value = build.doubled(value if before == 1 else build.convolution(value, before, 1, 1))
        before = 1
    return build.model(value)


class _Builder:
    """Nodes of a graph, in order, and their constants."""

    def __init__(self, *, quantised: bool) -> None:
        self._quantised = quantised
        self._nodes: list[Any] = []
        self._generator = np.random.default_rng(_SEED)
        self._constants: dict[str, npt.NDArray[Any]] = {
            "scales": np.array([1, 1, 2, 2], np.float32),
            "scale": np.array(4 / 255, np.float32),
            "zero": np.array(0, np.uint8),
        }

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        from onnx import helper

        name = f"{operator}.{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [name], name, **attributes))
        return name

    def convolution(
        self, value: str, before: int, width: int, kernel: int = 3, stride: int = 1
    ) -> str:
        """Add a convolution with its ReLU, and in INT8 the pairs before it."""
        shape = (width, before, kernel, kernel)
        weights = self._generator.integers(-_INT8_LIMIT, _INT8_LIMIT + 1, shape).astype(np.int8)
        step = 2 / (_INT8_LIMIT * kernel * math.sqrt(before))
        weight = f"weight.{len(self._nodes)}"
        if self._quantised:
            self._constants |= {
                f"{weight}.int8": weights,
                f"{weight}.scale": np.full(width, step, np.float32),
                f"{weight}.zero": np.zeros(width, np.int8),
            }
            stored = (f"{weight}.int8", f"{weight}.scale", f"{weight}.zero")
            weight = self.node("DequantizeLinear", *stored, axis=0)
            value = self.node("QuantizeLinear", value, "scale", "zero")
            value = self.node("DequantizeLinear", value, "scale", "zero")
        else:
            self._constants[weight] = weights.astype(np.float32) * np.float32(step)
        pads = [(kernel - stride) // 2] * 4
        value = self.node("Conv", value, weight, pads=pads, strides=[stride, stride])
        return self.node("Relu", value)

    def doubled(self, value: str) -> str:
        """Add a resize to twice the side."""
        return self.node("Resize", value, "", "scales", mode="nearest")

    def model(self, result: str) -> bytes:
        """Return the ONNX that answers with this value."""
        import onnx
        from onnx import helper, numpy_helper

        image, answer = (
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1, SIDE, SIDE])
            for name in ("image", result)
        )
        constants = [numpy_helper.from_array(each, name) for name, each in self._constants.items()]
        graph = helper.make_graph(self._nodes, "yardstick", [image], [answer], constants)
        opset = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=8)
        return bytes(model.SerializeToString())
