"""Ten small segmentation networks in the style of public ones, as ONNX files from elsewhere.

Each is written here after the architecture that its name says, at a tenth of the width or less; no
code or weight of theirs is in it. Weights are drawn by a seed and trained on a few phantoms for
some steps, so that the answers have lesions in them and a gate has something to judge.
"""

from __future__ import annotations

import copy
import io
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edgeseg.kd.data.phantom import draw_phantom
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.image import input_from_frame

SIDE = 64
CONTRACT = InputContract(SIDE, SIDE)
_FRAMES = 12  # phantoms that they are trained on
_STEPS = 25  # of training


@dataclass(frozen=True)
class Network:
    """One network as it came."""

    model: bytes  # ONNX
    output: str | None = None  # that answers, where there are several


# --- parts ---------------------------------------------------------------------------------------


def _conv_bn(inner: int, outer: int, kernel: int = 3, **options: int) -> nn.Sequential:
    pad = options.pop("padding", kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inner, outer, kernel, padding=pad, bias=False, **options),
        nn.BatchNorm2d(outer),
        nn.ReLU(inplace=True),
    )


def _double(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(_conv_bn(inner, outer), _conv_bn(outer, outer))


class _Residual(nn.Module):
    """Basic block of a ResNet."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv_bn(inner, outer, stride=stride),
            nn.Conv2d(outer, outer, 3, padding=1, bias=False),
            nn.BatchNorm2d(outer),
        )
        self.skip = nn.Sequential(
            nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.body(image) + self.skip(image))


class _ResNet(nn.Module):
    """Features at 1/2, 1/4 and 1/8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv_bn(1, 8, 7, stride=2)
        self.layers = nn.ModuleList([_Residual(8, 12, 1), _Residual(12, 16, 2)])

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        found = [self.stem(image)]
        here = functional.max_pool2d(found[0], 3, 2, 1)
        for layer in self.layers:
            here = layer(here)
            found.append(here)
        return found


# --- networks ------------------------------------------------------------------------------------


class SmpUnet(nn.Module):
    """Unet of segmentation_models.pytorch: a ResNet, nearest enlargement, a 3x3 head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _ResNet()
        self.decoder = nn.ModuleList([_double(16 + 12, 12), _double(12 + 8, 8), _double(8, 8)])
        self.head = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        *skips, here = self.encoder(image)
        for block in self.decoder:
            here = functional.interpolate(here, scale_factor=2.0, mode="nearest")
            here = block(torch.cat([here, skips.pop()], 1) if skips else here)
        return self.head(here)


class SmpFpn(nn.Module):
    """FPN of segmentation_models.pytorch: lateral sums, GroupNorm, bilinear enlargement by 4."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _ResNet()
        self.lateral = nn.ModuleList([nn.Conv2d(width, 16, 1) for width in (8, 12, 16)])
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.GroupNorm(4, 16), nn.ReLU()
            )
            for _ in range(3)
        )
        self.dropout = nn.Dropout2d(0.2)
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = self.encoder(image)
        here, merged = None, 0
        for feature, lateral, block in zip(
            reversed(found), reversed(self.lateral), self.blocks, strict=True
        ):
            own = lateral(feature)
            here = own if here is None else own + functional.interpolate(here, scale_factor=2.0)
            size = found[0].shape[-2:]
            merged = merged + functional.interpolate(
                block(here), size=size, mode="bilinear", align_corners=True
            )
        answer = self.head(self.dropout(merged))
        return functional.interpolate(answer, scale_factor=2.0, mode="bilinear", align_corners=True)


class MonaiBasicUnet(nn.Module):
    """BasicUNet of MONAI: InstanceNorm with weights, LeakyReLU, transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()

        def two(inner: int, outer: int) -> nn.Sequential:
            return nn.Sequential(
                *(
                    part
                    for first in (inner, outer)
                    for part in (
                        nn.Conv2d(first, outer, 3, padding=1),
                        nn.InstanceNorm2d(outer, affine=True),
                        nn.LeakyReLU(0.1),
                    )
                )
            )

        self.first, self.down = two(1, 8), nn.ModuleList([two(8, 12), two(12, 16)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(16, 8, 2, 2), nn.ConvTranspose2d(12, 8, 2, 2)])
        self.join = nn.ModuleList([two(12 + 8, 12), two(8 + 8, 8)])
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        skips = [self.first(image)]
        for down in self.down:
            skips.append(down(functional.max_pool2d(skips[-1], 2)))
        here = skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            here = join(torch.cat([skips.pop(), up(here)], 1))
        return self.head(here)


class MilesialUnet(nn.Module):
    """milesial/Pytorch-UNet: double convolutions, bilinear enlargement, skips padded to fit."""

    def __init__(self) -> None:
        super().__init__()
        self.first = _double(1, 8)
        self.down = nn.ModuleList([_double(8, 16), _double(16, 16)])
        self.up = nn.ModuleList([_double(32, 8), _double(16, 8)])
        self.head = nn.Conv2d(8, 1, 1)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Return what the head reads."""
        skips = [self.first(image)]
        for down in self.down:
            skips.append(down(functional.max_pool2d(skips[-1], 2)))
        here = skips.pop()
        for up in self.up:
            here, skip = (
                functional.interpolate(here, scale_factor=2, mode="bilinear", align_corners=True),
                skips.pop(),
            )
            rows, columns = (skip.size(axis) - here.size(axis) for axis in (2, 3))
            pads = [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2]
            here = up(torch.cat([skip, functional.pad(here, pads)], 1))
        return here

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(image))


