"""What a user would pick instead: other ways to run the same network, and small networks of others.

The networks of the literature are not trained here, so their masks mean nothing: they are compared
in size and time alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from ...runtime.contract import InputContract
from ...runtime.engines import (
    ENGINES,
    Engine,
    affinity,
    available_threads,
    is_installed,
    open_engine,
)
from ...runtime.errors import EngineError, InputError
from ...runtime.image import input_from_frame
from ...runtime.progress import Progress, quiet
from ...runtime.session import Session
from .probing import probe_command

if TYPE_CHECKING:
    from ...benchmarks.run import Candidate
    from ...kd.checkpoint import Checkpoint

CALIBRATION_FRAMES = 32  # that calibrate where the user gives no frames
_NOISE_FRAMES = 4  # give networks that are not trained their ranges, which mean nothing
_ABOUT = "rival.json"  # beside the model: the contract and the facts of its making
_DEFAULT = "engine's choice"


@dataclass(frozen=True)
class Rival:
    """One way to get a mask."""

    what: str  # a line for people
    engine: str  # what runs it: key in `_OPENERS`
    precision: str  # "fp32" or "int8"
    network: str | None = None  # key in `BASELINES`; None is the user's own checkpoint

    @property
    def trained(self) -> bool:
        """Whether its masks may be scored."""
        return self.network is None


_NETWORKS: Mapping[str, str] = {
    "unext": "UNeXt",
    "cmunext-s": "CMUNeXt-S",
    "mobile-uvit": "Mobile U-ViT",
}

# To add one: a line here, for a new engine also one in `_OPENERS`. A name before the slash stands
# for all that begin with it.
RIVALS: Mapping[str, Rival] = MappingProxyType(
    {
        "torch-compile": Rival("the checkpoint through torch.compile", "torch-compile", "fp32"),
        "onnxruntime-default": Rival(
            "its ONNX in ONNX Runtime, no option set", "onnxruntime-default", "fp32"
        ),
        "openvino-default": Rival(
            "its ONNX in OpenVINO on the CPU, no option set", "openvino-default", "fp32"
        ),
        "onnxruntime-quantize-static": Rival(
            "its ONNX, quantised by ONNX Runtime's quantize_static as it comes",
            "onnxruntime",
            "int8",
        ),
        **{
            f"{network}/{engine}-{precision}": Rival(
                f"{title} in {engine}, {precision.upper()}, not trained", engine, precision, network
            )
            for network, title in _NETWORKS.items()
            for engine in ("onnxruntime", "openvino")
            for precision in ("fp32", "int8")
        },
    }
)


def rivals_named(names: Sequence[str]) -> tuple[str, ...]:
    """Return the keys in `RIVALS` that the names stand for, each once, in the table's order.

    Raises InputError: E-RIVAL-NAME.
    """
    short = {key: key.partition("/")[0] for key in RIVALS}
    for name in names:
        if name not in RIVALS and name not in short.values():
            raise InputError(
                "E-RIVAL-NAME",
                f"no rival is called {name!r}; choose of {', '.join(sorted({*short.values()}))}",
            )
    return tuple(key for key in RIVALS if key in names or short[key] in names)


def rival_candidates(
    checkpoint: Path,
    names: Sequence[str],
    threads: int,
    folder: Path,
    *,
    frames: Sequence[np.ndarray] = (),
    progress: Progress = quiet,
) -> tuple[Candidate, ...]:
    """Make and open rivals of a checkpoint, at its input size.

    Args:
        checkpoint: file of the network that they are compared with.
        names: see `rivals_named`.
        threads: for each engine whose number can be set; 0 takes every core of this process.
        folder: exists, and outlives the candidates; what has to be made is written there.
        frames: uint8 [H, W] each, from data that trained the checkpoint, for quantize_static;
            empty takes `CALIBRATION_FRAMES` phantoms.
        progress: wraps the rivals.

    Returns:
        Candidates; `RIVALS` tells which are of trained networks.

    Raises:
        InputError: E-RIVAL-NAME, E-RIVAL-SIZE, those of `load_checkpoint`.
        EngineError: E-EXTRA-MISSING, E-ENGINE-COMPILER, E-ENGINE-LOAD, E-AUDIT.
    """
    from ...kd.checkpoint import load_checkpoint

    chosen = rivals_named(names)
    threads = threads or available_threads()
    for name in chosen:
        _require_engine(RIVALS[name].engine)
    loaded = load_checkpoint(checkpoint)
    user = _User(checkpoint, loaded, tuple(_phantoms()), "phantoms")
    if frames:
        user = _User(checkpoint, loaded, frames, "frames of the train part")
    return tuple(
        _candidate(name, user, folder / name.replace("/", "-"), threads)
        for name in progress(chosen, "preparing rivals", len(chosen))
    )


@dataclass(frozen=True)
class _User:
    """What the rivals are compared with, and calibrated on."""

    file: Path
    checkpoint: Checkpoint
    frames: Sequence[np.ndarray]  # uint8 [H, W] each
    frames_are: str  # a few words


def _phantoms() -> Iterator[np.ndarray]:
    from ...kd.data.phantom import draw_phantom

    for number in range(1, CALIBRATION_FRAMES + 1):
        yield draw_phantom(("benign", "malignant")[number % 2], number, 0)[0]


def open_rival(name: str, checkpoint: Path, folder: Path, threads: int) -> Session:
    """Open a rival that `rival_candidates` has made; for the child process of a benchmark.

    Args:
        name: key in `RIVALS`.
        checkpoint: as `rival_candidates`.
        folder: the one in the candidate's `probe`.
        threads: for the engine, >= 1, where the number can be set.

    Raises EngineError: as `rival_candidates`.
    """
    engine = RIVALS[name].engine
    _require_engine(engine)
    if engine == "torch-compile":
        return _open_compiled(checkpoint, folder, threads)
    about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    opened = _OPENERS[engine](folder, threads)
    named = _NamedEngine(opened.name, {**opened.facts, **about["facts"]}, opened.run)
    return Session.over(named, InputContract.from_dict(about["contract"]))


@dataclass(frozen=True)
class _NamedEngine:
    """An engine that is a function."""

    name: str
    facts: Mapping[str, str]
    run: Callable[[np.ndarray], np.ndarray]


def _open_compiled(checkpoint: Path, folder: Path, threads: int) -> Session:
    from ...kd.checkpoint import load_checkpoint
    from ...kd.engine import TorchEngine

    # An empty cache each time, else only the first start of all would compile.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(dir=folder)
    loaded = load_checkpoint(checkpoint)
    return Session.over(TorchEngine(loaded, threads, compiled=True), loaded.contract)


def _files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("model.*"))}


def _onnxruntime_default(folder: Path, threads: int) -> Engine:
    """Open the ONNX as the first lines of ONNX Runtime's manual do."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(folder / "model.onnx"))
    name = session.get_inputs()[0].name
    facts = {
        "version": ort.__version__,
        "device": "CPU",
        "provider": session.get_providers()[0],
        "threads": _DEFAULT,
        "streams": "1",
        "pinning": _DEFAULT,
        "float type": "f32",  # its CPU provider computes in the graph's own
        "affinity": affinity(),
    }

    def run(image: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {name: image})[0])

    return _NamedEngine("onnxruntime-default", facts, run)


