"""Frames of more than 8 bits made grey by a window: which values are black, which are white."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import InputError


@dataclass(frozen=True)
class Window:
    """A linear window, DICOM PS3.3 C.11.2.1.2: what it is for is in the units of the values."""

    centre: float
    width: float  # >= 1, of an exact one above 0
    exact: bool = False  # LINEAR_EXACT, which neither shifts the centre nor shrinks the width

    def __post_init__(self) -> None:
        """Raise InputError (E-WINDOW) for a window that is none."""
        least = 0 if self.exact else 1
        if not (math.isfinite(self.centre) and math.isfinite(self.width)) or (
            self.width < least or self.width <= 0
        ):
            raise InputError(
                "E-WINDOW",
                f"a window of centre {self.centre:g} and width {self.width:g} shows nothing; give "
                "a centre and a width of at least 1, such as 40,400",
            )

    def grey_from(self, values: np.ndarray) -> np.ndarray:
        """Return values of any shape and type as grey, uint8 of that shape, rounded to nearest."""
        shift, shrink = (0.0, 0.0) if self.exact else (0.5, 1.0)
        offset = np.asarray(values, np.float64) - (self.centre - shift)
        if self.width - shrink == 0:  # one value is the edge
            edge: np.ndarray = (offset > 0) * np.uint8(255)
            return edge
        share = np.clip(offset / (self.width - shrink) + 0.5, 0, 1)
        grey: np.ndarray = np.floor(share * 255 + 0.5).astype(np.uint8)
        return grey


def window_from_text(text: str) -> Window:
    """Return the window that "CENTRE,WIDTH" says. Raises InputError: E-WINDOW."""
    try:
        centre, width = (float(word) for word in text.split(","))
    except ValueError as error:
        raise InputError(
            "E-WINDOW", f"{text[:40]!r} is no window; give CENTRE,WIDTH, such as 40,400"
        ) from error
    return Window(centre, width)


def window_unused(path: Path) -> InputError:
    """Return the refusal of a window for a file of 8 bits, which is grey as it is."""
    return InputError(
        "E-WINDOW", f"{path} has 8 bits, which are grey as they are; leave the window out"
    )
