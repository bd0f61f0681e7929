"""From a trained network to a proven bundle: convert, compare on real frames, seal."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..benchmarks.complexity import count_complexity
from ..runtime.bundle import SPLIT_FILE, open_bundle, seal_bundle
from ..runtime.contract import InputContract
from ..runtime.engines import Engine, available_threads, open_engine
from ..runtime.errors import InputError, Refused
from ..runtime.files import atomic_folder, sha256_of_file
from ..runtime.image import input_from_frame
from ..runtime.progress import Progress, quiet
from .parity import (
    CheckFrame,
    Hop,
    Reference,
    check_hop,
    reference_of,
    require_accuracy,
    require_parity,
)
from .target import Target, find_target

if TYPE_CHECKING:
    from torch import nn

_KIT = Path(__file__).parent / "kit"
_SPARE_BYTES = 1 << 20  # less free space than this is a full disk
RUN_SPLIT: Mapping[str, Any] = MappingProxyType({"source": "split of the run"})
_TOOLS = ("torch", "onnx", "onnxruntime", "openvino", "nncf", "numpy", "pillow")


@dataclass(frozen=True)
class TrainedNetwork:
    """What is exported: a network, its contract, and where it comes from."""

    name: str
    network: nn.Module
    contract: InputContract
    sha256: str  # of the checkpoint
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class CalibrationSet:
    """Frames of the training part whose ranges an INT8 model takes."""

    frames: tuple[np.ndarray, ...]  # uint8 [H, W] each
    sha256: tuple[str, ...]  # of the image files
    origin: Mapping[str, Any]  # goes into the manifest; "source" tells where the images come from


@dataclass(frozen=True)
class Exported:
    """A written bundle and how it compares with the trained network."""

    path: Path
    hops: tuple[Hop, ...]
    trained_dice: float  # mean on the check frames with a lesion


def read_calibration(
    images: Sequence[Path],
    count: int,
    read: Callable[[Path], np.ndarray],
    seed: int = 0,
    *,
    origin: Mapping[str, Any] = RUN_SPLIT,
) -> CalibrationSet:
    """Read `count` frames drawn by seed, or all when there are fewer; labels are not looked at.

    Args:
        images: files of the training part only.
        count: frames wanted, >= 1.
        read: from a path to uint8 [H, W].
        seed: of the draw.
        origin: where the images come from; the default is the training run's own split.
    """
    order = np.random.default_rng(seed).permutation(len(images))[:count]
    chosen = [images[index] for index in sorted(order)]
    return CalibrationSet(
        tuple(read(path) for path in chosen),
        tuple(sha256_of_file(path) for path in chosen),
        origin,
    )


def load_trained(checkpoint: Path) -> TrainedNetwork:
    """Read a checkpoint; see `edgeseg.kd.checkpoint.load_checkpoint` for the errors."""
    from ..kd.checkpoint import load_checkpoint  # the one use of kd here: checkpoint to module

    loaded = load_checkpoint(checkpoint)
    return TrainedNetwork(
        loaded.model, loaded.network, loaded.contract, loaded.sha256, loaded.provenance
    )


def export_bundle(
    trained: TrainedNetwork,
    target_name: str,
    precision: str,
    out: Path,
    *,
    calibration: CalibrationSet | None,
    checks: Sequence[CheckFrame],
    checks_are: str = "val",
    split: Path | None,
    trained_on: Collection[str] = (),
    max_drop: float = 0.005,
    progress: Progress = quiet,
) -> Exported:
    """Write one bundle for one target at one precision, or nothing.

    Every model file is run in its own engine on the check frames and compared with the trained
    network before the bundle gets its name.

    Args:
        trained: what to export.
        target_name: key in `TARGETS`.
        precision: "fp32", "fp16" or "int8".
        out: folder of the bundle; must not exist.
        calibration: needed for "int8", unused otherwise.
        checks: frames of the validation part with their truth.
        checks_are: what they are, for the manifest; "val" is that part of `split`.
        split: the split file of the training run; it goes into the bundle. None for a shipped
            student, which has none.
        trained_on: SHA-256 of every image that a shipped student has seen; goes into the manifest.
        max_drop: largest accepted loss of mean Dice against the trained network.
        progress: shows how far each comparison has come.

    Raises:
        InputError: E-TARGET-NAME, E-OUT-EXISTS, E-CALIB-MISSING, E-PARITY-FRAMES.
        Refused: E-TARGET-PRECISION, E-PARITY, E-ACCURACY, E-PRECISION-FALLBACK (INT8 was asked for
            and no convolution runs in it).
        EngineError: E-EXTRA-MISSING.
        OutputError: E-OUT-WRITE.
    """
    target = find_target(target_name, precision)
    if precision == "int8" and calibration is None:
        raise InputError("E-CALIB-MISSING", "int8 needs calibration images; name them with --calib")
    with atomic_folder(out) as folder:
        if split is not None:
            shutil.copyfile(split, folder / SPLIT_FILE)
        reference = reference_of(
            _run_of(trained.network), trained.contract, checks, progress=progress
        )
        hops, fields = _fill(folder, trained, target, precision, calibration, reference, progress)
        for hop in hops:
            require_parity(hop, "fp32" if hop is hops[0] else precision)
            require_accuracy(hop, max_drop)
        provenance = {
            "checkpoint_sha256": trained.sha256,
            "training": dict(trained.provenance),
            **({"split_sha256": sha256_of_file(split)} if split is not None else {}),
            **({"trained_on": sorted(trained_on)} if trained_on else {}),
            "calibration": _calibration_facts(target, precision, calibration),
            "tools": {"edgeseg": __version__, **_versions()},
        }
        evidence = {
            "part": checks_are,
            "max_drop": max_drop,
            "frames": len(checks),
            "trained_dice": reference.mean_dice,
            "parity": [hop.to_dict() for hop in hops],
        }
        seal_bundle(
            folder,
            {
                "name": trained.name,
                "target": target.name,
                "precision": precision,
                "contract": trained.contract,
                "provenance": provenance,
                "evidence": evidence,
                **fields,
            },
        )
        open_bundle(folder)  # what is kept can be opened
    return Exported(out, hops, reference.mean_dice)


def _fill(
    folder: Path,
    trained: TrainedNetwork,
    target: Target,
    precision: str,
    calibration: CalibrationSet | None,
    reference: Reference,
    progress: Progress,
) -> tuple[tuple[Hop, ...], dict[str, Any]]:
    """Write the model files; return the hops (ONNX FP32 first, then each engine) and facts."""
    from .to_onnx import onnx_from_network

    contract = trained.contract
    master = onnx_from_network(trained.network, contract)
    threads = available_threads()
    first = open_engine("onnxruntime", {"model.onnx": master}, threads)
    hops = [check_hop("onnxruntime fp32", first.run, reference, progress=progress)]
    frames = calibration.frames if calibration is not None and precision == "int8" else ()
    images = _CalibrationInputs(
        tuple(input_from_frame(frame, contract) for frame in frames), progress
    )
    models: dict[str, tuple[str, ...]] = {}
    for name in progress(target.engines[precision], f"converting to {precision}"):
        files = _convert(name, master, folder, precision, images, target.weight_bits)
        models[name] = files
        if name == "onnxruntime" and precision == "fp32":
            continue  # the master itself, checked above
        content = {file: (folder / file).read_bytes() for file in files}
        engine = open_engine(name, content, threads)
        if precision == "int8":
            _require_int8(name, engine, content)
        hops.append(check_hop(f"{name} {precision}", engine.run, reference, progress=progress))
    if target.kit:
        shutil.copyfile(_KIT / "build_engine.py", folder / "build_engine.py")
    complexity = count_complexity(master)
    facts = {
        "parameters": complexity.parameters,
        "macs": complexity.macs,
        "weights_bytes": {name: _weights_bytes(folder, files) for name, files in models.items()},
    }
    return tuple(hops), {"models": models, "complexity": facts}


def _require_int8(name: str, engine: Engine, content: Mapping[str, bytes]) -> None:
    """Refuse files that carry the name of INT8 without its arithmetic."""
    executed = engine.facts.get("convolutions", "")  # what OpenVINO says it runs
    typed = any(kind in executed for kind in ("i8 ", "u8 "))
    quantised = any(b"QuantizeLinear" in data for data in content.values())
    if not (typed or (not executed and quantised)):
        raise Refused(
            "E-PRECISION-FALLBACK",
            f"int8 was asked for, but {name} runs no convolution in it ({executed or 'no Q/DQ'}); "
            "export fp16 or fp32",
        )


@dataclass(frozen=True)
class _CalibrationInputs:
    """Calibration inputs, float32 [1, 1, H, W] each, that show how far a pass over them is."""

    images: tuple[np.ndarray, ...]
    progress: Progress

    def __len__(self) -> int:
        return len(self.images)

    def __contains__(self, image: object) -> bool:
        return any(image is each for each in self.images)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.progress(self.images, "calibrating")


def _weights_bytes(folder: Path, files: Sequence[str]) -> int:
    """Return the size of the weights as stored: OpenVINO's own file of them, or those in ONNX."""
    for file in files:
        if file.endswith(".bin"):
            return (folder / file).stat().st_size
    return count_complexity((folder / files[0]).read_bytes()).weights_bytes


