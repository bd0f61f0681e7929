"""nnU-Net's raw data in 2-D: imagesTr/NAME_0000.png, labelsTr/NAME.png and dataset.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...runtime.folder import natural_key
from .annotations import annotation_errors, read_json, text
from .classes import Index, read_index, with_numbered_classes
from .labels import UNCLASSED
from .nifti import is_nifti, read_nifti_image, read_nifti_index
from .sample import Listing, Sample

_TABLE = "dataset.json"
_IMAGE = re.compile(r"(.+)_(\d{4})")
_PART_OF = {"Tr": "train", "Ts": "test"}  # Ts with labels alone: else nothing can be scored on it


def is_nnunet(root: Path) -> bool:
    """Whether a folder has imagesTr/, labelsTr/ and dataset.json."""
    return (
        all((root / name).is_dir() for name in ("imagesTr", "labelsTr"))
        and (root / _TABLE).is_file()
    )


def list_nnunet(root: Path) -> Listing:
    """List the cases of imagesTr/ and, where labelsTs/ is there, of imagesTs/: train and test.

    Raises InputError: E-DATA-ANNOTATION (a table that cannot be read, images of several channels),
    E-DATA-CLASSES, E-DATA-VOID. OSError.
    """
    table = root / _TABLE
    with annotation_errors(table):
        content = read_json(table)
        ending = text(content.get("file_ending", ".nii.gz"))
        names = _names_of(content["labels"])
    has_test = (root / "labelsTs").is_dir()
    samples: list[Sample] = []
    orphans: list[Path] = []
    for half in ("Tr", "Ts") if has_test else ("Tr",):
        masks = _files(root / f"labels{half}", ending)
        for stem, image in _files(root / f"images{half}", ending).items():
            found = _IMAGE.fullmatch(stem)
            with annotation_errors(image):
                if not found or found[2] != "0000":
                    raise ValueError("its name does not end in _0000: one channel is read")
            mask = masks.pop(found[1], None) if found else None
            name = image.relative_to(root).as_posix()
            sample = Sample(
                name,
                UNCLASSED,
                image,
                (mask,) if mask else (),
                part=_PART_OF[half] if has_test else "",
            )
            samples.append(
                replace(sample, image_reader=read_nifti_image) if is_nifti(image) else sample
            )
        orphans += masks.values()
    return with_numbered_classes(root, Listing(tuple(samples), tuple(orphans)), names, _read_index)


def _read_index(path: Path) -> Index:
    return read_nifti_index(path) if is_nifti(path) else read_index(path)


def _files(folder: Path, ending: str) -> dict[str, Path]:
    """Return the files of a folder by their names without the ending, in natural order."""
    files = [p for p in folder.iterdir() if p.name.endswith(ending) and p.name[0] != "."]
    return {
        path.name[: -len(ending)]: path
        for path in sorted(files, key=lambda path: natural_key(path.name))
    }


def _names_of(labels: Mapping[str, Any]) -> dict[int, str]:
    """Return the names of class numbers; version 1 has numbers for names. Raises ValueError."""
    names: dict[int, str] = {}
    for key, value in labels.items():
        number, name = (int(key), text(value)) if key.isdecimal() else (value, key)
        if isinstance(number, bool) or not isinstance(number, int):
            raise ValueError(f"label {name!r} is {number!r}, a region of classes and no number")
        if names.setdefault(number, name) != name:
            raise ValueError(f"two labels are {number}")
    return names
