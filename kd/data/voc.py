"""PASCAL VOC: JPEGImages/ and SegmentationClass/ with class numbers, lists in ImageSets/."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from ...runtime.errors import InputError
from ...runtime.folder import stem_of
from .classes import Colour, read_index, with_numbered_classes, with_part
from .labels import UNCLASSED, read_lines
from .pairing import folders, in_folders, pair
from .parts import PART_OF, PARTS
from .sample import Listing

_LABEL_MAP = "labelmap.txt"  # of CVAT: name:red,green,blue:parts:actions, in the order of numbers
_CLASS_NAMES = "class_names.txt"  # of labelme: a name a line, from __ignore__ or _background_ on
_IGNORED = "__ignore__"


def is_voc(root: Path) -> bool:
    """Whether a folder has both folders of the layout."""
    return bool(folders(root, "JPEGImages") and _mask_folders(root))


def _mask_folders(root: Path) -> list[Path]:
    """Return where masks of numbers are: labelme writes them beside numpy files."""
    return folders(root, "SegmentationClassPNG") or folders(root, "SegmentationClass")


def list_voc(root: Path) -> Listing:
    """List the images of ImageSets/Segmentation/*.txt, or all; raises InputError, OSError."""
    images = in_folders(root, "JPEGImages")
    masks = [path for folder in _mask_folders(root) for path in in_folders(root, folder.name)]
    if not images:
        return Listing((), tuple(masks))
    parts, faults = _listed(root, images)
    if parts is not None:
        stems = {stem_of(path) for path in parts}
        masks = [path for path in masks if stem_of(path) in stems]
        images = list(parts)
    listing = pair(root, images, masks, dict.fromkeys(images, UNCLASSED), image_stem=stem_of)
    names, colours = _names_of(root)
    read = partial(read_index, colours=colours) if colours else read_index
    found = with_numbered_classes(root, listing, names, read)
    return replace(found, samples=with_part(found.samples, parts or {}), label_faults=faults)


def _listed(root: Path, images: list[Path]) -> tuple[dict[Path, str] | None, tuple[str, ...]]:
    """Return the part of every image that a list names, "" where none of its lists is a part.

    None without any list. With it, a fault for each line that is no image.
    """
    lists = [
        path
        for sets in folders(root, "ImageSets")
        for folder in folders(sets, "Segmentation")
        for path in sorted(folder.glob("*.txt"))
    ]
    if not lists:
        return None, ()
    by_stem = {stem_of(path): path for path in images}
    parts: dict[Path, str] = {}
    faults = []
    for path in lists:
        part = PART_OF.get(path.stem.casefold(), "")
        for line in read_lines(path):
            image = by_stem.get(line)
            if image is None:
                faults.append(f"{path} lists {line!r}, which has no image")
            elif part and parts.get(image):
                raise InputError(
                    "E-SPLIT-LIST",
                    f"{path} lists {line!r}, which is in the {parts[image]} list already; leave it "
                    f"in one of {', '.join(PARTS)}",
                )
            else:
                parts[image] = part or parts.get(image, "")
    return parts, tuple(faults)


def _names_of(root: Path) -> tuple[dict[int, str], dict[Colour, int]]:
    """Return the names of class numbers and the numbers of colours, where a list tells them."""
    if (root / _LABEL_MAP).is_file():
        return _label_map(root / _LABEL_MAP)
    if (root / _CLASS_NAMES).is_file():
        names = read_lines(root / _CLASS_NAMES)
        first = 1 if names[:1] == [_IGNORED] else 0
        return dict(enumerate(names[first:])), {}
    return {}, {}


def _label_map(path: Path) -> tuple[dict[int, str], dict[Colour, int]]:
    names: dict[int, str] = {}
    colours: dict[Colour, int] = {}
    for number, line in enumerate(read_lines(path)):
        try:
            name, colour, *_ = line.split(":")
            red, green, blue = map(int, colour.split(","))
        except ValueError as error:
            raise InputError(
                "E-DATA-CLASSES",
                f"{path} has the line {line!r}, not 'name:red,green,blue'; export it again",
            ) from error
        names[number] = name
        if colours.setdefault((red, green, blue), number) != number:
            raise InputError(
                "E-DATA-CLASSES", f"{path} gives {(red, green, blue)} to two classes; mend it"
            )
    return names, colours
