"""Image files in; masks, overlays and measurements out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Sequence, Tuple

import numpy as np
from PIL import Image

from .errors import InputError
from .files import atomic_folder
from .image import IMAGE_SUFFIXES, read_image
from .lesion import draw_overlay, lesions_of
from .progress import Progress, quiet
from .session import Session


def find_images(paths: Sequence[Path]) -> Tuple[Path, ...]:
    """Return the files named, and the images directly inside the folders named, in order.

    Raises InputError: E-IMAGE-READ (no such path), E-IMAGE-NONE (no image at all), E-IMAGE-NAME
    (two images of one name, whose results would overwrite each other).
    """
    images: Dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise InputError("E-IMAGE-READ", f"no such image or folder: {path}")
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        for image in inside:
            if path.is_dir() and image.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            if image.stem in images:
                raise InputError(
                    "E-IMAGE-NAME",
                    f"{images[image.stem]} and {image} share a name; predict them into two folders",
                )
            images[image.stem] = image
    if not images:
        raise InputError("E-IMAGE-NONE", f"no image in {', '.join(map(str, paths))}")
    return tuple(images.values())


def predict_files(
    session: Session, images: Sequence[Path], out: Path, *, progress: Progress = quiet
) -> Tuple[Dict[str, Any], ...]:
    """Segment image files and write the folder `out`, whole or not at all.

    For ``x.png`` it holds ``x_mask.png`` (0 and 255, the image's own size) and ``x_overlay.png``;
    ``predictions.json`` has a record for each image: size, lesion area in px, and area and box of
    each lesion.

    Returns:
        The records.

    Raises:
        InputError: E-IMAGE-READ and its kin, E-OUT-EXISTS.
        OutputError: E-OUT-WRITE.
    """
    records = []
    with atomic_folder(out) as folder:
        for path in progress(images, "predicting"):
            grey = read_image(path)
            mask = session.predict(grey)
            lesions = lesions_of(mask)
            Image.fromarray(mask * np.uint8(255)).save(folder / f"{path.stem}_mask.png")
            Image.fromarray(draw_overlay(grey, mask)).save(folder / f"{path.stem}_overlay.png")
            records.append(
                {
                    "image": path.name,
                    "width_px": grey.shape[1],
                    "height_px": grey.shape[0],
                    "lesion_area_px": sum(lesion.area_px for lesion in lesions),
                    "lesions": [lesion.to_dict() for lesion in lesions],
                }
            )
        text = json.dumps(records, indent=1, ensure_ascii=False) + "\n"
        (folder / "predictions.json").write_text(text, encoding="utf-8")
    return tuple(records)
