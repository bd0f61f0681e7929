"""Small networks of the literature, rebuilt in PyTorch as plain baselines: size and time only.

They are not trained here, so nothing is said of their accuracy. Only the modules of this folder
import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn

from ...runtime.errors import InputError
from .cmunext import CMUNeXt
from .mobile_uvit import MobileUViT
from .unext import UNeXt

_SEED = 0  # of the weights, so that one name gives one file


@dataclass(frozen=True)
class Baseline:
    """A network and what its paper says of it, at three input channels and 256×256."""

    builder: Callable[[int], nn.Module]  # from the number of input channels
    source: str
    parameters: float  # published, in millions
    gmacs: float  # published as "GFLOPs": multiply-accumulates, in thousand millions
    multiple: int  # px; height and width must be multiples of it


# To add one: a module beside this with its source, and a line here; the tests walk the table.
BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        "unext": Baseline(UNeXt, "Valanarasu and Patel 2022, arXiv 2203.04967", 1.47, 0.57, 32),
        "cmunext-s": Baseline(CMUNeXt, "Tang et al. 2024, arXiv 2308.01239", 0.42, 1.09, 16),
        "mobile-uvit": Baseline(MobileUViT, "Tang et al. 2025, arXiv 2508.01064", 1.39, 2.51, 16),
    }
)


def build_baseline(name: str, height: int, width: int, channels: int = 1) -> nn.Module:
    """Return a network with the same random weights each time, in evaluation mode.

    Args:
        name: key in `BASELINES`.
        height: of its input, px.
        width: of its input, px.
        channels: of its input; 1 is a grey image.

    Raises InputError: E-RIVAL-SIZE for a height or width that its levels do not divide.
    """
    baseline = BASELINES[name]
    if height % baseline.multiple or width % baseline.multiple:
        raise InputError(
            "E-RIVAL-SIZE",
            f"{name} takes heights and widths that are multiples of {baseline.multiple}, not "
            f"{height}×{width}; leave it out, or compare with a network of such a size",
        )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(_SEED)
        network = baseline.builder(channels).eval()
        for layer in network.modules():
            if isinstance(layer, (nn.BatchNorm2d, nn.LayerNorm)):
                _scatter(layer)
        return network


def _scatter(norm: nn.BatchNorm2d | nn.LayerNorm) -> None:
    """Draw what training would change: the exporter would store equal tensors only once."""
    nn.init.normal_(norm.weight, 1.0, 0.1)
    nn.init.normal_(norm.bias, 0.0, 0.1)
    if isinstance(norm, nn.BatchNorm2d):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        nn.init.normal_(norm.running_mean, 0.0, 0.1)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
