"""Masks of several classes: numbers a pixel, or outlines with a class each, and what is lesion.

The networks know lesion and background. Which classes are lesion the data set says in `classes.csv`
or by their names; one class alone is the lesion, and several that nobody explains are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from ...runtime.errors import InputError
from ...runtime.image_file import open_image, require_one_frame, upright, without_warnings
from .labels import UNCLASSED, read_rows
from .masks import LOSSY
from .pairing import GRAVEST_FIRST
from .parts import beside
from .sample import Listing, Sample

CLASSES_TABLE = "classes.csv"
BACKGROUND = "background"
MEANINGS = (BACKGROUND, UNCLASSED, "benign", "malignant")  # what a class may be
MAX_CLASS = 65534
_VOID_NUMBER = 255  # of PASCAL VOC: pixels that nobody decided on
_VOID_NAMES = ("ignore", "__ignore__", "void")

Index = npt.NDArray[np.uint16]  # [H, W]: 0 is background, any other the number of a class
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ClassMask:
    """Reads a mask of classes: the one place where classes become lesion."""

    read_index: Callable[[Path], Index]
    meanings: tuple[tuple[int, str], ...]  # of each number of a class, one of MEANINGS
    names: tuple[tuple[int, str], ...] = ()  # of each number, as the data set calls its class
    alone: str = ""  # the class that is the lesion because there is no other, see `alone_in`

    def __call__(self, path: Path) -> npt.NDArray[np.bool_]:
        """Return the lesion, bool [H, W].

        Raises InputError: E-DATA-CLASSES or E-DATA-VOID for a number without a meaning, and those
        of the reader.
        """
        index = self.read_index(path)
        known = dict(self.meanings)
        for number in map(int, np.unique(index)):
            if number and number not in known:
                raise _without_meaning(str(number), f"mask {path}")
        lesion = [number for number, meaning in self.meanings if meaning != BACKGROUND]
        return np.isin(index, lesion)

    def labels(self, path: Path, classes: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Return the labels of a network's classes, uint8 [H, W]: their place from 1 on, 0 else.

        A class is the network's by its name, else by what it means; one that is neither and means
        background is background.

        Raises InputError: E-CLASSES for a class that is none of the network's, and those of
        `__call__`.
        """
        self(path)  # what has no meaning is refused
        index = self.read_index(path)
        labels = np.zeros(index.shape, np.uint8)
        wanted = {name.casefold(): label for label, name in enumerate(classes, 1)}
        names, meanings = dict(self.names), dict(self.meanings)
        for number in map(int, np.unique(index)):
            if not number:
                continue
            name, meaning = names.get(number, str(number)), meanings[number]
            label = wanted.get(name.casefold(), wanted.get(meaning))
            if label is None and meaning != BACKGROUND:
                raise InputError(
                    "E-CLASSES",
                    f"mask {path} has the class {name!r} ({meaning}), which is none of the "
                    f"network's ({', '.join(classes)}); name data whose classes it knows",
                )
            labels[index == number] = label or 0
        return labels


def read_index(path: Path, colours: Mapping[Colour, int] = MappingProxyType({})) -> Index:
    """Return the class numbers of a mask file: its grey values, or its palette's indices.

    Args:
        path: of a file of one frame, without loss, of up to 16 bits.
        colours: the number of each colour, where the data set tells it: a mask in RGB is read by
            them.

    Raises InputError: E-DATA-COLOUR (colours without numbers, or one that has none), E-MASK-VALUES
    (JPEG, values over `MAX_CLASS`), E-IMAGE-FRAMES, E-IMAGE-READ, E-IMAGE-SIZE.
    """
    with open_image(path) as image, without_warnings():
        require_one_frame(image, path)
        if image.format in LOSSY:
            raise InputError(
                "E-MASK-VALUES",
                f"mask {path} is {image.format}, which changes class numbers; store it as PNG",
            )
        shown = upright(image)
        if shown.mode in ("RGB", "RGBA") and colours:
            return _index_of_colours(np.asarray(shown.convert("RGB")), colours, path)
        if shown.mode not in ("1", "L", "P", "I;16", "I"):
            raise InputError(
                "E-DATA-COLOUR",
                f"mask {path} has colours (mode {shown.mode}) where class numbers are read; store "
                "one number a pixel, grey or with a palette",
            )
        index = np.asarray(shown).astype(np.int64)
    if index.min() < 0 or index.max() > MAX_CLASS:
        raise InputError(
            "E-MASK-VALUES",
            f"mask {path} has values from {index.min()} to {index.max()}, which are no class "
            f"numbers; store 0 to {MAX_CLASS}",
        )
    return index.astype(np.uint16)


