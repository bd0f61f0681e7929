"""Data sets on disk: which images there are, their class, patient and masks.

Listing a data set looks at names only, unless its layout gives the class by the mask; pixels are
read by `Sample.read_image` and `read_mask`.
"""

from __future__ import annotations

import functools
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ...runtime.errors import InputError
from ...runtime.files import sha256_of_file
from ...runtime.folder import IMAGE_SUFFIXES, image_files
from ...runtime.image import read_image
from ...runtime.paths import takes_paths
from ...runtime.window import Window, window_from_text
from .labels import EVERY_LABEL as EVERY_LABEL
from .labels import LABELS as LABELS
from .labels import UNCLASSED as UNCLASSED
from .labels import read_lines
from .layouts import LAYOUTS as LAYOUTS
from .layouts import by_name, layout_of, require_layout
from .sample import Listing
from .sample import Sample as Sample

_WINDOW_FILE = "window.txt"
_LOGGER = logging.getLogger(__name__)  # where nobody set it up, a line on stderr
_NAMED = re.compile(r"([\w.-]+)=(.+)")  # a set's name and its folder


@dataclass(frozen=True)
class Member:
    """One of the data sets that a `Dataset` is made of."""

    name: str  # the folder's in lower case, or the one that was given
    root: Path
    layout: str  # key in LAYOUTS


@dataclass(frozen=True)
class Dataset:
    """The samples of one data set or of several, set by set, sorted with numbers in their order.

    Where there are several, the sets are sorted by name and each sample's name begins with its
    set's: ``busi/benign/benign (1).png``.
    """

    members: tuple[Member, ...]  # at least one
    samples: tuple[Sample, ...]

    @property
    def where(self) -> str:
        """The folders, for a message."""
        return " and ".join(str(member.root) for member in self.members)

    @property
    def has_parts(self) -> bool:
        """Whether the data come divided: some are for training and some are not."""
        parts = {sample.part for sample in self.samples if sample.part}
        return len(parts) > 1


@takes_paths
def read_datasets(folders: Sequence[Path]) -> Dataset:
    """Read one data set or several as one.

    Args:
        folders: roots, at least one; ``NAME=PATH`` names the set, else its folder does. A path
            whose first part looks like that is written ``./a=b``.

    Raises:
        InputError: E-DATA-NAME (two sets of one name), E-DATA-TWICE (an image in two sets), and
            those of `read_dataset`.
        EngineError: as `read_dataset`.
    """
    named = named_folders(folders)
    sets = [_read(name, root) for name, root in named]
    if len(sets) == 1:
        return sets[0]
    sets.sort(key=lambda each: each.members[0].name)
    samples = tuple(
        replace(sample, name=f"{sample.source}/{sample.name}")
        for each in sets
        for sample in each.samples
    )
    _require_one_set_each(samples)
    return Dataset(tuple(each.members[0] for each in sets), samples)


@takes_paths
def read_dataset(root: Path) -> Dataset:
    """Find out the layout of a folder and list its samples.

    Raises:
        InputError: E-DATA-FOLDER (no such folder), E-DATA-LAYOUT (none fits), E-DATA-EMPTY (no
            images), E-DATA-LABEL (unknown or missing label), E-DATA-PATIENT (a list of patients
            with gaps), E-DATA-NO-MASK (lesion without mask), E-DATA-CLASSES and E-DATA-VOID
            (classes that nothing explains); E-DATA-COLOUR, E-MASK-* and E-IMAGE-* for a mask that
            is to tell the class.
        EngineError: E-EXTRA-MISSING, for an XLSX class list without openpyxl.
    """
    return _read(*_name_and_root(root))


@takes_paths
def named_folders(folders: Sequence[Path]) -> tuple[tuple[str, Path], ...]:
    """Return name and root of each folder, in the order given; see `_root_of`.

    Raises InputError: E-DATA-NAME.
    """
    named = tuple(map(_name_and_root, folders))
    name, count = Counter(name for name, _ in named).most_common(1)[0]
    if count > 1:
        roots = " and ".join(str(root) for each, root in named if each == name)
        raise InputError(
            "E-DATA-NAME",
            f"{roots} are both called {name!r}; name one of them as NAME=PATH, or leave it out",
        )
    return named


def _name_and_root(folder: Path) -> tuple[str, Path]:
    given = _NAMED.fullmatch(str(folder))
    if given:
        return given[1].casefold(), _root_of(Path(given[2]))
    return folder.resolve().name.casefold(), _root_of(folder)


