"""What the device computes: predictions and latencies of a bundle, in the runtime that was sent.

Run as ``python3 -m edgeseg.export.device.onboard.work``; valid Python 3.8.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from ....runtime.bundle import open_bundle
from ....runtime.engines import files_of
from ....runtime.errors import EdgesegError, Refused
from ....runtime.pgm import pixels_from_pnm
from ....runtime.predict import find_images, predict_files
from ....runtime.session import Session, session_of
from .agent import clocks_locked, power_mode, temperatures

SCHEMA = "edgeseg.device-benchmark/1"
REPORT = "benchmark.json"
PREDICTIONS = "predictions"  # folder
_NOISE = (480, 640)  # px, of the frame of a bundle that brings none


def main(arguments: Optional[List[str]] = None) -> int:
    """Run one command and return its exit code."""
    parser = argparse.ArgumentParser(prog="edgeseg")
    parser.add_argument("verb", choices=sorted(_VERBS))
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path, help="an existing folder")
    parser.add_argument("images", type=Path, nargs="*")
    parser.add_argument("--engine")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        _VERBS[options.verb](options)
    except EdgesegError as error:
        print(f"edgeseg: {error}")
        return error.exit_code
    return 0


def predict(options: argparse.Namespace) -> None:
    """Segment images into OUT/predictions."""
    session = session_of(open_bundle(options.bundle), engine=options.engine)
    _replay(session)
    predict_files(session, find_images(options.images).images, options.out / PREDICTIONS)
    print(f"{len(options.images)} images in {session.engine.name}")


def benchmark(options: argparse.Namespace) -> None:
    """Time single frames one after the other into OUT/benchmark.json; every sample is kept."""
    started = time.perf_counter()
    bundle = open_bundle(options.bundle)
    session = session_of(bundle, engine=options.engine)
    open_ms = _ms_since(started)
    golden = _replay(session)
    names, frames = _frames_of(session)
    started = time.perf_counter()
    session.predict(frames[0])
    first_ms = _ms_since(started)
    for index in range(options.warmup):
        session.predict(frames[index % len(frames)])
    before = temperatures(Path("/"))
    samples_ms = []
    for index in range(options.rounds):
        frame = frames[index % len(frames)]
        started = time.perf_counter()
        session.predict(frame)
        samples_ms.append(_ms_since(started))
    report: Dict[str, Any] = {
        "schema": SCHEMA,
        "bundle_sha256": bundle.sha256,
        "network": bundle.manifest.name,
        "precision": bundle.manifest.precision,
        "engine": session.engine.name,
        "facts": dict(session.engine.facts),
        "golden": golden,
        "frames": names,
        "open_ms": open_ms,  # integrity checks and engine, without starting Python
        "first_ms": first_ms,
        "warmup_calls": options.warmup,
        "samples_ms": samples_ms,  # a frame in memory to a mask in its size, in order
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "power_mode": power_mode(Path("/")),
        "clocks_locked": clocks_locked(Path("/")),
        "temperatures_c": {"before": before, "after": temperatures(Path("/"))},
    }
    (options.out / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{options.rounds} frames in {session.engine.name}")


def _replay(session: Session) -> Optional[Dict[str, Any]]:
    """Replay the golden frames; return the result, or None where the bundle has none.

    Raises Refused: E-SELFTEST.
    """
    masks = session.bundle.manifest.vectors.masks if session.bundle else {}
    if files_of(session.engine.name) not in masks:
        print(f"no golden frames for {session.engine.name} in the bundle: none replayed")
        return None
    result = session.selftest()
    if not result.passed:
        raise Refused("E-SELFTEST", f"wrong on this device: {result.to_text()}; export it again")
    return result.to_dict()


def _frames_of(session: Session) -> Tuple[List[str], List[np.ndarray]]:
    """Return the golden frames with their names, or noise: of the layout's size if there is one."""
    golden = session.bundle.manifest.vectors.frames if session.bundle else ()
    if session.bundle and golden and session.layout is None:
        frames = [pixels_from_pnm(session.bundle.read(name), name) for name in golden]
        return list(golden), frames
    layout = session.layout
    height, width = (layout.height, layout.width) if layout else _NOISE
    noise = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    return [f"noise {width}x{height}"], [noise]


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000


_VERBS = {"benchmark": benchmark, "predict": predict}

if __name__ == "__main__":
    sys.exit(main())
