"""Augmentation of whole batches on the training device, drawn from one seeded generator."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F


def augment(
    images: torch.Tensor, masks: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip, rotate, scale, shift, and change gain and gamma, each image on its own.

    No vertical flip: depth has a direction in ultrasound (shadows fall away from the probe).

    Args:
        images: grey in 0..1, [N, 1, H, W].
        masks: 0 or 1, [N, 1, H, W].
        generator: on the CPU, so that every device draws the same numbers.

    Returns:
        Images in 0..1 and masks in 0..1 (soft at the border), both [N, 1, H, W].
    """
    count = len(images)

    def draw(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    angle = draw(-15, 15) * (math.pi / 180)
    zoom = draw(math.log(0.8), math.log(1.25)).exp()
    flip = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
    rows = [
        torch.stack([flip * angle.cos() * zoom, -angle.sin() * zoom, draw(-0.15, 0.15)], 1),
        torch.stack([flip * angle.sin() * zoom, angle.cos() * zoom, draw(-0.15, 0.15)], 1),
    ]
    theta = torch.stack(rows, 1).to(images.device)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    both = torch.cat([images, masks], 1)
    both = F.grid_sample(both, grid, padding_mode="border", align_corners=False)
    gamma, gain, offset = draw(0.7, 1.4), draw(0.85, 1.15), draw(-0.08, 0.08)
    gamma, gain, offset = (v.view(-1, 1, 1, 1).to(images.device) for v in (gamma, gain, offset))
    changed = (both[:, :1].clamp_min(1e-6).pow(gamma) * gain + offset).clamp(0, 1)
    return changed, both[:, 1:]
