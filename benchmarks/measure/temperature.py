"""One number that calibrates a network's probabilities: Guo et al. 2017 (arXiv 1706.04599)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

_LARGEST: Final = 40.0  # of |logit|; beyond it the probability is 0 or 1 in float64's loss as well
_BINS: Final = 8000  # over -_LARGEST.._LARGEST: a hundredth of a logit each
_RANGE: Final = (0.05, 20.0)  # of the temperature
_STEPS: Final = 60  # of the golden section: to 1e-12 of the range
_GOLDEN: Final = (5**0.5 - 1) / 2


def fit_temperature(
    answers: Iterable[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]],
) -> float:
    """Return the number in 0.05..20 that logits are divided by for the least loss.

    The loss is the pixels' binary cross-entropy, each image weighing the same. It is convex in the
    inverse of the temperature, so that there is one minimum. Logits are counted in bins of 0.01.

    Args:
        answers: logits [h, w] and truth [h, w] of each image, at least one.
    """
    counts = np.zeros((2, _BINS))
    for logits, truth in answers:
        place = (np.clip(logits, -_LARGEST, _LARGEST) + _LARGEST) * (_BINS / (2 * _LARGEST))
        bins = np.minimum(place, _BINS - 1).astype(np.intp)
        for lesion in (0, 1):
            found = np.bincount(bins[truth == bool(lesion)], minlength=_BINS)
            counts[lesion] += found / logits.size
    centres = (np.arange(_BINS) + 0.5) * (2 * _LARGEST / _BINS) - _LARGEST

    def loss(log_temperature: float) -> float:
        scaled = centres / np.exp(log_temperature)
        return float(counts[0] @ np.logaddexp(0, scaled) + counts[1] @ np.logaddexp(0, -scaled))

    low, high = np.log(_RANGE)
    for _ in range(_STEPS):
        width = _GOLDEN * (high - low)
        if loss(high - width) <= loss(low + width):
            high = low + width
        else:
            low = high - width
    return float(np.exp((low + high) / 2))
