"""Numbers and cells of `metrics.METRICS` that take more than an expression.

A number is None where it was not measured and NaN where it is not defined.
"""

from __future__ import annotations

import math

from ..formatting import MISSING, fixed, percent, signed_interval, significant
from ..measure.accuracy import ImageScore
from ..measure.latency import percentile, supported_percentile
from ..measure.process import ON_CPU
from ..record import Comparison, Row
from .wording import NOT_TRAINED, dice_of, ratio_text, with_interval

Number = float | None
Ends = tuple[Number, Number]  # of an interval
MISSED_BELOW = 0.1  # Dice of a lesion that counts as missed


# --- start and memory ----------------------------------------------------------------------------


def first_frame_ms(row: Row) -> float:
    """Return what the first mask takes once the network is ready."""
    return row.process.first_mask_ms - row.process.start_ms


def power_on_text(row: Row) -> str:
    """Return the time from the start of a process to its first mask, and what it is made of."""
    parts = (row.process.first_mask_ms, row.process.start_ms, first_frame_ms(row))
    whole, start, frame = map(significant, parts)
    return f"{whole} ({start} + {frame})"


def gpu_memory_text(row: Row) -> str:
    """Return the GPU memory and how it was counted, or why it was not."""
    process = row.process
    if process.device_mib is None:
        return MISSING if process.device_memory == ON_CPU else process.device_memory
    return f"{significant(max(0.0, process.device_mib))} ({process.device_memory})"


# --- modes and proofs ----------------------------------------------------------------------------


def fps_ends(row: Row) -> Ends:
    """Return the 95 % interval of the throughput."""
    return (row.offline.fps_low, row.offline.fps_high) if row.offline else (None, None)


def paced_p50_ms(row: Row) -> Number:
    """Return the median from tick to mask."""
    return percentile(row.paced.latency_ms, 0.5) if row.paced and row.paced.done else None


def paced_p99_ms(row: Row) -> Number:
    """Return the p99 from tick to mask, where there are masks enough."""
    return supported_percentile(row.paced.latency_ms, 0.99) if row.paced else None


def growth(row: Row) -> Number:
    """Return the growth of memory over a soak, where the system told it."""
    return row.soak.memory_mib.per_minute if row.soak and row.soak.memory_mib else None


def growth_ends(row: Row) -> Ends:
    """Return the 95 % interval of that growth."""
    found = row.soak and row.soak.memory_mib
    return (found.low, found.high) if found else (None, None)


def drift_ends(row: Row) -> Ends:
    """Return the 95 % interval of the drift of latency over a soak."""
    return (row.soak.latency_ms.low, row.soak.latency_ms.high) if row.soak else (None, None)


def worst_drop(row: Row) -> Number:
    """Return the largest upper end of a loss of Dice that an export's files have."""
    steps = row.proof.steps if row.proof else ()
    return max((step.dice_drop_high for step in steps), default=None)


# --- accuracy ------------------------------------------------------------------------------------


def dice(row: Row) -> Number:
    """Return the mean Dice over images with a lesion."""
    found = dice_of(row)
    return found.mean if found else None


def dice_ends(row: Row) -> Ends:
    """Return the 95 % interval of that mean."""
    found = dice_of(row)
    return (found.low, found.high) if found else (None, None)


def dice_text(row: Row) -> str:
    """Return the mean Dice with its interval."""
    found = dice_of(row)
    return with_interval(found) if found else NOT_TRAINED


def mean_dice_text(row: Row) -> str:
    """Return the mean Dice alone."""
    found = dice_of(row)
    return fixed(found.mean) if found else NOT_TRAINED


def why_no_dice(row: Row) -> str:
    """Return why a row has no figure of images with a lesion."""
    return "the network is not trained" if row.accuracy is None else "no image has a lesion"


def missed_share(row: Row) -> Number:
    """Return the share of lesions whose Dice is under `MISSED_BELOW`."""
    if row.accuracy is None:
        return None
    lesions = _lesions(row)
    return len(_missed(lesions)) / len(lesions) if lesions else math.nan


def missed_text(row: Row) -> str:
    """Return that share, and of how many lesions it is."""
    share, lesions = missed_share(row), _lesions(row)
    if share is None:
        return NOT_TRAINED
    return f"{percent(share)} ({len(_missed(lesions))} of {len(lesions)})" if lesions else MISSING


def _lesions(row: Row) -> list[ImageScore]:
    return [score for score in row.scores if score.lesion_px]


def _missed(lesions: list[ImageScore]) -> list[ImageScore]:
    return [score for score in lesions if score.dice < MISSED_BELOW]


def hd95_text(row: Row) -> str:
    """Return the mean HD95 and over how many images it is defined."""
    if row.accuracy is None:
        return MISSING
    found = row.accuracy.lesions.per_image["hd95_px"]
    return f"{significant(found.mean)} (n={found.n})"


def has_normals(row: Row) -> bool:
    """Whether the row was scored on images without a lesion."""
    return row.accuracy is not None and row.accuracy.images_without_lesion > 0


def false_positive_text(row: Row) -> str:
    """Return the false-positive share and of how many images it is."""
    accuracy = row.accuracy
    if accuracy is None:
        return MISSING
    return f"{percent(accuracy.false_positive_share)} (n={accuracy.images_without_lesion})"


# --- against the reference -----------------------------------------------------------------------


def latency_against_text(row: Row, against: Comparison | None) -> str:
    """Return the ratio of medians with its interval."""
    return "reference" if against is None else ratio_text(against.latency)


def dice_against_text(row: Row, against: Comparison | None) -> str:
    """Return the difference of Dice with its interval."""
    if against is None:
        return "reference"
    if against.dice is None:
        return MISSING
    return signed_interval(against.dice.mean, against.dice.low, against.dice.high)
