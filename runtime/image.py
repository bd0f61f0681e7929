"""Frames in, masks out: reading, the network's input, and the mask in the frame's geometry."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Tuple

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
def read_image(path: Path, *, colour: bool = False, window: Optional[Window] = None) -> np.ndarray:
    """Read an image file as grey, uint8 [H, W] (colour by ITU-R BT.601 luma), or as RGB.

    It is turned as its orientation tag says, so that it is the picture that a viewer shows. DICOM
    is read whole, see `stream.dicom.read_still`.

    Args:
        path: of the file.
        colour: return RGB, uint8 [H, W, 3], whatever the file has; of more than 8 bits grey.
        window: what is shown of more than 8 bits; None: as a DICOM file itself says.

    Raises:
        InputError: E-IMAGE-READ (missing, truncated, no image), E-IMAGE-SIZE (over
            `MAX_IMAGE_PIXELS`), E-IMAGE-MODE (more than 8 bits a channel and no window; DICOM where
            colour is asked for), E-IMAGE-FRAMES (several frames or pages), E-WINDOW (a window for
            8 bits), and those of `read_still`.
        EngineError: E-EXTRA-MISSING for DICOM without pydicom.
    """
    if seems_dicom(path):
        from .stream.dicom import read_still

        if colour:
            raise InputError(
                "E-IMAGE-MODE",
                f"{path} is DICOM, which is read as grey, and colour is asked for; save the frame "
                "as PNG, or export the network with channels grey3",
            )
        return read_still(path, window=window, whole_frame=True).frame
    with open_image(path) as image, without_warnings():
        require_one_frame(image, path)
        return _pixels_of(image, path, "RGB" if colour else "L", window)


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
                grey = _pixels_of(image, path, "L", window)
            yield grey


def _pixels_of(image: Image.Image, path: Path, mode: str, window: Optional[Window]) -> np.ndarray:
    if is_deep(image):
        if window is not None and image.mode.startswith(("I", "F")):
            return window.grey_from(np.asarray(upright(image)))
        raise InputError(
            "E-IMAGE-MODE",
            f"{path} has more than 8 bits a channel (mode {image.mode}); window it to 8 bits first",
        )
    if window is not None:
        raise window_unused(path)
    return np.asarray(upright(image).convert(mode))


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


class Inset(NamedTuple):
    """Where a frame lies in the network's input, px."""

    top: int
    left: int
    height: int
    width: int

    @property
    def box(self) -> Tuple[slice, slice]:
        """Rows and columns of it."""
        return (
            slice(self.top, self.top + self.height),
            slice(self.left, self.left + self.width),
        )


