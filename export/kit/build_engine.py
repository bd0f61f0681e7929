#!/usr/bin/env python3
"""Build the TensorRT engine of this kit on the device that will run it.

Needs JetPack's own tensorrt (8.5 to 11) and numpy, and nothing from the internet. It

  1. checks every file of the kit against SHA256SUMS,
  2. refuses another TensorRT or GPU than the kit was made for,
  3. builds the engine,
  4. asks the engine in which precision its convolutions run,
  5. runs the kit's frames and compares each pixel with the answers of the host,
  6. writes ENGINE.plan, plain bytes that trtexec reads too, and ENGINE.plan.json beside it, which
     tells what it was built from and where. It runs on such a device and TensorRT only.

With --frame it does all that for the kit's frame graph: a uint8 frame of one size in, its mask out.
An engine is code to whoever loads it: load none that you did not build or cannot trace.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Tuple

sys.dont_write_bytecode = True  # the kit takes no file more than SHA256SUMS lists

if TYPE_CHECKING:
    import numpy as np

    from . import cuda_buffers, engine_builder, kit_files, precision_audit
else:  # beside this script
    import cuda_buffers
    import engine_builder
    import kit_files
    import precision_audit

EXIT_CODES = """exit codes:
  0  built, or the engine fits
  2  the command cannot be done as called
  3  refused: kit damaged, or made for another TensorRT or GPU; engine less precise than asked for,
     unlike the host's answers, or from elsewhere
  4  TensorRT or CUDA is missing or failed
  5  a file could not be written
"""
ENGINE_SCHEMA = "edgeseg.engine/1"
RELEASE_FILE = Path("/etc/nv_tegra_release")
MODEL_FILE = Path("/proc/device-tree/model")
# Flags of a weakly typed build -> options of trtexec.
TRTEXEC_OPTIONS = {
    "FP16": "--fp16",
    "INT8": "--int8",
    "OBEY_PRECISION_CONSTRAINTS": "--precisionConstraints=obey",
    "PREFER_PRECISION_CONSTRAINTS": "--precisionConstraints=prefer",
}


class Place(NamedTuple):
    """What an engine is tied to; an engine fits where these are equal."""

    tensorrt: str  # full version
    compute_capability: str
    l4t: Optional[str]  # Jetson Linux, such as "36.4.3"; None elsewhere
    model: Optional[str]  # of the device tree; None on a PC

    def __str__(self) -> str:
        parts = [self.model, self.l4t and f"L4T {self.l4t}", f"TensorRT {self.tensorrt}"]
        return ", ".join([*filter(None, parts), f"compute capability {self.compute_capability}"])


LEAST_LESION = 0.01  # of a frame's pixels: in fewer, single pixels would decide


class VectorResult(NamedTuple):
    """How the engine's answers to the kit's frames differ from the host's."""

    frames: int
    flipped_share: float  # of a frame's lesion, see `compare`; of the worst frame
    max_flipped: float
    max_abs: float  # largest difference of a logit; NaN or infinite where a logit is

    @property
    def passed(self) -> bool:
        """Whether every logit is finite and few enough pixels flipped."""
        return self.max_abs < float("inf") and self.flipped_share <= self.max_flipped


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the command and return its exit code."""
    folder = Path(__file__).resolve().parent
    options = parse_arguments(arguments)
    try:
        kit = kit_files.read_kit(folder)
        if options.check is not None:
            check(kit, options.check.resolve(), options.cuda)
            return 0
        build = build_of(kit, options.precision, frame=options.frame)
        workspace_mib = options.workspace_mib or kit.workspace_mib
        out = outside(kit, options.out or default_out(kit, build))
        timing_file = options.timing_cache and outside(kit, options.timing_cache)
        if options.print_trtexec:
            print(trtexec_line(kit, build, out, workspace_mib, timing_file))
            return 0
        make(kit, build, out, workspace_mib, timing_file, options.cuda)
    except kit_files.KitError as error:
        print(f"build_engine: {error}", file=sys.stderr)
        return error.exit_code
    except cuda_buffers.CudaError as error:
        failure = kit_files.DeviceError("E-KIT-CUDA", str(error))
        if error.out_of_memory:
            failure = engine_builder.memory_error("the GPU", kit.workspace_mib, str(error))
        print(f"build_engine: {failure}", file=sys.stderr)
        return failure.exit_code
    return 0


def parse_arguments(arguments: Optional[List[str]]) -> argparse.Namespace:
    """Read the command line; leaves with 2 where it contradicts itself."""
    parser = argparse.ArgumentParser(
        prog="build_engine.py",
        description=__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--precision",
        choices=kit_files.PRECISIONS,
        help="which of the kit's builds (default: see kit.json)",
    )
    parser.add_argument(
        "--frame",
        action="store_true",
        help="build the frame graph instead of the network; the kit was exported with --frame",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="ENGINE.plan",
        help="engine to write, outside the kit (default: KIT-PRECISION.plan beside the kit, "
        "KIT-PRECISION-frame.plan with --frame)",
    )
    parser.add_argument(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="kernel timings to start from and to write back, so that a second build is quick and "
        "chooses the same kernels",
    )
    parser.add_argument(
        "--workspace-mib",
        type=positive,
        metavar="N",
        help="most memory in MiB that a layer may use while it runs (default: see kit.json)",
    )
    parser.add_argument(
        "--cuda",
        choices=sorted(cuda_buffers.PROVIDERS),
        help="package that moves the test frames (default: the first of cuda-python, pycuda and "
        "ctypes that works)",
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--check",
        type=Path,
        metavar="ENGINE.plan",
        help="build nothing: say whether this engine fits this device, then run the kit's frames",
    )
    modes.add_argument(
        "--print-trtexec",
        action="store_true",
        help="build nothing: print the trtexec command that builds and times the same engine, "
        "measured alike by every TensorRT version",
    )
    options = parser.parse_args(arguments)
    building = (
        options.precision,
        options.frame,
        options.out,
        options.timing_cache,
        options.workspace_mib,
    )
    if options.check and any(building):
        parser.error("--check builds nothing; of the other options it takes --cuda only")
    return options


def positive(text: str) -> int:
    """Return a whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("is not above 0")
    return number


