"""What predicting with the C runtime costs on a device beside plain C programs of the same engine.

EDGESEG_ONNXRUNTIME=ROOT EDGESEG_MMDEPLOY=FOLDER \\
    python tests/measure/footprint_c.py BUNDLE [REPEATS]

Builds the example `edgeseg-predict` with each engine alone and with all that are here,
plain_sample.c beside this file with each, and plain_mmdeploy.c. In turns each starts, segments
the bundle's first golden frame on one core and writes the mask into a pipe that takes one page:
while it waits there, its mask is done, and its peak memory (VmHWM) and its mapped files are read.
Prints for each program

    bytes     of program and libedgeseg.so, and of the engine's libraries that it mapped, stripped
    seconds   from its start to the mask; median. The example times a second frame before it
              writes; what it says of that one is taken off
    MiB       peak resident memory; median
    pixels    of the mask that differ from the example's

and the median and range, over the rounds, of time and memory against the plain program of the same
round. The plain program verifies nothing, runs the network once (the library runs it once at
opening besides) and leaves the engine's settings alone but for the threads. REPEATS is 9 if not
given. ROOT as for `runtime/c/get_onnxruntime.sh`; FOLDER is `mmdeploy_runtime` of the unpacked
wheel of mmdeploy-runtime 1.3.1; without one or the other its programs are left out. OpenVINO is
that of the Python wheel.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from edgeseg.runtime.bundle import Bundle, open_bundle
from edgeseg.runtime.pgm import pixels_from_pnm
from edgeseg.tests.measure.footprint_mmdeploy import write_sdk

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "runtime" / "c"
PAGE = 4096  # bytes; the least that a pipe holds
MIB = 2**20


@dataclass(frozen=True)
class Engine:
    """Where an engine's C interface is."""

    option: str  # of CMake
    root: Path
    library: Path
    model: str  # suffix of the file that the plain program is given


@dataclass(frozen=True)
class Program:
    """A program with its arguments, and the folder of the engine that it loads."""

    command: list[str]
    engine: Path


@dataclass(frozen=True)
class Run:
    """One program from its start to its mask."""

    seconds: float
    mib: float
    files: frozenset[Path]  # mapped: the program and its libraries
    mask: np.ndarray  # uint8 [H, W]


def engines() -> dict[str, Engine]:
    """Return the engines that can be compiled in here."""
    found = {}
    root = os.environ.get("EDGESEG_ONNXRUNTIME")
    if root:
        library = Path(root, "lib", "libonnxruntime.so")
        found["onnxruntime"] = Engine("EDGESEG_ONNXRUNTIME", Path(root), library, ".onnx")
    wheel = Path(sysconfig.get_path("purelib"), "openvino")
    for library in wheel.glob("libs/libopenvino_c.so.*"):
        found["openvino"] = Engine("EDGESEG_OPENVINO", wheel, library, ".xml")
    return found


def build_example(folder: Path, chosen: list[Engine]) -> Path:
    """Build the library with these engines; return the example's path."""
    options = [f"-D{engine.option}={engine.root}" for engine in chosen]
    configure = ["cmake", "-S", str(SOURCE), "-B", str(folder), *options]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(folder)], check=True, stdout=subprocess.DEVNULL)
    return folder / "edgeseg-predict"


