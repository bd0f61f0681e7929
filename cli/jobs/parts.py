"""Which images: the parts of data sets that a source may be scored or calibrated on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.errors import InputError, Refused
from ...runtime.files import sha256_of_file
from ...runtime.progress import Progress, quiet

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ...benchmarks.measure.latency import Frame
    from ...export.parity import CheckFrame
    from ...kd.data.dataset import Dataset, Sample
    from ...kd.data.split import Split
    from ...runtime.contract import InputContract
    from .sources import ModelSource

_CHECK_FRAMES = 16
Folders = Sequence[Path]  # of data sets, each PATH or NAME=PATH, as `read_datasets` takes them


def default_part(sources: Sequence[ModelSource]) -> str:
    """Return "test", or "unseen" where a shipped student is among the sources."""
    return "test" if all(source.trained_on() is None for source in sources) else "unseen"


def leak_of(source: ModelSource, part: str) -> str:
    """Return what must stand beside figures on a part of a source's own split; mostly nothing."""
    from ...kd.data.split import read_split

    return "" if part in ("unseen", "all") else read_split(source.split_file()).leak


def samples_for(
    source: ModelSource, data: Folders, part: str, progress: Progress = quiet
) -> tuple[Sample, ...]:
    """Return the samples of a part for one source; see `common_samples`."""
    return common_samples([source], data, part, progress)


def common_samples(
    sources: Sequence[ModelSource], data: Folders, part: str, progress: Progress = quiet
) -> tuple[Sample, ...]:
    """Return the samples of a part that is the same for all sources.

    Args:
        sources: at least one.
        data: roots of one data set or several (see `read_datasets`).
        part: "train", "val" or "test" of the sources' own split; "all" for every image; "unseen"
            for those that no shipped student among the sources was trained on.
        progress: shows the search for near-duplicates, which "all" and "unseen" need.

    Raises:
        InputError: E-SPLIT-MISSING (a part is asked for, but there is no split), E-SPLIT-EMPTY,
            E-PART-UNSEEN (no list tells what a source has seen), and those of `read_dataset` and
            `samples_of`.
        Refused: E-SPLIT-DIFFERS if the sources have different splits: what is the test part of one
            may have trained another; E-DATA-SEEN if a shipped student, or what a run's student
            started from, was trained on some of "all", or on everything; those of
            `ModelSource.trained_on`.
    """
    from ...kd.data.dataset import read_datasets
    from ...kd.data.duplicates import with_groups
    from ...kd.data.split import read_split, samples_of

    dataset = read_datasets(data)
    if part in ("unseen", "all"):
        return with_groups(_untrained_samples(sources, dataset, part), progress=progress)
    first, *others = [(source, sha256_of_file(source.split_file())) for source in sources]
    for source, split in others:
        if split != first[1]:
            raise Refused(
                "E-SPLIT-DIFFERS",
                f"{source.path} and {first[0].path} have different splits; compare networks of "
                "one split, or use --part all on data that none of them saw",
            )
    split_file = sources[0].split_file()
    samples = samples_of(read_split(split_file), dataset, part)
    if not samples:
        raise InputError("E-SPLIT-EMPTY", f"the {part} part of {split_file} has no image")
    return samples


def _untrained_samples(
    sources: Sequence[ModelSource], dataset: Dataset, part: str
) -> tuple[Sample, ...]:
    """Return the samples that no listed network has seen; for "all" that must be all of them."""
    seen: set[str] = set()
    for source in sources:
        trained_on = source.trained_on()
        if trained_on is None and part == "unseen":
            raise InputError(
                "E-PART-UNSEEN",
                f"{source.path} has no list of the images it was trained on; use --part test for "
                "data of its split, --part all for data that it never saw",
            )
        seen |= source.seen_before() if trained_on is None else trained_on
    if not seen:
        return dataset.samples
    unseen = tuple(each for each in dataset.samples if sha256_of_file(each.image) not in seen)
    known = len(dataset.samples) - len(unseen)
    if known and (part == "all" or not unseen):
        mend = "score the others with --part unseen" if unseen else "score it on other data"
        raise Refused(
            "E-DATA-SEEN",
            f"the weights were trained on {known} of the {len(dataset.samples)} images in "
            f"{dataset.where}, so these cannot score them; {mend}",
        )
    return unseen


