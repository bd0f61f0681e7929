"""The ways to lay out a data set on disk: how each is recognised, and its reader.

Readers look at names and lists, and at masks only where nothing else tells the class.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from ...runtime.errors import InputError
from ...runtime.folder import image_files, masked_stem, natural_key, stem_of
from .classes import (
    CLASSES_TABLE,
    numbers_by_table,
    require_one_alone,
    with_numbered_classes,
)
from .coco import is_coco, list_coco
from .labelme import is_labelme, list_labelme
from .labels import LABELS, UNCLASSED, LabelList, image_key, read_found_list, read_named_list
from .masks import inspect_mask, read_colours
from .nnunet import is_nnunet, list_nnunet
from .pairing import GRAVEST_FIRST, folders, image_stem_of, in_folders, pair, with_labels_of_masks
from .parts import beside, part_folders
from .sample import Listing, Sample
from .voc import is_voc, list_voc
from .yolo import is_yolo, list_yolo

_PLAIN_TABLE = "labels.csv"
_BUS_BRA_TABLE = "bus_data.csv"
_BREAST_IMAGE = re.compile(r"case\d+", re.IGNORECASE)
_BREAST_MASK = re.compile(r"(case\d+)_(tumor|other\d*)", re.IGNORECASE)
_UCLM_TABLE = "INFO.csv"
_UCLM_PATIENT_CHARS = 4  # of an image's name
_UCLM_COLOURS: Mapping[tuple[int, ...], str] = MappingProxyType(
    {(0, 0, 0): "normal", (0, 255, 0): "benign", (255, 0, 0): "malignant"}
)
_PARTS = "parts"  # the layout that has others in it


@dataclass(frozen=True)
class DataSetLayout:
    """A way to lay out a data set."""

    description: str
    fits: Callable[[Path], bool]
    list_files: Callable[[Path], Listing]


def by_name(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """Return the samples sorted by name, with numbers in numeric order."""
    return tuple(sorted(samples, key=lambda sample: natural_key(sample.name)))


def _list_busi(root: Path) -> Listing:
    samples: list[Sample] = []
    orphans: list[Path] = []
    for folder in folders(root, *LABELS):
        files = image_files(folder)
        masks = [path for path in files if masked_stem(path)]
        images = [path for path in files if not masked_stem(path)]
        listing = pair(root, images, masks, dict.fromkeys(images, folder.name.casefold()))
        samples += listing.samples
        orphans += listing.orphan_masks
    return Listing(tuple(samples), tuple(orphans))


def _list_with_labels(
    root: Path,
    images: Sequence[Path],
    masks: Sequence[Path],
    table: Path,
    read_list: Callable[[Path, set[str]], LabelList],
    image_stem: Callable[[Path], str] = image_stem_of,
) -> Listing:
    if not images:
        return Listing((), tuple(masks))
    keys = {path: image_key(path.name) for path in images}
    given = read_list(table, set(keys.values()))
    labels = {path: given.labels[key] for path, key in keys.items() if key in given.labels}
    patients = {path: given.patients[key] for path, key in keys.items() if key in given.patients}
    unlabelled = [
        f"{table} gives no usable label for {path.relative_to(root).as_posix()}"
        for path in images
        if path not in labels
    ]
    listing = pair(root, images, masks, labels, patients, image_stem)
    return replace(listing, label_faults=(*given.faults, *unlabelled))


def _tables(root: Path) -> list[Path]:
    return [
        path
        for path in sorted(root.iterdir())
        if path.suffix.lower() in (".csv", ".xlsx") and not path.name.startswith((".", "~$"))
    ]


def _only_table(root: Path) -> Path:
    tables = _tables(root)
    if len(tables) != 1:
        raise InputError(
            "E-DATA-LABEL",
            f"{root} has {len(tables)} class lists (*.csv, *.xlsx); leave exactly one there",
        )
    return tables[0]


def _list_dataset_b(root: Path) -> Listing:
    images, masks = in_folders(root, "original"), in_folders(root, "GT")
    return _list_with_labels(root, images, masks, _only_table(root), read_found_list)


def _list_plain(root: Path) -> Listing:
    images, masks = in_folders(root, "images"), in_folders(root, "masks")
    listing = _list_with_labels(root, images, masks, root / _PLAIN_TABLE, read_named_list)
    reader = numbers_by_table(root)
    if reader is None:
        return listing
    return replace(
        listing, samples=tuple(replace(each, mask_reader=reader) for each in listing.samples)
    )


def _list_indexed(root: Path) -> Listing:
    images, masks = in_folders(root, "images"), in_folders(root, "masks")
    listing = pair(root, images, masks, dict.fromkeys(images, UNCLASSED))
    return with_numbered_classes(root, listing)


def _list_bus_bra(root: Path) -> Listing:
    read_list = partial(
        read_named_list, image="ID", label="Pathology", patient="Case", needs_patient=True
    )
    images, masks = in_folders(root, "Images"), in_folders(root, "Masks")
    table = root / _BUS_BRA_TABLE
    return _list_with_labels(root, images, masks, table, read_list, _bus_bra_stem)


def _bus_bra_stem(mask: Path) -> str:
    stem = stem_of(mask)
    return f"bus{stem[len('mask') :]}" if stem.casefold().startswith("mask_") else stem


def _list_breast(root: Path) -> Listing:
    """List BrEaST: a scan of each patient, and the masks of its tumour.

    A scan's other masks (``case001_other1.png``) are "other abnormal areas" (doi
    10.7937/9WKK-Q141) and no tumours: they are neither truth nor orphans.
    """
    files = image_files(root)
    images = [path for path in files if _BREAST_IMAGE.fullmatch(path.stem)]
    stems = {path.stem for path in images}
    masks = [
        path
        for path in files
        if (matched := _BREAST_MASK.fullmatch(path.stem))
        and (matched[2].casefold() == "tumor" or matched[1] not in stems)
    ]
    listing = _list_with_labels(
        root, images, masks, _only_table(root), read_found_list, _breast_stem
    )
    samples = (replace(sample, patient=sample.image.stem) for sample in listing.samples)
    return replace(listing, samples=tuple(samples))


def _breast_stem(mask: Path) -> str:
    matched = _BREAST_MASK.fullmatch(mask.stem)
    return matched[1] if matched else stem_of(mask)


def _list_bus_uclm(root: Path) -> Listing:
    images, masks = in_folders(root, "images"), in_folders(root, "masks")
    patients = {path: path.name[:_UCLM_PATIENT_CHARS] for path in images}
    listing = pair(root, images, masks, dict.fromkeys(images, UNCLASSED), patients)
    return with_labels_of_masks(listing, _uclm_mask, _uclm_label)


def _uclm_label(path: Path) -> str:
    """Return the class that a mask's colours give; of two the worse."""
    classes = {_UCLM_COLOURS[colour] for colour in _uclm_colours(path)}
    return next(label for label in GRAVEST_FIRST if label in classes)


