"""What measuring with edgeseg adds to what the engines' own loops say.

python tests/measure_overhead.py BUNDLE [PAIRS]

In turns (ABBA): the median of `measure_alone` over one session of BUNDLE, and that of OpenVINO's
benchmark_app on the same IR (latency hint, one request, all cores) or of a bare loop over the same
ONNX Runtime session. Prints the median over pairs of the ratio ours to theirs with its quartiles,
for each engine that the bundle has.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgeseg.benchmarks.latency import measure_alone, percentile
from edgeseg.runtime.engines import available_threads
from edgeseg.runtime.session import Session, open_session

ROUNDS = 400
SECONDS = 1


def ours_ms(session: Session, frames: list[np.ndarray]) -> float:
    return percentile(measure_alone({"": session}, frames, rounds=ROUNDS)[""], 0.5)


def benchmark_app_ms(bundle: Path) -> float:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                str(Path(sys.executable).with_name("benchmark_app")),
                *("-m", str(bundle / "model.xml"), "-d", "CPU", "-hint", "latency"),
                *("-nireq", "1"),
                *("-infer_precision", "f32", "-api", "sync", "-t", str(SECONDS)),
                *("-report_type", "no_counters", "-report_folder", folder, "-json_stats"),
            ],
            check=True,
            capture_output=True,
        )
        report = json.loads(Path(folder, "benchmark_report.json").read_text())
    return float(report["execution_results"]["latency (ms)"])


def bare_loop_ms(session: Session) -> float:
    runner = session.engine._session  # the very session that ours runs
    contract = session.contract
    image = np.zeros((1, 1, contract.height, contract.width), np.float32)
    name = runner.get_inputs()[0].name
    times_ms = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start_ns = time.perf_counter_ns()
        runner.run(None, {name: image})
        times_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
    return percentile(times_ms, 0.5)


def main(bundle: Path, pairs: int) -> None:
    frames = list(np.random.default_rng(0).integers(0, 256, (16, 480, 640), dtype=np.uint8))
    for engine in ("openvino", "onnxruntime"):
        session = open_session(bundle, engine=engine, threads=available_threads())
        theirs: Callable[[], float] = (
            (lambda: benchmark_app_ms(bundle))
            if engine == "openvino"
            else (lambda session=session: bare_loop_ms(session))
        )
        ratios = []
        for pair in range(pairs):
            if pair % 2:
                ours, other = ours_ms(session, frames), theirs()
            else:
                other, ours = theirs(), ours_ms(session, frames)
            ratios.append(ours / other)
            print(
                f"{engine}: ours {ours:.3f} ms, theirs {other:.3f} ms, {ratios[-1]:.3f}", flush=True
            )
        low, middle, high = (percentile(ratios, q) for q in (0.25, 0.5, 0.75))
        print(f"{engine}, {pairs} pairs: {middle:.4f} ({low:.4f}-{high:.4f})")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 10)
