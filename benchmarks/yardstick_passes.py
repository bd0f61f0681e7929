"""What the passes of rows beside their yardsticks say: of one run, and of two against each other.

A pass gives one ratio of the row's time to its yardstick's (`yardstick.log_ratio`). All here is in
logs of it, so that a ratio and its inverse are treated alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from .jsonform import json_from_value
from .measure.latency import RATIO_CONFIDENCE
from .measure.yardstick import log_ratio, yardstick_log_ms
from .record import Row

MIN_PASSES = 5  # of each run, with an undisturbed call of row and yardstick
# An allowance for what two runs on one machine differ by beyond what their passes say, as a
# standard deviation of each run's log. Measured with it (`tests/measure/comparison.py runs`, 11
# repetitions): the same thing never differed, and a 10 % slowdown was found every time.
BETWEEN_RUNS = 0.01
MATTERS = 1.10  # a ratio; "no difference" is said only where one as large would have been found
_POWER_Z = 1.645  # a difference that large is found 95 times in 100


@dataclass(frozen=True)
class PassSummary:
    """The passes of one row."""

    logs: tuple[float, ...]  # of the ratio to the yardstick, of the passes that count, in order
    measured: int  # passes, with those that do not count
    yardstick_ms: float  # of an undisturbed call of the yardstick; NaN where there was none
    calls: int  # of row and yardstick
    set_aside: int  # of these calls: waited for a core

    @property
    def count(self) -> int:
        """Passes that count."""
        return len(self.logs)

    @property
    def ratio(self) -> float:
        """Time of the row over that of its yardstick, the mean of the passes; NaN without one."""
        return math.exp(np.mean(self.logs)) if self.logs else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation between passes, as a share of the ratio; NaN for fewer than two."""
        return float(np.std(self.logs, ddof=1)) if self.count > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """99 % interval of `ratio`, `BETWEEN_RUNS` included; NaN for too few passes."""
        if self.count < MIN_PASSES:
            return math.nan, math.nan
        error, freedom = _error_of([self.logs])
        half = _quantile(freedom) * error
        return self.ratio * math.exp(-half), self.ratio * math.exp(half)

    @property
    def smallest(self) -> float:
        """Slow-down that a comparison with a run of as many such passes finds 19 times in 20.

        A ratio above 1; NaN for too few passes.
        """
        if self.count < MIN_PASSES:
            return math.nan
        return _smallest(*_error_of([self.logs, self.logs]))

    def percents(self, ratio: float) -> tuple[float, ...]:
        """Return how far each pass lies from a ratio, in percent of it."""
        return tuple(100 * math.expm1(log - math.log(ratio)) for log in self.logs)


def summarise_passes(row: Row) -> PassSummary:
    """Return what the passes of a row say; all is empty where it has none."""
    blocks = [block for each in row.passes for block in (*each.row, *each.yardstick)]
    calls = sum(len(block.ms) for block in blocks)
    speeds = _finite(yardstick_log_ms(each) for each in row.passes)
    return PassSummary(
        logs=_finite(log_ratio(each) for each in row.passes),
        measured=len(row.passes),
        yardstick_ms=math.exp(np.mean(speeds)) if speeds else math.nan,
        calls=calls,
        set_aside=calls - sum(len(block.undisturbed_ms()) for block in blocks),
    )


def _finite(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(value for value in values if math.isfinite(value))


def _error_of(runs: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the standard error of a sum or difference of runs' means, and Welch's freedom.

    Args:
        runs: logs of the passes of each, at least two; `BETWEEN_RUNS` adds to each mean.
    """
    variances = [float(np.var(logs, ddof=1)) / len(logs) for logs in runs]
    variance = sum(variances) + len(runs) * BETWEEN_RUNS**2
    terms = (each**2 / (len(logs) - 1) for each, logs in zip(variances, runs, strict=True))
    return math.sqrt(variance), variance**2 / max(sum(terms), 1e-30)


def _quantile(freedom: float) -> float:
    return students_t(1 - (1 - RATIO_CONFIDENCE) / 2, freedom)


def _smallest(error: float, freedom: float) -> float:
    return math.exp((_quantile(freedom) + _POWER_Z) * error)


@dataclass(frozen=True)
class RecordRatio:
    """The time of a row in the new record over that in the old, the machine's part taken out."""

    ratio: float  # NaN where it could not be told at all
    low: float  # 99 % interval
    high: float
    smallest: float  # ratio above 1 that would have been found 19 times in 20
    machine: float  # time of the yardstick in the new record over that in the old one
    passes: tuple[int, int]  # that count, of the old and of the new record
    reason: str  # why there is no interval; empty where there is one

    @property
    def verdict(self) -> str:
        """One of "slower", "faster", "no difference" and "cannot tell"."""
        if self.low > 1:
            return "slower"
        if self.high < 1:
            return "faster"
        return "no difference" if self.smallest <= MATTERS else "cannot tell"


def record_ratio(new: Row, old: Row) -> RecordRatio:
    """Return the time of `new` over that of `old`, of two runs, each relative to its yardstick.

    Welch's interval of the difference of the passes' means, in logs, with `BETWEEN_RUNS` added to
    the variance of each mean.
    """
    if reason := _why_no_ratio(new, old):
        return RecordRatio(*(math.nan,) * 5, passes=(0, 0), reason=reason)
    before, after = summarise_passes(old), summarise_passes(new)
    machine = after.yardstick_ms / before.yardstick_ms
    counts = before.count, after.count
    if min(counts) < MIN_PASSES:
        return RecordRatio(
            *(math.nan,) * 4,
            machine=machine,
            passes=counts,
            reason=f"{counts[0]} and {counts[1]} passes had calls that did not wait for a core, "
            f"{MIN_PASSES} of each are needed; measure on a quieter machine or with more passes",
        )
    error, freedom = _error_of([before.logs, after.logs])
    middle = float(np.mean(after.logs) - np.mean(before.logs))
    half = _quantile(freedom) * error
    return RecordRatio(
        ratio=math.exp(middle),
        low=math.exp(middle - half),
        high=math.exp(middle + half),
        smallest=_smallest(error, freedom),
        machine=machine,
        passes=counts,
        reason="",
    )


def _why_no_ratio(new: Row, old: Row) -> str:
    """Return why the yardsticks of two rows cannot be compared; empty where they can."""
    for which, row in (("old", old), ("new", new)):
        if row.yardstick is None:
            return f"the {which} record has no yardstick beside the row; measure it with --passes"
    if new.yardstick != old.yardstick:
        before, after = json_from_value(old.yardstick), json_from_value(new.yardstick)
        name = next(name for name in before if before[name] != after[name])
        return (
            f"the {name} of the yardstick was {before[name]:.40} and is {after[name]:.40}, which "
            "moves it too; measure both in one run, or with the same"
        )
    return ""


def students_t(confidence: float, freedom: float) -> float:
    """Return the quantile of Student's t: the Cornish-Fisher series, within 3 % from 4 degrees on.

    Abramowitz and Stegun 1972, 26.7.5.
    """
    z = NormalDist().inv_cdf(confidence)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))
