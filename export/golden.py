"""Golden vectors: frames that travel in a bundle with what its engines answered to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ..runtime.bundle import GoldenVectors
from ..runtime.contract import InputContract
from ..runtime.image import resize_grey
from ..runtime.pgm import MAX_HEIGHT_PX, MAX_WIDTH_PX, pgm_from_grey
from .forms import Form
from .parity import answer_of

FOLDER = "vectors"
_MOST_PIXELS = 1 << 22  # of a frame graph's golden frames together: a kit has to stay small
# Largest share of a golden frame's lesion that may differ from the answer at export. Over both
# shipped students FP32 differed in no pixel between OpenVINO, ONNX Runtime and exact arithmetic,
# INT8 in up to 3.7 % (of a lesion of 1 000 px): kernels round differently. Not yet measured on a
# Jetson.
MAX_FLIPPED: Mapping[str, float] = MappingProxyType({"fp32": 0.01, "fp16": 0.02, "int8": 0.1})


def golden_frames(
    phantoms: Sequence[np.ndarray], contract: InputContract
) -> tuple[np.ndarray, ...]:
    """Return phantoms in their own size, and the first also in sizes that a resize must master.

    Those are less than the network's input, more than twice of it (where that is within the
    limits of `pgm`) and odd.

    Args:
        phantoms: uint8 [H, W]; none gives none.
        contract: of the network.
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
    return (*phantoms, *(resize_grey(first, *size) for size in bounded))


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
        frames: uint8 [H, W] each; none writes nothing.
        forms: one an engine.
        contract: of the network.
    """
    if not frames:
        return GoldenVectors()
    (folder / FOLDER).mkdir(exist_ok=True)
    names = tuple(f"{FOLDER}/frame-{index}.pgm" for index in range(len(frames)))
    for name, frame in zip(names, frames, strict=True):
        (folder / name).write_bytes(pgm_from_grey(frame))
    masks = {}
    for form in forms:
        answer = answer_of(form.run, contract)
        own = tuple(f"{FOLDER}/{form.engine}-{index}.pgm" for index in range(len(frames)))
        for name, frame in zip(own, frames, strict=True):
            (folder / name).write_bytes(pgm_from_grey(answer(frame)[1] * np.uint8(255)))
        masks[form.engine] = own
    limits = {form.engine: MAX_FLIPPED[form.precision] for form in forms}
    return GoldenVectors(names, masks, limits)