def _openvino_default(folder: Path, threads: int) -> Engine:
    """Open the ONNX as the first lines of OpenVINO's manual do."""
    import openvino as ov

    from ...runtime.engines.ov import shared_core

    compiled = shared_core().compile_model(str(folder / "model.onnx"), "CPU")
    facts = {
        "version": ov.__version__,
        "device": ", ".join(compiled.get_property("EXECUTION_DEVICES")),
        "threads": str(compiled.get_property("INFERENCE_NUM_THREADS")),
        "streams": str(compiled.get_property("NUM_STREAMS")),
        "pinning": "yes" if compiled.get_property("ENABLE_CPU_PINNING") else "no",
        "float type": compiled.get_property("INFERENCE_PRECISION_HINT").to_string(),
        "affinity": affinity(),
    }

    def run(image: np.ndarray) -> np.ndarray:
        return np.asarray(compiled(image)[0])

    return _NamedEngine("openvino-default", facts, run)


_OPENERS: Mapping[str, Callable[[Path, int], Engine]] = MappingProxyType(
    {
        "onnxruntime": lambda folder, threads: open_engine(
            "onnxruntime", _files_in(folder), threads
        ),
        "openvino": lambda folder, threads: open_engine("openvino", _files_in(folder), threads),
        "onnxruntime-default": _onnxruntime_default,
        "openvino-default": _openvino_default,
    }
)


def _require_engine(engine: str) -> None:
    """Raise EngineError (E-EXTRA-MISSING) before anything is made for it."""
    library = engine.partition("-")[0]
    if library in ENGINES and not is_installed(library):
        raise EngineError(
            "E-EXTRA-MISSING", f"engine {engine!r} is not installed; {ENGINES[library].extra}"
        )


def _candidate(name: str, user: _User, folder: Path, threads: int) -> Candidate:
    from ...benchmarks.measure.complexity import count_complexity
    from ...benchmarks.run import Candidate
    from ...kd.models import complexity_of

    rival = RIVALS[name]
    folder.mkdir()
    model = None
    files: dict[str, bytes] = {}
    if rival.engine == "torch-compile":
        complexity = complexity_of(user.checkpoint.network, user.checkpoint.contract)
        sha256, size = user.checkpoint.sha256, user.file.stat().st_size
    else:
        model = _write_model(rival, user, folder, threads)
        counted = count_complexity(model)
        files = _files_in(folder)
        complexity = {
            "parameters": counted.parameters,
            "macs": counted.macs,
            "weights_bytes": len(files.get("model.bin", b"")) or counted.weights_bytes,
        }
        sha256 = hashlib.sha256(b"".join(files.values())).hexdigest()
        size = sum(map(len, files.values()))
    origin = f"{user.file.resolve().parent.name}/{user.file.stem}"
    return Candidate(
        name=f"{origin} · {name}" if rival.trained else name.replace("/", " · "),
        kind=rival.engine,
        precision=rival.precision,
        session=open_rival(name, user.file, folder, threads),
        artifact_sha256=sha256,
        file_bytes=size,
        complexity=complexity,
        probe=probe_command(user.file, threads, "--rival", name, "--folder", str(folder.resolve())),
        trained=rival.trained,
        open_another=partial(_another, name, user.file, folder, threads),
        files=files,
        onnx=model,
    )


