"""How often `median_ratio` is right: two sessions of one model, and one that is 10 % slower.

python tests/measure_comparison.py BUNDLE [REPETITIONS] [ROUNDS]

Each repetition opens three sessions of BUNDLE in ONNX Runtime on one thread, the third slowed by a
busy wait of 10 % of what its engine took, and measures them interleaved. Prints one line for each
and then how often the first two showed no difference and the third was found slower.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

from edgeseg.benchmarks.latency import LatencyRatio, measure_interleaved, median_ratio
from edgeseg.runtime.engines import Engine
from edgeseg.runtime.session import Session, open_session

SLOWED_BY = 0.1


class SlowedEngine:
    """Another engine, and a busy wait of a share of each of its calls."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name = engine.name
        self.facts = engine.facts

    def run(self, image: np.ndarray) -> np.ndarray:
        start_ns = time.perf_counter_ns()
        logits = self._engine.run(image)
        end_ns = time.perf_counter_ns()
        end_ns += int(SLOWED_BY * (end_ns - start_ns))
        while time.perf_counter_ns() < end_ns:
            pass
        return logits


def main(bundle: Path, repetitions: int, rounds: int) -> None:
    frames = list(np.random.default_rng(0).integers(0, 256, (16, 480, 640), dtype=np.uint8))
    same = slower = unsteady = 0
    for repetition in range(1, repetitions + 1):
        start = time.perf_counter()
        one, other, third = (
            open_session(bundle, engine="onnxruntime", threads=1) for _ in range(3)
        )
        slow = Session.over(SlowedEngine(third.engine), third.contract)
        runs = measure_interleaved(
            {"one": one, "other": other, "slow": slow}, frames, rounds=rounds
        )
        null = median_ratio(runs["other"], runs["one"])
        found = median_ratio(runs["slow"], runs["one"])
        same += not null.differs
        slower += found.low > 1
        unsteady += sum(not run.steady for run in runs.values())
        print(
            f"{repetition:3}: same {_text(null)}, slowed {_text(found)}; "
            f"p50 {runs['one'].p50_ms:.2f} ms, load {os.getloadavg()[0]:.1f}, "
            f"warm-up {[run.warmup_calls for run in runs.values()]}, "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )
    print(
        f"{rounds} rounds, {len(os.sched_getaffinity(0))} cores: no difference in {same} of "
        f"{repetitions}, slower by {SLOWED_BY:.0%} found in {slower} of {repetitions}; "
        f"{unsteady} of {3 * repetitions} sessions not steady"
    )


def _text(ratio: LatencyRatio) -> str:
    return f"{ratio.ratio:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    numbers = [int(each) for each in sys.argv[2:]]
    main(Path(sys.argv[1]), *(numbers + [20, 400][len(numbers) :]))
