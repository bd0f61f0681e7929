"""How well masks agree with the truth, image by image, then for groups of images.

What is counted as in Maier-Hein et al. 2024 (Metrics reloaded, doi 10.1038/s41592-023-02151-z):
per-image means with intervals over groups of near-duplicates beside pixel-pooled values, boundary
distance beside overlap, and images without a lesion on their own, because overlap is undefined
there.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...runtime.contract import InputContract
from ...runtime.errors import InputError
from ...runtime.files import write_bytes
from ...runtime.image import resize_mask
from ...runtime.metrics import (
    PixelCounts,
    accuracy_score,
    bootstrap_interval,
    count_labels,
    dice_score,
    hd95_px,
    iou_score,
    precision_score,
    recall_score,
)
from ...runtime.paths import takes_paths
from ...runtime.progress import Progress, quiet
from ..formatting import fixed, percent, significant, text_table
from ..jsonform import json_from_value

ALL_LESIONS = "all lesions"
CALIBRATION_BINS = 15  # of equal width, as in Guo et al. 2017

_RATIOS: Mapping[str, Callable[[PixelCounts], float]] = MappingProxyType(
    {
        "dice": dice_score,
        "iou": iou_score,
        "recall": recall_score,
        "precision": precision_score,
        "accuracy": accuracy_score,
    }
)
METRICS = (*_RATIOS, "hd95_px")
_ONE_CLASS = InputContract()  # of a grey frame


class Case(Protocol):
    """An image with its class and truth; `edgeseg.kd.data.dataset.Sample` is one."""

    @property
    def name(self) -> str:
        """Unique among the cases."""
        ...

    @property
    def label(self) -> str:
        """Class, such as "benign"."""
        ...

    @property
    def group(self) -> str:
        """Cases of one group are near-duplicates: they count as one in an interval."""
        ...

    def read_image(self, *, colour: bool = False) -> npt.NDArray[np.uint8]:
        """Return the grey image, uint8 [H, W], or RGB [H, W, 3]."""
        ...

    def read_mask(self) -> npt.NDArray[np.bool_]:
        """Return the truth, bool [H, W]."""
        ...

    def read_labels(self, classes: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Return the truth of several classes, uint8 [H, W]: 0, or the class from 1 on."""
        ...


@dataclass(frozen=True)
class ImageScore:
    """One mask against its truth; NaN is undefined (0/0, or no boundary).

    Of several classes a pixel is right where it has the class of the truth; one that has another
    counts both as a false positive and as a false negative.
    """

    name: str
    label: str
    group: str  # of near-duplicates
    lesion_px: int  # of the truth
    predicted_px: int
    counts: PixelCounts
    dice: float  # 0 where a lesion was missed; undefined only where both masks are empty
    iou: float
    recall: float
    precision: float
    accuracy: float
    hd95_px: float  # in pixels of the image itself

    @property
    def lesion_share(self) -> float:
        """Lesion area over image area."""
        counts = self.counts
        return self.lesion_px / (counts.tp + counts.fp + counts.fn + counts.tn)


@dataclass(frozen=True)
class MetricSummary:
    """A mean over the images where the metric is defined."""

    mean: float
    low: float  # 95 % percentile bootstrap over groups of near-duplicates
    high: float
    n: int  # images the mean covers
    undefined: int  # images it does not


@dataclass(frozen=True)
class GroupAccuracy:
    """All metrics of one group of images, each with a lesion."""

    name: str
    images: int
    per_image: Mapping[str, MetricSummary]  # by name in METRICS
    pooled: Mapping[str, float]  # ratios of summed pixels: large lesions weigh more


@dataclass(frozen=True)
class Accuracy:
    """All groups: first all lesions, then each label, then small, medium and large lesions."""

    groups: tuple[GroupAccuracy, ...]
    small_up_to_share: float  # of image area: first tercile of the lesions
    large_above_share: float  # of image area: second tercile
    images_without_lesion: int
    false_positive_share: float  # of those images: any pixel predicted

    @property
    def lesions(self) -> GroupAccuracy:
        """The group of all images with a lesion."""
        return self.groups[0]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; what is undefined is None."""
        content: dict[str, Any] = json_from_value(self)
        return content


@dataclass(frozen=True)
class PairedDifference:
    """Mean of per-image differences, with its 95 % bootstrap interval over groups of images."""

    mean: float
    low: float
    high: float
    n: int  # images with a lesion

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out 0; not shown to differ is not the same as equal."""
        return self.high < 0 or self.low > 0