def compile_plain(program: Path, sources: list[str], library: Path, *includes: Path) -> str:
    """Compile a plain program against an engine's library; return its path."""
    subprocess.run(
        ["gcc", "-O2", "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
        + [word for folder in includes for word in ("-isystem", str(folder))]
        + [str(HERE / source) for source in sources]
        + [str(library), f"-Wl,-rpath,{library.parent}", "-lm", "-o", str(program)],
        check=True,
    )
    return str(program)


def build_all(
    name: str, here: dict[str, Engine], bundle: Bundle, folder: Path
) -> dict[str, Program]:
    """Build the programs of one engine, ours first and the plain one second."""
    contract, engine = bundle.manifest.contract, here[name]
    (model,) = (file for file in bundle.manifest.models[name] if file.endswith(engine.model))
    arguments = [str(bundle.path), "--engine", name, "--threads", "1"]
    numbers = (contract.width, contract.height, contract.mean, contract.std)
    level = str(contract.logit_threshold)
    sources = ["plain_sample.c", f"plain_{name}.c"]
    plain = compile_plain(folder / "plain", sources, engine.library, engine.root / "include")
    alone = build_example(folder / "alone", [engine])
    programs = {
        "edgeseg": Program([str(alone), *arguments], engine.root),
        "plain": Program([plain, str(bundle.path / model), *map(str, numbers), level], engine.root),
    }
    if len(here) > 1:
        every = build_example(folder / "every", list(here.values()))
        programs["edgeseg, every engine"] = Program([str(every), *arguments], engine.root)
    sdk = os.environ.get("EDGESEG_MMDEPLOY")
    if sdk and name == "onnxruntime":
        write_sdk(folder / "sdk", bundle)
        library = Path(sdk, "libmmdeploy.so.1").resolve()
        theirs = compile_plain(folder / "mmdeploy", ["plain_mmdeploy.c"], library)
        programs["mmdeploy"] = Program([theirs, str(folder / "sdk"), level], library.parent)
    return programs


def observe(command: list[str], frame: Path) -> Run:
    """Start a program that reads a frame and writes a mask over two pages; look at it between."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PAGE)
    with frame.open("rb") as stdin, os.fdopen(reading, "rb", buffering=0) as pipe:
        start = time.monotonic()
        process = subprocess.Popen(command, stdin=stdin, stdout=writing, stderr=subprocess.PIPE)
        os.close(writing)
        first = pipe.read(1)
        seconds = time.monotonic() - start
        if not first:
            raise RuntimeError(f"{command[0]}: {process.communicate()[1].decode()}")
        status = Path("/proc", str(process.pid), "status").read_text()
        maps = Path("/proc", str(process.pid), "maps").read_text()
        content = first + pipe.read()
    said = process.communicate()[1].decode()
    if process.returncode != 0 or len(content) < 2 * PAGE:
        raise RuntimeError(f"{command[0]}: {said or 'a mask under two pages'}")
    second = re.search(r"second ([\d.]+) ms", said)
    kib = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert kib is not None
    return Run(
        seconds - float(second[1]) / 1e3 if second else seconds,
        int(kib[1]) / 1024,
        frozenset(Path(path) for path in re.findall(r"r-xp .*?(/.*)", maps)),
        pixels_from_pnm(content, command[0]),
    )


def stripped_bytes(file: Path) -> int:
    """Return the size of a program or library without its symbols."""
    with tempfile.NamedTemporaryFile() as out:
        subprocess.run(["strip", "-o", out.name, str(file)], check=True)
        return Path(out.name).stat().st_size


def describe(runs: list[Run], ours: Path, engine: Path, reference: Run) -> str:
    """Return what a program took; `ours` is the folder of what was built here."""
    files = runs[0].files
    own = [file for file in files if file.is_relative_to(ours)]
    theirs = [file for file in files if file.is_relative_to(engine.resolve())]
    seconds, mib = (median(getattr(run, each) for run in runs) for each in ("seconds", "mib"))
    differs = np.count_nonzero(runs[0].mask != reference.mask)
    return (
        f"{sum(map(stripped_bytes, own)):7,} B own, "
        f"{sum(map(stripped_bytes, theirs)) / MIB:6.2f} MiB of {len(theirs)} engine files, "
        f"{seconds:.3f} s, {mib:5.1f} MiB, {differs} px differ"
    )


def against(runs: list[Run], plain: list[Run]) -> str:
    """Return the ratios of the rounds: median, least and largest."""
    texts = []
    for name in ("seconds", "mib"):
        pairs = zip(runs, plain, strict=True)
        ratios = [getattr(mine, name) / getattr(other, name) for mine, other in pairs]
        texts.append(f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    return "time x {}, memory x {}".format(*texts)


def compare(name: str, programs: dict[str, Program], frame: Path, ours: Path, repeats: int) -> None:
    """Run programs in turns and print what they took; `ours` is the folder they were built in."""
    runs: dict[str, list[Run]] = {each: [] for each in programs}
    for repeat in range(repeats + 1):  # the first one fills the file caches
        for each in list(programs)[:: -1 if repeat % 2 else 1]:
            run = observe(programs[each].command, frame)
            if repeat:
                runs[each].append(run)
    reference = runs["edgeseg"][0]
    lesion = np.count_nonzero(reference.mask)
    load = os.getloadavg()[0]
    print(f"{name}: {lesion} px of lesion, {repeats} rounds, load {load:.1f}")
    for each, results in runs.items():
        print(f"  {each:21} {describe(results, ours, programs[each].engine, reference)}")
        if each != "plain":
            print(f"  {'':21} {against(results, runs['plain'])} the plain one's", flush=True)


def main(path: Path, repeats: int) -> None:
    bundle, here = open_bundle(path), engines()
    frame = path / bundle.manifest.vectors.frames[0]
    every = os.sched_getaffinity(0)
    for name in bundle.manifest.models:
        if name in here:
            with tempfile.TemporaryDirectory() as folder:
                programs = build_all(name, here, bundle, Path(folder))
                os.sched_setaffinity(0, {min(every)})  # the SDK takes every core it sees
                compare(name, programs, frame, Path(folder), repeats)
                os.sched_setaffinity(0, every)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 9)
