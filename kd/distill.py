"""Distillation losses: what a student learns from a teacher's answer and features.

Each is a function of two traces that gives one value an image; the training loop weights and
averages them. A new one needs no change anywhere else, see the table at the foot.

With one lesion channel the binary (sigmoid) and the two-class (softmax) pixel KL are the same
number, because the softmax over [z, 0] is the sigmoid of z: there is one row for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch
from torch.nn import functional as F

from ..runtime.errors import InputError
from .models import Trace

MAX_POSITIONS: Final = 16  # a side; pairs of positions grow with its fourth power
MIN_NORM: Final = 1e-3  # of a feature vector; without a floor the gradient of a cosine has no bound

Term = Callable[[Trace, Trace, torch.Tensor, float], torch.Tensor]
"""(student, teacher, truth [N, 1, H, W] in 0..1, temperature) -> loss of each image, float32 [N].

No image sees another, no gradient flows into the teacher, and all is computed in float32. The two
networks may differ in channels and in the resolution of their features.
"""


@dataclass(frozen=True)
class Distillation:
    """A distillation loss and what it needs."""

    term: Term
    weight: float  # multiplies the term at distill weight 1, so that terms are of like size
    features: bool  # reads centre or decoder: stored logits of the teacher do not suffice
    adapter: bool  # the student's centre passes a 1×1 convolution to the teacher's channels first


def binary_kl(
    student: Trace, teacher: Trace, truth: torch.Tensor, temperature: float
) -> torch.Tensor:
    """KL(teacher || student) of the binary pixel distributions, times temperature².

    Hinton et al. 2015, arXiv 1503.02531. In nats, the mean over the pixels of an image.

    Raises:
        ValueError: logits of unequal shapes or a temperature that is not above 0.
    """
    ours, theirs = _scaled_logits(student, teacher, temperature)
    divergence = theirs.sigmoid() * (theirs - ours) + F.softplus(ours) - F.softplus(theirs)
    return divergence.mean(dim=(1, 2, 3)) * temperature**2


def channel_wise(
    student: Trace, teacher: Trace, truth: torch.Tensor, temperature: float
) -> torch.Tensor:
    """KL of the logits as distributions over the pixels of an image, times temperature².

    Shu et al. 2021, arXiv 2011.13256: softmax over the pixels, the sum over them, divided by the
    number of channels, which is 1 here. In nats. It compares where the lesion is, not how sure the
    networks are: a constant added to all logits changes nothing.

    Raises:
        ValueError: logits of unequal shapes or a temperature that is not above 0.
    """
    ours, theirs = (
        logits.flatten(1).log_softmax(dim=1)
        for logits in _scaled_logits(student, teacher, temperature)
    )
    divergence = F.kl_div(ours, theirs, reduction="none", log_target=True)
    return divergence.sum(dim=1) * temperature**2


def attention_transfer(
    student: Trace, teacher: Trace, truth: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Squared distance of the attention maps, the sum of the decoder's and the centre's, in 0..4.

    Zagoruyko & Komodakis 2017, arXiv 1612.03928. Attention is the sum of squares over the channels,
    scaled to an L2 norm of 1 over the positions. The squared differences are summed over the
    positions, where the authors' code averages, so that the value does not depend on the
    resolution.
    """
    return _attention_distance(student.decoder, teacher.decoder) + _attention_distance(
        student.centre, teacher.centre
    )


