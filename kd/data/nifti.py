"""NIfTI files of one slice, as nnU-Net stores 2-D data; nibabel reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime.errors import EngineError, InputError
from ...runtime.image_file import MAX_IMAGE_PIXELS
from .classes import MAX_CLASS, Index

SUFFIXES = (".nii", ".nii.gz")


def is_nifti(path: Path) -> bool:
    """Whether a file's name ends as one of NIfTI."""
    return path.name.lower().endswith(SUFFIXES)


def read_nifti_image(path: Path) -> npt.NDArray[np.uint8]:
    """Return a slice of whole numbers 0..255 as grey, uint8 [H, W]; see `_slice_of`.

    Raises InputError: E-IMAGE-MODE for other values, and those of `_slice_of`.
    """
    values = _slice_of(path)
    if values.min() < 0 or values.max() > 255 or (values != np.round(values)).any():
        raise InputError(
            "E-IMAGE-MODE",
            f"{path} has values from {values.min():g} to {values.max():g}, not whole numbers of "
            "0..255; window it to 8 bits first",
        )
    return values.astype(np.uint8)


def read_nifti_index(path: Path) -> Index:
    """Return the class numbers of a slice, uint16 [H, W]; see `_slice_of`.

    Raises InputError: E-MASK-VALUES for values that are no numbers of classes, and those of
    `_slice_of`.
    """
    values = _slice_of(path)
    if values.min() < 0 or values.max() > MAX_CLASS or (values != np.round(values)).any():
        raise InputError(
            "E-MASK-VALUES",
            f"mask {path} has values from {values.min():g} to {values.max():g}, which are no class "
            f"numbers; store 0 to {MAX_CLASS}",
        )
    return values.astype(np.uint16)


def _slice_of(path: Path) -> npt.NDArray[np.float64]:
    """Return the one slice of a file, [H, W]: rows are its second axis, and nothing is turned.

    Raises InputError: E-IMAGE-READ, E-IMAGE-SIZE, E-IMAGE-FRAMES (several slices). EngineError:
    E-EXTRA-MISSING without nibabel.
    """
    try:
        import nibabel
    except ImportError as error:
        raise EngineError(
            "E-EXTRA-MISSING", f"reading {path} needs nibabel; pip install 'edgeseg[nifti]'"
        ) from error
    try:
        image: Any = nibabel.load(path)
        shape = tuple(map(int, image.shape))
        if len(shape) >= 2 and np.prod(shape[:2]) > MAX_IMAGE_PIXELS:
            raise InputError(
                "E-IMAGE-SIZE",
                f"{path} has {shape[0]}x{shape[1]} pixels, over the cap of {MAX_IMAGE_PIXELS}; "
                "crop or shrink it",
            )
        if len(shape) >= 2 and np.prod(shape[2:]) > 1:
            raise InputError(
                "E-IMAGE-FRAMES",
                f"{path} holds {int(np.prod(shape[2:]))} slices where one is meant; save each as a "
                "file of its own",
            )
        values: npt.NDArray[np.float64] = np.asarray(image.dataobj, np.float64)
        values = values.reshape(shape[:2]).T
        if not values.size or not np.isfinite(values).all():
            raise ValueError("it has no values, or some that are not finite")
    except InputError:
        raise
    except Exception as error:  # nibabel's own, zlib's and OSError, of any type
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            "E-IMAGE-READ", f"cannot read image {path} ({why}); replace or remove the file"
        ) from error
    return values