def build_of(
    kit: kit_files.Kit, precision: Optional[str], *, frame: bool = False
) -> kit_files.Build:
    """Return the build of a precision, or of the kit's default; of its frame graph if asked for."""
    wanted = precision or kit.default
    if frame and not kit.frames:
        message = "the kit holds no frame graph; export it with --frame WIDTHxHEIGHT"
        raise kit_files.InputError("E-KIT-FRAME", message)
    builds = kit.frames if frame else kit.builds
    if wanted not in builds:
        message = f"the kit holds {', '.join(builds)}, not {wanted}; export {wanted} as well"
        raise kit_files.InputError("E-KIT-PRECISION", message)
    return builds[wanted]


def default_out(kit: kit_files.Kit, build: kit_files.Build) -> Path:
    """Return where the engine goes when nobody says: beside the kit.

    No other kit's engine has the name of a frame graph's, as all end in a precision.
    """
    ending = "" if build.mask is None else "-frame"
    return kit.folder.with_name(f"{kit.folder.name}-{build.precision}{ending}.plan")


def outside(kit: kit_files.Kit, path: Path) -> Path:
    """Return the absolute path, or refuse a place in the kit."""
    path = path.resolve()
    if kit.folder in path.parents:
        message = f"{path} lies in the kit, which takes no file more; choose another place"
        raise kit_files.InputError("E-KIT-OUT", message)
    if not path.parent.is_dir():
        raise kit_files.InputError("E-KIT-OUT", f"there is no folder {path.parent}; make it first")
    return path


def import_packages() -> Any:
    """Return the `tensorrt` module, having seen that numpy is there too."""
    packages = {}
    for name, package in (("numpy", "python3-numpy"), ("tensorrt", "python3-libnvinfer")):
        try:
            packages[name] = importlib.import_module(name)
        except ImportError as error:
            message = f"cannot import {name} ({error}); on a Jetson: apt install {package}"
            raise kit_files.DeviceError("E-KIT-IMPORT", message) from error
    return packages["tensorrt"]


def require_place(trt: Any, cuda: cuda_buffers.Cuda, kit: kit_files.Kit) -> None:
    """Refuse another TensorRT or GPU than the kit was made for."""
    here = engine_builder.version_of(trt)
    if here != kit.tensorrt:
        message = (
            f"the kit ({kit.target}) was made for TensorRT {kit.tensorrt}, here is {here}; run "
            "edgeseg export with the --target that `edgeseg targets` lists for this JetPack"
        )
        raise kit_files.Refused("E-KIT-TENSORRT", message)
    if kit.compute_capability not in (None, cuda.facts.compute_capability):
        message = (
            f"the kit ({kit.target}) was made for a GPU of compute capability "
            f"{kit.compute_capability}, here is {cuda.facts.compute_capability}; run edgeseg "
            "export with the --target that `edgeseg targets` lists for this board"
        )
        raise kit_files.Refused("E-KIT-DEVICE", message)


