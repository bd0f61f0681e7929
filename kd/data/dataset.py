"""Data sets on disk: which images there are, their class and their masks.

Listing a data set looks at names only; pixels are read by `Sample.read_image` and `read_mask`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from ...runtime.errors import InputError
from ...runtime.image import IMAGE_SUFFIXES, read_image, read_mask
from ...runtime.paths import takes_paths
from .labels import LABELS as LABELS
from .labels import LabelList, image_key, read_found_list, read_named_list

_MASK_STEM = re.compile(r"(.+)_mask(?:_\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Sample:
    """One image with its class and masks."""

    name: str  # image path relative to the root, posix: unique in a data set
    label: str  # one of LABELS
    image: Path
    masks: tuple[Path, ...]  # their union is the truth; may be empty only for "normal"
    look: int | None = None  # number of its group of near-duplicates, where they were sought

    @property
    def group(self) -> str:
        """Tell near-duplicates: they share it. A sample whose group is unknown is alone."""
        return self.name if self.look is None else f"group {self.look}"

    def read_image(self) -> npt.NDArray[np.uint8]:
        """Return the grey image, uint8 [H, W]. Raises InputError as `runtime.image.read_image`."""
        return read_image(self.image)

    def read_mask(self) -> npt.NDArray[np.bool_]:
        """Return the union of the masks, bool [H, W]; all False where there is none.

        Raises:
            InputError: E-DATA-MASK-SIZE for a mask of another size than the image,
                E-DATA-MASK-EMPTY for a lesion without a marked pixel or a normal image with one,
                or as `runtime.image.read_image`.
        """
        height, width = self.read_image().shape
        union = np.zeros((height, width), np.bool_)
        for path in self.masks:
            mask = read_mask(path)
            if mask.shape != union.shape:
                raise InputError(
                    "E-DATA-MASK-SIZE",
                    f"mask {path} has {mask.shape[1]}x{mask.shape[0]} pixels but image "
                    f"{self.image} has {width}x{height}; replace the mask or remove the image",
                )
            union |= mask
        if union.any() == (self.label == "normal"):
            raise InputError(
                "E-DATA-MASK-EMPTY",
                f"{self.image} is {self.label} but its mask marks "
                f"{'something' if union.any() else 'nothing'}; mend the mask or the label",
            )
        return union


@dataclass(frozen=True)
class Dataset:
    """The samples of one folder, sorted by name with numbers in numeric order."""

    root: Path
    layout: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Listing:
    """What a layout finds in a folder, defects included; `read_dataset` refuses defects."""

    samples: tuple[Sample, ...]  # with a known label; a lesion may lack its mask here
    orphan_masks: tuple[Path, ...]  # masks of no image
    label_faults: tuple[str, ...] = ()  # one line each

    @property
    def without_mask(self) -> tuple[Sample, ...]:
        """The lesion images that have no mask."""
        return tuple(s for s in self.samples if s.label != "normal" and not s.masks)


@dataclass(frozen=True)
class Layout:
    """A way to lay out a data set."""

    description: str
    fits: Callable[[Path], bool]
    list_files: Callable[[Path], Listing]


@takes_paths
def read_dataset(root: Path) -> Dataset:
    """Find out the layout of a folder and list its samples; no image is decoded.

    Raises:
        InputError: E-DATA-FOLDER (no such folder), E-DATA-LAYOUT (none fits), E-DATA-EMPTY (no
            images), E-DATA-LABEL (unknown or missing label), E-DATA-NO-MASK (lesion without mask).
        EngineError: E-EXTRA-MISSING, for an XLSX class list without openpyxl.
    """
    layout, listing = list_files(root)
    if listing.label_faults:
        first, others = listing.label_faults[0], len(listing.label_faults) - 1
        raise InputError("E-DATA-LABEL", f"{first} ({others} more such); correct the list")
    if listing.without_mask:
        lesion, others = listing.without_mask[0], len(listing.without_mask) - 1
        raise InputError(
            "E-DATA-NO-MASK",
            f"{lesion.label} image {lesion.image} has no mask ({others} more such); "
            "add the mask or remove the image",
        )
    return Dataset(root, layout, listing.samples)


@takes_paths
def list_files(root: Path) -> tuple[str, Listing]:
    """Return the name of a folder's layout and what it finds, defects of single files included.

    Raises:
        InputError: E-DATA-FOLDER, E-DATA-LAYOUT, E-DATA-EMPTY, and E-DATA-LABEL where the class
            list as a whole cannot be used.
        EngineError: E-EXTRA-MISSING, for an XLSX class list without openpyxl.
    """
    if not root.is_dir():
        raise InputError("E-DATA-FOLDER", f"no folder {root}; give the data set's root folder")
    try:
        name = next((name for name, layout in LAYOUTS.items() if layout.fits(root)), None)
        if name is None:
            known = "; ".join(f"{name}: {layout.description}" for name, layout in LAYOUTS.items())
            raise InputError(
                "E-DATA-LAYOUT", f"{root} has no known layout; arrange it as one of these - {known}"
            )
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
    return name, replace(listing, samples=_by_name(listing.samples))


def _by_name(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    return tuple(sorted(samples, key=lambda sample: _natural(sample.name)))


def _natural(name: str) -> tuple[list[int | str], str]:
    """Return a sort key that puts "benign (2)" before "benign (10)"."""
    parts: list[int | str] = list(re.split(r"(\d+)", name))
    parts[1::2] = [int(number) for number in parts[1::2]]
    return parts, name


def _images_in(folder: Path) -> list[Path]:
    """Return the image files, naturally sorted; hidden ones are the file system's own."""
    found = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "." and path.is_file()
    ]
    return sorted(found, key=lambda path: _natural(path.name))


