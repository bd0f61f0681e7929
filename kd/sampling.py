"""How often each image is drawn in an epoch of a stage, and as which of its views."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..runtime.errors import InputError
from ..runtime.progress import Progress
from .config import TrainConfig, set_weights_of
from .data.dataset import Sample
from .frames import CROP, EMPTY, IMAGE, PHANTOM, FrameSet, load_frames


@dataclass(frozen=True)
class Sampling:
    """What the draws of a stage consist of; the defaults draw every image once an epoch."""

    normal_weight: float = 1.0  # draws of an image without lesion against a lesion image's
    set_weights: Mapping[str, float] = field(default_factory=dict)  # by data set; others have 1
    crop_share: float = 0.0  # of all draws: lesion-free crops
    empty_share: float = 0.0  # of all draws: frames that show nothing
    phantom_share: float = 0.0  # of all draws: phantoms


def sampling_of(config: TrainConfig) -> Sampling:
    """Return the sampling that the settings ask for."""
    weights = set_weights_of(config.set_weights)
    return Sampling(
        config.normal_weight, weights, config.crop_share, config.empty_share, config.phantom_share
    )


def load_part(
    part: str,
    samples: Sequence[Sample],
    config: TrainConfig,
    device: torch.device,
    progress: Progress,
) -> FrameSet:
    """Read a part's samples, and for the train part what its draws consist of besides.

    Raises InputError for unreadable files.
    """
    drawn = part == "train"
    return load_frames(
        samples,
        config.size,
        device,
        progress,
        f"reading {part} images",
        crops=drawn and config.crop_share > 0,
        empty=drawn and config.empty_share > 0,
        phantoms=drawn and config.phantom_share > 0,
    )


def require_drawable(sampling: Sampling, frames: FrameSet) -> None:
    """Raise InputError (E-CONFIG) where a sampling asks for what the frames do not have."""
    known = set() if frames.sets is None else set(frames.sets.tolist())
    for name in sampling.set_weights:
        if name not in known:
            raise InputError(
                "E-CONFIG",
                f"set_weights names {name!r}, the training images are of "
                f"{', '.join(sorted(known)) or 'one set without a name'}",
            )
    if sampling.crop_share and CROP not in frames.kinds:
        raise InputError(
            "E-CONFIG",
            "crop_share asks for crops without lesion and no training image has room for one; "
            "leave it at 0",
        )


def epochs_of(
    frames: FrameSet, sampling: Sampling, seed: int, first: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the draws of each epoch from `first` on: rows of the frames, and the view of each.

    An epoch has as many draws as there are images. The view of a draw tells how often its row was
    drawn before, so that an image that comes twice in an epoch is seen twice differently. All
    depends on the arguments only: a resumed training, or one of several processes, sees the same.
    """
    drawn = np.zeros(len(frames.names), int)
    for epoch in itertools.count():
        rows = _order(frames, sampling, np.random.default_rng([seed, epoch]))
        views = np.empty_like(rows)
        for draw, row in enumerate(rows):
            views[draw] = drawn[row]
            drawn[row] += 1
        if epoch >= first:
            yield rows, views


def _order(frames: FrameSet, sampling: Sampling, random: np.random.Generator) -> np.ndarray:
    """Return the rows of one epoch, in the order in which they are drawn."""
    draws = frames.image_count
    chances = _chances(frames, sampling)
    if len(chances) == draws and np.all(chances == chances[:1]):
        return random.permutation(draws)
    # Systematic: a row that is expected 1.4 times comes once or twice, and never not at all.
    shuffled = random.permutation(len(chances))
    ends = np.cumsum(chances[shuffled])
    places = (np.arange(draws) + random.random()) * (ends[-1] / draws)
    return random.permutation(shuffled[np.searchsorted(ends[:-1], places, side="right")])


def _chances(frames: FrameSet, sampling: Sampling) -> np.ndarray:
    """Return the share of each row in the draws of an epoch, float64 [N]."""
    weights = np.where(frames.labels == "normal", sampling.normal_weight, 1.0)
    for name, weight in sampling.set_weights.items():
        weights[frames.sets == name] *= weight
    weights[frames.kinds != IMAGE] = 1.0  # crops count alike, whatever set they are of
    shares = {
        CROP: sampling.crop_share,
        EMPTY: sampling.empty_share,
        PHANTOM: sampling.phantom_share,
    }
    there = {kind: share for kind, share in shares.items() if kind in frames.kinds}
    for kind, share in {IMAGE: 1 - sum(there.values()), **there}.items():
        of_kind = frames.kinds == kind
        weights[of_kind] *= share / weights[of_kind].sum()
    return weights