class DeepLab(nn.Module):
    """DeepLabv3+: dilated convolutions side by side, global pooling, bilinear resizes to sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(_conv_bn(1, 8, stride=2), _conv_bn(8, 8, stride=2))
        self.high = nn.Sequential(
            _conv_bn(8, 16, stride=2), _conv_bn(16, 16, dilation=2, padding=2)
        )
        self.branches = nn.ModuleList(
            [
                _conv_bn(16, 8, 1),
                *(_conv_bn(16, 8, dilation=rate, padding=rate) for rate in (2, 4, 6)),
            ]
        )
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 8, 1), nn.ReLU())
        self.project = _conv_bn(5 * 8, 16, 1)
        self.skip = _conv_bn(8, 6, 1)
        self.join = _conv_bn(16 + 6, 16)
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        def resize(here: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
            size = like.shape[-2:]
            return functional.interpolate(here, size=size, mode="bilinear", align_corners=False)

        low = self.low(image)
        high = self.high(low)
        parts = [branch(high) for branch in self.branches]
        high = self.project(torch.cat([*parts, resize(self.pooled(high), high)], 1))
        joined = self.join(torch.cat([resize(high, low), self.skip(low)], 1))
        return resize(self.head(joined), image)


class _MixBlock(nn.Module):
    """A block of SegFormer: attention over reduced keys, then a mixing feed-forward part."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.reduce = nn.Conv2d(width, width, reduction, reduction)
        self.query, self.pair = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.mix = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        batch, width, rows, columns = image.shape
        tokens = image.flatten(2).transpose(1, 2)
        normed = self.norms[0](tokens)
        small = self.reduce(normed.transpose(1, 2).reshape(batch, width, rows, columns))
        small = self.norms[1](small.flatten(2).transpose(1, 2))

        def apart(found: torch.Tensor) -> torch.Tensor:
            return found.reshape(batch, -1, self.heads, width // self.heads).permute(0, 2, 1, 3)

        query = apart(self.query(normed))
        key, value = (apart(each) for each in self.pair(small).chunk(2, -1))
        weights = (query @ key.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(-1)
        joined = (weights @ value).transpose(1, 2).reshape(batch, -1, width)
        tokens = tokens + self.out(joined)
        wide = self.wide(self.norms[2](tokens))
        mixed = self.mix(wide.transpose(1, 2).reshape(batch, -1, rows, columns))
        tokens = tokens + self.narrow(functional.gelu(mixed.flatten(2).transpose(1, 2)))
        return tokens.transpose(1, 2).reshape(batch, width, rows, columns)


class SegFormer(nn.Module):
    """SegFormer: overlapping patches, attention, and a decoder of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.ModuleList([nn.Conv2d(1, 16, 7, 4, 3), nn.Conv2d(16, 24, 3, 2, 1)])
        self.blocks = nn.ModuleList([_MixBlock(16, 2, 4), _MixBlock(24, 3, 2)])
        self.linear = nn.ModuleList([nn.Linear(16, 16), nn.Linear(24, 16)])
        self.fuse = _conv_bn(32, 16, 1)
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        here, found = image, []
        for patch, block, linear in zip(self.patches, self.blocks, self.linear, strict=True):
            here = block(patch(here))
            tokens = linear(here.flatten(2).transpose(1, 2)).transpose(1, 2)
            found.append(tokens.reshape(tokens.shape[0], -1, *here.shape[2:]))
        size = found[0].shape[-2:]
        parts = [
            functional.interpolate(each, size=size, mode="bilinear", align_corners=False)
            for each in reversed(found)
        ]
        answer = self.head(self.fuse(torch.cat(parts, 1)))
        return functional.interpolate(answer, scale_factor=4, mode="bilinear", align_corners=False)


class _ChannelsLast(nn.Module):
    """The layout of TensorFlow, with its ReLU6: a channel that comes last, in and out."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.inner(image.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class _TwoClasses(nn.Module):
    """Background and lesion, and the softmax over them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        lesion = self.inner(image) / 2
        return torch.cat([-lesion, lesion], 1).softmax(1)


class _Supervised(nn.Module):
    """A sigmoid, and a second head that only training needs."""

    def __init__(self, inner: MilesialUnet) -> None:
        super().__init__()
        self.inner = inner
        self.deep = nn.Conv2d(8, 1, 1)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        here = self.inner.features(image)
        deep = self.deep(functional.max_pool2d(here, 4))
        return self.inner.head(here).sigmoid(), deep.sigmoid()


# --- made ----------------------------------------------------------------------------------------


@cache
def frames(contract: InputContract = CONTRACT) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs float32 and masks bool, [_FRAMES, 1, H, W] each."""
    images, masks = [], []
    for number in range(_FRAMES):
        frame, parts = draw_phantom("benign", number, 1)
        whole = np.logical_or.reduce(parts).astype(np.float32)
        size = (contract.height, contract.width)
        small = functional.interpolate(torch.from_numpy(whole)[None, None], size, mode="area")
        images.append(input_from_frame(frame, contract)[0])
        masks.append(small[0].numpy() > 0.5)
    return np.stack(images), np.stack(masks)


def fitted(network: nn.Module, seed: int, contract: InputContract = CONTRACT) -> nn.Module:
    """Draw weights by a seed and train them on the phantoms for some steps; in place."""
    torch.manual_seed(seed)
    for part in network.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.kaiming_normal_(part.weight)
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # the plain mean
    images, masks = (torch.from_numpy(each) for each in frames(contract))
    weight = (~masks).sum() / masks.sum()
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    network.train()
    for _ in range(_STEPS):
        loss = functional.binary_cross_entropy_with_logits(
            network(images), masks.float(), pos_weight=weight.sqrt()
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.reset_running_stats()
                part.momentum = None  # the plain mean
        network(images)
    return network.eval()


def onnx_of(
    network: nn.Module,
    *,
    opset: int = 17,
    channels_last: bool = False,
    contract: InputContract = CONTRACT,
) -> bytes:
    """Write a network as torch's exporter does when it is asked for nothing more."""
    sides = (contract.height, contract.width)
    shape = (1, *sides, 1) if channels_last else (1, 1, *sides)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), (torch.zeros(shape),), content, dynamo=False, opset_version=opset
        )
    return content.getvalue()


def quantised_by_onnxruntime(
    model: bytes, *, symmetric: bool = True, seven_bits: bool = False
) -> bytes:
    """Return a float network with the pairs of ONNX Runtime's tool, calibrated on the phantoms.

    Args:
        model: ONNX.
        symmetric: activations in INT8 with the zero point 0; else as the tool does by itself.
        seven_bits: of the weights, so that no sum saturates on a CPU without VNNI.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"image": each[None]} for each in frames()[0][:6]]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    with tempfile.TemporaryDirectory() as folder:
        source, clean, out = (Path(folder, f"{name}.onnx") for name in ("source", "clean", "out"))
        source.write_bytes(model)
        quant_pre_process(source, clean)
        quantize_static(
            clean,
            out,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            reduce_range=seven_bits,
            extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True},
        )
        return out.read_bytes()


@cache
def _trained(make: type[nn.Module]) -> nn.Module:
    return fitted(make(), 4)


def _plain(make: type[nn.Module], opset: int = 17) -> Callable[[], Network]:
    return lambda: Network(onnx_of(_trained(make), opset=opset))


def _from_tensorflow() -> Network:
    network = copy.deepcopy(_trained(MilesialUnet))
    for part in list(network.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.ReLU):
                setattr(part, name, nn.ReLU6())
    return Network(onnx_of(_ChannelsLast(network), channels_last=True))


def _from_onnxruntime() -> Network:
    network = onnx_of(_trained(SmpUnet))
    return Network(quantised_by_onnxruntime(named_image(network)))


def named_image(model: bytes) -> bytes:
    """Call the input ``image``."""
    import onnx

    loaded = onnx.load_model_from_string(model)
    old = loaded.graph.input[0].name
    loaded.graph.input[0].name = "image"
    for node in loaded.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = "image" if name == old else name
    return bytes(loaded.SerializeToString())


def _supervised() -> Network:
    import onnx

    model = onnx_of(_Supervised(_trained(MilesialUnet)))
    return Network(model, onnx.load_model_from_string(model).graph.output[0].name)


# To add one: a function that makes it, and a line here; the test and the table follow.
NETWORKS: Mapping[str, Callable[[], Network]] = {
    "SMP Unet": _plain(SmpUnet),
    "SMP FPN": _plain(SmpFpn),
    "MONAI BasicUNet": _plain(MonaiBasicUnet),
    "milesial U-Net": _plain(MilesialUnet, 11),
    "DeepLabv3+": _plain(DeepLab),
    "SegFormer": _plain(SegFormer),
    "U-Net, channels last": _from_tensorflow,
    "Unet, Q/DQ": _from_onnxruntime,
    "U-Net, two classes": lambda: Network(onnx_of(_TwoClasses(_trained(MilesialUnet)))),
    "U-Net, deep supervision": _supervised,
}
