"""A part of a data set in memory, and the augmented batches that training draws from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..runtime.contract import InputContract
from ..runtime.image import resize_grey, resize_mask
from ..runtime.progress import Progress
from .augment import augment, draw_views
from .data.dataset import Sample
from .data.phantom import draw_phantom, phantoms_of
from .seeds import seed_of


@dataclass(frozen=True)
class Frames:
    """Samples at the network's size, in memory on the training device."""

    names: tuple[str, ...]
    images: torch.Tensor  # uint8 [N, 1, S, S]
    masks: torch.Tensor  # bool [N, 1, S, S]
    labels: np.ndarray  # str [N]

    def of_classes(self, *labels: str) -> Frames:
        """Return the frames of some classes."""
        return self.at(np.flatnonzero(np.isin(self.labels, labels)))

    def at(self, rows: np.ndarray) -> Frames:
        """Return the frames of some rows."""
        names = tuple(self.names[row] for row in rows)
        return Frames(names, self.images[rows], self.masks[rows], self.labels[rows])


@dataclass(frozen=True)
class Batch:
    """Augmented images with all that a loss may ask of them."""

    images: torch.Tensor  # float32 [N, 1, S, S], normalised
    truth: torch.Tensor  # float32 [N, 1, S, S] in 0..1
    labels: np.ndarray  # str [N]
    names: tuple[str, ...]
    views: np.ndarray  # int [N], which view of each image this is


def load_frames(
    samples: Sequence[Sample], size: int, device: torch.device, progress: Progress, label: str
) -> Frames:
    """Read samples and resize them to [size, size]. Raises InputError for unreadable files."""
    pairs = ((sample.read_image(), sample.read_mask()) for sample in progress(samples, label))
    names, labels = (sample.name for sample in samples), (sample.label for sample in samples)
    return _resized(tuple(names), tuple(labels), pairs, size, device)


def draw_phantoms(
    count: int, seed: int, size: int, device: torch.device, progress: Progress
) -> Frames:
    """Draw phantoms at [size, size]; see `edgeseg.kd.data.phantom`."""

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for label, number in progress(chosen, "drawing phantoms"):
            image, masks = draw_phantom(label, number, seed)
            yield image, np.any(masks, axis=0)

    chosen = phantoms_of(count)
    names = tuple(f"phantom {label} ({number})" for label, number in chosen)
    return _resized(names, tuple(label for label, _ in chosen), pairs(), size, device)


def _resized(
    names: tuple[str, ...],
    labels: tuple[str, ...],
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
    size: int,
    device: torch.device,
) -> Frames:
    images = np.empty((len(names), 1, size, size), np.uint8)
    masks = np.empty((len(names), 1, size, size), np.bool_)
    for row, (image, mask) in enumerate(pairs):
        images[row, 0] = resize_grey(image, size, size)
        masks[row, 0] = resize_mask(mask, size, size)
    return Frames(
        names=names,
        images=torch.from_numpy(images).to(device),
        masks=torch.from_numpy(masks).to(device),
        labels=np.array(labels, dtype=np.str_),
    )


def draw_batch(
    frames: Frames, rows: np.ndarray, view: int, seed: int, contract: InputContract
) -> Batch:
    """Return one view of some rows.

    A view of an image depends on the seed, the image's name and the view's number only: not on the
    batch it is in, so that processes can share a batch and teachers' answers can be kept.
    """
    seeds = [seed_of(seed, f"{frames.names[row]} view {view}") for row in rows]
    draws = draw_views(seeds, contract.height)
    images, truth = augment(frames.images[rows].float() / 255, frames.masks[rows].float(), draws)
    return Batch(
        images=normalised(images, contract),
        truth=truth,
        labels=frames.labels[rows],
        names=tuple(frames.names[row] for row in rows),
        views=np.full(len(rows), view),
    )


def normalised(images: torch.Tensor, contract: InputContract) -> torch.Tensor:
    """Return images in 0..1 as the network takes them, in channels_last layout."""
    return ((images - contract.mean) / contract.std).to(memory_format=torch.channels_last)
