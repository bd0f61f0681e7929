"""Image files opened for reading: caps, orientation, how many frames, and errors of one line."""

from __future__ import annotations

import contextlib
import re
import struct
import warnings
from pathlib import Path
from typing import Iterator

from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import InputError

MAX_IMAGE_PIXELS = 64 * 1024 * 1024  # refused before decoding; the largest BUSI frame has 0.8 M
_ORIENTATION, _DESCRIPTION = 0x0112, 270  # tags of EXIF and TIFF
# ImageJ and tifffile write a stack as one page with its count in the description.
_IMAGEJ = re.compile(r"ImageJ=.*?\nimages=(\d{1,9})\n", re.DOTALL)
_UNREADABLE = (
    UnidentifiedImageError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    struct.error,
    SyntaxError,  # Pillow's word for a broken PNG chunk,
)


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Silence Pillow: our cap of pixels is lower than its own, and grey has no alpha to lose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image file, whose pixels are not decoded yet; use it `without_warnings`.

    Raises InputError: E-IMAGE-READ (missing, truncated, no image), also for what Pillow raises
    while the file is used; E-IMAGE-SIZE (over `MAX_IMAGE_PIXELS`).
    """
    try:
        # By a file object: a TIFF that Pillow opens by its path and maps into memory comes out
        # sheared where its orientation exchanges the sides (Pillow 13).
        with Path(path).open("rb") as file:
            with without_warnings():
                image = Image.open(file)
            with image:
                require_size(image, path)
                yield image
    except FileNotFoundError as error:
        raise InputError("E-IMAGE-READ", f"no such image: {path}") from error
    except Image.DecompressionBombError as error:  # Pillow's own cap, above ours
        raise InputError("E-IMAGE-SIZE", f"{path}: {error}; crop or shrink it") from error
    except _UNREADABLE as error:
        raise InputError(
            "E-IMAGE-READ", f"cannot read image {path} ({error}); replace or remove the file"
        ) from error


def require_size(image: Image.Image, path: Path) -> None:
    """Raise InputError (E-IMAGE-SIZE) for a frame of over `MAX_IMAGE_PIXELS`."""
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise InputError(
            "E-IMAGE-SIZE",
            f"{path} has {image.width}x{image.height} pixels, over the cap of "
            f"{MAX_IMAGE_PIXELS}; crop or shrink it",
        )


def is_deep(image: Image.Image) -> bool:
    """Whether an image that is not decoded yet has more than 8 bits a channel."""
    # Pillow cuts 16-bit colour to 8 by itself; its raw mode tells, as in "RGB;16B".
    return image.mode.startswith(("I", "F")) or ";16" in str(getattr(image, "tile", ""))


def frame_numbers(image: Image.Image) -> range:
    """Return where `Image.seek` finds the frames or pages of a file."""
    if image.format == "MPO":  # a JPEG of a camera; what follows are previews and other views
        return range(1)
    # A picture that APNG shows where animation is not known is no frame of it.
    first = 1 if image.info.get("default_image") else 0
    return range(first, max(getattr(image, "n_frames", 1), 1))


def frame_count(image: Image.Image) -> int:
    """Return how many pictures a file holds, those of a one-page stack of ImageJ included."""
    told = 1
    if image.format == "TIFF":
        found = _IMAGEJ.match(str(image.getexif().get(_DESCRIPTION, "")))
        told = int(found[1]) if found else 1
    return max(told, frame_numbers(image).stop)


def require_one_frame(image: Image.Image, path: Path) -> None:
    """Raise InputError (E-IMAGE-FRAMES) for a file of several frames or pages."""
    count = frame_count(image)
    if count > 1:
        raise InputError(
            "E-IMAGE-FRAMES",
            f"{path} holds {count} frames where one is meant; save each as a file of its own, or "
            "send them all with `edgeseg stream`",
        )


def upright(image: Image.Image) -> Image.Image:
    """Return a picture as a viewer shows it: turned as its orientation (EXIF, TIFF) says."""
    image.load()
    if image.format == "TIFF":  # turned by Pillow as it is loaded, in every version
        return image
    try:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
    except _UNREADABLE:  # damaged EXIF is no damage of the pixels, and says nothing
        return image
    return ImageOps.exif_transpose(image) if turned else image