def _root_of(folder: Path) -> Path:
    """Return a folder, or the data set that lies alone in it, as archives unpack; that is said."""
    root: Path | None = folder
    try:
        while root is not None and layout_of(root) is None:
            root = _alone_in(root)
    except OSError:  # said where it is listed
        return folder
    if root is None:
        return folder
    if root != folder:
        _say_once(f"took {root}, the one folder in {folder}")
    return root


def _alone_in(folder: Path) -> Path | None:
    """Return the only folder in a folder without images; notes and what is hidden do not count."""
    inside = [
        path
        for path in folder.iterdir()
        if path.is_dir() and path.name[0] != "." and path.name != "__MACOSX"
    ]
    return inside[0] if len(inside) == 1 and not image_files(folder) else None


@functools.cache  # a command may read its data several times
def _say_once(text: str) -> None:
    _LOGGER.warning(text)


def _read(name: str, root: Path) -> Dataset:
    layout, listing = list_files(root)
    if listing.label_faults:
        first, others = listing.label_faults[0], len(listing.label_faults) - 1
        raise InputError("E-DATA-LABEL", f"{first} ({others} more such); correct the list")
    if listing.mask_faults:
        raise listing.mask_faults[0]
    if listing.without_mask:
        lesion, others = listing.without_mask[0], len(listing.without_mask) - 1
        raise InputError(
            "E-DATA-NO-MASK",
            f"{lesion.label} image {lesion.image} has no mask ({others} more such); "
            "add the mask or remove the image",
        )
    samples = tuple(replace(sample, source=name) for sample in listing.samples)
    return Dataset((Member(name, root, layout),), samples)


def _require_one_set_each(samples: Sequence[Sample]) -> None:
    """Refuse an image that is in two sets: it would be counted twice.

    Only files of one size are compared. Raises InputError: E-DATA-TWICE, E-DATA-FOLDER.
    """
    by_size: defaultdict[int, list[Sample]] = defaultdict(list)
    first_of: dict[str, Sample] = {}
    try:
        for sample in samples:
            by_size[sample.image.stat().st_size].append(sample)
        for alike in by_size.values():
            if len({sample.source for sample in alike}) > 1:
                for sample in alike:
                    first = first_of.setdefault(sha256_of_file(sample.image), sample)
                    if first.source != sample.source:
                        raise InputError(
                            "E-DATA-TWICE",
                            f"{first.name} and {sample.name} are the same file, so it would count "
                            "twice; remove it from one of the sets, or leave that set out",
                        )
    except OSError as error:
        raise InputError("E-DATA-FOLDER", f"cannot read an image ({error})") from error


@takes_paths
def list_files(root: Path) -> tuple[str, Listing]:
    """Return the name of a folder's layout and what it finds, defects of single files included.

    Raises:
        InputError: E-DATA-FOLDER, E-DATA-LAYOUT, E-DATA-EMPTY, E-WINDOW, and E-DATA-LABEL,
            E-DATA-PATIENT, E-DATA-CLASSES, E-DATA-VOID, E-DATA-ANNOTATION or E-SPLIT-LIST where a
            list or an annotation as a whole cannot be used.
        EngineError: E-EXTRA-MISSING, for an XLSX class list without openpyxl.
    """
    if not root.is_dir():
        raise InputError("E-DATA-FOLDER", f"no folder {root}; give the data set's root folder")
    try:
        name = require_layout(root)
        listing = LAYOUTS[name].list_files(root)
    except OSError as error:
        raise InputError(
            "E-DATA-FOLDER", f"cannot list {root} ({error}); check its permissions"
        ) from error
    if not listing.samples and not listing.label_faults:
        raise InputError(
            "E-DATA-EMPTY",
            f"{root} has no images ({', '.join(IMAGE_SUFFIXES)}) in its {name} folders; add some",
        )
    samples = by_name(listing.samples)
    window = _window_of(root)
    if window is not None:
        reader = partial(read_image, window=window)
        samples = tuple(
            replace(each, image_reader=reader) if each.image_reader is read_image else each
            for each in samples
        )
    return name, replace(listing, samples=samples)


def _window_of(root: Path) -> Window | None:
    """Return what `window.txt` says is shown of images of more than 8 bits: CENTRE,WIDTH.

    None without that file. Raises InputError: E-WINDOW.
    """
    path = root / _WINDOW_FILE
    if not path.is_file():
        return None
    lines = read_lines(path)
    if len(lines) != 1:
        raise InputError("E-WINDOW", f"{path} has {len(lines)} lines; give one, CENTRE,WIDTH")
    return window_from_text(lines[0])
