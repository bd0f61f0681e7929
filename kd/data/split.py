"""Train, validation and test parts that no patient and no group of near-duplicates crosses.

Several data sets are split at once, each in the fractions by itself: with the same seed a set comes
out as it would alone, unless it shares look-alikes with another, which then stay in one part.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath

import numpy as np

from ... import __version__
from ...runtime.errors import InputError, Refused
from ...runtime.files import sha256_of_file, write_bytes
from ...runtime.paths import takes_paths
from ...runtime.progress import Progress, quiet
from .dataset import EVERY_LABEL, LABELS, Dataset
from .duplicates import group_duplicates
from .labels import image_key, read_lines
from .parts import PARTS as PARTS
from .sample import Sample

SCHEMA = "edgeseg.split/1"  # of one data set
SCHEMA_OF_SETS = "edgeseg.split/2"  # of several, from lists of images, or the data's own
OWN = "data set"  # `Split.parts_from` of data that came divided
MAX_SPLIT_BYTES = 64 << 20  # compared with the file size before anything is read; 100 000 images
_LISTS = "lists"
_WHO = {_LISTS: "was made from lists", OWN: "is the data set's own"}
_ENTRY = ("name", "label", "group", "part", "image_sha256", "mask_sha256")  # fields in the file
_Class = tuple[str, str]  # a data set's name and a label
_SCARCE_ORDER = ("train", "test", "val")  # who is served first where a class has few groups


@dataclass(frozen=True)
class SplitEntry:
    """Where one image went, and what its files held then."""

    name: str  # of the sample
    label: str  # one of LABELS
    group: int  # images of a patient and near-duplicates share a number
    part: str  # one of PARTS
    image_sha256: str
    mask_sha256: tuple[str, ...]  # in the order of the sample's masks
    source: str = ""  # name of its data set; empty where there is one only


@dataclass(frozen=True)
class Split:
    """Data divided into parts, with all it takes to check that nothing has changed."""

    seed: int
    fractions: tuple[float, float, float]  # asked for, in the order of PARTS
    layouts: Mapping[str, str]  # by name of the data set; the name is empty where there is one only
    tool_version: str
    entries: tuple[SplitEntry, ...]
    # Of a split from lists of images or of the data's own: groups that are in more than one part.
    # None: of one that was made by group, and has none.
    torn_groups: int | None = None
    parts_from: str = ""  # who divided: "lists", `OWN`; empty where it was made by group

    def hashes_of(self, part: str) -> frozenset[str]:
        """Return the SHA-256 of the file of every image in a part."""
        return frozenset(entry.image_sha256 for entry in self.entries if entry.part == part)

    @property
    def leak(self) -> str:
        """What must stand beside any figure on this split; empty where it is made by group."""
        if self.torn_groups is None:
            return ""
        return (
            f"the split {_WHO[self.parts_from]} and tears {self.torn_groups} groups of "
            "near-duplicates or patients: its test part "
            + ("has seen relatives in training" if self.torn_groups else "happens to be clean")
        )


def make_split(
    dataset: Dataset,
    *,
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    progress: Progress = quiet,
) -> Split:
    """Divide data by group, each class of each data set in the given fractions.

    A group is a patient with all look-alikes. Depends on the seed and the files' names and contents
    only. Where a class has groups enough,
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

    The groups of each class of each data set are dealt into 2·folds portions. A split tests two of
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


@takes_paths
def split_from_lists(
    dataset: Dataset, lists: Sequence[Path], *, progress: Progress = quiet
) -> Split:
    """Divide data as lists of images say: a published split. It may tear groups, and says so.

    An image that is in no list is in no part.

    Args:
        dataset: what to divide.
        lists: text files for train, val and, where it is given, test, with an image a line: its
            name in the data set, or its file's name where that tells it. Empty lines and those that
            begin with # do not count.
        progress: wraps the loops over images.

    Raises InputError: E-SPLIT-LIST (a list that cannot be read, an image that is unknown, not told
    by its name or listed twice, nothing to train on), or E-IMAGE-* for an unreadable image.
    """
    part_of: dict[str, str] = {}
    found = _Finder(dataset)
    for part, path in zip(PARTS, lists, strict=False):
        for line in read_lines(path):
            name = found(line, path)
            if name in part_of:
                raise InputError(
                    "E-SPLIT-LIST",
                    f"{path} lists {line!r}, which is in the {part_of[name]} list already; leave "
                    "it in one",
                )
            part_of[name] = part
    if "train" not in part_of.values():
        raise InputError("E-SPLIT-LIST", f"{lists[0]} lists no image to train on; add some")
    return _split_as_told(dataset, part_of, _LISTS, progress)


