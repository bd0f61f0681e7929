"""What is wrong with a data set: every defect in one go, none of them fatal here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ...runtime.errors import InputError
from ...runtime.files import sha256_of_file
from ...runtime.paths import takes_paths
from ...runtime.progress import Progress, quiet
from .classes import ClassMask
from .dataset import EVERY_LABEL, LABELS, list_files, named_folders
from .duplicates import groups_from_pairs, near_duplicates, pairs_of, patient_pairs
from .masks import Mask, inspect_mask, read_mask
from .sample import Sample

_Content = TypeVar("_Content", npt.NDArray[np.uint8], Mask)
_LARGE = 0.5  # share of the image from which on a lesion is listed
_SHOWN = 8  # entries of each kind in the text report; to_dict() has all


@dataclass(frozen=True)
class Audit:
    """The findings, as names relative to the root; empty tuples where all is well.

    Of several data sets the names begin with the set's.
    """

    root: str  # of several: joined by " and ", as their layouts are
    layout: str
    images: dict[str, int]  # usable ones by class
    patients: int  # 0 where the data set does not tell
    groups: int  # of a patient's images and near-duplicates, which a split keeps in one part
    duplicate_groups: int  # groups of two and more near-duplicates
    duplicate_images: int  # images in them
    # Near-duplicates under two classes are a fact to know, not a defect to mend: the split keeps
    # them together. The same holds for `duplicate_groups`.
    cross_class: tuple[tuple[str, str, float], ...]  # two images, their correlation
    cross_patient: tuple[tuple[str, str, float], ...]  # the same, of two patients or data sets
    # From here on every entry is a problem.
    unreadable: tuple[str, ...]  # "name: reason", images and masks
    size_mismatches: tuple[str, ...]  # "mask 10x10, image 20x20"
    without_mask: tuple[str, ...]  # lesion images without any mask file
    empty_masks: tuple[str, ...]  # lesion images whose masks mark nothing
    blank_files: tuple[str, ...]  # mask files that mark nothing beside others that do
    several_pages: tuple[str, ...]  # "name: reason", images and masks
    odd_values: tuple[str, ...]  # "name: values 0, 100", masks not of 0 and 1 or full scale
    alpha_masks: tuple[str, ...]  # masks that are not opaque everywhere
    large_lesions: tuple[str, ...]  # "name: 57 %" of a lesion image
    marked_normals: tuple[str, ...]  # normal images whose masks mark something
    orphan_masks: tuple[str, ...]
    label_faults: tuple[str, ...]
    identical: tuple[tuple[str, ...], ...]  # sets of images with the same bytes
    torn_groups: tuple[tuple[str, ...], ...]  # a patient's, or look-alikes, in two of its own parts

    @property
    def duplicate_share(self) -> float:
        """The share of readable images that have a near-duplicate, 0..1; 0 without images."""
        return self.duplicate_images / max(sum(self.images.values()), 1)

    @property
    def problems(self) -> int:
        """The number of defects to mend."""
        return sum(len(getattr(self, kind)) for kind in _PROBLEMS)

    def to_dict(self) -> dict[str, object]:
        """Return every finding, ready for `json.dumps`."""
        return {
            **asdict(self),
            "duplicate_share": self.duplicate_share,
            "problems": self.problems,
        }


_PROBLEMS = {  # field: its line in the report
    "unreadable": "unreadable files",
    "size_mismatches": "masks of another size than their image",
    "without_mask": "lesion images without a mask",
    "empty_masks": "lesion images with an empty mask",
    "blank_files": "mask files that mark nothing",
    "several_pages": "files of several pages",
    "odd_values": "masks of values that are not 0 and 1, or 0 and full scale",
    "alpha_masks": "masks with an alpha channel that is not opaque",
    "large_lesions": "lesions over half of the image",
    "marked_normals": "normal images with a lesion marked",
    "orphan_masks": "masks without an image",
    "label_faults": "faults of the class list",
    "identical": "sets of identical images",
    "torn_groups": "patients or near-duplicates that are in more than one of its parts",
}
_OF_SEVERAL = ("identical", "torn_groups")  # known once every file was read


@takes_paths
def audit_datasets(folders: Sequence[Path], *, progress: Progress = quiet) -> Audit:
    """Read every file of one data set or several and list all defects.

    Args:
        folders: as `read_datasets` takes them.
        progress: wraps the loops over images.

    Raises:
        InputError: E-DATA-NAME, E-DATA-FOLDER, E-DATA-LAYOUT, E-DATA-EMPTY, or E-DATA-LABEL and
            E-DATA-PATIENT where a list as a whole cannot be used; single defects are reported
            instead.
        EngineError: E-EXTRA-MISSING, for an XLSX class list without openpyxl.
    """
    sets = [(name, root, *list_files(root)) for name, root in named_folders(folders)]
    found: dict[str, list[str]] = {kind: [] for kind in _PROBLEMS if kind not in _OF_SEVERAL}
    readable: list[Sample] = []
    by_digest: dict[str, list[str]] = {}
    for name, root, _, listing in sets:
        named = partial(_name, root, f"{name}/" if len(sets) > 1 else "")
        for listed in progress(listing.samples, "checking files"):
            sample = replace(listed, name=named(listed.image), source=name)
            image = _read(sample.image, sample.image_reader, named, found)
            if image is None:
                continue
            readable.append(sample)
            by_digest.setdefault(sha256_of_file(sample.image), []).append(sample.name)
            _check_masks(sample, image.shape, named, found)
        found["without_mask"] += [named(sample.image) for sample in listing.without_mask]
        found["orphan_masks"] += map(named, listing.orphan_masks)
        found["label_faults"] += listing.label_faults
    pairs = near_duplicates(readable, progress=progress)
    members = Counter(groups_from_pairs(len(readable), pairs_of(pairs)))
    sizes = [size for size in members.values() if size > 1]
    whole = groups_from_pairs(len(readable), [*pairs_of(pairs), *patient_pairs(readable)])
    labels = Counter(sample.label for sample in readable)

    def alike(differ: Callable[[Sample, Sample], bool]) -> tuple[tuple[str, str, float], ...]:
        ends = [(readable[pair.first], readable[pair.second], pair) for pair in pairs]
        return tuple(
            (one.name, other.name, round(pair.correlation, 3))
            for one, other, pair in ends
            if differ(one, other)
        )

    return Audit(
        root=" and ".join(str(root) for _, root, _, _ in sets),
        layout=" and ".join(layout for _, _, layout, _ in sets),
        images={label: labels[label] for label in EVERY_LABEL if label in LABELS or labels[label]},
        patients=len({(s.source, s.patient) for s in readable if s.patient is not None}),
        groups=len(set(whole)),
        duplicate_groups=len(sizes),
        duplicate_images=sum(sizes),
        cross_class=alike(lambda one, other: one.label != other.label),
        cross_patient=alike(
            lambda one, other: one.source != other.source or one.patient != other.patient
        ),
        **{kind: tuple(entries) for kind, entries in found.items()},
        identical=tuple(tuple(names) for names in by_digest.values() if len(names) > 1),
        torn_groups=_torn(readable, whole),
    )


def _torn(samples: Sequence[Sample], groups: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Return the names of each group that is in more than one of the parts that data come in."""
    members: dict[int, list[Sample]] = {}
    for sample, group in zip(samples, groups, strict=True):
        members.setdefault(group, []).append(sample)
    return tuple(
        tuple(sample.name for sample in each)
        for each in members.values()
        if len({sample.part for sample in each}) > 1
    )


