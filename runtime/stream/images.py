"""Image files as a source: a folder in the order of its names, without masks, or one image."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

from ..errors import InputError
from ..image import IMAGE_SUFFIXES, read_image
from ..predict import images_in
from .source import Item, Source


def is_images(path: Path) -> bool:
    """Whether a path is a folder or has the suffix of an image."""
    return path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES


def open_images(path: Path, *, whole_frame: bool = False) -> Source:
    """Open a folder of images, see `images_in`, or a single image; their frames are always whole.

    Raises InputError: E-IMAGE-NONE for a folder without any. OSError.
    """
    found = images_in(path)
    if not found.images:
        raise InputError("E-IMAGE-NONE", f"no image in {path}")

    def read() -> Iterator[Item]:
        for file in found.images:
            try:
                yield read_image(file)
            except InputError as error:
                yield error

    return Source(path, "images", None, len(found.images), None, None, read, found.note)
