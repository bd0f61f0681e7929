"""Networks of segmentation_models.pytorch and MONAI, by their own code: small, grey, one class.

Each is named as a user names it, `package.module:function`.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import torch
from torch import nn

_LIBRARIES: list[torch.library.Library] = []  # live as long as the process


def smp_unet() -> nn.Module:
    """Return the Unet of segmentation_models.pytorch on the first three stages of a ResNet-18."""
    declare_operators()
    import segmentation_models_pytorch as smp

    return smp.Unet(
        "resnet18",
        encoder_depth=3,
        encoder_weights=None,
        decoder_channels=(32, 16, 8),
        in_channels=1,
    )


def monai_basic_unet() -> nn.Module:
    """Return MONAI's BasicUNet, a quarter as wide as by default."""
    from monai.networks.nets import BasicUNet

    features = (8, 8, 16, 32, 64, 8)
    return BasicUNet(spatial_dims=2, in_channels=1, out_channels=1, features=features)


def declare_operators() -> None:
    """Declare the operators of torchvision, which smp's encoders import, where it has none.

    Its build on PyPI is for CUDA and cannot load its library beside a PyTorch for CPUs; none of
    these is in a network here.
    """
    package = importlib.util.find_spec("torchvision")
    if _LIBRARIES or package is None or not package.submodule_search_locations:
        return
    fakes = Path(package.submodule_search_locations[0], "_meta_registrations.py").read_text("utf-8")
    names = {
        "".join(found)
        for found in re.findall(r"register_meta\(\"(\w+)\"\)|torchvision::(\w+)\"", fakes)
    }
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in sorted(names):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor x) -> Tensor")
    _LIBRARIES.append(library)