def _uclm_colours(path: Path) -> set[tuple[int, ...]]:
    rgb = read_colours(path)
    found = {tuple(map(int, colour)) for colour in np.unique(rgb.reshape(-1, 3), axis=0)}
    if unknown := sorted(found - set(_UCLM_COLOURS)):
        known = ", ".join(f"{label} {colour}" for colour, label in _UCLM_COLOURS.items())
        raise InputError(
            "E-DATA-COLOUR",
            f"mask {path} has the colour {unknown[0]} ({len(unknown) - 1} more such), which stands "
            f"for nothing known ({known}); mend the mask or remove its image",
        )
    return found


def _uclm_mask(path: Path) -> npt.NDArray[np.bool_]:
    _uclm_colours(path)
    return np.asarray(read_colours(path).any(axis=2))


def _list_unlisted(root: Path) -> Listing:
    """List images whose class nobody tells: a marked mask is a lesion of unknown class."""
    images, masks = in_folders(root, "images"), in_folders(root, "masks")
    for folder in folders(root, "masks"):
        classes = [path for path in sorted(folder.iterdir()) if path.is_dir()]
        if [path.name for path in classes] not in ([], ["0"]):
            raise InputError(
                "E-DATA-LAYOUT",
                f"{folder} has {len(classes)} folders, such as {classes[-1].name}/; masks of one "
                "kind are read, from it and from 0/ in it, so remove the others",
            )
        masks += [path for each in classes for path in image_files(each)]
    listing = pair(root, images, masks, dict.fromkeys(images, UNCLASSED))
    return with_labels_of_masks(listing, _grey_mask, _unlisted_label)


def _unlisted_label(path: Path) -> str:
    return UNCLASSED if _grey_mask(path).any() else "normal"


def _grey_mask(path: Path) -> npt.NDArray[np.bool_]:
    """Read a mask that must have no colours: nothing says what they would stand for."""
    mask = inspect_mask(path)
    if mask.coloured:
        raise InputError(
            "E-DATA-COLOUR",
            f"mask {path} has colours, and nothing in the data set says what they stand for; "
            f"make it black and white, or say in {CLASSES_TABLE} what its numbers are",
        )
    if mask.numbered:
        raise InputError(
            "E-DATA-CLASSES",
            f"mask {path} has several numbers, which may be classes or count lesions; say what "
            f"each is in {CLASSES_TABLE}",
        )
    return mask.lesion


def layout_of(root: Path, *, in_parts: bool = True) -> str | None:
    """Return the key of the first layout that fits, or None. Raises OSError.

    `in_parts`: whether it may be one that has others in it.
    """
    return next(
        (
            name
            for name, each in LAYOUTS.items()
            if (in_parts or name != _PARTS) and each.fits(root)
        ),
        None,
    )


