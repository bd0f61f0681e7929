"""What is wrong with a data set: every defect in one go, none of them fatal here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ...runtime.errors import InputError
from ...runtime.files import sha256_of_file
from ...runtime.image import read_image, read_mask
from ...runtime.paths import takes_paths
from ...runtime.progress import Progress, quiet
from .dataset import LABELS, Sample, list_files
from .duplicates import groups_from_pairs, near_duplicates

_Pixel = TypeVar("_Pixel", np.uint8, np.bool_)
_SHOWN = 8  # entries of each kind in the text report; to_dict() has all


@dataclass(frozen=True)
class Audit:
    """The findings, as names relative to the root; empty tuples where all is well."""

    root: str
    layout: str
    images: dict[str, int]  # usable ones by class
    duplicate_groups: int  # groups of two and more near-duplicates
    duplicate_images: int  # images in them
    # Near-duplicates under two classes are a fact to know, not a defect to mend: the split keeps
    # them together. The same holds for `duplicate_groups`.
    cross_class: tuple[tuple[str, str, float], ...]  # two images, their correlation
    # From here on every entry is a problem.
    unreadable: tuple[str, ...]  # "name: reason", images and masks
    size_mismatches: tuple[str, ...]  # "mask 10x10, image 20x20"
    without_mask: tuple[str, ...]  # lesion images without any mask file
    empty_masks: tuple[str, ...]  # lesion images whose masks mark nothing
    marked_normals: tuple[str, ...]  # normal images whose masks mark something
    orphan_masks: tuple[str, ...]
    label_faults: tuple[str, ...]
    identical: tuple[tuple[str, ...], ...]  # sets of images with the same bytes

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
    "marked_normals": "normal images with a lesion marked",
    "orphan_masks": "masks without an image",
    "label_faults": "faults of the class list",
    "identical": "sets of identical images",
}


@takes_paths
def audit_dataset(root: Path, *, progress: Progress = quiet) -> Audit:
    """Read every file of a data set and list all defects.

    Args:
        root: the data set's folder.
        progress: wraps the loops over images.

    Raises:
        InputError: E-DATA-FOLDER, E-DATA-LAYOUT, E-DATA-EMPTY, or E-DATA-LABEL where the class
            list as a whole cannot be used; single defects are reported instead.
        EngineError: E-EXTRA-MISSING, for an XLSX class list without openpyxl.
    """
    layout, listing = list_files(root)
    found: dict[str, list[str]] = {kind: [] for kind in _PROBLEMS}
    readable: list[Sample] = []
    by_digest: dict[str, list[str]] = {}
    for sample in progress(listing.samples, "checking files"):
        image = _read(sample.image, read_image, root, found["unreadable"])
        if image is None:
            continue
        readable.append(sample)
        by_digest.setdefault(sha256_of_file(sample.image), []).append(sample.name)
        _check_masks(sample, image.shape, root, found)
    pairs = near_duplicates(readable, progress=progress)
    members = Counter(groups_from_pairs(len(readable), pairs))
    sizes = [size for size in members.values() if size > 1]
    labels = Counter(sample.label for sample in readable)
    return Audit(
        root=str(root),
        layout=layout,
        images={label: labels[label] for label in LABELS},
        duplicate_groups=len(sizes),
        duplicate_images=sum(sizes),
        cross_class=tuple(
            (readable[pair.first].name, readable[pair.second].name, round(pair.correlation, 3))
            for pair in pairs
            if readable[pair.first].label != readable[pair.second].label
        ),
        unreadable=tuple(found["unreadable"]),
        size_mismatches=tuple(found["size_mismatches"]),
        without_mask=tuple(sample.name for sample in listing.without_mask),
        empty_masks=tuple(found["empty_masks"]),
        marked_normals=tuple(found["marked_normals"]),
        orphan_masks=tuple(_name(mask, root) for mask in listing.orphan_masks),
        label_faults=listing.label_faults,
        identical=tuple(tuple(names) for names in by_digest.values() if len(names) > 1),
    )


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _read(
    path: Path,
    read: Callable[[Path], npt.NDArray[_Pixel]],
    root: Path,
    unreadable: list[str],
) -> npt.NDArray[_Pixel] | None:
    """Return the pixels, or None after noting why there are none."""
    try:
        return read(path)
    except InputError as error:
        unreadable.append(f"{_name(path, root)}: {error}")
        return None


def _check_masks(
    sample: Sample, shape: tuple[int, ...], root: Path, found: dict[str, list[str]]
) -> None:
    """Note the defects of a sample's masks; [H, W] is the image's shape."""
    marked, complete = False, True
    for path in sample.masks:
        mask = _read(path, read_mask, root, found["unreadable"])
        if mask is None:
            complete = False
            continue
        marked = marked or bool(mask.any())
        if mask.shape != shape:
            found["size_mismatches"].append(
                f"{_name(path, root)} {mask.shape[1]}x{mask.shape[0]}, image {shape[1]}x{shape[0]}"
            )
    if sample.label == "normal" and marked:
        found["marked_normals"].append(sample.name)
    if sample.label != "normal" and sample.masks and complete and not marked:
        found["empty_masks"].append(sample.name)


def render(audit: Audit) -> str:
    """Return the audit as text: counts first, then each kind of defect with its first entries."""
    counts = ", ".join(f"{count} {label}" for label, count in audit.images.items())
    lines = [
        f"{audit.root} ({audit.layout} layout): {sum(audit.images.values())} images: {counts}",
        f"near-duplicates: {audit.duplicate_images} images ({audit.duplicate_share:.1%}) in "
        f"{audit.duplicate_groups} groups; {len(audit.cross_class)} pairs under two classes",
        *_shown(f"{first} = {second} ({r:.2f})" for first, second, r in audit.cross_class),
    ]
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