def make(
    kit: kit_files.Kit,
    build: kit_files.Build,
    out: Path,
    workspace_mib: int,
    timing_file: Optional[Path],
    provider: Optional[str],
) -> None:
    """Build, audit, compare with the host, write."""
    for path in (out, timing_file):
        if path is not None:
            kit_files.require_writable(path)
    trt = import_packages()
    cuda = cuda_buffers.open_cuda(provider)
    require_place(trt, cuda, kit)
    free_mib, total_mib = cuda.memory_mib()
    progress(
        f"building {build.title} with TensorRT {trt.__version__} on {free_mib} of {total_mib} "
        "MiB free GPU memory; this takes minutes"
    )
    log = engine_builder.Log([], [])
    logger = engine_builder.make_logger(trt, log)
    onnx = kit.read(build.onnx)
    built = engine_builder.build_engine(
        trt,
        logger,
        log,
        build,
        onnx,
        workspace_mib=workspace_mib,
        calibration=kit.read(build.cache) if build.cache else None,
        timing_cache=read_timings(timing_file),
    )
    engine = engine_builder.load_engine(trt, logger, log, built.plan, build)
    achieved = require_precision(engine_builder.inspect_engine(trt, engine), build)
    result = require_vectors(engine, cuda, kit, build)
    facts = {
        "schema": ENGINE_SCHEMA,
        "target": kit.target,
        "precision": build.precision,
        **place_of(trt, cuda)._asdict(),
        "cuda": cuda.facts._asdict(),
        "build": {
            "onnx": build.onnx,
            "typed": build.typed,
            "flags": list(build.flags),
            "cache": build.cache,
            "dla_core": build.dla_core,
            "workspace_mib": workspace_mib,
        },
        "onnx_sha256": kit_files.sha256_of(onnx),
        "plan_sha256": kit_files.sha256_of(built.plan),
        "kit_sha256": kit.sha256,
        "timing_cache_sha256": built.timing_cache and kit_files.sha256_of(built.timing_cache),
        "achieved": {**achieved._asdict(), "min_share": build.min_share},
        "vectors": result._asdict(),
        "warnings": log.warnings[:50],
    }
    kit_files.write_engine(out, built.plan, facts)
    if timing_file is not None and built.timing_cache is not None:
        kit_files.write_whole(timing_file, built.timing_cache)  # last: the engine is worth more
    print(
        f"built {out} ({len(built.plan)} bytes): {achieved.share(build.precision):.1%} of the "
        f"convolutions' {achieved.by} in {build.precision}, at most {result.flipped_share:.3%} of "
        f"a frame's lesion unlike the host's; frames moved by {cuda.facts.provider}"
    )


