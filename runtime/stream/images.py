"""Image files as a source: a folder in natural order without masks, or all frames of one file."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable, Iterator, Optional

from ..errors import InputError
from ..folder import IMAGE_SUFFIXES
from ..image import read_frames, read_image
from ..image_file import frame_numbers, open_image, without_warnings
from ..predict import images_in
from ..window import Window
from .source import Item, Source

_MOVING_SUFFIXES = (".gif", ".apng")  # several frames as a rule, and no image of a folder


def is_images(path: Path) -> bool:
    """Whether a path is a folder or has the suffix of an image."""
    return path.is_dir() or path.suffix.lower() in (*IMAGE_SUFFIXES, *_MOVING_SUFFIXES)


def open_images(
    path: Path, *, whole_frame: bool = False, window: Optional[Window] = None
) -> Source:
    """Open a folder of images, see `images_in`, or a single file with all its frames.

    Their frames are always whole. In a folder every file is one frame, and one of several is an
    error in its place. Raises InputError: E-IMAGE-NONE for a folder without any. OSError.
    """
    found = images_in(path)
    if not found.images:
        raise InputError("E-IMAGE-NONE", f"no image in {path}")
    if path.is_dir():
        count = len(found.images)
        return Source(
            path,
            "images",
            None,
            count,
            None,
            None,
            lambda: _files(found.images, window),
            found.note,
        )
    return Source(path, "images", None, _count_of(path), None, None, lambda: _frames(path, window))


def _count_of(path: Path) -> int:
    try:
        with open_image(path) as image, without_warnings():
            return len(frame_numbers(image))
    except InputError:  # said in place of its first frame
        return 1


def _files(paths: Iterable[Path], window: Optional[Window]) -> Iterator[Item]:
    for path in paths:
        try:
            yield read_image(path, window=window)
        except InputError as error:
            yield error


def _frames(path: Path, window: Optional[Window]) -> Iterator[Item]:
    number = 0
    try:
        for frame in read_frames(path, window=window):
            yield frame
            number += 1
    except InputError as error:  # what comes after it cannot be told from what is damaged
        why = str(error).partition(": ")[2]
        yield InputError(error.code, f"frame {number}: {why}") if number else error