def truth_of(case: Case, contract: InputContract) -> npt.NDArray[Any]:
    """Return the truth of an image, bool [H, W]; for several classes their numbers, uint8 [H, W].

    Raises InputError: E-CLASSES for a class that is none of the network's, and what reading the
    case raises.
    """
    return case.read_mask() if len(contract.classes) == 1 else case.read_labels(contract.classes)


def score_images(
    predict: Callable[[npt.NDArray[np.uint8]], npt.NDArray[Any]],
    cases: Sequence[Case],
    *,
    contract: InputContract = _ONE_CLASS,
    progress: Progress = quiet,
) -> tuple[ImageScore, ...]:
    """Predict every case and compare it with its truth.

    Args:
        predict: maps an image, uint8 [H, W] or RGB [H, W, 3] as the contract takes it, to a mask
            [H, W] of the contract's labels. It is given the image alone, never label, name or
            truth.
        cases: what to score.
        contract: of what predicts.
        progress: wraps the loop.

    Raises:
        ValueError: the mask has another size than the truth.
        InputError: what reading the cases raises.
    """
    scores = []
    for case in progress(cases, "accuracy", len(cases)):
        mask = predict(case.read_image(colour=contract.takes_colour))
        scores.append(score_mask(case, mask, truth_of(case, contract), contract))
    return tuple(scores)


def score_mask(
    case: Case, mask: npt.NDArray[Any], truth: npt.NDArray[Any], contract: InputContract
) -> ImageScore:
    """Compare a mask [H, W] with its case's `truth_of`; raises ValueError as `score_images`."""
    if len(contract.classes) == 1:
        mask, truth = mask != 0, truth != 0
    counts = count_labels(mask, truth)
    labels = np.unique(truth[truth != 0]).tolist() or [1]
    distances = [hd95_px(mask == label, truth == label) for label in labels]
    return ImageScore(
        name=case.name,
        label=case.label,
        group=case.group,
        lesion_px=counts.tp + counts.fn,
        predicted_px=counts.tp + counts.fp,
        counts=counts,
        hd95_px=sum(distances) / len(distances),  # NaN if one is
        **{metric: ratio(counts) for metric, ratio in _RATIOS.items()},
    )


def summarise(scores: Sequence[ImageScore]) -> Accuracy:
    """Return the means, intervals and pooled values of all groups.

    Images without a lesion enter none of the groups; they have a false-positive share instead.
    The size terciles are those of the lesions given.
    """
    lesions = [score for score in scores if score.lesion_px]
    normals = [score for score in scores if not score.lesion_px]
    shares = [score.lesion_share for score in lesions]
    small, large = np.quantile(shares, [1 / 3, 2 / 3]).tolist() if shares else (math.nan, math.nan)
    groups = {
        ALL_LESIONS: lesions,
        **{
            label: [score for score in lesions if score.label == label]
            for label in sorted({score.label for score in lesions})
        },
        "small lesions": [score for score in lesions if score.lesion_share <= small],
        "medium lesions": [score for score in lesions if small < score.lesion_share <= large],
        "large lesions": [score for score in lesions if score.lesion_share > large],
    }
    alarms = sum(score.predicted_px > 0 for score in normals)
    return Accuracy(
        groups=tuple(_summarise_group(name, members) for name, members in groups.items()),
        small_up_to_share=small,
        large_above_share=large,
        images_without_lesion=len(normals),
        false_positive_share=alarms / len(normals) if normals else math.nan,
    )


def _summarise_group(name: str, scores: Sequence[ImageScore]) -> GroupAccuracy:
    total = sum((score.counts for score in scores), PixelCounts(0, 0, 0, 0))
    return GroupAccuracy(
        name=name,
        images=len(scores),
        per_image={
            metric: _summarise_metric(
                [getattr(score, metric) for score in scores], [score.group for score in scores]
            )
            for metric in METRICS
        },
        pooled={metric: ratio(total) for metric, ratio in _RATIOS.items()},
    )


def _summarise_metric(values: Sequence[float], groups: Sequence[str]) -> MetricSummary:
    defined = [value for value in values if not math.isnan(value)]
    mean = sum(defined) / len(defined) if defined else math.nan
    low, high = bootstrap_interval(values, groups)
    return MetricSummary(mean, low, high, len(defined), len(values) - len(defined))


