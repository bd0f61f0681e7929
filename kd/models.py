"""Networks: the light Attention U-Net student and the teachers, smallest to largest.

Attention U-Net: Oktay et al. 2018, arXiv 1804.03999. ResNet bottleneck: He et al. 2016,
doi 10.1109/CVPR.2016.90. The T²KD paper (doi 10.7507/1001-5515.202311054) gives parameters and
operations but no layer table; the widths here are our reconstruction that meets its figures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

from ..runtime.contract import InputContract
from ..runtime.errors import InputError, first_line
from .encoders import LITE0, LITE2, Lite, LiteEncoder, widths_of
from .modules import module_made_by, names_function


class Trace(NamedTuple):
    """What a network made of a batch: its answer, and the features that distillation compares."""

    logits: torch.Tensor  # [N, 1, H, W]
    centre: torch.Tensor  # [N, C, h, w], the coarsest level
    decoder: torch.Tensor  # [N, C, H', W'], what the head reads


class Network(nn.Module):
    """A segmentation network: grey images [N, 1, H, W], normalised, to logits of that shape."""

    MULTIPLE = 16  # px, what H and W are multiples of
    LITE: Lite | None = None  # its encoder, where ImageNet weights fit it

    def trace(self, image: torch.Tensor) -> Trace:
        """Return logits and features."""
        raise NotImplementedError

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.trace(image).logits


class Norm(nn.BatchNorm2d):
    """Batch norm that takes a single value a channel in training too.

    One value has no variance, and less its own mean it is 0 whatever the image shows. It is
    normalised by the running statistics, as in inference, and these stay as they are.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise [N, C, H, W]."""
        if self.training and x.numel() == x.shape[1]:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        normalised: torch.Tensor = super().forward(x)
        return normalised


def _conv_norm(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, bias: bool = True
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias),
        Norm(outputs),
    )


class DoubleConv(nn.Sequential):
    """Two 3×3 convolutions, each with batch norm and ReLU: [N, in, H, W] to [N, out, H, W]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            _conv_norm(inputs, outputs, 3), nn.ReLU(), _conv_norm(outputs, outputs, 3), nn.ReLU()
        )


class UpConv(nn.Sequential):
    """Nearest ×2 then a 3×3 convolution: [N, in, H, W] to [N, out, 2H, 2W]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Upsample(scale_factor=2.0), _conv_norm(inputs, outputs, 3), nn.ReLU())


class UpProjection(nn.Sequential):
    """A 1×1 convolution, then nearest ×2: a quarter of the work of the other order."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(_conv_norm(inputs, outputs, 1), nn.ReLU(), nn.Upsample(scale_factor=2.0))


