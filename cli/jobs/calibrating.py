"""What an export is calibrated with, judged by and, for INT8 that fails, retrained on."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ...kd import zoo
from ...runtime.contract import InputContract
from ...runtime.errors import InputError, Refused
from ...runtime.progress import Progress, quiet
from . import phantoms
from .parts import Folders, Parts, check_frame, parts_of_split, reader_of, samples_for
from .sources import CheckpointSource, Exportable, OnnxSource

if TYPE_CHECKING:
    from ...export.calibration import CalibrationSet
    from ...export.pipeline import Frames, Retrain, Retrained
    from ...export.qdq import Rounding
    from ...kd.data.dataset import Dataset
    from ...kd.qat import TrainedRun

_OF_A_CHECKPOINT = InputContract()  # takes grey frames and has one class
_VECTORS = ("benign", "malignant", "normal")  # phantoms that are golden inputs
_PHANTOM_FRACTIONS = (0.6, 0.4, 0.0)  # no test part: a gate over few frames would be a coin toss


@dataclass(frozen=True)
class CalibrationRequest:
    """What the user wants INT8 ranges from; at most one of the first three."""

    # roots of data sets, none or more: their train part calibrates, their val part checks
    data: Folders = ()
    record: Path | None = None  # of an earlier calibration
    synthetic: bool = False  # phantoms
    images: int = 200  # most frames


def frames_for_export(
    source: Exportable,
    request: CalibrationRequest,
    contract: InputContract = _OF_A_CHECKPOINT,
    *,
    needs_ranges: bool = True,
    progress: Progress = quiet,
) -> tuple[Frames, str]:
    """Read what an export needs, and say in one line what that is.

    The train part of the data calibrates and the val part checks. A run comes with its split and
    needs its own data. For a shipped student any data are split leak-safe with seed 0; without
    data the ranges that ship with it calibrate and phantoms check. Golden vectors are phantoms
    always: no patient's image travels in a bundle.

    Args:
        source: a checkpoint.
        request: where ranges come from.
        contract: of the network: how its frames are read, and how its classes are numbered.
        needs_ranges: False leaves the calibration out.
        progress: wraps the long loops.

    Raises:
        InputError: E-CALIB-MISSING (a run without data, a shipped student without ranges),
            E-CALIB-CHOICE, those of `samples_for`.
        Refused: E-CALIB-TEST (a record has frames that are not of the train part),
            E-CALIB-SYNTHETIC (a record was made from phantoms), those of `ModelSource.split_file`.
    """
    from ...export.pipeline import Frames
    from ...kd.data.phantom import draw_phantom

    if request.synthetic and request.record is not None:
        raise InputError(
            "E-CALIB-CHOICE", "--ranges and --synthetic-calibration exclude each other; leave one"
        )
    calibrated = request.record is not None or request.synthetic
    if calibrated and isinstance(source, OnnxSource) and source.quantised:
        raise InputError(
            "E-CALIB-CHOICE",
            f"{source.path} brings its own INT8 pairs and is not calibrated again; leave --ranges "
            "and --synthetic-calibration out",
        )
    parts = source.parts(request.data, progress)
    with contextlib.ExitStack() as stack:
        drawn = None
        if parts is None or request.synthetic:
            drawn = _phantom_parts(
                stack.enter_context(phantoms.phantom_dataset(progress)), progress
            )
        judged = parts or drawn
        assert judged is not None  # one of the two is there
        samples = judged.samples("val")
        note = f"checked on the {judged.checks_are} ({len(samples)} images)"
        calibration: CalibrationSet | Path | None = None
        if needs_ranges:
            calibration, how = _calibration_for(source, request, contract, parts, drawn)
            note += f", {how}"
        checks = tuple(check_frame(each, contract) for each in samples)
    vectors = tuple(draw_phantom(label, 1, phantoms.SEED)[0] for label in _VECTORS)
    return Frames(calibration, checks, judged.checks_are, vectors), note


def retraining_of(source: Exportable, request: CalibrationRequest, epochs: int) -> Retrain:
    """Return the quantisation-aware training that an export of a run may need.

    Its train part is learnt from and its val part is scored; nothing is read before it is called.

    Args:
        source: the student of a run.
        request: names the data set of the run.
        epochs: >= 1.

    Raises:
        InputError: E-QAT-SOURCE (no run), E-QAT-DATA (no data), E-CALIB-CHOICE (an old record),
            those of `read_run`.
        Refused: those of `Exportable.trained_on` and `read_run`.
    """
    if not isinstance(source, CheckpointSource) or source.trained_on() is not None:
        raise InputError(
            "E-QAT-SOURCE",
            f"{source.path} is {source.what}, and --qat trains the student of a run on; name a run "
            "of `edgeseg train`, or leave --qat out",
        )
    if not request.data:
        raise InputError(
            "E-QAT-DATA",
            f"--qat trains {source.path} on; name the data set of its run with --calib",
        )
    if request.record is not None:
        raise InputError(
            "E-CALIB-CHOICE",
            "--qat measures the new network on the frames that calibrate; leave --ranges out",
        )
    from ...kd.qat import read_run

    return partial(_retrain, source, request.data, read_run(source.path), epochs)


def _retrain(
    source: CheckpointSource,
    data: Folders,
    run: TrainedRun,
    epochs: int,
    rounding: Rounding,
    progress: Progress,
) -> Retrained:
    from ...export.pipeline import Retrained, TrainedNetwork
    from ...export.to_onnx import module_of_node
    from ...kd.qat import Quantisation, fine_tune_quantised, load_parts

    quantisation = Quantisation(
        {module_of_node(name): bits for name, bits in rounding.convolutions.items()},
        rounding.image,
        {module_of_node(name): grid for name, grid in rounding.outputs.items()},
    )
    samples = {part: samples_for(source, data, part) for part in ("train", "val")}
    frames = load_parts(run, samples, progress)
    tuned = fine_tune_quantised(run, quantisation, frames, epochs=epochs, progress=progress)
    network = TrainedNetwork(
        tuned.model, tuned.network, tuned.contract, tuned.sha256, tuned.provenance
    )
    return Retrained(network, tuned.provenance["qat"])


def _phantom_parts(drawn: Dataset, progress: Progress) -> Parts:
    from ...kd.data.split import make_split

    return parts_of_split(
        make_split(drawn, seed=0, fractions=_PHANTOM_FRACTIONS, progress=progress),
        drawn,
        {"source": phantoms.NAMED, "seed": phantoms.SEED, "count": phantoms.COUNT, "part": "train"},
        f"val part of {phantoms.COUNT} phantoms, seed {phantoms.SEED}",
    )


def _calibration_for(
    source: Exportable,
    request: CalibrationRequest,
    contract: InputContract,
    parts: Parts | None,
    drawn: Parts | None,
) -> tuple[CalibrationSet | Path, str]:
    """Return frames or the record of an earlier calibration, and a few words on it."""
    from ...export.calibration import parse_calibration
    from ...export.pipeline import read_calibration_frames

    if request.record is not None:
        record = parse_calibration(request.record)
        if record.origin.get("source") == phantoms.NAMED:
            raise Refused(
                "E-CALIB-SYNTHETIC",
                f"{request.record} was made from phantoms; calibrate on real images with --calib, "
                "or say --synthetic-calibration in its place",
            )
        if parts is not None:
            parts.require_apart(request.record, record.frames_sha256)
        return request.record, f"calibrated with {request.record}"
    chosen = drawn if request.synthetic else parts
    if chosen is None:
        shipped = zoo.calibration_file(source.path)
        if not shipped.is_file():
            raise InputError(
                "E-CALIB-MISSING",
                f"{source.path} comes without ranges; name real images with --calib, or take "
                "phantoms with --synthetic-calibration",
            )
        return shipped, "calibrated with the ranges that ship with the student"
    samples = chosen.samples("train")
    frames = read_calibration_frames(
        [each.image for each in samples],
        request.images,
        reader_of(samples, contract),
        origin=chosen.origin,
        labels=[each.label for each in samples],
    )
    kind = "phantoms" if chosen is drawn else "images of the train part"
    if chosen is drawn:  # their files go before the export begins
        frames = replace(frames, frames=tuple(frames.frames))
    return frames, f"calibrated on {len(frames.frames)} {kind}"
