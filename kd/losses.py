"""Losses of one lesion channel: overlap, area balance, distillation.

The T²KD paper names a "weight balance loss" and a joint distillation but publishes no formula
(doi 10.7507/1001-5515.202311054); what is here is our reconstruction and is called so.
"""

from __future__ import annotations

from typing import Final

import torch
from torch.nn import functional as F

MAX_AREA_WEIGHT: Final = 5.0  # of a lesion pixel against a background pixel


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
        Scalar, the mean over images and pixels.
    """
    share = truth.mean(dim=(2, 3), keepdim=True)
    weight = ((1 - share) / share.clamp_min(1e-6)).sqrt().clamp(1, MAX_AREA_WEIGHT)
    pixel_weight = 1 + (weight - 1) * truth
    pixel_weight = pixel_weight / pixel_weight.mean(dim=(2, 3), keepdim=True)
    return F.binary_cross_entropy_with_logits(logits, truth, pixel_weight)


def dice_loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """One minus soft Dice (Milletari et al. 2016), a mean over the images with a lesion.

    Args:
        logits: [N, 1, H, W].
        truth: [N, 1, H, W], values in 0..1.

    Returns:
        Scalar in 0..1; 0 (with a zero gradient) when no image has a lesion, because overlap with
        nothing is undefined and cross-entropy already speaks for such images.
    """
    probability = logits.sigmoid()
    overlap = (probability * truth).sum(dim=(1, 2, 3))
    total = probability.sum(dim=(1, 2, 3)) + truth.sum(dim=(1, 2, 3))
    present = truth.amax(dim=(1, 2, 3)) > 0.5
    loss = torch.where(present, 1 - 2 * overlap / total.clamp_min(1e-6), torch.zeros_like(overlap))
    return loss.sum() / present.sum().clamp_min(1)


def supervised_loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Area-balanced cross-entropy plus Dice: what teachers and student learn from the masks."""
    return area_balanced_bce(logits, truth) + dice_loss(logits, truth)


def pixel_kl(
    student: torch.Tensor, teacher: torch.Tensor, routed: torch.Tensor, *, temperature: float
) -> torch.Tensor:
    """KL(teacher || student) of the binary pixel distributions, times temperature² (Hinton 2015).

    Args:
        student: logits [N, 1, H, W].
        teacher: logits [N, 1, H, W]; no gradient flows into them.
        routed: bool [N], images that have a teacher; the others add nothing.
        temperature: > 0, divides both logits.

    Returns:
        Scalar in nats, the mean over the pixels of routed images; 0 when there are none.

    Raises:
        ValueError: unequal shapes or a temperature that is not above 0.
    """
    if student.shape != teacher.shape or not temperature > 0:
        raise ValueError(f"{student.shape} against {teacher.shape}, temperature {temperature}")
    target = (teacher.detach() / temperature).sigmoid()
    scaled = student / temperature
    cross_entropy = F.binary_cross_entropy_with_logits(scaled, target, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(
        teacher.detach() / temperature, target, reduction="none"
    )
    a_image = (cross_entropy - entropy).mean(dim=(1, 2, 3)) * temperature**2
    kept = torch.where(routed, a_image, torch.zeros_like(a_image))
    return kept.sum() / routed.sum().clamp_min(1)
