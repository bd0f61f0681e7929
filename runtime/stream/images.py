"""Image files as a source: a folder in the order of its names, or one image."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

from ..errors import InputError
from ..image import IMAGE_SUFFIXES, read_image
from .source import Item, Source


def is_images(path: Path) -> bool:
    """Whether a path is a folder or has the suffix of an image."""
    return path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES


def open_images(path: Path, *, whole_frame: bool = False) -> Source:
    """Open a folder of images, sorted by name, or a single image; their frames are always whole.

    Raises InputError: E-IMAGE-NONE for a folder without any.
    """
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise InputError("E-IMAGE-NONE", f"no image in {path}")

    def read() -> Iterator[Item]:
        for file in files:
            try:
                yield read_image(file)
            except InputError as error:
                yield error

    return Source(path, "images", None, len(files), None, None, read)
