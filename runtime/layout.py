"""Where the image is in the frames of a maker's screen, and what of it is no tissue."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Dict, Mapping, Tuple

import numpy as np

from .errors import InputError
from .image import MAX_FRAME_SIDE, MAX_IMAGE_PIXELS

Box = Tuple[int, int, int, int]  # left, top, right, bottom in px; right and bottom exclusive
MAX_SHAPES = 64  # blanked boxes, and corners of a fan: the C runtime holds them in fixed memory


@dataclass(frozen=True)
class Layout:
    """Frames of one size, whose crop alone is segmented.

    What lies in a `blank` box or outside the `fan` is 0 before the resize and never lesion. The
    mask has the frame's size. A pixel is in the fan if its centre is, by the even-odd rule in exact
    integers; a centre on an edge belongs to what is right of the edge.
    """

    width: int  # px of the frame, 1 to `MAX_FRAME_SIDE`
    height: int  # px of the frame, 1 to `MAX_FRAME_SIDE`; both at most `MAX_IMAGE_PIXELS` in all
    crop: Box  # what the network sees, in the frame
    blank: Tuple[Box, ...] = ()  # burnt-in text and marks, in the frame
    fan: Tuple[Tuple[int, int], ...] = ()  # corners x, y between pixels, 0..width, 0..height

    def __post_init__(self) -> None:
        """Raise InputError (E-LAYOUT) for a value out of range."""
        for name in ("width", "height"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= MAX_FRAME_SIDE:
                raise _wrong(name, value, f"a whole number in 1..{MAX_FRAME_SIDE}")
        if self.width * self.height > MAX_IMAGE_PIXELS:
            raise _wrong(
                "width x height",
                f"{self.width}x{self.height}",
                f"at most {MAX_IMAGE_PIXELS} px in all",
            )
        self._require_box("crop", self.crop)
        for name, value in (("blank", self.blank), ("fan", self.fan)):
            if not isinstance(value, tuple) or len(value) > MAX_SHAPES:
                raise _wrong(name, value, f"at most {MAX_SHAPES} entries")
        for index, box in enumerate(self.blank):
            self._require_box(f"blank[{index}]", box)
        if len(self.fan) in (1, 2):
            raise _wrong("fan", self.fan, "no corner or at least 3")
        for index, corner in enumerate(self.fan):
            if not _are_whole(corner, 2) or not (
                0 <= corner[0] <= self.width and 0 <= corner[1] <= self.height
            ):
                raise _wrong(
                    f"fan[{index}]", corner, f"[x, y] in 0..{self.width} and 0..{self.height}"
                )
        top, bottom = self.crop[1], self.crop[3]
        if not any(self._keep_row(row).any() for row in range(top, bottom)):  # ends at the first
            raise InputError(
                "E-LAYOUT", "layout keeps no pixel of its crop; correct crop, blank and fan"
            )

    @property
    def keep(self) -> np.ndarray:
        """Which pixels of the crop are image: uint8 of 0 and 1, [bottom - top, right - left].

        Made anew each time, row by row: keep it.
        """
        left, top, right, bottom = self.crop
        keep = np.empty((bottom - top, right - left), np.uint8)
        for row in range(top, bottom):
            keep[row - top] = self._keep_row(row)
        return keep

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {
            "width": self.width,
            "height": self.height,
            "crop": list(self.crop),
            "blank": [list(box) for box in self.blank],
            "fan": [list(corner) for corner in self.fan],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Layout:
        """Read the result of `to_dict`; `blank` and `fan` may be left out.

        Raises InputError (E-LAYOUT), which names the field.
        """
        known = {each.name for each in fields(cls)}
        if not isinstance(values, Mapping) or not known - {"blank", "fan"} <= set(values) <= known:
            raise InputError(
                "E-LAYOUT",
                f"layout is not an object with the fields {', '.join(sorted(known))} alone",
            )
        return cls(
            **{
                name: _tuple_of(value) if isinstance(value, list) else value
                for name, value in values.items()
            }
        )

    def crop_of(self, frame: np.ndarray) -> np.ndarray:
        """Return the crop of a frame [H, W] or [H, W, 3], a view.

        Raises InputError (E-FRAME) for a frame of another size.
        """
        if frame.shape[:2] != (self.height, self.width):
            raise InputError(
                "E-FRAME",
                f"frame is {frame.shape[1]}x{frame.shape[0]} px, the bundle's layout is of "
                f"{self.width}x{self.height}; give whole frames of that screen",
            )
        left, top, right, bottom = self.crop
        return frame[top:bottom, left:right]

    def paste(self, mask: np.ndarray) -> np.ndarray:
        """Return the mask of the frame, uint8 [height, width], for that of the crop."""
        left, top, right, bottom = self.crop
        whole = np.zeros((self.height, self.width), np.uint8)
        whole[top:bottom, left:right] = mask
        return whole

    def _keep_row(self, row: int) -> np.ndarray:
        """Which pixels of one row of the frame are image: uint8 [right - left] of the crop."""
        whole = _fan_row(self.fan, row, self.width) if self.fan else np.ones(self.width, np.uint8)
        for left, top, right, bottom in self.blank:
            if top <= row < bottom:
                whole[left:right] = 0
        return whole[self.crop[0] : self.crop[2]]

    def _require_box(self, name: str, box: Any) -> None:
        if not _are_whole(box, 4) or not (
            0 <= box[0] < box[2] <= self.width and 0 <= box[1] < box[3] <= self.height
        ):
            raise _wrong(
                name, box, f"[left, top, right, bottom] inside {self.width}x{self.height} px"
            )


def _are_whole(value: Any, count: int) -> bool:
    """Say whether a value is a tuple of so many integers; a bool is none."""
    return (
        isinstance(value, tuple)
        and len(value) == count
        and all(type(number) is int for number in value)
    )


def _tuple_of(values: Any) -> Any:
    """Return a list, and the lists in it, as tuples."""
    return tuple(tuple(each) if isinstance(each, list) else each for each in values)


def _fan_row(fan: Tuple[Tuple[int, int], ...], row: int, width: int) -> np.ndarray:
    """Say which pixels of one row are in the fan, uint8 [width].

    The centre of pixel x, y is 2x + 1, 2y + 1 where corners are doubled: it is never level with a
    corner, and whether an edge crosses right of it is a comparison of integers.
    """
    level = 2 * row + 1
    inside = np.zeros(width, np.uint8)
    for index, (x1, y1) in enumerate(fan):
        x0, y0 = fan[index - 1]
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        if not 2 * y0 <= level < 2 * y1:
            continue
        rise = 2 * (y1 - y0)
        # (2x + 1 - 2 x0) rise < (level - 2 y0) (2 x1 - 2 x0), solved for the number of such x >= 0
        bound = (level - 2 * y0) * 2 * (x1 - x0) + (2 * x0 - 1) * rise
        inside[: max(0, -(-bound // (2 * rise)))] ^= 1
    return inside


def _wrong(name: str, value: Any, expected: str) -> InputError:
    text = str(list(value) if isinstance(value, tuple) else value)
    return InputError(
        "E-LAYOUT", f"{name} of the layout is {text[:80]}; expected {expected}, correct it"
    )
