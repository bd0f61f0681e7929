"""Giving a trained network its operating point, chosen on images that it has not learnt from."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...benchmarks.formatting import fixed, percent, text_table
from ...benchmarks.jsonform import json_from_value
from ...benchmarks.measure.accuracy import CALIBRATION_BINS, calibration_gaps
from ...benchmarks.measure.froc import ALL_SETS, FOUND_DICE, parts_of, thresholds_for
from ...benchmarks.measure.operating_point import PointScore, choose_point
from ...benchmarks.measure.temperature import fit_temperature
from ...kd.checkpoint import OPERATING_POINT, Checkpoint, load_checkpoint, save_checkpoint
from ...kd.config import with_later
from ...kd.start import START
from ...runtime.contract import InputContract
from ...runtime.errors import InputError
from ...runtime.files import require_new
from ...runtime.image import mask_from_logits, resize_mask
from ...runtime.metrics import count_pixels, dice_score
from ...runtime.progress import Progress, quiet

if TYPE_CHECKING:
    from ...kd.data.dataset import Sample
    from ...runtime.session import Session
    from .sources import CheckpointSource

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class SetEvidence:
    """What the operating point does to images of a data set, in the frames' own size."""

    name: str
    images: int
    lesions: int
    without_lesion: int
    before: PointScore
    after: PointScore


@dataclass(frozen=True)
class Tuned:
    """A checkpoint that was written, and why it has the operating point that it has."""

    checkpoint: Path
    contract: InputContract
    evidence: dict[str, Any]  # as in its provenance


def tune(
    source: CheckpointSource,
    data: Sequence[Path],
    *,
    max_false_marks: float,
    name: str,
    folds: Sequence[CheckpointSource] = (),
    progress: Progress = quiet,
) -> Tuned:
    """Choose the operating point of a run's network and write a new checkpoint beside it.

    It is chosen on the val part of the run, or on what networks that were trained alike on other
    folds say of their test parts: of more images, none of which the network that answers has seen.

    The weights stay what they are, and so does the checkpoint that they are taken from. A
    temperature is fitted too; it changes no mask, so only the evidence holds it.

    Args:
        source: a checkpoint of a run with its split.
        data: roots of the data sets of the run.
        max_false_marks: largest share of the images without a lesion that may be marked.
        name: of the new file, without its suffix.
        folds: runs of the same network and input on other folds of the data sets, whose test parts
            take the place of the val part, less the groups of images of this run's own test part.
        progress: wraps the loops.

    Raises:
        InputError: E-TUNE-SOURCE (a shipped student; a fold that is one, or of another network or
            input), E-TUNE-FOLDS (a fold adds no image, or an image is in the test parts of two),
            E-TUNE-NAME, E-OUT-EXISTS, E-TUNE-IMAGES, E-SPLIT-MISSING, those of `load_checkpoint`
            and `read_datasets`.
        Refused: E-TUNE-LIMIT, E-SPLIT-HASH.
        OutputError: E-OUT-WRITE.
    """
    out = _new_file(source, name)
    loaded = load_checkpoint(source.path)
    facts = [_facts_of_fold(loaded, source, fold) for fold in folds]
    asked = [
        (session, case) for session, samples in _unseen(source, folds, data) for case in samples
    ]
    cases = [case for _, case in asked]
    answers: list[npt.NDArray[np.float32]] = []
    truths = []
    parts = []
    thresholds = thresholds_for(loaded.contract)
    shown = progress(asked, "folds" if folds else "val part", len(asked))
    for session, case in shown:
        frame, truth = case.read_both()
        answers.append(session.logits(frame))
        truths.append(resize_mask(truth, *answers[-1].shape))
        parts.append(parts_of(answers[-1], truth, thresholds, case.source))
    choice = choose_point(parts, loaded.contract, max_false_marks)
    temperature = fit_temperature(zip(answers, truths, strict=True))
    threshold = choice.contract.logit_threshold / temperature
    evidence = {
        **({"part": "test parts of folds", "folds": facts} if folds else {"part": "val"}),
        "checkpoint_sha256": loaded.sha256,
        "max_false_marks": max_false_marks,
        "tried": choice.tried,
        "before": _point_of(loaded.contract),
        "after": _point_of(choice.contract),
        "sets": json_from_value(
            _evidence_of(cases, answers, (loaded.contract, choice.contract), progress)
        ),
        "temperature": temperature,
        "calibrated_threshold": 1 / (1 + math.exp(-threshold)),
        "calibration_error": {
            "before": _calibration_error(answers, truths, 1.0),
            "after": _calibration_error(answers, truths, temperature),
        },
    }
    return _write(out, loaded, choice.contract, evidence)