def hint(student: Trace, teacher: Trace, truth: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean squared difference of the centres, the student's after its adapter (FitNets).

    Romero et al. 2015, arXiv 1412.6550. The teacher's centre is average-pooled to the student's
    resolution; a coarser one is repeated.

    Raises:
        ValueError: the centres differ in channels.
    """
    ours = student.centre.float()
    if ours.shape[1] != teacher.centre.shape[1]:
        raise ValueError(f"centre of {ours.shape[1]} channels, not {teacher.centre.shape[1]}")
    theirs = _pooled(teacher.centre.detach().float(), ours)
    return (ours - theirs).pow(2).mean(dim=(1, 2, 3))


def intra_class_variation(
    student: Trace, teacher: Trace, truth: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Mean squared difference of how like each position of the decoder is to its class (IFVD).

    Wang et al., Intra-class Feature Variation Distillation for Semantic Segmentation, ECCV 2020.
    Likeness is the cosine to the prototype, the mean feature of the class (lesion or background) in
    this image; an image of one class has one prototype.
    """
    ours = _likeness_to_class(student.decoder.float(), truth)
    theirs = _likeness_to_class(teacher.decoder.detach().float(), truth)
    return (ours - _resized(theirs, ours)).pow(2).mean(dim=(1, 2, 3))


def pair_wise(
    student: Trace, teacher: Trace, truth: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Mean squared difference of the cosines between all pairs of positions of the centre (SKDS).

    Liu et al. 2019, arXiv 1903.04197. Both centres are first average-pooled to the coarser of the
    two and to MAX_POSITIONS a side, which bounds the memory (the authors' code max-pools).
    """
    sides = zip(student.centre.shape[-2:], teacher.centre.shape[-2:], strict=True)
    height, width = (min(*side, MAX_POSITIONS) for side in sides)
    ours = _affinity(student.centre.float(), (height, width))
    theirs = _affinity(teacher.centre.detach().float(), (height, width))
    return (ours - theirs).pow(2).mean(dim=(1, 2))


def _scaled_logits(
    student: Trace, teacher: Trace, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    ours, theirs = student.logits, teacher.logits.detach()
    if ours.shape != theirs.shape or not temperature > 0:
        raise ValueError(f"{ours.shape} against {theirs.shape}, temperature {temperature}")
    return ours.float() / temperature, theirs.float() / temperature


def _resized(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Return a teacher's map [N, 1, h, w] at the student's resolution."""
    # Antialiased: a plain bilinear step from 256 to 64 would skip three pixels in four.
    return F.interpolate(teacher, student.shape[-2:], mode="bilinear", antialias=True)


def _pooled(maps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return maps [N, C, H, W] averaged to the resolution of others."""
    height, width = like.shape[-2:]
    return F.adaptive_avg_pool2d(maps, (height, width))


def _attention_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Compare the attention of two feature maps [N, C, h, w] of any size; return [N] in 0..2."""
    ours = student.float().pow(2).sum(dim=1, keepdim=True)
    theirs = _resized(teacher.detach().float().pow(2).sum(dim=1, keepdim=True), ours)
    unit, wanted = (F.normalize(each.flatten(1), dim=1, eps=MIN_NORM) for each in (ours, theirs))
    return (unit - wanted).pow(2).sum(dim=1)


def _likeness_to_class(features: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the cosine of each position to its class prototype: [N, C, h, w] to [N, 1, h, w]."""
    # A position is lesion when most of its pixels are.
    lesion = (_pooled(truth.float(), features) > 0.5).float()
    prototypes = torch.zeros_like(features)
    for mask in (lesion, 1 - lesion):
        count = mask.sum(dim=(2, 3), keepdim=True).clamp_min(1)
        prototypes = prototypes + mask * (features * mask).sum(dim=(2, 3), keepdim=True) / count
    return F.cosine_similarity(features, prototypes, dim=1, eps=MIN_NORM).unsqueeze(1)


def _affinity(centre: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return the cosine of each pair of positions: [N, C, h, w] to [N, P, P]."""
    unit = F.normalize(F.adaptive_avg_pool2d(centre, size).flatten(2), dim=1, eps=MIN_NORM)
    # Autocast would round the factors of a matrix product to bfloat16.
    with torch.autocast(unit.device.type, enabled=False):
        return unit.transpose(1, 2) @ unit


# To add a distillation loss: a function above and a row here; tests/kd/test_distill.py walks the
# table. The weights are ours, not the papers': at them an untrained student costs 0.15 to 1.2
# against a trained teacher (phantoms, temperature 2). KL keeps 1 and is the measure of the others.
DISTILLATIONS: Mapping[str, Distillation] = MappingProxyType(
    {
        "kl": Distillation(binary_kl, weight=1.0, features=False, adapter=False),
        "cwd": Distillation(channel_wise, weight=0.3, features=False, adapter=False),
        "at": Distillation(attention_transfer, weight=0.5, features=True, adapter=False),
        "fitnet": Distillation(hint, weight=0.3, features=True, adapter=True),
        "ifvd": Distillation(intra_class_variation, weight=5.0, features=True, adapter=False),
        "skds": Distillation(pair_wise, weight=5.0, features=True, adapter=False),
    }
)


def find_distillation(name: str) -> Distillation:
    """Return a distillation loss. Raises InputError (E-DISTILL-NAME) for an unknown name."""
    if name not in DISTILLATIONS:
        known = ", ".join(DISTILLATIONS)
        raise InputError("E-DISTILL-NAME", f"no distillation named {name!r}; choose of {known}")
    return DISTILLATIONS[name]