def check(kit: kit_files.Kit, plan_file: Path, provider: Optional[str]) -> None:
    """Say whether an engine that was built from this kit fits this device, then try it.

    Nothing of the engine is read by TensorRT before its side-car has been compared. The side-car is
    no signature: it tells an engine from elsewhere, not one that was forged together with it.
    """
    again = f"run python3 {Path(__file__).name}"
    try:
        plan = plan_file.read_bytes()
        facts = json.loads(kit_files.side_car_of(plan_file).read_text(encoding="utf-8"))
        if facts["schema"] != ENGINE_SCHEMA:
            raise ValueError(f"schema {facts['schema']!r}, this script reads {ENGINE_SCHEMA!r}")
        built_on = Place(*(facts[name] for name in Place._fields))
        sums = facts["plan_sha256"], facts["kit_sha256"]
        precision, onnx = str(facts["precision"]), str(facts["build"]["onnx"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{plan_file} or its side-car cannot be read ({error!r}): {again}"
        raise kit_files.Refused("E-KIT-ENGINE", message) from error
    of_frame = is_frame(kit, precision, onnx)
    if precision in kit.builds:  # else the side-car is of another kit, or was forged
        again += f" --precision {precision}" + (" --frame" if of_frame else "")
    if sums != (kit_files.sha256_of(plan), kit.sha256):
        what = "side-car" if sums[0] != kit_files.sha256_of(plan) else "kit"
        raise kit_files.Refused("E-KIT-ENGINE", f"{plan_file} is not of this {what}: {again}")
    trt = import_packages()
    cuda = cuda_buffers.open_cuda(provider)
    here = place_of(trt, cuda)
    if here != built_on:
        raise kit_files.Refused("E-KIT-ENGINE", f"built on {built_on}; here is {here}: {again}")
    build = build_of(kit, precision, frame=of_frame)
    log = engine_builder.Log([], [])
    logger = engine_builder.make_logger(trt, log)
    engine = engine_builder.load_engine(trt, logger, log, plan, build)
    result = require_vectors(engine, cuda, kit, build)
    print(f"fits; at most {result.flipped_share:.3%} of a frame's lesion unlike the host's")


def is_frame(kit: kit_files.Kit, precision: str, onnx: str) -> bool:
    """Return whether an engine is of the kit's frame graph, by what its side-car says."""
    frame = kit.frames.get(precision)
    return frame is not None and frame.onnx == onnx


def progress(text: str) -> None:
    """Tell on stderr what takes long."""
    print(text, file=sys.stderr)


def read_timings(path: Optional[Path]) -> Optional[bytes]:
    """Return a timing cache, b"" for one that is to be begun, None where none is wanted."""
    if path is None:
        return None
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}; choose another --timing-cache"
        raise kit_files.InputError("E-KIT-TIMING", message) from error


def require_precision(information: str, build: kit_files.Build) -> precision_audit.Achieved:
    """Return what the engine achieved, or refuse less than the kit's least share."""
    try:
        achieved = precision_audit.audit(information, build.around)
    except (ValueError, KeyError) as error:
        message = f"the engine does not tell its precision ({error}); report it with the kit"
        raise kit_files.Refused("E-KIT-SHARE", message) from error
    if not achieved.share(build.precision) >= build.min_share:
        shares = ", ".join(f"{share:.1%} {name}" for name, share in achieved.shares.items())
        message = (
            f"{build.precision} was asked for, but the {achieved.convolutions} convolutions run "
            f"{shares} (by {achieved.by}; {build.min_share:.0%} needed); build another --precision"
        )
        raise kit_files.Refused("E-KIT-SHARE", message)
    return achieved


def require_vectors(
    engine: Any, cuda: cuda_buffers.Cuda, kit: kit_files.Kit, build: kit_files.Build
) -> VectorResult:
    """Run the kit's frames and refuse answers unlike the host's.

    With a dynamic batch they run one by one and repeated in a full batch; the worse result counts.
    """
    import numpy as np

    frames, expected = read_vectors(kit, build)
    answers = engine_builder.run_engine(engine, cuda, kit, build, frames)
    result = compare(answers, expected, kit, build)
    if build.profile is not None and result.passed:
        most = build.profile.max[0]
        places = np.arange(most) % len(frames)
        answers = engine_builder.run_engine(engine, cuda, kit, build, frames[places], batch=most)
        repeated = {name: array[places] for name, array in expected.items()}
        full = compare(answers, repeated, kit, build)
        if full.flipped_share > result.flipped_share or not full.passed:
            result = full
    if not result.passed:
        message = (
            f"in one frame {result.flipped_share:.2%} of the lesion is unlike the host's "
            f"({build.max_flipped:.2%} allowed, largest difference of a logit {result.max_abs:.3g})"
            "; build another --precision and report the board with TensorRT's version"
        )
        raise kit_files.Refused("E-KIT-VECTORS", message)
    return result


def read_vectors(
    kit: kit_files.Kit, build: kit_files.Build
) -> Tuple[np.ndarray, Dict[str, np.ndarray]]:
    """Return the frames and what the host answered to them, by output."""
    given = read_arrays(kit.folder / build.vectors, build.input.name)
    expected = read_arrays(kit.folder / build.expected, build.logits.name)
    found = {name: (array.shape, str(array.dtype)) for name, array in {**given, **expected}.items()}
    count = max(found.get(build.input.name, ((), ""))[0][:1], (1,))
    tensors = (build.input, *build.outputs)
    wanted = {t.name: ((*count, *t.shape[1:]), t.dtype) for t in tensors}
    if set(given) != {build.input.name} or found != wanted:
        message = f"the vectors are {found}, kit.json names {wanted}; export again"
        raise kit_files.Refused("E-KIT-FORMAT", message)
    return given[build.input.name], expected


def read_arrays(path: Path, name: str) -> Dict[str, np.ndarray]:
    """Return the arrays of an npz by their names, that of an npy by the name given.

    Raises:
        Refused: E-KIT-FORMAT.
    """
    import numpy as np

    try:
        with path.open("rb") as file:  # numpy leaves it open where an npz is cut
            stored = np.load(file, allow_pickle=False)
            if isinstance(stored, np.ndarray):
                return {name: stored}
            with stored:
                return {each: stored[each] for each in stored.files}
    except (EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
        message = f"{path} holds no arrays ({error}); export the kit again"
        raise kit_files.Refused("E-KIT-FORMAT", message) from error


def compare(
    answers: Dict[str, np.ndarray],
    expected: Dict[str, np.ndarray],
    kit: kit_files.Kit,
    build: kit_files.Build,
) -> VectorResult:
    """Compare outputs [N, K, H, W] with the host's, the mask pixel by pixel.

    Flipped pixels are counted against what either mask marks in their frame, but at least
    `LEAST_LESION` of it: over all pixels a small lesion could be lost unseen.
    """
    import numpy as np

    name = build.logits.name
    if build.mask is None:
        levels = np.array(kit.logit_thresholds, np.float32)
        ours, theirs = (labels_of(each[name], levels) for each in (answers, expected))
    else:  # as they are: a mask that says lesion by another number than 1 is none
        ours, theirs = (each[build.mask.name][:, 0] for each in (answers, expected))
    marked = ((ours != 0) | (theirs != 0)).mean(axis=(1, 2))
    shares = (ours != theirs).mean(axis=(1, 2)) / np.maximum(marked, LEAST_LESION)
    flipped = float(shares.max())
    with np.errstate(invalid="ignore"):  # NaN and inf - inf are an answer here, see `passed`
        max_abs = float(np.max(np.abs(answers[name] - expected[name])))
    return VectorResult(len(theirs), flipped, build.max_flipped, max_abs)


def labels_of(logits: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return the class of each pixel from logits [N, K, H, W] and levels [K], int64 [N, H, W].

    0 is background; else the class farthest above its level, from 1, the first of equal ones.
    """
    margins = logits - levels[:, None, None]
    labels: np.ndarray = (margins.argmax(axis=1) + 1) * (margins.max(axis=1) > 0)
    return labels


def place_of(trt: Any, cuda: cuda_buffers.Cuda) -> Place:
    """Return what an engine that is built here will be tied to."""
    return Place(trt.__version__, cuda.facts.compute_capability, l4t_version(), device_model())


def l4t_version() -> Optional[str]:
    """Return the version of Jetson Linux, None elsewhere."""
    try:
        text = RELEASE_FILE.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{found.group(1)}.{found.group(2)}" if found else None


def device_model() -> Optional[str]:
    """Return the board's name in the device tree, None on a PC."""
    try:
        return MODEL_FILE.read_text(encoding="utf-8").rstrip("\0\n")
    except OSError:
        return None


def trtexec_line(
    kit: kit_files.Kit,
    build: kit_files.Build,
    out: Path,
    workspace_mib: int,
    timing_file: Optional[Path],
) -> str:
    """Return the trtexec command for a build.

    From 11 on trtexec leaves out copies, spins and captures a CUDA graph unless told not to. The
    line asks for the way of 8 and 10, so that the times of all versions compare. What is uint8 in
    the ONNX stays so without an option.
    """
    major = int(kit.tensorrt.split(".")[0])
    words = ["trtexec", f"--onnx={kit.folder / build.onnx}", f"--saveEngine={out}"]
    if build.typed and major < 11:
        words.append("--stronglyTyped")
    if build.precision == "fp32":
        words.append("--noTF32")
    for flag in build.flags:
        if flag not in TRTEXEC_OPTIONS:
            message = f"trtexec has no option for BuilderFlag.{flag}; build without trtexec"
            raise kit_files.InputError("E-KIT-TRTEXEC", message)
        words.append(TRTEXEC_OPTIONS[flag])
    if build.cache:
        words.append(f"--calib={kit.folder / build.cache}")
    if build.dla_core is not None:
        words += [f"--useDLACore={build.dla_core}", "--allowGPUFallback"]
    if build.profile is not None:
        words += [
            f"--{end}Shapes={build.profile.input}:{'x'.join(map(str, shape))}"
            for end, shape in zip(("min", "opt", "max"), build.profile[1:])  # noqa: B905
        ]
    if timing_file is not None:
        words.append(f"--timingCacheFile={timing_file}")
    words += [f"--memPoolSize=workspace:{workspace_mib}", "--profilingVerbosity=detailed"]
    words += ["--warmUp=1000", "--duration=10", "--iterations=500"]  # ms, s, at least
    if major >= 11:
        words += ["--includeDataTransfers", "--noSpinWait", "--noCudaGraph"]
    return " ".join(shlex.quote(word) for word in words)


if __name__ == "__main__":
    sys.exit(main())