def take_point(source: CheckpointSource, other: CheckpointSource, *, name: str) -> Tuned:
    """Write a new checkpoint of a run with the operating point of another of the same network.

    For weights that were trained on every image, which leaves no val part to choose on.

    Raises:
        InputError: E-TUNE-SOURCE (a shipped student; the other has no operating point, or is of
            another network or input), E-TUNE-NAME, E-OUT-EXISTS, those of `load_checkpoint`.
        OutputError: E-OUT-WRITE.
    """
    out = _new_file(source, name)
    loaded, tuned = load_checkpoint(source.path), load_checkpoint(other.path)
    evidence = tuned.provenance.get(OPERATING_POINT)
    if not isinstance(evidence, dict):
        raise InputError(
            "E-TUNE-SOURCE",
            f"{other.path} has no operating point that was chosen; make it with `edgeseg tune`",
        )
    contract = replace(
        loaded.contract,
        threshold=tuned.contract.threshold,
        least_area=tuned.contract.least_area,
        least_peak=tuned.contract.least_peak,
    )
    if (loaded.model, contract) != (tuned.model, tuned.contract):
        raise _other(source, loaded, other, tuned, "an operating point holds for one")
    return _write(out, loaded, contract, {**evidence, "taken_from": tuned.sha256})


def temperature_in(training: Any) -> float | None:
    """Return the temperature in a checkpoint's provenance; None where none was fitted."""
    point = training.get(OPERATING_POINT) if isinstance(training, dict) else None
    found = point.get("temperature") if isinstance(point, dict) else None
    return found if isinstance(found, float) and 0 < found < math.inf else None


