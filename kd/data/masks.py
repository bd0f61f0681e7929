"""Mask files: which pixels are lesion, by one rule for every way that masks are stored.

The rule, which `docs/data.md` states for who makes masks: background is black or transparent, and
a lesion is what differs from it. What could be meant in two ways is refused and never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...runtime.errors import InputError
from ...runtime.image_file import is_deep, open_image, require_one_frame, upright, without_warnings

MAX_LEVELS = 32  # of a mask of classes or instances; soft edges have more
LOSSY = ("JPEG", "MPO", "JPEG2000")  # formats that change values
# Of 255: up to the one is noise of background, from the other on noise of lesion.
_LOW, _HIGH = 31, 224
_VOID = 255  # of class numbers: pixels that nobody decided on
_WIDE_EDGE_PX = 5  # what lies between for so many pixels both ways is no edge
_UNDECIDED = (224, 224, 192)  # the colour of PASCAL VOC for pixels that nobody decided on


@dataclass(frozen=True)
class Mask:
    """A mask and what is unusual about its file."""

    lesion: npt.NDArray[np.bool_]  # [H, W]
    coloured: bool = False
    odd_values: str = ""  # which, where they are neither 0 and 1 nor 0 and full scale
    has_alpha: bool = False  # that is not opaque everywhere
    numbered: bool = False  # several low values but 0 and 255: classes, or numbers of lesions


@dataclass(frozen=True)
class _Pixels:
    levels: npt.NDArray[np.int64]  # [H, W], 0 is background
    full: int  # level of white: 255 or 65535
    coloured: bool = False
    has_alpha: bool = False


def read_mask(path: Path) -> npt.NDArray[np.bool_]:
    """Return the lesion of a mask file, bool [H, W]; see `inspect_mask`."""
    return inspect_mask(path).lesion


def read_colours(path: Path) -> npt.NDArray[np.uint8]:
    """Return the colours of a mask file, uint8 [H, W, 3]: over black, where it is transparent.

    For data sets that say what each colour is. Raises InputError: E-IMAGE-READ, E-IMAGE-SIZE,
    E-IMAGE-MODE, E-IMAGE-FRAMES.
    """
    with open_image(path) as image, without_warnings():
        require_one_frame(image, path)
        if is_deep(image):
            raise _too_deep(image, path)
        rgba = np.asarray(upright(image).convert("RGBA")).astype(np.int64)
    return (rgba[:, :, :3] * rgba[:, :, 3:] // 255).astype(np.uint8)


def inspect_mask(path: Path) -> Mask:
    """Read a mask file and say what is unusual about it.

    - The background is black. Where transparency differs within the file, it is what is
      transparent, and the file is its colours over black; or its opacity, where all that is seen
      has one colour.
    - A file of two values, or of at most `MAX_LEVELS` that each cover an area (classes,
      instances, colours, a palette): lesion is what is not background.
    - Any other, such as soft edges and JPEG: lesion is what is over half of full scale. All but
      the edges must be near black or near full scale.
    - It is turned as `runtime.image.read_image` turns its image. 16 bits a pixel are read as 8 are.

    Raises InputError: E-MASK-VALUES (no black background, areas of values in between, colours that
    nobody decided on), E-MASK-INVERTED (a lesion over most of the border and of the area),
    E-IMAGE-FRAMES (several pages), E-IMAGE-READ, E-IMAGE-SIZE, E-IMAGE-MODE (float, or colour of
    more than 8 bits).
    """
    with open_image(path) as image, without_warnings():
        require_one_frame(image, path)
        lossy = image.format in LOSSY
        pixels = _pixels_of(image, path)
    values = _values_of(pixels.levels)
    lesion = _lesion_of(pixels, values, lossy, path)
    if _seems_inverted(lesion):
        raise InputError(
            "E-MASK-INVERTED",
            f"mask {path} marks {lesion.mean():.0%} of the image and most of its border, so it "
            "seems inverted; store lesions bright on black",
        )
    low = (values <= MAX_LEVELS) | (values == _VOID)
    numbered = not pixels.coloured and values.size > 2 and bool(low.all())
    return Mask(lesion, pixels.coloured, _odd_values(pixels, values), pixels.has_alpha, numbered)


def _refused(path: Path, what: str, mend: str = "store it as 0 and 255") -> InputError:
    return InputError("E-MASK-VALUES", f"mask {path} {what}; {mend}")


def _too_deep(image: Image.Image, path: Path) -> InputError:
    return InputError(
        "E-IMAGE-MODE",
        f"mask {path} has pixels of mode {image.mode} of more than 8 bits a channel; store it as "
        "8-bit grey",
    )


def _pixels_of(image: Image.Image, path: Path) -> _Pixels:
    """Return the levels of an opened mask file; colours by their largest channel."""
    if is_deep(image) and not image.mode.startswith("I"):
        raise _too_deep(image, path)
    shown = upright(image)
    if shown.mode.startswith("I"):
        levels = np.asarray(shown).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise _refused(path, f"has values from {levels.min()} to {levels.max()}")
        return _Pixels(levels, 65535 if levels.max() > 255 else 255)
    if shown.mode in ("1", "L") and "transparency" not in shown.info:
        return _Pixels(np.asarray(shown.convert("L")).astype(np.int64), 255)
    indices = _values_of(np.asarray(shown)).size if shown.mode == "P" else 1
    rgba = np.asarray(shown.convert("RGBA")).astype(np.int64)
    colours, alpha = rgba[:, :, :3], rgba[:, :, 3]
    if indices > 1 and (rgba == rgba[0, 0]).all():
        raise _refused(path, f"has {indices} values whose colours in its palette are the same")
    if (colours == _UNDECIDED).all(axis=2).any():
        raise _refused(path, f"has pixels of the colour {_UNDECIDED}, which VOC leaves undecided")
    coloured = bool((colours != colours[:, :, :1]).any())
    brightness = colours.max(axis=2)
    has_alpha = bool(alpha.min() < 255)
    if alpha.min() == alpha.max() > 0:  # tells nothing
        _require_black(colours, path)
        return _Pixels(brightness, 255, coloured, has_alpha)
    if alpha.max() == 0 and (colours != colours[0, 0]).any():
        raise _refused(path, "is transparent everywhere, and has a picture beneath")
    seen = colours[2 * alpha > alpha.max()]
    if (seen == seen[:1]).all():
        return _Pixels(alpha, 255, False, has_alpha)
    return _Pixels(brightness * alpha // 255, 255, coloured, has_alpha)


def _require_black(colours: npt.NDArray[np.int64], path: Path) -> None:
    """Refuse colours none of which is nearly black, but for a file of one colour."""
    if colours.max(axis=2).min() > _LOW and (colours != colours[0, 0]).any():
        raise _refused(path, "has no black pixel, so that its background is not known")


def _lesion_of(
    pixels: _Pixels, values: npt.NDArray[np.int64], lossy: bool, path: Path
) -> npt.NDArray[np.bool_]:
    levels, scale = pixels.levels, pixels.full // 255
    if values.size == 1:  # all lesion, or nothing of it
        return levels > (_LOW if lossy else 0)
    if not lossy and values.size <= MAX_LEVELS:
        # Of two values each is flat, whatever it covers.
        flat = np.isin(values, values if values.size == 2 else _levels_with_area(levels))
        if flat.all():
            if values[0] != 0:
                raise _refused(path, f"has the values {_listed(values)} and no 0 for background")
            return levels > 0
        # Neither noise nor an edge, and what the others are is not known.
        doubtful = values[flat & (values > 0) & (values < _HIGH * scale)]
        if doubtful.size:
            raise _refused(
                path,
                f"has areas of {_listed(doubtful)} and slivers of {_listed(values[~flat])}, which "
                "may be lesions or edges",
            )
    if values[-1] < _HIGH * scale or values[0] > _LOW * scale:
        raise _refused(
            path, f"has values from {values[0]} to {values[-1]}, not black and full scale"
        )
    between = (levels > _LOW * scale) & (levels < _HIGH * scale)
    if _holds_square(between, _WIDE_EDGE_PX) or between.mean() > 0.5:
        inside = levels[between]
        raise _refused(
            path,
            f"has more than edges between black and full scale ({inside.min()} to {inside.max()})",
        )
    return levels > 127 * scale


def _levels_with_area(levels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the levels that cover a square of three pixels a side somewhere."""
    centre = levels[1:-1, 1:-1]
    same = np.ones(centre.shape, np.bool_)
    height, width = centre.shape
    for down in range(3):
        for across in range(3):
            same &= levels[down : down + height, across : across + width] == centre
    return _values_of(centre[same])