def train_frames(source: ModelSource, data: Folders, count: int) -> tuple[Frame, ...]:
    """Return frames of the train part of a run, uint8 [H, W] each, spread over its images."""
    samples = samples_for(source, data, "train")
    return tuple(each.read_image() for each in samples[:: max(1, len(samples) // count)][:count])


def reader_of(
    samples: Sequence[Sample], contract: InputContract
) -> Callable[[Path], npt.NDArray[np.uint8]]:
    """Return what reads an image of these samples, by its path, as its data set does."""
    by_image = {each.image: each for each in samples}
    return partial(_read_image, by_image, contract.takes_colour)


def _read_image(by_image: Mapping[Path, Sample], colour: bool, path: Path) -> npt.NDArray[np.uint8]:
    return by_image[path].read_image(colour=colour)


def check_frames(data: Folders) -> tuple[CheckFrame, ...]:
    """Return frames with a lesion, spread over data sets, with their truth; none without data."""
    from ...export.parity import CheckFrame
    from ...kd.data.dataset import read_datasets

    if not data:
        return ()
    samples = [each for each in read_datasets(data).samples if each.label != "normal"]
    spread = samples[:: max(1, len(samples) // _CHECK_FRAMES)][:_CHECK_FRAMES]
    return tuple(CheckFrame(*each.read_both(), each.name) for each in spread)


def check_frame(sample: Sample, contract: InputContract) -> CheckFrame:
    """Return an image as a network takes it, with its truth as the network's classes are numbered.

    Raises InputError: E-CLASSES, see `truth_of`, and what reading the sample raises.
    """
    from ...benchmarks.measure.accuracy import truth_of
    from ...export.parity import CheckFrame

    frame = sample.read_image(colour=contract.takes_colour)
    return CheckFrame(frame, truth_of(sample, contract), sample.group)


@dataclass(frozen=True)
class Parts:
    """A data set in parts, for an export."""

    samples: Callable[[str], Sequence[Sample]]  # of a part
    origin: Mapping[str, Any]  # of frames of its train part, for the record
    checks_are: str  # what its val part is, for the manifest
    # (record of ranges, SHA-256 of its frames): raises Refused (E-CALIB-TEST) if one of them judges
    require_apart: Callable[[Path, Sequence[str]], None]


def parts_of_run(source: ModelSource, data: Folders) -> Parts:
    """Return the parts of the split that a run was trained with."""
    from ...export.pipeline import RUN_SPLIT

    def require_apart(record: Path, frames: Sequence[str]) -> None:
        _require_train_part(record, frames, source.split_file())

    return Parts(partial(samples_for, source, data), RUN_SPLIT, "val", require_apart)


def parts_anew(data: Folders, progress: Progress) -> Parts:
    """Return the parts that data come in, or those of a new leak-safe split with seed 0."""
    from ...kd.data.dataset import read_datasets
    from ...kd.data.split import default_split

    dataset = read_datasets(data)
    split = default_split(dataset, progress=progress)
    if dataset.has_parts:
        origin: dict[str, Any] = {"source": "own split of --calib", "part": "train"}
        return parts_of_split(split, dataset, origin, "val part that the --calib data come with")
    return parts_of_split(
        split,
        dataset,
        {"source": "new split of --calib", "split_seed": 0, "part": "train"},
        "val part of a new split of the --calib data, seed 0",
    )


def parts_of_split(
    split: Split, dataset: Dataset, origin: Mapping[str, Any], checks_are: str
) -> Parts:
    """Return the parts of a split that no network was trained with."""
    from ...kd.data.split import samples_of

    samples = partial(samples_of, split, dataset)

    def require_apart(record: Path, frames: Sequence[str]) -> None:
        _require_others(record, frames, samples("val"))

    return Parts(samples, origin, checks_are, require_apart)


def data_missing(path: Path, what: str) -> InputError:
    """Return the refusal of an export without data."""
    return InputError(
        "E-CALIB-MISSING",
        f"{path} needs {what}; name them with --calib (only a shipped student does without)",
    )


def _require_train_part(record: Path, frames: Sequence[str], split_file: Path) -> None:
    """Refuse a record with frames that the split tests or validates on, or their near-duplicates.

    A near-duplicate shares its group's part, so the part of the frame itself tells.
    """
    from ...kd.data.split import read_split

    part_of = {entry.image_sha256: entry.part for entry in read_split(split_file).entries}
    for frame in frames:
        part = part_of.get(frame)
        if part != "train":
            where = f"in the {part} part" if part else "in no part"
            raise Refused(
                "E-CALIB-TEST",
                f"{record} was calibrated on a frame (SHA-256 {frame[:12]}…) that is {where} of "
                f"{split_file}; calibrate on its train part with --calib",
            )


def _require_others(record: Path, frames: Collection[str], checks: Sequence[Sample]) -> None:
    """Refuse a record that was calibrated on frames which are to judge it."""
    for sample in checks:
        if sha256_of_file(sample.image) in frames:
            raise Refused(
                "E-CALIB-TEST",
                f"{record} was calibrated on {sample.image}, which is to judge it; calibrate on "
                "the train part with --calib",
            )
