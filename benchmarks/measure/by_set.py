"""The figures of each data set beside those of all, where images of several were scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..formatting import fixed, significant, text_table
from .accuracy import ImageScore, MetricSummary, summarise

ALL_SETS = "all"
MISSED_BELOW = 0.1  # Dice; a lesion below it was missed


@dataclass(frozen=True)
class SetAccuracy:
    """What was scored of one data set; means over its images with a lesion."""

    name: str  # of the set, or ALL_SETS
    lesions: int  # images with one
    dice: MetricSummary
    iou: MetricSummary
    hd95_px: MetricSummary
    pooled_dice: float
    missed: int  # lesions with a Dice under `MISSED_BELOW`
    normals: int  # images without lesion
    marked: int  # of those: any pixel predicted


def accuracy_by_set(
    scores: Sequence[ImageScore], set_of: Mapping[str, str]
) -> tuple[SetAccuracy, ...]:
    """Return a row for each data set, by name, and one for all; of one set that one alone.

    Args:
        scores: of the images.
        set_of: data set by name of the image.
    """
    names = sorted({set_of[score.name] for score in scores})
    rows = [_row(name, [s for s in scores if set_of[s.name] == name]) for name in names]
    return tuple(rows) if len(rows) == 1 else (*rows, _row(ALL_SETS, scores))


def _row(name: str, scores: Sequence[ImageScore]) -> SetAccuracy:
    lesions = summarise(scores).lesions
    normals = [score for score in scores if not score.lesion_px]
    return SetAccuracy(
        name=name,
        lesions=lesions.images,
        dice=lesions.per_image["dice"],
        iou=lesions.per_image["iou"],
        hd95_px=lesions.per_image["hd95_px"],
        pooled_dice=lesions.pooled["dice"],
        missed=sum(score.dice < MISSED_BELOW for score in scores if score.lesion_px),
        normals=len(normals),
        marked=sum(score.predicted_px > 0 for score in normals),
    )


def render_by_set(rows: Sequence[SetAccuracy]) -> str:
    """Return the rows as a terminal table."""
    header = ["data set", "lesions", "Dice", "95 %", "IoU", "HD95 px (n)", "pooled Dice"]
    header += [f"missed (Dice < {MISSED_BELOW})", "normals marked"]
    cells = [
        [
            row.name,
            str(row.lesions),
            fixed(row.dice.mean),
            f"{fixed(row.dice.low)}..{fixed(row.dice.high)}",
            fixed(row.iou.mean),
            f"{significant(row.hd95_px.mean)} ({row.hd95_px.n})",
            fixed(row.pooled_dice),
            str(row.missed),
            f"{row.marked} of {row.normals}",
        ]
        for row in rows
    ]
    return text_table(header, cells)
