"""How often comparisons are right: of two sessions of one model, and of one that is 10 % slower.

python tests/measure/comparison.py rows BUNDLE [REPETITIONS] [ROUNDS]
python tests/measure/comparison.py runs BUNDLE [REPETITIONS] [PASSES] [THREADS] [LOAD]

`rows` is of rows in one run (`median_ratio`): each repetition opens three sessions of BUNDLE in
ONNX Runtime on one thread, the third slowed by a busy wait of 10 % of what its engine took, and
measures them interleaved.

`runs` is of two records (`compare_records`): `edgeseg benchmark` is run anew, in a process of its
own, once more than REPETITIONS and as often with the slowed engine. Neighbours are compared, and
each slowed run with the one before it. LOAD processes meanwhile compute and rest in turns of 1 to
10 s each. Both print one line for each repetition and then the counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from multiprocessing import Process
from pathlib import Path

import numpy as np

from edgeseg.benchmarks.measure.latency import LatencyRatio, measure_interleaved, median_ratio
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


def measure_rows(bundle: Path, repetitions: int, rounds: int) -> None:
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


def measure_runs(bundle: Path, repetitions: int, passes: int, threads: int, load: int) -> None:
    from edgeseg.benchmarks.compare import compare_records
    from edgeseg.benchmarks.record import BenchmarkRecord, from_json
    from edgeseg.kd.data.phantom import write_phantoms

    counts: dict[str, Counter[str]] = {"same": Counter(), "slowed": Counter()}
    loads = [Process(target=_compute_and_rest, args=(seed,), daemon=True) for seed in range(load)]
    for each in loads:
        each.start()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "phantoms")
        write_phantoms(data, count=4)

        def run(kind: str) -> BenchmarkRecord:
            out = Path(folder, f"{kind}.html")
            command = [sys.executable, __file__, "one-run", kind, "benchmark", str(bundle)]
            command += ["--data", str(data), "--part", "all", "--engine", "onnxruntime"]
            command += ["--threads", str(threads), "--rounds", "40", "--mode", "single"]
            command += ["--passes", str(passes), "--out", str(out), "-q"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            return from_json(out.with_suffix(".json").read_bytes())

        before = run("same")
        for repetition in range(1, repetitions + 1):
            start = time.perf_counter()
            slowed, same = run("slowed"), run("same")
            line = []
            for kind, record in (("same", same), ("slowed", slowed)):
                (row,) = compare_records(before, record).rows
                found = row.latency
                counts[kind][found.verdict] += 1
                line.append(
                    f"{kind} {found.verdict} {found.ratio:.3f} ({found.low:.3f} to "
                    f"{found.high:.3f}), could find {found.smallest:.3f}, machine "
                    f"{found.machine:.2f}, passes {found.passes}"
                )
            before = same
            print(
                f"{repetition:3}: {'; '.join(line)}; p50 {same.rows[0].latency.p50_ms:.2f} ms, "
                f"load {os.getloadavg()[0]:.1f}, {(time.perf_counter() - start) / 2:.0f} s a run",
                flush=True,
            )
    for each in loads:
        each.terminate()
    print(
        f"{passes} passes, {threads} threads, {len(os.sched_getaffinity(0))} cores, {load} loads: "
        f"of {repetitions}: same {dict(counts['same'])}, slowed by {SLOWED_BY:.0%} "
        f"{dict(counts['slowed'])}"
    )


def _compute_and_rest(seed: int) -> None:
    generator = np.random.default_rng(seed)
    while True:
        end = time.perf_counter() + generator.uniform(1, 10)
        while time.perf_counter() < end:
            pass
        time.sleep(generator.uniform(1, 10))


def one_run(kind: str, words: list[str]) -> None:
    """Run `edgeseg` with these words; the sessions of "slowed" are slowed, their yardsticks not."""
    from edgeseg.__main__ import main
    from edgeseg.benchmarks.measure import latency
    from edgeseg.cli.jobs.sources import bundle as sources

    latency.WARMUP_CAP_S = 5.0  # of what is not compared here
    if kind == "slowed":
        opened = sources.session_of

        def session_of(*args: object, **options: object) -> Session:
            session = opened(*args, **options)
            return Session.over(SlowedEngine(session.engine), session.contract)

        sources.session_of = session_of
    sys.argv = ["edgeseg", *words]
    main()


def _text(ratio: LatencyRatio) -> str:
    return f"{ratio.ratio:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


def main(words: list[str]) -> None:
    if len(words) < 2 or words[0] not in ("rows", "runs", "one-run"):
        sys.exit(__doc__)
    if words[0] == "one-run":
        one_run(words[1], words[2:])
        return
    measure, defaults = {"rows": (measure_rows, (20, 400)), "runs": (measure_runs, (20, 10, 1, 0))}[
        words[0]
    ]
    numbers = [int(word) for word in words[2:]]
    measure(Path(words[1]), *numbers, *defaults[len(numbers) :])


if __name__ == "__main__":
    main(sys.argv[1:])