def _folders(root: Path, *names: str) -> list[Path]:
    """Return the folders in `root` that have one of the names, in any case."""
    wanted = {name.casefold() for name in names}
    return sorted(p for p in root.iterdir() if p.name.casefold() in wanted and p.is_dir())


def _pair(
    root: Path, images: Iterable[Path], masks: Iterable[Path], labels: Mapping[Path, str]
) -> Listing:
    """Join images, masks and labels; an image without a label is left out."""
    by_stem: dict[str, list[Path]] = {}
    for mask in masks:
        matched = _MASK_STEM.fullmatch(mask.stem)
        by_stem.setdefault(matched[1] if matched else mask.stem, []).append(mask)
    samples, stems = [], set()
    for image in images:
        stems.add(image.stem)
        if image in labels:
            name = image.relative_to(root).as_posix()
            samples.append(Sample(name, labels[image], image, tuple(by_stem.get(image.stem, ()))))
    orphans = [mask for stem, found in by_stem.items() if stem not in stems for mask in found]
    return Listing(tuple(samples), tuple(orphans))


def _list_busi(root: Path) -> Listing:
    samples: list[Sample] = []
    orphans: list[Path] = []
    for folder in _folders(root, *LABELS):
        files = _images_in(folder)
        masks = [path for path in files if _MASK_STEM.fullmatch(path.stem)]
        images = [path for path in files if not _MASK_STEM.fullmatch(path.stem)]
        listing = _pair(root, images, masks, dict.fromkeys(images, folder.name.casefold()))
        samples += listing.samples
        orphans += listing.orphan_masks
    return Listing(tuple(samples), tuple(orphans))


def _list_with_labels(
    root: Path,
    image_folder: str,
    mask_folder: str,
    table: Path,
    read_list: Callable[[Path, set[str]], LabelList],
) -> Listing:
    images = [path for folder in _folders(root, image_folder) for path in _images_in(folder)]
    masks = [path for folder in _folders(root, mask_folder) for path in _images_in(folder)]
    if not images:
        return Listing((), tuple(masks))
    given = read_list(table, {image_key(path.name) for path in images})
    keys = {path: image_key(path.name) for path in images}
    labels = {path: given.labels[key] for path, key in keys.items() if key in given.labels}
    unlabelled = [
        f"{table} gives no usable label for {path.relative_to(root).as_posix()}"
        for path in images
        if path not in labels
    ]
    listing = _pair(root, images, masks, labels)
    return replace(listing, label_faults=(*given.faults, *unlabelled))


def _list_dataset_b(root: Path) -> Listing:
    tables = [
        path
        for path in sorted(root.iterdir())
        if path.suffix.lower() in (".csv", ".xlsx") and not path.name.startswith((".", "~$"))
    ]
    if len(tables) != 1:
        raise InputError(
            "E-DATA-LABEL",
            f"{root} has {len(tables)} class lists (*.csv, *.xlsx) beside original/ and GT/; "
            "leave exactly one there",
        )
    return _list_with_labels(root, "original", "GT", tables[0], read_found_list)


def _list_plain(root: Path) -> Listing:
    return _list_with_labels(root, "images", "masks", root / "labels.csv", read_named_list)


# To add a layout: a detector and a reader above and a line here; tests/test_kd_data_dataset.py
# walks this table. The first that fits is taken.
LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "busi": Layout(
            "benign/, malignant/ and normal/ with 'x.png' beside 'x_mask.png', 'x_mask_1.png' ...",
            lambda root: bool(_folders(root, *LABELS)),
            _list_busi,
        ),
        "dataset-b": Layout(
            "original/ and GT/ with equal file names and a class list, *.csv or *.xlsx",
            lambda root: bool(_folders(root, "original") and _folders(root, "GT")),
            _list_dataset_b,
        ),
        "plain": Layout(
            "images/ and masks/ with equal file names and labels.csv with columns image,label",
            lambda root: bool(
                _folders(root, "images")
                and _folders(root, "masks")
                and (root / "labels.csv").is_file()
            ),
            _list_plain,
        ),
    }
)
