"""Binary PGM (P5) in one canonical form: what golden frames and masks are stored in.

No comments, one line break or blank between the fields, maxval 255, nothing behind the pixels. So
a few lines of C read it, and one picture has one sequence of bytes.
"""

from __future__ import annotations

import re

import numpy as np

from .errors import Refused

MAX_WIDTH_PX = 800
MAX_HEIGHT_PX = 600
MAX_BYTES = MAX_WIDTH_PX * MAX_HEIGHT_PX + len(b"P5\n800 600\n255\n")
_HEADER = re.compile(rb"P5\n([1-9][0-9]{0,2}) ([1-9][0-9]{0,2})\n255\n")


def pgm_from_grey(grey: np.ndarray) -> bytes:
    """Return uint8 [H, W] as PGM; at most `MAX_HEIGHT_PX` by `MAX_WIDTH_PX`, else ValueError."""
    height, width = grey.shape
    if grey.dtype != np.uint8 or not 0 < height <= MAX_HEIGHT_PX or not 0 < width <= MAX_WIDTH_PX:
        raise ValueError(f"{grey.dtype} {list(grey.shape)} has no form as PGM")
    return b"P5\n%d %d\n255\n" % (width, height) + np.ascontiguousarray(grey).tobytes()


def grey_from_pgm(content: bytes, name: str) -> np.ndarray:
    """Return the uint8 [H, W] that `pgm_from_grey` wrote; read-only.

    Args:
        content: the whole file.
        name: of the file, for messages.

    Raises Refused: E-PGM for anything that `pgm_from_grey` does not write.
    """
    header = _HEADER.match(content)
    width, height = (int(header[1]), int(header[2])) if header else (0, 0)
    if header is None or not (width <= MAX_WIDTH_PX and height <= MAX_HEIGHT_PX):
        raise Refused(
            "E-PGM",
            f"{name} does not begin as PGM of at most {MAX_WIDTH_PX}x{MAX_HEIGHT_PX} px does "
            "('P5', width and height, '255'); export the bundle again",
        )
    if len(content) != header.end() + width * height:
        raise Refused(
            "E-PGM",
            f"{name} has {len(content) - header.end()} bytes of pixels, {width}x{height} px need "
            f"{width * height}; export the bundle again",
        )
    return np.frombuffer(content, np.uint8, offset=header.end()).reshape(height, width)
