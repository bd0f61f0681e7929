"""UNeXt: Valanarasu and Patel, MICCAI 2022, arXiv 2203.04967, doi 10.1007/978-3-031-16443-9_3.

Rebuilt from the paper's figure and equations: three convolutional stages, two stages of tokenised
MLPs with shifted channels, sums as skips. The paper's text names the widths 32, 64, 128, 160, 256,
which do not give its 1.47 M parameters; 16, 32, 128, 160, 256, those of the authors' release, do.
Linear layers over tokens are written as 1×1 convolutions: the same numbers without a change of
layout, and INT8 reaches them.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import nn
from torch.nn import functional

from .layers import ChannelNorm, Residual, depthwise

SHIFTS = (-2, -1, 0, 1, 2)  # px, one for each group of channels


class Shift(nn.Module):
    """Moves five groups of channels by -2 to 2 px, zeros coming in: [N, C, H, W] to that shape.

    Args:
        channels: C.
        dim: 2 moves along the height, 3 along the width.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.group = ceil(channels / len(SHIFTS))  # channels of all groups but the last
        self.dim = dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the moved channels in their order."""
        reach = max(SHIFTS)
        # Not `functional.pad`, whose ONNX computes its constant padding anew in each call.
        border = torch.zeros_like(x[:, :, :reach] if self.dim == 2 else x[:, :, :, :reach])
        padded = torch.cat([border, x, border], self.dim)
        moved = []
        for group, by in zip(torch.split(padded, self.group, dim=1), SHIFTS, strict=True):
            kept = slice(reach - by, -(reach + by) or None)
            moved.append(group[:, :, kept] if self.dim == 2 else group[:, :, :, kept])
        return torch.cat(moved, dim=1)


class ShiftedMlp(Residual):
    """Tokenised MLP block: [N, C, H, W] to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            ChannelNorm(channels),
            Shift(channels, dim=2),
            nn.Conv2d(channels, channels, 1),
            depthwise(channels, 3),
            nn.GELU(),
            Shift(channels, dim=3),
            nn.Conv2d(channels, channels, 1),
        )


def _conv_norm(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs))


def _up(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(functional.interpolate(x, scale_factor=2.0, mode="bilinear"))


class UNeXt(nn.Module):
    """Images [N, channels, H, W] to logits [N, 1, H, W]; H and W multiples of 32."""

    def __init__(
        self, channels: int = 1, widths: tuple[int, ...] = (16, 32, 128, 160, 256)
    ) -> None:
        super().__init__()
        a, b, c, d, e = widths
        self.encoder = nn.ModuleList([_conv_norm(channels, a), _conv_norm(a, b), _conv_norm(b, c)])
        self.tokens = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, 2, 1),
                ChannelNorm(outputs),
                ShiftedMlp(outputs),
                ChannelNorm(outputs),
            )
            for inputs, outputs in ((c, d), (d, e))
        )
        self.rising = nn.ModuleList(_conv_norm(*pair) for pair in ((e, d), (d, c), (c, b), (b, a)))
        self.mixers = nn.ModuleList(
            nn.Sequential(ShiftedMlp(width), ChannelNorm(width)) for width in (d, c)
        )
        self.last = nn.Conv2d(a, a, 3, padding=1)
        self.head = nn.Conv2d(a, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        skips = []
        x = image
        for block in self.encoder:
            x = torch.relu(functional.max_pool2d(block(x), 2))
            skips.append(x)
        for block in self.tokens:
            x = block(x)
            skips.append(x)
        for level, block in enumerate(self.rising):
            x = _up(block(x)) + skips[-2 - level]
            if level < len(self.mixers):
                x = self.mixers[level](x)
        logits: torch.Tensor = self.head(_up(self.last(x)))
        return logits
