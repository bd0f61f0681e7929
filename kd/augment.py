"""Augmentation of whole batches on the training device, from numbers drawn for each image."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

VERSION = 1  # raised when the same draws give other images: cached teacher outputs then expire
_DRAWS = 9  # numbers a view takes


def draw_view(seed: int) -> torch.Tensor:
    """Return the numbers that make one view of one image, float32 [9] in 0..1."""
    return torch.rand(_DRAWS, generator=torch.Generator().manual_seed(seed))


def augment(
    images: torch.Tensor, masks: torch.Tensor, draws: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip, rotate, scale, shift, and change gain and gamma, each image by its own draws.

    No vertical flip: depth has a direction in ultrasound (shadows fall away from the probe).

    Args:
        images: grey in 0..1, [N, 1, H, W].
        masks: 0 or 1, [N, 1, H, W].
        draws: from `draw_view`, on the CPU, so that every device sees the same numbers, [N, 9].

    Returns:
        Images in 0..1 and masks in 0..1 (soft at the border), both [N, 1, H, W].
    """
    columns = iter(draws.unbind(1))

    def between(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * next(columns)

    angle = between(-15, 15) * (math.pi / 180)
    zoom = between(math.log(0.8), math.log(1.25)).exp()
    flip = torch.where(between(0, 1) < 0.5, -1.0, 1.0)
    rows = [
        torch.stack([flip * angle.cos() * zoom, -angle.sin() * zoom, between(-0.15, 0.15)], 1),
        torch.stack([flip * angle.sin() * zoom, angle.cos() * zoom, between(-0.15, 0.15)], 1),
    ]
    theta = torch.stack(rows, 1).to(images.device)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    both = torch.cat([images, masks], 1)
    both = F.grid_sample(both, grid, padding_mode="border", align_corners=False)
    gamma, gain, offset = between(0.7, 1.4), between(0.85, 1.15), between(-0.08, 0.08)
    gamma, gain, offset = (v.view(-1, 1, 1, 1).to(images.device) for v in (gamma, gain, offset))
    changed = (both[:, :1].clamp_min(1e-6).pow(gamma) * gain + offset).clamp(0, 1)
    return changed, both[:, 1:]