def _index_of_colours(
    rgb: npt.NDArray[np.uint8], colours: Mapping[Colour, int], path: Path
) -> Index:
    index = np.zeros(rgb.shape[:2], np.uint16)
    for colour in np.unique(rgb.reshape(-1, 3), axis=0):
        number = colours.get((int(colour[0]), int(colour[1]), int(colour[2])))
        if number is None:
            raise InputError(
                "E-DATA-COLOUR",
                f"mask {path} has the colour {tuple(map(int, colour))}, which the data set's list "
                "does not name; mend the mask or the list",
            )
        index[(rgb == colour).all(axis=2)] = number
    return index


def with_numbered_classes(
    root: Path,
    listing: Listing,
    names: Mapping[int, str] = MappingProxyType({}),
    read: Callable[[Path], Index] = read_index,
) -> Listing:
    """Give samples with masks of class numbers their labels and how their masks are read.

    Args:
        root: of the data set.
        listing: what it has; a sample without a mask keeps its label.
        names: of numbers, where the data set tells them; else a number is its own name.
        read: from a mask file to its numbers.

    Raises InputError: E-DATA-CLASSES, E-DATA-VOID.
    """
    numbers: dict[Path, frozenset[int]] = {}
    faults = list(listing.mask_faults)
    for sample in listing.samples:
        for mask in sample.masks:
            try:
                numbers[mask] = frozenset(map(int, np.unique(read(mask)))) - {0}
            except InputError as error:
                faults.append(error)
    used = frozenset[int]().union(*numbers.values())
    table_file = beside(root, CLASSES_TABLE)
    if table_file is not None:
        _require_background(read_classes(table_file), names.get(0, "0"), table_file)
    name_of = {number: names.get(number, str(number)) for number in used}
    meanings = meanings_of(root, name_of.values())
    pairs = tuple((number, meanings[name_of[number]]) for number in sorted(used))
    reader = ClassMask(read, pairs, tuple(sorted(name_of.items())), alone_in(root, meanings))
    samples = []
    for sample in listing.samples:
        found = {dict(pairs)[n] for mask in sample.masks for n in numbers.get(mask, ())}
        label = label_of(found) if sample.masks else sample.label
        samples.append(replace(sample, label=label, mask_reader=reader))
    return replace(listing, samples=tuple(samples), mask_faults=tuple(faults))


def label_of(meanings: Collection[str]) -> str:
    """Return the label of an image by what is marked in it: the gravest; "normal" without."""
    return next((each for each in GRAVEST_FIRST if each in meanings), "normal")


def meanings_of(root: Path, used: Collection[str]) -> dict[str, str]:
    """Return what each class that is used means, one of `MEANINGS`.

    `classes.csv` says it, or a name that is one of them does; one class alone is the lesion.

    Raises InputError: E-DATA-CLASSES (several classes that nothing explains, or one that the table
    leaves out), E-DATA-VOID (pixels that nobody decided on, and the table does not either).
    """
    table_file = beside(root, CLASSES_TABLE)
    if table_file is not None:
        table = read_classes(table_file)
        for name in sorted(used):
            if name.casefold() not in table:
                raise _without_meaning(name, str(table_file))
        return {name: table[name.casefold()] for name in used}
    for name in sorted(used):
        if _is_void(name):
            raise _without_meaning(name, str(root))
    named = {name: name.casefold() for name in used if name.casefold() in MEANINGS}
    others = sorted(set(used) - set(named))
    if len(others) > 1 or (others and set(named.values()) - {BACKGROUND}):
        raise _unexplained(root, used)
    return {**named, **dict.fromkeys(others, UNCLASSED)}