def _another(name: str, checkpoint: Path, folder: Path, threads: int, each: int) -> Session:
    """Open a rival on so many threads each; PyTorch has only those of the process."""
    own = RIVALS[name].engine == "torch-compile"
    return open_rival(name, checkpoint, folder, threads if own else each)


def _write_model(rival: Rival, user: _User, folder: Path, threads: int) -> bytes:
    """Write the model that the rival's engine opens, and what is known of it; return its ONNX."""
    from ...export.to_onnx import onnx_from_network

    contract = user.checkpoint.contract
    if rival.network is not None:
        model = _baseline_onnx(rival.network, contract, rival.precision)
    else:
        model = onnx_from_network(user.checkpoint.network, contract)
        if rival.precision == "int8":
            inputs = (input_from_frame(frame, contract) for frame in user.frames)
            model = _statically_quantised(model, inputs, folder)
    if rival.engine == "openvino":
        from ...export.to_openvino import openvino_from_onnx

        openvino_from_onnx(model, folder)
    else:
        (folder / "model.onnx").write_bytes(model)
    facts = {}
    if rival.precision == "int8":
        facts["int8 share of macs"] = f"{_int8_share(rival.engine, model, folder, threads):.3f}"
        if rival.network is None:
            facts["calibration"] = f"{len(user.frames)} {user.frames_are}"
    about = {"contract": contract.to_dict(), "facts": facts}
    (folder / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
    return model


@lru_cache(maxsize=2)  # both precisions of a network: each is made once for all engines
def _baseline_onnx(network: str, contract: InputContract, precision: str) -> bytes:
    """Return a network of the literature; INT8 as `edgeseg export --target x86-cpu` makes it.

    The ranges are those of noise: no time depends on them.
    """
    from ...benchmarks.baselines import build_baseline
    from ...export.qdq import qdq_from_onnx
    from ...export.ranges import measure_ranges
    from ...export.target import find_target
    from ...export.to_onnx import onnx_from_network

    if precision == "fp32":
        built = build_baseline(network, contract.height, contract.width)
        return onnx_from_network(built, contract)
    model = _baseline_onnx(network, contract, "fp32")
    shape = (_NOISE_FRAMES, 1, contract.depth, contract.height, contract.width)
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    amax = measure_ranges(model, noise).amax("min-max")
    bits = find_target("x86-cpu").weight_bits
    return qdq_from_onnx(model, amax, unsigned=True, weight_bits=bits)


def _statically_quantised(model: bytes, inputs: Iterator[np.ndarray], folder: Path) -> bytes:
    """Return the ONNX as ONNX Runtime's quantize_static makes it with its defaults."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    source = onnx.load_model_from_string(model)
    name = source.graph.input[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(inputs, None)
            return None if image is None else {name: image}

    file = folder / "quantised.onnx"
    with _advice_left_out():
        quantize_static(source, file, Reader())
    made = file.read_bytes()
    file.unlink()
    return made


@contextlib.contextmanager
def _advice_left_out() -> Iterator[None]:
    """Keep quantize_static's advice to pre-process off stderr; whatever else it logs is shown.

    Its defaults are what is compared here, so the advice is not taken.
    """

    def is_no_advice(record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()

    logger = logging.getLogger()  # it has none of its own
    logger.addFilter(is_no_advice)
    try:
        yield
    finally:
        logger.removeFilter(is_no_advice)


def _int8_share(engine: str, model: bytes, folder: Path, threads: int) -> float:
    """Return the share of all MACs that the engine runs in INT8. Raises EngineError (E-AUDIT)."""
    import onnx

    from ...benchmarks.measure.complexity import macs_of_nodes
    from ...export.audit import achieved_in_onnxruntime, achieved_in_openvino

    if engine == "onnxruntime":
        return achieved_in_onnxruntime(model, threads).share("int8")
    # OpenVINO's audit knows convolutions; no other operator was given Q/DQ pairs, so none is INT8.
    kinds = {node.name: node.op_type for node in onnx.load_model_from_string(model).graph.node}
    costs = macs_of_nodes(model)
    convolutions = sum(macs for name, macs in costs if kinds[name].startswith("Conv"))
    files = _files_in(folder)
    achieved = achieved_in_openvino(
        files["model.xml"], files["model.bin"], threads, macs=convolutions
    )
    return achieved.macs.get("int8", 0) / sum(macs for _, macs in costs)
