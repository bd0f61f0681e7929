"""Stream for minutes and say what became of the frames and of the memory; see docs/live.md.

    python tests/measure/stream.py 30 BUNDLE SOURCE --rate 30 [options of edgeseg stream]

The command runs in a process of its own, whose memory is read from outside every five seconds. Its
slope is the benchmark's: Theil-Sen with a 95 % interval that allows for neighbours that resemble
each other. Ends with an error if a frame is unaccounted for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgeseg.benchmarks.measure.modes import slope_of

_EVERY_S = 5.0
_SETTLE_S = 20.0  # of start-up, left out of the slope
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def main(minutes: str, *arguments: str) -> None:
    """Run the stream and print."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [sys.executable, "-m", "edgeseg", "stream", *arguments, "--loop", "--json"]
        command += ["--minutes", minutes, "--out", str(out), "--overlay", "none"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        statm = Path(f"/proc/{process.pid}/statm")
        started = time.monotonic()
        at_s, rss_mib = [], []
        while process.poll() is None:
            time.sleep(_EVERY_S)
            pages = int(statm.read_text().split()[1])
            if pages and time.monotonic() - started > _SETTLE_S:
                at_s.append(time.monotonic() - started)
                rss_mib.append(pages * _PAGE_MIB)
        told = process.communicate()[0]
        if process.returncode:
            sys.exit(process.returncode)
        summary = json.loads(told)
        with (out / "frames.jsonl").open() as lines:
            outcomes = [json.loads(line)["outcome"] for line in lines]
    frames = summary["frames"]
    lost = frames["due"] - frames["answered"] - frames["dropped"] - frames["failed"]
    slope = slope_of(at_s, rss_mib)
    print(f"{minutes} min at {summary['pace']['hz']:g} Hz, {summary['engine']}: {frames}")
    print(f"lost: {lost}; records: {len(outcomes)}, of them answered {outcomes.count('answered')}")
    print(
        f"memory: {rss_mib[0]:.1f} MiB first, {rss_mib[-1]:.1f} last, {max(rss_mib):.1f} largest; "
        f"slope {slope.per_minute:+.3f} MiB/min, 95 % [{slope.low:+.3f}, {slope.high:+.3f}]"
    )
    for name in ("latency_ms", "queued_ms", "inference_ms", "clock_late_ms"):
        print(f"{name}: {summary[name]}")
    if lost or len(outcomes) != frames["due"]:
        sys.exit("frames are unaccounted for")


if __name__ == "__main__":
    main(*sys.argv[1:])
