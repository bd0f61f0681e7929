"""The record of a calibration: ranges, and from which network and frames they come.

A record is used again only for the network and contract that it was made with (see
docs/formats.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

import numpy as np
import onnx

from ..runtime.contract import InputContract
from ..runtime.errors import MALFORMED, InputError, Refused
from ..runtime.image import input_from_frame
from ..runtime.paths import takes_paths
from ..runtime.progress import Progress, quiet
from .graph import activations_of, measured_of
from .ranges import METHODS, measure_ranges

SCHEMA = "edgeseg.calibration/1"
FILE = "calibration.json"  # in a bundle
# On BUSI its worst upper end of the drop's interval is the best of the four (docs/quantisation.md).
METHOD = "entropy"
_MAX_BYTES = 4 << 20
_SMALLEST = float(np.finfo(np.float32).tiny)  # of a range


@dataclass(frozen=True)
class FramesOnDisk(Sequence[np.ndarray]):
    """Frames that are read when they are asked for: memory does not grow with their number."""

    paths: tuple[Path, ...]
    read: Callable[[Path], np.ndarray]  # to uint8 [H, W]

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> FramesOnDisk: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | FramesOnDisk:
        if isinstance(index, slice):
            return FramesOnDisk(self.paths[index], self.read)
        return self.read(self.paths[index])


@dataclass(frozen=True)
class CalibrationSet:
    """Frames of the training part whose ranges an INT8 model takes."""

    frames: Sequence[np.ndarray]  # uint8 [H, W] each
    sha256: tuple[str, ...]  # of the image files
    origin: Mapping[str, Any]  # goes into the record; "source" tells where the images come from


@dataclass(frozen=True)
class Calibration:
    """Ranges of one network under one contract."""

    checkpoint_sha256: str
    contract: InputContract
    frames_sha256: tuple[str, ...]
    origin: Mapping[str, Any]
    amax: Mapping[str, Mapping[str, float]]  # method -> tensor -> largest representable |x|
    largest: Mapping[str, float]  # tensor -> largest |x| that was met

    def to_json(self) -> str:
        """Return the record as JSON text: same content, same bytes."""
        content = {
            "schema": SCHEMA,
            "checkpoint_sha256": self.checkpoint_sha256,
            "contract": self.contract.to_dict(),
            "frames_sha256": list(self.frames_sha256),
            "origin": dict(self.origin),
            "amax": {method: dict(ranges) for method, ranges in self.amax.items()},
            "largest": dict(self.largest),
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"


def calibrate(
    checkpoint_sha256: str,
    contract: InputContract,
    master: bytes,
    images: CalibrationSet,
    *,
    progress: Progress = quiet,
) -> Calibration:
    """Run the frames through the network and gather the ranges by every method.

    Args:
        checkpoint_sha256: of the network.
        contract: how frames become inputs.
        master: the network as FP32 ONNX.
        images: at least one frame.
        progress: wraps the frames.

    Raises InputError (E-CALIB-EMPTY), Refused (E-CALIB-RANGE), see `measure_ranges`.
    """
    inputs = (input_from_frame(frame, contract) for frame in images.frames)
    ranges = measure_ranges(master, progress(inputs, "calibrating", len(images.frames)))
    return Calibration(
        checkpoint_sha256,
        contract,
        images.sha256,
        images.origin,
        MappingProxyType({method: ranges.amax(method) for method in METHODS}),
        ranges.largest,
    )


@takes_paths
def read_calibration(
    file: Path, checkpoint_sha256: str, contract: InputContract, master: bytes
) -> Calibration:
    """Read a record and make sure that it is of this network.

    Raises:
        InputError: E-CALIB-EMPTY (of no frame), those of `parse_calibration`.
        Refused: E-CALIB-KEY (of another network or contract), E-CALIB-RANGE (a range is missing,
            not finite or not above 0).
    """
    found = parse_calibration(file)
    if not found.frames_sha256:
        raise InputError("E-CALIB-EMPTY", f"{file} was made from no frame; calibrate with --calib")
    for what, theirs, ours in (
        ("checkpoint", found.checkpoint_sha256, checkpoint_sha256),
        ("input contract", found.contract, contract),
    ):
        if theirs != ours:
            raise Refused(
                "E-CALIB-KEY",
                f"{file} was made with another {what} ({theirs} against {ours}); calibrate again",
            )
    graph = onnx.load_model_from_string(master).graph
    measured, every = measured_of(graph), activations_of(graph)
    tables = [(method, found.amax.get(method, {}), measured) for method in METHODS]
    for what, ranges, wanted in (*tables, ("largest", found.largest, every)):
        for name in wanted:
            value = ranges.get(name, float("nan"))
            if not (np.isfinite(value) and value >= (0 if what == "largest" else _SMALLEST)):
                raise Refused(
                    "E-CALIB-RANGE",
                    f"{file} has the range {value} of {name} under {what}; calibrate again",
                )
    # Nothing that was not checked goes into a bundle.
    kept = {
        method: {name: value for name, value in ranges.items() if name in measured}
        for method, ranges in found.amax.items()
        if method in METHODS
    }
    largest = {name: value for name, value in found.largest.items() if name in every}
    return replace(found, amax=kept, largest=largest)


@takes_paths
def parse_calibration(file: Path) -> Calibration:
    """Read a record, whatever network it is of.

    Raises InputError: E-CALIB-READ (missing, too large, malformed).
    """
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES} bytes")
        content = json.loads(file.read_bytes())
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']!r}, this tool reads {SCHEMA!r}")
        json.dumps(content["origin"], allow_nan=False)  # goes into a manifest as it is
        return Calibration(
            str(content["checkpoint_sha256"]),
            InputContract.from_dict(content["contract"]),
            tuple(map(str, content["frames_sha256"])),
            dict(content["origin"]),
            {
                str(method): {str(name): float(value) for name, value in ranges.items()}
                for method, ranges in content["amax"].items()
            },
            {str(name): float(value) for name, value in content["largest"].items()},
        )
    except OSError as error:
        raise InputError(
            "E-CALIB-READ", f"cannot read {file}: {error.strerror}; calibrate with --calib"
        ) from error
    except MALFORMED as error:
        raise InputError(
            "E-CALIB-READ", f"{file} is no calibration record ({error}); calibrate with --calib"
        ) from error