def split_of_parts(dataset: Dataset, *, progress: Progress = quiet) -> Split:
    """Divide data as they came: a folder or a list of each part. It may tear groups, and says so.

    Raises InputError: E-SPLIT-PARTS (an image that is in no part, nothing to train on), or
    E-IMAGE-* for an unreadable image.
    """
    part_of = {sample.name: sample.part for sample in dataset.samples}
    without = [name for name, part in part_of.items() if not part]
    if without or "train" not in part_of.values():
        what = f"{without[0]} ({len(without)} such) in none" if without else "nothing in train"
        raise InputError(
            "E-SPLIT-PARTS",
            f"{dataset.where} comes in parts, but with {what}; name a split with --split, which "
            "`edgeseg data split --seed 0` makes anew",
        )
    return _split_as_told(dataset, part_of, OWN, progress)


def default_split(dataset: Dataset, *, seed: int = 0, progress: Progress = quiet) -> Split:
    """Return the split of data for which none is named: their own, or one by group.

    Args:
        dataset: what to divide.
        seed: see `make_split`; it says nothing about data that come divided.
        progress: wraps the loops over images.

    Raises:
        InputError: as `split_of_parts` and `make_split`.
        Refused: E-SPLIT-TORN where the data's own parts share a patient or near-duplicates.
    """
    if not dataset.has_parts:
        return make_split(dataset, seed=seed, progress=progress)
    split = split_of_parts(dataset, progress=progress)
    if split.torn_groups:
        one, other = _torn_pair(split.entries)
        raise Refused(
            "E-SPLIT-TORN",
            f"the parts of {dataset.where} share {split.torn_groups} patients or groups of "
            f"near-duplicates, such as {one} and {other}; `edgeseg data split --seed 0` makes a "
            "split without that, and without --seed it writes this one down: name either with "
            "--split",
        )
    return split


def _torn_pair(entries: Sequence[SplitEntry]) -> tuple[str, str]:
    """Return two images of a group that is in more than one part."""
    first: dict[int, SplitEntry] = {}
    return next(
        (known.name, entry.name)
        for entry in entries
        if (known := first.setdefault(entry.group, entry)).part != entry.part
    )


def _split_as_told(
    dataset: Dataset, part_of: Mapping[str, str], parts_from: str, progress: Progress
) -> Split:
    """Divide data by a part for each name; what has none is left out."""
    listed = replace(dataset, samples=tuple(s for s in dataset.samples if s.name in part_of))
    source_of = {sample.name: sample.source for sample in listed.samples}
    entries = tuple(
        replace(entry, part=part_of[entry.name], source=source_of[entry.name])
        for entry in _look_and_hash(listed, progress)
    )
    counts = Counter(entry.part for entry in entries)
    shares = [counts[part] / len(entries) for part in PARTS]
    layouts = {each.name: each.layout for each in dataset.members}
    fractions = (shares[0], shares[1], shares[2])
    torn = _torn_groups(entries)
    return Split(0, fractions, layouts, __version__, entries, torn, parts_from)


class _Finder:
    """Finds the image that a line of a list means."""

    def __init__(self, dataset: Dataset) -> None:
        self._names = {sample.name for sample in dataset.samples}
        self._by_key: dict[str, list[str]] = {}
        for sample in dataset.samples:
            self._by_key.setdefault(image_key(sample.image.name), []).append(sample.name)

    def __call__(self, line: str, path: Path) -> str:
        if line in self._names:
            return line
        names = self._by_key.get(image_key(PurePath(line.replace("\\", "/")).name), [])
        if len(names) == 1:
            return names[0]
        meant = f"may be {' or '.join(names[:2])}" if names else "is no image of the data"
        raise InputError(
            "E-SPLIT-LIST",
            f"{path} lists {line!r}, which {meant}; write its name in the data set, such as "
            f"{min(self._names)!r}",
        )


def _torn_groups(entries: Iterable[SplitEntry]) -> int:
    parts: dict[int, set[str]] = {}
    for entry in entries:
        parts.setdefault(entry.group, set()).add(entry.part)
    return sum(len(found) > 1 for found in parts.values())