def require_layout(root: Path, *, in_parts: bool = True) -> str:
    """Return the key of the first layout that fits; raises InputError (E-DATA-LAYOUT), OSError."""
    name = layout_of(root, in_parts=in_parts)
    if name is None:
        known = "; ".join(f"{name}: {layout.description}" for name, layout in LAYOUTS.items())
        raise InputError(
            "E-DATA-LAYOUT", f"{root} has no known layout; arrange it as one of these - {known}"
        )
    return name


def _list_parts(root: Path) -> Listing:
    """List train/, val/ and test/, each in a layout of its own; a sample knows its part."""
    found = Listing((), ())
    for part, folder in part_folders(root).items():
        inner = LAYOUTS[require_layout(folder, in_parts=False)].list_files(folder)
        samples = (
            replace(each, name=f"{folder.name}/{each.name}", part=part) for each in inner.samples
        )
        found = Listing(
            (*found.samples, *samples),
            found.orphan_masks + inner.orphan_masks,
            found.label_faults + inner.label_faults,
            found.mask_faults + inner.mask_faults,
        )
    require_one_alone(root, found.samples)
    return found


# To add a layout: a detector and a reader above and a line here; tests/kd/test_data_dataset.py
# walks this table. The first that fits is taken.
LAYOUTS: Mapping[str, DataSetLayout] = MappingProxyType(
    {
        "busi": DataSetLayout(
            "benign/, malignant/ and normal/ with 'x.png' beside 'x_mask.png', 'x_mask_1.png' ...",
            lambda root: bool(folders(root, *LABELS)),
            _list_busi,
        ),
        "dataset-b": DataSetLayout(
            "original/ and GT/ with equal file names and a class list, *.csv or *.xlsx",
            lambda root: bool(folders(root, "original") and folders(root, "GT")),
            _list_dataset_b,
        ),
        "breast": DataSetLayout(
            "'case001.png' beside 'case001_tumor.png' and a class list, *.csv or *.xlsx",
            lambda root: any(_BREAST_MASK.fullmatch(path.stem) for path in image_files(root)),
            _list_breast,
        ),
        "bus-bra": DataSetLayout(
            f"Images/bus_1.png, Masks/mask_1.png and {_BUS_BRA_TABLE} with ID, Case, Pathology",
            lambda root: _has_masks(root, _BUS_BRA_TABLE),
            _list_bus_bra,
        ),
        "plain": DataSetLayout(
            f"images/ and masks/ with equal file names and {_PLAIN_TABLE} with columns "
            "image,label and, where patients are known, patient",
            lambda root: _has_masks(root, _PLAIN_TABLE),
            _list_plain,
        ),
        "bus-uclm": DataSetLayout(
            "images/ and masks/ with equal file names, masks green where benign and red where "
            f"malignant, and {_UCLM_TABLE}",
            lambda root: _has_masks(root, _UCLM_TABLE),
            _list_bus_uclm,
        ),
        "indexed": DataSetLayout(
            "images/ and masks/ with equal file names, masks of class numbers (grey or palette), "
            f"and {CLASSES_TABLE} with columns class,label",
            lambda root: _has_masks(root) and beside(root, CLASSES_TABLE) is not None,
            _list_indexed,
        ),
        "unlisted": DataSetLayout(
            "images/ and masks/ (or masks/0/) with equal file names and no list: an image whose "
            "mask marks something is a lesion of unknown class",
            lambda root: _has_masks(root),
            _list_unlisted,
        ),
        "voc": DataSetLayout(
            "JPEGImages/ and SegmentationClass/ with equal file names, masks of class numbers, and "
            "ImageSets/Segmentation/*.txt that name images and parts",
            is_voc,
            list_voc,
        ),
        "nnunet": DataSetLayout(
            "nnU-Net in 2-D: imagesTr/NAME_0000.png, labelsTr/NAME.png of class numbers (or "
            ".nii.gz), and dataset.json",
            is_nnunet,
            list_nnunet,
        ),
        "labelme": DataSetLayout(
            "LabelMe: 'x.json' for each image, in the folder itself or in images/, annotations/, "
            "json/ or labels/",
            is_labelme,
            list_labelme,
        ),
        "coco": DataSetLayout(
            "COCO: annotations/*.json, or *.json beside the images, with outlines or run lengths",
            is_coco,
            list_coco,
        ),
        "yolo": DataSetLayout(
            "YOLO: images/ and labels/*.txt with a polygon a line, and data.yaml with names",
            is_yolo,
            list_yolo,
        ),
        _PARTS: DataSetLayout(
            "train/ and val/ or test/, each in one of the other layouts: they are the split",
            lambda root: len(part_folders(root)) > 1,
            _list_parts,
        ),
    }
)


def _has_masks(root: Path, *tables: str) -> bool:
    return bool(
        folders(root, "images")
        and folders(root, "masks")
        and all((root / table).is_file() for table in tables)
    )
