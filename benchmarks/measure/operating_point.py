"""Choosing the threshold and the least lesion of a network on both errors at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from ...runtime.contract import InputContract
from ...runtime.errors import InputError, Refused
from ..formatting import percent
from .froc import FOUND_DICE, CaseParts, Parts, dice_of, thresholds_for

LEAST_AREAS: Final = (0.0, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02)  # share of the frame
# Of the Dice at the network's own point: with less, next to nothing is marked anywhere, which
# reaches every limit and is of no use.
LEAST_DICE: Final = 0.5
# INT8 moves the highest logit of a lesion that is found with less than 5 by 0.05 at the median and
# by 0.25 in one of ten (both shipped students, 31 images). A lesion so near to the least peak may
# be lost with a change of precision; of more than so large a share of them no export passes.
_MARGIN, _NEAR_SHARE = 0.25, 0.002


@dataclass(frozen=True)
class PointScore:
    """Both errors at one operating point; NaN without images to tell."""

    dice: float  # mean over the images with a lesion
    missed: int  # images with a lesion: Dice below 0.1
    marked_share: float  # of the images without a lesion


@dataclass(frozen=True)
class Choice:
    """The operating point that was chosen, and among how many."""

    contract: InputContract
    tried: int  # points
    score: PointScore  # of the chosen one, at the network's size


@dataclass(frozen=True)
class _Point:
    contract: InputContract
    score: PointScore
    dice_of_each: npt.NDArray[np.float64]  # images with a lesion
    false_marks: int  # components that touch no lesion
    steady: bool  # few lesions are so near to the least peak that INT8 may drop them


def choose_point(cases: Sequence[CaseParts], contract: InputContract, max_marked: float) -> Choice:
    """Return the point of the highest Dice that marks few enough images without a lesion.

    Tried is each threshold of `thresholds_for` the contract with each of `LEAST_AREAS`, and no
    least peak or each threshold above its own. Points that the images cannot tell from the one of
    the highest Dice, its lead over them being at most one standard error of the paired differences,
    are as good as it (the rule of one standard error, Breiman et al. 1984, paired). Of these is
    taken what drops by area least, since what area drops are small lesions and few images tell
    what that costs; then what has no lesion within a quarter of a logit of its least peak, which
    another precision would drop; then what leaves fewest components that touch no lesion, in all
    images; then the highest Dice; then the least peak; then the threshold nearest to one half.

    Args:
        cases: images that the network has not learnt from, with their components at
            `thresholds_for` the contract.
        contract: of the network as it is.
        max_marked: largest share of the images without a lesion that may be marked, in [0, 1].

    Raises:
        InputError: E-TUNE-IMAGES, where images with or without a lesion are missing.
        Refused: E-TUNE-LIMIT, where no point that keeps half of the Dice marks as few; it names
            the nearest.
    """
    lesions = [case for case in cases if case.has_lesion]
    normals = [case for case in cases if not case.has_lesion]
    if not lesions or not normals:
        missing = "with" if not lesions else "without"
        raise InputError(
            "E-TUNE-IMAGES",
            f"there is no image {missing} a lesion to choose on, and an operating point weighs "
            "both errors; name a data set more, split with more in the val part, or choose on "
            "folds (--fold)",
        )
    thresholds = thresholds_for(contract)
    found: list[_Point] = []
    own = math.nan
    for index, threshold in enumerate(thresholds):
        peaks = (0.0, *(each for each in thresholds if each > threshold))
        grid = [
            [replace(contract, threshold=threshold, least_area=a, least_peak=p) for p in peaks]
            for a in LEAST_AREAS
        ]
        dice, missed, marked, false_marks = _scores(lesions, normals, index, grid)
        mean_dice = dice.mean(axis=0)
        near = _near_share(lesions, index, grid[0])
        found += [
            _Point(
                each,
                PointScore(float(mean_dice[i, j]), int(missed[i, j]), float(marked[i, j])),
                dice[:, i, j],
                int(false_marks[i, j]),
                near[j] <= _NEAR_SHARE,
            )
            for i, row in enumerate(grid)
            for j, each in enumerate(row)
        ]
        if threshold == contract.threshold:
            own = float(mean_dice[0, 0])
    useful = [each for each in found if each.score.dice >= LEAST_DICE * own]
    allowed = [each for each in useful if each.score.marked_share <= max_marked]
    if not allowed:
        nearest = min(useful, key=lambda each: (each.score.marked_share, -each.score.dice))
        raise Refused(
            "E-TUNE-LIMIT",
            f"no operating point that keeps half of the Dice marks at most {percent(max_marked)} "
            f"of the {len(normals)} images without a lesion; the nearest marks "
            f"{percent(nearest.score.marked_share)} with a Dice of {nearest.score.dice:.3f} "
            f"(threshold {nearest.contract.threshold:g}, least area "
            f"{nearest.contract.least_area:g}, least peak "
            f"{nearest.contract.least_peak:g}); allow that with --max-false-marks, or train with "
            "more images without a lesion",
        )
    best = max(allowed, key=lambda each: each.score.dice)
    chosen = min(
        (each for each in allowed if _as_good(each, best)),
        key=lambda each: (
            each.contract.least_area,
            not each.steady,
            each.false_marks,
            -round(each.score.dice, 9),
            each.contract.least_peak,
            abs(each.contract.thresholds[0] - 0.5),
        ),
    )
    return Choice(chosen.contract, len(found), chosen.score)


def _as_good(point: _Point, best: _Point) -> bool:
    """Whether the lead of `best` is at most one standard error of the paired differences."""
    lead = best.dice_of_each - point.dice_of_each
    error = lead.std(ddof=1) / math.sqrt(lead.size) if lead.size > 1 else 0.0
    return bool(lead.mean() <= error + 1e-9)


def _scores(
    lesions: Sequence[CaseParts],
    normals: Sequence[CaseParts],
    index: int,
    grid: Sequence[Sequence[InputContract]],
) -> tuple[
    npt.NDArray[np.float64],
    npt.NDArray[np.int64],
    npt.NDArray[np.float64],
    npt.NDArray[np.int64],
]:
    """Return Dice [lesions, areas, peaks]; missed, marked share and false marks [areas, peaks]."""
    least_px = np.array([row[0].least_px for row in grid])
    least = np.array([each.least_logit for each in grid[0]], np.float32)

    def kept_in(parts: Parts) -> npt.NDArray[np.bool_]:
        large = parts.areas_px >= least_px[:, None]  # [areas, K]
        return large[:, None] & (parts.peaks >= least[:, None])  # [areas, peaks, K]

    shape = len(least_px), len(least)
    dice, marked = np.zeros((len(lesions), *shape)), np.zeros(shape)
    false_marks = np.zeros(shape, np.int64)
    for number, case in enumerate(lesions):
        parts = case.at[index]
        kept = kept_in(parts)
        false_marks += kept[:, :, parts.hits_px == 0].sum(axis=2)
        dice[number] = dice_of(kept @ parts.hits_px, kept @ parts.areas_px, case.truth_px)
    for case in normals:
        kept = kept_in(case.at[index])
        false_marks += kept.sum(axis=2)
        marked += kept.any(axis=2)
    return dice, (dice < FOUND_DICE).sum(axis=0), marked / len(normals), false_marks


def _near_share(
    lesions: Sequence[CaseParts], index: int, points: Sequence[InputContract]
) -> list[float]:
    """Return the share of images in which a lesion's component is near to each least peak."""
    shares = []
    for point in points:
        near = [
            (parts.hits_px > 0) & (np.abs(parts.peaks - point.least_logit) < _MARGIN)
            for parts in (case.at[index] for case in lesions)
        ]
        shares.append(sum(each.any() for each in near) / len(lesions) if point.least_peak else 0.0)
    return shares
