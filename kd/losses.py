"""Losses of one lesion channel against the masks: overlap and area balance.

The T²KD paper names a "weight balance loss" but publishes no formula
(doi 10.7507/1001-5515.202311054); what is here is our reconstruction and is called so. Every loss
is a value per image: the training loop takes the mean over the images of a batch, however many
processes share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final

import torch
from torch.nn import functional as F

from ..runtime.errors import InputError

MAX_AREA_WEIGHT: Final = 5.0  # of a lesion pixel against a background pixel
FALSE_SHARE: Final = 0.01  # of an image's pixels marked without a lesion: half of the full penalty
FALSE_WEIGHT: Final = 0.5  # of that penalty, against a missed lesion's


def area_balanced_bce(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy in nats in which small lesions weigh more (reconstruction).

    With lesion share ``a`` of an image, its lesion pixels weigh
    ``w = clip(sqrt((1 - a) / a), 1, MAX_AREA_WEIGHT)`` and its background pixels 1; the weights
    are then scaled to a mean of 1 in each image, so that every image counts alike. An image
    without lesion has weight 1 everywhere.

    Args:
        logits: [N, 1, H, W].
        truth: [N, 1, H, W], values in 0..1.

    Returns:
        [N], the mean over the pixels of each image.
    """
    share = truth.mean(dim=(2, 3), keepdim=True)
    weight = ((1 - share) / share.clamp_min(1e-6)).sqrt().clamp(1, MAX_AREA_WEIGHT)
    pixel_weight = 1 + (weight - 1) * truth
    pixel_weight = pixel_weight / pixel_weight.mean(dim=(2, 3), keepdim=True)
    losses = F.binary_cross_entropy_with_logits(logits, truth, pixel_weight, reduction="none")
    return losses.mean(dim=(1, 2, 3))


def plain_bce(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy in nats, every pixel alike; shapes as `area_balanced_bce`."""
    losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return losses.mean(dim=(1, 2, 3))


def overlap_loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """One minus soft Dice (Milletari et al. 2016) of each image, 0 where it has no lesion.

    Args:
        logits: [N, 1, H, W].
        truth: [N, 1, H, W], values in 0..1.

    Returns:
        [N] in 0..1.
    """
    probability = logits.sigmoid()
    overlap = (probability * truth).sum(dim=(1, 2, 3))
    total = probability.sum(dim=(1, 2, 3)) + truth.sum(dim=(1, 2, 3))
    present = truth.amax(dim=(1, 2, 3)) > 0.5
    return torch.where(present, 1 - 2 * overlap / total.clamp_min(1e-6), 0.0)


def dice_loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """One minus soft Dice of each image, and what is marked where an image has no lesion.

    Overlap with nothing is undefined. An image without lesion costs ``FALSE_WEIGHT * p / (p +
    FALSE_SHARE)`` instead, p the mean probability: soft Dice smoothed by FALSE_SHARE of the
    pixels. It falls steepest where nearly nothing is marked, which cross-entropy hardly sees: on a
    fold of BUSI it halved the share of normal images with a marked pixel.

    Args:
        logits: [N, 1, H, W].
        truth: [N, 1, H, W], values in 0..1.

    Returns:
        [N] in 0..1.
    """
    present = truth.amax(dim=(1, 2, 3)) > 0.5
    marked = logits.sigmoid().mean(dim=(1, 2, 3))
    false = FALSE_WEIGHT * marked / (marked + FALSE_SHARE)
    return overlap_loss(logits, truth) + torch.where(present, 0.0, false)


LOSSES: Final[Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = (
    MappingProxyType(
        {
            "balanced": area_balanced_bce,
            "dice": dice_loss,
            "bce": plain_bce,
            "overlap": overlap_loss,
        }
    )
)
"""By the names of setting `loss`. To add one: a line here."""


def terms_of(text: str) -> tuple[str, ...]:
    """Return the names in text as "balanced+dice". Raises InputError (E-LOSS-NAME) for others."""
    names = tuple(text.split("+"))
    for name in names:
        if name not in LOSSES:
            known = ", ".join(LOSSES)
            raise InputError("E-LOSS-NAME", f"no loss named {name!r}; choose of {known}")
        if names.count(name) > 1:
            raise InputError("E-LOSS-NAME", f"{text!r} names {name} twice; name each loss once")
    return names


def supervised_loss(
    logits: torch.Tensor, truth: torch.Tensor, terms: Iterable[str]
) -> torch.Tensor:
    """Return the sum of some losses, [N]: what all networks learn from the masks."""
    return torch.stack([LOSSES[name](logits, truth) for name in terms]).sum(dim=0)
