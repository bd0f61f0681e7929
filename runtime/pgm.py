"""Binary PGM (P5) and PPM (P6) in one canonical form: golden frames and masks are stored in it.

No comments, one line break or blank between the fields, maxval 255, nothing behind the pixels. So
a few lines of C read it, and one picture has one sequence of bytes. Frames are grey, or RGB where
the contract takes colour. A mask is 255 where lesion; of several classes the number of the class.
"""

from __future__ import annotations

import re

import numpy as np

from .contract import InputContract
from .errors import Refused

MAX_WIDTH_PX = 800
MAX_HEIGHT_PX = 600
MAX_BYTES = 3 * MAX_WIDTH_PX * MAX_HEIGHT_PX + len(b"P6\n800 600\n255\n")
_HEADER = re.compile(rb"P([56])\n([1-9][0-9]{0,2}) ([1-9][0-9]{0,2})\n255\n")


def pnm_from_pixels(pixels: np.ndarray) -> bytes:
    """Return uint8 [H, W] as PGM, RGB [H, W, 3] as PPM.

    At most `MAX_HEIGHT_PX` by `MAX_WIDTH_PX`, else ValueError.
    """
    height, width = pixels.shape[:2]
    is_grey = pixels.ndim == 2
    fits = 0 < height <= MAX_HEIGHT_PX and 0 < width <= MAX_WIDTH_PX
    if pixels.dtype != np.uint8 or not fits or not (is_grey or pixels.shape[2:] == (3,)):
        raise ValueError(f"{pixels.dtype} {list(pixels.shape)} has no form as PGM or PPM")
    header = b"P%d\n%d %d\n255\n" % (5 if is_grey else 6, width, height)
    return header + np.ascontiguousarray(pixels).tobytes()


def golden_from_labels(mask: np.ndarray, contract: InputContract) -> np.ndarray:
    """Return a mask, uint8 [H, W], as it is stored: 255 for the lesion of a single class."""
    return mask * np.uint8(255) if len(contract.classes) == 1 else mask


def labels_from_golden(mask: np.ndarray, contract: InputContract) -> np.ndarray:
    """Return what `golden_from_labels` was given."""
    return (mask != 0).astype(np.uint8) if len(contract.classes) == 1 else mask


def pixels_from_pnm(content: bytes, name: str) -> np.ndarray:
    """Return the uint8 [H, W] or [H, W, 3] that `pnm_from_pixels` wrote; read-only.

    Args:
        content: the whole file.
        name: of the file, for messages.

    Raises Refused: E-PGM for anything that `pnm_from_pixels` does not write.
    """
    header = _HEADER.match(content)
    width, height = (int(header[2]), int(header[3])) if header else (0, 0)
    if header is None or not (width <= MAX_WIDTH_PX and height <= MAX_HEIGHT_PX):
        raise Refused(
            "E-PGM",
            f"{name} does not begin as PGM of at most {MAX_WIDTH_PX}x{MAX_HEIGHT_PX} px does "
            "('P5' or 'P6', width and height, '255'); export the bundle again",
        )
    shape = (height, width) if header[1] == b"5" else (height, width, 3)
    if len(content) != header.end() + int(np.prod(shape)):
        raise Refused(
            "E-PGM",
            f"{name} has {len(content) - header.end()} bytes of pixels, {width}x{height} px need "
            f"{int(np.prod(shape))}; export the bundle again",
        )
    return np.frombuffer(content, np.uint8, offset=header.end()).reshape(shape)
