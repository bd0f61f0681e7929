"""Networks that are not edgeseg's own, as the functions without arguments that make them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class _Block(nn.Sequential):
    """Twice: convolution, instance norm, dropout, leaky ReLU, as MONAI's BasicUNet has them."""

    def __init__(self, inner, outer, dropout):
        super().__init__(
            *(
                part
                for first in (inner, outer)
                for part in (
                    nn.Conv2d(first, outer, 3, padding=1),
                    nn.InstanceNorm2d(outer, affine=True),
                    nn.Dropout(dropout),
                    nn.LeakyReLU(0.1, inplace=True),
                )
            )
        )


class UNet(nn.Module):
    """Two levels, enlarged by a transposed convolution and padded where a side is odd."""

    def __init__(self, width=4, dropout=0.0):
        super().__init__()
        self.top = _Block(1, width, dropout)
        self.bottom = _Block(width, 2 * width, dropout)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.join = _Block(2 * width, width, dropout)
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, image):
        skip = self.top(image)
        x = self.up(self.bottom(functional.max_pool2d(skip, 2)))
        if x.shape[-1] != skip.shape[-1]:
            x = functional.pad(x, [0, 1], "replicate")
        return self.head(self.join(torch.cat([skip, x], dim=1)))


def plain():
    return UNet()


def wide():
    return UNet(width=8)


def drawing():
    return UNet(dropout=0.3)


class Ending(nn.Module):
    """A network whose answer goes through a function."""

    def __init__(self, last):
        super().__init__()
        self.inner = UNet(width=2)
        self.last = last

    def forward(self, image):
        return self.last(self.inner(image))


def alone_in_a_dict():
    return Ending(lambda logits: {"out": logits})


def two_in_a_dict():
    return Ending(lambda logits: {"out": logits, "aux": logits})


def a_pair():
    return Ending(lambda logits: (logits, logits))


def half_size():
    return Ending(lambda logits: functional.max_pool2d(logits, 2))


def probability():
    return Ending(torch.sigmoid)


def late_probability():
    return Ending(lambda logits: torch.sigmoid(logits)[:, :1])


def summed_by_index():
    return Ending(lambda logits: torch.einsum("nchw,ndhw->nchw", logits, logits))


def broken_call():
    return nn.Linear(5, 5)


def frozen():
    return UNet().requires_grad_(False)


def lazy():
    return nn.LazyConv2d(1, 1)


def twice_inside():
    network = UNet()
    network.again = network.head
    return network


class Vectors(UNet):
    """Has a module whose output is no map."""

    def __init__(self):
        super().__init__()
        self.flat = nn.Flatten()

    def forward(self, image):
        self.flat(image)
        return super().forward(image)


_ONE = UNet()


def always_the_same():
    return _ONE