def alone_in(root: Path, meanings: Mapping[str, str]) -> str:
    """Return the class that `meanings_of` took for the lesion as there is no other, or nothing."""
    if beside(root, CLASSES_TABLE) is not None:
        return ""
    return next((n for n, told in meanings.items() if told == UNCLASSED != n.casefold()), "")


def require_one_alone(root: Path, samples: Collection[Sample]) -> None:
    """Refuse parts of one data set in which different classes are alone: E-DATA-CLASSES."""
    readers = [each.mask_reader for each in samples]
    alone = {each.alone for each in readers if isinstance(each, ClassMask) and each.alone}
    if len(alone) > 1:
        raise _unexplained(root, alone)


def _unexplained(root: Path, used: Collection[str]) -> InputError:
    return InputError(
        "E-DATA-CLASSES",
        f"{root} marks the classes {', '.join(map(repr, sorted(used)[:8]))}, and nothing says "
        f"which are lesions; add {CLASSES_TABLE} with a line 'class,label' and one for each: "
        f"its label is {', '.join(MEANINGS[:-1])} or {MEANINGS[-1]}",
    )


def _is_void(name: str) -> bool:
    return name.casefold() in (str(_VOID_NUMBER), *_VOID_NAMES)


def _without_meaning(name: str, where: str) -> InputError:
    if _is_void(name):
        return InputError(
            "E-DATA-VOID",
            f"{where} has pixels of {name!r}, which nobody decided on, and here every pixel is "
            f"lesion or background; mend the masks, or decide by a line '{name},background' or "
            f"'{name},{UNCLASSED}' in {CLASSES_TABLE}",
        )
    return InputError(
        "E-DATA-CLASSES",
        f"{where} has the class {name!r} and {CLASSES_TABLE} does not say what it is; add a line "
        f"'{name},LABEL' with {', '.join(MEANINGS[:-1])} or {MEANINGS[-1]}",
    )


def read_classes(path: Path) -> dict[str, str]:
    """Return the meaning of each class of a table `class,label`; names in lower case.

    Raises InputError: E-DATA-CLASSES, E-DATA-LABEL for a file that cannot be read.
    """
    rows = [[cell.casefold() for cell in row] for row in read_rows(path) if any(row)]
    if not rows or rows[0] != ["class", "label"]:
        raise InputError("E-DATA-CLASSES", f"{path} needs a first line 'class,label'; add it")
    table: dict[str, str] = {}
    for row in rows[1:]:
        if len(row) != 2 or row[1] not in MEANINGS:
            raise InputError(
                "E-DATA-CLASSES",
                f"{path} has the line {','.join(row)!r}; write a class and {', '.join(MEANINGS)}",
            )
        if table.setdefault(row[0], row[1]) != row[1]:
            raise InputError("E-DATA-CLASSES", f"{path} gives {row[0]!r} two labels; leave one")
    return table


def numbers_by_table(root: Path) -> ClassMask | None:
    """Return the reader of masks whose numbers `classes.csv` explains; None without that table.

    Raises InputError: E-DATA-CLASSES, also for a class that is no number.
    """
    path = beside(root, CLASSES_TABLE)
    if path is None:
        return None
    table = read_classes(path)
    _require_background(table, "0", path)
    words = [name for name in table if not name.isdecimal()]
    if words:
        raise InputError(
            "E-DATA-CLASSES",
            f"{path} names the class {words[0]!r}, and masks have numbers; name those",
        )
    return ClassMask(read_index, tuple((int(name), meaning) for name, meaning in table.items()))


def _require_background(table: Mapping[str, str], name: str, path: Path) -> None:
    if table.get(name.casefold(), BACKGROUND) != BACKGROUND:
        raise InputError(
            "E-DATA-CLASSES", f"{path} calls {name!r} a lesion, and 0 is the background; mend it"
        )


def unreadable(error: InputError) -> ClassMask:
    """Return a reader that raises what is wrong with an annotation whenever it is read."""
    return ClassMask(partial(_raise, error), ())


def _raise(error: InputError, path: Path) -> NoReturn:
    raise error


def with_part(samples: Collection[Sample], parts: Mapping[Path, str]) -> tuple[Sample, ...]:
    """Return the samples with the part that their image is listed in."""
    return tuple(replace(each, part=parts.get(each.image, "")) for each in samples)
