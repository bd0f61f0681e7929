"""What several baselines are made of."""

from __future__ import annotations

import torch
from torch import nn


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel: [N, C, H, W] to the same shape."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x with mean 0 and variance 1 over the channels, scaled and moved."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Residual(nn.Sequential):
    """The layers in order, plus their input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take and return one shape."""
        y = x
        for layer in self:
            y = layer(y)
        return x + y


class ConvNormRelu(nn.Sequential):
    """3×3 convolution, batch norm, ReLU: [N, in, H, W] to [N, out, H, W]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
        )


class UpConv(nn.Sequential):
    """Bilinear ×2, then `ConvNormRelu`: [N, in, H, W] to [N, out, 2H, 2W]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Upsample(scale_factor=2.0, mode="bilinear"), ConvNormRelu(inputs, outputs)
        )


def gelu_norm(convolution: nn.Conv2d) -> tuple[nn.Module, ...]:
    """Return a convolution with GELU and then batch norm, the order of both papers of Tang."""
    return convolution, nn.GELU(), nn.BatchNorm2d(convolution.out_channels)


def pointwise_bottleneck(inputs: int, hidden: int, outputs: int) -> tuple[nn.Module, ...]:
    """Return two 1×1 convolutions with `hidden` channels between, each with GELU and norm."""
    return (
        *gelu_norm(nn.Conv2d(inputs, hidden, 1)),
        *gelu_norm(nn.Conv2d(hidden, outputs, 1)),
    )


def depthwise(channels: int, kernel: int) -> nn.Conv2d:
    """Return a depthwise convolution that keeps the size."""
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
