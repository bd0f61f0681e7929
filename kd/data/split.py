"""Train, validation and test parts that no group of near-duplicates crosses."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ... import __version__
from ...runtime.errors import InputError
from ...runtime.files import sha256_of_file, write_bytes
from ...runtime.paths import takes_paths
from ...runtime.progress import Progress, quiet
from .dataset import LABELS, Dataset, Sample
from .duplicates import group_duplicates

PARTS = ("train", "val", "test")
SCHEMA = "edgeseg.split/1"
MAX_SPLIT_BYTES = 64 << 20  # compared with the file size before anything is read; 100 000 images
_SCARCE_ORDER = ("train", "test", "val")  # who is served first where a class has few groups


@dataclass(frozen=True)
class SplitEntry:
    """Where one image went, and what its files held then."""

    name: str  # of the sample
    label: str  # one of LABELS
    group: int  # near-duplicates share a number
    part: str  # one of PARTS
    image_sha256: str
    mask_sha256: tuple[str, ...]  # in the order of the sample's masks


@dataclass(frozen=True)
class Split:
    """A data set divided into parts, with all it takes to check that nothing has changed."""

    seed: int
    fractions: tuple[float, float, float]  # asked for, in the order of PARTS
    layout: str
    tool_version: str
    entries: tuple[SplitEntry, ...]


def make_split(
    dataset: Dataset,
    *,
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    progress: Progress = quiet,
) -> Split:
    """Divide a data set by near-duplicate group, each class in the given fractions.

    Depends on the seed and the files' names and contents only. Where a class has groups enough,
    every part gets some of it; where it has one or two, train comes first, then test.

    Args:
        dataset: what to divide.
        seed: orders groups of equal size.
        fractions: of train, val and test; each in 0..1, train above 0, sum 1.
        progress: wraps the loops over images.

    Raises:
        InputError: E-SPLIT-FRACTIONS, or E-IMAGE-* for an unreadable image.
    """
    if not (
        all(0 <= fraction <= 1 for fraction in fractions)
        and fractions[0] > 0
        and math.isclose(sum(fractions), 1, abs_tol=1e-6)
    ):
        raise InputError(
            "E-SPLIT-FRACTIONS",
            f"fractions {fractions} of {'/'.join(PARTS)} must be in 0..1 with sum 1, train above 0",
        )
    shares = {part: share for part, share in zip(PARTS, fractions, strict=True) if share > 0}
    entries = _look_and_hash(dataset, progress)
    part_of = _assign(entries, seed, shares, [part for part in _SCARCE_ORDER if part in shares])
    return _split(dataset, entries, part_of, seed, fractions)


def make_folds(
    dataset: Dataset, *, folds: int, seed: int = 0, progress: Progress = quiet
) -> tuple[Split, ...]:
    """Divide a data set for cross-validation: every image is in the test part of one split.

    The near-duplicate groups of each class are dealt into 2·folds portions. A split tests two of
    them, validates on the next and trains on the others: 70/10/20 at five folds.

    Args:
        dataset: what to divide.
        folds: number of splits, >= 2.
        seed: orders groups of equal size.
        progress: wraps the loops over images.

    Raises InputError: E-SPLIT-FOLDS, or E-IMAGE-* for an unreadable image.
    """
    if folds < 2:
        raise InputError("E-SPLIT-FOLDS", f"{folds} folds divide nothing; ask for 2 or more")
    count = 2 * folds
    portions = [str(number) for number in range(count)]
    entries = _look_and_hash(dataset, progress)
    portion_of = _assign(entries, seed, dict.fromkeys(portions, 1 / count), portions)
    part_at = ("test", "test", "val", *["train"] * (count - 3))  # of the portions, turned by fold
    fractions = (1 - 3 / count, 1 / count, 2 / count)
    return tuple(
        _split(
            dataset,
            entries,
            [part_at[(int(portion) - 2 * fold) % count] for portion in portion_of],
            seed,
            fractions,
        )
        for fold in range(folds)
    )


def _look_and_hash(dataset: Dataset, progress: Progress) -> tuple[SplitEntry, ...]:
    """Return an entry for each sample, its part still open."""
    groups = group_duplicates(dataset.samples, progress=progress)
    samples = list(zip(dataset.samples, groups, strict=True))
    return tuple(
        SplitEntry(
            sample.name,
            sample.label,
            group,
            "",
            sha256_of_file(sample.image),
            tuple(sha256_of_file(mask) for mask in sample.masks),
        )
        for sample, group in progress(samples, "hashing files")
    )


def _split(
    dataset: Dataset,
    entries: Sequence[SplitEntry],
    part_of: Sequence[str],
    seed: int,
    fractions: tuple[float, float, float],
) -> Split:
    placed = tuple(replace(entry, part=part) for entry, part in zip(entries, part_of, strict=True))
    return Split(seed, fractions, dataset.layout, __version__, placed)


def _assign(
    entries: Sequence[SplitEntry],
    seed: int,
    shares: Mapping[str, float],
    scarce_order: Sequence[str],
) -> list[str]:
    """Return the part of each entry; those of one group share it.

    Greedy, largest group first, equal ones in seeded order. A group goes where it lowers
    chi² = sum over parts and classes of (have - target)² / target most. But once a class has no
    more groups left than parts without it, each of those goes to such a part.

    Args:
        entries: of all groups from 0 up.
        seed: orders groups of equal size.
        shares: of each part, above 0, sum 1.
        scarce_order: of the parts; who is served first where a class has few groups.
    """
    counts: list[Counter[str]] = [
        Counter() for _ in range(max((entry.group for entry in entries), default=-1) + 1)
    ]
    for entry in entries:
        counts[entry.group][entry.label] += 1
    totals = Counter(entry.label for entry in entries)
    have: dict[str, Counter[str]] = {part: Counter() for part in shares}
    groups_left = Counter(label for mix in counts for label in mix)

    def chi2_change(part: str, mix: Counter[str]) -> float:
        change = 0.0
        for label, count in mix.items():
            target = shares[part] * totals[label]
            change += (count**2 + 2 * count * (have[part][label] - target)) / target
        return change

    order = np.random.default_rng(seed).permutation(len(counts)).tolist()
    order.sort(key=lambda group: -counts[group].total())
    part_of = [""] * len(counts)
    for group in order:
        mix = counts[group]
        part = min(shares, key=lambda part: chi2_change(part, mix))
        for label in sorted(mix, key=lambda label: (groups_left[label], label)):
            empty = [p for p in scarce_order if not have[p][label]]
            if groups_left[label] <= len(empty):
                part = empty[0]
                break
        part_of[group] = part
        have[part] += mix
        groups_left -= Counter(mix.keys())
    return [part_of[entry.group] for entry in entries]


def split_to_json(split: Split) -> str:
    """Return the text that `write_split` writes."""
    return json.dumps({"schema": SCHEMA, **asdict(split)}, indent=1) + "\n"


@takes_paths
def write_split(split: Split, path: Path) -> None:
    """Write a split as JSON (docs/formats.md), whole or not at all. Raises OutputError."""
    write_bytes(path, split_to_json(split))


@takes_paths
def read_split(path: Path) -> Split:
    """Read a split file.

    Raises:
        InputError: E-SPLIT-READ for a file that is missing, too large, broken, of another schema,
            or that puts one group in two parts.
    """
    try:
        size = path.stat().st_size
        if size > MAX_SPLIT_BYTES:
            raise ValueError(f"{size} bytes, over {MAX_SPLIT_BYTES}")
        content = json.loads(path.read_text(encoding="utf-8"))
        return _split_from_json(content)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            "E-SPLIT-READ",
            f"cannot use split {path} ({error}); make it anew with `edgeseg data split`",
        ) from error


def _split_from_json(content: object) -> Split:
    """Return the split; raises ValueError saying what is wrong."""
    fields = _fields(content, "schema", "seed", "fractions", "layout", "tool_version", "entries")
    if fields["schema"] != SCHEMA:
        raise ValueError(f"schema {fields['schema']!r}, this version reads {SCHEMA!r}")
    fractions = fields["fractions"]
    if not (isinstance(fractions, list) and len(fractions) == 3):
        raise ValueError("fractions are not three numbers")
    if not all(isinstance(f, (int, float)) and 0 <= f <= 1 for f in fractions):
        raise ValueError("fractions are not in 0..1")
    if not isinstance(fields["entries"], list):
        raise ValueError("entries are no list")
    entries = tuple(_entry_from_json(entry) for entry in fields["entries"])
    if len({entry.name for entry in entries}) != len(entries):
        raise ValueError("an image is listed twice")
    part_of: dict[int, str] = {}
    for entry in entries:
        if part_of.setdefault(entry.group, entry.part) != entry.part:
            raise ValueError(f"group {entry.group} is in {part_of[entry.group]} and {entry.part}")
    return Split(
        _whole(fields["seed"]),
        (float(fractions[0]), float(fractions[1]), float(fractions[2])),
        _text(fields["layout"]),
        _text(fields["tool_version"]),
        entries,
    )


def _entry_from_json(content: object) -> SplitEntry:
    names = ("name", "label", "group", "part", "image_sha256", "mask_sha256")
    fields = _fields(content, *names)
    name, masks = _text(fields["name"]), fields["mask_sha256"]
    if fields["label"] not in LABELS or fields["part"] not in PARTS:
        raise ValueError(f"label {fields['label']!r} or part {fields['part']!r} of {name}")
    if not isinstance(masks, list):
        raise ValueError(f"mask_sha256 of {name} is no list")
    return SplitEntry(
        name,
        _text(fields["label"]),
        _whole(fields["group"]),
        _text(fields["part"]),
        _text(fields["image_sha256"]),
        tuple(_text(mask) for mask in masks),
    )


def _fields(content: object, *names: str) -> Mapping[str, object]:
    if not isinstance(content, dict) or set(content) != set(names):
        raise ValueError(f"expected exactly the fields {', '.join(names)}")
    return content


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is no whole number")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def describe_split(split: Split) -> str:
    """Return the number of images of each class in each part as a small table."""
    counts = Counter((entry.part, entry.label) for entry in split.entries)
    lines = [f"{'part':6}" + "".join(f"{label:>11}" for label in LABELS)]
    lines += [
        f"{part:6}" + "".join(f"{counts[part, label]:11}" for label in LABELS) for part in PARTS
    ]
    return "\n".join(lines)


def samples_of(split: Split, dataset: Dataset, part: str) -> tuple[Sample, ...]:
    """Return the samples of one part with their groups; their files must be the split's.

    Raises:
        InputError: E-SPLIT-PART for an unknown part; E-SPLIT-MISMATCH naming the first missing or
            changed file, where images, masks or labels are not those the split was made of.
    """
    if part not in PARTS:
        raise InputError("E-SPLIT-PART", f"no part {part!r}; choose of {', '.join(PARTS)}")
    by_name = {sample.name: sample for sample in dataset.samples}
    entries = [entry for entry in split.entries if entry.part == part]
    changes = [change for entry in entries if (change := _change(entry, by_name.get(entry.name)))]
    if changes:
        raise InputError(
            "E-SPLIT-MISMATCH",
            f"{changes[0]} ({len(changes)} of {len(entries)} {part} images differ from the split); "
            f"restore the files in {dataset.root} or make a new split",
        )
    return tuple(replace(by_name[entry.name], look=entry.group) for entry in entries)


def _change(entry: SplitEntry, sample: Sample | None) -> str:
    """Return what differs between an entry and its sample, or nothing."""
    if sample is None:
        return f"{entry.name} is missing"
    if sample.label != entry.label:
        return f"{entry.name} is {sample.label}, was {entry.label}"
    if len(sample.masks) != len(entry.mask_sha256):
        return f"{entry.name} has {len(sample.masks)} masks, had {len(entry.mask_sha256)}"
    files = (sample.image, *sample.masks)
    for path, expected in zip(files, (entry.image_sha256, *entry.mask_sha256), strict=True):
        try:
            if sha256_of_file(path) != expected:
                return f"{path} has changed"
        except OSError:
            return f"{path} cannot be read"
    return ""
