"""Which files of a folder are images, in which order, and which of them are masks: one answer.

`predict`, `stream`, data sets and calibration list folders by it.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import List, Optional, Tuple, Union

DICOM_SUFFIXES = (".dcm", ".dicom")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", *DICOM_SUFFIXES)  # in any case
_INDEX = "DICOMDIR"  # lists the images of a disk and holds none
_MASK_STEM = re.compile(r"(.+)_mask(?:_\d+)?", re.IGNORECASE)


def image_files(folder: Path) -> List[Path]:
    """Return the image files directly in a folder, naturally sorted. Raises OSError.

    Hidden files are the file system's own (".x.png", macOS's "._x.png") and folders are no files,
    whatever they are called. A link to nothing is listed: it is an image that is missing. A file
    without a suffix is one where it is DICOM, as archives write them (IM0001).
    """
    found = [
        path
        for path in folder.iterdir()
        if path.name[0] != "." and (_has_suffix(path) or (not path.suffix and seems_dicom(path)))
    ]
    return sorted(found, key=lambda path: natural_key(path.name))


def is_dicom(path: Path) -> bool:
    """Whether a file has a suffix of DICOM, or its magic word. Raises OSError.

    DICOM's own index of a disk has it too, and is none.
    """
    if not path.is_file() or path.name.upper() == _INDEX:
        return False
    with path.open("rb") as file:
        return path.suffix.lower() in DICOM_SUFFIXES or file.read(132)[128:] == b"DICM"


def seems_dicom(path: Path) -> bool:
    """Whether a file is DICOM; not one that cannot be opened, which is said where it is read."""
    try:
        return is_dicom(path)
    except OSError:
        return path.suffix.lower() in DICOM_SUFFIXES


def _has_suffix(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and _is_file(path)


def _is_file(path: Path) -> bool:
    return path.is_file() or (path.is_symlink() and not path.exists())


def natural_key(name: str) -> Tuple[List[Union[int, str]], str]:
    """Return a sort key that puts "benign (2)" before "benign (10)"."""
    parts: List[Union[int, str]] = list(re.split(r"(\d+)", composed(name)))
    parts[1::2] = [int(number) for number in parts[1::2]]
    return parts, name


def composed(name: str) -> str:
    """Return a name in Unicode's composed form (NFC): macOS writes "é" as "e" and an accent."""
    return unicodedata.normalize("NFC", name)


def stem_of(path: Path) -> str:
    """Return what an image and its masks share: the name without suffix, composed."""
    return composed(path.stem)


def masked_stem(path: Path) -> Optional[str]:
    """Return the stem of the image that NAME_mask.png or NAME_mask_N.png, in any case, is of."""
    found = _MASK_STEM.fullmatch(stem_of(path))
    return found[1] if found else None