def _name(root: Path, prefix: str, path: Path) -> str:
    return prefix + path.relative_to(root).as_posix()


def _read(
    path: Path,
    read: Callable[[Path], _Content],
    named: Callable[[Path], str],
    found: dict[str, list[str]],
) -> _Content | None:
    """Return the pixels, or None after noting why there are none."""
    try:
        return read(path)
    except InputError as error:
        kind = "several_pages" if error.code == "E-IMAGE-FRAMES" else "unreadable"
        found[kind].append(f"{named(path)}: {error}")
        return None


def _inspect(sample: Sample, path: Path) -> Mask:
    """Read a mask as its data set does; one with a reader of its own says what colours mean."""
    if isinstance(sample.mask_reader, ClassMask):
        return Mask(sample.mask_reader(path))
    mask = inspect_mask(path)
    if sample.mask_reader is read_mask:
        return mask
    odd = "" if mask.coloured else mask.odd_values
    return replace(mask, lesion=sample.mask_reader(path), odd_values=odd)


def _check_masks(
    sample: Sample,
    shape: tuple[int, ...],
    named: Callable[[Path], str],
    found: dict[str, list[str]],
) -> None:
    """Note the defects of a sample's masks; [H, W] is the image's shape."""
    union = np.zeros(shape, np.bool_)
    blank, marked, complete = [], False, True
    for path in sample.masks:
        mask = _read(path, partial(_inspect, sample), named, found)
        if mask is None:
            complete = False
            continue
        name, lesion = named(path), mask.lesion
        if mask.odd_values:
            found["odd_values"].append(f"{name}: {mask.odd_values}")
        if mask.has_alpha:
            found["alpha_masks"].append(name)
        if not lesion.any():
            blank.append(name)
        marked = marked or bool(lesion.any())
        if lesion.shape == shape:
            union |= lesion
        else:
            found["size_mismatches"].append(
                f"{name} {lesion.shape[1]}x{lesion.shape[0]}, image {shape[1]}x{shape[0]}"
            )
    if sample.label == "normal":
        if marked:
            found["marked_normals"].append(sample.name)
        return
    if sample.masks and complete and not marked:
        found["empty_masks"].append(sample.name)
    else:
        found["blank_files"] += blank
    if union.mean() > _LARGE:
        found["large_lesions"].append(f"{sample.name}: {union.mean():.0%}")


def render(audit: Audit) -> str:
    """Return the audit as text: counts first, then each kind of defect with its first entries."""
    counts = ", ".join(f"{count} {label}" for label, count in audit.images.items())
    lines = [
        f"{audit.root} ({audit.layout} layout): {sum(audit.images.values())} images: {counts}",
        f"near-duplicates: {audit.duplicate_images} images ({audit.duplicate_share:.1%}) in "
        f"{audit.duplicate_groups} groups; {len(audit.cross_class)} pairs under two classes",
        *_shown(f"{first} = {second} ({r:.2f})" for first, second, r in audit.cross_class),
    ]
    if audit.cross_patient:
        lines.append(f"near-duplicates of two patients or data sets: {len(audit.cross_patient)}")
        lines += _shown(f"{first} = {second} ({r:.2f})" for first, second, r in audit.cross_patient)
    if audit.patients:
        lines.append(f"patients: {audit.patients}; a split keeps {audit.groups} groups whole")
    for kind, title in _PROBLEMS.items():
        entries = getattr(audit, kind)
        if entries:
            lines.append(f"{title}: {len(entries)}")
            lines += _shown(e if isinstance(e, str) else " = ".join(e) for e in entries)
    lines.append(f"problems: {audit.problems}" if audit.problems else "no problems")
    return "\n".join(lines)


def _shown(entries: Iterable[str]) -> list[str]:
    every = list(entries)
    more = [f"  ... and {len(every) - _SHOWN} more"] if len(every) > _SHOWN else []
    return [f"  {entry}" for entry in every[:_SHOWN]] + more