def _values_of(levels: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Return the values that occur, sorted, as `np.unique` does, which takes ten times as long."""
    return np.flatnonzero(np.bincount(levels.ravel()))


def _holds_square(marked: npt.NDArray[np.bool_], side: int) -> bool:
    """Whether a mask has a square of `side` pixels that is all marked."""
    for axis in (0, 1):
        runs = np.cumsum(np.insert(marked, 0, 0, axis=axis), axis=axis)
        length = runs.shape[axis]
        if length <= side:
            return False
        ends, starts = (np.arange(first, length - side + first) for first in (side, 0))
        marked = runs.take(ends, axis=axis) - runs.take(starts, axis=axis) == side
    return bool(marked.any())


def _seems_inverted(lesion: npt.NDArray[np.bool_]) -> bool:
    """Whether more than half of the border and of the area are marked, but not all.

    Of the lesions of BUSI and BUS-BRA that cover over 40 % none has more than 3 % of the border.
    """
    border = np.concatenate([lesion[0], lesion[-1], lesion[1:-1, 0], lesion[1:-1, -1]])
    return bool(border.mean() > 0.5 and 0.5 < lesion.mean() < 1)


def _odd_values(pixels: _Pixels, values: npt.NDArray[np.int64]) -> str:
    """Return the values of a file that are neither 0 and 1 nor 0 and full scale, for a report."""
    usual = any(set(values.tolist()) <= {0, top} for top in (1, 255, pixels.full))
    if pixels.coloured:
        return "colours"
    return "" if usual or pixels.has_alpha else f"values {_listed(values)}"


def _listed(values: npt.NDArray[np.int64]) -> str:
    if values.size <= 8:
        return ", ".join(map(str, values))
    return f"from {values[0]} to {values[-1]} ({values.size} different)"
