"""A part of a data set in memory, and the augmented batches that training draws from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch

from ..runtime.contract import InputContract
from ..runtime.image import resize_grey, resize_mask
from ..runtime.progress import Progress
from .augment import augment, draw_views
from .data.dataset import Sample
from .data.phantom import draw_all, phantoms_of
from .negatives import draw_empty, lesion_free_box
from .seeds import seed_of

IMAGE: Final = "image"  # of the data set
CROP: Final = "crop"  # a part of a lesion image that shows no lesion
EMPTY: Final = "empty"  # shows nothing, drawn anew for each of its views
PHANTOM: Final = "phantom"  # drawn as `data.phantom` says, with its lesions or without one

_PHANTOMS: Final = 200  # among the frames of a part
_PHANTOM_SEED: Final = 1  # those that check networks have seed 0


@dataclass(frozen=True)
class FrameSet:
    """Samples at the network's size, in memory on the training device."""

    names: tuple[str, ...]
    images: torch.Tensor  # uint8 [N, 1, S, S]
    masks: torch.Tensor  # bool [N, 1, S, S]
    labels: np.ndarray  # str [N]; "normal" of crops and empty frames, "phantom" of phantoms
    kinds: np.ndarray  # str [N]: IMAGE, CROP, EMPTY or PHANTOM
    sets: np.ndarray | None = None  # str [N], the data set of each; None: one without a name

    @property
    def image_count(self) -> int:
        """The number of images of the data set, without what was cut or drawn beside them."""
        return int((self.kinds == IMAGE).sum())

    def of_classes(self, *labels: str) -> FrameSet:
        """Return the frames of some classes."""
        return self.at(np.flatnonzero(np.isin(self.labels, labels)))

    def at(self, rows: np.ndarray) -> FrameSet:
        """Return the frames of some rows."""
        return FrameSet(
            names=tuple(self.names[row] for row in rows),
            images=self.images[rows],
            masks=self.masks[rows],
            labels=self.labels[rows],
            kinds=self.kinds[rows],
            sets=None if self.sets is None else self.sets[rows],
        )

    def images_only(self) -> FrameSet:
        """Return the images of the data set, without what was cut or drawn beside them."""
        return self.at(np.flatnonzero(self.kinds == IMAGE))


@dataclass(frozen=True)
class Batch:
    """Augmented images with all that a loss may ask of them."""

    images: torch.Tensor  # float32 [N, 1, S, S], normalised
    truth: torch.Tensor  # float32 [N, 1, S, S] in 0..1
    labels: np.ndarray  # str [N]; "" of what is no image of the data set: no teacher teaches it
    names: tuple[str, ...]
    views: np.ndarray  # int [N], which view of each image this is


class _Row(NamedTuple):
    """A frame before it is resized."""

    name: str
    label: str
    image: np.ndarray  # uint8 [H, W]
    mask: np.ndarray  # bool [H, W]
    kind: str = IMAGE
    source: str = ""  # its data set