class AttentionGate(nn.Module):
    """Additive attention gate (Oktay et al. 2018, eq. 1-2) with gate and skip at one resolution."""

    def __init__(self, gate: int, skip: int, inner: int) -> None:
        super().__init__()
        self.gate = _conv_norm(gate, inner, 1)
        self.skip = _conv_norm(skip, inner, 1)
        self.psi = nn.Sequential(nn.ReLU(), _conv_norm(inner, 1, 1), nn.Sigmoid())

    def forward(self, gate: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Return `skip` [N, C, H, W] weighted by attention in 0..1 a pixel."""
        attention: torch.Tensor = self.psi(self.gate(gate) + self.skip(skip))
        return skip * attention


class DecoderStage(nn.Module):
    """Up-convolution, gated skip, concatenation, double convolution."""

    def __init__(self, inputs: int, skip: int, outputs: int, up: type[nn.Module] = UpConv) -> None:
        super().__init__()
        self.up = up(inputs, outputs)
        self.gate = AttentionGate(outputs, skip, max(outputs // 2, 1))
        self.fuse = DoubleConv(outputs + skip, outputs)

    def forward(self, below: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Take [N, in, H, W] and a skip [N, skip, 2H, 2W]; return [N, out, 2H, 2W]."""
        up = self.up(below)
        fused: torch.Tensor = self.fuse(torch.cat([self.gate(up, skip), up], dim=1))
        return fused


class AttentionUNet(Network):
    """Attention U-Net; H and W multiples of 16.

    Args:
        widths: channels of the five levels, finest first.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        inputs = (1, *widths[:-1])
        self.encoder = nn.ModuleList(map(DoubleConv, inputs, widths))
        self.pool = nn.MaxPool2d(2)
        rising = widths[::-1]
        self.decoder = nn.ModuleList(map(DecoderStage, rising[:-1], rising[1:], rising[1:]))
        self.head = nn.Conv2d(widths[0], 1, 1)

    def trace(self, image: torch.Tensor) -> Trace:
        """Return logits and features of the normalised grey images."""
        skips = []
        x = image
        for level, block in enumerate(self.encoder):
            x = block(self.pool(x) if level else x)
            skips.append(x)
        for stage, skip in zip(self.decoder, skips[-2::-1], strict=True):
            x = stage(x, skip)
        return Trace(self.head(x), skips[-1], x)


class EdgeAttentionUNet(Network):
    """Attention U-Net at a quarter of the resolution, made for INT8 (our own design).

    Space-to-depth by 4 (Shi et al. 2016, doi 10.1109/CVPR.2016.207, backwards) turns each block of
    4×4 pixels into 16 channels, so that no layer works at full resolution, where an Attention U-Net
    spends most of its time on few channels; 1×1 up-projections; bilinear ×4 after the head.
    H and W multiples of 32 (four levels).

    Args:
        widths: channels of the four levels, finest first.
    """

    STEM = 4  # px a side of a block
    MULTIPLE = 32

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        inputs = (self.STEM**2, *widths[:-1])
        self.encoder = nn.ModuleList(map(DoubleConv, inputs, widths))
        self.pool = nn.MaxPool2d(2)
        rising = widths[::-1]
        self.decoder = nn.ModuleList(
            DecoderStage(below, skip, skip, UpProjection) for below, skip in pairwise(rising)
        )
        self.head = nn.Conv2d(widths[0], 1, 1)

    def trace(self, image: torch.Tensor) -> Trace:
        """Return logits and features of the normalised grey images."""
        skips = []
        x = nn.functional.pixel_unshuffle(image, self.STEM)
        for level, block in enumerate(self.encoder):
            x = block(self.pool(x) if level else x)
            skips.append(x)
        for stage, skip in zip(self.decoder, skips[-2::-1], strict=True):
            x = stage(x, skip)
        coarse = self.head(x)
        logits = nn.functional.interpolate(coarse, scale_factor=float(self.STEM), mode="bilinear")
        return Trace(logits, skips[-1], x)


class Bottleneck(nn.Module):
    """ResNet bottleneck 1×1, 3×3, 1×1 with expansion 4; the 3×3 carries the stride."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * inner
        self.body = nn.Sequential(
            _conv_norm(inputs, inner, 1, bias=False),
            nn.ReLU(),
            _conv_norm(inner, inner, 3, stride=stride, bias=False),
            nn.ReLU(),
            _conv_norm(inner, outputs, 1, bias=False),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = _conv_norm(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take [N, in, H, W]; return [N, 4·inner, H/stride, W/stride]."""
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNetAttentionUNet(Network):
    """Attention U-Net on a ResNet bottleneck encoder, our reading of the paper's teacher.

    Skips of 64, 256, 512 and 1024 channels, centre 2048, decoder 1024-512-256-64; the head works
    at half resolution and its logits are doubled in size. H and W multiples of 32.

    Args:
        blocks: bottlenecks in the four stages; (3, 4, 23, 3) is ResNet-101.
    """

    MULTIPLE = 32

    def __init__(self, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 64, 7, 2, 3, bias=False), Norm(64), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        stages, inputs = [], 64
        for stage, (inner, depth) in enumerate(zip((64, 128, 256, 512), blocks, strict=True)):
            layers = []
            for index in range(depth):
                layers.append(Bottleneck(inputs, inner, 2 if stage and not index else 1))
                inputs = 4 * inner
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        rising = (2048, 1024, 512, 256, 64)
        self.decoder = nn.ModuleList(map(DecoderStage, rising[:-1], rising[1:], rising[1:]))
        self.head = nn.Conv2d(64, 1, 1)

    def trace(self, image: torch.Tensor) -> Trace:
        """Return logits and features of the normalised grey images."""
        x = self.stem(image)
        skips = [x]
        x = self.pool(x)
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        for decoder, skip in zip(self.decoder, skips[-2::-1], strict=True):
            x = decoder(x, skip)
        logits = nn.functional.interpolate(self.head(x), scale_factor=2.0, mode="bilinear")
        return Trace(logits, skips[-1], x)


class LiteAttentionUNet(Network):
    """Attention U-Net on an EfficientNet-Lite encoder that can start from ImageNet weights (ours).

    1×1 up-projections as in `EdgeAttentionUNet`.
    The head works where the decoder ends and its logits are enlarged. H and W multiples of 32.

    Args:
        lite: the encoder.
        widths: channels of the decoder at H/16, H/8, H/4 and maybe H/2, where the time is spent.
    """

    MULTIPLE = 32

    def __init__(self, lite: Lite, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.LITE = lite
        self.encoder = LiteEncoder(lite)
        *skips, centre = widths_of(lite)
        self.decoder = nn.ModuleList(
            DecoderStage(below, skip, width, UpProjection)
            for below, skip, width in zip((centre, *widths), skips[::-1], widths, strict=False)
        )
        self.head = nn.Conv2d(widths[-1], 1, 1)
        self.enlarged = float(self.MULTIPLE >> len(widths))

    def trace(self, image: torch.Tensor) -> Trace:
        """Return logits and features of the normalised grey images."""
        *skips, centre = self.encoder(image)
        x = centre
        for stage, skip in zip(self.decoder, skips[::-1], strict=False):
            x = stage(x, skip)
        coarse = self.head(x)
        logits = nn.functional.interpolate(coarse, scale_factor=self.enlarged, mode="bilinear")
        return Trace(logits, centre, x)


class ModuleNetwork(Network):
    """A network from elsewhere: a module from [N, 1, H, W] to logits of that shape.

    Its answer is the logits, or holds nothing beside them; any other is refused, on every call.
    What sizes it takes is not known: `require_trainable` tries one.

    Args:
        name: of the function that made it, for messages.
        module: what that function made.
        features: paths of the modules in it whose outputs [N, C, h, w] a trace has as centre and
            decoder; a single one is both, without any both are empty. Of a module that is called
            several times the last output counts.
    """

    def __init__(self, name: str, module: nn.Module, features: Sequence[str] = ()) -> None:
        super().__init__()
        self.name = name
        self.module = module
        self.features = tuple(features)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits. Raises InputError (E-MODULE-NETWORK) for another answer."""
        answer = self.module(image)
        held = [answer]
        if isinstance(answer, Mapping):
            held = list(answer.values())
        elif isinstance(answer, (list, tuple)):
            held = list(answer)
        if len(held) != 1:
            names = f" ({', '.join(map(str, answer))})" if isinstance(answer, Mapping) else ""
            raise InputError(
                "E-MODULE-NETWORK",
                f"{self.name} answers with {len(held)} outputs{names}; let the function return a "
                "module that answers with the logits alone",
            )
        logits: torch.Tensor = held[0]
        if not isinstance(logits, torch.Tensor) or logits.shape != image.shape:
            raise InputError(
                "E-MODULE-NETWORK",
                f"{self.name} answers images {list(image.shape)} with {_shape_of(logits)}; logits "
                "of the images' shape are needed",
            )
        return logits

    def trace(self, image: torch.Tensor) -> Trace:
        """Return logits and features; raises as `forward`, also for features of other rank."""
        seen: dict[str, Any] = {}
        with contextlib.ExitStack() as hooks:
            for path in self.features:
                module = self.module.get_submodule(path)
                hooks.enter_context(module.register_forward_hook(partial(_keep, seen, path)))
            logits = self(image)
        for path in self.features:
            output = seen.get(path)
            if not isinstance(output, torch.Tensor) or output.dim() != 4:
                raise InputError(
                    "E-MODULE-NETWORK",
                    f"{self.name}: {path} gives {_shape_of(output)}, and features are maps "
                    "[N, C, h, w]; name another module",
                )
        nothing = image.new_zeros(len(image), 0, 1, 1)
        found = [seen[path] for path in self.features] or [nothing]
        return Trace(logits, found[0], found[-1])


def _keep(seen: dict[str, Any], path: str, module: nn.Module, given: Any, output: Any) -> None:
    seen[path] = output


def _shape_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return str(list(value.shape))
    return "nothing" if value is None else type(value).__name__


# To add a model: a class above and a line here; tests/kd/test_models.py walks this table.
MODELS: Mapping[str, Callable[[], Network]] = MappingProxyType(
    {
        "attunet-8": lambda: AttentionUNet((8, 16, 32, 64, 128)),
        "attunet-16": lambda: AttentionUNet((16, 32, 64, 128, 256)),  # the student, 2.18 M
        "attunet-24": lambda: AttentionUNet((24, 48, 96, 192, 384)),
        "attunet-32": lambda: AttentionUNet((32, 64, 128, 256, 512)),
        "attunet-64": lambda: AttentionUNet((64, 128, 256, 512, 1024)),  # Oktay's, 34.9 M
        "edge-16": lambda: EdgeAttentionUNet((16, 32, 64, 128)),
        "edge-32": lambda: EdgeAttentionUNet((32, 64, 128, 256)),  # 1.83 M
        "edge-48": lambda: EdgeAttentionUNet((48, 96, 192, 384)),  # 4.1 M
        "edge-64": lambda: EdgeAttentionUNet((64, 128, 256, 512)),  # a teacher for CPUs, 7.3 M
        "resnet50-attunet": lambda: ResNetAttentionUNet((3, 4, 6, 3)),
        "resnet101-attunet": lambda: ResNetAttentionUNet((3, 4, 23, 3)),  # 106.1 M
        "lite0-edge": lambda: LiteAttentionUNet(LITE0, (64, 48, 32)),  # 1.65 M
        "lite0-attunet": lambda: LiteAttentionUNet(LITE0, (64, 48, 32, 24)),
        "lite2-attunet": lambda: LiteAttentionUNet(LITE2, (96, 64, 48, 32)),
    }
)


def build_model(name: str, features: Sequence[str] = ()) -> Network:
    """Return a freshly initialised network; that of ``package.module:function`` runs its code.

    Args:
        name: a key of MODELS, or a function as `module_made_by` takes it. A name that a file brings
            must have passed `require_allowed`.
        features: see `with_features`.

    Raises InputError: E-MODEL-NAME (neither of them), E-MODULE-IMPORT, those of `with_features`.
    """
    if names_function(name):
        return with_features(ModuleNetwork(name, module_made_by(name)), features)
    if name not in MODELS:
        raise InputError(
            "E-MODEL-NAME",
            f"no model named {name!r}; choose of {', '.join(MODELS)}, or name a function as "
            "package.module:function",
        )
    return with_features(MODELS[name](), features)


def with_features(network: Network, features: Sequence[str]) -> Network:
    """Let a network from elsewhere trace the outputs of its modules; see `ModuleNetwork`.

    Raises InputError: E-CONFIG (a network of the table has features of its own), E-MODULE-NETWORK
    (it has no such module).
    """
    if not features:
        return network
    if not isinstance(network, ModuleNetwork):
        raise InputError(
            "E-CONFIG",
            f"features are named of networks by package.module:function only, and "
            f"{' and '.join(features)} of one that has its own; leave them out",
        )
    known = dict(network.module.named_modules())
    for path in features:
        if path not in known:
            inside = [name for name in known if name and "." not in name]
            raise InputError(
                "E-MODULE-NETWORK",
                f"{network.name} has no module {path!r}; name one inside {', '.join(inside)}",
            )
    network.features = tuple(features)
    return network


def require_trainable(name: str, features: Sequence[str], side: int) -> None:
    """Refuse a network from elsewhere that could not be trained, by a pass of two black images.

    Args:
        name: ``package.module:function``.
        features: see `with_features`.
        side: of the images, px.

    Raises InputError: E-MODULE-NETWORK (it takes no such images, its answer is not the logits, its
    weights are not its own or have no size yet), those of `build_model`.
    """
    network, other = build_model(name, features), build_model(name)
    if any(is_lazy(each) for each in network.parameters()):
        raise InputError(
            "E-MODULE-NETWORK",
            f"{name} has lazy layers, whose sizes a first image decides; state their sizes",
        )
    places, theirs = (
        [each.untyped_storage().data_ptr() for each in made.state_dict().values() if each.numel()]
        for made in (network, other)
    )
    if len(set(places)) < len(places) or set(theirs) & set(places):
        raise InputError(
            "E-MODULE-NETWORK",
            f"{name} makes a network whose weights have two places, in it or in the next that it "
            "makes; let each weight be in one module, and each call make new ones",
        )
    for mode in (True, False):
        try:
            logits = network.train(mode).trace(torch.zeros(2, 1, side, side)).logits
        except InputError:
            raise
        except Exception as error:  # of somebody's network
            raise InputError(
                "E-MODULE-NETWORK",
                f"{name} takes no images of {side} px: {type(error).__name__}: "
                f"{first_line(error)}; choose another --size, or mend the network",
            ) from error
    last = type(logits.grad_fn).__name__
    if last.startswith(("Sigmoid", "Softmax")):
        raise InputError(
            "E-MODULE-NETWORK",
            f"{name} ends in {last.removesuffix('Backward0')}, so its answer is a probability and "
            "no logit; leave it out",
        )
    if not logits.requires_grad:
        raise InputError(
            "E-MODULE-NETWORK", f"the answer of {name} hangs on no weight that could be learnt"
        )


def require_size(network: Network, model: str, contract: InputContract) -> None:
    """Raise InputError (E-CONTRACT) where a network takes no images of a contract's size.

    A contract allows multiples of 16 px; some networks need multiples of 32.
    """
    step = network.MULTIPLE
    if contract.height % step or contract.width % step:
        nearest = [max(step, side // step * step) for side in (contract.width, contract.height)]
        raise InputError(
            "E-CONTRACT",
            f"{model} takes multiples of {step} px and not {contract.width}x{contract.height}; the "
            f"nearest is {nearest[0]}x{nearest[1]}",
        )


@torch.no_grad()
def centre_channels(network: Network, side: int) -> int:
    """Return the channels of a network's centre features, which a black image tells.

    Args:
        network: on its device; its mode stays.
        side: of images that it takes, px.
    """
    mode = network.training
    image = next(network.parameters()).new_zeros(1, 1, side, side)
    channels = network.eval().trace(image).centre.shape[1]
    network.train(mode)
    return channels


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable values."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_macs(model: nn.Module, contract: InputContract) -> int:
    """Return the multiply-accumulates of one image at the contract's size (PyTorch's counter)."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 1, contract.height, contract.width))
    return int(counter.get_total_flops() // 2)


def complexity_of(model: nn.Module, contract: InputContract) -> dict[str, int]:
    """Return "parameters", "macs" of one image and "weights_bytes", as a benchmark states them."""
    return {
        "parameters": count_parameters(model),
        "macs": count_macs(model, contract),
        "weights_bytes": sum(each.numel() * each.element_size() for each in model.parameters()),
    }
