"""LabelMe: a JSON file for each image, with polygons, rectangles and circles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...runtime.errors import InputError
from ...runtime.folder import image_files
from .annotations import (
    annotation_errors,
    annotation_fault,
    is_json_with,
    json_files,
    named_image,
    read_json,
    size_of,
    text,
)
from .labels import UNCLASSED
from .outlines import Outlined, Shape, circle, polygon, rectangle, with_outlines
from .pairing import folders
from .sample import Listing, Sample

_FOLDERS = ("images", "annotations", "json", "labels")  # beside the root itself
_SHAPES: Mapping[str, Callable[[Any], Shape]] = MappingProxyType(
    {"polygon": polygon, "rectangle": rectangle, "circle": circle}
)


def is_labelme(root: Path) -> bool:
    """Whether the first JSON file of a folder is one of LabelMe."""
    files = _files(root)
    return bool(files) and is_json_with(files[0], "shapes", "imagePath")


def _files(root: Path) -> list[Path]:
    return [path for folder in (root, *folders(root, *_FOLDERS)) for path in json_files(folder)]


def list_labelme(root: Path) -> Listing:
    """List the image of each JSON file.

    An image without a JSON file is a lesion without a mask: nobody said that nothing is in it.

    Raises InputError: E-DATA-ANNOTATION for a JSON file whose image is not known; E-DATA-CLASSES,
    E-DATA-VOID. OSError.
    """
    found: dict[Path, Outlined] = {}
    faults: list[str] = []
    for path in _files(root):
        with annotation_errors(path):
            content = read_json(path)
            name = content["imagePath"]
            image = named_image(name, path.parent, root)
        if image is None:
            faults.append(f"{path} is of {name!r}, which is not there")
        elif image in found:
            raise annotation_fault(path, f"{image} has another annotation file")
        else:
            found[image] = _outlined(_sample(root, image, path), path, content)
    for folder in sorted({image.parent for image in found}):
        for image in image_files(folder):
            found.setdefault(image, Outlined(_sample(root, image)))
    return with_outlines(root, list(found.values()), label_faults=faults)


def _sample(root: Path, image: Path, *masks: Path) -> Sample:
    return Sample(image.relative_to(root).as_posix(), UNCLASSED, image, masks)


def _outlined(sample: Sample, path: Path, content: Any) -> Outlined:
    try:
        with annotation_errors(path):
            size = size_of(content["imageHeight"], content["imageWidth"])
            shapes = tuple(
                (text(shape["label"]), _shape_of(shape.get("shape_type", "polygon"), shape))
                for shape in content["shapes"]
            )
    except InputError as error:
        return Outlined(sample, fault=error)
    return Outlined(sample, shapes, size)


def _shape_of(kind: str, shape: Any) -> Shape:
    if kind not in _SHAPES:
        raise ValueError(f"a shape of type {kind!r}, not {', '.join(_SHAPES)}")
    return _SHAPES[kind](shape["points"])
