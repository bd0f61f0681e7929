#!/usr/bin/env python3
"""Build the TensorRT engine of this bundle on the device that will run it.

    python3 build_engine.py [--out ENGINE.plan]

Needs JetPack's own `tensorrt` and nothing else; valid Python 3.8. TensorRT 8.5 to 11. Every file
is checked against SHA256SUMS before it is parsed. The plan is written beside the bundle, since a
bundle takes no file more; ENGINE.plan.json tells what it was built with: an engine runs only on the
GPU and TensorRT version that built it.

Exit codes: 0 built, 2 wrong call, 3 a file does not match its hash, 4 TensorRT missing or refused,
5 not written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn


def fail(code: int, message: str) -> NoReturn:
    """Print one line and leave."""
    print("build_engine: " + message, file=sys.stderr)
    sys.exit(code)


def verify(folder: Path) -> None:
    """Compare every file of the bundle with SHA256SUMS."""
    name = "SHA256SUMS"
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {name}
    listed = set()
    try:
        for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
            expected, name = line.split("  ", 1)
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
                fail(3, f"{name} does not match SHA256SUMS; copy the bundle again")
            listed.add(name)
    except (OSError, ValueError) as error:
        fail(3, f"cannot verify {name} ({error}); copy the bundle again")
    if listed != found or "model.onnx" not in listed:
        fail(3, "SHA256SUMS does not list exactly the bundle's files; copy the bundle again")


def build(trt: Any, model: bytes, precision: str) -> bytes:
    """Return the serialized engine for ONNX bytes."""
    major = int(trt.__version__.split(".")[0])
    flags = 0
    if major < 10:
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    elif major == 10:
        # The graph carries its types (FP16 casts, Q/DQ): TensorRT must keep to them.
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        fail(4, "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if major < 10:  # weakly typed: what may be used has to be allowed
        config.set_flag(trt.BuilderFlag.FP16)
        if precision == "int8":
            config.set_flag(trt.BuilderFlag.INT8)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        fail(4, "TensorRT built no engine; its log is above")
    return bytes(plan)


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".partial")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        fail(5, f"cannot write {path}: {error.strerror}")


def main() -> None:
    """Verify, build, write."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    folder = Path(__file__).resolve().parent
    arguments.add_argument("--out", type=Path, default=folder.with_name(folder.name + ".plan"))
    out = arguments.parse_args().out.resolve()
    if folder in out.parents:
        fail(2, f"{out} lies in the bundle, which takes no file more; choose another --out")
    verify(folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    try:
        import tensorrt as trt
    except ImportError as error:
        fail(4, f"cannot import tensorrt ({error}); on a Jetson: apt install python3-libnvinfer")
    model = (folder / "model.onnx").read_bytes()
    plan = build(trt, model, manifest["precision"])
    facts = {
        "tensorrt": trt.__version__,
        "precision": manifest["precision"],
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "plan_sha256": hashlib.sha256(plan).hexdigest(),
    }
    write(out, plan)
    write(out.with_name(out.name + ".json"), json.dumps(facts, indent=1).encode("utf-8"))
    print(f"built {out} ({len(plan)} bytes) with TensorRT {trt.__version__}")


if __name__ == "__main__":
    main()
