"""Golden vectors: frames that travel in a bundle with what its engines answered to them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from ..runtime.bundle import GoldenVectors
from ..runtime.contract import InputContract
from ..runtime.image import (
    input_from_frame,
    kept_logits,
    labels_of,
    planes_of_answer,
    resize_grey,
)
from ..runtime.pgm import MAX_HEIGHT_PX, MAX_WIDTH_PX, golden_from_labels, pnm_from_pixels
from .forms import Form
from .parity import answer_of

FOLDER = "vectors"
_MOST_PIXELS = 1 << 22  # of a frame graph's golden frames together: a kit has to stay small
# Largest share of a golden frame's lesion that may differ from the answer at export. Over both
# shipped students FP32 differed in no pixel between OpenVINO, ONNX Runtime and exact arithmetic,
# INT8 in up to 3.7 % (of a lesion of 1 000 px): kernels round differently. Not yet measured on a
# Jetson.
MAX_FLIPPED: Mapping[str, float] = MappingProxyType(
    {"fp32": 0.01, "fp16": 0.02, "bf16": 0.02, "int8": 0.1}
)

# How far below its threshold every logit of a frame with an empty answer must be. There a single
# pixel fails the replay, so no rounding of another device may lift one over it: on the speckle
# below, INT8 of both shipped students was within 0.7 of FP32 in OpenVINO, ONNX Runtime and exact
# arithmetic. (On white noise, which is like nothing they were calibrated with, it was off by 4.)
EMPTY_MARGIN = 1.0
# Of speckle: mode of its grey values, height of its grains in px. As dark and fine as that is of
# what the students were seen to mark least in.
_SPECKLE = ((15.0, 3), (20.0, 2))
_WIDER = 3  # times: a scanner's grains are wider than they are high
_SEEDS = range(4)
_BRIGHT_SPECKLE = ((40.0, 3), (60.0, 5))  # in which more is marked
_LARGER = 2.0  # times: how far an area is from the least one where no rounding decides


class ChosenFrame(NamedTuple):
    """A frame that is golden for what the network answers to it."""

    name: str  # how it was drawn
    frame: np.ndarray  # uint8, of the network's input's size within the limits of `pgm`


def find_empty_frame(forms: Sequence[Form], contract: InputContract) -> ChosenFrame | None:
    """Return the frame without a lesion that is farthest from being marked by any form.

    Frames with a lesion hardly tell a device that marks what it should not. None where a form marks
    something in each, or comes within `EMPTY_MARGIN` of it.
    """
    answers = [answer_of(form.run, contract) for form in forms]
    found, least = None, -EMPTY_MARGIN
    for candidate in _candidates(contract):
        highest = max(_above_level(answer(candidate.frame)[0], contract) for answer in answers)
        if highest < least:
            found, least = candidate, highest
    return found


def _above_level(logits: np.ndarray, contract: InputContract) -> float:
    """Return how far above its threshold the highest logit of any class is; inf for NaN."""
    if not np.isfinite(logits).all():
        return math.inf
    planes = logits.reshape(-1, *logits.shape[-2:])
    pairs = zip(planes, contract.logit_thresholds, strict=True)
    return max(float(plane.max()) - level for plane, level in pairs)


def find_dropped_frame(
    forms: Sequence[Form], contract: InputContract, phantoms: Sequence[np.ndarray]
) -> ChosenFrame | None:
    """Return a frame in which every form marks components that the least lesion drops.

    A device that does not drop them fails there: they are larger than what is left. Where no
    rounding decides, so that twice or half the least area, and `EMPTY_MARGIN` more or less of the
    least logit, leave the same mask. Of several frames that with the most dropped by any form.
    None where there is none, or no least lesion.

    Args:
        forms: of all precisions that ship.
        contract: of the network.
        phantoms: uint8 [H, W]; they are tried besides speckle and a black frame.
    """
    if not contract.drops:
        return None
    found, most = None, 0
    size = min(contract.height, MAX_HEIGHT_PX), min(contract.width, MAX_WIDTH_PX)
    candidates = (
        *_candidates(contract),
        *_speckle(_BRIGHT_SPECKLE, *size),
        *(ChosenFrame(f"phantom {index}", each) for index, each in enumerate(phantoms)),
    )
    for candidate in candidates:
        frame = input_from_frame(candidate.frame, contract)
        dropped = min(
            clearly_dropped_px(planes_of_answer(form.run(frame)), contract) for form in forms
        )
        if dropped > most:
            found, most = candidate, dropped
    return found


def clearly_dropped_px(logits: np.ndarray, contract: InputContract) -> int:
    """Return how many pixels are dropped; 0 where that is in doubt, or less than what is left.

    Args:
        logits: as `kept_logits` takes them.
        contract: of the network.
    """
    if not np.isfinite(logits).all():
        return 0
    lax, kept, strict = (
        labels_of(kept_logits(logits, each), contract)
        for each in (_moved(contract, -1), contract, _moved(contract, 1))
    )
    dropped = int(np.count_nonzero(labels_of(logits, contract) != kept))
    clear = np.array_equal(lax, kept) and np.array_equal(kept, strict)
    return dropped if clear and dropped > np.count_nonzero(kept) else 0


def _moved(contract: InputContract, side: int) -> InputContract:
    """Return the contract with a least lesion that is easier (-1) or harder (1) to reach."""
    areas = tuple(min(each * _LARGER**side, 1 - 1e-9) for each in contract.least_areas)
    peaks = []
    for peak, least, threshold in zip(
        contract.least_peaks, contract.least_logits, contract.thresholds, strict=True
    ):
        moved = 1 / (1 + math.exp(-(least + side * EMPTY_MARGIN)))
        peaks.append((min(moved, 1 - 1e-9) if moved > threshold else 0.0) if peak else 0.0)
    return replace(contract, least_area=areas, least_peak=tuple(peaks))


def _candidates(contract: InputContract) -> Iterator[ChosenFrame]:
    """Yield frames without a lesion, none of them of a patient."""
    height, width = min(contract.height, MAX_HEIGHT_PX), min(contract.width, MAX_WIDTH_PX)
    yield from _speckle(_SPECKLE, height, width)
    yield ChosenFrame("black", np.zeros((height, width), np.uint8))


def _speckle(kinds: Sequence[tuple[float, int]], height: int, width: int) -> Iterator[ChosenFrame]:
    for (mode, grain), seed in itertools.product(kinds, _SEEDS):
        grains = -(-height // grain), -(-width // (_WIDER * grain))
        echo = np.random.default_rng(seed).rayleigh(mode, grains)  # as even tissue gives it
        grey = np.clip(np.rint(echo), 0, 255).astype(np.uint8)
        yield ChosenFrame(
            f"speckle of mode {mode:g}, grain {grain} px, seed {seed}",
            resize_grey(grey, height, width),
        )


def golden_frames(
    phantoms: Sequence[np.ndarray],
    contract: InputContract,
    empty: ChosenFrame | None,
    dropped: ChosenFrame | None = None,
) -> tuple[np.ndarray, ...]:
    """Return phantoms in their own size, and the first also in sizes that a resize must master.

    Those are less than the network's input, more than twice of it (where that is within the
    limits of `pgm`) and odd. A network that takes colour gets all but the first of these sizes
    tinted, so that no two channels of them are alike.

    Args:
        phantoms: uint8 [H, W]; none gives none.
        contract: of the network.
        empty: comes last.
        dropped: comes before it.
    """
    if not phantoms:
        return ()
    first = phantoms[0]
    sizes = (
        (contract.height * 3 // 4, contract.width * 3 // 4),
        (2 * contract.height + 50, 2 * contract.width + 100),
        (contract.height + 87, contract.width + 121),
    )
    bounded = [(min(h, MAX_HEIGHT_PX), min(w, MAX_WIDTH_PX)) for h, w in sizes]
    resized = [resize_grey(first, *size) for size in bounded]
    frames = [*phantoms, *resized]
    if contract.takes_colour:
        frames = [frame if frame is resized[0] else _tinted(frame) for frame in frames]
    return (*frames, *(each.frame for each in (dropped, empty) if each))


def _tinted(grey: np.ndarray) -> np.ndarray:
    """Return uint8 [H, W] as RGB [H, W, 3] with a colour of its own in every grey level."""
    return np.stack([grey, grey - grey // 8, grey - grey // 4], axis=2)


def whole_frames(phantoms: Sequence[np.ndarray], width: int, height: int) -> tuple[np.ndarray, ...]:
    """Return phantoms in the size that a frame graph takes; of large frames fewer, one at least.

    Args:
        phantoms: uint8 [H, W], at least one.
        width: in px.
        height: in px.
    """
    count = max(1, _MOST_PIXELS // (width * height))
    return tuple(resize_grey(each, height, width) for each in phantoms[:count])


def write_vectors(
    folder: Path,
    frames: Sequence[np.ndarray],
    forms: Sequence[Form],
    contract: InputContract,
) -> GoldenVectors:
    """Write golden frames and each form's answers below `folder`, and say what was written.

    A form that another device will run answers here as it is proved here: exactly as written, in
    float arithmetic.

    Args:
        folder: of the bundle.
        frames: uint8 [H, W] or RGB [H, W, 3] each; none writes nothing.
        forms: one an engine.
        contract: of the network.
    """
    if not frames:
        return GoldenVectors()
    (folder / FOLDER).mkdir(exist_ok=True)
    suffixes = ("pgm" if frame.ndim == 2 else "ppm" for frame in frames)
    names = tuple(f"{FOLDER}/frame-{index}.{each}" for index, each in enumerate(suffixes))
    for name, frame in zip(names, frames, strict=True):
        (folder / name).write_bytes(pnm_from_pixels(frame))
    masks = {}
    for form in forms:
        answer = answer_of(form.run, contract)
        own = tuple(f"{FOLDER}/{form.engine}-{index}.pgm" for index in range(len(frames)))
        for name, frame in zip(own, frames, strict=True):
            mask = golden_from_labels(answer(frame)[1], contract)
            (folder / name).write_bytes(pnm_from_pixels(mask))
        masks[form.engine] = own
    limits = {form.engine: MAX_FLIPPED[form.precision] for form in forms}
    return GoldenVectors(names, masks, limits)
