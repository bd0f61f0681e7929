"""What measuring with edgeseg adds to what the engines' own loops say.

python tests/measure/overhead.py BUNDLE [PAIRS] [APP_PAIRS]

In blocks of 20 calls that take turns (ABBA): an engine as `measure_alone` times it, and a bare loop
as the engine's own benchmark has it: `infer()` of a request whose input lies there already
(OpenVINO's benchmark_app), `run` of the session (ONNX Runtime). Prints the median over pairs of the
ratio ours to theirs with its 95 % bootstrap interval, for each engine that the bundle has. Then
benchmark_app itself (latency hint, one request, all cores) against `measure_alone`, in turns of a
second: a machine whose clocks wander needs hundreds of them to tell 2 %.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from edgeseg.benchmarks.measure.latency import measure_alone
from edgeseg.runtime.engines import available_threads
from edgeseg.runtime.session import Session, open_session

CALLS = 20


def bare_call(session: Session) -> Callable[[], object]:
    """Return the call that the engine's own benchmark times, on an engine of its own."""
    image = np.zeros((1, 1, session.contract.height, session.contract.width), np.float32)
    if session.engine.name == "openvino":
        request = session.engine._compiled.create_infer_request()
        np.copyto(request.get_input_tensor(0).data, image)
        return request.infer
    runner = session.engine._session
    name = runner.get_inputs()[0].name
    return lambda: runner.run(None, {name: image})


def block_ms(call: Callable[[], object]) -> float:
    for _ in range(3):
        call()
    times_ns = []
    for _ in range(CALLS):
        start_ns = time.perf_counter_ns()
        call()
        times_ns.append(time.perf_counter_ns() - start_ns)
    return median(times_ns) / 1e6


def compare_loops(bundle: Path, engine: str, pairs: int) -> None:
    session = open_session(bundle, engine=engine, threads=available_threads())
    image = np.zeros((1, 1, session.contract.height, session.contract.width), np.float32)
    calls = {"ours": lambda: session.engine.run(image), "theirs": bare_call(session)}
    for call in calls.values():
        block_ms(call)
    times_ms: dict[str, list[float]] = {name: [] for name in calls}
    for pair in range(pairs):
        for name in list(calls)[:: -1 if pair % 2 else 1]:
            times_ms[name].append(block_ms(calls[name]))
    ratios = np.asarray(times_ms["ours"]) / np.asarray(times_ms["theirs"])
    draws = np.random.default_rng(0).integers(0, pairs, (2000, pairs))
    low, high = np.quantile(np.median(ratios[draws], axis=1), [0.025, 0.975])
    print(
        f"{engine}: ours {median(times_ms['ours']):.3f} ms, bare loop "
        f"{median(times_ms['theirs']):.3f} ms, ratio {np.median(ratios):.4f} "
        f"({low:.4f}-{high:.4f}), {pairs} pairs",
        flush=True,
    )


def benchmark_app_ms(bundle: Path) -> float:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                str(Path(sys.executable).with_name("benchmark_app")),
                *("-m", str(bundle / "model.xml"), "-d", "CPU", "-hint", "latency"),
                *("-nireq", "1", "-infer_precision", "f32", "-api", "sync", "-t", "1"),
                *("-report_type", "no_counters", "-report_folder", folder, "-json_stats"),
            ],
            check=True,
            capture_output=True,
        )
        report = json.loads(Path(folder, "benchmark_report.json").read_text())
    return float(report["execution_results"]["latency (ms)"])


def compare_with_app(bundle: Path, pairs: int) -> None:
    session = open_session(bundle, engine="openvino", threads=available_threads())
    frames = list(np.random.default_rng(0).integers(0, 256, (8, 480, 640), dtype=np.uint8))
    ratios = []
    for pair in range(pairs):
        theirs_ms = benchmark_app_ms(bundle) if pair % 2 else None
        ours_ms = median(measure_alone({"": session}, frames, rounds=400)[""])
        ratios.append(ours_ms / (theirs_ms or benchmark_app_ms(bundle)))
    quartiles = ", ".join(f"{value:.3f}" for value in np.quantile(ratios, [0.25, 0.5, 0.75]))
    print(f"openvino: ours to benchmark_app, quartiles of {pairs} pairs: {quartiles}")


def main(bundle: Path, pairs: int, app_pairs: int) -> None:
    for engine in ("openvino", "onnxruntime"):
        compare_loops(bundle, engine, pairs)
    if app_pairs:
        compare_with_app(bundle, app_pairs)


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[2:]]
    main(Path(sys.argv[1]), *numbers, *(200, 16)[len(numbers) :])
