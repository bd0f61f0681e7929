"""Annotation files as text: caps, JSON, and one kind of error for whatever is wrong in them."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

from ...runtime.errors import MALFORMED, InputError
from ...runtime.folder import image_files
from ...runtime.image_file import MAX_IMAGE_PIXELS

MAX_ANNOTATION_BYTES = 256 << 20  # of one file; compared before anything is read


@contextlib.contextmanager
def annotation_errors(path: Path) -> Iterator[None]:
    """Turn what malformed content raises into InputError (E-DATA-ANNOTATION)."""
    try:
        yield
    except (OSError, *MALFORMED) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise annotation_fault(path, " ".join(what.split())[:200]) from error


def annotation_fault(path: Path, what: str) -> InputError:
    """Return the refusal of an annotation file."""
    return InputError(
        "E-DATA-ANNOTATION", f"cannot use annotations {path} ({what}); mend or export them again"
    )


def read_annotation(path: Path) -> str:
    """Return the text of an annotation file. Raises OSError, ValueError."""
    size = path.stat().st_size
    if size > MAX_ANNOTATION_BYTES:
        raise ValueError(f"{size} bytes, over {MAX_ANNOTATION_BYTES}")
    return path.read_text(encoding="utf-8-sig")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises InputError: E-DATA-ANNOTATION."""
    with annotation_errors(path):
        status = path.stat()
        return _parsed(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=2)  # a file is asked what it is, and read then
def _parsed(path: Path, size: int, modified_ns: int) -> Any:
    return json.loads(read_annotation(path))


def is_json_with(path: Path, *fields: str) -> bool:
    """Whether a file is a JSON object with these fields."""
    try:
        content = read_json(path)
    except InputError:
        return False
    return isinstance(content, dict) and set(fields) <= set(content)


def json_files(folder: Path) -> list[Path]:
    """Return the JSON files directly in a folder, none of them hidden. Raises OSError."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() == ".json" and path.name[0] != "." and path.is_file()
    )


def named_image(name: str, folder: Path, root: Path) -> Path | None:
    """Return the image that an annotation names, from a folder on; None where it is not there.

    Raises ValueError for one outside of the data set.
    """
    relative = name.replace("\\", "/")
    inside = os.path.relpath(folder / relative, root)
    if PureWindowsPath(name).is_absolute() or inside.partition(os.sep)[0] == os.pardir:
        raise ValueError(f"it names the image {name!r}, which is outside of the data set")
    image = root / inside
    return image if image.is_file() else None


def text(value: object) -> str:
    """Return a text of a JSON file. Raises ValueError for anything else and for an empty one."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is no text")
    return value


def whole(value: object) -> int:
    """Return a length in px of a JSON file. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise ValueError(f"{value!r} is no number of pixels")
    return value


def size_of(height: object, width: object) -> tuple[int, int]:
    """Return the size of an image as a JSON file tells it. Raises ValueError."""
    size = whole(height), whole(width)
    if size[0] * size[1] > MAX_IMAGE_PIXELS:
        raise ValueError(f"an image of {width}x{height}, over {MAX_IMAGE_PIXELS} pixels")
    return size


def unnamed_images(folders: set[Path], named: set[Path]) -> list[str]:
    """Return a fault for each image in these folders that no annotation names. Raises OSError."""
    return [
        f"no annotation names {image}"
        for folder in sorted(folders)
        for image in image_files(folder)
        if image not in named
    ]