def _look_and_hash(dataset: Dataset, progress: Progress) -> tuple[SplitEntry, ...]:
    """Return an entry for each sample, its part still open."""
    groups = group_duplicates(dataset.samples, progress=progress)
    several = len(dataset.members) > 1
    sha256_of = functools.cache(sha256_of_file)  # a file may be the mask of many images
    samples = list(zip(dataset.samples, groups, strict=True))
    return tuple(
        SplitEntry(
            sample.name,
            sample.label,
            group,
            "",
            sha256_of(sample.image),
            tuple(sha256_of(mask) for mask in sample.masks),
            sample.source if several else "",
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
    several = len(dataset.members) > 1
    layouts = {each.name if several else "": each.layout for each in dataset.members}
    return Split(seed, fractions, layouts, __version__, placed)


def _assign(
    entries: Sequence[SplitEntry],
    seed: int,
    shares: Mapping[str, float],
    scarce_order: Sequence[str],
) -> list[str]:
    """Return the part of each entry; those of one group share it.

    Greedy, data set by data set, largest group first, equal ones in seeded order. A group goes
    where it lowers chi² = sum over parts and classes of (have - target)² / target most; a class is
    one of a data set. But once a class has no more groups left than parts without it, each of those
    goes to such a part.

    Args:
        entries: of all groups, numbered from 0 up by first appearance, one data set after another.
        seed: orders groups of equal size.
        shares: of each part, above 0, sum 1.
        scarce_order: of the parts; who is served first where a class has few groups.
    """
    counts: list[Counter[_Class]] = []
    source_of: list[str] = []  # the first data set with the group
    for entry in entries:
        if entry.group == len(counts):
            counts.append(Counter())
            source_of.append(entry.source)
        counts[entry.group][entry.source, entry.label] += 1
    totals = Counter((entry.source, entry.label) for entry in entries)
    have: dict[str, Counter[_Class]] = {part: Counter() for part in shares}
    groups_left = Counter(label for mix in counts for label in mix)

    def chi2_change(part: str, mix: Counter[_Class]) -> float:
        change = 0.0
        for label, count in mix.items():
            target = shares[part] * totals[label]
            change += (count**2 + 2 * count * (have[part][label] - target)) / target
        return change

    order: list[int] = []
    for source in dict.fromkeys(source_of):
        groups = [group for group, of_source in enumerate(source_of) if of_source == source]
        shuffled = [groups[i] for i in np.random.default_rng(seed).permutation(len(groups))]
        order += sorted(shuffled, key=lambda group: -counts[group].total())
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
    content = asdict(split)
    layouts = content.pop("layouts")
    if set(layouts) == {""}:
        of_sets: dict[str, object] = {"layout": layouts[""]}
        entries = [{key: entry[key] for key in _ENTRY} for entry in content["entries"]]
    else:
        of_sets = {"layouts": layouts}
        entries = [
            {"name": entry["name"], "set": entry["source"], **{key: entry[key] for key in _ENTRY}}
            for entry in content["entries"]
        ]
    fields = {
        "schema": SCHEMA if "layout" in of_sets else SCHEMA_OF_SETS,
        "seed": split.seed,
        "fractions": split.fractions,
        **of_sets,
        "tool_version": split.tool_version,
        **({} if split.torn_groups is None else {"torn_groups": split.torn_groups}),
        **({"parts_from": OWN} if split.parts_from == OWN else {}),
        "entries": entries,
    }
    return json.dumps(fields, indent=1) + "\n"


@takes_paths
def write_split(split: Split, path: Path) -> None:
    """Write a split as JSON (docs/formats.md), whole or not at all. Raises OutputError."""
    write_bytes(path, split_to_json(split))


@takes_paths
def read_split(path: Path) -> Split:
    """Read a split file.

    Raises:
        InputError: E-SPLIT-READ for a file that is missing, too large, broken, of another schema,
            or that puts a group in two parts and does not count it.
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
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema not in (SCHEMA, SCHEMA_OF_SETS):
        raise ValueError(f"schema {schema!r}, this version reads {SCHEMA!r} and {SCHEMA_OF_SETS!r}")
    of_sets = schema == SCHEMA_OF_SETS
    layout = "layouts" if of_sets else "layout"
    names = ["schema", "seed", "fractions", layout, "tool_version", "entries"]
    listed = isinstance(content, dict) and of_sets and "torn_groups" in content
    own = isinstance(content, dict) and listed and "parts_from" in content
    told = [*(["torn_groups"] if listed else []), *(["parts_from"] if own else [])]
    fields = _fields(content, *names, *told)
    if own and fields["parts_from"] != OWN:
        raise ValueError(f"parts from {fields['parts_from']!r}, not {OWN!r}")
    fractions = fields["fractions"]
    if not (isinstance(fractions, list) and len(fractions) == 3):
        raise ValueError("fractions are not three numbers")
    if not all(isinstance(f, (int, float)) and 0 <= f <= 1 for f in fractions):
        raise ValueError("fractions are not in 0..1")
    layouts = fields["layouts"] if of_sets else {"": fields["layout"]}
    if not (isinstance(layouts, dict) and layouts):
        raise ValueError("layouts are no names of data sets")
    if not isinstance(fields["entries"], list):
        raise ValueError("entries are no list")
    entries = tuple(_entry_from_json(entry, layouts) for entry in fields["entries"])
    if len({entry.name for entry in entries}) != len(entries):
        raise ValueError("an image is listed twice")
    torn = _torn_groups(entries)
    if torn != (fields["torn_groups"] if listed else 0):
        raise ValueError(f"{torn} groups are in more than one part")
    return Split(
        _whole(fields["seed"]),
        (float(fractions[0]), float(fractions[1]), float(fractions[2])),
        {_text(name): _text(layout) for name, layout in layouts.items()},
        _text(fields["tool_version"]),
        entries,
        torn if listed else None,
        (OWN if own else _LISTS) if listed else "",
    )


def _entry_from_json(content: object, layouts: Mapping[str, object]) -> SplitEntry:
    fields = _fields(content, *_ENTRY, *(() if "" in layouts else ("set",)))
    name, masks = _text(fields["name"]), fields["mask_sha256"]
    source = _text(fields.get("set", ""))
    if fields["label"] not in EVERY_LABEL or fields["part"] not in PARTS:
        raise ValueError(f"label {fields['label']!r} or part {fields['part']!r} of {name}")
    if source not in layouts:
        raise ValueError(f"data set {source!r} of {name}")
    if not isinstance(masks, list):
        raise ValueError(f"mask_sha256 of {name} is no list")
    return SplitEntry(
        name,
        _text(fields["label"]),
        _whole(fields["group"]),
        _text(fields["part"]),
        _text(fields["image_sha256"]),
        tuple(_text(mask) for mask in masks),
        source,
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
    """Return the number of images of each class in each part as a small table, a set at a time."""
    counts = Counter((entry.source, entry.part, entry.label) for entry in split.entries)
    present = {label for _, _, label in counts}
    labels = [label for label in EVERY_LABEL if label in LABELS or label in present]
    lines = []
    for source in split.layouts:
        lines += [source] if source else []
        lines.append(f"{'part':6}" + "".join(f"{label:>11}" for label in labels))
        lines += [
            f"{part:6}" + "".join(f"{counts[source, part, label]:11}" for label in labels)
            for part in PARTS
        ]
    return "\n".join([*lines, *([split.leak] if split.leak else [])])


def samples_of(split: Split, dataset: Dataset, part: str) -> tuple[Sample, ...]:
    """Return the samples of one part with their groups; their files must be the split's.

    Raises:
        InputError: E-SPLIT-PART for an unknown part; E-SPLIT-SETS where the data sets are not those
            that were split together; E-SPLIT-MISMATCH naming the first missing or
            changed file, where images, masks or labels are not those the split was made of.
    """
    if part not in PARTS:
        raise InputError("E-SPLIT-PART", f"no part {part!r}; choose of {', '.join(PARTS)}")
    _require_sets(split, dataset)
    by_name = {sample.name: sample for sample in dataset.samples}
    entries = [entry for entry in split.entries if entry.part == part]
    sha256_of = functools.cache(sha256_of_file)
    changes = [
        change
        for entry in entries
        if (change := _change(entry, by_name.get(entry.name), sha256_of))
    ]
    if changes:
        raise InputError(
            "E-SPLIT-MISMATCH",
            f"{changes[0]} ({len(changes)} of {len(entries)} {part} images differ from the split); "
            f"restore the files in {dataset.where} or make a new split",
        )
    return tuple(replace(by_name[entry.name], look=entry.group) for entry in entries)


def _require_sets(split: Split, dataset: Dataset) -> None:
    """Refuse other data sets than were split. One alone may have any name. E-SPLIT-SETS."""
    given = {member.name for member in dataset.members}
    if len(split.layouts) == len(given) == 1:
        return
    if given != set(split.layouts):
        of = "one data set" if "" in split.layouts else ", ".join(sorted(split.layouts))
        raise InputError(
            "E-SPLIT-SETS",
            f"the split is of {of}, and {', '.join(sorted(given))} was given; name all that were "
            "split together and no other, as NAME=PATH where a folder is called otherwise",
        )


def _change(entry: SplitEntry, sample: Sample | None, sha256_of: Callable[[Path], str]) -> str:
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
            if sha256_of(path) != expected:
                return f"{path} has changed"
        except OSError:
            return f"{path} cannot be read"
    return ""
