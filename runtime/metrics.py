"""Overlap and boundary metrics: count first, then divide, and never hide 0/0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Sequence, Tuple

import numpy as np


@dataclass(frozen=True)
class PixelCounts:
    """True and false positives and negatives of one mask, or the sum over several, in pixels."""

    tp: int
    fp: int
    fn: int
    tn: int

    def __add__(self, other: PixelCounts) -> PixelCounts:
        return PixelCounts(
            self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn
        )


def count_pixels(mask: np.ndarray, truth: np.ndarray) -> PixelCounts:
    """Compare two masks of equal shape; any nonzero value is lesion. Raises ValueError else."""
    if mask.shape != truth.shape:
        raise ValueError(f"mask {list(mask.shape)} against truth {list(truth.shape)}")
    mask, truth = mask.astype(bool), truth.astype(bool)
    tp = int(np.count_nonzero(mask & truth))
    fp = int(np.count_nonzero(mask)) - tp
    fn = int(np.count_nonzero(truth)) - tp
    return PixelCounts(tp, fp, fn, mask.size - tp - fp - fn)


def count_labels(mask: np.ndarray, truth: np.ndarray) -> PixelCounts:
    """Compare two masks of labels of equal shape, 0 where background. Raises ValueError else.

    A pixel of another class than the truth's is a false positive and a false negative; it is twice
    in the sum of the counts then. Of one class the same as `count_pixels`.
    """
    if mask.shape != truth.shape:
        raise ValueError(f"mask {list(mask.shape)} against truth {list(truth.shape)}")
    right = mask == truth
    tp = int(np.count_nonzero(right & (truth != 0)))
    fp = int(np.count_nonzero(mask)) - tp
    fn = int(np.count_nonzero(truth)) - tp
    return PixelCounts(tp, fp, fn, int(np.count_nonzero(right)) - tp)


def _ratio(above: float, below: float) -> float:
    return above / below if below else float("nan")


def dice_score(counts: PixelCounts) -> float:
    """2 TP / (2 TP + FP + FN); NaN when both masks are empty."""
    return _ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn)


def iou_score(counts: PixelCounts) -> float:
    """TP / (TP + FP + FN), the Jaccard index; NaN when both masks are empty."""
    return _ratio(counts.tp, counts.tp + counts.fp + counts.fn)


def recall_score(counts: PixelCounts) -> float:
    """TP / (TP + FN), sensitivity; NaN when the truth is empty."""
    return _ratio(counts.tp, counts.tp + counts.fn)


def precision_score(counts: PixelCounts) -> float:
    """TP / (TP + FP); NaN when the mask is empty."""
    return _ratio(counts.tp, counts.tp + counts.fp)


def accuracy_score(counts: PixelCounts) -> float:
    """(TP + TN) / all pixels."""
    return _ratio(counts.tp + counts.tn, counts.tp + counts.tn + counts.fp + counts.fn)


def boundary_of(mask: np.ndarray) -> np.ndarray:
    """Return the (row, column) of every mask pixel with a 4-neighbour outside, int64 [N, 2]."""
    mask = mask.astype(bool)
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.argwhere(mask & ~inside)


def hd95_px(mask: np.ndarray, truth: np.ndarray) -> float:
    """95th percentile of the symmetric boundary distances, in pixels of the masks.

    The distances of both directions are pooled before the percentile is taken, as in MedPy's
    `hd95`. NaN when either mask is empty: the distance is then undefined, not zero or infinite.
    """
    ours, theirs = boundary_of(mask), boundary_of(truth)
    if not len(ours) or not len(theirs):
        return float("nan")
    to_theirs = np.full(len(ours), np.inf)
    to_ours = np.full(len(theirs), np.inf)
    block = max(1, 4_000_000 // len(theirs))  # bounds the memory of the distance table
    for start in range(0, len(ours), block):
        part = ours[start : start + block, None, :] - theirs[None, :, :]
        squared = (part * part).sum(axis=2)
        to_theirs[start : start + block] = squared.min(axis=1)
        np.minimum(to_ours, squared.min(axis=0), out=to_ours)
    return float(np.percentile(np.sqrt(np.concatenate([to_theirs, to_ours])), 95))


def bootstrap_interval(
    values: Sequence[float],
    groups: Optional[Sequence[str]] = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Tuple[float, float]:
    """Percentile bootstrap interval of a mean (Efron 1979), drawing whole groups.

    Near-duplicates of an image agree with it, so each alone would feign evidence; a group is drawn
    with all its values (cluster bootstrap: Field & Welsh 2007, doi
    10.1111/j.1467-9868.2007.00593.x).

    Args:
        values: one per image; NaN values are left out first.
        groups: the group of each value; None: no two belong together.
        confidence: two-sided, in (0, 1).
        resamples: number of resamples.
        seed: of the generator.

    Returns:
        (low, high); (NaN, NaN) for fewer than two groups.
    """
    array = np.asarray(values, float)
    kept = ~np.isnan(array)
    names = np.arange(len(array)) if groups is None else np.asarray(groups)
    members = np.unique(names[kept], return_inverse=True)[1]
    counts = np.bincount(members)
    if len(counts) < 2:
        return float("nan"), float("nan")
    sums = np.bincount(members, array[kept])
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(counts), (resamples, len(counts)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
