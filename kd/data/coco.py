"""COCO: annotations/*.json with polygons and run lengths for the images in images/."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.errors import InputError
from .annotations import (
    annotation_errors,
    annotation_fault,
    is_json_with,
    json_files,
    named_image,
    read_json,
    size_of,
    text,
    unnamed_images,
)
from .labels import UNCLASSED
from .outlines import (
    Outlined,
    Shape,
    compressed_run_lengths,
    polygon,
    run_lengths,
    with_outlines,
)
from .pairing import folders
from .parts import PART_OF
from .sample import Listing, Sample

_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class _Image:
    name: str  # of its file
    size: tuple[int, int]  # height and width in px
    annotations: list[Any]
    names: dict[Any, str]  # of the categories


def is_coco(root: Path) -> bool:
    """Whether the first JSON file of a folder is one of COCO."""
    files = _files(root)
    return bool(files) and is_json_with(files[0], "images", "annotations", "categories")


def _files(root: Path) -> list[Path]:
    return [path for folder in (root, *folders(root, "annotations")) for path in json_files(folder)]


def list_coco(root: Path) -> Listing:
    """List the images of every annotation file; one without annotations is normal.

    A file whose name has a part in it, such as instances_val2017.json, is of that part. `iscrowd`
    says that several objects are marked as one: their pixels are of their class like all others.

    Raises InputError: E-DATA-ANNOTATION (a file that cannot be read, an image of two files, a name
    that fits two images), E-DATA-CLASSES, E-DATA-VOID. OSError.
    """
    found: dict[Path, Outlined] = {}
    faults: list[str] = []
    for path in _files(root):
        part = _part_in(path.stem)
        places = _places(root, path, part)
        for image_of_file in _read(path):
            with annotation_errors(path):
                image = _find(image_of_file.name, places, root)
            if image is None:
                faults.append(f"{path} lists {image_of_file.name!r}, which has no image")
                continue
            if image in found:
                raise annotation_fault(path, f"{image} is in {found[image].sample.masks[0]} too")
            name = image.relative_to(root).as_posix()
            sample = Sample(name, UNCLASSED, image, (path,), part=part)
            found[image] = _outlined(sample, image_of_file, path)
    faults += unnamed_images({image.parent for image in found}, set(found))
    return with_outlines(root, list(found.values()), label_faults=faults)


def _read(path: Path) -> list[_Image]:
    """Return the images of a file, each with its annotations. Raises InputError."""
    with annotation_errors(path):
        content = read_json(path)
        names = {entry["id"]: text(entry["name"]) for entry in content["categories"]}
        marked: defaultdict[Any, list[Any]] = defaultdict(list)
        for annotation in content["annotations"]:
            marked[annotation["image_id"]].append(annotation)
        images = [
            _Image(
                text(entry["file_name"]),
                size_of(entry["height"], entry["width"]),
                marked.pop(entry["id"], []),
                names,
            )
            for entry in content["images"]
        ]
        if marked:
            raise ValueError(f"an annotation is of image {next(iter(marked))}, which is not listed")
    return images


def _part_in(name: str) -> str:
    """Return the one part that a name has a word of, or nothing."""
    parts = {PART_OF[word] for word in _WORD.findall(name.casefold()) if word in PART_OF}
    return parts.pop() if len(parts) == 1 else ""


def _places(root: Path, path: Path, part: str) -> list[Path]:
    """Return the folders that images of an annotation file may be in."""
    outer = [*folders(root, "images"), root]
    inner = [each for folder in outer for each in sorted(folder.iterdir()) if each.is_dir()]
    of_part = [each for each in inner if part and _part_in(each.name) == part]
    other = [each for each in inner if each.parent != root and not part]
    return [*outer, path.parent, *of_part, *other]


def _find(name: str, places: list[Path], root: Path) -> Path | None:
    found = sorted({image for place in places if (image := named_image(name, place, root))})
    if len(found) > 1:
        raise ValueError(f"{name!r} may be {found[0]} or {found[1]}")
    return found[0] if found else None


def _outlined(sample: Sample, image: _Image, path: Path) -> Outlined:
    try:
        with annotation_errors(path):
            shapes = tuple(
                (image.names[annotation["category_id"]], shape)
                for annotation in image.annotations
                for shape in _shapes_of(annotation, image.size)
            )
    except InputError as error:
        return Outlined(sample, fault=error)
    return Outlined(sample, shapes, image.size)


def _shapes_of(annotation: Any, size: tuple[int, int]) -> list[Shape]:
    """Return the polygons of an annotation, or its one mask. Raises ValueError and its kin."""
    outline = annotation.get("segmentation")
    if not outline:
        raise ValueError(f"annotation {annotation.get('id')} has no outline, or a box alone")
    if isinstance(outline, list):
        return [polygon(list(zip(flat[0::2], flat[1::2], strict=True))) for flat in outline]
    if tuple(outline["size"]) != size:
        raise ValueError(f"a mask of {outline['size']} in an image of {list(size)}")
    counts = outline["counts"]
    decode = compressed_run_lengths if isinstance(counts, str) else run_lengths
    return [decode(counts, size)]