def render_tuned(tuned: Tuned) -> str:
    """Return what was chosen and what it does as text for a terminal."""
    facts = tuned.evidence
    header = ["set", "images", "", "Dice", "missed", "marked without lesion"]
    rows = [
        [
            each["name"] if when == "before" else "",
            str(each["images"]) if when == "before" else "",
            when,
            fixed(_number(each[when]["dice"])),
            f"{each[when]['missed']} of {each['lesions']}",
            f"{percent(_number(each[when]['marked_share']))} of {each['without_lesion']}",
        ]
        for each in facts["sets"]
        for when in ("before", "after")
    ]
    errors = facts["calibration_error"]
    contract = tuned.contract
    return (
        f"{text_table(header, rows)}\n"
        f"lesion where the probability is above {contract.threshold:g}"
        f"{', ' + contract.least_text if contract.drops else ''}; chosen among {facts['tried']} "
        f"points on the {'test parts of the folds' if 'folds' in facts else 'val part'}\n"
        f"temperature {facts['temperature']:.3f}: calibration error {fixed(errors['before'], 4)} "
        f"before, {fixed(errors['after'], 4)} after; it changes no mask\n"
        f"checkpoint: {tuned.checkpoint}"
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _new_file(source: CheckpointSource, name: str) -> Path:
    if source.trained_on() is not None:
        raise InputError(
            "E-TUNE-SOURCE",
            f"{source.path} is no checkpoint of a run; name a run of `edgeseg train`",
        )
    if not _NAME.fullmatch(name):
        raise InputError(
            "E-TUNE-NAME",
            f"{name!r} is no plain name; take letters, digits, dots, dashes and underscores",
        )
    out = source.path.parent / f"{name}.safetensors"
    require_new(out)
    return out


def _facts_of_fold(
    loaded: Checkpoint, source: CheckpointSource, fold: CheckpointSource
) -> dict[str, Any]:
    """Return a fold's checkpoint and how its training differed; refuse what is no fold of it."""
    if fold.trained_on() is not None:
        raise InputError(
            "E-TUNE-SOURCE",
            f"{fold.path} is no checkpoint of a run; name runs of `edgeseg train` on folds",
        )
    other = load_checkpoint(fold.path)
    if (other.model, _input_of(other)) != (loaded.model, _input_of(loaded)):
        raise _other(source, loaded, fold, other, "folds have its")
    theirs, ours = (
        known if isinstance(known := with_later(each.provenance.get("config")), dict) else {}
        for each in (other, loaded)
    )
    settings = {name: value for name, value in theirs.items() if ours.get(name) != value}
    start = other.provenance.get(START)
    return {
        "checkpoint_sha256": other.sha256,
        "settings": settings,
        **({"start": start.get("sha256")} if isinstance(start, dict) else {}),
    }


def _input_of(loaded: Checkpoint) -> InputContract:
    """Return a contract without its operating point."""
    return replace(loaded.contract, threshold=0.5, least_area=0.0, least_peak=0.0)


def _other(
    source: CheckpointSource,
    ours: Checkpoint,
    other: CheckpointSource,
    theirs: Checkpoint,
    why: str,
) -> InputError:
    return InputError(
        "E-TUNE-SOURCE",
        f"{other.path} is {theirs.model} for {theirs.contract}, {source.path} is {ours.model} for "
        f"{ours.contract}; {why} network and input",
    )


def _unseen(
    source: CheckpointSource, folds: Sequence[CheckpointSource], data: Sequence[Path]
) -> list[tuple[Session, tuple[Sample, ...]]]:
    """Return networks, each with images that it was not trained on."""
    from ...kd.data.dataset import read_datasets
    from ...kd.data.split import read_split, samples_of

    dataset = read_datasets(data)
    own = read_split(source.split_file())
    if not folds:
        return [(source.open(None, 0), samples_of(own, dataset, "val"))]
    held_out = own.hashes_of("test")
    asked_of: dict[str, Path] = {}
    found = []
    for fold in folds:
        split = read_split(fold.split_file())
        tested = [each for each in split.entries if each.part == "test"]
        for each in tested:
            if each.image_sha256 in asked_of:
                raise InputError(
                    "E-TUNE-FOLDS",
                    f"{each.name} is in the test parts of {asked_of[each.image_sha256]} and "
                    f"{fold.path}; name runs of the folds that one `edgeseg data split --folds` "
                    "made, each once",
                )
        asked_of |= {each.image_sha256: fold.path for each in tested}
        groups = {each.group for each in split.entries if each.image_sha256 in held_out}
        kept = {each.name for each in tested if each.group not in groups}
        if not kept:
            raise InputError(
                "E-TUNE-FOLDS",
                f"the test part of {fold.path} has no image that is not in the test part of "
                f"{source.path}; name a run on another fold",
            )
        cases = samples_of(split, dataset, "test")
        found.append((fold.open(None, 0), tuple(case for case in cases if case.name in kept)))
    return found


def _point_of(contract: InputContract) -> dict[str, float]:
    return {
        "threshold": contract.thresholds[0],
        "least_area": contract.least_areas[0],
        "least_peak": contract.least_peaks[0],
    }


def _evidence_of(
    cases: Sequence[Sample],
    answers: Sequence[npt.NDArray[np.float32]],
    contracts: tuple[InputContract, InputContract],
    progress: Progress,
) -> tuple[SetEvidence, ...]:
    """Score both operating points as `evaluate` does, over all images and by data set."""
    rows = []
    for case, logits in progress(list(zip(cases, answers, strict=True)), "before and after"):
        truth = case.read_mask()
        masks = [mask_from_logits(logits, each, *truth.shape) for each in contracts]
        scores = [
            dice_score(count_pixels(mask, truth)) if truth.any() else float(mask.any())
            for mask in masks
        ]
        rows.append((case.source, bool(truth.any()), scores))
    sources = sorted({source for source, _, _ in rows})
    return tuple(
        SetEvidence(
            name=name or ALL_SETS,
            images=len(members),
            lesions=sum(lesion for _, lesion, _ in members),
            without_lesion=sum(not lesion for _, lesion, _ in members),
            before=_score_of(members, 0),
            after=_score_of(members, 1),
        )
        for name in ("", *(sources if len(sources) > 1 else ()))
        for members in [[row for row in rows if name in ("", row[0])]]
    )


def _score_of(rows: Sequence[tuple[str, bool, list[float]]], index: int) -> PointScore:
    dice = [scores[index] for _, lesion, scores in rows if lesion]
    marked = [scores[index] for _, lesion, scores in rows if not lesion]
    return PointScore(
        dice=float(np.mean(dice)) if dice else math.nan,
        missed=sum(each < FOUND_DICE for each in dice),
        marked_share=float(np.mean(marked)) if marked else math.nan,
    )


def _calibration_error(
    answers: Sequence[npt.NDArray[np.float32]],
    truths: Sequence[npt.NDArray[np.bool_]],
    temperature: float,
) -> float:
    gaps = np.zeros(CALIBRATION_BINS)
    for logits, truth in zip(answers, truths, strict=True):
        gaps += calibration_gaps(logits, truth, temperature)
    return float(np.abs(gaps).sum() / len(answers))


def _write(
    out: Path, loaded: Checkpoint, contract: InputContract, evidence: dict[str, Any]
) -> Tuned:
    save_checkpoint(
        out,
        loaded.network,
        model=loaded.model,
        contract=contract,
        provenance={**loaded.provenance, OPERATING_POINT: evidence},
    )
    return Tuned(out, contract, evidence)
