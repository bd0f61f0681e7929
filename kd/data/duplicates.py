"""Near-duplicate images: the same lesion in another frame, brightness, or with overlays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...runtime.image import resize_grey
from ...runtime.progress import Progress, quiet
from .sample import Sample

SIDE = 48  # pixels of a thumbnail
# Bigger structures than a sixth of the frame are taken out: every breast is bright above and dark
# below, so plain thumbnails of two patients correlate at up to 0.94.
_CELLS = 6
# On 622 images of BUSI 171 pairs are above 0.57. The 8 of them below 0.70 were looked at, and the
# 13 that plain thumbnails above 0.95 miss: all show one lesion (with callipers, other contrast, a
# neighbouring frame). Of the next 16 pairs below 0.57 one does. A wrong pair costs a little freedom
# in the split, a missed one leaks into the test part, so the limit is at the low end of the gap.
MIN_CORRELATION = 0.57
# A whole image may also be a crop of another. Many tries give chance more room, hence the higher
# limit: in BUSI it adds 2 pairs, both true; the wrong ones begin at 0.59. Of random crops of BUSI
# images to 92 % of each side it finds 93 %, whole thumbnails alone 24 %.
MIN_CROP_CORRELATION = 0.60
_CROP_SHARES = (0.92, 0.86)  # of each side; tried at 3×3 places


@dataclass(frozen=True)
class NearDuplicate:
    """Two samples that look alike.

    Attributes:
        first: index of one sample.
        second: index of the other, above `first`.
        correlation: of their fingerprints, whole or cropped, the higher one, up to 1.
    """

    first: int
    second: int
    correlation: float


def fingerprint(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return a thumbnail of an image's detail; its dot product with another is their correlation.

    Args:
        image: uint8 [H, W].

    Returns:
        float32 [SIDE * SIDE], zero mean and unit norm; all 0 for a constant image.
    """
    small = Image.fromarray(resize_grey(image, SIDE, SIDE).astype(np.float32))
    coarse = small.resize((_CELLS, _CELLS), Image.Resampling.BOX)
    detail = np.asarray(small) - np.asarray(coarse.resize(small.size, Image.Resampling.BICUBIC))
    values = (detail - detail.mean()).ravel()
    norm = float(np.linalg.norm(values))
    # without detail only rounding is left, which must not be blown up
    return np.asarray(values / norm if norm > 1e-2 else np.zeros_like(values), np.float32)


def near_duplicates(
    samples: Sequence[Sample], *, progress: Progress = quiet
) -> tuple[NearDuplicate, ...]:
    """Return all pairs of look-alikes, by index. Raises InputError for an unreadable image."""
    if not samples:
        return ()
    looks = [_looks(sample.read_image()) for sample in progress(samples, "comparing images")]
    prints = np.stack(looks, axis=1)  # [looks, samples, SIDE * SIDE], whole images first
    whole = prints[0] @ prints[0].T
    crop = np.full_like(whole, -1)
    for look in prints[1:]:
        np.maximum(crop, look @ prints[0].T, out=crop)
    crop = np.maximum(crop, crop.T)  # either may be the crop of the other
    alike = (whole > MIN_CORRELATION) | (crop > MIN_CROP_CORRELATION)
    best = np.maximum(whole, crop)
    return tuple(
        NearDuplicate(int(first), int(second), min(float(best[first, second]), 1.0))
        for first, second in np.argwhere(np.triu(alike, k=1))
    )


def _looks(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the fingerprints of an image and its crops, float32 [1 + crops, SIDE * SIDE]."""
    side = 3 * SIDE
    small = resize_grey(image, side, side)
    looks = [fingerprint(image)]
    for share in _CROP_SHARES:
        kept = round(share * side)
        starts = (0, (side - kept) // 2, side - kept)
        looks += [
            fingerprint(small[top : top + kept, left : left + kept])
            for top in starts
            for left in starts
        ]
    return np.stack(looks)


def group_duplicates(samples: Sequence[Sample], *, progress: Progress = quiet) -> tuple[int, ...]:
    """Return a group number per sample, 0 upwards by first appearance.

    Images of one patient share one, and so do look-alikes. That is taken as transitive: a chain of
    look-alikes and patients is one group. Raises InputError for an unreadable image.
    """
    pairs = pairs_of(near_duplicates(samples, progress=progress))
    return groups_from_pairs(len(samples), [*pairs, *patient_pairs(samples)])


def pairs_of(alike: Iterable[NearDuplicate]) -> list[tuple[int, int]]:
    """Return the indices of look-alikes."""
    return [(pair.first, pair.second) for pair in alike]


def patient_pairs(samples: Sequence[Sample]) -> list[tuple[int, int]]:
    """Return, for each sample of a known patient, the patient's first sample and it, by index.

    A patient is one of a data set: two sets know nothing of each other's.
    """
    first: dict[tuple[str, str], int] = {}
    return [
        (first.setdefault((sample.source, sample.patient), index), index)
        for index, sample in enumerate(samples)
        if sample.patient is not None
    ]


def with_groups(samples: Sequence[Sample], *, progress: Progress = quiet) -> tuple[Sample, ...]:
    """Return the samples with their groups. Raises InputError for an unreadable image."""
    groups = group_duplicates(samples, progress=progress)
    return tuple(replace(each, look=look) for each, look in zip(samples, groups, strict=True))


def groups_from_pairs(count: int, pairs: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """Return a group number for each of `count` samples: the connected components of `pairs`."""
    lowest = list(range(count))  # a member of the same group with a lower or the same index

    def root(index: int) -> int:
        while lowest[index] != index:
            index = lowest[index]
        return index

    for one, other in pairs:
        first, second = sorted((root(one), root(other)))
        lowest[second] = first
    numbers: dict[int, int] = {}
    return tuple(numbers.setdefault(root(index), len(numbers)) for index in range(count))
