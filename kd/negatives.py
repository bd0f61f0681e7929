"""Images without a lesion beyond those of the data: what a network must leave unmarked."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch.nn import functional as F

MARGIN: Final = 0.04  # of a side, between the lesions and a crop
MIN_SIDE: Final = 0.30  # of the image's side
MIN_AREA: Final = 0.18  # of the image's area
MAX_ASPECT: Final = 2.2  # longer side by shorter
MAX_GREY: Final = 0.3  # of a uniform frame

_GRAINS: Final = (1, 2, 3, 4, 6, 8)  # px, of speckle


def lesion_free_box(mask: np.ndarray) -> tuple[slice, slice] | None:
    """Return rows and columns of the largest lesion-free crop of an image.

    It is the largest of the four boxes above, below, left and right of the lesions' bounding box,
    and its middle part where it is longer than MAX_ASPECT.

    Args:
        mask: bool [H, W], the union of the lesions; at least one pixel is set.

    Returns:
        None where no box has MIN_SIDE of both sides and MIN_AREA of the area.
    """
    height, width = mask.shape
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    margins = [int(np.ceil(MARGIN * side)) for side in mask.shape]
    top, bottom = rows[0] - margins[0], rows[-1] + 1 + margins[0]
    left, right = columns[0] - margins[1], columns[-1] + 1 + margins[1]
    boxes = [(0, top, 0, width), (bottom, height, 0, width)]
    boxes += [(0, height, 0, left), (0, height, right, width)]
    largest = max(boxes, key=lambda box: max(0, box[1] - box[0]) * max(0, box[3] - box[2]))
    tall, wide = int(largest[1] - largest[0]), int(largest[3] - largest[2])
    if tall < MIN_SIDE * height or wide < MIN_SIDE * width:
        return None
    if tall * wide < MIN_AREA * height * width:
        return None
    kept = min(tall, int(MAX_ASPECT * wide)), min(wide, int(MAX_ASPECT * tall))
    first = int(largest[0]) + (tall - kept[0]) // 2, int(largest[2]) + (wide - kept[1]) // 2
    return slice(first[0], first[0] + kept[0]), slice(first[1], first[1] + kept[1])


def draw_empty(seed: int, size: int) -> torch.Tensor:
    """Return a frame that shows nothing, float32 [1, size, size] in 0..1.

    A quarter of the seeds give black, a quarter one grey up to MAX_GREY, the others fully developed
    speckle (Rayleigh amplitudes) of some grain and contrast whose gain changes with depth.
    """
    generator = torch.Generator().manual_seed(seed)
    kind, level, grain, contrast, slope = torch.rand(5, generator=generator).tolist()
    if kind < 0.5:
        return torch.full((1, size, size), 0.0 if kind < 0.25 else MAX_GREY * level)
    side = -(-size // _GRAINS[int(grain * len(_GRAINS))])
    echoes = torch.randn(1, 2, side, side, generator=generator)  # in phase and out of phase
    echoes = F.interpolate(echoes, (size, size), mode="bilinear")
    amplitude = echoes.square().sum(dim=1).sqrt()
    relative = 1 + (0.1 + 0.9 * contrast) * (amplitude / amplitude.mean() - 1)
    depth = torch.linspace(-0.5, 0.5, size)[:, None]
    gain = (depth * (4 * (slope - 0.5))).exp() * (0.05 + 0.45 * level)
    speckle: torch.Tensor = gain * relative
    return speckle.clamp(0, 1)
