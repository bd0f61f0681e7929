"""Parts that a data set comes in: which folders and files are its train, val and test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from ...runtime.errors import InputError

PARTS = ("train", "val", "test")
PART_OF: Mapping[str, str] = MappingProxyType(  # by what published sets call it, in any case
    {
        "train": "train",
        "training": "train",
        "val": "val",
        "valid": "val",
        "validation": "val",
        "test": "test",
        "testing": "test",
    }
)


def beside(root: Path, name: str) -> Path | None:
    """Return a file of a data set; one of a part may lie beside the part's folder. None without."""
    places = [root, *([root.parent] if root.name.casefold() in PART_OF else [])]
    return next((place / name for place in places if (place / name).is_file()), None)


def part_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each part that is there, in the order of `PARTS`; train is always.

    Empty where there is no train part. Raises InputError: E-DATA-LAYOUT for two folders of one
    part, such as val/ and valid/. OSError.
    """
    found: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        part = PART_OF.get(path.name.casefold())
        if part and path.is_dir():
            if part in found:
                raise InputError(
                    "E-DATA-LAYOUT",
                    f"{found[part]} and {path} are both the {part} part; leave one of them",
                )
            found[part] = path
    return {part: found[part] for part in PARTS if part in found} if "train" in found else {}