def inset_of(contract: InputContract, height: int, width: int) -> Inset:
    """Return where a frame of height x width px lies in the network's input.

    A letterbox has the largest size that fits, its shorter side rounded half up and at least 1 px,
    in the middle; of an odd rest the smaller part comes first.
    """
    into_height, into_width = contract.height, contract.width
    if contract.resize == "letterbox":
        if height * into_width <= width * into_height:
            into_height = max(1, (2 * height * into_width + width) // (2 * width))
        else:
            into_width = max(1, (2 * width * into_height + height) // (2 * height))
    top, left = (contract.height - into_height) // 2, (contract.width - into_width) // 2
    return Inset(top, left, into_height, into_width)


def planes_of(frame: np.ndarray, contract: InputContract) -> List[np.ndarray]:
    """Return what the network's channels are of, uint8 [H, W] each: one for all, or one for each.

    Raises as `require_frame`.
    """
    if not contract.takes_colour or frame.ndim == 2:
        return [grey_from_frame(frame)]
    require_frame(frame)
    order = (0, 1, 2) if contract.channels == "rgb" else (2, 1, 0)
    return [frame[:, :, each] for each in order]


def input_from_frame(
    frame: np.ndarray, contract: InputContract, out: Optional[np.ndarray] = None
) -> np.ndarray:
    """Return the network's input, float32 [1, C, height, width], for a uint8 frame.

    Args:
        frame: uint8 [H, W] or RGB [H, W, 3].
        contract: gives channels, size and normalisation.
        out: optional float32 [1, C, height, width] to fill and return.
    """
    planes = planes_of(frame, contract)
    inset = inset_of(contract, *frame.shape[:2])
    resized = [resize_grey(plane, inset.height, inset.width) for plane in planes]
    if out is None:
        out = np.empty((1, contract.depth, contract.height, contract.width), np.float32)
    for index, (mean, std) in enumerate(zip(contract.means, contract.stds)):  # noqa: B905
        scale = np.float32(1 / (255 * std))
        channel = out[0, index]
        if contract.resize == "letterbox":
            channel.fill(np.float32(contract.pad) * scale)
        # (g / 255 - mean) / std as one multiply-add
        np.multiply(resized[index % len(resized)], scale, out=channel[inset.box])
        channel -= np.float32(mean / std)
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
    """Return logits in which nothing below the contract's least lesion is left.

    They are the same array where the contract drops nothing in it. A pixel that is dropped ends up
    below its class's threshold; all others keep their value.

    Args:
        logits: float32 [h, w] of a network of one class, [K, h, w] of several; where the frame is
            in the network's input.
        contract: of the network.
    """
    if not contract.drops:
        return logits
    kept = logits
    for index, plane in enumerate(_planes_of_classes(logits)):
        dropped = _kept_plane(
            plane,
            contract.logit_thresholds[index],
            math.ceil(contract.least_areas[index] * plane.size),
            contract.least_logits[index],
        )
        if dropped is plane:
            continue
        if logits.ndim == 2:
            return dropped
        if kept is logits:
            kept = logits.copy()
        kept[index] = dropped
    return kept


def planes_of_answer(answer: np.ndarray) -> np.ndarray:
    """Return the logits of a network's answer [1, K, h, w]: [h, w] of one class, else [K, h, w]."""
    logits: np.ndarray = answer[0]
    return logits[0] if len(logits) == 1 else logits


def _planes_of_classes(logits: np.ndarray) -> np.ndarray:
    return logits[None] if logits.ndim == 2 else logits


def _kept_plane(logits: np.ndarray, level: float, least_px: int, least_logit: float) -> np.ndarray:
    """Return the logits [h, w] of a class without its small components, or the array itself."""
    above = logits > level
    box = _box_of(above)
    if box is None:
        return logits
    dropped = small_components(above[box], logits[box], least_px, least_logit)
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


def _box_of(above: np.ndarray) -> Optional[Tuple[slice, slice]]:
    """Return rows and columns of the box around what is True, None where nothing is."""
    rows = np.flatnonzero(above.any(axis=1))
    if rows.size == 0:
        return None
    columns = np.flatnonzero(above.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def labels_of(logits: np.ndarray, contract: InputContract) -> np.ndarray:
    """Return the label of each logit without any resize, uint8 [h, w]: 0, or the class from 1 on.

    Args:
        logits: as `kept_logits` takes them, and returns them.
        contract: of the network.
    """
    planes = _planes_of_classes(logits)
    margins = planes - np.array(contract.logit_thresholds, np.float32)[:, None, None]
    labels: np.ndarray = (margins.argmax(axis=0) + 1).astype(np.uint8)
    labels[~(margins.max(axis=0) > 0)] = 0  # NaN is background too
    return labels


def mask_from_logits(
    logits: np.ndarray, contract: InputContract, height: int, width: int
) -> np.ndarray:
    """Return the mask, uint8 [height, width], in the frame's own geometry.

    It is 0 for background and the number of the class, from 1 on, elsewhere. What is below the
    least lesion is dropped (`kept_logits`), then the logits are interpolated bilinearly
    (half-pixel centres) and compared with the thresholds. Only the box around logits above the
    threshold is interpolated: outside it every value lies between values below the threshold,
    so the result is the same and costs what the lesion covers.

    Args:
        logits: float32 [h, w] of a network of one class, [K, h, w] of several.
        contract: of the network.
        height: of the frame in px.
        width: of the frame in px.
    """
    rows, columns = inset_of(contract, height, width).box
    logits = kept_logits(logits[..., rows, columns], contract)
    mask: np.ndarray = np.zeros((height, width), np.uint8)
    _mark(mask, (height, width), _planes_of_classes(logits), contract)
    return mask


def _mark(
    mask: np.ndarray, size: Tuple[int, ...], planes: np.ndarray, contract: InputContract
) -> None:
    """Mark in a mask of zeros, of the size, what is above the thresholds in planes [K, h, w]."""
    best = np.zeros(size, np.float32) if len(planes) > 1 else None
    for label, (plane, level) in enumerate(zip(planes, contract.logit_thresholds), 1):  # noqa: B905
        found = _interpolated(plane, level, *size)
        if found is None:
            continue
        box, values = found
        if best is None:
            np.greater(values, level, out=mask[box].view(np.bool_))
            continue
        values -= np.float32(level)  # above 0 just where it was above the level
        farther = values > best[box]
        best[box][farther] = values[farther]
        mask[box][farther] = label


def _interpolated(
    logits: np.ndarray, level: float, height: int, width: int
) -> Optional[Tuple[Tuple[slice, slice], np.ndarray]]:
    """Return logits [h, w] at a frame's size where they may be above a level: the box, and they.

    None where there are no such pixels.
    """
    found = _box_of(logits > level)
    if found is None:
        return None
    rows, columns = found
    y_low, y_up, y_weight = bilinear_taps(logits.shape[0], height)
    x_low, x_up, x_weight = bilinear_taps(logits.shape[1], width)
    # Output pixels one of whose taps lies in the box; both tap indices ascend.
    y0, y1 = y_up.searchsorted(rows.start), y_low.searchsorted(rows.stop - 1, side="right")
    x0, x1 = x_up.searchsorted(columns.start), x_low.searchsorted(columns.stop - 1, side="right")
    if y0 == y1 or x0 == x1:  # a small frame: the lesion lies between the pixels
        return None
    top, first = y_low[y0], x_low[x0]
    box = np.ascontiguousarray(logits[top : y_up[y1 - 1] + 1, first : x_up[x1 - 1] + 1])
    # Columns first, while there are few rows: gathering columns is what costs.
    lines = _interpolate(box, x_low[x0:x1] - first, x_up[x0:x1] - first, x_weight[x0:x1], axis=1)
    values = _interpolate(
        lines, y_low[y0:y1] - top, y_up[y0:y1] - top, y_weight[y0:y1, None], axis=0
    )
    return (slice(y0, y1), slice(x0, x1)), values


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
