"""Both errors over the threshold: lesions found and their Dice, marks on images without a lesion.

The free-response curve of Bunch et al. 1978, and what an operating point is chosen by. Masks are
those of the network's size, before they are interpolated, against the resized truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...runtime.contract import InputContract
from ...runtime.image import inset_of, resize_mask
from ...runtime.lesion import component_values
from ...runtime.progress import Progress, quiet
from ...runtime.session import Session
from ..formatting import fixed, percent, text_table
from .accuracy import CALIBRATION_BINS, Case, ImageScore, calibration_gaps, score_mask, truth_of

THRESHOLDS: Final = (*(round(0.05 * step, 2) for step in range(1, 20)), 0.97, 0.98, 0.99, 0.995)
FOUND_DICE: Final = 0.1  # a lesion with less is missed
ALL_SETS: Final = "all sets"
_SHOWN: Final = (0.1, 0.3, 0.5, 0.7, 0.9, 0.99)  # in a terminal


@dataclass(frozen=True)
class Parts:
    """The components of one image at one threshold, [K] each."""

    areas_px: npt.NDArray[np.int64]
    peaks: npt.NDArray[np.float32]  # highest logit
    hits_px: npt.NDArray[np.int64]  # pixels that are lesion


@dataclass(frozen=True)
class CaseParts:
    """One image at every threshold that was asked for."""

    source: str  # name of its data set; "" where it does not tell
    has_lesion: bool
    truth_px: int  # at the network's size, where a small lesion may vanish
    network_px: int  # of the frame in the network's input
    at: tuple[Parts, ...]


@dataclass(frozen=True)
class CurvePoint:
    """Both errors at one threshold; NaN without images to tell."""

    threshold: float  # probability
    dice: float  # mean over the images with a lesion, 0 where it is missed
    found_share: float  # of the images with a lesion: Dice of at least 0.1
    touched_share: float  # of the images with a lesion: any pixel of it
    missed: int  # images with a lesion: Dice below 0.1
    marks_per_normal: float  # components for each image without a lesion
    marked_share: float  # of the images without a lesion: any component


@dataclass(frozen=True)
class SetCurve:
    """The curve over the images of one data set."""

    name: str
    lesions: int  # images
    without_lesion: int  # images
    points: tuple[CurvePoint, ...]  # by threshold


@dataclass(frozen=True)
class Scored:
    """All that one pass over the images tells."""

    scores: tuple[ImageScore, ...]
    curves: tuple[SetCurve, ...]  # all sets first, then each if there are several
    calibration_error: float  # see `accuracy.calibration_error`
    calibrated_error: float  # the same of the logits divided by the temperature; NaN without one


def thresholds_for(contract: InputContract) -> tuple[float, ...]:
    """Return the thresholds of a curve, that of the contract among them."""
    return tuple(sorted({*THRESHOLDS, *contract.thresholds}))


def parts_of(
    logits: npt.NDArray[np.float32],
    truth: npt.NDArray[np.bool_],
    thresholds: Sequence[float],
    source: str = "",
) -> CaseParts:
    """Return the components of one image at some thresholds.

    Args:
        logits: [h, w].
        truth: bool [H, W], in the frame's own geometry.
        thresholds: probabilities.
        source: name of the image's data set.
    """
    small = resize_mask(truth, *logits.shape)
    at = []
    for threshold in thresholds:
        above = logits > replace(InputContract(), threshold=threshold).logit_threshold
        at.append(Parts(*component_values(above, logits, small)))
    truth_px = int(np.count_nonzero(small))
    return CaseParts(source, bool(truth.any()), truth_px, logits.size, tuple(at))


def curves_of(cases: Sequence[CaseParts], contract: InputContract) -> tuple[SetCurve, ...]:
    """Return the curve over all images, then over each data set if there are several.

    Args:
        cases: with the parts at `thresholds_for` the contract.
        contract: gives the least lesion; a threshold above its `least_peak` is the stricter.
    """
    sources = sorted({case.source for case in cases})
    groups = {ALL_SETS: list(cases)}
    if len(sources) > 1:
        groups |= {name: [case for case in cases if case.source == name] for name in sources}
    thresholds = thresholds_for(contract)
    return tuple(
        SetCurve(
            name=name,
            lesions=sum(case.has_lesion for case in members),
            without_lesion=sum(not case.has_lesion for case in members),
            points=tuple(
                _point(threshold, [(case, case.at[index]) for case in members], contract)
                for index, threshold in enumerate(thresholds)
            ),
        )
        for name, members in groups.items()
    )


def _point(
    threshold: float, cases: Sequence[tuple[CaseParts, Parts]], contract: InputContract
) -> CurvePoint:
    dice, touched, marks = [], [], []
    for case, parts in cases:
        kept = parts.areas_px >= math.ceil(contract.least_areas[0] * case.network_px)
        kept &= parts.peaks >= np.float32(contract.least_logit)
        if case.has_lesion:
            hits = int(parts.hits_px[kept].sum())
            dice.append(float(dice_of(hits, int(parts.areas_px[kept].sum()), case.truth_px)))
            touched.append(hits > 0)
        else:
            marks.append(int(np.count_nonzero(kept)))
    found = [each >= FOUND_DICE for each in dice]
    return CurvePoint(
        threshold=threshold,
        dice=_mean(dice),
        found_share=_mean(found),
        touched_share=_mean(touched),
        missed=len(found) - sum(found),
        marks_per_normal=_mean(marks),
        marked_share=_mean([each > 0 for each in marks]),
    )


def dice_of(hits_px: Any, marked_px: Any, truth_px: int) -> Any:
    """Return Dice of an image with a lesion, of numbers or of arrays.

    It is 0 too where nothing is marked and the truth vanished at the network's size.
    """
    return 2 * hits_px / np.maximum(1, marked_px + truth_px)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def score_with_curves(
    session: Session,
    cases: Sequence[Case],
    *,
    temperature: float | None = None,
    progress: Progress = quiet,
) -> Scored:
    """Score every case and count what the curves need, in one pass.

    Curves and calibration are of one probability a pixel: of several classes there are none.

    Args:
        session: its masks are scored as they are, its logits at every threshold.
        cases: at least one; a case with a `source` belongs to the data set of that name.
        temperature: that was fitted elsewhere, > 0.
        progress: wraps the loop.

    Raises what `score_images` raises.
    """
    contract = session.contract
    several = len(contract.classes) > 1
    thresholds = () if several else thresholds_for(contract)
    scores: list[ImageScore] = []
    parts = []
    plain, scaled = np.zeros(CALIBRATION_BINS), np.zeros(CALIBRATION_BINS)
    for case in progress(cases, "accuracy", len(cases)):
        frame = case.read_image(colour=contract.takes_colour)
        logits = session.logits(frame)
        mask = session.read_out(logits, frame.shape)
        truth = truth_of(case, contract)
        scores.append(score_mask(case, mask, truth, contract))
        if several:
            continue
        logits = logits[inset_of(contract, *frame.shape[:2]).box]
        parts.append(parts_of(logits, truth, thresholds, getattr(case, "source", "")))
        small = resize_mask(truth, *logits.shape)
        plain += calibration_gaps(logits, small)
        if temperature is not None:
            scaled += calibration_gaps(logits, small, temperature)
    if several:
        return Scored(tuple(scores), (), math.nan, math.nan)
    return Scored(
        scores=tuple(scores),
        curves=curves_of(parts, contract),
        calibration_error=float(np.abs(plain).sum() / len(cases)),
        calibrated_error=math.nan
        if temperature is None
        else float(np.abs(scaled).sum() / len(cases)),
    )


def render_curves(curves: Sequence[SetCurve], contract: InputContract) -> str:
    """Return some points of each curve as a terminal table, that of the contract with a star."""
    header = ["set", "threshold", "lesions found", "missed", "Dice", "marks per normal", "marked"]
    rows = [
        [
            curve.name if index == 0 else "",
            f"{point.threshold:g}{'*' if point.threshold == contract.thresholds[0] else ''}",
            percent(point.found_share),
            str(point.missed),
            fixed(point.dice),
            fixed(point.marks_per_normal, 2),
            percent(point.marked_share),
        ]
        for curve in curves
        for index, point in enumerate(
            each for each in curve.points if each.threshold in (*_SHOWN, contract.thresholds[0])
        )
    ]
    told = f", {contract.least_text}" if contract.drops else ""
    return (
        f"{text_table(header, rows)}\n"
        f"* the contract's{told}. A lesion is found with a Dice of at least {FOUND_DICE:g}; at the "
        "network's size."
    )
