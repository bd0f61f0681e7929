"""CMUNeXt-S: Tang et al., ISBI 2024, arXiv 2308.01239, doi 10.1109/ISBI56570.2024.10635609.

Rebuilt from the paper: large depthwise kernels in inverted bottlenecks, and a skip fusion that
first convolves skip and decoder apart (two groups), then mixes them by an inverted bottleneck.
Widths, depths and kernels of the small model are those of the authors' release.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from .layers import (
    ConvNormRelu,
    Residual,
    UpConv,
    depthwise,
    gelu_norm,
    pointwise_bottleneck,
)


def _encoder_block(inputs: int, outputs: int, depth: int, kernel: int) -> nn.Sequential:
    """Return `depth` large-kernel blocks at the old width and a convolution to the new one."""
    blocks: list[nn.Module] = []
    for _ in range(depth):
        blocks.append(Residual(*gelu_norm(depthwise(inputs, kernel))))
        blocks += pointwise_bottleneck(inputs, 4 * inputs, inputs)
    return nn.Sequential(*blocks, ConvNormRelu(inputs, outputs))


def _skip_fusion(width: int) -> nn.Sequential:
    """Return what joins a skip and the decoder, `width` channels each."""
    apart = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2)
    return nn.Sequential(*gelu_norm(apart), *pointwise_bottleneck(2 * width, 4 * width, width))


class CMUNeXt(nn.Module):
    """Images [N, channels, H, W] to logits [N, 1, H, W]; H and W multiples of 16."""

    def __init__(
        self,
        channels: int = 1,
        widths: tuple[int, ...] = (8, 16, 32, 64, 128),
        depths: tuple[int, ...] = (1, 1, 1, 1, 1),
        kernels: tuple[int, ...] = (3, 3, 7, 7, 9),
    ) -> None:
        super().__init__()
        self.stem = ConvNormRelu(channels, widths[0])
        inputs = (widths[0], *widths[:-1])
        self.encoder = nn.ModuleList(map(_encoder_block, inputs, widths, depths, kernels))
        rising = widths[::-1]
        self.up = nn.ModuleList(map(UpConv, rising[:-1], rising[1:]))
        self.fuse = nn.ModuleList(map(_skip_fusion, rising[1:]))
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        skips = []
        x = self.stem(image)
        for level, block in enumerate(self.encoder):
            x = block(functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for up, fuse, skip in zip(self.up, self.fuse, skips[-2::-1], strict=True):
            x = fuse(torch.cat([skip, up(x)], dim=1))
        logits: torch.Tensor = self.head(x)
        return logits
