"""Kill-and-reconnect during a remote build, and an aarch64 userland in place of a device.

    python tests/measure/device.py cuts [--times 20]
    python tests/measure/device.py aarch64 ROOT [--python /v/bin/python]

``cuts`` builds a kit over a line that is cut at a random moment of the build, lets the command
resume, and looks at both sides after each. ``aarch64`` runs doctor, benchmark and predict in a
chroot under qemu behind sshd (root only; ROOT as in docs/devices.md) and compares the masks with
this machine's. TensorRT is played; nothing here is a Jetson.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from edgeseg.export.device import doctor, jobs, transfer
from edgeseg.export.device.transfer import Link
from edgeseg.runtime.predict import predict_files
from edgeseg.runtime.session import open_session
from edgeseg.tests.support import device_standin as standin

_BUILD_S = 3.0


def cuts(times: int) -> None:
    """Cut the line once in each of so many builds; print what was found on both sides."""
    random.seed(0)
    with tempfile.TemporaryDirectory(prefix="edgeseg-") as name:
        folder = Path(name)
        (folder / "device").mkdir()
        played = standin.start_sshd(folder / "device")
        line = standin.Line(played.port)
        try:
            kit = standin.write_kit_bundle(folder / "kit")
            registry = played.registry(folder / "registry", "probe", port=line.port)
            link = Link(registry.find("probe"), registry, lambda text: None)
            played.set_build_s(0)
            wanted = jobs.build(link, kit, None, folder / "reference")
            played.set_build_s(_BUILD_S)
            clean = same = 0
            for index in range(times):
                jobs.clean_device(link)
                played.forget_build()
                verdict = _cut_once(played, line, link, kit, folder / f"out-{index}", wanted.folder)
                print(f"{index + 1:3}: {verdict}", flush=True)
                clean += verdict.endswith("both sides clean")
                same += "same engine" in verdict
            print(f"{clean} of {times} clean on both sides, {same} with the same engine")
        finally:
            line.close()
            played.stop()


def _cut_once(
    played: standin.Played, line: standin.Line, link: Link, kit: Path, out: Path, wanted: Path
) -> str:
    done: list[jobs.FetchedEngine] = []
    work = threading.Thread(target=lambda: done.append(jobs.build(link, kit, None, out)))
    work.start()
    processes = played.build_processes(60)
    moment_s = random.uniform(0, _BUILD_S * 0.8)
    time.sleep(moment_s)
    line.cut()
    started = time.monotonic()
    standin.wait_for(lambda: not any(map(standin.runs, processes)), 30)
    ended_s = time.monotonic() - started
    work.join(120)
    same = bool(done) and all(
        (out / name).read_bytes() == (wanted / name).read_bytes() for name in (jobs.PLAN,)
    )
    beside = [path.name for path in out.parent.iterdir() if path.name.startswith(f".{out.name}")]
    left = [*played.leftovers(), *beside]
    running = [pid for pid in played.build_processes() if standin.runs(pid)]
    found = "both sides clean" if not left and not running else f"left {left}, running {running}"
    return (
        f"cut {moment_s:.2f} s into the build, its processes ended after {ended_s:.2f} s, "
        f"{'same engine' if same else 'no or another engine'}, {found}"
    )


def aarch64(root: Path, python: str) -> None:
    """Run the verbs in a chroot for aarch64 and compare the masks."""
    with tempfile.TemporaryDirectory(prefix="edgeseg-") as name, _mounted(root):
        folder = Path(name)
        (folder / "device").mkdir()
        # The chroot has a cache of its own; what the sshd of the stand-in sets does not lead there.
        script = folder / "enter"
        script.write_text(
            "#!/bin/sh\nunset PYTHONPATH XDG_CACHE_HOME\n"
            f'exec chroot {root} /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n'
        )
        script.chmod(0o755)
        played = standin.start_sshd(folder / "device", python=python, force=str(script))
        try:
            registry = played.registry(folder / "registry", "aarch64")
            link = Link(registry.find("aarch64"), registry, print)
            for verb, work in {
                "doctor": lambda: doctor.render(jobs.on_each([link], doctor.examine)),
                "benchmark": lambda: _benchmark(link, folder),
                "predict": lambda: _predict(link, folder),
                "clean": lambda: f"{jobs.clean_device(link)} bytes removed",
            }.items():
                started = time.monotonic()
                text = work()
                print(f"{text}\n{verb}: {time.monotonic() - started:.1f} s\n", flush=True)
        finally:
            played.stop()


def _benchmark(link: Link, folder: Path) -> str:
    bundle = standin.write_onnx_bundle(folder / "bundle")
    return jobs.render_benchmark(
        jobs.on_each([link], lambda each: jobs.benchmark(each, bundle, None, 10))
    )


def _predict(link: Link, folder: Path) -> str:
    bundle = folder / "bundle"
    frames = standin.write_frames(folder / "frames", 4)
    jobs.predict(link, bundle, None, frames, folder / "there")
    predict_files(open_session(bundle), frames, folder / "here")
    lesion = flipped = 0
    for frame in frames:
        file = f"{frame.stem}_mask.png"
        here, there = (
            np.asarray(Image.open(folder / side / file)) > 0 for side in ("here", "there")
        )
        lesion += int(here.sum())
        flipped += int((here != there).sum())
    return f"{len(frames)} frames: {flipped} of {lesion} lesion pixels unlike this machine's"


@contextlib.contextmanager
def _mounted(root: Path) -> Iterator[None]:
    """Mount /dev and /proc, and not /sys: ONNX Runtime for aarch64 does not survive an x86 one."""
    made = []
    try:
        for words, place in ((("--bind", "/dev"), "dev"), (("-t", "proc", "proc"), "proc")):
            if not os.path.ismount(root / place):
                subprocess.run(["mount", *words, str(root / place)], check=True)
                made.append(root / place)
        yield
    finally:
        for place in reversed(made):
            subprocess.run(["umount", str(place)], check=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    of_cuts = verbs.add_parser("cuts")
    of_cuts.add_argument("--times", type=int, default=20)
    of_aarch64 = verbs.add_parser("aarch64")
    of_aarch64.add_argument("root", type=Path)
    of_aarch64.add_argument("--python", default="/v/bin/python")
    options = parser.parse_args()
    if shutil.which("ssh") is None or standin.SSHD is None:
        parser.error("needs ssh and sshd; apt install openssh-server openssh-client")
    transfer._WAIT_S = 0.5
    if options.verb == "cuts":
        cuts(options.times)
    else:
        aarch64(options.root, options.python)


if __name__ == "__main__":
    main()
