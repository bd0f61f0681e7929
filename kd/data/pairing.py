"""Images joined with their masks by name: what the readers of layouts share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from ...runtime.errors import InputError
from ...runtime.folder import image_files, masked_stem, stem_of
from .labels import UNCLASSED
from .sample import Listing, MaskReader, Sample

GRAVEST_FIRST = ("malignant", "benign", UNCLASSED, "normal")


def folders(root: Path, *names: str) -> list[Path]:
    """Return the folders in `root` that have one of the names, in any case."""
    wanted = {name.casefold() for name in names}
    return sorted(p for p in root.iterdir() if p.name.casefold() in wanted and p.is_dir())


def in_folders(root: Path, *names: str) -> list[Path]:
    """Return the images of the folders in `root` that have one of the names, in any case."""
    return [path for folder in folders(root, *names) for path in image_files(folder)]


def image_stem_of(mask: Path) -> str:
    """Return the stem of the image that a mask is of: "x" for "x", "x_mask" and "x_mask_1"."""
    return masked_stem(mask) or stem_of(mask)


def pair(
    root: Path,
    images: Iterable[Path],
    masks: Iterable[Path],
    labels: Mapping[Path, str],
    patients: Mapping[Path, str] = MappingProxyType({}),
    image_stem: Callable[[Path], str] = image_stem_of,
) -> Listing:
    """Join images, masks, labels and patients; an image without a label is left out."""
    by_stem: dict[str, list[Path]] = {}
    for mask in masks:
        by_stem.setdefault(image_stem(mask), []).append(mask)
    samples, stems = [], set()
    for image in images:
        stems.add(stem_of(image))
        if image in labels:
            name = image.relative_to(root).as_posix()
            samples.append(
                Sample(
                    name,
                    labels[image],
                    image,
                    tuple(by_stem.get(stem_of(image), ())),
                    patient=patients.get(image),
                )
            )
    orphans = [mask for stem, found in by_stem.items() if stem not in stems for mask in found]
    return Listing(tuple(samples), tuple(orphans))


def with_labels_of_masks(
    listing: Listing, mask_reader: MaskReader, label_of: Callable[[Path], str]
) -> Listing:
    """Give each sample the label of its masks; one without a mask keeps its own."""
    samples, faults = [], []
    for sample in listing.samples:
        labels = set()
        for mask in sample.masks:
            try:
                labels.add(label_of(mask))
            except InputError as error:
                faults.append(error)
        label = next((each for each in GRAVEST_FIRST if each in labels), sample.label)
        samples.append(replace(sample, label=label, mask_reader=mask_reader))
    return replace(listing, samples=tuple(samples), mask_faults=tuple(faults))