def load_frames(
    samples: Sequence[Sample],
    size: int,
    device: torch.device,
    progress: Progress,
    label: str,
    *,
    crops: bool = False,
    empty: bool = False,
    phantoms: bool = False,
) -> FrameSet:
    """Read samples and resize them to [size, size].

    Args:
        samples: the images.
        size: px a side.
        device: where the frames are kept.
        progress: wraps the samples.
        label: what the progress is called.
        crops: add a row for each lesion image with room for a lesion-free crop (see
            `negatives.lesion_free_box`), cut before it is resized.
        empty: add one row for frames that show nothing (see `negatives.draw_empty`).
        phantoms: add phantoms, half of them without lesion.

    Raises InputError for unreadable files.
    """

    def rows() -> Iterator[_Row]:
        for sample in progress(samples, label):
            image, mask = sample.read_both()
            yield _Row(sample.name, sample.label, image, mask, source=sample.source)
            box = lesion_free_box(mask) if crops and mask.any() else None
            if box is not None:
                crop = image[box], mask[box]
                yield _Row(f"{sample.name} crop", "normal", *crop, CROP, sample.source)
        if empty:
            nothing = np.zeros((1, 1), np.uint8)
            yield _Row("empty frame", "normal", nothing, nothing > 0, EMPTY)
        if phantoms:
            classes = ("normal", "benign", "normal", "malignant")
            chosen = [(classes[number % 4], 1 + number // 2) for number in range(_PHANTOMS)]
            drawn = draw_all(chosen, _PHANTOM_SEED)
            shown = progress(range(_PHANTOMS), "drawing phantoms")
            for number, (image, masks) in zip(shown, drawn, strict=True):
                yield _Row(f"phantom {number}", PHANTOM, image, np.any(masks, axis=0), PHANTOM)

    return _resized(rows(), len(samples) * (1 + crops) + empty + phantoms * _PHANTOMS, size, device)


def draw_phantoms(
    count: int, seed: int, size: int, device: torch.device, progress: Progress
) -> FrameSet:
    """Draw phantoms at [size, size]; see `edgeseg.kd.data.phantom`."""

    def rows() -> Iterator[_Row]:
        shown = progress(chosen, "drawing phantoms")
        for (label, number), (image, masks) in zip(shown, draw_all(chosen, seed), strict=True):
            yield _Row(f"phantom {label} ({number})", label, image, np.any(masks, axis=0))

    chosen = phantoms_of(count)
    return _resized(rows(), len(chosen), size, device)


def _resized(rows: Iterable[_Row], most: int, size: int, device: torch.device) -> FrameSet:
    """Return rows, `most` of them at most, at [size, size]."""
    images = np.empty((most, 1, size, size), np.uint8)
    masks = np.empty((most, 1, size, size), np.bool_)
    about = []
    for number, row in enumerate(rows):
        images[number, 0] = resize_grey(row.image, size, size)
        masks[number, 0] = resize_mask(row.mask, size, size)
        about.append((row.name, row.label, row.kind, row.source))
    names, labels, kinds, sources = zip(*about, strict=True) if about else ((), (), (), ())
    return FrameSet(
        names=names,
        images=torch.from_numpy(images[: len(about)]).to(device),
        masks=torch.from_numpy(masks[: len(about)]).to(device),
        labels=np.array(labels, dtype=np.str_),
        kinds=np.array(kinds, dtype=np.str_),
        sets=np.array(sources, dtype=np.str_),
    )


def draw_batch(
    frames: FrameSet, rows: np.ndarray, views: int | np.ndarray, seed: int, contract: InputContract
) -> Batch:
    """Return views of some rows: `views` [N], or one number for all.

    A view of an image depends on the seed, the image's name and the view's number only: not on the
    batch it is in, so that processes can share a batch and teachers' answers can be kept.
    """
    views = np.full(len(rows), views)
    seeds = [
        seed_of(seed, f"{frames.names[row]} view {view}")
        for row, view in zip(rows, views, strict=True)
    ]
    draws = draw_views(seeds, contract.height)
    images, truth = augment(frames.images[rows].float() / 255, frames.masks[rows].float(), draws)
    kinds = frames.kinds[rows]
    for row in np.flatnonzero(kinds == EMPTY):
        images[row] = draw_empty(seeds[row], contract.height).to(images.device)
    return Batch(
        images=normalised(images, contract),
        truth=truth,
        labels=np.where(kinds == IMAGE, frames.labels[rows], ""),
        names=tuple(frames.names[row] for row in rows),
        views=views,
    )


def normalised(images: torch.Tensor, contract: InputContract) -> torch.Tensor:
    """Return images in 0..1 as the network takes them, in channels_last layout."""
    return ((images - contract.means[0]) / contract.stds[0]).to(memory_format=torch.channels_last)