def _convert(
    engine: str,
    master: bytes,
    folder: Path,
    precision: str,
    images: Collection[np.ndarray],
    weight_bits: int,
) -> tuple[str, ...]:
    """Run one converter; a full disk gets its own error."""
    try:
        return _CONVERTERS[engine](master, folder, precision, images, weight_bits)
    except RuntimeError as error:  # what OpenVINO raises for a write that failed
        if shutil.disk_usage(folder).free < _SPARE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def _calibration_facts(
    target: Target, precision: str, calibration: CalibrationSet | None
) -> dict[str, Any] | None:
    if precision != "int8" or calibration is None:
        return None
    return {
        **calibration.origin,
        "part": "train",
        "method": {"openvino": "nncf mean min-max", "onnxruntime": "min-max"},
        "weight_bits": {"openvino": 8, "onnxruntime": target.weight_bits},
        "frames_sha256": list(calibration.sha256),
    }


def _versions() -> dict[str, str]:
    found = {
        each.metadata["Name"].lower(): each.version for each in importlib.metadata.distributions()
    }
    return {name: found[name] for name in _TOOLS if name in found}


def _to_openvino(
    master: bytes,
    folder: Path,
    precision: str,
    images: Collection[np.ndarray],
    weight_bits: int,  # its kernels do not saturate
) -> tuple[str, ...]:
    from .to_openvino import openvino_from_onnx

    return openvino_from_onnx(master, folder, precision=precision, images=images)


def _to_onnx_file(
    master: bytes,
    folder: Path,
    precision: str,
    images: Collection[np.ndarray],
    weight_bits: int,
) -> tuple[str, ...]:
    from .quantize import fp16_from_onnx, qdq_from_onnx

    content = master
    if precision == "fp16":
        content = fp16_from_onnx(master)
    elif precision == "int8":
        content = qdq_from_onnx(master, images, weight_bits=weight_bits)
    (folder / "model.onnx").write_bytes(content)
    return ("model.onnx",)


_Converter = Callable[[bytes, Path, str, Collection[np.ndarray], int], tuple[str, ...]]

# To add a format: a function (master ONNX, folder, precision, calibration inputs, bits of INT8
# weights) -> file names.
_CONVERTERS: Mapping[str, _Converter] = {
    "openvino": _to_openvino,
    "onnxruntime": _to_onnx_file,
}


def _run_of(network: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    def run(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = network(torch.from_numpy(image)).numpy()
        return logits

    return run
