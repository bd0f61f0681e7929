"""Augmentation of whole batches on the training device, from numbers drawn for each image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F

VERSION = 2  # raised when the same seeds give other images: cached teacher outputs then expire


_Between = Callable[[float, float], torch.Tensor]  # (low, high) -> the next numbers [N, 1, 1, 1]


class Draws(NamedTuple):
    """The numbers that make the views of a batch: one row an image, drawn on the CPU."""

    uniform: torch.Tensor  # [N, 16] in 0..1
    bend: torch.Tensor  # [N, 2, 5, 5], normal: a coarse grid of displacements
    shading: torch.Tensor  # [N, 1, 4, 4], normal: a coarse grid of gains
    speckle: torch.Tensor  # [N, 1, H/2, W/2], normal


def draw_views(seeds: list[int], size: int) -> Draws:
    """Return the numbers of one view for each seed, each from a generator of its own."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def normal(*shape: int) -> torch.Tensor:
        return torch.stack([torch.randn(shape, generator=each) for each in generators])

    return Draws(
        torch.stack([torch.rand(16, generator=each) for each in generators]),
        normal(2, 5, 5),
        normal(1, 4, 4),
        normal(1, size // 2, size // 2),
    )


def augment(
    images: torch.Tensor, masks: torch.Tensor, draws: Draws
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a view of each image: another probe position, another gain, another speckle.

    Geometry: flip, rotation, scale, aspect, shift, and in half of the images a smooth bend. Grey
    values: gamma, gain, offset, and in a part of them uneven gain, speckle and blur. No vertical
    flip: depth has a direction in ultrasound (shadows fall away from the probe).

    Args:
        images: grey in 0..1, [N, 1, H, W].
        masks: 0 or 1, [N, 1, H, W].
        draws: from `draw_views`, the same on every device.

    Returns:
        Images in 0..1 and masks in 0..1 (soft at the border), both [N, 1, H, W].
    """
    draws = Draws(*(each.to(images.device) for each in draws))
    columns = iter(draws.uniform.unbind(1))

    def between(low: float, high: float) -> torch.Tensor:
        return (low + (high - low) * next(columns)).view(-1, 1, 1, 1)

    def in_share(share: float) -> torch.Tensor:
        return (next(columns) < share).float().view(-1, 1, 1, 1)

    size = images.shape[-2:]
    both = torch.cat([images, masks], 1)
    grid = _grid(between, list(both.shape))
    bend = _smooth(0.03 * draws.bend, size).permute(0, 2, 3, 1) * in_share(0.5)
    both = F.grid_sample(both, grid + bend, padding_mode="reflection", align_corners=False)
    grey = both[:, :1].clamp_min(1e-6).pow(between(-0.5, 0.5).exp())
    grey = grey * between(0.75, 1.3) + between(-0.1, 0.1)
    grey = grey * (1 + _smooth(0.12 * draws.shading, size) * in_share(0.5))
    speckle = F.interpolate(draws.speckle, size=size, mode="bilinear")
    grey = grey * (1 + speckle * between(0, 0.25) * in_share(0.5))
    coarse = F.avg_pool2d(grey, 2)
    blurred = F.interpolate(coarse, size=size, mode="bilinear")
    grey = torch.lerp(grey, blurred, in_share(0.3) * between(0, 1))
    return grey.clamp(0, 1), both[:, 1:]


def _grid(between: _Between, shape: list[int]) -> torch.Tensor:
    """Return the sampling grid [N, H, W, 2] of flip, rotation, scale, aspect and shift."""
    angle = between(-25, 25) * (math.pi / 180)
    scale, aspect = between(-math.log(1.45), math.log(1.45)), between(-0.15, 0.15)
    x, y = (scale - aspect).exp(), (scale + aspect).exp()
    flip = torch.where(between(0, 1) < 0.5, -1.0, 1.0)
    rows = [
        [flip * angle.cos() * x, -angle.sin() * y, between(-0.25, 0.25)],
        [flip * angle.sin() * x, angle.cos() * y, between(-0.25, 0.25)],
    ]
    theta = torch.stack([torch.cat([each.flatten(1) for each in row], 1) for row in rows], 1)
    return F.affine_grid(theta, shape, align_corners=False)


def _smooth(coarse: torch.Tensor, size: torch.Size) -> torch.Tensor:
    return F.interpolate(coarse, size=size, mode="bicubic", align_corners=True)
