"""YOLO segmentation: images/ and labels/*.txt with a polygon a line, names in data.yaml."""

from __future__ import annotations

import re
from pathlib import Path

from ...runtime.errors import InputError
from ...runtime.folder import image_files, stem_of
from .annotations import annotation_errors, annotation_fault, read_annotation
from .labels import UNCLASSED
from .outlines import Outlined, Shape, polygon, with_outlines
from .pairing import folders
from .parts import PART_OF, beside
from .sample import Listing, Sample

_NAME_LISTS = ("data.yaml", "data.yml", "classes.txt")
_NUMBERED = re.compile(r"(\d+)\s*:\s*(.+)")


def is_yolo(root: Path) -> bool:
    """Whether a folder has images/ and labels/ with text files."""
    return bool(
        folders(root, "images")
        and any(_texts(each) for label in folders(root, "labels") for each in _with_inner(label))
    )


def _with_inner(folder: Path) -> list[Path]:
    """Return a folder and those in it."""
    return [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]


def _texts(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix == ".txt" and p.name[0] != ".")


def list_yolo(root: Path) -> Listing:
    """List images/ and the folders in it, whose names may be parts, with the files of labels/.

    An image without a file is a lesion without a mask; an empty file says that nothing is in it.

    Raises InputError: E-DATA-ANNOTATION (names that cannot be read), E-DATA-CLASSES, E-DATA-VOID.
    OSError.
    """
    names = _names_of(root)
    texts = {
        (path.parent.relative_to(labels), stem_of(path)): path
        for labels in folders(root, "labels")
        for folder in _with_inner(labels)
        for path in _texts(folder)
    }
    found = []
    for images in folders(root, "images"):
        for folder in _with_inner(images):
            part = PART_OF.get(folder.name.casefold(), "") if folder != images else ""
            for image in image_files(folder):
                label = texts.pop((folder.relative_to(images), stem_of(image)), None)
                name = image.relative_to(root).as_posix()
                sample = Sample(name, UNCLASSED, image, (label,) if label else (), part=part)
                found.append(_outlined(sample, label, names) if label else Outlined(sample))
    return with_outlines(root, found, orphans=sorted(texts.values()))


def _outlined(sample: Sample, path: Path, names: dict[int, str]) -> Outlined:
    try:
        height, width = sample.read_image().shape  # the numbers are shares of its sides
        with annotation_errors(path):
            lines = [line.split() for line in read_annotation(path).splitlines()]
            shapes = tuple(_shape_of(line, names, height, width) for line in lines if line)
    except InputError as error:
        return Outlined(sample, fault=error)
    return Outlined(sample, shapes, (height, width))


def _shape_of(
    words: list[str], names: dict[int, str], height: int, width: int
) -> tuple[str, Shape]:
    """Return class and polygon of a line: the class's number, then x and y in turn, 0..1."""
    number, shares = int(words[0]), [float(word) for word in words[1:]]
    if len(shares) == 4:
        raise ValueError("a line of 4 numbers is a box, and no outline")
    if len(shares) % 2 or len(shares) < 6:
        raise ValueError(f"a line of {len(shares)} numbers is no polygon")
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError("a coordinate is outside of 0..1")
    if names and number not in names:
        raise ValueError(f"class {number} has no name in the list of classes")
    points = [(x * width, y * height) for x, y in zip(shares[0::2], shares[1::2], strict=True)]
    return names.get(number, str(number)), polygon(points)


def _names_of(root: Path) -> dict[int, str]:
    """Return the names of the classes by number, where a list tells them."""
    path = next((found for name in _NAME_LISTS if (found := beside(root, name))), None)
    if path is None:
        return {}
    with annotation_errors(path):
        lines = read_annotation(path).splitlines()
    if path.suffix == ".txt":
        return dict(enumerate(line.strip() for line in lines if line.strip()))
    return _names_in_yaml(lines, path)


def _names_in_yaml(lines: list[str], path: Path) -> dict[int, str]:
    """Return `names` of a data.yaml: a list in brackets or of dashes, or numbers with names."""
    start = next((n for n, line in enumerate(lines) if re.match(r"names\s*:", line)), None)
    if start is None:
        raise annotation_fault(path, "it has no names")
    value = _bare(lines[start].partition(":")[2])
    if value:
        if not re.fullmatch(r"\[.*\]", value):
            raise annotation_fault(path, f"names are {value!r}, neither [a, b] nor a line each")
        return dict(enumerate(_bare(name) for name in value[1:-1].split(",") if name.strip()))
    names: dict[int, str] = {}
    for line in lines[start + 1 :]:
        entry = _bare(line)
        if not entry:
            continue
        if line[0] not in " \t-":  # the next key
            break
        if entry.startswith("- "):
            names[len(names)] = _bare(entry[2:])
        elif numbered := _NUMBERED.fullmatch(entry):
            names[int(numbered[1])] = _bare(numbered[2])
        else:
            raise annotation_fault(path, f"a name is {entry!r}, neither '- a' nor '0: a'")
    return names


def _bare(text: str) -> str:
    """Return a word of YAML without its comment, blanks and quotes."""
    return re.sub(r"(^|\s)#.*", "", text).strip().strip("'\"")
