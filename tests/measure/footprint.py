"""What predicting with edgeseg costs on a device beside a plain script of the same engine.

python tests/measure/footprint.py BUNDLE [REPEATS]

BUNDLE is for a CPU. For each of its engines: bytes of every package of a fresh environment with
edgeseg and that engine (the base install; with the extra `openvino`), and then, in turns, a process
that opens the bundle and predicts one frame, and one without edgeseg that reads the same frame
(Pillow), resizes, infers and thresholds with the same model file and the engine's defaults. Prints
medians: seconds from the start of the process to the first mask, peak resident memory (VmHWM), the
ratios of both within a round (median and range), and how many pixels of the two masks differ. The
plain script verifies nothing and resizes the mask to the frame with Pillow. REPEATS is 5 if not
given. Packages come from the index that pip is set up for.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from edgeseg.runtime.bundle import Bundle, open_bundle
from edgeseg.runtime.pgm import pixels_from_pnm

ROOT = Path(__file__).parents[2]
EXTRAS = {"onnxruntime": "", "openvino": "[openvino]"}

OURS = """
import sys
from pathlib import Path
from edgeseg.runtime import open_session, read_image
bundle, frame, engine, contract = sys.argv[1:5]
mask = open_session(Path(bundle), engine=engine).predict(read_image(Path(frame)))
"""
_PLAIN = """
import json, math, sys
from pathlib import Path
import numpy as np
from PIL import Image
bundle, frame, engine, contract = sys.argv[1:5]
c = json.loads(contract)
grey = Image.open(frame).convert("L")
small = np.asarray(grey.resize((c["width"], c["height"]), Image.Resampling.BILINEAR), np.float32)
image = ((small / 255 - c["mean"]) / c["std"]).astype(np.float32)[None, None]
{infer}
level = math.log(c["threshold"] / (1 - c["threshold"]))
whole = Image.fromarray(logits[0, 0]).resize(grey.size, Image.Resampling.BILINEAR)
mask = (np.asarray(whole) > level).astype(np.uint8)
"""
PLAIN = {
    "onnxruntime": _PLAIN.format(
        infer="""
import onnxruntime as ort
session = ort.InferenceSession(str(Path(bundle, "model.onnx")), providers=["CPUExecutionProvider"])
logits = session.run(None, {session.get_inputs()[0].name: image})[0]
"""
    ),
    "openvino": _PLAIN.format(
        infer="""
import openvino as ov
compiled = ov.Core().compile_model(str(Path(bundle, "model.xml")), "CPU")
logits = compiled(image)[0]
"""
    ),
}
_REPORT = """
import time
done = time.monotonic()
memory = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
sys.stdout.buffer.write(f"{done} {memory.split()[1]}\\n".encode() + mask.tobytes())
"""


def environment_with(folder: Path, extra: str) -> Path:
    """Return the interpreter of a fresh environment with edgeseg installed from this checkout."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    quietly = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*quietly, f"{ROOT}{extra}"], check=True)
    return python


def bytes_by_package(python: Path) -> dict[str, int]:
    """Return the bytes on disk of each installed distribution but pip's own tools."""
    code = (
        "import json\n"
        "from importlib.metadata import distributions\n"
        "sizes = {}\n"
        "for each in distributions():\n"
        "    files = [each.locate_file(file) for file in each.files or ()]\n"
        "    sizes[each.metadata['Name']] = sum(f.stat().st_size for f in files if f.is_file())\n"
        "print(json.dumps(sizes))"
    )
    command = [str(python), "-I", "-c", code]  # -I: nothing from this folder or PYTHONPATH
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    sizes: dict[str, int] = json.loads(done.stdout)
    return {name: size for name, size in sizes.items() if name not in ("pip", "setuptools")}


@dataclass(frozen=True)
class Program:
    """A script that leaves a uint8 array `mask`, and what runs it."""

    python: Path
    script: str
    arguments: tuple[str, ...]


def first_mask(program: Program, cwd: Path) -> tuple[float, float, np.ndarray]:
    """Run a script; return seconds from its start to its mask, peak MiB and the mask."""
    start = time.monotonic()  # one clock for all processes
    done = subprocess.run(
        [str(program.python), "-I", "-c", program.script + _REPORT, *program.arguments],
        stdout=subprocess.PIPE,
        check=True,
        cwd=cwd,
    )
    line, _, pixels = done.stdout.partition(b"\n")
    end, kib = line.split()
    return float(end) - start, int(kib) / 1024, np.frombuffer(pixels, np.uint8)


def in_turns(programs: dict[str, Program], repeats: int, cwd: Path) -> None:
    """Run programs in turns and print what each took, and each round's ratio to the second one."""
    runs: dict[str, list[tuple[float, float, np.ndarray]]] = {name: [] for name in programs}
    for repeat in range(repeats + 1):  # the first one fills the file caches
        for name in list(programs)[:: -1 if repeat % 2 else 1]:
            result = first_mask(programs[name], cwd)
            if repeat:
                runs[name].append(result)
    for name, results in runs.items():
        seconds, mib = (median(result[index] for result in results) for index in (0, 1))
        print(f"  {name:8} first mask after {seconds:.3f} s, peak {mib:.1f} MiB ({repeats} runs)")
    ours, other = runs.values()
    for index, what in enumerate(("time", "memory")):
        ratios = [mine[index] / its[index] for mine, its in zip(ours, other, strict=True)]
        print(f"  {what} x {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    differs = np.count_nonzero(ours[0][2] != other[0][2])
    print(f"  masks: {np.count_nonzero(ours[0][2])} px of lesion, {differs} differ", flush=True)


def golden_frame(bundle: Bundle, folder: Path) -> Path:
    """Write the first golden frame of a bundle as PNG; return its path."""
    frame = folder / "frame.png"
    content = bundle.read(bundle.manifest.vectors.frames[0])
    Image.fromarray(pixels_from_pnm(content, "frame")).save(frame)
    return frame


def print_sizes(what: str, python: Path) -> None:
    """Print the bytes of each package of an environment."""
    sizes = bytes_by_package(python)
    print(f"{what}: {sum(sizes.values()) / 2**20:.1f} MiB in all")
    for package, size in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"  {package:20} {size / 2**20:8.2f} MiB")


def main(path: Path, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = open_bundle(path)
        frame = golden_frame(bundle, folder)
        for engine, extra in EXTRAS.items():
            if engine not in bundle.manifest.models:
                continue
            python = environment_with(folder / engine, extra)
            print_sizes(f"{engine}: edgeseg{extra}", python)
            contract = json.dumps(bundle.manifest.contract.to_dict())
            arguments = (str(path), str(frame), engine, contract)
            programs = {
                "edgeseg": Program(python, OURS, arguments),
                "plain": Program(python, PLAIN[engine], arguments),
            }
            in_turns(programs, repeats, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 5)
