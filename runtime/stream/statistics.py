"""Latencies of any number of frames in constant memory."""

from __future__ import annotations

import math
from typing import Dict, Optional

import numpy as np

_STEP = math.log(1.01)  # of a bin: percentiles are within 1 % of the sample they stand for
_LOWEST_MS = 0.001
_BINS = math.ceil(math.log(1e9) / _STEP)  # to 1e6 ms; what is beyond counts as the last
_MIN_FOR_P99 = 368  # smallest n with 1 - 0.99**n >= 0.975: else the true one may lie above all


class Distribution:
    """Counts samples in bins of 1 %, with the exact largest."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self.n = 0
        self.max_ms = 0.0

    def add(self, value_ms: float) -> None:
        """Count a sample."""
        place = math.log(max(value_ms, _LOWEST_MS) / _LOWEST_MS) / _STEP
        self._counts[min(int(place), _BINS - 1)] += 1
        self.n += 1
        self.max_ms = max(self.max_ms, value_ms)

    def percentile(self, q: float) -> Optional[float]:
        """Return the sample of rank ceil(q n), at most 1 % too large; None without samples."""
        if not self.n:
            return None
        rank = max(1, math.ceil(q * self.n - 1e-9))
        place = int(np.searchsorted(np.cumsum(self._counts), rank))
        return min(_LOWEST_MS * math.exp((place + 1) * _STEP), self.max_ms)

    @property
    def p50_ms(self) -> Optional[float]:
        """Median; None without samples."""
        return self.percentile(0.5)

    @property
    def p99_ms(self) -> Optional[float]:
        """99th percentile; None for fewer than 368 samples, too few to support it."""
        return self.percentile(0.99) if self.n >= _MIN_FOR_P99 else None

    def to_dict(self) -> Dict[str, Optional[float]]:
        """Return p50, p99 and the largest, in ms to 0.001, as JSON-ready values."""
        largest = self.max_ms if self.n else None
        told = {"p50": self.p50_ms, "p99": self.p99_ms, "max": largest}
        return {name: None if ms is None else round(ms, 3) for name, ms in told.items()}