def calibration_error(
    logits_of: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]],
    cases: Sequence[Case],
    *,
    progress: Progress = quiet,
) -> float:
    """Return the expected calibration error of the pixels' lesion probability, in 0..1.

    Guo et al. 2017 (arXiv 1706.04599), eq. 3, for the class lesion: the gap between mean
    probability and share of lesion pixels in each of 15 bins of the probability, weighted by the
    bin's pixels. Taken at the network's size against the resized truth; every image weighs the
    same, and one at a time is in memory.

    Args:
        logits_of: maps an image, uint8 [H, W], to logits [h, w].
        cases: at least one.
        progress: wraps the loop.
    """
    gaps = np.zeros(CALIBRATION_BINS)
    for case in progress(cases, "calibration", len(cases)):
        logits = logits_of(case.read_image())
        gaps += calibration_gaps(logits, resize_mask(case.read_mask(), *logits.shape))
    return float(np.abs(gaps).sum() / len(cases))


def calibration_gaps(
    logits: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_], temperature: float = 1.0
) -> npt.NDArray[np.float64]:
    """Return the mean of probability minus truth over one image, split by bin: [15].

    Args:
        logits: [h, w].
        truth: [h, w].
        temperature: that the logits are divided by, > 0.
    """
    scaled = logits.astype(np.float64) / temperature
    probability = (1 + np.tanh(scaled / 2)) / 2  # the sigmoid, without overflow
    bins = np.minimum(probability * CALIBRATION_BINS, CALIBRATION_BINS - 1).astype(np.intp)
    gap = (probability - truth).ravel()
    return np.bincount(bins.ravel(), gap, CALIBRATION_BINS) / logits.size


def paired_difference(a: Sequence[ImageScore], b: Sequence[ImageScore]) -> PairedDifference:
    """Return the mean per-image Dice of `a` minus that of `b`, over images with a lesion.

    Raises InputError (E-SCORES-DIFFER) unless both score the same images, in any order.
    """
    dice_a = {score.name: score.dice for score in a if score.lesion_px}
    dice_b = {score.name: score.dice for score in b if score.lesion_px}
    if different := sorted(set(dice_a) ^ set(dice_b)):
        raise InputError(
            "E-SCORES-DIFFER",
            f"{len(different)} images are in one run only, such as {different[0]!r}; "
            "score both runs on the same images",
        )
    group_of = {score.name: score.group for score in a}
    names = sorted(dice_a)
    summary = _summarise_metric(
        [dice_a[name] - dice_b[name] for name in names], [group_of[name] for name in names]
    )
    return PairedDifference(summary.mean, summary.low, summary.high, summary.n)


@takes_paths
def write_scores_csv(path: Path, scores: Sequence[ImageScore]) -> None:
    """Write one line per image, atomically; an undefined value is an empty cell.

    Raises OutputError (E-OUT-WRITE).
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    pixels = ["lesion_px", "predicted_px", "tp_px", "fp_px", "fn_px", "tn_px"]
    writer.writerow(["name", "label", "group", *pixels, *METRICS])
    for score in scores:
        counts = score.counts
        metrics = [getattr(score, metric) for metric in METRICS]
        writer.writerow(
            [score.name, score.label, score.group, score.lesion_px, score.predicted_px]
            + [counts.tp, counts.fp, counts.fn, counts.tn]
            + ["" if math.isnan(value) else f"{value:.6g}" for value in metrics]
        )
    write_bytes(path, text.getvalue())


def render_accuracy(accuracy: Accuracy) -> str:
    """Return the groups as a terminal table with the size thresholds and normal images below."""
    rows = []
    for group in accuracy.groups:
        dice = group.per_image["dice"]
        hd95 = group.per_image["hd95_px"]
        rows.append(
            [
                group.name,
                str(group.images),
                fixed(dice.mean),
                f"{fixed(dice.low)}..{fixed(dice.high)}",
                *(fixed(group.per_image[metric].mean) for metric in METRICS[1:-1]),
                f"{significant(hd95.mean)} ({hd95.n})",
                fixed(group.pooled["dice"]),
            ]
        )
    header = ["group", "images", "Dice", "95 %", *METRICS[1:-1], "HD95 px (n)", "pooled Dice"]
    return (
        f"{text_table(header, rows)}\n"
        f"Lesion size by share of the image: small up to {percent(accuracy.small_up_to_share)}, "
        f"large above {percent(accuracy.large_above_share)}.\n"
        f"Images without lesion: {accuracy.images_without_lesion}, any pixel predicted in "
        f"{percent(accuracy.false_positive_share)}."
    )
