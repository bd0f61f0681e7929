"""Image files in; masks, overlays and measurements out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

from .errors import InputError
from .files import atomic_folder
from .folder import IMAGE_SUFFIXES, image_files, masked_stem, seems_dicom, stem_of
from .image import read_image
from .lesion import Spacing, draw_overlay, lesions_of
from .paths import takes_paths
from .pgm import golden_from_labels
from .progress import Progress, quiet
from .session import Session
from .stream.pipeline import through_crop
from .stream.source import Still
from .window import Window


class Found(NamedTuple):
    """Image files to segment, and the masks that lie beside them."""

    images: Tuple[Path, ...]
    masks: Tuple[Path, ...]  # left out

    @property
    def note(self) -> str:
        """What was left out, as one line; empty where nothing was."""
        count = "1 mask" if len(self.masks) == 1 else f"{len(self.masks)} masks"
        return f"left out: {count} (NAME_mask.png beside NAME.png)" if self.masks else ""


@takes_paths
def find_images(paths: Sequence[Path]) -> Found:
    """Return the files named, and the images directly inside the folders named, in order.

    Masks in a folder are left out, see `images_in`.

    Raises InputError: E-IMAGE-READ (no such path, or not readable), E-IMAGE-NONE (no image at
    all), E-IMAGE-NAME (two images of one name, whose results would overwrite each other).
    """
    images: Dict[str, Path] = {}
    masks: List[Path] = []
    for path in paths:
        inside = _listed(path)
        masks += inside.masks
        for image in inside.images:
            if image.stem in images:
                raise InputError(
                    "E-IMAGE-NAME",
                    f"{images[image.stem]} and {image} share a name; predict them into two folders",
                )
            images[image.stem] = image
    if not images:
        raise InputError(
            "E-IMAGE-NONE",
            f"no image in {', '.join(map(str, paths))}; name the folder that the images "
            f"({', '.join(IMAGE_SUFFIXES)}) lie directly in: its subfolders are not looked into",
        )
    return Found(tuple(images.values()), tuple(masks))


@takes_paths
def images_in(path: Path) -> Found:
    """Return the images directly inside a folder in natural order; a file itself, whatever it is.

    The masks of BUSI's layout, NAME_mask.png and NAME_mask_N.png with NAME.png, are no images of a
    folder. Raises OSError.
    """
    if not path.is_dir():
        return Found((path,), ())
    files = image_files(path)
    stems = set(map(stem_of, files))
    masks = {file: masked_stem(file) in stems for file in files}
    images = tuple(file for file in files if not masks[file])
    return Found(images, tuple(file for file in files if masks[file]))


def _listed(path: Path) -> Found:
    """Return the images of a path. Raises InputError: E-IMAGE-READ."""
    try:
        if not path.exists():
            raise InputError("E-IMAGE-READ", f"no such image or folder: {path}; correct the path")
        return images_in(path)
    except OSError as error:
        raise InputError(
            "E-IMAGE-READ", f"cannot read {path} ({error.strerror or error}); mend its rights"
        ) from error


@takes_paths
def predict_files(
    session: Session,
    images: Sequence[Path],
    out: Path,
    *,
    spacing: Optional[Spacing] = None,
    window: Optional[Window] = None,
    whole_frame: bool = False,
    progress: Progress = quiet,
) -> Tuple[Dict[str, Any], ...]:
    """Segment image files and write the folder `out`, whole or not at all.

    For ``x.png`` it holds ``x_mask.png`` (the image's own size; 0 and 255, of several classes
    their numbers) and ``x_overlay.png``; ``predictions.json`` has a record for each image, see
    `record_of`. Of a DICOM still the network sees the tissue region, as in a stream, and the file
    tells the spacing.

    Args:
        session: segments.
        images: files, no two of one name.
        out: new folder.
        spacing: of every image; None: what a DICOM still tells.
        window: what is shown of more than 8 bits; None: what a DICOM still says.
        whole_frame: ignore the region of a DICOM still, and its spacing.
        progress: wraps the images.

    Returns:
        The records.

    Raises:
        InputError: E-IMAGE-READ and its kin, E-DICOM-* and its kin, E-WINDOW, E-FRAME,
            E-OUT-EXISTS.
        OutputError: E-OUT-WRITE.
    """
    records = []
    with atomic_folder(out) as folder:
        for path in progress(images, "predicting"):
            still = _read(path, session.contract.takes_colour, window, whole_frame)
            frame, told = still.frame, spacing or still.spacing
            if still.crop and not session.layout:  # which has a crop of its own
                mask = through_crop(session.predict, still.crop)(frame)
            else:
                mask = session.predict(frame)
            stored = golden_from_labels(mask, session.contract)
            Image.fromarray(stored).save(folder / f"{path.stem}_mask.png")
            Image.fromarray(draw_overlay(frame, mask)).save(folder / f"{path.stem}_overlay.png")
            records.append(record_of(path.name, mask, told, session.contract.classes))
        text = json.dumps(records, indent=1) + "\n"  # ASCII: a file name may be any bytes
        (folder / "predictions.json").write_text(text, encoding="utf-8")
    return tuple(records)


def _read(path: Path, colour: bool, window: Optional[Window], whole_frame: bool) -> Still:
    """Read an image whose file may tell a crop and a spacing. Raises as `read_image`."""
    if seems_dicom(path) and not colour:
        from .stream.dicom import read_still

        return read_still(path, window=window, whole_frame=whole_frame)
    return Still(read_image(path, colour=colour, window=window))


def record_of(
    image: str, mask: np.ndarray, spacing: Optional[Spacing] = None, classes: Sequence[str] = ()
) -> Dict[str, Any]:
    """Return size, lesion area and every lesion of a mask [H, W] as JSON-ready values.

    With a spacing also what they are in mm, and the spacing itself; of several classes the class of
    each.
    """
    lesions = lesions_of(mask, spacing, classes)
    area_px = sum(lesion.area_px for lesion in lesions)
    record: Dict[str, Any] = {
        "image": image,
        "width_px": mask.shape[1],
        "height_px": mask.shape[0],
        "lesion_area_px": area_px,
    }
    if spacing is not None:
        record["spacing_mm"] = {"row": spacing.row_mm, "column": spacing.column_mm}
        record["lesion_area_mm2"] = area_px * spacing.row_mm * spacing.column_mm
    return {**record, "lesions": [lesion.to_dict() for lesion in lesions]}
