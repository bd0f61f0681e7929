"""Mobile U-ViT: Tang et al., ACM Multimedia 2025, arXiv 2508.01064.

Rebuilt from the paper: large-kernel convolutional blocks (ConvUtr) as patch embedding, three
Large-kernel Local-Global-Local blocks at an eighth of the resolution, three transformer blocks as
bottleneck, and a decoder whose skips are pooled by 2. Widths, depths, kernels and the form of the
gates are those of the authors' release. Linear layers over tokens are written as 1×1 convolutions:
the same numbers, and INT8 reaches them; layer norms and attention stay in float.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from .layers import (
    ChannelNorm,
    ConvNormRelu,
    Residual,
    UpConv,
    depthwise,
    gelu_norm,
    pointwise_bottleneck,
)

_LOCAL_KERNEL = 9
_EXPANSION = 4  # hidden channels of every MLP, over its own


def _conv_utr(inputs: int, outputs: int, depth: int, kernel: int) -> nn.Sequential:
    """Return `depth` blocks (depthwise, then inverted bottleneck) and a convolution."""
    blocks: list[nn.Module] = []
    for _ in range(depth):
        blocks.append(Residual(*gelu_norm(depthwise(inputs, kernel))))
        blocks.append(Residual(*pointwise_bottleneck(inputs, _EXPANSION * inputs, inputs)))
    return nn.Sequential(*blocks, ConvNormRelu(inputs, outputs))


class _Gated(nn.Sequential):
    """x + x · (sigmoid(layers(x)) - 1/2)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = x
        for layer in self:
            gate = layer(gate)
        return x + x * (torch.sigmoid(gate) - 0.5)


def _local_aggregation(width: int) -> nn.Sequential:
    """Return the large-kernel half of a Local-Global-Local block."""
    hidden = _EXPANSION * width
    return nn.Sequential(
        _Gated(depthwise(width, _LOCAL_KERNEL)),
        _Gated(
            nn.BatchNorm2d(width),
            nn.Conv2d(width, width, 1),
            depthwise(width, _LOCAL_KERNEL),
            nn.Conv2d(width, width, 1),
        ),
        _Gated(
            nn.BatchNorm2d(width),
            nn.Conv2d(width, hidden, 3, padding=1, groups=width),
            nn.GELU(),
            nn.Conv2d(hidden, width, 3, padding=1, groups=width),
        ),
    )


class SparseAttention(nn.Module):
    """Multi-head self-attention over every `stride`-th pixel, spread again by a learned kernel."""

    def __init__(self, width: int, heads: int, stride: int) -> None:
        super().__init__()
        self.heads, self.depth, self.stride = heads, width // heads, stride
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.spread: nn.Module = nn.Identity()
        if stride > 1:
            self.spread = nn.Sequential(
                nn.ConvTranspose2d(width, width, stride, stride, groups=width), ChannelNorm(width)
            )
        self.project = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take and return [N, C, H, W]."""
        x = x[:, :, :: self.stride, :: self.stride]
        n, c, h, w = x.shape
        q, k, v = self.qkv(x).reshape(n, 3, self.heads, self.depth, h * w).unbind(1)
        weights = torch.softmax(q.transpose(-2, -1) @ k * self.depth**-0.5, dim=-1)
        mixed = (v @ weights.transpose(-2, -1)).reshape(n, c, h, w)
        projected: torch.Tensor = self.project(self.spread(mixed))
        return projected


class TransformerBlock(nn.Sequential):
    """Position by a depthwise convolution, attention, MLP; each adds to its input."""

    def __init__(self, width: int, heads: int, stride: int) -> None:
        hidden = _EXPANSION * width
        super().__init__(
            Residual(depthwise(width, 3)),
            Residual(ChannelNorm(width, eps=1e-6), SparseAttention(width, heads, stride)),
            Residual(
                ChannelNorm(width, eps=1e-6),
                nn.Conv2d(width, hidden, 1),
                nn.GELU(),
                nn.Conv2d(hidden, width, 1),
            ),
        )


def _two_convs(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(ConvNormRelu(inputs, outputs), ConvNormRelu(outputs, outputs))


class MobileUViT(nn.Module):
    """Images [N, channels, H, W] to logits [N, 1, H, W]; H and W multiples of 16."""

    def __init__(
        self,
        channels: int = 1,
        widths: tuple[int, ...] = (16, 32, 64, 128),
        depths: tuple[int, ...] = (1, 1, 3, 3, 3),
        kernels: tuple[int, ...] = (3, 3, 7),
        heads: int = 4,
    ) -> None:
        super().__init__()
        a, b, c, d = widths
        self.stem = ConvNormRelu(channels, a)
        self.embedding = nn.ModuleList(map(_conv_utr, (a, a, b), (a, b, c), depths[:3], kernels))
        self.local_global = nn.Sequential(
            *(
                nn.Sequential(_local_aggregation(c), TransformerBlock(c, heads, 2))
                for _ in range(depths[3])
            )
        )
        self.widen = _two_convs(c, d)
        self.bottleneck = nn.Sequential(*(TransformerBlock(d, heads, 1) for _ in range(depths[4])))
        self.narrow = _two_convs(d, c)
        self.fuse = nn.ModuleList(_two_convs(2 * width, width) for width in (c, b, a))
        self.up = nn.ModuleList(map(UpConv, (c, b, a), (b, a, a)))
        self.head = nn.Conv2d(a, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        skips = []
        x = self.stem(image)
        for block in self.embedding:
            x = functional.max_pool2d(block(x), 2)
            skips.append(x)
        x = self.narrow(self.bottleneck(self.widen(self.local_global(x))))
        for fuse, up, skip in zip(self.fuse, self.up, skips[::-1], strict=True):
            x = up(fuse(torch.cat([x, skip], dim=1)))
        logits: torch.Tensor = self.head(x)
        return logits
