"""Frames in, masks out: reading, the network's input, and the mask in the frame's geometry."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Iterator, Optional, Tuple

import numpy as np
from PIL import Image

from .contract import InputContract
from .errors import InputError
from .folder import seems_dicom
from .image_file import MAX_IMAGE_PIXELS as MAX_IMAGE_PIXELS
from .image_file import (
    frame_count,
    frame_numbers,
    is_deep,
    open_image,
    require_one_frame,
    require_size,
    upright,
    without_warnings,
)
from .lesion import small_components
from .paths import takes_paths
from .window import Window, window_unused

MAX_FRAME_SIDE = 16384  # px; the C runtime has the same limit


@takes_paths
def read_image(path: Path, *, window: Optional[Window] = None) -> np.ndarray:
    """Read an image file as grey, uint8 [H, W] (colour by ITU-R BT.601 luma).

    It is turned as its orientation tag says, so that it is the picture that a viewer shows. A DICOM
    still is read whole, see `stream.dicom.read_still`.

    Args:
        path: of the file.
        window: what is shown of more than 8 bits; None: as a DICOM file itself says.

    Raises:
        InputError: E-IMAGE-READ (missing, truncated, no image), E-IMAGE-SIZE (over
            `MAX_IMAGE_PIXELS`), E-IMAGE-MODE (more than 8 bits a channel and no window),
            E-IMAGE-FRAMES (several frames or pages), E-WINDOW (a window for 8 bits), and those of
            `read_still`.
        EngineError: E-EXTRA-MISSING for DICOM without pydicom.
    """
    if seems_dicom(path):
        from .stream.dicom import read_still

        return read_still(path, window=window, whole_frame=True).grey
    with open_image(path) as image, without_warnings():
        require_one_frame(image, path)
        return _grey_of(image, path, window)


@takes_paths
def read_frames(path: Path, *, window: Optional[Window] = None) -> Iterator[np.ndarray]:
    """Yield every frame of an image file (TIFF stack, GIF, APNG) as `read_image` reads one.

    Raises InputError as `read_image`; E-IMAGE-FRAMES for a stack of ImageJ whose pages cannot be
    told apart.
    """
    with open_image(path) as image:
        with without_warnings():
            numbers = frame_numbers(image)
            if frame_count(image) > numbers.stop:
                require_one_frame(image, path)
        for number in numbers:
            with without_warnings():  # not while another is at work on the frame
                image.seek(number)
                require_size(image, path)
                grey = _grey_of(image, path, window)
            yield grey


def _grey_of(image: Image.Image, path: Path, window: Optional[Window]) -> np.ndarray:
    if is_deep(image):
        if window is not None and image.mode.startswith(("I", "F")):
            return window.grey_from(np.asarray(upright(image)))
        raise InputError(
            "E-IMAGE-MODE",
            f"{path} has more than 8 bits a channel (mode {image.mode}); window it to 8 bits first",
        )
    if window is not None:
        raise window_unused(path)
    return np.asarray(upright(image).convert("L"))


def require_frame(frame: np.ndarray) -> None:
    """Raise InputError (E-FRAME) unless a frame is uint8 [H, W] or RGB [H, W, 3].

    No side may be 0 or over `MAX_FRAME_SIDE`, and no frame over `MAX_IMAGE_PIXELS`.
    """
    if not isinstance(frame, np.ndarray) or isinstance(frame, np.ma.MaskedArray):
        raise InputError("E-FRAME", f"frame is a {type(frame).__name__}; expected a numpy array")
    shape = frame.shape
    if frame.dtype != np.uint8 or len(shape) not in (2, 3) or 0 in shape:
        raise InputError(
            "E-FRAME",
            f"frame is {frame.dtype} {list(shape)}; expected uint8 [H, W] or [H, W, 3]",
        )
    if len(shape) == 3 and shape[2] != 3:
        raise InputError("E-FRAME", f"frame has {shape[2]} channels; expected [H, W] or [H, W, 3]")
    if max(shape) > MAX_FRAME_SIDE or shape[0] * shape[1] > MAX_IMAGE_PIXELS:
        raise InputError(
            "E-FRAME",
            f"frame is {shape[1]}x{shape[0]} px, over {MAX_FRAME_SIDE} px a side or "
            f"{MAX_IMAGE_PIXELS} in all; crop or shrink it",
        )


def grey_from_frame(frame: np.ndarray) -> np.ndarray:
    """Return a frame as uint8 [H, W]. Takes uint8 [H, W] or RGB [H, W, 3], any strides.

    Raises as `require_frame`.
    """
    require_frame(frame)
    if frame.ndim == 2:
        return frame
    return np.asarray(Image.fromarray(np.ascontiguousarray(frame)).convert("L"))


def resize_grey(grey: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 [H, W] to uint8 [height, width], bilinear with antialiasing.

    A box reduction by a whole number comes first where the frame is larger, see
    `reduction_factor`. The same function serves training, calibration and the device;
    `edgeseg.export.frame_graph` is the same in ONNX, to the last bit.
    """
    if grey.shape == (height, width):
        return grey
    image = Image.fromarray(np.ascontiguousarray(grey))
    factors = reduction_factor(image.width, width), reduction_factor(image.height, height)
    if factors != (1, 1):
        image = image.reduce(factors)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def reduction_factor(size_in: int, size_out: int) -> int:
    """Return the side in px of the boxes that are averaged along one axis before it is resized.

    It may overshoot the target by a tenth (the 0.2 below): that costs no visible detail and up to a
    third of the time.
    """
    return int(size_in / size_out + 0.2) or 1


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize bool [H, W] to bool [height, width]: True where at least half of the area is."""
    if mask.shape == (height, width):
        return mask
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)) >= 128


def input_from_frame(
    frame: np.ndarray, contract: InputContract, out: Optional[np.ndarray] = None
) -> np.ndarray:
    """Return the network's input, float32 [1, 1, height, width], for a uint8 frame.

    Args:
        frame: uint8 [H, W] or [H, W, 3].
        contract: gives size and normalisation.
        out: optional float32 [1, 1, height, width] to fill and return.
    """
    grey = resize_grey(grey_from_frame(frame), contract.height, contract.width)
    if out is None:
        out = np.empty((1, 1, contract.height, contract.width), np.float32)
    # (g / 255 - mean) / std as one multiply-add
    np.multiply(grey, np.float32(1 / (255 * contract.std)), out=out[0, 0])
    out -= np.float32(contract.mean / contract.std)
    return out


@functools.lru_cache(maxsize=16)  # a device meets few frame sizes
def bilinear_taps(size_in: int, size_out: int) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return lower index, upper index (int64) and upper weight (float32), half-pixel centres."""
    position = (np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5
    position = np.clip(position, 0, size_in - 1)
    lower = np.floor(position).astype(np.int64)
    upper = np.minimum(lower + 1, size_in - 1)
    return lower, upper, (position - lower).astype(np.float32)


def kept_logits(logits: np.ndarray, contract: InputContract) -> np.ndarray:
    """Return logits [h, w] of the contract's size in which nothing below its least lesion is left.

    They are the same array where the contract drops nothing in it. A pixel that is dropped ends up
    below the threshold; all others keep their value.
    """
    if not contract.drops:
        return logits
    level = contract.logit_threshold
    above = logits > level
    rows = np.flatnonzero(above.any(axis=1))
    if rows.size == 0:
        return logits
    columns = np.flatnonzero(above.any(axis=0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    dropped = small_components(above[box], logits[box], contract.least_px, contract.least_logit)
    if not dropped.any():
        return logits
    # The masks of the others stay what they are, to the bit. A pixel of the frame is made of the
    # four logits of a 2x2 cell. Two pixels of such a cell touch, so that no cell has parts of two
    # components: one with a pixel that stays has none that goes, and its values do not change; in
    # all others nothing is above the level any more. The margin is for float32, in which
    # low + (up - low) * weight may come out above both.
    kept: np.ndarray = logits.copy()
    kept[box][dropped.view(np.bool_)] = np.float32(level - 1)
    return kept


def mask_from_logits(
    logits: np.ndarray, contract: InputContract, height: int, width: int
) -> np.ndarray:
    """Return the mask, uint8 [height, width] of 0 and 1, in the frame's own geometry.

    What is below the least lesion is dropped (`kept_logits`), then the logits [h, w] are
    interpolated bilinearly (half-pixel centres) and thresholded. Only the box around logits above
    the threshold is interpolated: outside it every value lies between values below the threshold,
    so the result is the same and costs what the lesion covers.
    """
    logits = kept_logits(logits, contract)
    mask = np.zeros((height, width), np.uint8)
    level = contract.logit_threshold
    above = logits > level
    rows = np.flatnonzero(above.any(axis=1))
    if rows.size == 0:
        return mask
    columns = np.flatnonzero(above.any(axis=0))
    y_low, y_up, y_weight = bilinear_taps(logits.shape[0], height)
    x_low, x_up, x_weight = bilinear_taps(logits.shape[1], width)
    # Output pixels one of whose taps lies in the box; both tap indices ascend.
    y0, y1 = y_up.searchsorted(rows[0]), y_low.searchsorted(rows[-1], side="right")
    x0, x1 = x_up.searchsorted(columns[0]), x_low.searchsorted(columns[-1], side="right")
    if y0 == y1 or x0 == x1:  # a small frame: the lesion lies between the pixels
        return mask
    top, first = y_low[y0], x_low[x0]
    box = np.ascontiguousarray(logits[top : y_up[y1 - 1] + 1, first : x_up[x1 - 1] + 1])
    # Columns first, while there are few rows: gathering columns is what costs.
    lines = _interpolate(box, x_low[x0:x1] - first, x_up[x0:x1] - first, x_weight[x0:x1], axis=1)
    values = _interpolate(
        lines, y_low[y0:y1] - top, y_up[y0:y1] - top, y_weight[y0:y1, None], axis=0
    )
    np.greater(values, level, out=mask[y0:y1, x0:x1].view(np.bool_))
    return mask


def _interpolate(
    values: np.ndarray, low: np.ndarray, up: np.ndarray, weight: np.ndarray, axis: int
) -> np.ndarray:
    # The taps are in range; "clip" spares the copy that numpy makes to check them.
    result = values.take(low, axis=axis, mode="clip")
    step = values.take(up, axis=axis, mode="clip")
    step -= result
    step *= weight
    result += step
    return result
